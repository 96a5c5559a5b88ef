"""Anything with `state_dict()` and `load_state_dict()`: schedulers, GradScaler, samplers, metrics, data loaders."""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, Plan, join
from statedict.tree import StateDict


def accepts(value: Any) -> bool:
    """Whether it has both methods; a class that has them is no object that holds state."""
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    return context.value(value.state_dict(), path)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare the names of the first level; then `load_state_dict`."""
    own = value.state_dict()
    if isinstance(own, dict) and isinstance(state, dict):
        for key in own:
            (plan.note("restored", join(path, key)) if key in state else plan.missing(join(path, key)))
        for key in state:
            if key not in own:
                plan.unexpected(join(path, key))
    elif isinstance(own, dict) or isinstance(state, dict):
        plan.mismatch(path, own, state)
    else:
        plan.note("restored", path)
    plan.actions.append(lambda: value.load_state_dict(StateDict({"": state}).torch(copy=True)[""]))
