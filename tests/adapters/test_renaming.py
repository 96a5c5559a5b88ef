"""Restoring a state whose entries have other names, by rules."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import statedict
from statedict.adapters.names import suggest_rules

from ..work import steps

RULES = {"layers.{n}.0": "blocks.{n}.linear", "layers.{n}.1": "blocks.{n}.norm", "head": "classifier"}


class Old(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(3)])
        self.head = nn.Linear(3, 3)


class New(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [OrderedDict(linear=nn.Linear(3, 3), norm=nn.BatchNorm1d(3)) for _ in range(3)]
        self.blocks = nn.ModuleList([nn.Sequential(block) for block in blocks])
        self.classifier = nn.Linear(3, 3)


def values(model: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def test_a_refactored_model_restores_by_rules_and_the_report_counts_them(tmp_path: Path) -> None:
    old, new = Old(), New()
    statedict.save(old, tmp_path / "old.safetensors")
    report = statedict.restore(new, tmp_path / "old.safetensors", rename=RULES)
    assert values(new) == values(old)
    assert report.notes == (
        "renamed 6 by layers.{n}.0 → blocks.{n}.linear",
        "renamed 15 by layers.{n}.1 → blocks.{n}.norm",
        "renamed 2 by head → classifier",
    )
    assert "renamed 15 by" in str(report)


@pytest.mark.parametrize("below", ["", "model."])
def test_the_optimizer_follows_the_names_of_its_model(below: str, tmp_path: Path) -> None:
    old, new = Old(), New()
    first = torch.optim.Adam(old.parameters())
    second = torch.optim.Adam(list(reversed(list(new.parameters()))))
    for parameter in old.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    statedict.save({"model": old, "optimizer": first}, tmp_path / "old.pth")
    rules = {f"model.{old_name}": f"model.{new_name}" for old_name, new_name in RULES.items()}
    if below:
        statedict.restore({"model": new, "optimizer": second}, tmp_path / "old.pth", rename=rules)
        for one, other in zip(old.parameters(), new.parameters(), strict=True):
            assert torch.equal(first.state[one]["exp_avg"], second.state[other]["exp_avg"])
    else:
        statedict.restore(new, statedict.load(tmp_path / "old.pth")["model"], rename=RULES)
    assert values(new) == values(old)


def test_the_versions_of_renamed_modules_go_with_them() -> None:
    state = statedict.capture(Old())
    for name in [name for name in state if "num_batches_tracked" in name]:
        del state[name]
    for entry in state._metadata.values():
        entry["version"] = 1  # of BatchNorm, which had no such buffer
    new = New()
    statedict.restore(new, state, rename=RULES, allow_missing="*.num_batches_tracked")
    assert torch.equal(new.classifier.weight, state["head.weight"])


def test_plain_trees_are_renamed_too() -> None:
    target = {"model": {"w": np.zeros(2)}, "epoch": 0}
    report = statedict.restore(
        target, {"model": {"weight": np.ones(2)}, "step": 5}, rename={"model.weight": "model.w", "step": "epoch"}
    )
    assert target["epoch"] == 5
    assert target["model"]["w"].tolist() == [1, 1]
    assert len(report.notes) == 2


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": "w", "zzz": "b"}, r"1 idle rule: zzz → b \(matches no entry of the state; fix or remove it\)"),
        ({"a": "w", "b": "w"}, r"1 collision: b \(becomes w, which another entry is or becomes\)"),
    ],
)
def test_what_is_wrong_with_the_rules_is_an_error_before_anything_is_written(
    rules: dict[str, str], message: str
) -> None:
    target = {"w": np.zeros(2)}
    with pytest.raises(statedict.errors.RestoreError, match=message):
        statedict.restore(target, {"a": np.ones(2), "b": np.ones(2)}, rename=rules, allow_unexpected="b")
    assert target["w"].tolist() == [0, 0]


def test_a_rule_that_moves_an_entry_into_another_dict_is_an_error_that_says_so() -> None:
    target = {"model": {"w": np.zeros(2)}}
    with pytest.raises(statedict.errors.RestoreError, match=r"model\.a \(a rule makes it 'head\.w', out of the dict"):
        statedict.restore(target, {"model": {"a": np.ones(2)}}, rename={"model.a": "head.w"})


def test_rules_and_prefixes_go_together() -> None:
    old, new = Old(), New()
    state = {f"module.{name}": tensor for name, tensor in old.state_dict().items()}
    statedict.restore(new, state, rename={f"*{key}": f"*{value}" for key, value in RULES.items()})
    assert values(new) == values(old)


class Query(nn.Module):
    """A model of one family's names, with the keys of another's on request."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        for old, new in {"query": "query", "key": "key", "norm": "norm", "layer": "layer"}.items():
            names.setdefault(old, new)
        blocks = []
        for _ in range(4):
            block = nn.Module()
            block.add_module(names["query"], nn.Linear(4, 4))
            block.add_module(names["key"], nn.Linear(4, 4))
            block.add_module(names["norm"], nn.LayerNorm(4))
            blocks.append(block)
        self.add_module(names["layer"], nn.ModuleList(blocks))


def test_the_error_has_the_rules_for_what_looks_renamed_ready_to_copy() -> None:
    old, new = Query({}), Query({"query": "q", "key": "k", "layer": "layers"})
    state = statedict.capture(old)
    with pytest.raises(statedict.errors.RestoreError) as caught:
        statedict.restore(new, state)
    (line,) = (line for line in str(caught.value).splitlines() if "look renamed" in line)
    assert line.startswith(
        "24 keys look renamed: layer.{n}.query → layers.{n}.q, layer.{n}.key → layers.{n}.k, …; pass"
    )
    statedict.restore(new, state, rename=eval(line.partition("rename=")[2]))
    assert values(new) == values(old)


def test_parameters_of_another_family_s_names_are_paired_by_shape_and_order() -> None:
    state = {
        name.replace("weight", "gamma").replace("bias", "beta"): tensor for name, tensor in Old().state_dict().items()
    }
    with pytest.raises(statedict.errors.RestoreError, match="look renamed") as caught:
        statedict.restore(Old(), state)
    model = Old()
    statedict.restore(model, state, rename=eval(str(caught.value).partition("rename=")[2].splitlines()[0]))
    assert values(model) == [tensor.numpy().tobytes() for tensor in state.values()]


def test_nothing_is_suggested_where_shapes_differ_or_the_caller_allows_it() -> None:
    with pytest.raises(statedict.errors.RestoreError) as caught:
        statedict.restore(nn.Sequential(nn.Linear(2, 3)), {"a.weight": torch.ones(5, 5), "a.bias": torch.ones(5)})
    assert "renamed" not in str(caught.value)


def test_names_without_a_pattern_give_no_rules_after_little_work() -> None:
    missing = {f"x{i * 7919 % 5000}.w{i}": 1 for i in range(3000)}
    unexpected = {f"y{i * 104729 % 5000}.v{i}": 1 for i in range(3000)}
    assert suggest_rules(missing, unexpected) == {}
    assert steps(lambda: suggest_rules(missing, unexpected)) < 10_000_000
