"""`statedict.torch.load` against `torch.load` of the same file."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from mmap import MAP_SHARED
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import LoadEndianness, set_default_load_endianness, set_default_mmap_options

import statedict
import statedict.torch

from .alike import NEW_OBJECTS, OBJECTS, Pieces, assert_alike
from .files import ours, theirs, trees, warns, with_pickle, written, zip_and_legacy

pytestmark = warns


# the same objects


@zip_and_legacy
@pytest.mark.parametrize("name", list(OBJECTS))
def test_we_load_what_torch_loads(name: str, zipped: bool) -> None:
    data = written(OBJECTS[name](), zipped)
    assert_alike(ours(data), theirs(data))


@pytest.mark.parametrize("name", list(NEW_OBJECTS))
def test_we_load_what_torch_loads_from_an_archive_from_a_stream_too(name: str) -> None:
    archive, stream = written(NEW_OBJECTS[name]()), written(NEW_OBJECTS[name](), False)
    assert_alike(ours(archive), theirs(archive))
    assert_alike(ours(stream), theirs(archive))


def test_jagged_tensors_load_although_torch_allows_them_no_longer_by_default() -> None:
    jagged = torch.nested.nested_tensor([torch.ones(2, 3), torch.arange(12.0).reshape(4, 3)], layout=torch.jagged)
    loaded = ours(written([jagged, jagged.values()]))
    assert type(loaded[0]) is type(jagged)
    assert [part.tolist() for part in loaded[0].unbind()] == [part.tolist() for part in jagged.unbind()]
    assert loaded[0].values().data_ptr() == loaded[1].data_ptr()


@zip_and_legacy
def test_empty_bytes_are_data_although_torch_refuses_them(zipped: bool) -> None:
    assert_alike(ours(written([b"", torch.ones(1)], zipped)), [b"", torch.ones(1)])


@pytest.mark.parametrize("name", [name for name in OBJECTS if name != "meta"])
def test_we_map_what_torch_maps(name: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    path.write_bytes(written(OBJECTS[name]()))
    assert_alike(statedict.torch.load(path, mmap=True), theirs(path, mmap=True))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("name", ["plain values", "ties and views", "parameters", "requires_grad"])
def test_pickle_protocols_that_torch_refuses_give_the_same_values(name: str, protocol: int) -> None:
    obj = OBJECTS[name]()
    loaded = ours(written(obj, pickle_protocol=protocol))
    expected = theirs(written(obj))
    for one, other in zip(flat(loaded), flat(expected), strict=True):
        assert type(one) is type(other)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else repr(one) == repr(other)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.items() for leaf in flat(item)]
    return [leaf for item in value for leaf in flat(item)] if type(value) in (list, tuple) else [value]


@zip_and_legacy
@given(tree=trees)
def test_any_nesting_of_tensors_that_share_memory_is_loaded_as_torch_loads_it(zipped: bool, tree: Any) -> None:
    data = written(tree, zipped)
    assert_alike(ours(data), theirs(data))


def test_loaded_tensors_are_writable_and_independent_of_the_file() -> None:
    file = io.BytesIO(written([torch.arange(4.0)] * 2))
    a, b = statedict.torch.load(file)
    before = file.getvalue()
    a[0] = 7
    assert b[0] == 7
    assert file.getvalue() == before
    file.seek(0, io.SEEK_END)
    file.write(b"the buffer is free again")
    file.truncate(0)
    assert a.tolist() == [7, 1, 2, 3]


# where from


def as_gzip(data: bytes, folder: Path) -> Any:
    with gzip.open(folder / "x.gz", "wb") as file:
        file.write(data)
    return gzip.open(folder / "x.gz", "rb")


def as_file(data: bytes, folder: Path) -> Path:
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


def as_temporary(data: bytes, folder: Path) -> Any:
    file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115  # the caller closes it
    file.write(data)
    file.seek(0)
    return file


SOURCES: dict[str, Callable[[bytes, Path], Any]] = {
    "str": lambda data, folder: str(as_file(data, folder)),
    "Path": as_file,
    "open file": lambda data, folder: as_file(data, folder).open("rb"),
    "unbuffered file": lambda data, folder: as_file(data, folder).open("rb", buffering=0),
    "file open for both": lambda data, folder: as_file(data, folder).open("r+b"),
    "temporary file": as_temporary,
    "BytesIO": lambda data, folder: io.BytesIO(data),
    "gzip": as_gzip,
    "buffered gzip": lambda data, folder: io.BufferedReader(as_gzip(data, folder)),
    "reads in pieces": lambda data, folder: Pieces(data, most=1000),
    "reads into buffers": lambda data, folder: Pieces(data, readinto=True, most=1000),
}


@zip_and_legacy
@pytest.mark.parametrize("name", list(SOURCES))
def test_a_file_opens_however_it_is_handed_over(name: str, zipped: bool, tmp_path: Path) -> None:
    tree = {"w": torch.arange(1000.0), "n": 1}
    source = SOURCES[name](written(tree, zipped), tmp_path)
    try:
        assert_alike(statedict.torch.load(source), tree)
    finally:
        if hasattr(source, "close"):
            source.close()


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("str", "Path", "gzip", "buffered gzip")])
def test_streams_among_other_pickles_are_read_one_after_the_other(name: str, tmp_path: Path) -> None:
    first, second = [torch.arange(3.0)], {"b": torch.ones(2)}
    data = pickle.dumps(41) + written(first, False) + pickle.dumps(43) + written(second, False) + b"rest"
    source = SOURCES[name](data, tmp_path)
    assert pickle.load(source) == 41
    assert_alike(statedict.torch.load(source), first)
    assert pickle.load(source) == 43
    assert_alike(statedict.torch.load(source), second)
    assert source.read(10) == b"rest"
    if hasattr(source, "close"):
        source.close()


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("str", "Path")])
def test_an_archive_is_read_from_the_position_of_the_file(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](pickle.dumps(41) + written([torch.arange(300.0)]), tmp_path)
    assert pickle.load(source) == 41
    assert_alike(statedict.torch.load(source), [torch.arange(300.0)])
    if hasattr(source, "close"):
        source.close()


def test_what_was_written_to_a_file_a_moment_ago_is_read(tmp_path: Path) -> None:
    path = as_file(written([torch.zeros(3)], False), tmp_path)
    with path.open("r+b") as file:
        file.read(4)
        file.seek(-4, io.SEEK_END)
        file.write(struct.pack("<f", 5.0))
        file.seek(0)
        assert statedict.torch.load(file)[0].tolist() == [0, 0, 5]


def test_a_class_of_the_caller_s_is_read_through_its_own_methods(tmp_path: Path) -> None:
    class Decoding(Pieces):
        def __init__(self, path: Path) -> None:
            super().__init__(bytes(byte ^ 0x55 for byte in path.read_bytes()))
            self.file = self.raw = path.open("rb", buffering=0)
            self.fileno = self.file.fileno

    path = as_file(bytes(byte ^ 0x55 for byte in written([torch.arange(3.0)])), tmp_path)
    source = Decoding(path)
    assert_alike(statedict.torch.load(source), [torch.arange(3.0)])
    source.file.close()


@pytest.mark.parametrize("readinto", [False, True])
def test_a_file_object_is_asked_only_for_reading(readinto: bool) -> None:
    source = Pieces(written(torch.ones(3)), readinto=readinto)
    statedict.torch.load(source)
    assert source.called <= {"read", "readinto", "readline", "seek", "tell"}
    assert ("readinto" in source.called) is readinto


def test_a_stream_that_cannot_seek_is_refused_with_the_remedy() -> None:
    class Pipe:
        def read(self, size: int = -1) -> bytes:
            return b""

    with pytest.raises(AttributeError, match="pre-load the data into a buffer"):
        statedict.torch.load(Pipe())  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_other_formats_open_as_plain_dicts_of_tensors(suffix: str, tmp_path: Path) -> None:
    tree = {"w": torch.arange(4.0), "n": torch.arange(3)}
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        statedict.save(tree, path)
    else:
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in tree.items()}))
    for mmap in (False, True):
        loaded = statedict.torch.load(path, mmap=mmap)
        assert type(loaded) is dict
        assert all(numpy.array_equal(loaded[name], tensor) for name, tensor in tree.items())


def test_the_dict_of_a_state_dict_in_safetensors_goes_into_its_model(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    statedict.save(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(statedict.torch.load(tmp_path / "model.safetensors"))
    assert torch.equal(model.weight, other.weight)


# where to


PLACES: dict[str, Any] = {
    "None": None,
    "str": "cpu",
    "device": torch.device("cpu"),
    "dict": {"cpu": "cpu"},
    "a dict without it": {"cuda:0": "cpu"},
    "a function": lambda storage, location: storage,
    "a function that leaves it": lambda storage, location: None,
    "meta": "meta",
    "the meta device": torch.device("meta"),
}


@zip_and_legacy
@pytest.mark.parametrize("name", list(PLACES))
def test_map_location_does_what_torch_does(name: str, zipped: bool) -> None:
    data = written(OBJECTS["ties and views"](), zipped)
    loaded = ours(data, map_location=PLACES[name])
    assert_alike(loaded, theirs(data, map_location=PLACES[name]))
    assert {tensor.device.type for tensor in loaded} == {"meta" if "meta" in name else "cpu"}


@zip_and_legacy
def test_a_function_for_map_location_sees_each_storage_once(zipped: bool) -> None:
    data = written(OBJECTS["a training"](), zipped)
    seen: dict[Any, list[Any]] = {}
    for load in (ours, theirs):
        note = seen.setdefault(load, [])
        load(data, map_location=lambda storage, location, note=note: note.append((storage.nbytes(), location)))
    assert seen[ours] == seen[theirs] != []


def on_the_gpu(zipped: bool) -> bytes:
    """A file that says that its tensors were on a GPU."""

    def moved(pickled: bytes) -> bytes:
        return pickled.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")

    data = written([torch.arange(3.0)], zipped)
    return with_pickle(data, moved) if zipped else moved(data)


@zip_and_legacy
def test_what_was_saved_on_a_gpu_lands_on_the_cpu(zipped: bool) -> None:
    data = on_the_gpu(zipped)
    assert_alike(ours(data), [torch.arange(3.0)])
    assert_alike(ours(data, map_location={"cuda:0": "cpu"}), [torch.arange(3.0)])


@zip_and_legacy
def test_a_device_that_is_not_there_is_torch_s_own_error(zipped: bool) -> None:
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on"):
        ours(on_the_gpu(zipped), map_location="cuda:99")


@zip_and_legacy
def test_under_fake_tensors_no_byte_is_read(zipped: bool) -> None:
    data = written(nn.Linear(3, 4).state_dict(), zipped)
    with FakeTensorMode():
        mine, real = ours(data), theirs(data)
    for name in real:
        assert type(mine[name]) is type(real[name])
        assert mine[name].shape == real[name].shape
        offsets = [getattr(t.untyped_storage(), "_checkpoint_offset", None) for t in (mine[name], real[name])]
        assert offsets[0] == offsets[1]


def test_mmap_is_for_archives_in_files(tmp_path: Path) -> None:
    path = as_file(written(torch.ones(2)), tmp_path)
    with path.open("rb") as file, pytest.raises(ValueError, match="file path"):
        statedict.torch.load(file, mmap=True)
    path.write_bytes(written(torch.ones(2), False))
    with pytest.raises(RuntimeError, match="_use_new_zipfile_serialization"):
        statedict.torch.load(path, mmap=True)


def test_a_mapped_file_is_shared_where_that_was_asked_for(tmp_path: Path) -> None:
    path = as_file(written([torch.zeros(1000)]), tmp_path)
    with set_default_mmap_options(MAP_SHARED):
        statedict.torch.load(path, mmap=True)[0].fill_(1)
    assert_alike(statedict.torch.load(path), [torch.ones(1000)])


def test_what_is_written_into_a_mapped_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    path = as_file(written([torch.zeros(1000)]), tmp_path)
    before = path.read_bytes()
    statedict.torch.load(path, mmap=True)[0].fill_(1)
    assert path.read_bytes() == before


# other times and machines


@pytest.mark.parametrize("default", [None, LoadEndianness.LITTLE, LoadEndianness.BIG])
def test_the_byte_order_of_a_file_that_does_not_say_is_the_default_s(default: LoadEndianness | None) -> None:
    data = written([torch.arange(4.0, dtype=torch.float64), torch.arange(3, dtype=torch.int16)],
                   _disable_byteorder_record=True)  # fmt: skip
    set_default_load_endianness(default)
    try:
        assert_alike(ours(data), theirs(data))
    finally:
        set_default_load_endianness(None)


def text(string: bytes) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(string)]) + string


def of_python_2(name: bytes) -> bytes:
    """A stream with [name, tensor] in which every string is one of Python 2."""
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"7001") + text(b"cpu") + b"K\2NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\0K\2\x85K\1\x85tR"
    stream = [pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001)]
    stream += [pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)]
    stream += [b"\x80\2](" + text(name) + tensor + b"e.", b"\x80\2]" + text(b"7001") + b"a."]
    return b"".join(stream) + struct.pack("<q2f", 2, 1.5, -2.0)


@pytest.mark.parametrize(
    ("encoding", "expected"), [({}, "é"), ({"encoding": "utf-8"}, "é"), ({"encoding": "latin1"}, "Ã©"),
                               ({"encoding": "bytes"}, b"\xc3\xa9")],
)  # fmt: skip
def test_strings_of_python_2_are_decoded_as_asked(encoding: dict[str, str], expected: Any) -> None:
    assert_alike(ours(of_python_2(b"\xc3\xa9"), **encoding), [expected, torch.tensor([1.5, -2.0])])


def test_strings_of_python_2_that_are_not_in_the_encoding_are_a_unicode_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        ours(of_python_2(b"\xc3\xa9"), encoding="ascii")


def test_two_storages_that_are_parts_of_one_share_its_memory() -> None:
    def part(key: bytes, offset: int) -> bytes:
        view = text(key) + b"K" + bytes([offset]) + b"K\1\x87"
        return b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"1") + text(b"cpu") + b"K\2" + view + b"tQ"

    head = of_python_2(b"").partition(b"\x80\2](")[0]
    data = head + b"\x80\2](" + part(b"2", 0) + part(b"3", 1) + b"e.\x80\2]" + text(b"1") + b"a."
    data += struct.pack("<q2f", 2, 1.5, -2.0)
    first, second = ours(data)
    assert second.data_ptr() == first.data_ptr() + 4
    assert_alike(ours(data), torch.load(io.BytesIO(data), weights_only=False))


def test_the_drop_in_is_there_without_an_import_of_its_own() -> None:
    program = "import statedict, sys; assert 'torch' not in sys.modules; print(statedict.torch.load.__module__)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "statedict.torch\n"
