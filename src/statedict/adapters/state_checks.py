"""Whether what a state keeps for a parameter is what the live optimizer can step with.

PyTorch loads any state and fails at the next step, so the plan asks: what torch.optim writes for this class, and for an
optimizer of another class what it keeps already. A new optimizer of another class takes what it is given.

`LBFGS` keeps one state for all parameters, under the first: vectors over their elements, in their order (torch/optim/
lbfgs.py, `_gather_flat_grad`). Where the order has changed, the vectors are put into the new one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from statedict.adapters import join
from statedict.adapters.shapes import average
from statedict.dtypes import DType
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.optimizer import COLUMNS, KEPT, ONE, ROWS, SAME, Shape
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label
from statedict.values import Opaque

_WHERE = {"max_exp_avg_sq": "amsgrad", "momentum_buffer": "momentum", "grad_avg": "centered"}
"""The hyperparameters without which these are not kept."""
_ALWAYS = {"step": ONE, "row_var": ROWS, "col_var": COLUMNS}
"""What these are to a parameter in an optimizer of any other class."""
Fault = tuple[str, str, str]
"""What is wrong, as a plan takes it: `missing`, `kind` or `shape`; the path; and why."""


def class_of(optimizer: Any) -> str:
    """The name of the class of torch.optim that decides what an optimizer keeps; empty if none does."""
    import torch

    own = type(optimizer)
    for kind in own.__mro__:
        if kind.__name__ in KEPT and getattr(torch.optim, kind.__name__, None) is kind:
            return kind.__name__ if inspect.unwrap(own.step) is inspect.unwrap(kind.step) else ""
    return ""


def role_of(name: str, key: Any) -> str:
    """What an entry is to its parameter: one of the values of `KEPT`, empty if that is not known; see `faults`."""
    return KEPT.get(name, _ALWAYS).get(key, "")


def has_elements(shape: Shape, parameter: Shape, role: str) -> bool:
    """Whether a tensor of this shape keeps something of a parameter's elements, and not one number for all of them."""
    if role or shape == parameter:
        return role != ONE
    return math.prod(shape) > 1 or (bool(shape) and 1 in parameter)


def dtype_of(name: str, entries: Any) -> DType | None:
    """The dtype that a parameter had by what is kept for it; None where that does not tell."""
    kept = (entries[key] for key, role in KEPT.get(name, {}).items() if role != ONE and is_array(entries.get(key)))
    return next((as_lazy(value).dtype for value in kept), None)


def faults(
    optimizer: Any, name: str, parameter: Any, shape: Shape, kind: str, entries: Any, group: Any, saved: Any, path: str
) -> Iterator[Fault]:
    """What is wrong with what a state keeps for a parameter, of this shape and kind of dtype when the state was made.

    What is there besides is taken as it is; the hyperparameters tell whether the state is another optimizer's.
    `name` is `class_of(optimizer)`; `group` has the hyperparameters that the parameter will have, `saved` the state's.
    """
    if not name:
        live = optimizer.state.get(parameter)
        if isinstance(live, dict) and shape == tuple(parameter.shape):
            yield from _compare(live, entries, shape, path)
        return
    expected: dict[str, bool] = {}
    for key, role in KEPT[name].items():
        if name != "Adafactor" or (role in (ROWS, COLUMNS)) is (len(shape) > 1) or role == ONE:
            hyper = _WHERE.get(key)
            # SGD begins a momentum that it does not have
            expected[key] = hyper is None or bool(group.get(hyper) and (name != "SGD" or saved.get(hyper)))
    if not entries and sum(expected.values()) > 1:
        return  # no step has been taken yet, or no gradient was there
    for key, needed in expected.items():
        if key not in entries:
            if needed:
                yield "missing", join(path, key), f"{name} does not step without it"
        elif needed or entries[key] is not None:
            yield from _check(entries[key], KEPT[name][key], shape, join(path, key), kind)


def _check(value: Any, role: str, shape: Shape, path: str, kind: str = "") -> Iterator[Fault]:
    if role == ONE:
        if not _is_one(value):
            yield "kind", path, f"expected a number or a tensor of one element, the state has {_describe(value)}"
        return
    if role in (ROWS, COLUMNS):
        shape = average(shape, role)
    if not is_array(value):
        yield "kind", path, f"expected a tensor of shape {shape}, the state has {_describe(value)}"
    elif tuple(value.shape) != shape:
        yield "shape", path, f"expected {shape}, the state has {tuple(value.shape)}"
    elif kind and as_lazy(value).dtype.kind != kind:
        yield "kind", path, f"expected {kind}s, the state has {as_lazy(value).dtype}"


def _compare(live: Mapping[Any, Any], entries: Any, shape: Shape, path: str) -> Iterator[Fault]:
    """Where a state differs in kind from what the optimizer keeps now; what it keeps besides does not matter."""
    for key, mine in live.items():
        at, theirs = join(path, label(key)), entries.get(key)
        if key not in entries:
            yield "missing", at, "the target keeps it, the state does not"
        elif mine is None or theirs is None:
            continue
        elif is_array(mine) and tuple(mine.shape) == shape:
            yield from _check(theirs, SAME, shape, at)
        elif _is_one(mine):
            yield from _check(theirs, ONE, shape, at)
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _compare(mine, theirs, shape, at)
        elif _sort(mine) != _sort(theirs):
            yield "kind", at, f"the target has {_describe(mine)}, the state has {_describe(theirs)}"


def _sort(value: Any) -> tuple[bool, ...]:
    return is_array(value), isinstance(value, dict), isinstance(value, list | tuple)


def _is_one(value: Any) -> bool:
    """Whether it is a number or a tensor of one element."""
    return math.prod(value.shape) == 1 if is_array(value) else type(value) in (int, float)


def _describe(value: Any) -> str:
    if is_array(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Opaque):
        return f"an object of {value.name}"
    return f"{value!r:.40}" if value is None else f"a {type(value).__name__}"


# LBFGS

_NUMBERS = ("func_evals", "n_iter")
_LATER = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")
"""What is there after the first iteration; `al` follows after the second."""


def lbfgs_faults(entries: Any, length: int, path: str) -> Iterator[Fault]:
    """What is wrong with the state of an LBFGS for parameters of so many elements in all."""
    count = entries.get("n_iter")
    count = float(as_lazy(count).torch()) if is_array(count) and _is_one(count) else count if _is_one(count) else 0
    for key in (*_NUMBERS, *_LATER * (count >= 1), *("al",) * (count > 1)):
        if key not in entries:
            yield "missing", join(path, key), "LBFGS does not go on without it"

    def is_flat(value: Any) -> bool:
        return is_array(value) and tuple(value.shape) == (length,)

    pairs = entries.get("old_dirs")
    for key, value in entries.items():
        if key in ("old_dirs", "old_stps"):
            fine = isinstance(value, list) and all(map(is_flat, value))
        elif key in ("ro", "al"):
            fine = isinstance(value, list) and all(_is_one(item) or (item is None and key == "al") for item in value)
        elif key in ("d", "prev_flat_grad"):
            fine = is_flat(value)
        elif key in (*_NUMBERS, *_LATER):
            fine = _is_one(value)
        else:
            continue
        if fine and key in ("old_stps", "ro", "al") and isinstance(pairs, list):
            fine = len(value) == len(pairs) or (key == "al" and len(value) > len(pairs))
        if not fine:
            detail = f"is not what LBFGS keeps for {length:,} elements; it has {_describe(value)}"
            yield "kind", join(path, key), detail


def reorder(saved: Sequence[Any], live: Sequence[Any], sizes: Mapping[Any, int], entries: Any) -> StateDict:
    """The state of an LBFGS, from the order of the parameters in `saved` to that in `live`; `sizes` counts elements.

    >>> import torch
    >>> reorder(["a", "b"], ["b", "a"], {"a": 2, "b": 1}, {"d": torch.tensor([1, 2, 3])})["d"]
    tensor([3, 1, 2])
    """
    starts, start = {}, 0
    for key in saved:
        starts[key] = start
        start += sizes[key]

    def turn(value: Any) -> Any:
        if isinstance(value, list):
            return [turn(item) for item in value]
        if not is_array(value) or tuple(value.shape) != (start,):
            return value
        import torch

        flat = as_lazy(value).torch()
        return torch.cat([flat[starts[key] : starts[key] + sizes[key]] for key in live])

    return StateDict((key, turn(value)) for key, value in entries.items())
