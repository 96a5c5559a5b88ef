"""Schedulers against their optimizers, and values that the caller wants instead of the state's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict


def training(lr: float = 0.1, groups: int = 1, steps: int = 0) -> dict[str, Any]:
    parameters = [{"params": [nn.Parameter(torch.ones(2))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return {"optimizer": optimizer, "scheduler": scheduler, "epoch": steps}


def rate(tree: dict[str, Any]) -> float:
    return float(tree["optimizer"].param_groups[0]["lr"])


def test_a_scheduler_and_its_optimizer_that_agree_are_not_spoken_of() -> None:
    fresh = training()
    report = statedict.restore(fresh, statedict.capture(training(steps=2)))
    assert not report.paths("differs")
    assert rate(fresh) == 0.025


def test_a_scheduler_of_another_moment_than_its_optimizer_is_reported() -> None:
    state = statedict.capture(training(steps=2)) | {"scheduler": statedict.capture(training(steps=1))["scheduler"]}
    report = statedict.restore(training(), state)
    assert report.paths("differs") == ["scheduler._last_lr"]
    assert "the scheduler's last learning rate is 0.05, its optimizer's will be 0.025" in str(report)


def test_a_scheduler_restored_without_its_optimizer_says_what_it_will_go_on_from() -> None:
    report = statedict.restore(training()["scheduler"], statedict.capture(training(steps=3)["scheduler"]))
    assert "last learning rate is 0.0125, its optimizer's will be 0.1" in str(report)


def test_a_scheduler_of_another_number_of_groups_is_an_error() -> None:
    fresh = training(groups=2)
    state = statedict.capture(training(steps=2))
    with pytest.raises(statedict.errors.RestoreError, match=r"groups: .*the state has 1, the optimizer has 2 groups"):
        statedict.restore(fresh["scheduler"], state["scheduler"])


def test_a_learning_rate_of_one_s_own_stands_against_the_state_and_is_printed() -> None:
    """pytorch/examples#816, pytorch#156846: the checkpoint overrides the learning rate that was asked for."""
    fresh = training(groups=2)
    del fresh["scheduler"]
    state = statedict.capture(training(groups=2, steps=2))
    report = statedict.restore(fresh, state, override={"lr": 1e-4}, allow_unexpected="scheduler")
    assert [group["lr"] for group in fresh["optimizer"].param_groups] == [1e-4, 1e-4]
    assert (
        "2 overridden: optimizer.param_groups.0.lr, optimizer.param_groups.1.lr (0.025 of the state by 0.0001)"
        in str(report)
    )
    statedict.restore(fresh, state, override={"optimizer.param_groups.1.lr": 3.0}, allow_unexpected="scheduler")
    assert [group["lr"] for group in fresh["optimizer"].param_groups] == [0.025, 3.0]


def test_an_override_that_the_scheduler_does_not_share_is_reported_and_can_be_given_to_both() -> None:
    fresh, state = training(), statedict.capture(training(steps=2))
    report = statedict.restore(fresh, state, override={"lr": 1.0})
    assert report.paths("differs") == ["scheduler._last_lr"]
    both = {"lr": 1.0, "scheduler._last_lr": [1.0], "scheduler.base_lrs": [1.0]}
    report = statedict.restore(fresh, state, override=both)
    assert not report.paths("differs")
    assert fresh["scheduler"].base_lrs == [1.0]


def test_any_plain_value_can_be_overridden() -> None:
    fresh = training()
    report = statedict.restore(fresh, statedict.capture(training(steps=2)), override={"epoch": 10, "optim*.eps": 1e-3})
    assert fresh["epoch"] == 10
    assert fresh["optimizer"].param_groups[0]["eps"] == 1e-3
    assert report.paths("overridden") == ["epoch", "optimizer.param_groups.0.eps"]


def test_an_override_that_matches_nothing_is_an_error() -> None:
    fresh = training()
    with pytest.raises(statedict.errors.RestoreError, match=r"2 idle override: learning_rate, lr\.0|2 idle override"):
        statedict.restore(fresh, statedict.capture(training(steps=2)), override={"learning_rate": 1, "lr.0": 1})
    assert rate(fresh) == 0.1


def test_a_learning_rate_that_is_a_tensor_stays_one_when_it_is_overridden(tmp_path: Path) -> None:
    one, other = (torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1)) for _ in range(2))
    statedict.save(one, tmp_path / "x.pth")
    statedict.restore(other, tmp_path / "x.pth", override={"lr": 0.5})
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.5))
