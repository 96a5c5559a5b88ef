"""EditReport: what a list of steps did to a state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown
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


def _line(change: Change) -> str:
    parts = []
    for what, paths in (("removed", change.removed), ("added", change.added), ("altered", change.altered)):
        if paths:
            parts.append(f"{len(paths):,} {what}: {', '.join(paths[:2])}" + ", …" * (len(paths) > 2))
    return f"{change.step}: " + ("; ".join(parts) or "nothing changed")
