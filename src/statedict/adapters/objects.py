"""Plain Python: dicts, lists, tuples, arrays, and objects by their attributes."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Any

from statedict.adapters import Capture, fields, join, leaf, to_framework
from statedict.adapters.labels import DROPPED, find_member
from statedict.adapters.plan import Plan
from statedict.adapters.shapes import Fit, piece, repeats_elements
from statedict.dtypes import dtype
from statedict.errors import UnsupportedError
from statedict.tensor.arrays import is_numpy, is_torch
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.state_dict import StateDict, like
from statedict.values import Member, is_plain_list

STAGE = 0


def accepts(value: Any) -> bool:
    """Whether it is a container, an array, or an object whose attributes are its state."""
    if is_array(value):
        return not (is_numpy(value) and _adds_to_data(value))
    if isinstance(value, dict | list | tuple):
        return True
    if isinstance(value, type) or callable(value) or type(value).__module__ in ("builtins", "types", "_thread", "_io"):
        return False
    if callable(getattr(value, "state_dict", None)) or not _is_plain(type(value)):
        return False
    return hasattr(value, "__dict__") or hasattr(type(value), "__slots__")


_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: what a `class` statement makes has it, what is built in does not."""


def _is_plain(kind: type) -> bool:
    """Whether attributes are all the state: no base is a C type, and pickle is told nothing else."""
    if any(base is not object and not base.__flags__ & _HEAP_TYPE for base in kind.__mro__):
        return False
    own = [getattr(kind, name, None) for name in _PICKLING if _overrides(kind, name, object)]
    return all(getattr(method, "__module__", "") == "dataclasses" for method in own)  # frozen ones with slots


def _adds_to_data(array: Any) -> bool:
    """Whether it is of a subclass of `numpy.ndarray` that has more than elements, such as a mask."""
    import numpy

    kind = type(array)
    if isinstance(array, numpy.memmap | numpy.matrix) or kind is numpy.ndarray:
        return False
    return bool(getattr(array, "__dict__", None)) or any(_overrides(kind, name, numpy.ndarray) for name in _PICKLING)


def _overrides(kind: type, name: str, base: type) -> bool:
    return getattr(kind, name, None) is not getattr(base, name, None)


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of a plain object, those in slots too."""
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = (name for name in names if name not in ("__dict__", "__weakref__") and hasattr(value, name))
    return {name: getattr(value, name) for name in held} | dict(getattr(value, "__dict__", {}))


def capture(value: Any, context: Capture, path: str) -> Any:
    """The same containers with their entries captured; an object becomes the dict of its attributes."""
    if is_plain_list(value):
        return [*value] if isinstance(value, list) else value
    if isinstance(value, list | tuple):
        made = [context.value(item, join(path, index)) for index, item in enumerate(value)]
        return made if isinstance(value, list) else tuple(made)
    state = like(value, StateDict())
    for key, item in (value if isinstance(value, dict) else attributes(value)).items():
        state[key] = context.value(item, join(path, key))
    return state


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Fill arrays in place, replace plain values in their container, and go on into the rest."""
    if (columns := fields(value)) is not None:
        value, state = columns, fields(state) or state
    if is_array(value):
        _plan_array(value, state, plan, path)
    elif not value and path and type(value) in (list, dict) and type(state) in (list, StateDict, dict):
        # an empty container, such as a history that has not begun, takes what the state has
        if isinstance(value, list) is isinstance(state, list):
            _plan_items(value, state, plan, path)
        else:
            plan.mismatch(path, value, state)
    elif _is_history(value, state):
        _plan_items(value, state, plan, path)
    elif isinstance(value, list | tuple):
        if not isinstance(state, list | tuple) or len(state) != len(value):
            found = f"{len(state)} entries" if isinstance(state, list | tuple) else f"a {type(state).__name__}"
            plan.problem("kind", path, f"the target is a {type(value).__name__} of {len(value)}, the state has {found}")
            return
        for index, item in enumerate(value):
            assign = partial(value.__setitem__, index) if isinstance(value, list) else None
            if assign is None and leaf(item) is not ... and not is_array(item):
                there = find_member(type(item), state[index]) if isinstance(item, Enum) else state[index]
                if item != there or isinstance(there, Member):
                    plan.problem("kind", join(path, index), "is a plain value in a tuple, which cannot be changed")
                else:
                    plan.note("restored", join(path, index))
                continue
            plan.value(item, state[index], join(path, index), assign)
    elif not isinstance(state, dict):
        plan.mismatch(path, value, state)
    else:
        own = value if isinstance(value, dict) else attributes(value)
        for key in plan.common_keys(own, state, path):
            assign = partial(value.__setitem__, key) if own is value else partial(setattr, value, key)
            plan.value(own[key], state[key], join(path, key), assign)


def _plan_items(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Replace all entries of a list, or fill an empty dict."""
    plan.note("restored", path, f"{len(value)} entries → {len(state)}" if len(value) != len(state) else "")
    fill = value.update if isinstance(value, dict) else partial(value.__setitem__, slice(None))
    items = plan.settle(state, value, path)
    if items is not DROPPED:
        plan.actions.append((path, lambda: fill(to_framework(items, value))))


def _is_history(value: Any, state: Any) -> bool:
    """Whether they are lists of plain values that differ in length."""
    if not isinstance(value, list) or not isinstance(state, list) or len(value) == len(state):
        return False
    return all(leaf(item) is not ... and not is_array(item) for item in (*value, *state))


def _plan_array(value: Any, state: Any, plan: Plan, path: str) -> None:
    if not is_array(state):
        plan.mismatch(path, value, state)
        return
    if isinstance(value, LazyTensor):
        plan.problem("kind", path, "the target is a LazyTensor, which is read-only; restore into arrays")
        return
    try:
        if reason := _why_not_writable(value):
            raise UnsupportedError(reason)
        tensor = piece(value, as_lazy(state))
    except UnsupportedError as error:
        plan.problem("target", path, str(error))
        return
    fit = plan.tensor(tuple(value.shape), dtype(value.dtype), tensor, path)
    if fit is True or (fit and fit.policy != "skip"):
        plan.actions.append((path, lambda: fill(value, tensor, fit)))


def _why_not_writable(value: Any) -> str:
    """Why an array cannot be filled in place; empty if it can."""
    torch = is_torch(value)
    if torch and value.is_meta:
        return "the target is on the meta device, which holds no data; make it with to_empty(device=...) first"
    if torch and str(value.layout) != "torch.strided":
        return f"the target has the layout {value.layout}; restore into a dense tensor"
    if not torch and not value.flags.writeable:
        return "the target is a read-only array"
    if repeats_elements(value.shape, value.stride() if torch else value.strides):
        return "elements of the target share memory, as those of expand() do; restore into a tensor of its own"
    return ""


def fill(target: Any, tensor: LazyTensor, fit: Fit | bool) -> None:
    """Fill an array with a tensor, or the part of it that a tensor of another shape has."""
    if isinstance(fit, Fit):
        if fit.policy == "pad":
            target[...] = 0
        tensor = fit.part(tensor)
        target = target[tuple(slice(0, size) for size in tensor.shape)]
    if hasattr(target, "copy_"):
        import torch

        with torch.no_grad():
            target.copy_(tensor)
    else:
        target[...] = tensor.numpy()
