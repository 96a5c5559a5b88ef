"""Whether what a state keeps for a parameter is what the live optimizer can step with.

PyTorch loads any state and fails at the next step, so the plan asks: what torch.optim writes for this class, and for an
optimizer of another class what it keeps already. A new optimizer of another class takes what it is given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from statedict.tensor.lazy import is_array
from statedict.tree.optimizer import COLUMNS, KEPT, ONE, ROWS, SAME, Shape
from statedict.values import Opaque

_WHERE = {"max_exp_avg_sq": "amsgrad", "momentum_buffer": "momentum", "grad_avg": "centered"}
"""The hyperparameters without which these are not kept."""
_ANOTHER = "the state is another optimizer's"


class Fault(NamedTuple):
    """What is wrong: one of `missing`, `unexpected`, `kind` and `shape`, the keys to where it is, and why."""

    action: str
    keys: tuple[Any, ...]
    detail: str


def class_of(optimizer: Any) -> str:
    """The name of the class of torch.optim that decides what an optimizer keeps; empty if none does."""
    import torch

    own = type(optimizer)
    for kind in own.__mro__:
        if kind.__name__ in KEPT and getattr(torch.optim, kind.__name__, None) is kind:
            return kind.__name__ if inspect.unwrap(own.step) is inspect.unwrap(kind.step) else ""
    return ""


def faults(
    optimizer: Any, name: str, parameter: Any, shape: Shape, entries: Any, group: Any, saved: Any
) -> Iterator[Fault]:
    """What is wrong with what a state keeps for a parameter.

    Args:
        optimizer: the live optimizer.
        name: its class, as `class_of` has it.
        parameter: the live parameter.
        shape: that of the parameter when the state was made.
        entries: what the state keeps.
        group: the hyperparameters that the parameter will have.
        saved: those of the state.
    """
    if not name:
        live = optimizer.state.get(parameter)
        if isinstance(live, dict) and shape == tuple(parameter.shape):
            yield from _unlike(live, entries, shape, ())
        return
    expected: dict[str, bool] = {}
    for key, kind in KEPT[name].items():
        if name != "Adafactor" or (kind in (ROWS, COLUMNS)) is (len(shape) > 1) or kind == ONE:
            hyper = _WHERE.get(key)
            # SGD begins a momentum that it does not have
            expected[key] = hyper is None or bool(group.get(hyper) and (name != "SGD" or saved.get(hyper)))
    if not entries and sum(expected.values()) > 1:
        return  # no step has been taken yet, or no gradient was there
    for key, needed in expected.items():
        if key not in entries:
            if needed:
                yield Fault("missing", (key,), f"{name} does not step without it")
        elif needed or entries[key] is not None:
            yield from _unfit(entries[key], KEPT[name][key], shape, (key,))
    for key in entries:
        if key not in expected and type(optimizer).__name__ == name:
            yield Fault("unexpected", (key,), _ANOTHER)


def _unfit(value: Any, kind: str, shape: Shape, keys: tuple[Any, ...]) -> Iterator[Fault]:
    if kind == ONE:
        if not is_one(value):
            yield Fault("kind", keys, f"expected a number or a tensor of one element, the state has {describe(value)}")
        return
    if kind in (ROWS, COLUMNS):
        shape = (*shape[:-1], 1) if kind == ROWS else (*shape[:-2], 1, shape[-1])
    if not is_array(value):
        yield Fault("kind", keys, f"expected a tensor of shape {shape}, the state has {describe(value)}")
    elif tuple(value.shape) != shape:
        yield Fault("shape", keys, f"expected {shape}, the state has {tuple(value.shape)}")


def _unlike(live: Mapping[Any, Any], entries: Any, shape: Shape, keys: tuple[Any, ...]) -> Iterator[Fault]:
    """Where a state differs in kind from what the optimizer keeps now; what it keeps besides does not matter."""
    for key, mine in live.items():
        at = (*keys, key)
        if key not in entries:
            yield Fault("missing", at, "the target keeps it, the state does not")
            continue
        theirs = entries[key]
        if mine is None or theirs is None:
            continue
        if is_one(mine) and not (is_array(mine) and tuple(mine.shape) == shape):
            yield from _unfit(theirs, ONE, shape, at)
        elif is_array(mine) and tuple(mine.shape) == shape:
            yield from _unfit(theirs, SAME, shape, at)
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _unlike(mine, theirs, shape, at)
        elif _sort(mine) != _sort(theirs):
            yield Fault("kind", at, f"the target has {describe(mine)}, the state has {describe(theirs)}")


def _sort(value: Any) -> tuple[bool, ...]:
    return is_array(value), isinstance(value, dict), isinstance(value, list | tuple)


def is_one(value: Any) -> bool:
    """Whether it is a number or a tensor of one element."""
    return math.prod(value.shape) == 1 if is_array(value) else type(value) in (int, float)


def describe(value: Any) -> str:
    """What a value is, in an error."""
    if is_array(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Opaque):
        return f"an object of {value.name}"
    return f"{value!r:.40}" if value is None else f"a {type(value).__name__}"
