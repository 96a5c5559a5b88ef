"""RestoreReport: what a restore did, entry by entry."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown

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
        detail: why, or what changed; empty where nothing is to be said.
    """

    path: str
    action: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RestoreReport(Shown):
    """What `restore` did with every entry, or with `dry_run` would do.

    `str(report)` is a summary, `entries` and `to_json()` have all of it.

    Attributes:
        entries: what becomes of each entry.
        problems: what forbids it; only after a dry run, for otherwise they are an error.
        written: whether it was done.
        notes: how names were read: prefixes and wrappers that were set aside, rules, versions.
        hints: what to do about the problems, ready to copy.
        step: which checkpoint of a run it was.
    """

    entries: tuple[Entry, ...]
    problems: tuple[Entry, ...] = ()
    written: bool = True
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    step: int | None = None

    def counts(self) -> dict[str, int]:
        """Entries by action."""
        return dict(Counter(entry.action for entry in (*self.entries, *self.problems)))

    def paths(self, action: str) -> list[str]:
        """The paths with one action."""
        return [entry.path for entry in (*self.entries, *self.problems) if entry.action == action]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "written": self.written,
            "step": self.step,
            "notes": list(self.notes),
            "hints": list(self.hints),
            "counts": self.counts(),
            "entries": [asdict(entry) for entry in self.entries],
            "problems": [asdict(entry) for entry in self.problems],
        }
