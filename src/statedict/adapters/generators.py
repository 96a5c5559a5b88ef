"""Generators of random numbers: Python's, NumPy's and PyTorch's, each with the state that its library gives it.

| generator | state |
|---|---|
| `random.Random` | `version`, `state` (625 numbers), `gauss` |
| `numpy.random.Generator`, `RandomState`, bit generators | the dict of the bit generator, which begins with its name |
| `torch.Generator` | `device` (the kind), `state` (bytes) |

Restoring sets the state of the one that is there, whoever else holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from statedict.adapters import Capture, join, leaf, to_framework
from statedict.adapters.plan import Plan
from statedict.dtypes import dtype
from statedict.errors import RestoreError
from statedict.tensor.lazy import as_lazy, is_array
from statedict.values import Opaque

STAGE = 0


class _Kind(NamedTuple):
    module: str
    name: str
    read: Callable[[Any], dict[str, Any]]
    write: Callable[[Any, Any], None]
    exact: bool = True


def _read_python(value: Any) -> dict[str, Any]:
    import numpy

    version, numbers, gauss = value.getstate()
    return {"version": version, "state": numpy.array(numbers, numpy.uint32), "gauss": gauss}


def _write_python(value: Any, state: Any) -> None:
    value.setstate((state["version"], tuple(_arrays(state["state"]).tolist()), state["gauss"]))


def _arrays(state: Any) -> Any:
    """A state with numpy's arrays, as bit generators want them."""
    import numpy

    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return numpy.array(as_lazy(state).numpy()) if is_array(state) else state


def _write_torch(value: Any, state: Any) -> None:
    value.set_state(to_framework(state["state"]))


_KINDS = (
    _Kind("random", "Random", _read_python, _write_python),
    _Kind(
        "numpy.random",
        "Generator",
        lambda value: value.bit_generator.state,
        lambda value, state: setattr(value.bit_generator, "state", _arrays(state)),
    ),
    _Kind(
        "numpy.random",
        "RandomState",
        lambda value: value.get_state(legacy=False),
        lambda value, state: value.set_state(_arrays(state)),
    ),
    _Kind(
        "numpy.random",
        "BitGenerator",
        lambda value: value.state,
        lambda value, state: setattr(value, "state", _arrays(state)),
        exact=False,
    ),
    _Kind(
        "torch",
        "Generator",
        lambda value: {"device": value.device.type, "state": value.get_state()},
        _write_torch,
    ),
)


def _kind(value: Any) -> _Kind | None:
    for kind in _KINDS:
        known = getattr(sys.modules.get(kind.module), kind.name, None)
        if known is not None and (type(value) is known or (not kind.exact and isinstance(value, known))):
            return kind
    return None


def accepts(value: Any) -> bool:
    """Whether it is a generator; one of a subclass may hold more than the state of its base."""
    return _kind(value) is not None


def read(value: Any) -> dict[str, Any]:
    """The state of a generator."""
    kind = _kind(value)
    assert kind is not None, value
    return kind.read(value)


def write(value: Any, state: Any) -> None:
    """Set the state of a generator.

    Raises:
        RestoreError: it is that of a generator of another kind.
    """
    for action, path, detail in faults(read(value), state, ""):
        if action != "unexpected":
            raise RestoreError(f"{path or type(value).__name__}: {detail}")
    kind = _kind(value)
    assert kind is not None, value
    kind.write(value, state)


def faults(own: Any, state: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Why a generator cannot take a state: action, path, detail of each reason.

    Args:
        own: its own state.
        state: the other.
        path: where it stands.
    """
    if isinstance(own, dict):
        if not isinstance(state, dict):
            yield "kind", path, f"the target is a generator's state, the state has a {type(state).__name__}"
            return
        for key, value in own.items():
            if key in state:
                yield from faults(value, state[key], join(path, key))
            else:
                yield "missing", join(path, key), "the target has it, the state does not"
        for key in state:
            if key not in own:
                yield "unexpected", join(path, key), "the state has it, the target does not"
    elif is_array(own):
        shape, kind = tuple(own.shape), dtype(own.dtype)
        if not is_array(state):
            yield "kind", path, f"the target is an array, the state has a {type(state).__name__}"
        elif tuple(state.shape) != shape or dtype(state.dtype) is not kind:
            found = f"{dtype(state.dtype)} {tuple(state.shape)}"
            yield "kind", path, f"the generator's is {kind} {shape}, the state has {found}: it is of another kind"
    elif isinstance(own, str):
        if own != state:
            remedy = "make one of that kind, or leave it out of the tree"
            yield "kind", path, f"the generator's is {own!r}, the state has {state!r:.40}; {remedy}"
    elif is_array(state) or leaf(state) is ... or isinstance(state, Opaque | str | bytes):
        yield "kind", path, f"the target is a {type(own).__name__}, the state has a {type(state).__name__}"


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its state, as its library gives it."""
    return context.data(read(value), path, value)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare with its own state, all of it; then set it."""
    own, whole = read(value), True
    allow = {"missing": plan.missing, "unexpected": plan.unexpected}
    for action, where, detail in faults(own, state, path):
        if action in allow:
            allow[action](where, detail)
        else:
            plan.problem(action, where, detail)
        whole = whole and action == "unexpected"
    if whole:  # a part of a state is none
        for key in own:
            plan.note("restored", join(path, key))
        plan.act(path, lambda: write(value, {key: state[key] for key in own}))
