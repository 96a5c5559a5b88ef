"""What an optimizer keeps below a parameter, at any depth, follows the parameter or is an error that names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import StateDict
from statedict.ops.alter import tensors, verbs
from statedict.testing.same import assert_same
from statedict.values import Opaque

Wrap = Callable[[Any], Any]
WRAPS: dict[str, tuple[Wrap, str]] = {
    "a dict": (lambda t: {"q": {"state1": t}}, r"q\.state1"),
    "a list": (lambda t: {"q": [0, t]}, r"q\.1"),
    "both": (lambda t: {"q": [{"deep": {"deeper": (t, None)}}]}, r"q\.0\.deep\.deeper\.0"),
}


def checkpoint(kept: Any) -> StateDict:
    state = {"step": 1, **kept}
    group = {"lr": 0.1, "params": [0], "param_names": ["w"]}
    model = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    return StateDict({"model": model, "optimizer": {"state": {0: state}, "param_groups": [group]}})


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (lambda s: tensors.transpose(s, "model.w"), lambda t: t.T),
        (lambda s: tensors.slice(s, "model.w", slice(0, 1)), lambda t: t[:1]),
        (lambda s: tensors.cast(s, "float64", "model.w"), lambda t: t.double()),
        (lambda s: tensors.reshape(s, "model.w", [6]), lambda t: t.reshape(6)),
    ],
    ids=["transpose", "slice", "cast", "reshape"],
)
def test_what_is_nested_follows_its_parameter(alter: Any, expected: Any, wrap: str) -> None:
    make, _ = WRAPS[wrap]
    moments = torch.arange(10.0, 16.0).reshape(2, 3)
    entries = alter(checkpoint(make(moments)))["optimizer"]["state"][0]
    assert_same(statedict.StateDict(entries).torch(), {"step": 1, **make(expected(moments).contiguous())})


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kept", [torch.ones(5), Opaque("lab.Projector", (1,))], ids=["a tensor", "an object"])
def test_what_is_nested_and_cannot_follow_is_an_error_that_names_it(wrap: str, kept: Any) -> None:
    make, path = WRAPS[wrap]
    with pytest.raises(
        statedict.errors.AlterError, match=rf"optimizer\.state\.0\.{path}: .* cannot follow its parameter"
    ):
        tensors.transpose(checkpoint(make(kept)), "model.w")
    verbs.rename(checkpoint(make(kept)), {"model.w": "model.v"})


def test_parameters_are_fused_and_split_with_what_is_nested() -> None:
    state = checkpoint({"q": {"state1": torch.arange(6.0).reshape(2, 3)}})
    parts = tensors.split(state, "model.w", ["model.k", "model.v"])
    held = parts["optimizer"]["state"]
    assert [entries["q"]["state1"].shape for entries in held.values()] == [(1, 3), (1, 3)]
    whole = tensors.fuse(parts, ["model.k", "model.v"], into="model.w")
    [entries] = whole["optimizer"]["state"].values()
    assert numpy.array_equal(entries["q"]["state1"].numpy(), numpy.arange(6.0).reshape(2, 3))


def test_state_whose_numbers_became_texts_follows_too() -> None:
    state = checkpoint({"m": torch.ones(2, 3)})
    state["optimizer"]["state"] = {str(key): entries for key, entries in state["optimizer"]["state"].items()}
    [entries] = tensors.transpose(state, "model.w")["optimizer"]["state"].values()
    assert entries["m"].shape == (3, 2)


def test_a_counter_stays_one_and_its_counts_can_be_set() -> None:
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), [2, 4])
    state = statedict.StateDict({"scheduler": scheduler.state_dict(), "w": torch.ones(2)})
    renamed = verbs.rename(state, {"w": "v"})["scheduler"]["milestones"]
    assert type(renamed) is Counter
    assert renamed == Counter({2: 1, 4: 1})
    changed = verbs.set(state, "scheduler.milestones.4", 3)["scheduler"]["milestones"]
    assert type(changed) is Counter
    assert changed == Counter({2: 1, 4: 3})
    with pytest.raises(statedict.StateDictError, match=r"'scheduler\.milestones' cannot hold an entry"):
        verbs.rename(state, {"w": "scheduler.milestones.w"})


@pytest.mark.parametrize("names", [{}, {"param_names": ["weight", "bias"]}], ids=["without names", "with names"])
@pytest.mark.parametrize("odd", [[1], {}, None, 1.5])
def test_parameters_that_are_numbered_by_something_else_follow_nothing(
    odd: Any, names: dict[str, Any], tmp_path: Path
) -> None:
    group = {"lr": 0.1, "params": [0, odd], **names}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [group]}
    torch.save({"m": torch.nn.Linear(2, 2).state_dict(), "o": optimizer}, tmp_path / "x.pth")
    with pytest.raises(statedict.errors.AlterError, match="drop the optimizer"):
        statedict.edit(tmp_path / "x.pth", tmp_path / "y.pth", {"drop": "m.weight"})
    statedict.edit(tmp_path / "x.pth", tmp_path / "y.pth", {"drop": ["o", "m.weight"]})
    assert list(statedict.load(tmp_path / "y.pth")["m"]) == ["bias"]
    assert not statedict.inspect(tmp_path / "x.pth").optimizers[0].names
