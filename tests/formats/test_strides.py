"""Strides that are not row-major come back, from every format that is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import statedict
from statedict import CheckpointManager, alter
from statedict.errors import CorruptFileError
from statedict.tensor.lazy import as_lazy
from statedict.testing.same import assert_same, raw

from .. import dcp
from .conftest import ANY_TREE, Subject

VALUES = torch.arange(120.0).reshape(2, 3, 4, 5)
SHARED = torch.arange(6.0).reshape(2, 3).t()
TREE: dict[str, Any] = {
    "columns": SHARED,
    "tied": SHARED,
    "images": VALUES.contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
    "deep": {"state": {0: {"half": torch.arange(12.0).bfloat16().reshape(3, 4).t()}}},
    "complex": torch.arange(6.0).to(torch.complex128).reshape(2, 3).t(),  # of no code in safetensors
    "rows": torch.arange(6.0).reshape(2, 3),
}


def tensors(tree: Any) -> dict[str, torch.Tensor]:
    return {path: leaf for path, leaf in statedict.StateDict(tree).flatten().items() if isinstance(leaf, torch.Tensor)}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(("format", "most"), [*((name, None) for name in ANY_TREE), ("safetensors", 100)])
def test_what_is_saved_has_its_strides_again(format: str, most: int | None, copy: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    statedict.save(TREE, path, format=format, max_shard_size=most)
    state = statedict.load(path)
    whole = tensors(state.torch(copy=copy))
    for name, before in tensors(TREE).items():
        for after in (state.at(name).torch(copy=copy), whole[name]):
            assert after.stride() == before.stride(), name
            assert torch.equal(after, before), name
        assert_same(state.at(name), before, name)
        assert state.at(name).numpy().tolist() == before.tolist() or before.dtype is torch.bfloat16
    assert state["columns"].region == state["tied"].region
    assert whole["columns"].data_ptr() == whole["tied"].data_ptr()
    assert statedict.verify(path, values=True).ok
    assert statedict.verify(path).tensors == len(whole) - bool(most)  # shards have a tied tensor once
    assert statedict.diff(path, TREE).same


def test_every_order_of_dimensions_comes_back(subject: Subject, tmp_path: Path) -> None:
    shape = (2, 3, 1, 4)
    tree = {}
    for order in permutations(range(4)):
        tree[str(order)] = torch.rand([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(4)])
    found = subject.round_trip(tree, tmp_path)
    for name, before in tree.items():
        after = found[name].torch()
        assert torch.equal(after, before)
        steps = [(one, other) for one, other, n in zip(before.stride(), after.stride(), shape, strict=True) if n > 1]
        assert all(one == other for one, other in steps), name


def test_other_readers_of_safetensors_read_the_elements(tmp_path: Path) -> None:
    statedict.save(TREE, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    for name, before in tensors({key: value for key, value in TREE.items() if key not in ("tied", "complex")}).items():
        assert torch.equal(found[name], before)
        assert found[name].is_contiguous()


def test_pytorch_reads_a_distributed_directory_of_them(tmp_path: Path) -> None:
    flat = {name: value.detach() for name, value in tensors(TREE).items() if "deep" not in name}
    statedict.save(flat, tmp_path / "d", format="distributed")
    target = {name: torch.zeros_like(value) for name, value in flat.items()}
    dcp.load(target, tmp_path / "d")
    assert all(torch.equal(target[name], flat[name]) for name in flat)


def test_files_with_strides_are_copied_and_renamed_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    statedict.save(TREE, path)
    statedict.convert(path, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    before = path.stat().st_ino
    statedict.edit(path, None, {"rename": {"columns": "Columns"}})
    assert path.stat().st_ino == before
    assert statedict.load(path)["Columns"].torch().stride() == (1, 3)
    statedict.convert(path, tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth")["images"].stride() == TREE["images"].stride()
    with ProcessPoolExecutor(1) as executor:
        statedict.convert(path, tmp_path / "other.safetensors", executor=executor)
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


EDITS: dict[str, tuple[Callable[[Any], Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "transpose": (lambda state: alter.transpose(state, "*"), lambda t: t.t()),
    "cast": (lambda state: alter.cast(state, "float64"), lambda t: t.double()),
    "slice": (lambda state: alter.slice(state, "*", "1:"), lambda t: t[1:]),
    "reshape": (lambda state: alter.reshape(state, "*", (2, -1)), lambda t: t.reshape(2, -1)),
}


@pytest.mark.parametrize("name", list(EDITS))
def test_an_edit_keeps_right_strides_or_drops_them(name: str, tmp_path: Path) -> None:
    edit, expected = EDITS[name]
    path = tmp_path / "x.safetensors"
    statedict.save({"w": SHARED}, path)
    statedict.save(edit(statedict.load(path)), tmp_path / "y.safetensors")
    found = statedict.load(tmp_path / "y.safetensors")["w"].torch()
    assert torch.equal(found, expected(SHARED))
    assert found.stride() in (expected(SHARED).stride(), expected(SHARED).contiguous().stride())


def test_what_repeats_or_overlaps_is_row_major_as_before(tmp_path: Path) -> None:
    tree = {"repeated": torch.ones(1).expand(3, 2), "overlapping": torch.arange(5.0).as_strided((2, 3), (1, 1))}
    tree["gaps"] = torch.arange(12.0).reshape(3, 4).t()[:2]
    statedict.save(tree, tmp_path / "x.safetensors")
    for name, found in statedict.load(tmp_path / "x.safetensors").items():
        assert found.strides is None
        assert torch.equal(found.torch(), tree[name])
    assert "strides" not in (tmp_path / "x.safetensors").read_bytes()[:2000].decode("latin1")


@pytest.mark.parametrize(
    "strides", [[3, 2], [1, 1], [1], [1, 3, 1], [1, -3], [1, 3.0], "13", 1, [0, 0], [1, 1 << 70], [True, 3]]
)
def test_strides_that_no_tensor_has_are_damage(strides: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    statedict.save({"w": SHARED}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tree = json.loads(header["__metadata__"]["statedict"])
    assert tree["tree"]["w"]["strides"] == [1, 3]
    tree["tree"]["w"]["strides"] = strides
    header["__metadata__"] = {"statedict": json.dumps(tree)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CorruptFileError, match="skeleton"):
        statedict.load(path)


class Turned(torch.optim.Optimizer):
    """Keeps column-major matrices, as SPlus does, whose sums depend on the order in memory."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["basis"] = torch.linalg.qr(torch.rand(len(parameter), len(parameter)))[0].mT.contiguous().mT
                state["mean"].lerp_(parameter.grad.reshape(parameter.shape), 0.1)
                turned = state["basis"] @ state["mean"]
                parameter -= group["lr"] * (turned + turned.sum() + state["basis"].sum())
                state["basis"] = (state["basis"] + turned @ turned.mT * 0.01).mT.contiguous().mT


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.rand(8, 33, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        optimizer.step()


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(33, 65, bias=False)
    return model, Turned(model.parameters())


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("used", [False, True])
def test_a_run_with_column_major_state_resumes_bit_for_bit(kind: str, used: bool, tmp_path: Path) -> None:
    model, optimizer = make()
    train(model, optimizer, range(3))
    with CheckpointManager(tmp_path / "run", format=kind) as manager:
        manager.save(3, {"model": model, "optimizer": optimizer})
    train(model, optimizer, range(3, 8))
    other, fresh = make()
    if used:  # a live state is there already
        train(other, fresh, range(10, 12))
    CheckpointManager(tmp_path / "run").restore({"model": other, "optimizer": fresh})
    basis = fresh.state[other.weight]["basis"]
    assert basis.stride() == (1, 65)
    train(other, fresh, range(3, 8))
    assert raw(other.weight) == raw(model.weight)
    assert raw(fresh.state[other.weight]["basis"]) == raw(optimizer.state[model.weight]["basis"])


def test_a_tensor_is_laid_out_only_in_strides_that_it_can_have() -> None:
    rows = as_lazy(torch.arange(6.0).reshape(3, 2))
    turned = rows.lay_out((1, 3))
    assert turned.torch().stride() == (1, 3)
    assert turned.contiguous().region == rows.region
    assert turned[1].tolist() == [2, 3]
    assert turned[:, 1].tolist() == [1, 3, 5]
    for strides in ((2, 1, 1), (1, 2), (0, 1)):
        with pytest.raises(ValueError, match="cannot have the strides"):
            rows.lay_out(strides)
