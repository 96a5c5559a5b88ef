"""EditReport: what a list of steps makes of a state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from statedict.html import Shown
from statedict.ops.recipe import Step, apply, describe
from statedict.paths import walk
from statedict.tensor import LazyTensor, as_lazy, is_array
from statedict.tree import StateDict
from statedict.values import human_bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What one step did.

    Attributes:
        step: the step in one line.
        added: paths that were not there before.
        removed: paths that are no more.
        altered: paths whose entry is another one.
    """

    step: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    altered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EditReport(Shown):
    """What `edit` did, or with `dry_run` would do.

    Attributes:
        changes: step by step.
        tensors: how many tensors there were before, and are now.
        nbytes: bytes of tensors before and now; tied ones count once.
        written: whether a file was written.
    """

    changes: tuple[Change, ...]
    tensors: tuple[int, int]
    nbytes: tuple[int, int]
    written: bool

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As text, of which a line may hold a name with line breaks in it."""
        return [*map(_line, self.changes), self.total()]

    def total(self) -> str:
        """How large the state was, and is now."""
        before, after = map(human_bytes, self.nbytes)
        text = f"{self.tensors[0]:,} tensors, {before} → {self.tensors[1]:,} tensors, {after}"
        return text if self.written else text + " (nothing was written)"

    def _repr_html_(self) -> str:
        from statedict.ops.html import edit

        return edit(self)


def _line(change: Change) -> str:
    parts = []
    for what, paths in (("removed", change.removed), ("added", change.added), ("altered", change.altered)):
        if paths:
            parts.append(f"{len(paths):,} {what}: {', '.join(paths[:2])}" + ", …" * (len(paths) > 2))
    return f"{change.step}: " + ("; ".join(parts) or "nothing changed")


def edited(state: StateDict, steps: Iterable[Step], written: bool) -> tuple[StateDict, EditReport]:
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
        return one is other or _where(one) == _where(other)
    return type(one) is type(other) and bool(one == other)


def _where(tensor: LazyTensor) -> Any:
    return tensor.storage.key, tensor.offset, tensor.shape, tensor.strides, tensor.dtype


def _totals(entries: dict[str, Any]) -> tuple[int, int]:
    tensors = [leaf for leaf in entries.values() if isinstance(leaf, LazyTensor)]
    return len(tensors), sum({_where(tensor): tensor.nbytes for tensor in tensors}.values())
