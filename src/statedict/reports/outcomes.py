"""What `edit`, `restore`, `scan` and `verify` report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from statedict.shown import Shown, to_record
from statedict.tensor.checks import Problem

RESTORED = ("restored", "renamed", "cast", "reshaped", "tied", "untied", "overridden", "differs", "made")
DATA, OPAQUE, UNREADABLE, DANGEROUS = "data", "opaque", "unreadable", "dangerous"  # verdicts of a scan
WORST_FIRST = (DANGEROUS, OPAQUE, UNREADABLE, DATA)
_SHOWN = 3  # paths of a kind
_REASONS = 2
_LINES = 5


@dataclass(frozen=True, slots=True)
class Change:
    """What one step, written as one line, did: the paths that it added, removed and altered."""

    step: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    altered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What becomes of the files beside the model in a folder of Hugging Face's, when it is written into another."""

    copied: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)  # file → why it is not copied
    notes: tuple[str, ...] = ()  # what was changed in them

    def lines(self) -> Iterator[str]:
        """What there is to say of it."""
        if self.copied:
            yield f"with {', '.join(self.copied)}"
        if self.left:
            yield f"without {', '.join(f'{name} ({why})' for name, why in self.left.items())}"
        yield from (f"note: {note}" for note in self.notes)


@dataclass(frozen=True, slots=True)
class EditReport(Shown):
    """What `edit` did, or with `dry_run` would do."""

    changes: tuple[Change, ...]  # one for each step
    tensors: tuple[int, int]  # how many there were before, and are now
    nbytes: tuple[int, int]  # bytes of tensors before and now; tied ones count once
    written: bool  # whether a file was written
    files: SideFiles = field(default_factory=SideFiles)  # what became of the files beside the model
    notes: tuple[str, ...] = ()  # what else changed

    def with_files(self, files: SideFiles) -> EditReport:
        """The same with what became of the files beside the model."""
        return replace(self, files=files)


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """How many of the elements of a tensor are NaN, and how many infinite."""

    path: str
    elements: int
    nan: int
    inf: int


@dataclass(frozen=True, slots=True)
class VerifyReport(Shown):
    """What `verify` found in a file, or in the files of a checkpoint."""

    file: str
    format: str  # the name of its format
    tensors: int = 0  # how many it holds
    parts: int = 0  # how many parts it has: records of an archive, or the header and each tensor
    nbytes: int = 0  # bytes that were read
    crcs: int = 0  # how many CRC-32 were compared
    digests: int = 0  # how many digests were compared
    problems: tuple[Problem, ...] = ()  # what is wrong; empty if the file is fine
    notes: tuple[str, ...] = ()  # remarks, not damage
    unread: tuple[str, ...] = ()  # files of a folder that were not looked at
    nonfinite: tuple[Nonfinite, ...] | None = None  # tensors with NaN or infinities; None if these were not asked for

    @property
    def ok(self) -> bool:
        """Whether there are no problems. NaN and infinities are values, not damage."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All fields, and `ok`, ready for `json.dumps`."""
        return {"file": self.file, "ok": self.ok} | to_record(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One global that a pickle names, or a part that was not read."""

    member: str  # the archive's member that holds the pickle; empty for the file itself
    offset: int  # of the opcode that names it first, in that member
    module: str  # as the pickle spells it; empty for a part that was not read
    name: str  # as the pickle spells it
    verdict: str  # `data`, `opaque` or `dangerous`
    why: str  # the reason, in a few words
    called: int  # how many opcodes call it, instantiate it or set its state; 0 if it is only named
    count: int  # how many opcodes name it

    @property
    def qualified(self) -> str:
        """Module and name, joined by a dot."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True, slots=True)
class ScanReport(Shown):
    """What `scan` found in a file or a folder."""

    file: str
    pickles: int
    globals: tuple[Finding, ...]  # what they name, the worst first
    notes: tuple[str, ...]  # remarks
    damage: tuple[str, ...]  # parts that could not be read to their end

    @property
    def verdict(self) -> str:
        """The worst verdict: `dangerous`, `opaque`, `unreadable` or `data`."""
        verdicts = {found.verdict for found in self.globals} | ({UNREADABLE} if self.damage else set())
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), DATA)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the verdict, ready for `json.dumps`."""
        return {"file": self.file, "verdict": self.verdict} | to_record(self)


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


def explain_problems(report: RestoreReport) -> list[str]:
    """The problems by kind, and what to do about them."""
    return [*summarize_entries(report.problems), *report.hints]


def summarize_entries(entries: Iterable[Entry]) -> list[str]:
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


def suggest_options(problems: Sequence[Entry]) -> str:
    """What to pass so that missing or unexpected entries are not errors."""
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
