"""The formats before PyTorch 1.6: what torch reads from a file, we read."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict.dtypes import BY_NAME
from statedict.formats.torch import legacy as torch_legacy
from statedict.testing.same import assert_same, in_torch, overlaps, patterned

KINDS = [
    kind
    for kind in BY_NAME.values()
    if kind.kind not in ("quantized", "bits") and kind.bits % 8 == 0 and in_torch(kind)
]


def save(tree: Any, folder: Path) -> Path:
    path = folder / "legacy.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_dtype_is_what_torch_saved(kind: Any, tmp_path: Path) -> None:
    tree = {"w": patterned(kind, 3, 5), "empty": patterned(kind, 0, 2), "scalar": patterned(kind)}
    assert_same(statedict.load(save(tree, tmp_path)), tree)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_every_protocol_that_torch_can_save_with_is_read(protocol: int, tmp_path: Path) -> None:
    tree = {"w": torch.arange(15.0).reshape(3, 5), "epoch": 3}
    torch.save(tree, tmp_path / "w.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert_same(statedict.load(tmp_path / "w.pth"), tree)


class Older:
    """A tensor that pickles as it did before `_rebuild_tensor`: an empty one, and its state."""

    def __init__(self, tensor: torch.Tensor, kind: Any) -> None:
        self.tensor, self.kind = tensor, kind

    def __reduce__(self) -> Any:
        storage = torch.storage.TypedStorage(
            wrap_storage=self.tensor.untyped_storage(), dtype=self.tensor.dtype, _internal=True
        )
        return self.kind, (), (storage, self.tensor.storage_offset(), tuple(self.tensor.size()), self.tensor.stride())


@pytest.mark.parametrize("kind", [torch.Tensor, torch.FloatTensor])
def test_a_tensor_that_pickled_as_its_state_is_read(kind: Any, tmp_path: Path) -> None:
    tensor = torch.arange(30.0).as_strided([2, 3], [9, 3], 2)
    older = Older(tensor, kind)
    found = statedict.load(save({"a": older, "again": older}, tmp_path))
    assert_same(found["a"], tensor)
    assert found["a"] is found["again"]


def test_tied_tensors_stay_tied_where_the_file_leaves_them_unaligned(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    path = save({"pad": torch.zeros(1, dtype=torch.uint8), "a": weight, "b": weight, "c": weight.t()}, tmp_path)
    state = statedict.load(path)
    assert state["a"].storage.offset % 4
    made = state.torch()
    assert made["a"].data_ptr() == made["b"].data_ptr() == made["c"].data_ptr()
    assert made["c"].stride() == (1, 3)


def test_views_ties_strides_and_nesting_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tree = collections.OrderedDict(
        a={"all": base, "tied": base, "row": base[2], "turned": base.t(), "steps": base[::2, 1::2]},
        b=[(torch.nn.Parameter(base[1]), 1), {"c": [True, None, "text", 2.5, 1j, b"raw"]}],
        c={1: torch.Size([2, 3]), "device": torch.device("cpu"), "dtype": torch.float16},
    )
    found = statedict.load(save(tree, tmp_path))
    assert_same(found, tree)
    assert overlaps(found) == overlaps(tree)


def test_a_model_and_its_optimizer_load_into_live_ones(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    found = statedict.load(save(tree, tmp_path))
    assert_same(found, tree)
    torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).load_state_dict(found["model"])


def test_pickles_longer_than_one_reading_are_read_whole(tmp_path: Path) -> None:
    tree = {f"layers.{i}.weight": torch.tensor([float(i)]) for i in range(3000)} | {"text": "x" * 400_000}
    path = save(tree, tmp_path)
    assert path.stat().st_size > 4 * torch_legacy._WINDOW
    assert_same(statedict.load(path), tree)


def test_the_storages_are_not_read_when_the_file_is_opened(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(4), "big": torch.zeros(4_000_000)}, tmp_path)
    reads: list[int] = []
    source = statedict.io.source.FileSource(str(path))

    class Counted:
        name, size = source.name, source.size

        def read(self, offset: int, length: int) -> Any:
            reads.append(length)
            return source.read(offset, length)

    assert torch_legacy.read(Counted())["big"].shape == (4_000_000,)
    assert sum(reads) < 1_000_000


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # once in a process
def test_a_storage_by_itself_is_a_tensor_of_one_dimension(tmp_path: Path) -> None:
    torch.save({"s": torch.arange(3.0).storage()}, tmp_path / "s.pth", _use_new_zipfile_serialization=False)
    assert statedict.load(tmp_path / "s.pth")["s"].tolist() == [0, 1, 2]


def test_a_file_that_ends_anywhere_is_truncated(tmp_path: Path) -> None:
    path = save({"w": torch.arange(9.0), "n": {"b": torch.ones(2, dtype=torch.bfloat16)}, "text": "abc"}, tmp_path)
    whole = path.read_bytes()
    for length in range(15, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(statedict.errors.TruncatedError, match=r"legacy\.pth"):
            statedict.load(path)


def test_a_changed_byte_is_an_error_of_ours_or_no_error(tmp_path: Path) -> None:
    path = save({"w": torch.arange(9.0), "n": {"b": torch.ones(2, dtype=torch.bfloat16)}, "text": "abc"}, tmp_path)
    whole = path.read_bytes()
    for position in range(15, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            for tensor in statedict.load(path).tensors().values():
                tensor.raw()
        except statedict.StateDictError:
            pass


class Call:
    """Pickles as a call of a function that no longer exists or exists under another signature."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Stored:
    """Pickles as the persistent id that it holds."""

    def __init__(self, *identifier: Any) -> None:
        self.identifier = identifier


class Writer(pickle._Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identifier if isinstance(value, Stored) else None


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(value)
    return buffer.getvalue()


def stream(tree: Any, storages: dict[str, numpy.ndarray], little: bool = True) -> bytes:
    """A file as old versions wrote it."""
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    data = b"".join(map(pickled, (torch_legacy.MAGIC, 1001, system, tree, list(storages))))
    for array in storages.values():
        data += struct.pack("<q", array.size) + array.tobytes()
    return data


def test_tensors_and_views_of_storages_as_before_0_4_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    root = Stored("storage", torch.FloatStorage, "77", "cpu", 10, None)
    view = Stored("storage", torch.FloatStorage, "77", "cpu", 10, ("78", 4, 6))
    tree = {
        "root": Call(torch._utils._rebuild_tensor, root, 1, (2, 3), (3, 1)),
        "view": Call(torch._utils._rebuild_tensor, view, 0, (2, 2), (2, 1)),
        "v2": Call(torch._utils._rebuild_tensor_v2, view, 1, (3,), (1,), True, collections.OrderedDict()),
    }
    path = tmp_path / "old.pth"
    path.write_bytes(stream(tree, {"77": numpy.arange(10, dtype="<f4")}))
    found = statedict.load(path)
    assert_same(found, torch.load(path, weights_only=False))
    assert overlaps(found) == {("root", "view"): 12, ("root", "v2"): 16, ("view", "v2"): 4}


def test_what_a_big_endian_machine_wrote_has_our_order(tmp_path: Path) -> None:
    kinds = {"1": torch.DoubleStorage, "2": torch.ComplexFloatStorage, "3": torch.ByteStorage}
    arrays = {
        "1": numpy.arange(4, dtype=">f8"),
        "2": numpy.array([1 + 2j, 3j], ">c8"),
        "3": numpy.arange(2, dtype="u1"),
    }
    tree = {
        key: Call(
            torch._utils._rebuild_tensor, Stored("storage", kind, key, "cpu", len(arrays[key]), None), 0, (2,), (1,)
        )
        for key, kind in kinds.items()
    }
    path = tmp_path / "big.pth"
    path.write_bytes(stream(tree, arrays, little=False))
    state = statedict.load(path)
    assert [state[key].tolist() for key in "123"] == [[0, 1], [1 + 2j, 3j], [0, 1]]
    assert state["1"][1:].raw() == numpy.array([1.0], "<f8").tobytes()


def test_a_class_with_its_source_text_is_only_named(tmp_path: Path) -> None:
    tree = {"model": Stored("module", collections.ChainMap, "/x/model.py", "class M: pass"), "w": 1}
    (tmp_path / "x.pth").write_bytes(stream(tree, {}))
    assert statedict.load(tmp_path / "x.pth")["model"].name == "collections.ChainMap"


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        (("storage", torch.FloatStorage, "1", "cpu", -1, None), "storage that is described wrongly"),
        (("storage", "float", "1", "cpu", 1, None), "storage that is described wrongly"),
        (("storage", torch.FloatStorage, "1", "cpu", 3, ("2", -1, 2)), "view of a storage"),
        (("file", "/etc/passwd"), "does not name a storage"),
        (("storage", torch.FloatStorage, "9", "cpu", 3, None), "storage '9' is missing"),
        (("storage", torch.FloatStorage, "1", "cpu", 9, None), "has 4 elements, its tensors need more"),
    ],
)
def test_storages_that_make_no_sense_are_refused(identifier: Any, message: str, tmp_path: Path) -> None:
    first = Stored("storage", torch.FloatStorage, "1", "cpu", 4, None)
    tree = [Stored(*identifier), first]
    (tmp_path / "x.pth").write_bytes(stream(tree, {"1": numpy.zeros(4, "f4")}))
    with pytest.raises(statedict.errors.CorruptFileError, match=message):
        statedict.load(tmp_path / "x.pth")


def tar(path: Path, tree: Any, storages: bytes, tensors: bytes) -> None:
    members = {"sys_info": pickled({"little_endian": True}), "pickle": pickled(tree)}
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (members | {"storages": storages, "tensors": tensors}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


class Kept(Stored):
    def __init__(self, key: int) -> None:
        self.identifier = key  # type: ignore[assignment]


def archive(path: Path) -> None:
    """Two storages, a view of the first, four tensors."""
    first, second = numpy.arange(10, dtype="<f4"), numpy.arange(6, dtype="<i8")
    storages = pickled(2)
    for key, kind, array in ((1, torch.FloatStorage, first), (2, torch.LongStorage, second)):
        storages += pickled((key, "cpu", kind)) + struct.pack("<q", array.size) + array.tobytes()
    storages += pickled([(3, 1, 4, 6)])
    tensors = pickled(4)
    for key, storage, shape, strides, offset in (
        (10, 1, (2, 3), (3, 1), 1),
        (11, 2, (2, 3), (1, 2), 0),
        (12, 3, (2,), (2,), 1),
        (13, 1, (), (), 9),
    ):
        n = len(shape)
        tensors += pickled((key, storage, torch.FloatTensor)) + struct.pack("<ixxxx", n)
        tensors += struct.pack(f"<{2 * n}qq", *shape, *strides, offset)
    tree = collections.OrderedDict(a=Kept(10), b={"c": [Kept(11), Kept(12), Kept(10)]}, d=Kept(13), epoch=3)
    tar(path, tree, storages, tensors)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tar_archive_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    archive(path)
    found = statedict.load(path)
    assert_same(found, torch.load(path, weights_only=False))
    assert overlaps(found)["a", "b.c.1"] == 16


def test_a_tar_archive_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    archive(path)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(300, end - 600, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(statedict.errors.CorruptFileError, match=r"model\.pth"):
            statedict.load(path)


def test_numbers_in_a_tar_archive_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    storage = pickled(1) + pickled((1, "cpu", torch.FloatStorage)) + struct.pack("<q", 2) + bytes(8) + pickled([])
    entry = pickled(1) + pickled((10, 1, torch.FloatTensor))
    for tensors, message in (
        (entry + struct.pack("<ixxxx", 1 << 20), "described wrongly"),
        (entry + struct.pack("<ixxxxqqq", 1, 5, 1, 0), "ends at byte 20 of a storage of 8"),
        (pickled(1 << 60), "an impossible count"),
        (pickled(1) + pickled([1]), "described wrongly"),
    ):
        tar(path, {"a": Kept(10)}, storage, tensors)
        with pytest.raises(statedict.errors.CorruptFileError, match=message):
            statedict.load(path)
    tar(path, {"a": Kept(11)}, storage, pickled(0))
    with pytest.raises(statedict.errors.CorruptFileError, match="'11' is missing"):
        statedict.load(path)
