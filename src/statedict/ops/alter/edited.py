"""EditReport: what a list of steps makes of a state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from statedict.ops.alter.steps import Step, apply, describe
from statedict.reports.edit import Change, EditReport
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk


def apply_steps(state: StateDict, steps: Iterable[Step], written: bool) -> tuple[StateDict, EditReport]:
    """The state after all steps, and what each of them did.

    Raises:
        AlterError: a step cannot be done.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.
    """
    before = now = dict(_entries(state))
    changes = []
    for step in steps:
        state = apply(state, step)
        old, now = now, dict(_entries(state))
        altered = (path for path, leaf in now.items() if path in old and not _same(old[path], leaf))
        added, removed = (tuple(p for p in one if p not in other) for one, other in ((now, old), (old, now)))
        changes.append(Change(describe(step), added, removed, tuple(altered)))
    counts, sizes = zip(_totals(before), _totals(now), strict=True)
    return state, EditReport(tuple(changes), counts, sizes, written)


def _entries(state: StateDict) -> Iterator[tuple[str, Any]]:
    for path, leaf in walk(state):
        yield path, as_lazy(leaf) if is_array(leaf) else leaf


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, LazyTensor) and isinstance(other, LazyTensor):
        if one is other or one.region == other.region:
            return True
        return not one.nbytes and not other.nbytes and (one.dtype, one.shape) == (other.dtype, other.shape)
    return type(one) is type(other) and bool(one == other)


def _totals(entries: dict[str, Any]) -> tuple[int, int]:
    tensors = [leaf for leaf in entries.values() if isinstance(leaf, LazyTensor)]
    return len(tensors), sum({tensor.region: tensor.nbytes for tensor in tensors}.values())
