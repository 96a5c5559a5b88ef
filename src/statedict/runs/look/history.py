"""At which steps the tensors of a run changed, by how much, and since when they have held NaN.

Of our checkpoints the digests in the manifests say what changed, and only what changed is read; the tensors of other
writers are compared byte by byte. Each is compared with the same one in the checkpoint before that has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from statedict.api.files import load
from statedict.collector import Paused
from statedict.errors import FileError, FormatError, RunError
from statedict.io.urls import redact, to_name
from statedict.ops.diff.compare import compare
from statedict.ops.diff.measure import Rule, comparable
from statedict.ops.stats.survey import survey
from statedict.render.diff_text import measures
from statedict.render.text import capped, shape
from statedict.reports.diff import Measures
from statedict.runs.directory import LOOKS, Directory
from statedict.runs.look.listing import COMMITTED, Checkpoint, listing, look_again
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import chosen, matches
from statedict.values import abbreviate, count

_BATCH = 512  # tensors that are compared at a time
_SHOWN = 20
_GONE = "was removed meanwhile"


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor is not what it was in the checkpoint before.

    Attributes:
        name: of the checkpoint in which it is another one.
        step: its step.
        before: the name of the checkpoint that it was compared with.
        measures: how far the two are apart; None where dtype or shape have changed, or cannot be measured.
        note: what else there is to say, such as the new shape.
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

    def __str__(self) -> str:
        if self.measures is None:
            return self.note
        return measures(self.measures, cosine=False)


@dataclass(frozen=True, slots=True)
class Broken:
    """The first checkpoint in which a tensor holds numbers that are not finite.

    Attributes:
        name: of the checkpoint.
        step: its step.
        nan: how many elements are NaN.
        inf: how many are infinite.
        elements: how many there are.
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

    def __str__(self) -> str:
        return f"since {self.name}: {self.nan:,} NaN, {self.inf:,} infinite of {self.elements:,}"


@dataclass(frozen=True, slots=True)
class History:
    """What became of a tensor in the course of a run.

    Attributes:
        path: its path.
        dtype: PyTorch's name, in the newest checkpoint that has it.
        shape: its shape there.
        there: the names of the checkpoints that have it.
        changes: where it changed; empty if it never did.
        broken: since when it has held NaN or infinities; None if it never did.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    there: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    broken: Broken | None = None

    @property
    def when(self) -> str:
        """At which checkpoints it changed, in words."""
        if not self.changes:
            return "never changed" if len(self.there) > 1 else "in one checkpoint only"
        if len(self.changes) == len(self.there) - 1:
            return "changed at every step"
        names = [change.name for change in self.changes]
        cut = [*names[:6], f"… and {len(names) - 7} more, {names[-1]}"] if len(names) > 8 else names
        return f"changed at {', '.join(cut)}"

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
class Blame:
    """What `blame` found.

    Attributes:
        directory: of the run.
        checkpoints: the names of those that were looked at, in order.
        histories: every tensor that was asked for, in the order of the newest checkpoint.
        skipped: name → why it could not be read.
    """

    directory: str
    checkpoints: tuple[str, ...]
    histories: tuple[History, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[History, ...]:
        """The tensors that hold NaN or infinities since some step, those that broke first first."""
        order = {name: number for number, name in enumerate(self.checkpoints)}
        found = [(order[one.broken.name], one) for one in self.histories if one.broken]
        return tuple(one for _, one in sorted(found, key=lambda item: item[0]))

    def groups(self) -> list[tuple[History, ...]]:
        """The tensors with one history each: changed, and broken, at the same checkpoints; the largest group first."""

        def key(one: History) -> tuple[Any, ...]:
            return one.there, tuple(change.name for change in one.changes), one.broken and one.broken.name

        found: dict[tuple[Any, ...], list[History]] = {}
        for one in self.histories:
            found.setdefault(key(one), []).append(one)
        return [tuple(one) for one in sorted(found.values(), key=len, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            "checkpoints": list(self.checkpoints),
            "tensors": [one.to_json() for one in self.histories],
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, limit: int | None = _SHOWN) -> Iterator[str]:
        """As text: tensors with the same history together, single ones change by change.

        Args:
            limit: how many groups, tensors of a group, and changes of a tensor there may be; None for all.
        """
        where = f"{count(len(self.checkpoints), 'checkpoint')}, {self.checkpoints[0]} to {self.checkpoints[-1]}"
        yield f"{count(len(self.histories), 'tensor')} in {where}"
        groups = self.groups()
        for group in groups[:limit]:
            yield group[0].when + (f": {count(len(group), 'tensor')}" if len(group) > 1 else "")
            for one in group[:limit]:
                yield "  " + "  ".join([one.path, one.dtype, shape(one.shape), *self._span(one, len(group) > 1)])
                if len(group) == 1:
                    changes = (f"{change.name}  {change}" for change in one.changes[:limit])
                    yield from (f"    {line}" for line in capped(changes, len(one.changes), limit))
            yield from (f"  {line}" for line in capped((), len(group), limit))
        if limit is not None and len(groups) > limit:
            yield f"… and {sum(map(len, groups[limit:])):,} tensors with {len(groups) - limit:,} other histories"
        for number, (name, some) in enumerate(groupby(self.broken, key=lambda one: one.broken and one.broken.name)):
            paths = abbreviate([one.path for one in some])
            yield f"{'then' if number else 'first'} NaN or infinite at {name}: {paths}"
        for name, why in self.skipped.items():
            yield f"skipped {name}: {why}"

    def _span(self, one: History, together: bool) -> Iterator[str]:
        sizes = [change.measures.relative for change in one.changes if change.measures is not None]
        if together and sizes:
            yield f"rel {sizes[0]:.2e}" + (f" … {sizes[-1]:.2e}" if len(sizes) > 1 else "")
        if len(one.there) < len(self.checkpoints):
            yield f"in {len(one.there):,} of {len(self.checkpoints):,} checkpoints"
        if one.broken is not None:
            yield str(one.broken)


def blame(
    directory: str | os.PathLike[str], patterns: Sequence[str] | str = "*", *, executor: Executor | None = None
) -> Blame:
    """At which steps tensors changed, by how much, and when they got their first NaN or infinity.

    Args:
        directory: of a run, or its URL; whoever wrote it.
        patterns: of the tensors, such as `layers.3.*`.
        executor: as for `save`.

    Raises:
        RunError: it has no checkpoint that can be read.
        PatternError: a pattern matches no tensor.
        StateDictError: what `listing` raises.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs import blame
    >>> with CheckpointManager(tempfile.mkdtemp(), background=False) as manager:
    ...     for step in (1, 2, 3):
    ...         _ = manager.save(step, {"w": numpy.ones(4) * step, "frozen": numpy.ones(4)})
    >>> print(blame(manager.directory))
    2 tensors in 3 checkpoints, 1 to 3
    changed at every step
      w  float64  4
        2  rel 1.00e+00  max 1  100.0% of 4
        3  rel 5.00e-01  max 1  100.0% of 4
    never changed
      frozen  float64  4
    """
    globs = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    files = Directory(to_name(directory))
    for _ in range(LOOKS):
        looker, seen, skipped = _look(directory, files, globs, executor)
        if looker.names or _GONE not in skipped.values():  # else all of them were removed meanwhile, for others
            break
    if not looker.names:
        raise RunError(f"{redact(files.path)}: has no checkpoint with a step that can be read")
    chosen(seen, globs, "tensor")
    return Blame(redact(files.path), tuple(looker.names), looker.histories(), skipped)


def _look(
    directory: str | os.PathLike[str], files: Directory, globs: Sequence[str], executor: Executor | None
) -> tuple[_Looker, set[str], dict[str, str]]:
    """All checkpoints looked at, the paths of all tensors, and what was skipped."""
    skipped: dict[str, str] = {}
    looker = _Looker(executor)
    seen: set[str] = set()
    for one in listing(directory):
        if one.step is None:
            continue
        if not one.usable:
            skipped[one.name] = one.damage
            continue
        try:
            with Paused():
                tensors = load(one.path).tensors()
            digests = _digests(files, one)
        except (FormatError, FileError) as error:
            gone = look_again(directory, one) != one
            skipped[one.name] = _GONE if gone else str(error)
            continue
        seen |= tensors.keys()
        wanted = {path: tensor for path, tensor in tensors.items() if matches(path, globs)}
        looker.add(one, wanted, digests)
    return looker, seen, skipped


def _digests(files: Directory, one: Checkpoint) -> dict[str, str]:
    """Path → digest, of a checkpoint that has them."""
    if one.state != COMMITTED or one.step is None:
        return {}
    return {entry.path: entry.digest for entry in files.manifest(one.step).entries if entry.digest}


class _Last:
    """A tensor as it was seen last."""

    __slots__ = ("broken", "changes", "digest", "name", "tensor", "there")

    def __init__(self) -> None:
        self.name, self.digest = "", ""
        self.tensor: LazyTensor | None = None
        self.there: list[str] = []
        self.changes: list[Change] = []
        self.broken: Broken | None = None


class _Looker:
    """What is known of each tensor after so many checkpoints."""

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._known: dict[str, _Last] = {}
        self.names: list[str] = []

    def histories(self) -> tuple[History, ...]:
        return tuple(
            History(
                path, one.tensor.dtype.name, tuple(one.tensor.shape), tuple(one.there), tuple(one.changes), one.broken
            )
            for path, one in self._known.items()
            if one.tensor is not None
        )

    def add(self, checkpoint: Checkpoint, tensors: dict[str, LazyTensor], digests: dict[str, str]) -> None:
        """Look at one more."""
        self.names.append(checkpoint.name)
        pairs: dict[str, tuple[LazyTensor, LazyTensor]] = {}
        whole: dict[str, LazyTensor] = {}
        for path, tensor in tensors.items():
            one = self._known.setdefault(path, _Last())
            digest = digests.get(path, "")
            alike = one.tensor is not None and _alike(one.tensor, tensor)
            if one.tensor is None:
                whole[path] = tensor
            elif not alike or not comparable(one.tensor.dtype, tensor.dtype):
                whole[path] = tensor
                if alike:
                    pairs[path] = (one.tensor, tensor)
                else:
                    one.changes.append(
                        Change(checkpoint.name, checkpoint.step, one.name, None, _other(one.tensor, tensor))
                    )
            elif not (digest and digest == one.digest):
                pairs[path] = (one.tensor, tensor)
        for path, found in self._compared(pairs).items():
            one = self._known[path]
            if found.changed or found.elements == 0:
                known = found if found.elements else None
                note = "" if known else "other bytes"
                one.changes.append(Change(checkpoint.name, checkpoint.step, one.name, known, note))
                if found.nonfinite and one.broken is None:
                    whole[path] = tensors[path]
        self._look_for_nan(checkpoint, {path: one for path, one in whole.items() if not self._known[path].broken})
        for path, tensor in tensors.items():
            one = self._known[path]
            one.name, one.tensor, one.digest = checkpoint.name, tensor, digests.get(path, "")
            one.there.append(checkpoint.name)

    def _compared(self, pairs: dict[str, tuple[LazyTensor, LazyTensor]]) -> dict[str, Measures]:
        """What differs."""
        found: dict[str, Measures] = {}
        paths = [*pairs]
        for at in range(0, len(paths), _BATCH):
            some = paths[at : at + _BATCH]
            tallies = compare([pairs[path] for path in some], Rule(), self._executor)
            found |= {path: tally.measures() for path, tally in zip(some, tallies, strict=True) if tally is not None}
        return found

    def _look_for_nan(self, checkpoint: Checkpoint, tensors: dict[str, LazyTensor]) -> None:
        floating = {path: tensor for path, tensor in tensors.items() if tensor.dtype.kind in ("float", "complex")}
        if not floating:
            return
        for one in survey(StateDict(floating), None, self._executor).tensors:
            if one.nan or one.inf:
                known = self._known[one.name]
                known.broken = Broken(checkpoint.name, checkpoint.step, one.nan, one.inf, one.elements)


def _alike(one: LazyTensor, other: LazyTensor) -> bool:
    return one.dtype is other.dtype and tuple(one.shape) == tuple(other.shape)


def _other(one: LazyTensor, other: LazyTensor) -> str:
    return " → ".join(f"{tensor.dtype.name} {shape(tensor.shape)}" for tensor in (one, other))
