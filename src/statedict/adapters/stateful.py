"""Anything with `state_dict()` and `load_state_dict()`: schedulers, GradScaler, samplers, metrics, data loaders.

An object with `check_state_dict(state)` too, which yields why it cannot take a state, is asked before anything is
written.
"""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, join, to_framework
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import Plan
from statedict.tree.state_dict import StateDict, like

STAGE = 0


def accepts(value: Any) -> bool:
    """Whether it has both methods; a class itself holds no state."""
    methods = (getattr(value, name, None) for name in ("state_dict", "load_state_dict"))
    return not isinstance(value, type) and all(map(callable, methods))


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    return context.data(value.state_dict(), path, value)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare the names of the first level; then `load_state_dict`."""
    own = value.state_dict()
    if isinstance(own, dict) and isinstance(state, dict):
        state = _settle(own, state, plan, path)
        check = getattr(value, "check_state_dict", None)
        for fault in (check(state) if callable(check) else None) or ():
            plan.problem("kind", path, fault)
    elif isinstance(own, dict) or isinstance(state, dict):
        plan.mismatch(path, own, state)
    else:
        plan.note("restored", path)
        state = plan.settle(state, own, path)
        if state is DROPPED:
            return
    plan.actions.append((path, lambda: value.load_state_dict(to_framework(state, own))))


def _settle(own: dict[Any, Any], state: dict[Any, Any], plan: Plan, path: str) -> StateDict:
    """The state as the object can take it."""
    result = like(state, StateDict(state))
    for key in plan.common_keys(own, state, path) if own else ():  # a sampler before it starts has none, and takes any
        full = join(path, key)
        if plan.override(full, state[key]) is state[key]:
            plan.note("restored", full)
        plan.settle_entry(result, key, own[key], full)
    for key in state:
        if key not in own:
            plan.settle_entry(result, key, None, join(path, key))
    return result
