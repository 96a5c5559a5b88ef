from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.ops.inspect import optimizers
from statedict.tensor.lazy import LazyTensor
from statedict.tree.optimizer import parameter_size


def trained(**options: Any) -> dict[str, Any]:
    """What people save: plain state_dicts, without names."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_names_are_inferred_and_marked_where_the_file_has_none() -> None:
    state = trained()
    [found] = optimizers(state)
    assert (found.path, found.model, found.inferred) == ("optimizer", "model", True)
    assert list(found.names.values()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    info = {one.path: one for one in statedict.inspect(state).tensors}["optimizer.state.2.exp_avg"]
    assert (info.parameter, info.inferred) == ("1.weight", True)


def test_names_in_the_file_are_taken_as_they_are(tmp_path: Path) -> None:
    state = trained()
    state["optimizer"]["param_groups"][0]["param_names"] = ["0.weight", "0.bias", "1.weight", "1.bias"]
    [found] = optimizers(state)
    assert not found.inferred
    info = {one.path: one for one in statedict.inspect(state).tensors}["optimizer.state.2.exp_avg"]
    assert (info.parameter, info.inferred) == ("1.weight", False)


def test_without_a_model_beside_it_nothing_is_inferred() -> None:
    [found] = optimizers({"optimizer": trained()["optimizer"]})
    assert (found.model, found.names, found.inferred) == (None, {}, False)
    [alone] = optimizers(trained()["optimizer"])
    assert (alone.path, alone.groups[0][0]) == ("", 4)


def test_groups_say_how_many_parameters_they_have_and_their_hyperparameters() -> None:
    [found] = optimizers(trained(lr=0.5, betas=(0.8, 0.9)))
    [(count, group)] = found.groups
    assert (count, group["lr"], group["betas"]) == (4, 0.5, (0.8, 0.9))
    assert "params" not in group


def test_a_sound_state_has_no_troubles() -> None:
    assert optimizers(trained(), LazyTensor.item)[0].troubles == {}
    assert optimizers({"model": {}, "epoch": 3}) == []


def test_missing_state_of_some_parameters_is_a_trouble_of_all_is_none() -> None:
    state = trained()
    del state["optimizer"]["state"][1], state["optimizer"]["state"][3]
    assert optimizers(state)[0].troubles == {"missing state": "2 parameters of 4 without state: 0.bias, 1.bias"}
    state["optimizer"]["state"].clear()
    assert optimizers(state)[0].troubles == {}


def test_state_of_a_parameter_that_is_in_no_group_is_stale() -> None:
    state = trained()
    state["optimizer"]["param_groups"][0]["params"] = [0, 1, 2]
    assert optimizers(state)[0].troubles == {"stale state": "stale state of 1 parameter in no group: 3"}


def test_steps_that_differ_are_a_trouble_and_tensors_are_read_only_if_asked_for() -> None:
    state = trained()
    state["optimizer"]["state"][2]["step"] = torch.tensor(1.0)
    said = {"steps": "1 parameter not at step 3 as the others: 1.weight"}
    assert optimizers(state)[0].troubles == {}
    assert optimizers(state, LazyTensor.item)[0].troubles == said
    for number, entry in state["optimizer"]["state"].items():
        entry["step"] = 1 if number == 2 else 3
    assert optimizers(state)[0].troubles == said


def test_one_state_for_all_parameters_is_none_that_is_missing() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call, arg-type]
    [found] = optimizers({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert (len(found.keys), found.troubles) == (1, {})


def test_state_that_is_keyed_by_names_is_not_called_inferred() -> None:
    state = {"w": {"m": torch.ones(3)}}
    tree = {"model": {"w": torch.ones(3)}, "optimizer": {"state": state, "param_groups": [{"params": ["w"]}]}}
    [found] = optimizers(tree)
    assert (found.names, found.inferred) == ({"w": "w"}, False)


@pytest.mark.parametrize("bare", [False, True])
def test_an_optimizer_in_a_list_and_one_of_odd_keys_are_no_error(bare: bool) -> None:
    odd = {"state": {0: {"m": torch.ones(3)}}, "param_groups": [{"params": [[1]], "lr": 1}]}
    [found] = statedict.inspect(odd if bare else {"m": {"w": torch.ones(3)}, "o": odd}).optimizers
    assert (found.names, found.groups) == ({}, ((1, {"lr": 1}),))
    assert [one.path for one in statedict.inspect([trained()["optimizer"]]).optimizers] == ["0"]


@pytest.mark.parametrize(
    ("dims", "kept"),
    [((3, 4), {"row_var": (3, 1), "col_var": (1, 4)}), ((2, 3, 4), {"row_var": (2, 3, 1), "col_var": (2, 1, 4)}),
     ((3, 4), {"exp_avg_sq_row": (3,), "exp_avg_sq_col": (4,)}),
     ((2, 3, 4), {"exp_avg_sq_row": (2, 3), "exp_avg_sq_col": (2, 4)}),
     (None, {"row_var": (3,), "col_var": (4,)}), (None, {"exp_avg_sq_row": (), "exp_avg_sq_col": ()})],
)  # fmt: skip
def test_the_moments_of_adafactor_tell_the_shape_of_their_parameter(dims: Any, kept: dict[str, Any]) -> None:
    entries = {"step": torch.tensor(1.0)} | {name: torch.ones(shape) for name, shape in kept.items()}
    found = parameter_size(entries)
    assert dims is None or found == dims


def test_the_json_of_a_summary_has_the_optimizers() -> None:
    state = trained(betas=(0.8, 0.9))
    state["optimizer"]["param_groups"][0]["lr"] = float("inf")
    [found] = json.loads(json.dumps(statedict.inspect(state).to_json(), allow_nan=False))["optimizers"]
    assert (found["path"], found["inferred"], found["names"]["0"]) == ("optimizer", True, "0.weight")
    assert found["groups"][0] | {"lr": "inf", "betas": [0.8, 0.9], "parameters": 4} == found["groups"][0]


def test_two_entries_of_one_path_do_not_keep_it_from_being_shown() -> None:
    state = trained() | {"a.b": 1, "a": {"b": 2}}
    assert [one.path for one in statedict.inspect(state).optimizers] in ([], ["optimizer"])
    assert statedict.inspect(state).total.tensors == 16


def test_the_state_of_a_model_that_is_not_there_is_not_given_to_another() -> None:
    def moments(*shapes: tuple[int, ...]) -> dict[str, Any]:
        state = {n: {"exp_avg": torch.ones(shape)} for n, shape in enumerate(shapes)}
        return {"state": state, "param_groups": [{"params": [*state]}]}

    other = {"a": torch.ones(16, 8), "b": torch.ones(4, 16)}
    [found] = optimizers({"model": other, "o": moments((32, 8), (4, 32))})
    assert (found.model, found.names) == (None, {})
    rows = {"state": {0: {"row": torch.ones(16)}, 1: {"row": torch.ones(4)}}, "param_groups": [{"params": [0, 1]}]}
    [found] = optimizers({"model": other, "o": rows})
    assert (found.model, found.names, found.inferred) == ("model", {0: "a", 1: "b"}, True)
