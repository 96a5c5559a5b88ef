"""Checkpoints of TensorFlow; the files in data/tensorflow are of 2.21.0, made by tests/peers/tensorflow.py."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, LimitError, MissingFileError, UnsupportedError
from statedict.ops import verify as ops

from .protos import field, varint

DATA = Path(__file__).parent / "data" / "tensorflow"
KERNEL = numpy.arange(6.0).reshape(2, 3).tolist()


def test_a_checkpoint_of_objects_is_a_tree_by_their_paths() -> None:
    state = statedict.load(DATA / "objects.index")
    assert list(state) == ["model", "optimizer", "step"]
    model = state["model"]
    assert model["texts"] == ["a", "λ"]
    assert {path: tensor.tolist() for path, tensor in model.tensors().items() if path != "four"} == {
        "blocks.0.bias": [1, 1, 1], "blocks.1.bias": [0.5, 0.5, 0.5], "blocks.1.kernel": KERNEL, "tied": KERNEL,
        "named.a/b.c.bias": [1, 1, 1], "named.a/b.c.kernel": KERNEL, "complex": [1 + 2j, 3j], "eight": [1, 2, 3],
        "flags": [True, False], "half": [1, 2, 3], "nothing": [], "scalar": 3,
    }  # fmt: skip
    kinds = {name: model[name].dtype.name for name in ("half", "eight", "complex", "four", "scalar")}
    assert [*kinds.values()] == ["bfloat16", "float8_e4m3fn", "complex128", "int4", "int64"]
    assert bytes(model["four"].raw()) == b"\1\x0e\3"
    assert state["optimizer"]["slots"]["momentum"]["model/blocks/1/bias"].tolist() == [1, 1, 1]


def test_a_variable_that_is_saved_in_slices_is_one_tensor() -> None:
    state = statedict.load(DATA / "names.index")
    assert list(state) == ["scope/part", "w/inner"]
    assert numpy.array_equal(state["scope/part"].numpy(), numpy.arange(15).reshape(5, 3))
    assert state["scope/part"][2:4, 1].tolist() == [7, 10]


def test_a_checkpoint_opens_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    assert statedict.load(DATA / "names")["w/inner"].tolist() == [1, 1]
    for file in DATA.glob("names.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "names"')
    assert statedict.load(tmp_path)["w/inner"].tolist() == [1, 1]
    assert statedict.verify(tmp_path).unread == ()


def test_a_saved_model_opens_by_its_variables(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\1\x12\0")
    (tmp_path / "variables").mkdir()
    for file in DATA.glob("names.*"):
        shutil.copy(file, tmp_path / "variables" / file.name.replace("names", "variables"))
    for path in (tmp_path, tmp_path / "saved_model.pb"):
        assert statedict.load(path)["w/inner"].tolist() == [1, 1]
    assert statedict.verify(tmp_path).unread == ()


def test_a_checkpoint_goes_to_other_formats(tmp_path: Path) -> None:
    statedict.convert(DATA / "names", tmp_path / "x.safetensors")
    assert statedict.diff(DATA / "names", tmp_path / "x.safetensors").identical == 2
    assert statedict.scan(DATA / "names.index").verdict == "data"
    assert statedict.stats(DATA / "names").tensors[0].max == 14


@pytest.mark.parametrize("name", ["objects", "names"])
def test_every_sum_is_compared(name: str, tmp_path: Path) -> None:
    report = statedict.verify(DATA / name)
    assert report.ok
    assert report.crcs == report.parts
    for file in DATA.glob(f"{name}.*"):
        shutil.copy(file, tmp_path)
    data = tmp_path / f"{name}.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[0 if name == "objects" else -1] ^= 1
    data.write_bytes(raw)
    (problem,) = statedict.verify(tmp_path / name).problems
    assert problem.what == "its CRC-32C differs, so its bytes are damaged"
    assert problem.tensors == (("step",) if name == "objects" else ("w/inner",))
    index = tmp_path / f"{name}.index"
    index.write_bytes(index.read_bytes().replace(b"VALUE", b"VALUF").replace(b"w/inner", b"w/inneq"))
    assert any("index" in problem.part for problem in statedict.verify(index).problems)


def test_without_the_library_for_sums_verify_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "import_crc32c", lambda: None)
    report = statedict.verify(DATA / "names")
    assert report.ok
    assert "pip install 'statedict[tensorflow]'" in str(report)


def entry(shape: tuple[int, ...] = (2,), code: int = 1, shard: int = 0, offset: int = 0, size: int = 8) -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    return field(1, code) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size) + field(6, bytes(4), 5)


def table(entries: dict[bytes, bytes], shards: int = 1, order: int = 0) -> bytes:
    """The index of a checkpoint, in a block."""

    def block(pairs: dict[bytes, bytes]) -> bytes:
        data = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs.items())
        data += struct.pack("<II", 0, 1) + b"\0"
        crc = google_crc32c.value(data)
        return data + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    header = field(1, shards) + (field(2, order) if order else b"") + field(3, field(1, 1))
    first = block({b"": header} | entries)
    handle = varint(0) + varint(len(first) - 5)
    index = block({b"z": handle})
    footer = handle + varint(len(first)) + varint(len(index) - 5)
    return first + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def put(folder: Path, index: bytes, *files: bytes) -> Path:
    (folder / "x.index").write_bytes(index)
    for number, data in enumerate(files):
        (folder / f"x.data-{number:05}-of-{len(files):05}").write_bytes(data)
    return folder / "x.index"


FLOATS = numpy.array([1, 2], "<f4").tobytes()


def test_the_data_may_be_in_several_files_and_in_another_byte_order(tmp_path: Path) -> None:
    path = put(tmp_path, table({b"a": entry(), b"b": entry(shard=1)}, 2), FLOATS, FLOATS[::-1])
    assert statedict.load(path)["a"].tolist() == [1, 2]
    put(tmp_path, table({b"a": entry()}, order=1), numpy.array([1, 2], ">f4").tobytes())
    assert statedict.load(path)["a"].tolist() == [1, 2]
    assert "behind the last tensor" not in str(statedict.verify(path))


def test_what_is_no_tensor_is_inert(tmp_path: Path) -> None:
    (found,) = statedict.load(put(tmp_path, table({b"a": entry(code=21)}), FLOATS)).values()
    assert found.name == "a value of TensorFlow's type 21 of 8 bytes"


def sliced(*extents: tuple[int, int]) -> bytes:
    inner = b"".join(field(1, field(1, start) + field(2, length)) for start, length in extents)
    return entry() + field(7, inner)


PART = b"\0a\0\1\1\1\x80\x82"  # the key of the slice 0 to 2 of a
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "cut": (table({b"a": entry()})[:-1], CorruptFileError, "has no end of a table"),
    "shard": (table({b"a": entry(shard=3)}), CorruptFileError, "tensor 'a' lies in file 3 of 1"),
    "beyond": (table({b"a": entry(offset=4)}), CorruptFileError, "tensor 'a': bytes 4 to 12 lie outside"),
    "size": (table({b"a": entry(size=4)}), CorruptFileError, "tensor 'a' has 4 bytes, its shape and type take 8"),
    "negative": (table({b"a": entry((-2,))}), CorruptFileError, r"the shape \[-2\]"),
    "huge": (table({b"a": entry((1 << 62, 4))}), CorruptFileError, "over 8 exabytes"),
    "order": (table({b"b": entry(), b"a": entry()}), CorruptFileError, "the key b'a' stands behind b'b'"),
    "files": (table({}, 0), CorruptFileError, "has its data in 0 files"),
    "many files": (table({}, 1 << 40), CorruptFileError, "has its data in 1,099,511,627,776 files"),
    "texts": (table({b"a": entry(code=7)}), CorruptFileError, "its texts do not take its 8 bytes"),
    "a name": (table({b"\xff": entry()}), CorruptFileError, "is not UTF-8"),
    "no slice": (table({b"a": sliced((0, 2))}), CorruptFileError, r"its slice at \[0\] is missing"),
    "a slice beyond": (table({b"a": sliced((1, 2))}), CorruptFileError, r"its slice at \[1\] is missing or wrong"),
    "a slice of another type": (
        table({PART: entry(code=3), b"a": sliced((0, 2))}), CorruptFileError, r"its slice at \[0\] is missing or wrong",
    ),
    "overlapping slices": (
        table({PART: entry(), b"a": sliced((0, 2)) + field(7, field(1, field(2, 2)))}), CorruptFileError, "overlap",
    ),
    "few slices": (
        table({PART: entry(), b"a": entry((3,)) + field(7, field(1, field(2, 2)))}), CorruptFileError, "not make it up",
    ),
    "dimensions of a slice": (table({b"a": sliced()}), CorruptFileError, "a slice of 0 dimensions"),
    "sliced texts": (table({b"a": entry(code=7) + sliced((0, 2))[len(entry()):]}), UnsupportedError, "in slices"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_checkpoint_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    index, kind, message = WRONG[name]
    path = put(tmp_path, index, FLOATS)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(path, format="tensorflow")
    assert str(tmp_path / "x") in str(caught.value)


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, table({b"a": entry()}, 2), FLOATS)
    with pytest.raises(MissingFileError, match=r"x\.data-00000-of-00002"):
        statedict.load(path)


def test_an_index_full_of_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statedict.formats.tensorflow.table._RESERVE", 0)
    path = put(tmp_path, table({b"%04d" % number: b"" for number in range(5000)}), FLOATS)
    with pytest.raises(LimitError, match="too many entries for its size"):
        statedict.load(path)
