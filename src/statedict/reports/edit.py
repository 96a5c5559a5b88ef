"""EditReport: what a list of steps did to a state."""

from __future__ import annotations

from dataclasses import dataclass

from statedict.shown import Shown


@dataclass(frozen=True, slots=True)
class Change:
    """What one step, written as one line, did: the paths that it added, removed and altered."""

    step: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    altered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EditReport(Shown):
    """What `edit` did, or with `dry_run` would do."""

    changes: tuple[Change, ...]  # one for each step
    tensors: tuple[int, int]  # how many there were before, and are now
    nbytes: tuple[int, int]  # bytes of tensors before and now; tied ones count once
    written: bool  # whether a file was written
