"""EditReport: what a list of steps makes of a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from statedict.ops.alter.steps import Step, apply, describe
from statedict.reports.edit import Change, EditReport
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.layout import Layout
from statedict.tree.state_dict import StateDict


def apply_steps(state: StateDict, steps: Iterable[Step], written: bool) -> tuple[StateDict, EditReport]:
    """The state after all steps, and what each of them did.

    Raises:
        AlterError: a step cannot be done.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.
    """
    layout = Layout(state)
    before = now = layout.entries()
    changes = []
    for step in steps:
        layout = apply(layout, step)
        old, now = now, layout.entries()
        altered = (path for path, leaf in now.items() if path in old and not _is_same(old[path], leaf))
        added, removed = (tuple(p for p in one if p not in other) for one, other in ((now, old), (old, now)))
        changes.append(Change(describe(step), added, removed, tuple(altered)))
    held, holds = ([leaf for leaf in entries.values() if is_array(leaf)] for entries in (before, now))
    nbytes = _count_bytes(held)
    same = [*map(id, held)] == [*map(id, holds)]
    sizes = nbytes, nbytes if same else _count_bytes(holds)
    return layout.tree, EditReport(tuple(changes), (len(held), len(holds)), sizes, written)


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if is_array(one) and is_array(other):
        one, other = as_lazy(one), as_lazy(other)
        alike = one.dtype is other.dtype and one.shape == other.shape
        return alike and (not one.nbytes or bool(one.region == other.region))
    return type(one) is type(other) and bool(one == other)


def _count_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, tied ones once."""
    return sum({tensor.region: tensor.nbytes for tensor in map(as_lazy, tensors)}.values())
