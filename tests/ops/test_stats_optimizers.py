"""What `stats` says of optimizers: whose moments they are, their groups, the seeds of trouble."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict import StateDict

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], list[str]]] = {
    "SGD": (partial(torch.optim.SGD, momentum=0.9), ["momentum_buffer"]),
    "AdamW": (torch.optim.AdamW, ["step", "exp_avg", "exp_avg_sq"]),
    "Adafactor": (torch.optim.Adafactor, ["step", "row_var", "col_var"]),
}


class Training:
    """A model and its optimizer, of which what people save is `state`."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        self.optimizer = make(self.model.parameters(), lr=0.1)

    def run(self, steps: int = 3) -> Training:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.ones(4, 3)).square().sum().backward()
            self.optimizer.step()
        return self

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def faults(state: Any) -> list[tuple[str, str, str]]:
    kinds = ("missing state", "stale state", "steps")
    return [(flag.name, flag.kind, flag.what) for flag in statedict.stats(state).flags if flag.kind in kinds]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("names", [False, True])
def test_moments_are_named_by_their_parameters_and_guesses_marked(kind: str, names: bool, tmp_path: Path) -> None:
    make, kept = OPTIMIZERS[kind]
    state = Training(make).run().state
    if names:
        state["optimizer"]["param_groups"][0]["param_names"] = NAMES
    torch.save(state, tmp_path / "a.pth")
    for source in (state, tmp_path / "a.pth"):
        report = statedict.stats(source)
        found = {tensor.name: tensor for tensor in report.tensors}
        for entry in kept:
            moment = found[f"optimizer.state.2.{entry}"]
            assert (moment.parameter, moment.inferred) == ("1.weight", not names)
        assert (found["model.0.weight"].parameter, found["model.0.weight"].inferred) == (None, False)
        assert [one.path for one in report.optimizers] == ["optimizer"]
        assert faults(source) == []
        text = str(report)
        (row,) = [line for line in text.splitlines() if line.startswith(f"optimizer.state.2.{kept[-1]} ")]
        assert row.endswith("  1.weight" + " (inferred)" * (not names))
        assert "optimizer  group  parameters" in text


def test_a_frozen_parameter_has_no_state_and_is_named() -> None:
    training = Training(torch.optim.AdamW)
    training.model[0].bias.requires_grad_(False)
    what = "1 parameter of 4 without state: 0.bias"
    assert faults(training.run().state) == [("optimizer", "missing state", what)]


def test_a_parameter_that_joined_later_is_at_another_step() -> None:
    training = Training(torch.optim.AdamW)
    late = torch.nn.Linear(2, 2, bias=False)
    training.run().model.append(late)
    training.optimizer.add_param_group({"params": late.parameters(), "lr": 0.5})
    state = training.run(2).state
    assert faults(state) == [("optimizer", "steps", "1 parameter not at step 5 as the others: 2.weight")]
    lines = str(statedict.stats(state)).splitlines()
    assert "steps: optimizer: 1 parameter not at step 5 as the others: 2.weight" in lines
    head = next(number for number, line in enumerate(lines) if line.startswith("optimizer  group  parameters"))
    assert [line.split()[:3] for line in lines[head + 1 : head + 3]] == [["0", "4", "0.1"], ["1", "1", "0.5"]]


def test_moments_of_a_dropped_parameter_are_stale() -> None:
    state = Training(torch.optim.SGD).run().state
    assert faults(state) == []
    state = Training(partial(torch.optim.SGD, momentum=0.9)).run().state
    state["optimizer"]["param_groups"][0]["params"].remove(3)
    assert faults(state) == [("optimizer", "stale state", "stale state of 1 parameter in no group: 3")]


def test_only_what_is_chosen_is_said_something_of() -> None:
    state = Training(torch.optim.AdamW).run().state
    state["optimizer"]["state"][1]["step"] += 1
    assert statedict.stats(state, only="model").optimizers == ()
    report = statedict.stats(state, only="*.exp_avg")
    assert [tensor.parameter for tensor in report.tensors] == NAMES
    assert [one.path for one in report.optimizers] == ["optimizer"]
    assert not any(flag.kind == "steps" for flag in report.flags)
    assert any(flag.kind == "steps" for flag in statedict.stats(state, only="optimizer").flags)


def test_the_json_of_a_report_has_the_parameters_and_the_optimizers() -> None:
    found = json.loads(json.dumps(statedict.stats(Training(torch.optim.AdamW).run().state).to_json()))
    parameters = {record["name"]: (record["parameter"], record["inferred"]) for record in found["tensors"]}
    assert parameters["optimizer.state.3.exp_avg"] == ("1.bias", True)
    assert parameters["model.1.bias"] == (None, False)
    (optimizer,) = found["optimizers"]
    assert (optimizer["path"], optimizer["names"]["0"], optimizer["groups"][0]["lr"]) == ("optimizer", "0.weight", 0.1)


def test_moments_are_held_against_those_of_other_layers_by_inferred_names_too() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    for number, entry in state["optimizer"]["state"].items():
        entry["momentum_buffer"].fill_(1 + number % 2 * 1e6)[0] *= 2
    state["optimizer"]["state"][4]["momentum_buffer"] *= 100
    flags = [flag for flag in statedict.stats(state).flags if flag.kind == "exploded"]
    assert [flag.name for flag in flags] == ["optimizer.state.4.momentum_buffer"]
    assert "(optimizer.state.{n}.weight.momentum_buffer)" in flags[0].what


def test_what_lies_deeper_in_an_entry_and_an_optimizer_alone_are_found_too() -> None:
    moments = {"inner": {"m": torch.ones(3)}, "list": [torch.ones(2)]}
    alone = {"state": {"a.w": moments}, "param_groups": [{"params": ["a.w"], "text": "x\ny"}]}
    for tree, dot in ((alone, ""), (StateDict(alone), ""), ({"deep": {"o": alone}}, "deep.o.")):
        report = statedict.stats(tree)
        assert [(tensor.name, tensor.parameter) for tensor in report.tensors] == [
            (f"{dot}state.a.w.inner.m", "a.w"),
            (f"{dot}state.a.w.list.0", "a.w"),
        ]
        assert "'x\\ny'" in str(report)
