"""Whatever has state_dict() and load_state_dict(): schedulers, GradScaler, one's own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import statedict

SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def pair(name: str) -> tuple[torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    return optimizer, SCHEDULERS[name](optimizer)


def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SequentialLR steps with an epoch that it deprecates itself
                scheduler.step()
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_scheduler_goes_on_where_it_was(name: str, suffix: str, tmp_path: Path) -> None:
    whole, fresh = pair(name), pair(name)
    rates(*whole, 4)
    path = tmp_path / f"x{suffix}"
    statedict.save({"optimizer": whole[0], "scheduler": whole[1]}, path)
    statedict.restore({"optimizer": fresh[0], "scheduler": fresh[1]}, path)
    assert rates(*fresh, 8) == rates(*whole, 8)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_grad_scaler_goes_on_where_it_was(suffix: str, tmp_path: Path) -> None:
    scaler, fresh = torch.amp.GradScaler("cpu", init_scale=8.0), torch.amp.GradScaler("cpu")
    statedict.save({"scaler": scaler}, tmp_path / f"x{suffix}")
    statedict.restore({"scaler": fresh}, tmp_path / f"x{suffix}")
    assert fresh.get_scale() == 8.0
    assert fresh.state_dict() == scaler.state_dict()


class Sampler:
    """As a user writes one, with every kind of value in it."""

    def __init__(self) -> None:
        self.got: Any = None
        self.state: dict[str, Any] = {
            "order": torch.arange(5),
            "size": torch.Size([2]),
            "dtype": torch.float16,
            "device": torch.device("cpu"),
            "seen": {3, 4},
            "nested": {1: [(torch.ones(2), None)]},
        }

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.got = state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_object_of_one_s_own_gets_back_what_torch_would_have_given_it(suffix: str, tmp_path: Path) -> None:
    sampler, fresh = Sampler(), Sampler()
    statedict.save({"s": sampler}, tmp_path / f"x{suffix}")
    statedict.restore({"s": fresh}, tmp_path / f"x{suffix}")
    got = fresh.got
    assert type(got) is dict
    assert type(got["size"]) is torch.Size
    assert got["dtype"] is torch.float16
    assert got["device"] == torch.device("cpu")
    assert got["seen"] == {3, 4}
    assert type(got["nested"]) is dict
    assert torch.equal(got["nested"][1][0][0], torch.ones(2))
    got["order"].zero_()
    assert sampler.state["order"].tolist() == [0, 1, 2, 3, 4]


def test_an_entry_that_is_missing_is_an_error_unless_allowed() -> None:
    sampler, fresh = Sampler(), Sampler()
    state = statedict.capture(sampler)
    del state["seen"]
    with pytest.raises(statedict.errors.RestoreError, match="1 missing: seen"):
        statedict.restore(fresh, state)
    assert fresh.got is None
    assert statedict.restore(fresh, state, allow_missing=["seen"]).paths("missing") == ["seen"]
    assert "seen" not in fresh.got


def test_a_state_that_is_no_dict_goes_both_ways() -> None:
    class Counter:
        count: Any = torch.tensor(3)

        def state_dict(self) -> Any:
            return self.count

        def load_state_dict(self, state: Any) -> None:
            self.count = state

    counter = Counter()
    statedict.restore({"c": counter}, {"c": torch.tensor(7)})
    assert counter.count.item() == 7
    with pytest.raises(statedict.errors.RestoreError):
        statedict.restore({"c": counter}, {"c": {"count": 3}})


def test_a_class_that_has_the_methods_is_no_state() -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match="sampler: cannot capture"):
        statedict.capture({"sampler": Sampler})


class Picky(Sampler):
    """Says beforehand what it cannot take."""

    def check_state_dict(self, state: dict[str, Any]) -> list[str]:
        return [f"seen: {state['seen']} is too much"] if 5 in state["seen"] else []


def test_an_object_that_says_what_it_cannot_take_is_asked_before_anything_is_written() -> None:
    array, fresh, sampler = torch.zeros(1), Picky(), Picky()
    state = statedict.capture({"a": torch.ones(1), "s": sampler})
    state["s"]["seen"] = {5}
    with pytest.raises(
        statedict.errors.RestoreError, match=r"nothing was written:\n.*1 kind: s \(seen: \{5\} is too much"
    ):
        statedict.restore({"a": array, "s": fresh}, state)
    assert not array.any()
    assert fresh.got is None
    state["s"]["seen"] = {4}
    statedict.restore({"a": array, "s": fresh}, state)
    assert fresh.got["seen"] == {4}
