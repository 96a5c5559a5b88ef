"""State without names goes back to its parameter whatever it looks like, or is refused; never to another one."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import statedict


class Keeping(torch.optim.Optimizer):
    """Keeps what a test puts into it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})


class Net(nn.Module):
    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


SHAPES = [(2,), (3,), (4,), (6,), (2, 3), (3, 2), (3, 3), (4, 2), (2, 3, 4), (1,), (3, 1)]
KINDS = ["shaped", "known", "factored", "transformers", "pytorch", "scalar", "none"]


def keep(kind: str, shape: tuple[int, ...], mark: float) -> dict[str, Any]:
    """What an optimizer of a kind keeps for a parameter, all of one value; nothing for the kind "none"."""
    if kind == "none":
        return {}
    if kind == "scalar":
        return {"step": 1, "norm": torch.tensor(mark)}
    if kind == "known":
        return {"step": 1, "exp_avg": torch.full(shape, mark)}
    if kind == "shaped" or len(shape) < 2:
        return {"step": 1, "m" if kind in ("shaped", "factored") else "exp_avg_sq": torch.full(shape, mark)}
    rows, columns = {
        "factored": ("r", "c"),
        "transformers": ("exp_avg_sq_row", "exp_avg_sq_col"),
        "pytorch": ("row_var", "col_var"),
    }[kind]
    ones = [1] * (kind == "pytorch")
    return {
        "step": 1,
        rows: torch.full((*shape[:-1], *ones), mark),
        columns: torch.full((*shape[:-2], *ones, shape[-1]), mark),
    }


def build(model: Net, groups: list[list[str]]) -> Keeping:
    return Keeping([{"params": [getattr(model, name) for name in names]} for names in groups])


def pick_groups(random: Random, names: list[str]) -> list[list[str]]:
    """All or some of the names in one to three groups, each in the order of the names."""
    first, last = random.choice([(0, 0), (-1, 0), (0, 1), (-1, 2)])
    group_of = {name: random.randint(first, last) for name in names}
    groups = [[name for name in names if group_of[name] == number] for number in range(3)]
    return [group for group in groups if group] or [names]


def pick_kinds(random: Random, names: list[str]) -> dict[str, str]:
    """One kind of state for all or most of the parameters, as optimizers keep it, or any mixture."""
    usual = random.choice(KINDS[:-1])
    some = random.choice([[usual], [usual, "none"], KINDS])
    return {name: random.choice(some) for name in names}


def pick_shapes(random: Random) -> dict[str, tuple[int, ...]]:
    return {f"p{number}": random.choice(SHAPES) for number in range(random.randint(1, 6))}


def save(model: Net, groups: list[list[str]], kinds: dict[str, str]) -> dict[str, Any]:
    """A checkpoint without names, in which what is kept for the parameter number n is n + 1."""
    optimizer = build(model, groups)
    for mark, (name, parameter) in enumerate(model.named_parameters(), 1):
        if kinds[name] != "none" and any(name in group for group in groups):
            optimizer.state[parameter] = keep(kinds[name], tuple(parameter.shape), float(mark))
    return {"m": model.state_dict(), "o": optimizer.state_dict()}


def marks(optimizer: Keeping, model: Net) -> dict[str, set[float]]:
    """For each parameter that has state, the values in it."""
    return {
        name: {value.max().item() for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)}
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter)
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_same_code_as_before_gives_each_state_back_to_its_parameter(seed: int) -> None:
    random = Random(seed)
    for _ in range(60):
        shapes = pick_shapes(random)
        kinds, groups = pick_kinds(random, [*shapes]), pick_groups(random, [*shapes])
        if random.random() < 0.3:
            groups = [random.sample(group, len(group)) for group in groups]
        one, other = Net(shapes), Net(shapes)
        state, together, alone = save(one, groups, kinds), build(other, groups), build(other, groups)
        statedict.restore({"m": other, "o": together}, state)
        statedict.restore(alone, state["o"])
        members = {name for group in groups for name in group if kinds[name] != "none"}
        expected = {name: {float(mark)} for mark, name in enumerate(shapes, 1) if name in members}
        assert marks(together, other) == marks(alone, other) == expected, (shapes, kinds, groups)


@pytest.mark.parametrize("seed", range(4))
def test_other_groups_or_another_order_never_give_a_state_to_another_parameter(seed: int) -> None:
    random, restored = Random(seed), 0
    for _ in range(80):
        shapes = pick_shapes(random)
        names = [*shapes]
        order = random.choice([names, random.sample(names, len(names))])
        kinds, saved, live = pick_kinds(random, names), pick_groups(random, names), pick_groups(random, order)
        if order == names and [*map(len, saved)] == [*map(len, live)]:
            continue  # what looks as it was counts as it was
        one, other = Net(shapes), Net({name: shapes[name] for name in order})
        state, optimizer = save(one, saved, kinds), build(other, live)
        try:
            statedict.restore({"m": other, "o": optimizer}, state, allow_missing="o", allow_unexpected="*")
        except statedict.errors.RestoreError:
            assert not optimizer.state
        for name, values in marks(optimizer, other).items():
            assert values == {float(names.index(name) + 1)}, (name, shapes, kinds, saved, live)
        restored += bool(optimizer.state)
    assert restored > 5


NORM = {"norm": (16,), "w": (16, 8)}


@pytest.mark.parametrize(
    ("shapes", "groups", "kinds"),
    [
        (NORM, [["w"]], {"norm": "none", "w": "factored"}),
        (NORM, [["norm", "w"]], {"norm": "none", "w": "factored"}),
        (NORM, [["w"], ["norm"]], {"norm": "none", "w": "factored"}),
        ({"w": (16, 8), "bias": (16,)}, [["w", "bias"]], {"w": "factored", "bias": "none"}),
    ],
)
def test_a_state_of_the_shape_of_another_parameter_goes_back_by_its_place(
    shapes: dict[str, tuple[int, ...]], groups: list[list[str]], kinds: dict[str, str]
) -> None:
    one, other = Net(shapes), Net(shapes)
    optimizer = build(other, groups)
    statedict.restore({"m": other, "o": optimizer}, save(one, groups, kinds))
    assert marks(optimizer, other) == {"w": {float([*shapes].index("w") + 1)}}


def test_a_state_of_the_shape_of_another_parameter_is_refused_where_the_groups_differ() -> None:
    one, other = Net(NORM), Net(NORM)
    state = save(one, [["w"]], {"norm": "none", "w": "factored"})
    optimizer = build(other, [["norm", "w"]])
    with pytest.raises(statedict.errors.RestoreError, match="neither their order nor their shapes tell"):
        statedict.restore({"m": other, "o": optimizer}, state, allow_missing="o")
    assert not any(tensor.parameter for tensor in statedict.inspect(state).tensors if ".state." in tensor.path)


@pytest.mark.parametrize("kind", ["shaped", "known", "transformers"])
def test_shapes_that_are_a_rearrangement_of_the_parameters_tell_the_order(kind: str) -> None:
    shapes = {"a": (2,), "b": (3, 2), "c": (4,)}
    one, other = Net(shapes), Net(shapes)
    optimizer = build(other, [["a", "b", "c"]])
    statedict.restore({"m": other, "o": optimizer}, save(one, [["c"], ["a", "b"]], dict.fromkeys(shapes, kind)))
    assert marks(optimizer, other) == {"a": {1.0}, "b": {2.0}, "c": {3.0}}
