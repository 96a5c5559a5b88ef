"""The checkpoints of a run, and what `blame`, `bisect`, `about`, `verify_run` and `prune` report about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from statedict.io.urls import redact
from statedict.reports.diff import Measures
from statedict.reports.summary import TensorInfo
from statedict.shown import Shown

STATES = ("committed", "damaged", "unfinished", "replaced", "foreign")
COMMITTED, DAMAGED, UNFINISHED, REPLACED, FOREIGN = STATES


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
        step: the step of training; None if the name has none.
        path: what `statedict.load` opens: a file of ours, or another writer's file or folder. May be a URL.
        kind: `statedict` for ours; otherwise the writer, such as `transformers` (see `runs/look/foreign.py`).
        nbytes: total size of its files.
        time: when it was saved, in seconds since 1970; 0 if a server does not say.
        metrics: name → value.
        state: `committed`, `damaged`, `unfinished` (ours, never committed), `replaced` (a later run began anew over
            it) or `foreign` (another writer's, read-only). `listing` says which damage it looks for.
        pinned: whether it is never pruned.
        name: the file or folder in the directory.
        damage: what is wrong with it; empty if nothing is known.
    """

    step: int | None
    path: str
    kind: str
    nbytes: int
    time: float
    metrics: Mapping[str, float]
    state: str
    pinned: bool
    name: str
    damage: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be opened, as far as is known."""
        return self.state in (COMMITTED, FOREIGN)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; metrics that are not finite become null."""
        return {
            "step": self.step,
            "name": self.name,
            "path": redact(self.path),
            "kind": self.kind,
            "bytes": self.nbytes,
            "time": _to_date(self.time) if self.time else None,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "state": self.state,
            "pinned": self.pinned,
            "damage": self.damage or None,
        }


def _to_date(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a file may have a time outside the calendar
        return None


@dataclass(frozen=True, slots=True)
class About:
    """All that is known about one checkpoint.

    Attributes:
        directory: the run.
        checkpoint: as in the listing.
        files: name → bytes.
        libraries: name → version; ours only.
        not_captured: what the saved tree had and the checkpoint lacks; ours only.
        tensors: number of tensors.
        elements: number of elements in all tensors.
        biggest: the largest tensors, in decreasing size.
    """

    directory: str
    checkpoint: Checkpoint
    files: Mapping[str, int]
    libraries: Mapping[str, str] = field(default_factory=dict)
    not_captured: tuple[str, ...] = ()
    tensors: int = 0
    elements: int = 0
    biggest: tuple[TensorInfo, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            **self.checkpoint.to_json(),
            "files": dict(self.files),
            "libraries": dict(self.libraries),
            "not_captured": list(self.not_captured),
            "tensors": self.tensors,
            "elements": self.elements,
            "biggest": [
                {"name": one.path, "dtype": one.dtype, "shape": list(one.shape), "bytes": one.nbytes}
                for one in self.biggest
            ],
        }


@dataclass(frozen=True, slots=True)
class RunVerified(Shown):
    """Which checkpoints of a run are damaged.

    Attributes:
        directory: the run.
        damage: name → what is wrong, empty if sound; in the order of steps.
        unfinished: names of checkpoints that were never committed, which is not damage.
        quick: whether tensor bytes were left unread.
    """

    directory: str
    damage: dict[str, str]
    unfinished: tuple[str, ...] = ()
    quick: bool = False

    @property
    def ok(self) -> bool:
        """Whether no checkpoint is damaged."""
        return not any(self.damage.values())

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            "ok": self.ok,
            "quick": self.quick,
            "checkpoints": [
                {"checkpoint": name, "ok": not damage, "damage": damage or None} for name, damage in self.damage.items()
            ],
            "unfinished": list(self.unfinished),
        }


@dataclass(frozen=True, slots=True)
class Pruned(Shown):
    """What stays of a run and what goes.

    Attributes:
        kept: step → why it stays.
        removed: the steps that go, in order.
        nbytes: how many bytes that frees.
    """

    kept: dict[int, str]
    removed: tuple[int, ...]
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        kept = [{"step": step, "why": why} for step, why in self.kept.items()]
        return {"kept": kept, "removed": list(self.removed), "bytes": self.nbytes}


@dataclass(frozen=True, slots=True)
class Tried:
    """A checkpoint that `bisect` tested.

    Attributes:
        name: its name.
        step: its step.
        verdict: `good`, `bad` or `skip`.
        seconds: how long the test took.
    """

    name: str
    step: int | None
    verdict: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"checkpoint": self.name, "step": self.step, "verdict": self.verdict, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Bisection(Shown):
    """Which checkpoint broke a run.

    Attributes:
        directory: the run.
        good: the last checkpoint that is known to be good.
        bad: the first one that is known to be bad.
        between: names of those between the two, which could not be tested.
        tried: the tests, in order.
    """

    directory: str
    good: Checkpoint
    bad: Checkpoint
    between: tuple[str, ...]
    tried: tuple[Tried, ...]

    @property
    def found(self) -> bool:
        """Whether `bad` is certainly the first bad one."""
        return not self.between

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            "found": self.found,
            "good": self.good.to_json(),
            "bad": self.bad.to_json(),
            "between": list(self.between),
            "tried": [one.to_json() for one in self.tried],
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that differs from the one in the checkpoint before.

    Attributes:
        name: the checkpoint with the new values.
        step: its step.
        before: the checkpoint that it was compared with.
        measures: how far apart the two are; None if dtype or shape changed, or cannot be measured.
        note: why there are no measures, such as the new shape.
    """

    name: str
    step: int | None
    before: str
    measures: Measures | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        head = {"checkpoint": self.name, "step": self.step, "before": self.before}
        return head | (self.measures.to_json() if self.measures else {}) | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Broken:
    """The first checkpoint in which a tensor holds NaN or infinities.

    Attributes:
        name: the checkpoint.
        step: its step.
        nan: number of NaN.
        inf: number of infinities.
        elements: number of elements.
    """

    name: str
    step: int | None
    nan: int
    inf: int
    elements: int

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        head = {"checkpoint": self.name, "step": self.step}
        return head | {"nan": self.nan, "inf": self.inf, "elements": self.elements}


@dataclass(frozen=True, slots=True)
class History:
    """How one tensor changed over a run.

    Attributes:
        path: its path.
        dtype: PyTorch's name, in the newest checkpoint that has the tensor.
        shape: its shape there.
        there: names of the checkpoints that have it.
        changes: where it changed.
        broken: where it first held NaN or infinities; None if nowhere.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    there: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    broken: Broken | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "name": self.path,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "checkpoints": list(self.there),
            "changes": [change.to_json() for change in self.changes],
            "broken": self.broken and self.broken.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Blame(Shown):
    """How the tensors of a run changed.

    Attributes:
        directory: the run.
        checkpoints: names of those that were read, in order.
        histories: one for each tensor that was asked for, in the order of the newest checkpoint.
        skipped: name → why it could not be read.
    """

    directory: str
    checkpoints: tuple[str, ...]
    histories: tuple[History, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[History, ...]:
        """The tensors that hold NaN or infinities, in the order in which they broke."""
        order = {name: number for number, name in enumerate(self.checkpoints)}
        found = [(order[one.broken.name], one) for one in self.histories if one.broken]
        return tuple(one for _, one in sorted(found, key=lambda item: item[0]))

    def groups(self) -> list[tuple[History, ...]]:
        """Tensors that changed and broke at the same checkpoints, the largest group first."""
        found: dict[object, list[History]] = {}
        for one in self.histories:
            key = one.there, tuple(change.name for change in one.changes), one.broken and one.broken.name
            found.setdefault(key, []).append(one)
        return [tuple(one) for one in sorted(found.values(), key=len, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            "checkpoints": list(self.checkpoints),
            "tensors": [one.to_json() for one in self.histories],
            "skipped": self.skipped,
        }
