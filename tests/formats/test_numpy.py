"""NumPy's .npy and .npz, written by NumPy itself."""

from __future__ import annotations

import io
import json
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.errors import CorruptFileError, FormatError, LimitError, TruncatedError, UnsupportedError
from statedict.formats.numpy.literal import parse_literal
from statedict.values import Opaque

from ..work import bytes_read

RECORD = numpy.dtype([("i", "<i4"), ("x", ">f8", (2, 3)), ("flag", "?"), ("inner", [("a", "u1"), ("b", "<f4")])])
ARRAYS: dict[str, Any] = {
    "float": numpy.linspace(-1, 1, 12, dtype="f4").reshape(3, 4),
    "big": numpy.arange(6, dtype=">i4").reshape(2, 3),
    "big complex": numpy.array([1 + 2j, 3 - 4j], ">c16"),
    "half": numpy.array([0.5, numpy.nan], "f2"),
    "bool": numpy.array([True, False]),
    "scalar": numpy.float64(3),
    "empty": numpy.zeros((0, 3), "u2"),
    "fortran": numpy.asfortranarray(numpy.arange(24.0).reshape(2, 3, 4)),
    "fortran row": numpy.asfortranarray(numpy.ones((1, 5))),
    "reversed": numpy.arange(10)[::-2],
}


def same(tensor: Any, array: Any) -> None:
    array = numpy.asarray(array)
    assert tensor.shape == array.shape
    assert tensor.dtype == array.dtype.newbyteorder("=")
    assert tensor.numpy().tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


def save(path: Path, array: Any, version: tuple[int, int]) -> None:
    with path.open("wb") as file, warnings.catch_warnings(action="ignore"):
        numpy.lib.format.write_array(file, numpy.asarray(array), version)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_any_version_layout_and_byte_order_is_a_tensor(
    name: str, version: tuple[int, int], tmp_path: Path
) -> None:
    save(tmp_path / "x.npy", ARRAYS[name], version)
    state = statedict.load(tmp_path / "x.npy")
    assert list(state) == [""]
    same(state[""], ARRAYS[name])
    assert statedict.verify(tmp_path / "x.npy").ok


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_an_archive_is_a_tree_of_its_arrays(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "x.npz", numpy.ones(2), **ARRAYS)
    state = statedict.load(tmp_path / "x.npz")
    assert sorted(state) == sorted([*ARRAYS, "arr_0"])
    for name, array in ARRAYS.items():
        same(state[name], array)
    assert statedict.verify(tmp_path / "x.npz").ok


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_fields_of_records_are_tensors_under_their_names(shape: tuple[int, ...], order: Any, tmp_path: Path) -> None:
    array = numpy.zeros(shape, RECORD, order)
    numbers = numpy.arange(array.size).reshape(shape)
    array["i"], array["flag"], array["inner"]["b"] = numbers, numbers % 2 == 1, numbers / 2
    array["x"] = numpy.arange(array.size * 6).reshape(*shape, 2, 3)
    numpy.savez(tmp_path / "x.npz", records=array)
    records = statedict.load(tmp_path / "x.npz")["records"]
    for name in ("i", "x", "flag"):
        same(records[name], array[name])
    for name in ("a", "b"):
        same(records["inner"][name], array["inner"][name])


def test_a_record_of_an_aligned_struct_has_no_entries_for_its_gaps(tmp_path: Path) -> None:
    array = numpy.array([(1, 2.0)], numpy.dtype([("a", "u1"), ("b", "f8")], align=True))
    numpy.save(tmp_path / "x.npy", array)
    state = statedict.load(tmp_path / "x.npy")
    assert list(state) == ["a", "b"]
    same(state["b"], array["b"])


def test_texts_are_lists_and_dates_and_objects_stay_inert(tmp_path: Path) -> None:
    texts = {
        "u": numpy.array([["ab", "λ"], ["", "c"]]),
        "big": numpy.array("xyz", ">U5"),
        "s": numpy.array([b"ab", b""]),
    }
    others = {"d": numpy.array(["2020-01-01"], "M8[D]"), "o": numpy.array([1, "a"], object)}
    numpy.savez(tmp_path / "x.npz", **texts, **others, f=numpy.asfortranarray(texts["u"]))
    state = statedict.load(tmp_path / "x.npz")
    assert {name: state[name] for name in texts} == {name: array.tolist() for name, array in texts.items()}
    assert state["f"] == texts["u"].tolist()
    assert all(isinstance(state[name], Opaque) for name in others)
    assert statedict.scan(tmp_path / "x.npz").verdict == "dangerous"  # numpy.load unpickles objects


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn])
def test_dtypes_of_ml_dtypes_are_bytes_where_numpy_wrote_them_and_themselves_where_we_did(
    kind: Any, tmp_path: Path
) -> None:
    array = numpy.arange(4).astype(kind)
    if numpy.dtype(kind).str[1] == "V":
        numpy.savez(tmp_path / "theirs.npz", w=array)
        theirs = statedict.load(tmp_path / "theirs.npz")["w"]
        assert (theirs.dtype.name, theirs.dtype.kind) == (f"V{array.itemsize}", "raw")
        assert bytes(theirs.raw()) == array.tobytes()
    statedict.save({"w": array}, tmp_path / "ours.npz")
    same(statedict.load(tmp_path / "ours.npz")["w"], array)
    with numpy.load(tmp_path / "ours.npz") as ours:
        assert ours.files == ["w"]
        assert ours["w"].view(kind).tobytes() == array.tobytes()


def test_arrays_saved_one_after_the_other_are_all_there(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        for array in ARRAYS.values():
            numpy.save(file, array)
    state = statedict.load(tmp_path / "x.npy")
    assert list(state) == [f"arr_{index}" for index in range(len(ARRAYS))]
    for tensor, array in zip(state.values(), ARRAYS.values(), strict=True):
        same(tensor, array)
    assert statedict.verify(tmp_path / "x.npy").ok


def test_bytes_behind_an_array_are_reported(tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", numpy.ones(3))
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(b"what is this")
    assert statedict.load(tmp_path / "x.npy")[""].tolist() == [1, 1, 1]
    report = statedict.verify(tmp_path / "x.npy")
    assert not report.ok
    assert "12 bytes follow the array" in str(report)


def test_a_header_of_python_2_is_read(tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", numpy.arange(12.0).reshape(3, 4))
    data = (tmp_path / "x.npy").read_bytes().replace(b"(3, 4), }  ", b"(3L, 4L), }")
    (tmp_path / "x.npy").write_bytes(data)
    assert statedict.load(tmp_path / "x.npy")[""].shape == (3, 4)


def test_a_flat_state_dict_is_an_archive_of_its_arrays_and_nothing_else(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    statedict.save(model.state_dict(), tmp_path / "x.npz")
    with numpy.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays.files == list(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert numpy.array_equal(arrays[name], tensor.numpy())
    model.load_state_dict(statedict.load(tmp_path / "x.npz"))


def test_what_an_archive_says_beside_its_arrays_moves_to_a_member_where_a_comment_is_too_short(tmp_path: Path) -> None:
    tree = {"w": numpy.ones(2), "names": [f"layer {index}" for index in range(9000)]}
    statedict.save(tree, tmp_path / "x.npz")
    with numpy.load(tmp_path / "x.npz") as arrays:
        assert arrays.files == ["w", ".statedict.json"]
    assert statedict.load(tmp_path / "x.npz")["names"] == tree["names"]
    assert statedict.verify(tmp_path / "x.npz").ok


def test_members_that_are_no_arrays_are_texts_or_inert(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", w=numpy.ones(2))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("blob", b"\xff\xfe")
    state = statedict.load(tmp_path / "x.npz")
    assert state["w.npy"][""].tolist() == [1, 1]
    assert (state["config.json"], type(state["blob"])) == ("{}", Opaque)


@pytest.mark.parametrize("code", ["<g", ">g", "<G", ">G"])
def test_the_longest_floats_keep_their_bytes_and_never_go_to_pytorch(code: str, tmp_path: Path) -> None:
    array = (numpy.arange(6).reshape(2, 3) / 3 + (2j if code[1] == "G" else 0)).astype(code)
    numpy.save(tmp_path / "x.npy", array)
    statedict.convert(tmp_path / "x.npy", tmp_path / "x.npz")
    with numpy.load(tmp_path / "x.npz") as archive:
        assert archive[""].dtype == array.dtype.newbyteorder("=")
        assert (archive[""] == array).all()
    with pytest.raises(UnsupportedError, match="PyTorch has no dtype"):
        statedict.convert(tmp_path / "x.npy", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_members_that_are_unpacked_are_not_kept(tmp_path: Path) -> None:
    numpy.savez_compressed(tmp_path / "x.npz", **{f"w{n}": numpy.full(1 << 20, n, "f4") for n in range(8)})
    state = statedict.load(tmp_path / "x.npz")
    jobs: list[Any] = [lambda: statedict.save(state, tmp_path / "x.gguf"), lambda: statedict.stats(state)]
    jobs.append(lambda: statedict.save(statedict.alter.cast(state, "float16"), tmp_path / "x.safetensors"))
    for job in jobs:
        tracemalloc.start()
        try:
            job()
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


def test_opening_a_compressed_archive_unpacks_only_the_headers(tmp_path: Path) -> None:
    numpy.savez_compressed(tmp_path / "x.npz", w=numpy.random.default_rng(0).random(1_000_000))
    assert bytes_read(lambda: statedict.load(tmp_path / "x.npz")) < 1 << 19


def npy(header: Any, data: bytes = bytes(24), version: int = 1) -> bytes:
    text = (header if isinstance(header, bytes) else str(header).encode()) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


WHOLE = {"descr": "<f8", "fortran_order": False, "shape": (3,)}
DAMAGE: dict[str, tuple[bytes, type[Exception], str]] = {
    "no dict": (npy(b"[1"), CorruptFileError, "is not a dict of Python"),
    "a call": (npy(b"dict(descr='<f8')"), CorruptFileError, "is not a dict of Python"),
    "deep": (npy(b"(" * 5000), CorruptFileError, "is not a dict of Python"),
    "no shape": (npy({"descr": "<f8", "fortran_order": False}), CorruptFileError, "its header has no 'shape'"),
    "negative": (npy(WHOLE | {"shape": (-1,)}), CorruptFileError, r"shape=\(-1,\)"),
    "a shape of texts": (npy(WHOLE | {"shape": ("3",)}), CorruptFileError, r"shape=\('3',\)"),
    "order": (npy(WHOLE | {"fortran_order": 1}), CorruptFileError, "fortran_order=1"),
    "dtype": (npy(WHOLE | {"descr": "float64 "}), CorruptFileError, "no dtype of NumPy is called 'float64 '"),
    "huge": (npy(WHOLE | {"shape": (1 << 61, 4)}), CorruptFileError, "strides of over 8 exabytes"),
    "short": (npy(WHOLE | {"shape": (4,)}), TruncatedError, "its data, bytes .* lie past the end"),
    "fields": (npy(WHOLE | {"descr": [("a",)]}), CorruptFileError, "is no field of a dtype"),
    "same fields": (npy(WHOLE | {"descr": [("a", "<f4"), ("a", "<f4")]}), CorruptFileError, "have one name"),
    "a long header": (npy(b" " * 70_000, version=2), LimitError, "a header of 70,001 bytes"),
    "version": (npy(WHOLE, version=9), FormatError, "version 9.0"),
    "cut in the header": (npy(WHOLE)[:30], TruncatedError, "ends within its header"),
    "cut in the magic": (npy(WHOLE)[:7], TruncatedError, "ends within its header"),
    "text": (npy(WHOLE | {"descr": "<U2"}, b"\xff" * 24), CorruptFileError, "its text has a character 0xffffffff"),
}


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_array_is_an_error_that_says_what_is_wrong(name: str, archive: bool, tmp_path: Path) -> None:
    data, kind, message = DAMAGE[name]
    path = tmp_path / "x"
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("w.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(path)
    assert str(path) in str(caught.value)
    assert archive is ("w.npy" in str(caught.value))


@given(
    st.recursive(
        st.integers(-(10**18), 10**18) | st.booleans() | st.none() | st.text(),
        lambda below: st.lists(below) | st.lists(below).map(tuple) | st.dictionaries(st.text(), below),
        max_leaves=12,
    )
)
def test_a_literal_is_what_python_makes_of_it(value: Any) -> None:
    assert parse_literal(repr(value)) == value


def rewritten(content: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = json.dumps(content, separators=(",", ":")).encode()
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metadata": {}, "dtypes": []}, "is not one that statedict writes"),
        ({"metadata": {"a": 1}, "dtypes": {}}, "is not one that statedict writes"),
        ({"metadata": {}, "dtypes": {"w": "bfloat16"}}, "cannot hold 'bfloat16'"),
        ({"metadata": {}, "dtypes": {"w": 3}}, "cannot hold 3"),
        ({"metadata": {}, "dtypes": {"v": "bfloat16"}}, "has no array 'v'"),
    ],
)
def test_a_tree_beside_other_arrays_is_an_error(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(rewritten(content, w=numpy.ones(3)))
    with pytest.raises(CorruptFileError, match=message):
        statedict.load(tmp_path / "x.npz")


def test_a_comment_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(rewritten("made by hand", w=numpy.ones(3)))
    assert statedict.load(tmp_path / "x.npz")["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a\0b": numpy.ones(1)}, "is not a name for a member"),
        ({"x" * 70_000: numpy.ones(1)}, "is not a name for a member"),
        ({"a\\b": numpy.ones(1), "a/b": numpy.zeros(1)}, r"'a/b': some readers of zip archives take it for 'a\\\\b'"),
    ],
)
def test_what_an_archive_cannot_hold_is_refused_before_a_byte_is_written(
    tree: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        statedict.save(tree, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 3, 5, 7])
def test_an_array_of_one_number_compressed_is_read_and_no_cause_for_alarm(number: int, tmp_path: Path) -> None:
    array = numpy.full(1 << 20, number, "f4")
    numpy.savez_compressed(tmp_path / "x.npz", w=array)
    same(statedict.load(tmp_path / "x.npz")["w"], array)
    assert statedict.verify(tmp_path / "x.npz").ok
    assert not statedict.scan(tmp_path / "x.npz").damage
