"""The checkpoints of a run, and what `blame`, `bisect`, `about`, `verify_run` and `prune` report about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from statedict.io.urls import redact
from statedict.reports.diff import Measures
from statedict.reports.summary import TensorInfo
from statedict.shown import Shown, to_record

STATES = ("committed", "damaged", "unfinished", "replaced", "foreign")
COMMITTED, DAMAGED, UNFINISHED, REPLACED, FOREIGN = STATES


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run."""

    step: int | None  # of training; None if the name has none
    path: str  # what `statedict.load` opens: a file of ours, or another writer's file or folder; may be a URL
    kind: str  # `statedict` for ours; otherwise the writer, such as `transformers` (see `runs/look/foreign.py`)
    nbytes: int  # total size of its files
    time: float  # when it was saved, in seconds since 1970; 0 if a server does not say
    metrics: Mapping[str, float]  # name → value
    # `committed`, `damaged`, `unfinished` (ours, never committed), `replaced` (a later run began anew over it) or
    # `foreign` (another writer's, read-only); `listing` says which damage it looks for
    state: str
    pinned: bool  # whether it is never pruned
    name: str  # the file or folder in the directory
    damage: str = ""  # what is wrong with it; empty if nothing is known

    @property
    def usable(self) -> bool:
        """Whether it can be opened, as far as is known."""
        return self.state in (COMMITTED, FOREIGN)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; metrics that are not finite become null."""
        record = {"step": self.step, "name": self.name} | to_record(self, nbytes="bytes")
        time = _to_date(self.time) if self.time else None
        return record | {"path": redact(self.path), "time": time, "damage": self.damage or None}


def _to_date(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a file may have a time outside the calendar
        return None


@dataclass(frozen=True, slots=True)
class About:
    """All that is known about one checkpoint."""

    directory: str  # the run
    checkpoint: Checkpoint  # as in the listing
    files: Mapping[str, int]  # name → bytes
    libraries: Mapping[str, str] = field(default_factory=dict)  # name → version; ours only
    not_captured: tuple[str, ...] = ()  # what the saved tree had and the checkpoint lacks; ours only
    tensors: int = 0  # number of tensors
    elements: int = 0  # number of elements in all tensors
    biggest: tuple[TensorInfo, ...] = ()  # the largest tensors, in decreasing size
    base: int | None = None  # the step that it is a delta to

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        record = to_record(self)
        names = {"name": "name", "dtype": "dtype", "shape": "shape", "nbytes": "bytes"}
        biggest = [{new: tensor[old] for old, new in names.items()} for tensor in record["biggest"]]
        return {"directory": self.directory, **record.pop("checkpoint"), **record, "biggest": biggest}


@dataclass(frozen=True, slots=True)
class RunVerified(Shown):
    """Which checkpoints of a run are damaged."""

    directory: str  # the run
    damage: dict[str, str]  # name → what is wrong, empty if sound; in the order of steps
    unfinished: tuple[str, ...] = ()  # names of checkpoints that were never committed, which is not damage
    quick: bool = False  # whether tensor bytes were left unread
    # name of a checkpoint → files in it that were not looked at; under "" those beside the checkpoints
    unread: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no checkpoint is damaged."""
        return not any(self.damage.values())

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        checkpoints = [
            {
                "checkpoint": name,
                "ok": not damage,
                "damage": damage or None,
                "unread": list(self.unread.get(name, ())),
            }
            for name, damage in self.damage.items()
        ]
        head = {"directory": self.directory, "ok": self.ok, "quick": self.quick}
        rest = {"unfinished": list(self.unfinished), "unread": list(self.unread.get("", ()))}
        return head | {"checkpoints": checkpoints, **rest}


@dataclass(frozen=True, slots=True)
class Pruned(Shown):
    """What stays of a run and what goes."""

    kept: dict[int, str]  # step → why it stays
    removed: tuple[int, ...]  # the steps that go, in order
    nbytes: int  # how many bytes that frees

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return to_record(self, nbytes="bytes") | {"kept": [{"step": s, "why": why} for s, why in self.kept.items()]}


@dataclass(frozen=True, slots=True)
class Tried:
    """A checkpoint that `bisect` tested."""

    name: str
    step: int | None
    verdict: str  # `good`, `bad` or `skip`
    seconds: float  # how long the test took

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return to_record(self, name="checkpoint") | {"seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Bisection(Shown):
    """Which checkpoint broke a run."""

    directory: str  # the run
    good: Checkpoint  # the last checkpoint that is known to be good
    bad: Checkpoint  # the first one that is known to be bad
    between: tuple[str, ...]  # names of those between the two, which could not be tested
    tried: tuple[Tried, ...]  # the tests, in order

    @property
    def found(self) -> bool:
        """Whether `bad` is certainly the first bad one."""
        return not self.between

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"directory": self.directory, "found": self.found} | to_record(self)


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that differs from the one in the checkpoint before."""

    name: str  # the checkpoint with the new values
    step: int | None
    before: str  # the checkpoint that it was compared with
    measures: Measures | None  # how far apart the two are; None if dtype or shape changed, or cannot be measured
    note: str = ""  # why there are no measures, such as the new shape

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        head = {"checkpoint": self.name, "step": self.step, "before": self.before}
        return head | (self.measures.to_json() if self.measures else {}) | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Broken:
    """The first checkpoint in which a tensor holds NaN or infinities."""

    name: str  # the checkpoint
    step: int | None
    nan: int  # number of NaN
    inf: int  # number of infinities
    elements: int

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return to_record(self, name="checkpoint")


@dataclass(frozen=True, slots=True)
class History:
    """How one tensor changed over a run."""

    path: str
    dtype: str  # PyTorch's name, in the newest checkpoint that has the tensor
    shape: tuple[int, ...]  # its shape there
    there: tuple[str, ...]  # names of the checkpoints that have it
    changes: tuple[Change, ...] = ()  # where it changed
    broken: Broken | None = None  # where it first held NaN or infinities; None if nowhere

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return to_record(self, path="name", there="checkpoints")


@dataclass(frozen=True, slots=True)
class Blame(Shown):
    """How the tensors of a run changed."""

    directory: str  # the run
    checkpoints: tuple[str, ...]  # names of those that were read, in order
    histories: tuple[History, ...]  # one for each tensor that was asked for, in the order of the newest checkpoint
    skipped: dict[str, str] = field(default_factory=dict)  # name → why it could not be read

    @property
    def broken(self) -> tuple[History, ...]:
        """The tensors that hold NaN or infinities, in the order in which they broke."""
        order = {name: number for number, name in enumerate(self.checkpoints)}
        found = [(order[one.broken.name], one) for one in self.histories if one.broken]
        return tuple(one for _, one in sorted(found, key=lambda item: item[0]))

    def groups(self) -> list[tuple[History, ...]]:
        """Tensors that changed and broke at the same checkpoints, the largest group first."""
        groups: dict[object, list[History]] = {}
        for tensor in self.histories:
            key = tensor.there, tuple(change.name for change in tensor.changes), tensor.broken and tensor.broken.name
            groups.setdefault(key, []).append(tensor)
        return [tuple(group) for group in sorted(groups.values(), key=len, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return to_record(self, histories="tensors")
