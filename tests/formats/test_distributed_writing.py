"""Directories of torch.distributed.checkpoint that we write: what PyTorch would have written, and loads bit for bit."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

import statedict
from statedict.dtypes import BY_NAME
from statedict.testing.same import assert_same, in_torch, overlaps, patterned, raw
from statedict.values import Opaque

from .. import dcp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(5, 3, 4, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def model_alone() -> Any:
    return trained()[0].state_dict()


def checkpoint() -> Any:
    model, optimizer = trained()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5, "note": "λ"}


def by_names() -> Any:
    model, optimizer = trained()
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
    }


def nested() -> Any:
    return {
        "whole": [1, 2.5, None, "text", (1, torch.ones(2)), [3, [4]]],
        "followed": [1, torch.arange(3), [torch.ones(2), [5, {"deep": [6]}]], (7, 8)],
        "of dicts": [{"a": 1}, {}, [{"b": torch.zeros(2)}]],
        "of an empty dict": [{}],
        "tuple": (torch.ones(2), {"c": 3}),
        "empty": {"dict": {}, "list": [], "tuple": (), "lists": [[], [[]]]},
        3: {True: "bool", None: torch.ones(1), 2.5: "float", (1, "two"): "tuple", b"raw": 1},
        "counts": Counter("aab"),
        "ordered": OrderedDict(b=1, a=torch.ones(1)),
        "values": [b"bytes", 1j, {1, 2}, torch.Size([2]), torch.bfloat16, torch.device("cpu"), 1 << 70],
        "set": {3},
        "": {"": "empty keys", "dot.in.key": 1},
    }  # fmt: skip


def tensors() -> Any:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.transpose(0, 2),
        "part": base[1:, ::2, 3],
        "expanded": torch.ones(4, 1).expand(4, 3),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
        "grad": torch.ones(3, requires_grad=True),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "half": torch.randn(4).bfloat16(),
        "eighth": torch.randn(4).to(torch.float8_e4m3fn),
    }


TREES = [model_alone, checkpoint, by_names, nested, tensors]


def written(tree: Any, folder: Path, **options: Any) -> Path:
    statedict.save(tree, folder, format="distributed", **options)
    return folder


def metadata(folder: Path) -> Any:
    return FileSystemReader(folder).read_metadata()


@pytest.mark.parametrize("make", TREES)
def test_the_index_is_the_one_that_pytorch_writes_for_the_same_dict(make: Any, tmp_path: Path) -> None:
    tree = make()
    dcp.save(tree, tmp_path / "theirs")
    ours, theirs = metadata(written(tree, tmp_path / "ours")), metadata(tmp_path / "theirs")
    assert list(ours.state_dict_metadata) == list(theirs.state_dict_metadata)
    for entry in theirs.state_dict_metadata.values():
        if hasattr(entry, "properties"):
            entry.properties.strides = (
                None  # written since 2.15, which reads it without; older ones read no index with it
            )
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert [list(map(type, keys)) for keys in ours.planner_data.values()] == [
        list(map(type, keys)) for keys in theirs.planner_data.values()
    ]
    assert {(i.fqn, i.offset, i.index) for i in ours.storage_data} == {
        (i.fqn, i.offset, i.index) for i in theirs.storage_data
    }
    if hasattr(theirs, "version"):  # since PyTorch 2.7
        assert ours.version == theirs.version


def emptied(value: Any) -> Any:
    """The state to load into: tensors without their values, values that are others."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        made = OrderedDict((key, emptied(child)) for key, child in value.items())
        made._metadata = getattr(value, "_metadata", None)
        return made
    if type(value) in (list, tuple):
        return type(value)(map(emptied, value))
    return value if value is None else type(value)()


@pytest.mark.parametrize("make", [model_alone, by_names, tensors])
def test_pytorch_loads_it_bit_for_bit(make: Any, tmp_path: Path) -> None:
    tree = make()
    state = emptied(tree)
    dcp.load(state, written(tree, tmp_path / "d"))
    assert_same(state, tree, flags=False)


@pytest.mark.parametrize("make", TREES)
def test_pytorch_s_own_converter_finds_what_it_finds_in_its_own(make: Any, tmp_path: Path) -> None:
    tree = make()
    tree.pop("of dicts", None)  # of an empty dict in a list it makes None, which its own loading then misses
    dcp.save(tree, tmp_path / "theirs")
    written(tree, tmp_path / "ours")
    for name in ("ours", "theirs"):
        dcp_to_torch_save(tmp_path / name, tmp_path / f"{name}.pth")
    ours, theirs = (torch.load(tmp_path / f"{name}.pth", weights_only=False) for name in ("ours", "theirs"))
    assert_same(ours, theirs)


@pytest.mark.parametrize("make", TREES)
def test_it_comes_back_as_it_was_and_makes_the_same_bytes_again(make: Any, tmp_path: Path) -> None:
    tree = make()
    statedict.save(tree, tmp_path / "one.pth")
    statedict.convert(tmp_path / "one.pth", tmp_path / "folder", format="distributed")
    assert_same(statedict.load(tmp_path / "folder"), statedict.load(tmp_path / "one.pth"))
    statedict.convert(tmp_path / "folder", tmp_path / "again.pth")
    statedict.convert(tmp_path / "again.pth", tmp_path / "twice", format="distributed")
    for name in os.listdir(tmp_path / "folder"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    if make is not tensors:  # a .pth keeps the strides of a dense tensor, a chunk is row-major
        assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "one.pth").read_bytes()
    report = statedict.verify(tmp_path / "folder")
    assert report.ok
    assert report.digests > 0


def test_what_the_names_say_needs_no_record_of_ours(tmp_path: Path) -> None:
    plain = {"model": {"w": torch.ones(2)}, "list": [torch.ones(1), {"a": 1}], "epoch": 3}
    assert not hasattr(metadata(written(plain, tmp_path / "plain")), "statedict")
    assert metadata(written({3: torch.ones(2)}, tmp_path / "more")).statedict == {
        "version": 1, "tree": {3: None}, "metadata": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [kind for kind in BY_NAME.values() if kind.itemsize and kind.kind != "quantized" and in_torch(kind)],
    ids=str,
)
def test_every_dtype_is_in_the_chunk_as_pytorch_reads_it(kind: Any, tmp_path: Path) -> None:
    tensor = patterned(kind, 2, 3)
    folder = written({"w": tensor}, tmp_path / "d")
    (place,) = metadata(folder).storage_data.values()
    data = (folder / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
    (tmp_path / "chunk.pth").write_bytes(data)
    found = torch.load(tmp_path / "chunk.pth", weights_only=True)
    assert (found.dtype, found.shape, raw(found)) == (tensor.dtype, tensor.shape, raw(tensor))


def test_tied_tensors_are_one_chunk_that_pytorch_reads_under_each_name(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(50, 40))
    tree = {"embedding": weight, "head": weight, "detached": weight.detach(), "other": torch.randn(50, 40)}
    folder = written(tree, tmp_path / "d")
    places = {index.fqn: (p.relative_path, p.offset) for index, p in metadata(folder).storage_data.items()}
    assert places["embedding"] == places["head"] == places["detached"] != places["other"]
    state = emptied(tree)
    dcp.load(state, folder)
    assert_same(state, tree, flags=False)
    loaded = statedict.load(folder)
    assert_same(loaded, tree)
    assert overlaps(loaded) == overlaps(tree)
    report = statedict.verify(folder)
    assert (report.ok, report.tensors) == (True, 4)
    damaged = bytearray((folder / "__0_0.distcp").read_bytes())
    damaged[places["head"][1] + 1000] ^= 1
    (folder / "__0_0.distcp").write_bytes(damaged)
    assert set(statedict.verify(folder).problems[0].tensors) == {"embedding", "head", "detached"}


RANK = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.rendezvous", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
expected = torch.load(folder + ".pth", weights_only=True)
def empty(placement, like):
    return distribute_tensor(torch.zeros_like(like), mesh, [placement])
state = {
    "rows": empty(Shard(0), expected["rows"]),
    "deep": {"columns": empty(Shard(1), expected["deep"]["columns"])},
    "tied": empty(Shard(0), expected["tied"]),
    "same": empty(Replicate(), expected["same"]),
    "plain": torch.zeros_like(expected["plain"]),
    "epoch": 0,
}
dcp.load(state, checkpoint_id=folder)
assert state["epoch"] == 7
assert torch.equal(state["plain"], expected["plain"])
for found, wanted in [(state[n], expected[n]) for n in ("rows", "tied", "same")] + [
    (state["deep"]["columns"], expected["deep"]["columns"])
]:
    assert torch.equal(found.full_tensor(), wanted)
dist.barrier()
dist.destroy_process_group()
import os
os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
"""


def test_two_ranks_load_their_parts_of_it(tmp_path: Path) -> None:
    rows = torch.randn(7, 5)
    tree = {
        "rows": rows,
        "deep": {"columns": torch.randn(6, 9).bfloat16()},
        "tied": rows,
        "same": torch.arange(4),
        "plain": torch.randn(3, 3),
        "epoch": 7,
    }
    folder = written(tree, tmp_path / "d", max_shard_size=2000)
    assert len(list(folder.glob("*.distcp"))) > 1
    torch.save(tree, f"{folder}.pth")
    workers = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]


def test_files_have_at_most_the_size_that_is_asked_for(tmp_path: Path) -> None:
    tree = {f"w{n}": torch.randn(100) for n in range(10)} | {"large": torch.randn(2000)}
    folder = written(tree, tmp_path / "d", max_shard_size="4kB")
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.distcp")}
    assert sorted(sizes) == [f"__0_{n}.distcp" for n in range(len(sizes))]
    assert sorted(size > 4000 for size in sizes.values()).count(True) == 1
    assert_same(statedict.load(folder), tree)
    assert statedict.verify(folder).ok


def test_large_and_small_chunks_lie_side_by_side(tmp_path: Path) -> None:
    tree = {f"{kind}{n}": torch.randn(size) for n in range(5) for kind, size in (("small", 300), ("large", 300_000))}
    state = emptied(tree)
    dcp.load(state, written(tree, tmp_path / "d"))
    assert_same(state, tree)
    assert statedict.verify(tmp_path / "d").ok


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({1: torch.ones(1), "1": 2}, "1: two entries have this name"),
        ({"a.b": 1, "a": {"b": 2}}, r"a\.b: two entries have this name"),
        ({"a": {"b": frozenset([1])}}, r"a\.b: a frozenset is not data"),
        ({"a": [torch.ones(1), {"b": Opaque("lab.Thing", ())}]}, r"a\.1\.b: an object of class lab\.Thing"),
    ],
)
def test_what_it_cannot_hold_is_refused_by_its_name(tree: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match=message):
        written(tree, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_one_is_replaced_and_edited_in_place(tmp_path: Path) -> None:
    folder = written(checkpoint(), tmp_path / "d")
    statedict.edit(folder, None, [{"drop": "optimizer"}, {"cast": "bf16", "only": "model.*.weight"}])
    state = statedict.load(folder)
    assert "optimizer" not in state
    assert str(state["model"]["3.weight"].dtype) == "bfloat16"
    assert sorted(os.listdir(folder)) == [".metadata", "__0_0.distcp"]
    statedict.save({"w": torch.ones(3)}, folder)
    assert list(statedict.load(folder)) == ["w"]
    assert statedict.verify(folder).ok


def test_nothing_in_it_is_code(tmp_path: Path) -> None:
    report = statedict.scan(written(nested(), tmp_path / "d"))
    assert report.verdict == "data", report


def test_a_record_of_the_tree_that_does_not_fit_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = written({3: {"w": torch.ones(2), "n": 1}, "l": [torch.ones(1), {}]}, tmp_path / "d")
    whole = metadata(folder)
    twice: list[Any] = []
    for tree in (
        {3: {"w": None}, "l": [None, {}]}, {3: {"w": None, "n": None, "x": None}, "l": [None, {}]}, [None], None, 5,
        {3: {"w": None, "n": None}, "l": [None, {}], "twice": [twice, twice]},
    ):  # fmt: skip
        whole.statedict["tree"] = tree
        (folder / ".metadata").write_bytes(pickle.dumps(whole))
        with pytest.raises(statedict.errors.CorruptFileError, match="the record of the tree"):
            statedict.load(folder)
    whole.statedict["version"] = 2
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    with pytest.raises(statedict.errors.FormatError, match="version 2; a newer version may read it"):
        statedict.load(folder)


def test_a_damaged_index_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = written({3: torch.zeros(4), "n": [torch.ones(2), {}], "c": Counter("ab")}, tmp_path / "d")
    whole = (folder / ".metadata").read_bytes()
    for position in range(80, len(whole)):
        (folder / ".metadata").write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
        with contextlib.suppress(statedict.StateDictError):
            for tensor in statedict.load(folder).tensors().values():
                tensor.raw()


def test_an_index_of_fifty_thousand_tensors_is_written_and_read(tmp_path: Path) -> None:
    one = torch.ones(2)
    tree = {f"layers.{n}.weight": one for n in range(50_000)}
    loaded = statedict.load(written(tree, tmp_path / "d", fsync=False))
    assert len(loaded) == 50_000
    assert (tmp_path / "d" / "__0_0.distcp").stat().st_size < 4000
