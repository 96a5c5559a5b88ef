"""EditReport: what a list of steps did to a state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown


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
        """All fields, as JSON."""
        return asdict(self)
