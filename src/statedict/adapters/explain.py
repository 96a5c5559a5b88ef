"""Entries of a restore in words: the problems by kind and the remedy, as errors and reports have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from statedict.reports.restore import Entry, RestoreReport

_SHOWN = 3  # paths of a kind
_REASONS = 2
_LINES = 5


def findings(report: RestoreReport) -> list[str]:
    """The problems by kind, and what to do about them."""
    return [*summary(report.problems), *report.hints]


def summary(entries: Iterable[Entry]) -> list[str]:
    """At most five lines, one an action: how many, the first few, why; reasons that many share get their own line."""
    actions: dict[str, list[Entry]] = {}
    for entry in entries:
        actions.setdefault(entry.action, []).append(entry)
    lines = []
    for action, members in actions.items():
        common = [detail for detail, count in Counter(e.detail for e in members).most_common(_REASONS) if count > 1]
        groups: dict[str | None, list[Entry]] = {}
        for entry in members:
            groups.setdefault(entry.detail if entry.detail in common else None, []).append(entry)
        for group in groups.values():
            paths = [entry.path or "the whole" for entry in group[:_SHOWN]] + ["…"] * (len(group) > _SHOWN)
            detail = f" ({group[0].detail})" if group[0].detail else ""
            lines.append(f"  {len(group):,} {action}: {', '.join(paths)}{detail}")
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"  and {len(lines) - _LINES + 1} kinds more"]


def remedy(problems: Sequence[Entry]) -> str:
    """What to pass so that missing or unexpected entries are no error."""
    wanted: dict[str, Any] = {}
    for action, option in (("missing", "allow_missing"), ("unexpected", "allow_unexpected")):
        paths = [entry.path for entry in problems if entry.action == action]
        if paths:
            wanted[option] = paths if len(paths) <= _SHOWN else _globs(paths)
    options = ", ".join(f"{option}={paths!r}" for option, paths in wanted.items())
    return f"fix the names, or pass {options} to accept it" if options else ""


def _globs(paths: list[str]) -> list[str]:
    """A few globs that match all paths: as deep as a few can be."""
    split = [path.split(".") for path in paths]
    for depth in range(max(map(len, split)), 0, -1):
        globs = {".".join([*keys[:depth], "*"] if len(keys) > depth else keys) for keys in split}
        if len(globs) <= min(2 * _SHOWN, len(paths) - 1):
            return sorted(globs)
    return ["*"]
