"""Generators of random numbers: Python's, NumPy's and PyTorch's, each with the state that its library gives it.

| generator | state |
|---|---|
| `random.Random` | `version`, `state` (625 numbers), `gauss` |
| `numpy.random.Generator`, `RandomState`, bit generators | the dict of the bit generator, which begins with its name |
| `torch.Generator` | `device` (the kind), `state` (bytes) |

Restoring sets the state of the generator in place, so whoever else holds it sees it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from statedict.adapters import Capture, join, leaf, to_framework
from statedict.adapters.plan import MISSING, UNEXPECTED, Plan
from statedict.dtypes import dtype
from statedict.errors import RestoreError
from statedict.tensor.lazy import is_array
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

STAGE = 0
_KINDS = (
    "random.Random",
    "torch.Generator",
    *(f"numpy.random.{k}" for k in ("Generator", "RandomState", "BitGenerator")),
)


def _kind(value: Any) -> str:
    """Its kind; one of a subclass may hold more than the state of its base, unless that is a bit generator."""
    for kind in _KINDS:
        module, _, name = kind.rpartition(".")
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and (type(value) is known or (name == "BitGenerator" and isinstance(value, known))):
            return kind
    return ""


def accepts(value: Any) -> bool:
    """Whether it is a generator."""
    return _kind(value) != ""


def read(value: Any) -> dict[str, Any]:
    """The state of a generator."""
    import numpy

    kind = _kind(value)
    if kind == "random.Random":
        version, numbers, gauss = value.getstate()
        return {"version": version, "state": numpy.array(numbers, numpy.uint32), "gauss": gauss}
    if kind == "torch.Generator":
        return {"device": value.device.type, "state": value.get_state()}
    if kind == "numpy.random.RandomState":
        return value.get_state(legacy=False)  # type: ignore[no-any-return]
    return getattr(value, "bit_generator", value).state  # type: ignore[no-any-return]


def write(value: Any, state: Any) -> None:
    """Set the state of a generator.

    Raises:
        RestoreError: it is that of a generator of another kind.
    """
    for action, path, detail in faults(read(value), state, ""):
        if action != "unexpected":
            raise RestoreError(f"{path or type(value).__name__}: {detail}")
    kind = _kind(value)
    if kind == "torch.Generator":
        value.set_state(to_framework(state["state"]))
        return
    arrays = StateDict(state).numpy(copy=True)
    if kind == "random.Random":
        value.setstate((state["version"], tuple(arrays["state"].tolist()), state["gauss"]))
    elif kind == "numpy.random.RandomState":
        value.set_state(arrays)
    else:
        getattr(value, "bit_generator", value).state = arrays


def faults(own: Any, state: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Why a generator, whose own state is `own`, cannot take a state: action, path and detail of each reason."""
    wanted = ""
    if isinstance(own, dict) and isinstance(state, dict):
        for key, value in own.items():
            if key in state:
                yield from faults(value, state[key], join(path, key))
            else:
                yield "missing", join(path, key), MISSING
        for key in state:
            if key not in own:
                yield "unexpected", join(path, key), UNEXPECTED
    elif isinstance(own, dict):
        wanted = "a generator's state"
    elif is_array(own) and is_array(state):
        ours, theirs = (f"{dtype(array.dtype)} {tuple(array.shape)}" for array in (own, state))
        if ours != theirs:
            yield "kind", path, f"the generator's is {ours}, the state has {theirs}: it is of another kind"
    elif is_array(own):
        wanted = "an array"
    elif isinstance(own, str):
        if own != state:
            remedy = "make one of that kind, or leave it out of the tree"
            yield "kind", path, f"the generator's is {own!r}, the state has {state!r:.40}; {remedy}"
    elif is_array(state) or leaf(state) is ... or isinstance(state, Opaque | str | bytes):
        wanted = f"a {type(own).__name__}"
    if wanted:
        yield "kind", path, f"the target is {wanted}, the state has a {type(state).__name__}"


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its state, as its library gives it."""
    return context.data(read(value), path, value)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare with its own state, all of it; then set it."""
    own, whole = read(value), True
    for action, where, detail in faults(own, state, path):
        plan.problem(action, where, detail)
        whole = whole and action == "unexpected"
    if whole:  # a part of a state is none
        for key in own:
            plan.note("restored", join(path, key))
        plan.actions.append((path, lambda: write(value, {key: state[key] for key in own})))
