"""What `statedict.torch.save` writes, `torch.load` reads; and a file is there whole or not at all."""

from __future__ import annotations

import gc
import gzip
import io
import pickle
import tempfile
import types
import weakref
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

import statedict
import statedict.torch
from statedict.errors import FileError

from .alike import NEW_OBJECTS, OBJECTS, Pieces, assert_alike
from .files import theirs, trees, warns, zip_and_legacy
from .files import written as by_torch

pytestmark = warns

try:
    from torch.utils.serialization import config
except ImportError:  # PyTorch 2.6, which has no such settings, aligns to 64 bytes and looks each offset up
    config = None  # type: ignore[assignment]

ALL = OBJECTS | NEW_OBJECTS


def written(obj: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    statedict.torch.save(obj, file, **options)
    return file.getvalue()


# what torch reads


@pytest.mark.parametrize("name", list(ALL))
def test_torch_loads_from_our_archive_what_it_loads_from_its_own(name: str) -> None:
    obj = ALL[name]()
    assert_alike(theirs(written(obj)), theirs(by_torch(obj)))


@pytest.mark.parametrize("name", list(OBJECTS))
def test_torch_loads_from_our_stream_what_it_loads_from_its_own(name: str) -> None:
    obj = OBJECTS[name]()
    assert_alike(theirs(written(obj, _use_new_zipfile_serialization=False)), theirs(by_torch(obj, False)))


@pytest.mark.parametrize("name", [name for name in ALL if name != "meta"])
@pytest.mark.parametrize("calculated", [False, True] if config else [False])
def test_torch_maps_what_we_write(name: str, calculated: bool, tmp_path: Path) -> None:
    obj = ALL[name]()
    statedict.torch.save(obj, tmp_path / "ours.pth")
    with config.patch("load.calculate_storage_offsets", calculated) if config else nullcontext():
        assert_alike(theirs(tmp_path / "ours.pth", mmap=True), theirs(by_torch(obj)))


def test_torch_finds_the_bytes_of_fake_tensors_in_our_archive(tmp_path: Path) -> None:
    path = tmp_path / "ours.pth"
    state = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 100)).state_dict()
    statedict.torch.save(state, path)
    data = path.read_bytes()
    with FakeTensorMode():
        fake = torch.load(path)
    assert all(fake[name].shape == tensor.shape for name, tensor in state.items())
    for name, tensor in state.items() if config else ():  # PyTorch 2.6 does not tell where bytes are
        offset = fake[name].untyped_storage()._checkpoint_offset
        assert data[offset : offset + tensor.nbytes] == tensor.numpy().tobytes()


@zip_and_legacy
@given(tree=trees)
def test_any_nesting_that_we_save_is_what_torch_would_have_saved(zipped: bool, tree: Any) -> None:
    data = written(tree, _use_new_zipfile_serialization=zipped)
    expected = theirs(by_torch(tree, zipped))
    assert_alike(theirs(data), expected)
    assert_alike(statedict.torch.load(io.BytesIO(data)), expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_pickle_in_the_file_has_the_protocol_that_was_asked_for(protocol: int) -> None:
    data = written({"w": torch.arange(3.0)}, pickle_protocol=protocol)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("archive/data.pkl")[:2] == bytes([0x80, protocol])
    assert_alike(torch.load(io.BytesIO(data), weights_only=False), {"w": torch.arange(3.0)})


def test_the_pickle_and_the_records_are_those_of_torch() -> None:
    tree = OBJECTS["a training"]()
    with (
        zipfile.ZipFile(io.BytesIO(written(tree))) as ours,
        zipfile.ZipFile(io.BytesIO(by_torch(tree))) as others,
    ):
        for name in others.namelist():
            if not name.endswith("serialization_id"):
                assert ours.read(name) == others.read(name), name


class Setting:
    def __init__(self, value: Any) -> None:
        self.value = value


def test_any_object_is_pickled_as_torch_save_does() -> None:
    loaded = torch.load(io.BytesIO(written(Setting(torch.ones(2)))), weights_only=False)
    assert type(loaded) is Setting
    assert_alike(loaded.value, torch.ones(2))


def test_the_same_object_gives_the_same_bytes() -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 40).state_dict()
    assert written(model) == written(model)


def test_what_we_write_carries_digests_that_verify_checks(tmp_path: Path) -> None:
    path = tmp_path / "ours.pth"
    statedict.torch.save(OBJECTS["a training"](), path)
    assert statedict.verify(path).ok
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("archive/data/0").header_offset
    data[header + 128] ^= 1
    path.write_bytes(data)
    assert not statedict.verify(path).ok


def test_one_memory_with_two_dtypes_is_refused_as_by_torch() -> None:
    z = torch.tensor([1 + 2j])
    for tree in ([z, z.imag], [z.storage(), z.real]):
        with pytest.raises(RuntimeError, match="view the same data as different types"):
            written(tree)


# where to


@zip_and_legacy
@pytest.mark.parametrize("kind", [str, Path], ids=["str", "Path"])
def test_a_path_may_be_a_string_or_a_path(kind: Any, zipped: bool, tmp_path: Path) -> None:
    path = kind(tmp_path / "ours.pth")
    statedict.torch.save([torch.ones(3)], path, _use_new_zipfile_serialization=zipped)
    assert_alike(torch.load(path), [torch.ones(3)])


@zip_and_legacy
def test_a_compressed_file_and_a_temporary_one_can_be_written_to(zipped: bool, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        statedict.torch.save([torch.ones(3)], file, _use_new_zipfile_serialization=zipped)
    with gzip.open(tmp_path / "x.gz", "rb") as file:
        assert_alike(torch.load(file), [torch.ones(3)])
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        statedict.torch.save([torch.ones(3)], file, _use_new_zipfile_serialization=zipped)
        file.seek(0)
        assert_alike(torch.load(file), [torch.ones(3)])


@zip_and_legacy
def test_a_file_object_is_asked_only_to_write_and_to_flush(zipped: bool) -> None:
    target = Pieces()
    statedict.torch.save({"w": torch.zeros(1 << 19)}, target, _use_new_zipfile_serialization=zipped)
    assert target.called == {"write", "flush"}
    target.seek(0)
    assert_alike(torch.load(target), {"w": torch.zeros(1 << 19)})


@zip_and_legacy
def test_it_is_written_where_the_file_object_stands(zipped: bool) -> None:
    file = io.BytesIO()
    pickle.dump(41, file)
    statedict.torch.save([torch.ones(3)], file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    assert pickle.load(file) == 41
    assert_alike(statedict.torch.load(file), [torch.ones(3)])


@pytest.mark.parametrize("target", [torch.ones(2), 5, None])
def test_what_cannot_be_written_to_is_refused(target: Any) -> None:
    with pytest.raises(AttributeError, match="a 'write' attribute"):
        statedict.torch.save([1], target)


# whole or not at all


class Fails:
    def __reduce__(self) -> Any:
        raise ValueError("cannot be pickled")


@zip_and_legacy
@pytest.mark.parametrize("pickle_module", [pickle, types.SimpleNamespace(**vars(pickle))], ids=["pickle", "another"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    zipped: bool, pickle_module: Any, tmp_path: Path
) -> None:
    path = tmp_path / "ours.pth"
    statedict.torch.save([torch.ones(3)], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be pickled"):
        statedict.torch.save([torch.ones(9), Fails()], path, pickle_module, _use_new_zipfile_serialization=zipped)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ours.pth"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        statedict.torch.save([1], tmp_path / "none" / "ours.pth")


def test_a_file_object_that_fails_passes_its_error_on() -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "no space")

        def flush(self) -> None: ...

    with pytest.raises(OSError, match="no space"):
        statedict.torch.save([1], Full())  # type: ignore[arg-type]


def test_a_mapped_file_can_be_replaced_by_what_was_loaded_from_it(tmp_path: Path) -> None:
    path = tmp_path / "ours.pth"
    statedict.torch.save([torch.arange(1000.0)], path)
    loaded = statedict.torch.load(path, mmap=True)
    statedict.torch.save(loaded, path)
    assert_alike(torch.load(path), [torch.arange(1000.0)])
    assert loaded[0][999] == 999


def test_nothing_that_was_saved_is_held() -> None:
    storage = torch.ones(1000).untyped_storage()
    gone = weakref.ref(storage)
    gc.disable()
    try:
        statedict.torch.save([torch.tensor([]).set_(storage)], io.BytesIO())
        del storage
        assert gone() is None
    finally:
        gc.enable()


# what torch's own settings change


def test_another_pickle_module_is_used() -> None:
    dumped: list[Any] = []

    class Pickler(pickle.Pickler):
        def dump(self, obj: Any) -> None:
            dumped.append(obj)
            super().dump(obj)

    module = types.SimpleNamespace(Pickler=Pickler, __name__="mine")
    assert_alike(theirs(written([torch.ones(2)], pickle_module=module)), [torch.ones(2)])
    assert dumped == [[dumped[0][0]]]


def test_a_file_without_its_byte_order_can_be_asked_for() -> None:
    for disabled in (False, True):
        with zipfile.ZipFile(io.BytesIO(written(1, _disable_byteorder_record=disabled))) as archive:
            assert ("archive/byteorder" in archive.namelist()) is not disabled


def test_another_alignment_of_storages_is_kept() -> None:
    alignment = 4096 if config else 64
    with config.patch("save.storage_alignment", alignment) if config else nullcontext():
        data = written([torch.arange(50.0), torch.arange(5.0)])
    assert data.index(torch.arange(50.0).numpy().tobytes()) % alignment == 0
    assert_alike(theirs(data), [torch.arange(50.0), torch.arange(5.0)])


def test_a_file_of_shapes_without_bytes_can_be_asked_for() -> None:
    with skip_data():
        data = written([torch.ones(1000)])
    assert theirs(data)[0].shape == (1000,)
