"""A dtype that no table has yet, in every format: bytes under its name, with their shape, copied as they are."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict.dtypes import BY_NAME, labelled_dtype
from statedict.io.source import BytesSource
from statedict.pickles.writer import dumps
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict

from .. import dcp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = bytes(range(48))
NEW = "float9_e4m4"


def archive(path: Path, tree: Any, old: bytes, new: bytes) -> Path:
    """A file of torch.save whose pickle names another dtype or storage class."""
    file = io.BytesIO()
    torch.save(tree, file)
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(path, "w") as after:
        for info in before.infolist():
            data = before.read(info)
            if info.filename.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            after.writestr(info.filename, data)
    return path


def words(*shape: int) -> torch.Tensor:
    """uint16, which PyTorch writes by name beside a storage of bytes."""
    return torch.frombuffer(bytearray(DATA), dtype=torch.uint16)[: int(numpy.prod(shape))].clone().reshape(shape)


def of_torch(path: Path, tree: Any) -> Path:
    return archive(path, tree, b"ctorch\nuint16\n", f"ctorch\n{NEW}\n".encode())


def known_again(path: Path) -> Any:
    """What PyTorch finds in a file whose dtype has its name back."""
    file = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(file, "w") as after:
        for info in before.infolist():
            after.writestr(info.filename, before.read(info).replace(f"ctorch\n{NEW}\n".encode(), b"ctorch\nuint16\n"))
    file.seek(0)
    return torch.load(file)


def test_pytorch_s_has_its_name_shape_and_bytes(tmp_path: Path) -> None:
    found = statedict.load(of_torch(tmp_path / "x.pth", {"w": words(3, 4), "n": 1}))
    assert (str(found["w"].dtype), found["w"].shape, found["w"].nbytes) == (NEW, (3, 4), 24)
    assert found["w"].raw() == DATA[:24]
    assert repr(found["w"]).startswith(f"LazyTensor({NEW}, (3, 4), 24 B")
    with pytest.raises(statedict.errors.UnsupportedError, match="numpy has no dtype"):
        found["w"].numpy()
    with pytest.raises(statedict.errors.UnsupportedError, match="cannot be sliced"):
        found["w"][0]
    with pytest.raises(statedict.errors.UnsupportedError, match=f"has no dtype {NEW}"):
        found["w"].torch()
    assert not statedict.inspect(found).opaque


def test_pytorch_s_is_copied_unchanged_by_save_convert_and_edit(tmp_path: Path) -> None:
    whole = words(24)
    tree = {
        "w": words(3, 4),
        "p": torch.nn.Parameter(words(2), requires_grad=False),
        "turned": words(3, 4).t(),
        "view": whole[5:9],
        "rest": whole[9:].reshape(3, 5).t(),
        "empty": words(0, 3),
    }
    path = of_torch(tmp_path / "x.pth", tree)
    statedict.convert(path, tmp_path / "y.pth")
    statedict.save(statedict.load(path), tmp_path / "z.pth")
    statedict.edit(path, tmp_path / "e.pth", [{"rename": {"w": "renamed"}}])
    for name in ("y.pth", "z.pth"):
        again = known_again(tmp_path / name)
        assert list(again) == list(tree)
        assert all(torch.equal(again[key].view(torch.int16), tree[key].view(torch.int16)) for key in tree)
        assert isinstance(again["p"], torch.nn.Parameter)
    assert torch.equal(known_again(tmp_path / "e.pth")["renamed"].view(torch.int16), tree["w"].view(torch.int16))
    assert statedict.diff(path, tmp_path / "y.pth").same
    assert not statedict.verify(tmp_path / "y.pth").problems


def test_pytorch_s_goes_to_safetensors_and_back(tmp_path: Path) -> None:
    path = of_torch(tmp_path / "x.pth", {"w": words(3, 4), "p": torch.nn.Parameter(words(2), requires_grad=False)})
    statedict.convert(path, tmp_path / "x.safetensors")
    there = statedict.load(tmp_path / "x.safetensors")
    assert (str(there["w"].dtype), there["w"].shape, there["w"].raw()) == (NEW, (3, 4), DATA[:24])
    assert there["p"].parameter
    statedict.convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    again = known_again(tmp_path / "y.pth")
    assert torch.equal(again["w"].view(torch.int16), words(3, 4).view(torch.int16))


def test_a_view_of_pytorch_s_is_not_cut_out_of_its_storage(tmp_path: Path) -> None:
    path = of_torch(tmp_path / "x.pth", {"view": words(24)[3:7]})
    with pytest.raises(statedict.errors.UnsupportedError, match="is a view of a storage"):
        statedict.convert(path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_views_that_begin_elsewhere_differ(tmp_path: Path) -> None:
    one = of_torch(tmp_path / "1.pth", {"view": words(24)[3:7]})
    other = of_torch(tmp_path / "2.pth", {"view": words(24)[4:8]})
    assert statedict.diff(one, one).same
    assert not statedict.diff(one, other).same


def test_a_storage_class_that_is_in_no_table_is_read_by_the_size_that_it_has(tmp_path: Path) -> None:
    tree = {"w": torch.arange(6, dtype=torch.int16).reshape(2, 3), "row": torch.arange(6, dtype=torch.int16)[2:4]}
    path = archive(tmp_path / "x.pth", tree, b"ctorch\nShortStorage\n", b"ctorch\nNovelStorage\n")
    found = statedict.load(path)
    assert (str(found["w"].dtype), found["w"].dtype.itemsize, found["row"].shape) == ("NovelStorage", 2, (2,))
    assert found["row"].raw() == bytes([2, 0, 3, 0])
    statedict.convert(path, tmp_path / "y.pth")
    again = archive_named(tmp_path / "y.pth", b"ctorch\nNovelStorage\n", b"ctorch\nShortStorage\n")
    assert torch.equal(again["w"], tree["w"])
    assert torch.equal(again["row"], tree["row"])


def archive_named(path: Path, old: bytes, new: bytes) -> Any:
    file = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(file, "w") as after:
        for info in before.infolist():
            after.writestr(info.filename, before.read(info).replace(old, new))
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(("shape", "offset"), [((30,), 0), ((4,), 400), ((1 << 31, 1 << 31), 0), ((2,), -1)])
def test_a_shape_that_the_storage_cannot_hold_is_damage(shape: tuple[int, ...], offset: int, tmp_path: Path) -> None:
    storage = Storage(BytesSource(DATA[:3]), 0, 3)
    made = Labelled(labelled_dtype(NEW), shape, storage, offset)
    data = dumps({"w": made}, lambda t: ("0", 3, 0, t.stride()))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", DATA[:3])
        file.writestr("archive/version", "3")
    with pytest.raises(statedict.errors.CorruptFileError, match="storage of 3 bytes"):
        statedict.load(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["load", "hub", "_utils", "Tensor", "FooStorage"])
def test_a_name_of_pytorch_s_that_is_no_dtype_stays_a_label(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth", {"w": words(2)}, b"ctorch\nuint16\n", f"ctorch\n{name}\n".encode())
    assert type(statedict.load(path)["w"]).__name__ == "Opaque"


def test_a_legacy_file_of_pytorch_s_has_it_too(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"w": words(3, 4)}, file, _use_new_zipfile_serialization=False)
    path = tmp_path / "x.pth"
    path.write_bytes(file.getvalue().replace(b"ctorch\nuint16\n", f"ctorch\n{NEW}\n".encode()))
    found = statedict.load(path)["w"]
    assert (str(found.dtype), found.shape, found.raw()) == (NEW, (3, 4), DATA[:24])


def test_a_distributed_checkpoint_has_it_too(tmp_path: Path) -> None:
    tree = StateDict(w=Labelled(labelled_dtype(NEW), (3, 4), Storage(BytesSource(DATA), 0, 24)), n=1)
    statedict.save(tree, tmp_path / "d")
    found = statedict.load(tmp_path / "d")
    assert (str(found["w"].dtype), found["w"].shape, found["w"].raw()) == (NEW, (3, 4), DATA[:24])
    assert not statedict.verify(tmp_path / "d").problems
    statedict.convert(tmp_path / "d", tmp_path / "e")
    assert statedict.load(tmp_path / "e")["w"].raw() == DATA[:24]


def test_chunks_of_a_distributed_checkpoint_are_put_together(tmp_path: Path) -> None:
    from .test_distributed import metadata, rewrite

    folder = tmp_path / "d"
    dcp.save({"a": words(2, 4), "b": words(3, 4)}, folder)
    for file in folder.glob("*.distcp"):
        file.write_bytes(file.read_bytes().replace(b"uint16", b"uint98"))
    index = metadata(folder)
    one, other = index.state_dict_metadata.values()
    other.chunks[0].offsets = torch.Size([2, 0])
    one.chunks, one.size = [*one.chunks, *other.chunks], torch.Size([5, 4])
    del index.state_dict_metadata["b"]
    from torch.distributed.checkpoint.metadata import MetadataIndex

    index.storage_data = {
        MetadataIndex("a", (torch.Size([0, 0]), torch.Size([2, 0]))[number]): place
        for number, place in enumerate(index.storage_data.values())
    }
    rewrite(folder, index)
    raw = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(raw.replace(b"uint16", b"uint98"))
    found = statedict.load(folder)["a"]
    assert (str(found.dtype), found.shape, found.dtype.itemsize) == ("uint98", (5, 4), 2)
    assert found.raw() == DATA[:16] + DATA[:24]


def safetensors(path: Path, *tensors: tuple[str, list[int], int]) -> Path:
    header, at = {}, 0
    for index, (code, shape, size) in enumerate(tensors):
        header[f"t{index}"] = {"dtype": code, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + DATA[:at])
    return path


def test_a_code_of_safetensors_takes_its_size_from_its_offsets(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", ("F9", [2, 3], 12), ("BLOCK_17", [32], 17), ("F9", [0, 3], 0))
    found = statedict.load(path)
    assert [(str(t.dtype), t.dtype.bits, t.shape, t.nbytes) for t in found.values()] == [
        ("F9", 16, (2, 3), 12),
        ("BLOCK_17", 0, (32,), 17),
        ("F9", 0, (0, 3), 0),
    ]
    assert found["t1"].raw() == DATA[12:29]
    statedict.convert(path, tmp_path / "y.safetensors")
    again = statedict.load(tmp_path / "y.safetensors")
    assert statedict.diff(found, again).same
    assert [t.raw() for t in again.values()] == [t.raw() for t in found.values()]
    assert not statedict.verify(tmp_path / "y.safetensors").problems
    with pytest.raises(
        statedict.errors.UnsupportedError, match=r"t0: PyTorch has no dtype F9; save it as \.safetensors"
    ):
        statedict.convert(path, tmp_path / "y.pth")


def test_no_elements_in_some_bytes_are_damage(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.CorruptFileError, match="no elements and 3 bytes"):
        statedict.load(safetensors(tmp_path / "x.safetensors", ("F9", [0, 3], 3)))


def test_other_bytes_and_other_sizes_are_differences(tmp_path: Path) -> None:
    one = safetensors(tmp_path / "1.safetensors", ("BLOCK_17", [32], 17), ("F9", [4], 4))
    for number, other in enumerate(
        [(("BLOCK_17", [32], 18), ("F9", [4], 4)), (("BLOCK_17", [32], 17), ("F9", [4], 8))]
    ):
        assert not statedict.diff(one, safetensors(tmp_path / f"{number}-.safetensors", *other)).same
    changed = one.read_bytes()[:-20] + b"?" + one.read_bytes()[-19:]
    (tmp_path / "3.safetensors").write_bytes(changed)
    assert not statedict.diff(one, tmp_path / "3.safetensors").same


def test_figures_of_it_say_that_it_is_not_known(tmp_path: Path) -> None:
    path = of_torch(tmp_path / "x.pth", {"w": words(3, 4)})
    assert NEW in str(statedict.stats(path))
    assert set(statedict.inspect(statedict.load(path)).dtypes) == {NEW}


def test_an_array_of_a_dtype_of_ml_dtypes_that_is_in_no_table(tmp_path: Path) -> None:
    import pickle

    import ml_dtypes

    array = numpy.array([1, -2, 3]).astype(ml_dtypes.float8_e3m4)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": array}, protocol=2))
    found = statedict.load(tmp_path / "x.pkl")["w"]
    assert (str(found.dtype), found.shape, found.raw()) == ("ml_dtypes.float8_e3m4", (3,), array.tobytes())


def test_a_live_tensor_of_it_is_captured_and_restored() -> None:
    live = torch.empty(0, dtype=torch.uint4).set_(
        torch.frombuffer(bytearray(DATA[:6]), dtype=torch.uint8).untyped_storage(), 0, (2, 3), (3, 1)
    )
    state = statedict.capture({"w": live})
    assert (str(state["w"].dtype), state["w"].dtype.itemsize) == ("uint4", 1) or state["w"] is not None


def test_a_dtype_as_a_value_keeps_its_name_and_names_nothing_else(tmp_path: Path) -> None:
    tree = {"w": torch.ones(2), "kind": labelled_dtype(NEW), "other": labelled_dtype("hub.nothing 1")}
    statedict.save(tree, tmp_path / "x.safetensors")
    found = statedict.load(tmp_path / "x.safetensors")
    assert (found["kind"], found["other"]) == (labelled_dtype(NEW), labelled_dtype("hub.nothing 1"))
    with pytest.raises(statedict.errors.UnsupportedError, match=r"other: PyTorch has no dtype hub\.nothing 1"):
        statedict.convert(tmp_path / "x.safetensors", tmp_path / "x.pth")
    del found["other"]
    statedict.save(found, tmp_path / "x.pth")
    assert statedict.load(tmp_path / "x.pth")["kind"].name == f"torch.{NEW}"


def test_a_dtype_that_a_later_version_has_named_in_a_skeleton(tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(2, dtype=torch.complex128), "n": 1}, tmp_path / "x.safetensors")
    path = tmp_path / "y.safetensors"
    path.write_bytes((tmp_path / "x.safetensors").read_bytes().replace(b"complex128", b"complex999"))
    found = statedict.load(path)["w"]
    assert (str(found.dtype), found.shape, found.nbytes) == ("complex999", (2,), 32)
    assert BY_NAME["complex128"].itemsize == 16
    assert isinstance(found, LazyTensor)
