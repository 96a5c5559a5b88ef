"""Plain Python: dicts, lists, tuples, arrays, and objects by their attributes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from statedict.adapters import Capture, Plan, join, leaf
from statedict.dtypes import dtype
from statedict.tensor import LazyTensor, as_lazy, is_array
from statedict.tree import StateDict, like


def accepts(value: Any) -> bool:
    """Whether it is a container, an array, or an object whose attributes are its state."""
    if isinstance(value, dict | list | tuple) or is_array(value):
        return True
    if isinstance(value, type) or callable(value) or type(value).__module__ in ("builtins", "types", "_thread", "_io"):
        return False
    return hasattr(value, "__dict__") or hasattr(type(value), "__slots__")


def _attributes(value: Any) -> dict[str, Any]:
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    slots = {name: getattr(value, name) for name in names if name not in ("__dict__", "__weakref__") and hasattr(value, name)}
    return slots | dict(getattr(value, "__dict__", {}))


def capture(value: Any, context: Capture, path: str) -> Any:
    """The same containers with their entries captured; an object becomes the dict of its attributes."""
    if isinstance(value, list | tuple):
        made = [context.value(item, join(path, index)) for index, item in enumerate(value)]
        return made if isinstance(value, list) else tuple(made)
    state = like(value, StateDict())
    for key, item in (value if isinstance(value, dict) else _attributes(value)).items():
        state[key] = context.value(item, join(path, key))
    return state


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Fill arrays in place, replace plain values in their container, and go on into the rest."""
    if is_array(value):
        _array(value, state, plan, path)
    elif isinstance(value, list | tuple):
        if not isinstance(state, list | tuple) or len(state) != len(value):
            found = f"{len(state)} entries" if isinstance(state, list | tuple) else f"a {type(state).__name__}"
            plan.problem("kind", path, f"the target is a {type(value).__name__} of {len(value)}, the state has {found}")
            return
        for index, item in enumerate(value):
            assign = partial(value.__setitem__, index) if isinstance(value, list) else None
            if assign is None and leaf(item) is not ... and not is_array(item):
                if item != state[index]:
                    plan.problem("kind", join(path, index), "is a plain value in a tuple, which cannot be changed")
                else:
                    plan.note("restored", join(path, index))
                continue
            plan.value(item, state[index], join(path, index), assign)
    elif not isinstance(state, dict):
        plan.problem("kind", path, f"the target is a {type(value).__name__}, the state has a {type(state).__name__}")
    else:
        own = value if isinstance(value, dict) else _attributes(value)
        for key, item in own.items():
            if key in state:
                plan.value(item, state[key], join(path, key), _setter(value, key))
            else:
                plan.missing(join(path, key))
        for key in state:
            if key not in own:
                plan.unexpected(join(path, key))


def _setter(value: Any, key: Any) -> Callable[[Any], None]:
    return partial(value.__setitem__, key) if isinstance(value, dict) else partial(setattr, value, key)


def _array(value: Any, state: Any, plan: Plan, path: str) -> None:
    if not is_array(state):
        plan.problem("kind", path, f"the target is a tensor, the state has a {type(state).__name__}")
        return
    if isinstance(value, LazyTensor):
        plan.problem("kind", path, "the target is a LazyTensor, which is read-only; restore into arrays")
        return
    tensor = as_lazy(state)
    if plan.tensor(tuple(value.shape), dtype(value.dtype), tensor, path):
        plan.actions.append(lambda: _copy(value, tensor))


def _copy(target: Any, tensor: LazyTensor) -> None:
    if hasattr(target, "copy_"):
        import torch

        with torch.no_grad():
            target.copy_(tensor)
    else:
        target[...] = tensor.numpy()
