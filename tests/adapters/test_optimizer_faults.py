"""State that an optimizer could not step with is refused before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.testing.same import assert_same

from .test_optimizer_state import Keeping, pair, quantized, single
from .test_optimizer_state import train as steps
from .test_torch_optimizer import OPTIMIZERS, made, train

BROKEN: dict[str, Callable[[], Any]] = {
    "a scalar tensor": lambda: torch.tensor(1.0),
    "of shape (1,)": lambda: torch.ones(1),
    "of shape (7,)": lambda: torch.ones(7),
    "a text": lambda: "x",
    "None": lambda: None,
    "a number": lambda: 0.5,
}
NUMBERS = ("step", "eta", "mu", "mu_product", "func_evals", "n_iter", "t", "H_diag", "prev_loss")


def keys(name: str) -> list[str]:
    tree = made(name, 1)
    train(*tree, range(3))
    return [str(key) for key in next(iter(tree[1].state.values()))]


CASES = [(name, key) for name in OPTIMIZERS for key in keys(name)]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("broken", [*BROKEN, "deleted"])
@pytest.mark.parametrize(("name", "key"), CASES)
def test_an_entry_that_is_broken_is_refused_or_serves(
    name: str, key: str, broken: str, suffix: str, tmp_path: Path
) -> None:
    old, new = made(name, 1), made(name, 2)
    train(*old, range(3))
    tree = statedict.capture({"m": old[0], "o": old[1]})
    held = next(entry for entry in tree["o"]["state"].values() if key in entry)
    if broken == "deleted":
        del held[key]
    else:
        held[key] = BROKEN[broken]()
    statedict.save(tree, tmp_path / f"x{suffix}")
    before, target = copy.deepcopy(new[0].state_dict()), {"m": new[0], "o": new[1]}
    state = copy.deepcopy(new[1].state_dict())
    if key in NUMBERS and broken in ("a scalar tensor", "of shape (1,)", "a number"):
        statedict.restore(target, tmp_path / f"x{suffix}")
        train(*new, range(3, 5))
        return
    with pytest.raises(statedict.errors.RestoreError, match=rf"o\.state\.\w+\.{key}"):
        statedict.restore(target, tmp_path / f"x{suffix}")
    assert_same(new[0].state_dict(), before)
    assert_same(new[1].state_dict(), state)


@pytest.mark.parametrize("hyper", ["amsgrad", "momentum", "centered"])
def test_what_a_hyperparameter_calls_for_is_asked_for_where_it_is_set(hyper: str) -> None:
    name = "Adam" if hyper == "amsgrad" else "RMSprop"
    old, new = (getattr(torch.optim, name)(made("SGD", seed)[0].parameters()) for seed in (1, 2))
    for parameter in old.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    old.step()
    state = statedict.capture(old)
    statedict.restore(new, state)
    with pytest.raises(statedict.errors.RestoreError, match=r"missing: state\.0"):
        statedict.restore(new, state, override={hyper: 0.5})


def test_momentum_that_is_new_begins_and_a_lost_one_is_missing() -> None:
    old, new = made("SGD", 1), made("SGD", 2)
    train(*old, range(2))
    state = statedict.capture(old[1])
    for group in state["param_groups"]:
        group |= {"momentum": 0, "nesterov": False}
    state["state"] = {key: {"momentum_buffer": None} for key in state["state"]}  # as PyTorch 1 has it
    statedict.restore(new[1], state, override={"momentum": 0.9})
    train(*new, range(2))
    state["param_groups"][0]["momentum"] = 0.9
    with pytest.raises(statedict.errors.RestoreError, match=r"kind: state\.0\.momentum_buffer"):
        statedict.restore(new[1], state)


def test_a_parameter_that_had_no_gradient_yet_starts_fresh_and_the_report_says_so() -> None:
    old, new = made("Adam", 1), made("Adam", 2)
    train(*old, range(2))
    state = statedict.capture({"m": old[0], "o": old[1]})
    state["o"]["state"][1] = {}  # as looking into `optimizer.state` leaves it
    report = statedict.restore({"m": new[0], "o": new[1]}, state)
    assert "it had no state yet, so it starts fresh" in {entry.detail for entry in report.entries}
    train(*new, range(2))


class Tagged(torch.optim.Adam):
    """A class of one's own that steps as Adam does, and one that keeps more."""


class Counting(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for entries in self.state.values():
            entries["exp_avg"] = entries["exp_avg"].sum()
        return loss


def test_a_class_that_steps_as_one_of_torch_s_keeps_what_that_keeps() -> None:
    old, new = made("SGD", 1)[0], made("SGD", 2)[0]
    first, second = Tagged(old.parameters()), Tagged(new.parameters())
    train(old, first, range(2))
    state = statedict.capture(first)
    state["state"][0]["mine"] = 3
    statedict.restore(second, state)
    del state["state"][0]["exp_avg"]
    with pytest.raises(statedict.errors.RestoreError, match=r"missing: state\.0\.exp_avg"):
        statedict.restore(second, state)
    odd = Counting(old.parameters())
    train(old, odd, range(1))
    statedict.restore(Counting(new.parameters()), statedict.capture(odd))


@pytest.mark.parametrize(
    ("at", "value", "found"),
    [
        (("q", "state1"), torch.ones(7), "shape"),
        (("q", "state1"), 0.5, "kind"),
        (("q", "state2"), "x", "kind"),
        (("q",), [1], "kind"),
        (("step",), torch.ones(7), "kind"),
        (("step",), None, ""),
        (("q", "state1"), ..., "missing"),
    ],
)
def test_an_unknown_optimizer_says_by_what_it_keeps_what_it_takes(at: tuple[str, ...], value: Any, found: str) -> None:
    one, other = pair(quantized, 1), pair(quantized, 2)
    steps(one, range(2))
    state = statedict.capture(one)
    entries = state["optimizer"]["state"][0]
    for key in at[:-1]:
        entries = entries[key]
    if value is ...:
        del entries[at[-1]]
    else:
        entries[at[-1]] = value
    statedict.restore(other, state, dry_run=True)
    assert not statedict.restore(other, state, dry_run=True).paths("kind")  # it has not stepped, and knows nothing
    steps(other, range(1))
    before = copy.deepcopy(other["model"].state_dict())
    if not found:
        statedict.restore(other, state)
        return
    with pytest.raises(statedict.errors.RestoreError, match=rf"{found}: optimizer\.state\.0\.{'.'.join(at)}"):
        statedict.restore(other, state)
    assert_same(other["model"].state_dict(), before)


def test_a_new_optimizer_of_an_unknown_class_takes_what_it_is_given() -> None:
    one, other = pair(single, 1), pair(single, 2)
    steps(one, range(2))
    state = statedict.capture(one)
    state["optimizer"]["state"][0]["decay"] = "x"
    statedict.restore(other, state)
    assert isinstance(other["optimizer"], Keeping)
    assert other["optimizer"].state[other["model"][0].weight]["decay"] == "x"
