"""Anything with `state_dict()` and `load_state_dict()`: schedulers, GradScaler, samplers, metrics, data loaders.

What has `check_state_dict(state)` too, which yields why it cannot take a state, is asked before anything is written.
"""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, join
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import Plan
from statedict.tree.state_dict import StateDict, like

STAGE = 0


def accepts(value: Any) -> bool:
    """Whether it has both methods; a class that has them is no object that holds state."""
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    return context.data(value.state_dict(), path, value)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare the names of the first level; then `load_state_dict`."""
    own = value.state_dict()
    if isinstance(own, dict) and isinstance(state, dict):
        chosen = like(state, StateDict(state))
        for key in own:
            if key not in state:
                plan.missing(join(path, key))
                continue
            full = join(path, key)
            chosen[key] = plan.overridden(full, state[key])
            if chosen[key] is state[key]:
                plan.note("restored", full)
                plan.keep(chosen, key, plan.settle(state[key], own[key], full))
            else:
                plan.note("overridden", full, f"{state[key]!r:.40} of the state by {chosen[key]!r:.40}")
        for key in state:
            if key in own:
                continue
            if own:  # what has no state yet, such as a sampler before it starts, takes any
                plan.unexpected(join(path, key))
            plan.keep(chosen, key, plan.settle(state[key], None, join(path, key)))
        state = chosen
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
    plan.act(path, lambda: value.load_state_dict(StateDict({"": state}).torch(copy=True)[""]))
