"""The names of a state and of its target differ by wrappers and prefixes, and restore finds and reports them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import statedict
from statedict.adapters.names import WRAPPERS, align

from ..work import assert_linear, steps

NAMES = ["conv.weight", "conv.bias", "layers.0.norm.weight", "layers.1.norm.weight", "head"]


class Net(nn.Module):
    """A model with every kind of entry: parameters, buffers with versions, a list of layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(3, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def inner_wrapped(model: nn.Module) -> nn.Module:
    """Layers in the midst of the model are wrapped, as activation checkpointing does it."""
    model = copy.deepcopy(model)
    model.layers[1] = checkpoint_wrapper(model.layers[1])
    return model


class Lightning(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled and data parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "data parallel and compiled": lambda model: torch.compile(nn.DataParallel(model)),
    "checkpointed layers": inner_wrapped,
    "checkpointed layers, compiled, data parallel": lambda model: nn.DataParallel(torch.compile(inner_wrapped(model))),
    "in a lightning module": Lightning,
    "compiled in a lightning module": lambda model: Lightning(torch.compile(model)),
}


def weights(model: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


@pytest.mark.parametrize(("saved", "live"), list(itertools.product(WRAPPED, WRAPPED)))
def test_any_wrapping_restores_into_any_other(saved: str, live: str, tmp_path: Path) -> None:
    source, target = WRAPPED[saved](Net(1)), WRAPPED[live](Net(2))
    statedict.save(source, tmp_path / "model.pth")
    report = statedict.restore(target, tmp_path / "model.pth")
    assert weights(target) == weights(source)
    assert bool(report.notes) is (list(source.state_dict()) != list(target.state_dict()))
    assert report.counts() == {"restored": len(source.state_dict())}


@pytest.mark.parametrize(("saved", "live"), [("data parallel", "compiled"), ("compiled", "as it is")])
def test_the_optimizer_of_a_wrapped_model_follows_by_name(saved: str, live: str, tmp_path: Path) -> None:
    source, target = WRAPPED[saved](Net(1)), WRAPPED[live](Net(2))
    backwards = list(reversed(list(target.parameters())))
    first, second = torch.optim.AdamW(source.parameters()), torch.optim.AdamW(backwards)
    for parameter in source.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    statedict.save({"model": source, "optimizer": first}, tmp_path / "all.pth")
    report = statedict.restore({"model": target, "optimizer": second}, tmp_path / "all.pth")
    assert [note.split(":")[0] for note in report.notes] == ["model"]
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(first.state[one]["exp_avg"], second.state[other]["exp_avg"])


def test_an_average_of_a_model_restores_into_the_model_and_says_what_is_left() -> None:
    average, model = AveragedModel(Net(1)), Net(2)
    with pytest.raises(statedict.errors.RestoreError, match="1 unexpected: n_averaged"):
        statedict.restore(model, statedict.capture(average))
    report = statedict.restore(model, statedict.capture(average), allow_unexpected="n_averaged")
    assert weights(model) == weights(average.module)
    assert report.notes == ("without module. of the state",)


def test_a_checkpoint_of_a_trainer_restores_from_below_its_prefix() -> None:
    state = {f"net.{name}": tensor for name, tensor in Net(1).state_dict().items()} | {"loss.scale": torch.ones(3)}
    model = Net(2)
    report = statedict.restore(model, state, allow_unexpected="loss.*")
    assert weights(model) == weights(Net(1))
    assert str(report).splitlines()[1] == "  read below 'net.' of the state"


def test_the_versions_of_modules_follow_their_names() -> None:
    old = Net(1).state_dict()
    state = statedict.StateDict((f"module.{k}", v) for k, v in old.items() if "num_batches_tracked" not in k)
    state._metadata = {f"module.{name}" if name else "": {"version": 1} for name in old._metadata}
    model = Net(2)
    statedict.restore(model, state, allow_missing="*.num_batches_tracked")  # version 1 of BatchNorm has none
    assert torch.equal(model.stem.weight, old["stem.weight"])


def test_two_models_in_one_state_are_two_readings_and_an_error_that_names_both() -> None:
    names = list(Net(1).state_dict())
    state = {f"{role}.{name}": Net(1).state_dict()[name] for role in ("student", "teacher") for name in names}
    model = Net(2)
    before = weights(model)
    with pytest.raises(statedict.errors.RestoreError, match=r"below 'student\.' and below 'teacher\.'; pass prefix="):
        statedict.restore(model, state)
    assert weights(model) == before
    statedict.restore(model, state, prefix="teacher.", allow_unexpected="student.*")
    assert weights(model) == weights(Net(1))


def test_without_a_prefix_names_are_taken_as_they_are() -> None:
    state = {f"module.{name}": tensor for name, tensor in Net(1).state_dict().items()}
    with pytest.raises(statedict.errors.RestoreError, match="missing"):
        statedict.restore(Net(2), state, prefix="")


def test_a_submodule_that_is_called_module_is_no_wrapper() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    state = {name: torch.full_like(tensor, 3) for name, tensor in model.state_dict().items()}
    report = statedict.restore(model, state)
    assert not report.notes
    assert all(bool((tensor == 3).all()) for tensor in model.state_dict().values())


def test_names_that_are_one_without_their_wrappers_are_an_error_that_names_both() -> None:
    state = {"module.weight": torch.ones(2, 2), "weight": torch.ones(2, 2), "module.bias": torch.ones(2)}
    with pytest.raises(statedict.errors.RestoreError, match=r"the state has both 'module\.weight' and 'weight'"):
        statedict.restore(nn.ModuleDict({"a": nn.Linear(2, 2)}), state)


@given(st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4), st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4))
def test_wrappers_in_any_order_and_place_are_set_aside_on_both_sides(outer: list[str], inner: list[str]) -> None:
    wrapped = {".".join([*outer, *name.split(".")[:-1], *inner, name.split(".")[-1]]): name for name in NAMES}
    assert align(NAMES, wrapped).pairs == {name: long for long, name in wrapped.items()}
    assert align(wrapped, NAMES).pairs == wrapped


@given(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,2}\.", fullmatch=True), st.booleans())
def test_any_prefix_is_found_on_either_side(prefix: str, turned: bool) -> None:
    long = {prefix + name: name for name in NAMES}
    pairs = align(long, NAMES).pairs if turned else align(NAMES, long).pairs
    assert pairs == (long if turned else {name: found for found, name in long.items()})


def test_each_side_below_a_name_of_its_own_is_read() -> None:
    reading = align([f"net.{name}" for name in NAMES], [f"model.{name}" for name in NAMES])
    assert reading.pairs == {f"net.{name}": f"model.{name}" for name in NAMES}
    assert "'model.'" in reading.note
    assert "'net.'" in reading.note


def test_the_cost_of_reading_the_names_is_linear() -> None:
    def cost(count: int) -> int:
        names = [f"model.layers.{i}.attn.{k}.weight" for i in range(count // 4) for k in "qkvo"]
        wrapped = [f"module.{name}" for name in names]
        return steps(lambda: align(names, wrapped))

    assert_linear(cost, 10_000, 40_000)
    assert cost(10_000) < 100 * 10_000
