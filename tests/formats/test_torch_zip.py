"""The torch zip format against torch itself and against zipfile."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import statedict
from statedict.tensor.lazy import LazyTensor
from statedict.testing.formats import by_dtype, complex_half, layouts
from statedict.testing.same import assert_same, overlaps, patterned, raw
from statedict.testing.trees import torch_trees
from statedict.values import Opaque

PLAIN = {
    "epoch": 3,
    7: ["an integer key", (1, 2.5, None), {}],
    "big": [3**300, -(2**63), 2**31],
    "floats": [float("inf"), -0.0, 1 + 2j],
    "text": "λ→✓",
    "binary": b"\0\xff",
    "sets": {1, 2},
    "counter": Counter("hello"),
    "torch": [torch.Size([2, 3]), torch.bfloat16, torch.device("cuda:1")],
    "ordered": OrderedDict(b=1, a=2),
}


def save_by_torch(tree: Any, folder: Path, **options: Any) -> Path:
    path = folder / "theirs.pth"
    torch.save(tree, path, **options)
    return path


def rezip(source: Path, method: int = zipfile.ZIP_STORED, **changes: bytes | None) -> Path:
    """The archive anew by zipfile, with records replaced, or with None left out; `__` stands for a slash."""
    target = source.with_name("rezipped.pth")
    renamed = {name.replace("__", "/"): data for name, data in changes.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for info in old.infolist():
            inner = info.filename.partition("/")[2]
            data = renamed.pop(inner, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
        for inner, data in renamed.items():
            new.writestr(f"archive/{inner}", data or b"")
    return target


# what we write, torch reads


@complex_half
@by_dtype
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mmap"])
def test_torch_opens_what_we_write_bit_by_bit(kind: Any, mmap: bool, tmp_path: Path) -> None:
    tree = {
        "w": patterned(kind, 2, 3),
        "scalar": patterned(kind),
        "t": patterned(kind, 4, 3).t(),
        "none": patterned(kind, 0, 2),
    }
    statedict.save(tree, tmp_path / "ours.pth", fsync=False)
    theirs = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
    for name, tensor in tree.items():
        assert theirs[name].dtype is tensor.dtype
        assert theirs[name].shape == tensor.shape
        assert raw(theirs[name]) == raw(tensor)


@pytest.mark.parametrize("name", list(layouts()))
def test_torch_opens_every_layout_that_we_write(name: str, tmp_path: Path) -> None:
    statedict.save({"w": layouts()[name]}, tmp_path / "ours.pth", fsync=False)
    assert torch.equal(torch.load(tmp_path / "ours.pth", weights_only=True)["w"], layouts()[name])


def test_torch_finds_the_types_that_its_own_file_would_have(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tree = {
        **PLAIN,
        "model": model.state_dict(),
        "p": nn.Parameter(torch.ones(2)),
        "g": torch.ones(2, requires_grad=True),
    }
    statedict.save(tree, tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    theirs = torch.load(save_by_torch(tree, tmp_path), weights_only=True)
    for key in PLAIN:
        assert type(ours[key]) is type(theirs[key]) or key == "ordered", key
        assert ours[key] == theirs[key], key
    assert [type(item) for item in ours["torch"]] == [torch.Size, torch.dtype, torch.device]
    assert type(ours["p"]) is nn.Parameter
    assert ours["g"].requires_grad
    assert ours["model"]._metadata == theirs["model"]._metadata
    nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).load_state_dict(ours["model"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=torch_trees)
def test_torch_opens_any_tree_that_we_write(tree: Any, tmp_path: Path) -> None:
    statedict.save({"root": tree}, tmp_path / "ours.pth", fsync=False)
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True)["root"], tree)


def test_tied_tensors_that_we_write_share_memory_in_torch(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    statedict.save({"a": weight, "b": weight, "row": weight[1]}, tmp_path / "ours.pth")
    theirs = torch.load(tmp_path / "ours.pth", weights_only=True)
    theirs["a"].zero_()
    assert not theirs["b"].any()
    assert not theirs["row"].any()


def test_storages_lie_on_multiples_of_64_bytes_with_sizes_and_checksums_that_zipfile_confirms(tmp_path: Path) -> None:
    path = tmp_path / "ours.pth"
    statedict.save({f"w{n}": torch.arange(n, dtype=torch.uint8) for n in range(0, 300, 7)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0, info.filename


def test_an_archive_of_more_than_65535_records_opens_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "many.pth"
    flat = numpy.arange(66_000, dtype="int32")
    statedict.save({"rows": [flat[i : i + 1].copy() for i in range(66_000)]}, path, fsync=False)
    rows = statedict.load(path)["rows"]
    assert [rows[i].item() for i in (0, 255, 65_535, 65_536, 65_999)] == [0, 255, 65_535, 65_536, 65_999]
    assert torch._C.PyTorchFileReader(str(path)).get_record("data/65999") == flat[65_999:].tobytes()
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) > 66_000
        assert archive.read("archive/data/65536") == flat[65_536:65_537].tobytes()


# what torch writes, we read


@complex_half
@by_dtype
def test_we_read_every_dtype_that_torch_saves_bit_by_bit(kind: Any, tmp_path: Path) -> None:
    tree = {
        "w": patterned(kind, 2, 3),
        "scalar": patterned(kind),
        "t": patterned(kind, 4, 3).t(),
        "none": patterned(kind, 0),
    }
    state = statedict.load(save_by_torch(tree, tmp_path))
    for name, tensor in tree.items():
        assert state[name].dtype is kind
        assert state[name].shape == tuple(tensor.shape)
        assert raw(state[name]) == raw(tensor)


@pytest.mark.parametrize("name", list(layouts()))
def test_we_read_every_layout_that_torch_saves(name: str, tmp_path: Path) -> None:
    state = statedict.load(save_by_torch({"w": layouts()[name]}, tmp_path))
    assert torch.equal(state["w"].torch(), layouts()[name].resolve_conj())
    assert torch.equal(state["w"].torch(copy=True), layouts()[name].resolve_conj())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_we_read_what_torch_saves_by_any_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    tree = {**PLAIN, "model": nn.Linear(2, 2).state_dict(), "parameter": nn.Parameter(torch.ones(2))}
    assert_same(statedict.load(save_by_torch(tree, tmp_path, pickle_protocol=protocol)), tree)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=torch_trees)
def test_we_read_any_tree_that_torch_saves(tree: Any, tmp_path: Path) -> None:
    assert_same(statedict.load(save_by_torch({"root": tree}, tmp_path))["root"], tree)


def test_we_see_the_ties_and_views_in_what_torch_saves(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    tree = {"all": base, "same": base, "odd": base[1::2], "last": base[40:]}
    state = statedict.load(save_by_torch(tree, tmp_path))
    assert_same(state, tree)
    assert overlaps(state) == overlaps(tree)


def test_a_big_endian_machine_s_file_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    tree = {
        "f8": torch.arange(5.0, dtype=torch.float64),
        "bf16": torch.arange(6.0).bfloat16().reshape(2, 3).t(),
        "i4": torch.arange(4, dtype=torch.int32)[1:3],
        "bool": torch.tensor([True, False]),
        "c8": torch.tensor([1 + 2j, 3 - 4j]),
        "c16": torch.tensor([1 + 2j], dtype=torch.complex128),
    }
    path = save_by_torch(tree, tmp_path)
    with zipfile.ZipFile(path) as archive:
        changes = {
            f"data__{index}": numpy.frombuffer(archive.read(f"theirs/data/{index}"), f"u{width}").byteswap().tobytes()
            for index, width in enumerate([8, 2, 4, 1, 4, 8])
        }
    big = rezip(path, byteorder=b"big", **changes)
    assert_same(torch.load(big, weights_only=True), tree)
    state = statedict.load(big)
    assert_same(state, tree)
    assert state["f8"][3].item() == 3.0
    statedict.save(state, tmp_path / "little.pth")
    assert_same(torch.load(tmp_path / "little.pth", weights_only=True), tree)


def test_conjugated_and_negated_tensors_are_read_as_what_they_mean(tmp_path: Path) -> None:
    z = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6.0]], dtype=torch.complex64)
    tree = {"conj": z.conj(), "neg": z.clone().conj().imag, "row": z.conj()[1], "transposed": z.mH}
    path = save_by_torch(tree, tmp_path)
    assert torch.load(path, weights_only=True)["conj"].is_conj()
    state = statedict.load(path)
    assert_same(state, {name: tensor.resolve_conj().resolve_neg() for name, tensor in tree.items()})
    assert state["conj"][0, 1].item() == 3 + 4j


def test_an_archive_that_was_unpacked_and_compressed_again_is_read(tmp_path: Path) -> None:
    tree = {"w": torch.arange(1000.0), "t": torch.arange(6.0).reshape(2, 3).t(), "n": 5}
    packed = rezip(save_by_torch(tree, tmp_path), zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 4000
    assert_same(statedict.load(packed), tree)
    assert torch.equal(statedict.load(packed)["w"].torch(copy=True), tree["w"])


# what is no data


class Config:
    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


def test_unknown_classes_become_labels_and_stop_no_tensor(tmp_path: Path) -> None:
    tree = {
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "config": Config(mean=torch.ones(3), nested=Config(a=1)),
        "path": Path("a/b"),
        "array": numpy.arange(3),
        "function": torch.relu,
        "w": torch.arange(3.0),
    }
    state = statedict.load(save_by_torch(tree, tmp_path))
    assert state["args"] == Opaque("argparse.Namespace", (), statedict.StateDict(lr=0.1, layers=[1, 2]))
    assert state["config"].name.endswith(".Config")
    assert state.at("config.mean").tolist() == [1, 1, 1]
    assert state.at("config.nested.a") == 1
    assert all(isinstance(state[key], Opaque) for key in ("args", "config", "path", "function"))
    assert_same(state["array"], tree["array"])
    assert_same(state["w"], tree["w"])


def test_nothing_that_a_file_names_is_ever_called(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(tmp_path / 'pwned')!r}, 'w').close()",)

    state = statedict.load(save_by_torch({"evil": Evil(), "w": torch.ones(1)}, tmp_path))
    assert state["evil"].name == "__builtin__.eval"  # its name at protocol 2
    assert state["w"].tolist() == [1]
    assert not (tmp_path / "pwned").exists()


def test_a_whole_pickled_module_shows_its_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = statedict.load(save_by_torch(model, tmp_path))
    found = state.tensors()
    for tensor in model.state_dict().values():
        assert any(raw(tensor) == raw(lazy) and lazy.shape == tuple(tensor.shape) for lazy in found.values())


def test_the_folder_in_the_archive_may_have_any_name(tmp_path: Path) -> None:
    path = save_by_torch({"w": torch.ones(2)}, tmp_path)
    renamed = tmp_path / "renamed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            new.writestr("best model/v2/" + name.partition("/")[2], old.read(name))
        new.writestr("notes/mydata.pkl", pickle.dumps("not this one"))
        new.writestr("a_data.pkl", pickle.dumps("nor this one"))
    assert statedict.load(renamed)["w"].tolist() == [1, 1]
    assert type(statedict.load(renamed)["w"]) is LazyTensor
