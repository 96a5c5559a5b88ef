"""Modules, optimizers and states of `flax.nnx`: their variables by path, restored in place.

The state is what `flax.nnx.to_pure_dict(flax.nnx.state(module))` gives: nested dicts in which the entries of lists have
numbers as keys. A variable that stands twice in a module is there once. The variables stay the same objects, so
whoever else holds them, such as the optimizer of a module, sees what is restored.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from statedict.adapters import Capture, objects
from statedict.tree.state_dict import StateDict

if TYPE_CHECKING:
    from statedict.adapters.plan import Plan

STAGE = 0


def accepts(value: Any) -> bool:
    """Whether it is a module, another object with variables, or a state of one."""
    nnx: Any = sys.modules["flax.nnx"]
    return isinstance(value, (getattr(nnx, "Pytree", nnx.Object), nnx.Object, nnx.State))


def _read(value: Any) -> tuple[Any, dict[Any, Any]]:
    """Its state, and that as nested dicts of arrays."""
    nnx: Any = sys.modules["flax.nnx"]
    state = value if isinstance(value, nnx.State) else nnx.state(value)
    return state, nnx.to_pure_dict(state)


def capture(value: Any, context: Capture, path: str) -> Any:
    """The values of its variables."""
    return context.value(_read(value)[1], path)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Plan for the values of its variables; then update them, all at once."""
    whole, own = _read(value)
    before = len(plan.actions)
    objects.plan(own, _number(own, state), plan, path)
    if len(plan.actions) > before:
        plan.actions.append((path, lambda: _update(value, whole, own)))


def _update(value: Any, state: Any, values: dict[Any, Any]) -> None:
    nnx: Any = sys.modules["flax.nnx"]
    nnx.replace_by_pure_dict(state, values)
    if state is not value:
        nnx.update(value, state)


def _number(own: Any, state: Any) -> Any:
    """A state with numbers as keys where the object has them, and a file, such as Orbax's, has texts or a list."""
    if not isinstance(own, dict):
        return state
    if isinstance(state, list | tuple) and all(type(key) is int for key in own):
        state = StateDict(enumerate(state))
    if not isinstance(state, dict):
        return state
    numbers = {str(key): key for key in own if type(key) is int}
    named = {numbers.get(key, key) if type(key) is str else key: child for key, child in state.items()}
    return StateDict((key, _number(own.get(key), child)) for key, child in named.items())
