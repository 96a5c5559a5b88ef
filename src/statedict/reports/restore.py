"""RestoreReport: what a restore did, entry by entry."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from statedict.shown import Shown, to_record

RESTORED = ("restored", "renamed", "cast", "reshaped", "tied", "untied", "overridden", "differs", "made")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the tree and what happened to it.

    Attributes:
        path: its path.
        action: one of

            restored, renamed, cast, reshaped   from the state, the last three with what changed
            made            by the module's own loading, from other entries or for an older version
            tied, untied    shares its bytes with another entry; or does so in the state only
            overridden      the caller's value in place of the state's
            skipped         its shape differs and the caller wants it left as it is
            missing, fresh  not in the state, which the caller allows; fresh where it is an optimizer's
            unexpected      only in the state, which the caller allows
            differs         restored, but at odds with another part of the tree

            In `problems` also `shape`, `dtype`, `kind`, `tie`, `groups`, `version` and others, by what is wrong.
        detail: why, or what changed; may be empty.
    """

    path: str
    action: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RestoreReport(Shown):
    """What `restore` did with every entry, or with `dry_run` would do.

    `str(report)` is a summary; `entries` and `to_json()` list every entry.
    """

    entries: tuple[Entry, ...]  # what becomes of each entry
    problems: tuple[Entry, ...] = ()  # what forbids it; only after a dry run, for otherwise they are an error
    written: bool = True  # whether it was done
    notes: tuple[str, ...] = ()  # how names were read: prefixes and wrappers that were set aside, rules, versions
    hints: tuple[str, ...] = ()  # how to fix the problems, ready to copy
    step: int | None = None  # the step of the checkpoint, if it is one of a run

    def counts(self) -> dict[str, int]:
        """Entries by action."""
        return dict(Counter(entry.action for entry in (*self.entries, *self.problems)))

    def paths(self, action: str) -> list[str]:
        """The paths with one action."""
        return [entry.path for entry in (*self.entries, *self.problems) if entry.action == action]

    def to_json(self) -> dict[str, Any]:
        """All fields, and the counts, ready for `json.dumps`."""
        return {"written": self.written, "step": self.step, "counts": self.counts()} | to_record(self)
