"""Tensors that are parts of larger ones, by the attributes of torch.distributed.checkpoint's CheckpointableTensor."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
import statedict.torch

from .. import dcp

WHOLE = torch.arange(24.0).reshape(6, 4)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def part(tensor: Any, shape: tuple[int, ...], *pieces: tuple[Any, Any, Any]) -> Any:
    """Say of a tensor that it is a part: for each piece its place in the whole, in the tensor, and its sizes."""
    tensor.global_shape = shape
    tensor.global_offsets, tensor.local_offsets, tensor.local_sizes = (
        tuple(some) for some in zip(*pieces, strict=True)
    )
    return tensor


def second_half(tensor: Any) -> Any:
    return part(tensor, (6, 4), ((3, 0), (0, 0), (3, 4)))


class Model(nn.Module):
    """A module one of whose parameters is the second half of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        second_half(self.inner.weight)


MESSAGE = r"is a part \(\[3:6, 0:4\] of a tensor of shape \(6, 4\)\)"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_a_part_is_not_saved_as_if_it_were_the_whole(suffix: str, tmp_path: Path) -> None:
    for tree in (Model(), {"m": Model()}, {"m": {"inner.weight": second_half(torch.ones(3, 4))}}):
        with pytest.raises(statedict.errors.UnsupportedError, match=r"inner\.weight: .*" + MESSAGE):
            statedict.save(tree, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_not_captured_though_its_state_dict_does_not_say_that_it_is_one() -> None:
    model = Model()
    assert not hasattr(model.state_dict()["inner.weight"], "global_shape")
    for tree in (model, [model], second_half(torch.ones(3, 4))):
        with pytest.raises(statedict.errors.UnsupportedError, match=MESSAGE):
            statedict.capture(tree)


def test_a_buffer_and_a_name_that_a_hook_has_changed_are_looked_at_too() -> None:
    model = nn.Module()
    model.register_buffer("table", second_half(torch.ones(3, 4)))
    model.register_state_dict_post_hook(lambda module, state, prefix, extra: state.update(other=state.pop("table")))
    with pytest.raises(statedict.errors.UnsupportedError, match="table: " + ".*" + MESSAGE):
        statedict.capture(model)


def test_a_state_dict_that_gathers_the_whole_is_captured() -> None:
    model = Model()
    model.register_state_dict_post_hook(lambda module, state, prefix, extra: state.update({"inner.weight": WHOLE}))
    assert torch.equal(statedict.capture(model)["inner.weight"], WHOLE)


def test_a_tensor_whose_only_piece_is_all_of_it_is_a_whole_one(tmp_path: Path) -> None:
    model = Model()
    part(model.inner.weight, (3, 4), ((0, 0), (0, 0), (3, 4)))
    statedict.save(model, tmp_path / "x.pth")
    assert torch.equal(statedict.capture(model)["inner.weight"], model.inner.weight)


def test_attributes_that_contradict_the_tensor_are_an_error_of_ours() -> None:
    for pieces in [
        ((3, 0), (0, 0), (9, 4)),
        ((3,), (0, 0), (3, 4)),
        ((3, 0), (1, 0), (3, 4)),
        (("a", 0), (0, 0), (3, 4)),
    ]:
        with pytest.raises(statedict.errors.UnsupportedError, match="describe no part"):
            statedict.capture({"w": part(torch.ones(3, 4), (6, 4), pieces)})
    tensor = torch.ones(3)
    tensor.global_shape = (6,)  # type: ignore[attr-defined]  # one of the four says nothing
    assert statedict.capture({"w": tensor})["w"].shape == (3,)


def test_what_an_optimizer_keeps_for_a_part_is_not_captured_either() -> None:
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    statedict.capture({"optimizer": optimizer})  # it keeps nothing yet
    model.inner(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(statedict.errors.UnsupportedError, match=r"optimizer\.param_groups\.0\.params\.0: .*" + MESSAGE):
        statedict.capture({"optimizer": optimizer})


@pytest.mark.parametrize("kept", [torch.ones(2), {"state1": torch.ones(2, 3)}, [torch.ones(6)]], ids=str)
def test_nor_is_it_in_a_shape_of_its_own_or_below(kept: object) -> None:
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.inner.weight] = {"step": torch.tensor(1.0), "own": kept}
    with pytest.raises(statedict.errors.UnsupportedError, match=MESSAGE):
        statedict.capture({"optimizer": optimizer})


def test_a_run_does_not_save_it(tmp_path: Path) -> None:
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        with pytest.raises(statedict.StateDictError, match=MESSAGE):
            manager.save(1, {"model": Model()})
        assert list(manager.steps()) == []


def test_pytorch_s_way_of_saving_keeps_the_attributes(tmp_path: Path) -> None:
    statedict.torch.save({"w": second_half(torch.ones(3, 4))}, tmp_path / "x.pth")
    for again in (torch.load(tmp_path / "x.pth"), statedict.torch.load(tmp_path / "x.pth")):
        assert again["w"].global_shape == (6, 4)
        assert again["w"].global_offsets == ((3, 0),)
    found = statedict.load(tmp_path / "x.pth")["w"]
    assert found.state["global_shape"] == (6, 4)
    assert found.state["data"].shape == (3, 4)
    statedict.convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert statedict.load(tmp_path / "x.safetensors")["w"].state["global_offsets"] == ((3, 0),)
    with pytest.raises(statedict.errors.UnsupportedError, match=r"w: an object of class torch\.Tensor"):
        statedict.convert(tmp_path / "x.pth", tmp_path / "y.pth")


def test_a_part_is_restored_from_the_whole(tmp_path: Path) -> None:
    bias = torch.arange(3.0)
    statedict.save({"inner.weight": WHOLE, "inner.bias": bias}, tmp_path / "x.safetensors")
    model = Model()
    report = statedict.restore(model, tmp_path / "x.safetensors")
    assert not report.problems
    assert torch.equal(model.inner.weight, WHOLE[3:])
    assert torch.equal(model.inner.bias, bias)
    live = {"w": part(torch.full((4, 4), 9.0), (6, 4), ((4, 0), (0, 0), (2, 4)), ((0, 0), (2, 0), (1, 4)))}
    statedict.restore(live, {"w": WHOLE})
    assert torch.equal(live["w"], torch.cat([WHOLE[4:], WHOLE[:1], torch.zeros(1, 4)]))


def test_a_part_is_not_restored_from_what_may_be_another_part() -> None:
    model, before = Model(), torch.ones(3, 4)
    with torch.no_grad():
        model.inner.weight.copy_(before)
    state = {"inner.weight": WHOLE[:3], "inner.bias": torch.zeros(3)}
    for target in (model, {"inner.weight": model.inner.weight, "inner.bias": model.inner.bias}):
        with pytest.raises(statedict.errors.RestoreError, match=r"inner\.weight \(.*restore from the whole"):
            statedict.restore(target, state)
    assert torch.equal(model.inner.weight, before)
    with pytest.raises(statedict.errors.RestoreError, match=MESSAGE):
        statedict.restore(nn.Linear(4, 3), {"weight": second_half(torch.ones(3, 4)), "bias": torch.ones(3)})


def test_what_an_optimizer_keeps_is_not_restored_for_a_part() -> None:
    plain, model = nn.Linear(4, 3), Model()
    optimizer = torch.optim.Adam(plain.parameters())
    plain(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(statedict.errors.RestoreError, match="the parameter is a part"):
        statedict.restore(torch.optim.Adam(model.parameters()), statedict.capture(optimizer))


def test_it_is_inspected_for_what_it_is() -> None:
    assert statedict.inspect({"w": second_half(torch.ones(3, 4))}).dtypes["float32"].elements == 12


DTENSOR = """
import os, sys, torch, torch.distributed as dist, statedict
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
folder = sys.argv[1]
dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
tensor = distribute_tensor(torch.arange(24.0).reshape(6, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
for call in (statedict.capture, lambda tree: statedict.save(tree, f"{folder}/x.pth")):
    try:
        call({"w": tensor})
    except statedict.errors.UnsupportedError as error:
        print(error, flush=True)
os._exit(0)  # the end of a process group of gloo may hang
"""


def test_a_tensor_of_several_ranks_is_refused_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", DTENSOR, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert len(re.findall(r"^w: .*DTensor.*full_tensor", done.stdout, re.MULTILINE)) == 2


def test_what_pytorch_saves_of_parts_is_read_and_restored_into_them(tmp_path: Path) -> None:
    one = part(WHOLE[:3].clone(), (6, 4), ((0, 0), (0, 0), (3, 4)))
    dcp.save({"w": part(WHOLE.clone(), (6, 4), ((0, 0), (0, 0), (3, 4)), ((3, 0), (3, 0), (3, 4)))}, tmp_path / "d")
    found = statedict.load(tmp_path / "d")["w"]
    assert torch.equal(found.torch(), WHOLE)
    one.zero_()
    live = {"w": one}
    statedict.restore(live, tmp_path / "d")
    assert torch.equal(one, WHOLE[:3])
