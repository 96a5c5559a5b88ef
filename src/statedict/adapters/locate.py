"""Where in a checkpoint the state of an object is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statedict.adapters import join
from statedict.adapters.plan import Options, Plan
from statedict.reports.restore import RESTORED

_DEEP = 3


def locate(target: Any, state: Any) -> tuple[str, Any] | None:
    """The path and the entry of a state that fits an object best, by how many of its entries that has.

    Args:
        target: a module, an optimizer or anything else that can be restored.
        state: a checkpoint.

    Returns:
        None where no entry could be an optimizer's, and the object is an optimizer.

    >>> import torch
    >>> locate(torch.nn.Linear(2, 1), {"epoch": 3, "net": {"weight": torch.ones(1, 2), "bias": torch.ones(1)}})[0]
    'net'
    """
    wanted = hasattr(target, "param_groups")
    places = [place for place in _places(state, "") if _is_optimizer(place[1]) is wanted]
    return max(places, key=lambda place: _count_fitting(target, place[1]), default=None)


def _is_optimizer(entry: Any) -> bool:
    return isinstance(entry, dict) and "state" in entry and "param_groups" in entry


def fits(target: Any, state: Any) -> bool:
    """Whether a state can be restored into an object as it is."""
    return not _trial(target, state).problems


def _places(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        yield path, state
    if path.count(".") < _DEEP - 1 and not _is_optimizer(state):
        for key, child in state.items() if isinstance(state, dict) else enumerate(state):
            if isinstance(child, dict | list | tuple):
                yield from _places(child, join(path, key))


def _count_fitting(target: Any, state: Any) -> int:
    plan = _trial(target, state)
    good = sum(entry.action in RESTORED for entry in plan.entries)
    return good - sum(problem.action not in ("missing", "shape", "dtype") for problem in plan.problems)


def _trial(target: Any, state: Any) -> Plan:
    plan = Plan(Options(cast=("*",)))
    plan.tree(target, state)
    return plan
