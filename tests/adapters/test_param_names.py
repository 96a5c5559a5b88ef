"""States of optimizers without names: they are inferred from order and shapes, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import statedict
from statedict.tree.optimizer import infer_names


class Net(nn.Module):
    """Two parameters of each of three shapes, registered in any order."""

    def __init__(self, seed: int, order: str = "abcdef", more: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shapes = {"a": (3,), "b": (3,), "c": (2, 3), "d": (2, 3), "e": (4,), "f": (4,)}
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.randn(shapes[name])))
        for number in range(more):
            self.register_parameter(f"new{number}", nn.Parameter(torch.randn(5)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, float(sum(map(ord, name))))
    optimizer.step()


Build = Callable[[nn.Module], Any]


def everything(model: nn.Module) -> Any:
    return model.parameters()


def decay(model: nn.Module) -> Any:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def backwards(model: nn.Module) -> Any:
    return list(model.parameters())[::-1]


def only(model: nn.Module) -> Any:
    return [p for n, p in model.named_parameters() if n in "acd"]


def twins(model: nn.Module) -> Any:
    return [{"params": [model.a]}, {"params": [model.b], "lr": 0.5}]


def first(model: nn.Module) -> Any:
    return [model.a]


def plain(model: nn.Module, build: Build) -> dict[str, Any]:
    """A checkpoint as plain PyTorch makes one: no names of parameters."""
    optimizer = torch.optim.Adam(build(model))
    step(model, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def restored(state: dict[str, Any], model: nn.Module, build: Build, **options: Any) -> statedict.reports.RestoreReport:
    optimizer = torch.optim.Adam(build(model))
    report = statedict.restore({"model": model, "optimizer": optimizer}, state, **options)
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            expected = torch.full_like(parameter, 0.1 * float(sum(map(ord, name))))
            assert torch.allclose(optimizer.state[parameter]["exp_avg"], expected), name
    return report


@pytest.mark.parametrize("then", ["abcdef", "fedcba", "cafebd"])
@pytest.mark.parametrize("now", ["abcdef", "dbface"])
@pytest.mark.parametrize("build", [everything, decay])
def test_a_model_that_was_reordered_gets_the_moments_by_its_own_order_in_the_state(
    then: str, now: str, build: Build
) -> None:
    report = restored(plain(Net(1, then), build), Net(2, now), build)
    assert {entry.detail for entry in report.entries if ".state." in entry.path} == {
        "its name is inferred from order and shapes"
    }


@pytest.mark.parametrize("build", [backwards, twins, first, only])
def test_the_same_code_as_before_restores_whatever_its_groups(build: Build) -> None:
    report = restored(plain(Net(1), build), Net(2), build)
    assert {entry.detail for entry in report.entries if ".state." in entry.path} == {
        "its name is inferred from order and shapes"
    }


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS", "Rprop", "SGD", *(["Muon"] * hasattr(torch.optim, "Muon"))])
def test_what_keeps_other_things_than_moments_is_no_hindrance(name: str) -> None:
    def tree(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
        return {"m": model, "o": getattr(torch.optim, name)(model.parameters(), lr=0.1)}

    one, other = tree(1), tree(2)
    for _ in range(2):

        def closure() -> torch.Tensor:
            one["o"].zero_grad()
            loss = (one["m"](torch.ones(3, 4)) ** 2).sum()
            loss.backward()
            return loss

        one["o"].step(closure)
    state = {key: part.state_dict() for key, part in one.items()}
    statedict.restore(other, state)
    assert str(other["o"].state_dict()["state"]) == str(state["o"]["state"])


def test_models_beside_the_one_that_is_trained_do_not_matter() -> None:
    from torch.optim.swa_utils import AveragedModel

    def tree(seed: int) -> dict[str, Any]:
        g, d = Net(seed), Net(seed + 1)
        optimizers = {"og": torch.optim.Adam(g.parameters()), "od": torch.optim.Adam(d.parameters())}
        return {"ema": AveragedModel(g), "g": g, "d": d, **optimizers}

    one, other = tree(1), tree(5)
    step(one["g"], one["og"])
    statedict.restore(other, {key: part.state_dict() for key, part in one.items()})
    assert torch.equal(other["og"].state[other["g"].c]["exp_avg"], one["og"].state[one["g"].c]["exp_avg"])
    assert not other["od"].state


def test_groups_that_differ_are_told_apart_by_shape() -> None:
    restored(plain(Net(1), decay), Net(2, "fbdaec"), everything)
    restored(plain(Net(1, "fbdaec"), everything), Net(2), decay)


def test_parameters_that_were_added_start_fresh_and_are_listed() -> None:
    report = restored(plain(Net(1), everything), Net(2, "dbface", more=2), everything, allow_missing="model.new*")
    assert report.paths("fresh") == ["optimizer.state.new0", "optimizer.state.new1"]


def test_parameters_that_were_removed_or_frozen_are_let_go_where_that_is_allowed() -> None:
    state = plain(Net(1), everything)
    report = restored(state, Net(2, "abcd"), everything, allow_unexpected=["model.e", "model.f"])
    assert report.paths("unexpected") == ["model.e", "model.f", "optimizer.state.e", "optimizer.state.f"]
    with pytest.raises(statedict.errors.RestoreError, match=r"3 unexpected: optimizer\.state\.b"):
        restored(state, Net(2), only)  # frozen: the model has them, its optimizer does not
    restored(state, Net(2), only, allow_unexpected=["b", "e", "f"])


def test_some_of_the_parameters_in_one_group_are_found_where_they_can_be_only_those() -> None:
    distinct = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.Linear(5, 7))
    some = torch.optim.Adam([*distinct[0].parameters(), *distinct[2].parameters()])
    step(distinct, some)
    state = {"model": distinct.state_dict(), "optimizer": some.state_dict()}
    fresh = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.Linear(5, 7))
    optimizer = torch.optim.Adam(fresh.parameters())
    report = statedict.restore({"model": fresh, "optimizer": optimizer}, state, allow_missing="optimizer.state.1")
    assert report.paths("fresh") == ["optimizer.state.1.weight", "optimizer.state.1.bias"]
    assert torch.equal(optimizer.state[fresh[2].weight]["exp_avg"], some.state[distinct[2].weight]["exp_avg"])


@pytest.mark.parametrize(
    ("then", "now", "saved", "live"),
    [
        ("abcdef", "dbface", backwards, backwards),  # built in an order of its own, and the model has another now
        ("abcdef", "abcdef", everything, backwards),
        ("abcdef", "abcdef", backwards, everything),
        ("abcdef", "dbface", twins, twins),  # groups that could be one another, and the model has changed
        ("abcdef", "dbface", first, first),  # one of two of a shape, likewise
        ("abcdef", "abcdef", only, everything),  # a and b are alike
    ],
)
def test_what_cannot_be_told_is_refused(then: str, now: str, saved: Build, live: Build) -> None:
    model = Net(2, now)
    before = model.a.clone()
    with pytest.raises(statedict.errors.RestoreError, match="neither their order nor their shapes tell which is which"):
        restored(plain(Net(1, then), saved), model, live, allow_missing="*", allow_unexpected="*")
    assert torch.equal(model.a, before)


@given(st.permutations(list("abcdefgh")), st.permutations(list("abcdefgh")), st.data())
def test_names_are_never_wrong_where_they_are_inferred(then: list[str], now: list[str], data: Any) -> None:
    """The truth is a model's order at the time of saving, in groups by any rule; a guess is that or none."""
    shapes = {name: (data.draw(st.integers(1, 3)),) for name in then}
    group_of = {name: data.draw(st.integers(0, 1)) for name in then}
    truth = [[name for name in then if group_of[name] == number] for number in (0, 1)]
    live = [[name for name in now if group_of[name] == number] for number in (0, 1)]
    sizes = [[shapes[name] for name in group] for group in truth]
    assert infer_names(sizes, live, {name: shapes[name] for name in then}, now) in (truth, None)
