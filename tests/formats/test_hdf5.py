"""HDF5 files of any kind, made by h5py."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest
import torch
from h5py import h5d, h5p, h5s, h5t

import statedict
from statedict import formats
from statedict.errors import CorruptFileError, LimitError, StateDictError, TruncatedError, UnsupportedError
from statedict.formats.hdf5.stream import check_heap
from statedict.io.location import location
from statedict.io.source import BytesSource, FileSource
from statedict.values import Opaque

from ..work import bytes_read

RNG = numpy.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "floats": RNG.normal(size=(40, 30)).astype("f4"),
    "halves": numpy.arange(6, dtype="f2"),
    "big-endian": numpy.arange(12, dtype=">f8").reshape(3, 4),
    "big-endian complex": numpy.arange(6, dtype=">c16").reshape(2, 3),
    "complex": numpy.array([1 + 2j, 3], "c8"),
    "bools": numpy.array([True, False, True]),
    "bytes": numpy.arange(5, dtype="u1"),
    "long": numpy.arange(-3, 3),
    "none of it": numpy.zeros((0, 3), "f4"),
    "scalar": numpy.float64(3.5),
}
WAYS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "in chunks": {"chunks": True},
    "deflated": {"chunks": True, "compression": "gzip", "shuffle": True},
    "by lzf, with sums": {"chunks": True, "compression": "lzf", "fletcher32": True},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.h5"


def made(path: Path, make: Callable[[h5py.File], Any], **options: Any) -> statedict.StateDict:
    with h5py.File(path, "w", **options) as file:
        make(file)
    return statedict.load(path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_and_layout_have_their_elements(name: str, way: str, path: Path) -> None:
    array = numpy.asarray(ARRAYS[name])
    options = WAYS[way] if array.size and array.ndim else {}
    tensor = made(path, lambda file: file.create_dataset("a", data=array, **options))["a"]
    assert (tensor.dtype, tensor.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert numpy.array_equal(tensor.numpy(), array)
    assert tensor.raw() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim == 2 and array.size:
        assert numpy.array_equal(tensor[1:, 1:3].numpy(), array[1:, 1:3])


def test_groups_are_dicts_in_their_natural_order_or_in_that_which_the_file_keeps(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for name in ("b_10", "b_9", "a"):
            file[f"{name}/w"] = [1]

    assert list(made(path, fill).tensors()) == ["a.w", "b_9.w", "b_10.w"]
    assert list(made(path, fill, track_order=True).tensors()) == ["b_10.w", "b_9.w", "a.w"]


def test_texts_are_strings_and_what_is_empty_is_none(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["one"], file["more"], file["empty"] = "λ", ["a", "bc"], h5py.Empty("f4")
        file.create_dataset("of a size", data=numpy.array([[b"x", b"yz"]]))
        file.create_dataset("in chunks", data=["a", "b"], chunks=(1,))

    assert made(path, fill) == {
        "empty": None,
        "in chunks": ["a", "b"],
        "more": ["a", "bc"],
        "of a size": [["x", "yz"]],
        "one": "λ",
    }


def test_attributes_go_along_as_metadata(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["author"], file.attrs["epoch"], file.attrs["rates"] = "Ada", 3, [0.5, 0.25]
        file.attrs["reference"] = file.ref
        file.create_group("model").attrs["kind"] = "small"

    assert made(path, fill).metadata == {"author": "Ada", "epoch": "3", "rates": "[0.5, 0.25]", "model@kind": "small"}


def test_an_enumeration_is_its_numbers_and_an_array_in_an_element_is_more_dimensions(path: Path) -> None:
    data = numpy.arange(24, dtype="f4").reshape(2, 3, 4)

    def fill(file: h5py.File) -> None:
        kind = h5py.enum_dtype({"RED": 0, "GREEN": 1}, basetype="i4")
        file.create_dataset("colours", data=numpy.array([0, 1, 1]), dtype=kind)
        for name, plan in (("rows", None), ("chunks", h5p.create(h5p.DATASET_CREATE))):
            if plan is not None:
                plan.set_chunk((1, 2))
            element = h5t.array_create(h5t.IEEE_F32BE, (4,))
            made = h5d.create(file.id, name.encode(), element, h5s.create_simple((2, 3)), plan)
            made.write(h5s.ALL, h5s.ALL, data, h5t.array_create(h5t.IEEE_F32LE, (4,)))

    state = made(path, fill)
    assert state["colours"].tolist() == [0, 1, 1]
    for name in ("rows", "chunks"):
        assert numpy.array_equal(state[name].numpy(), data)
        assert numpy.array_equal(state[name][1, 1:, 1:3].numpy(), data[1, 1:, 1:3])


def test_opaque_bytes_have_the_dtype_that_an_attribute_names_and_no_other(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for name in ("named", "not named", "wrong"):
            file[name] = numpy.arange(3, dtype="u2").view("V2")
        file["named"].attrs["dtype"] = "bfloat16"
        file["wrong"].attrs["dtype"] = "float32"

    state = made(path, fill)
    assert {name: tensor.dtype.name for name, tensor in state.items()} == {
        "named": "bfloat16",
        "not named": "V2",
        "wrong": "V2",
    }


def test_integers_of_other_sizes_are_decoded_and_other_elements_are_inert(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        kind = h5t.STD_I16LE.copy()
        kind.set_precision(12)
        made = h5d.create(file.id, b"twelve bits", kind, h5s.create_simple((3,)))
        made.write(h5s.ALL, h5s.ALL, numpy.array([1, -2, 3], "i2"), h5t.STD_I16LE)
        file["records"] = numpy.zeros(4, [("a", "f4"), ("b", "i4")])
        file["type"] = numpy.dtype("f4")
        file.create_dataset("sequences", shape=(2,), dtype=h5py.vlen_dtype("i4"))

    state = made(path, fill)
    assert state["twelve bits"].tolist() == [1, -2, 3]
    assert [type(state[name]) for name in ("records", "type", "sequences")] == [Opaque] * 3


def test_a_dataset_with_two_names_is_tied(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = [1.0, 2.0]
        file["b/c"] = file["a"]

    state = made(path, fill)
    assert state["a"].region == state["b"]["c"].region


def test_data_that_was_never_written_is_its_fill_value(path: Path) -> None:
    state = made(path, lambda file: file.create_dataset("a", shape=(3,), dtype="f4", fillvalue=2.0))
    assert state["a"].tolist() == [2, 2, 2]


def test_a_small_dataset_may_lie_in_its_header(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.COMPACT)
        made = h5d.create(file.id, b"a", h5t.IEEE_F32LE, h5s.create_simple((3,)), plan)
        made.write(h5s.ALL, h5s.ALL, numpy.arange(3, dtype="f4"))

    assert made(path, fill)["a"].tolist() == [0, 1, 2]


def test_no_other_file_is_opened(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = numpy.ones(4, "f4")
    (tmp_path / "secret").write_bytes(bytes(16))

    def fill(file: h5py.File) -> None:
        file["soft"], file["outside"] = h5py.SoftLink("/a"), h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        file.create_dataset("external", shape=(4,), dtype="f4", external=[(str(tmp_path / "secret"), 0, 16)])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        file.create_virtual_dataset("virtual", layout)

    with h5py.File(path, "w") as file:
        fill(file)
    code = (
        "import sys, os, statedict\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "state = statedict.load(sys.argv[1])\n"
        "assert not [name for name in opened if name.endswith(('other.h5', 'secret'))], opened\n"
        "held = [os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')]\n"
        "assert not [name for name in held if name.endswith(('other.h5', 'secret'))], held\n"
        "print(*(f'{name}={value.name}' for name, value in state.items()), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "external=a dataset that lies in other files, which are not opened",
        f"outside=a link to /x in {tmp_path}/other.h5, which is not followed",
        "soft=a link to /a, which is not followed",
        "virtual=a dataset that lies in other files, which are not opened",
    ]


def test_a_file_behind_a_block_of_a_user_is_read_by_its_format(path: Path) -> None:
    state = made(path, lambda file: file.create_dataset("a", data=[1.0, 2.0]), libver="latest")
    assert state["a"].tolist() == [1, 2]


def test_opening_reads_no_data_and_decoding_reads_what_is_asked_for(path: Path) -> None:
    data = RNG.normal(size=(4000, 500))
    made(
        path,
        lambda file: [
            file.create_dataset("a", data=data, chunks=(100, 500), compression="gzip", compression_opts=1),
            file.create_dataset("b", data=data),
        ],
    )
    assert bytes_read(lambda: statedict.load(path)) < 1 << 18
    state = statedict.load(path)
    assert numpy.array_equal(state["a"][3000].numpy(), data[3000])
    assert bytes_read(lambda: state["b"][7].numpy()) < 1 << 16


def test_a_decoded_tensor_goes_to_other_processes_and_formats(path: Path, tmp_path: Path) -> None:
    data = RNG.normal(size=(300, 40)).astype("f4")
    state = made(path, lambda file: file.create_dataset("g/a", data=data, chunks=(7, 9), compression="gzip"))
    assert numpy.array_equal(pickle.loads(pickle.dumps(state["g"]["a"])).numpy(), data)
    statedict.convert(path, tmp_path / "x.safetensors")
    assert numpy.array_equal(statedict.load(tmp_path / "x.safetensors").at("g.a").numpy(), data)


def test_a_file_is_read_from_memory(path: Path) -> None:
    made(path, lambda file: file.create_dataset("a", data=numpy.arange(9), chunks=(2,)))
    assert formats.read(BytesSource(path.read_bytes(), "it"))["a"].tolist() == list(range(9))
    assert location(str(path)).open().size == path.stat().st_size


def test_a_url_is_read_by_its_regions(s3: Any, path: Path) -> None:
    data = RNG.normal(size=(500, 40)).astype("f4")
    made(path, lambda file: [file.create_dataset("a", data=data), file.create_dataset("b", data=data, chunks=(9, 7))])
    s3.upload_file(str(path), "bucket", "x.h5")
    state = statedict.load("s3://bucket/x.h5")
    assert numpy.array_equal(state["a"].numpy(), data)
    assert numpy.array_equal(state["b"][100:200].numpy(), data[100:200])


@pytest.mark.parametrize("length", [9, 40, 95, 300, 1500])
def test_a_process_that_met_a_damaged_file_ends_as_usual(length: int, path: Path) -> None:
    made(path, lambda file: file.create_dataset("a", data=numpy.arange(999.0), chunks=(9,)))
    path.write_bytes(path.read_bytes()[:length])
    code = """
import statedict, sys
try:
    statedict.load(sys.argv[1])["a"].numpy()
except statedict.errors.StateDictError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, path.name in done.stdout) == (0, True), done.stderr


def test_a_process_that_was_interrupted_ends_as_usual(path: Path) -> None:
    made(path, lambda file: file.create_dataset("a", data=numpy.arange(9.0), chunks=(4,), compression="gzip"))
    code = """
import statedict, sys
from statedict.io.source import FileSource
state = statedict.load(sys.argv[1])
def interrupt(*_): raise KeyboardInterrupt
FileSource.check_range = interrupt
try:
    state["a"].numpy()
except KeyboardInterrupt as error:
    kept = error
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_after_an_interrupt_the_file_is_not_read_further(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(path, lambda file: file.create_dataset("a", data=numpy.arange(50_000.0), chunks=(9000,), compression="gzip"))
    state = statedict.load(path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "check_range", interrupt)
        with pytest.raises(KeyboardInterrupt):
            state["a"].numpy()
    with pytest.raises(StateDictError, match="reading was interrupted; load the file again"):
        state["a"].numpy()
    assert statedict.load(path)["a"].numpy()[-1] == 49_999


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], type[Exception], str]] = {
    "cut within the data": (lambda data: data[:-4000], TruncatedError, "truncated"),
    "cut within the header": (lambda data: data[:40], TruncatedError, "ends within its superblock"),
    "no superblock": (lambda data: data[:8] + bytes(200) + data[208:], CorruptFileError, "its superblock is damaged"),
    "a superblock of zeros": (lambda data: data[:16] + bytes(80) + data[96:], CorruptFileError, "libhdf5 says"),
    "a later superblock": (lambda data: data[:8] + b"\4" + data[9:], CorruptFileError, "or of a later HDF5"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_an_error_that_says_what_is_wrong(name: str, path: Path) -> None:
    change, kind, message = DAMAGE[name]
    made(path, lambda file: file.create_dataset("a", data=numpy.zeros(2000)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(kind, match=message) as caught:
        statedict.load(path)
    assert str(path) in str(caught.value)


def heap(*objects: tuple[int, int], size: int = 64) -> BytesSource:
    """A global heap of objects (index, bytes that it says), behind the beginning of a file."""
    body = b"".join(struct.pack("<HHIQ", index, 1, 0, length) + bytes(16) for index, length in objects)
    head = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])
    return BytesSource(head + b"GCOL\1\0\0\0" + struct.pack("<Q", size) + body.ljust(48, b"\0"), "it")


def test_a_heap_of_texts_is_checked_before_libhdf5_reads_it() -> None:
    check_heap(heap((1, 9), (0, 16)), 16)
    for damaged in (heap((1, 40)), heap((0, 56)), heap((1, 9), (0, 8)), heap(size=80), heap(size=8)):
        with pytest.raises(CorruptFileError, match="it: the heap at byte 16"):
            check_heap(damaged, 16)


def test_a_group_in_itself_is_refused(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/b"] = [1]
        file["a/again"] = file["a"]

    with pytest.raises(CorruptFileError, match="a/again: is a group that it lies in"):
        made(path, fill)


def test_groups_that_are_nested_too_deep_are_refused(path: Path) -> None:
    with pytest.raises(LimitError, match="nested over 200 deep"):
        made(path, lambda file: file.create_group("/".join("g" * 300)))


@pytest.mark.parametrize("options", [{"chunks": (1024, 1024)}, {"chunks": (1024, 1024), "compression": "gzip"}, {}])
def test_a_dataset_that_claims_more_than_it_has_is_refused(options: Any, path: Path) -> None:
    with pytest.raises(LimitError, match="0 bytes claim to unpack to 4,398,046,511,104; refused"):
        made(path, lambda file: file.create_dataset("a", shape=(1 << 20, 1 << 20), dtype="f4", **options))


def test_a_large_chunk_is_refused(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("a", shape=(1 << 29,), dtype="f4", chunks=(1 << 29,), maxshape=(None,))

    with pytest.raises(LimitError, match=r"claim to unpack|a chunk of"):
        made(path, fill)


def test_a_filter_that_is_not_there_is_named(path: Path) -> None:
    def fill(file: h5py.File) -> None:
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_chunk((8,))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5d.create(file.id, b"a", h5t.IEEE_F32LE, h5s.create_simple((8,)), plan)

    with pytest.raises(LimitError, match="is packed by '32015', which libhdf5 lacks; pip install hdf5plugin"):
        made(path, fill)


def test_a_sum_that_differs_is_found_when_the_data_is_read(path: Path) -> None:
    state = made(path, lambda file: file.create_dataset("a", data=numpy.zeros(100), chunks=(100,), fletcher32=True))
    with h5py.File(path) as file:
        place = file["a"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "libhdf5 says" in str(statedict.verify(path))
    with pytest.raises(CorruptFileError, match="a: libhdf5 says"):
        statedict.load(path)["a"].numpy()
    assert state["a"].shape == (100,)


def test_a_nested_dict_goes_to_hdf5_and_back(path: Path) -> None:
    tree = {"z": {"w": torch.ones(2, 3), "b": torch.ones(2).bfloat16()}, "a": {}, "note": "λ", "n": torch.tensor(7)}
    statedict.save(tree, path)
    loaded = statedict.load(path)
    assert loaded["note"] == "λ"
    assert torch.equal(loaded["z"]["b"].torch(), tree["z"]["b"])
    with h5py.File(path) as file:
        assert file["z/w"][()].tolist() == [[1, 1, 1]] * 2
        assert file["z/b"].attrs["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": 3}}, r"a\.b: 3 \(int\) is neither a tensor nor text"),
        ({"a": {"b/c": torch.ones(1)}}, "'b/c' is no name in HDF5"),
        ({"a": {".": torch.ones(1)}}, r"'\.' is no name in HDF5"),
        ({"a": {"": torch.ones(1)}}, "'' is no name in HDF5"),
        (torch.ones(1), "an HDF5 file holds a dict, not a LazyTensor"),
        ({"\ud800": torch.ones(1)}, "is no name in HDF5"),
        ({"a": torch.ones([1] * 33)}, "a: HDF5 has at most 32 dimensions, not 33"),
        ({"a": [torch.ones(1)]}, "a: .*is neither a tensor nor text"),
    ],
)
def test_what_hdf5_cannot_hold_is_refused_before_a_byte_is_written(tree: Any, message: str, path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        statedict.save(tree, path)
    assert not path.exists()


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".weights.h5"])
def test_without_h5py_an_error_says_what_to_install(suffix: str, path: Path, tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(1)}, path)
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "import statedict, numpy\n"
        "for act in (lambda: statedict.load(sys.argv[1]), lambda: statedict.save({'w': numpy.ones(1)}, sys.argv[2])):\n"
        "    try:\n        act()\n        raise SystemExit('no error')\n"
        "    except statedict.errors.MissingExtraError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / f"y{suffix}")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("pip install 'statedict[hdf5]'") == 2
