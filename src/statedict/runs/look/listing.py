"""The checkpoints in a directory, whoever wrote them: ours, and those of other libraries, which are only read."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from statedict.api.look import verify
from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError, RunError, UnsupportedError
from statedict.io.location import location
from statedict.io.parallel import REMOTE_WORKERS, parallel
from statedict.io.urls import Item, join, redact, to_name
from statedict.runs.directory import LOOKS, Directory, GoneError, is_step
from statedict.runs.keep import check_mode
from statedict.runs.look.foreign import Foreign, recognize, step_of
from statedict.runs.manifest import DATA, MARKER, NAME, WHOLE
from statedict.runs.replaced import NAME as REPLACED_NAME
from statedict.runs.replaced import find_superseded
from statedict.values import count

_DIGITS = 1000  # that a number has at most which is looked at; zeros may stand before it

STATES = ("committed", "damaged", "unfinished", "replaced", "foreign")
COMMITTED, DAMAGED, UNFINISHED, REPLACED, FOREIGN = STATES


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
        step: the step of training; None if its name has none.
        path: what `statedict.load` opens: the file of one of ours, a file or folder of another writer. Or its URL.
        kind: `statedict` for ours; otherwise a name of the table in `foreign.py`, such as `transformers`.
        nbytes: bytes of its files.
        time: when it was saved, in seconds since 1970; 0 where a server does not say.
        metrics: by name.
        state: `committed`, `damaged`, `unfinished` (ours, without its marker), `replaced` (by a run begun anew, whose
            course it is not part of) or `foreign` (another writer's, which is only read). Of the damage that is looked
            for, see `listing`.
        pinned: whether it is never pruned.
        name: the file or folder in the directory.
        damage: what is wrong with it, in words; empty if nothing is known.
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
        """All fields, as JSON; metrics that are not finite are null."""
        return {
            "step": self.step,
            "name": self.name,
            "path": redact(self.path),
            "kind": self.kind,
            "bytes": self.nbytes,
            "time": _date(self.time) if self.time else None,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "state": self.state,
            "pinned": self.pinned,
            "damage": self.damage or None,
        }


def _date(seconds: float) -> str | None:
    """A time in UTC; None of a file's that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def listing(directory: str | os.PathLike[str]) -> list[Checkpoint]:
    """The checkpoints in a directory, whoever wrote them.

    Of ours the manifest is read and its files' sizes are compared with it; their bytes are not, see
    `statedict runs verify`. Nothing in the files of others is executed, and files that are no checkpoints are left out.

    Args:
        directory: or its URL.

    Returns:
        In the order of their steps; then those without a step. Of equal steps the names tell them apart.

    Raises:
        MissingFileError: there is no such directory.
        FileError: it cannot be listed.
        CorruptFileError: the list of pinned steps is damaged.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs.look.listing import listing
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     for step in (1, 2):
    ...         _ = manager.save(step, {"w": numpy.ones(step)}, metrics={"loss": 1 / step})
    >>> [(one.step, one.state, one.metrics) for one in listing(manager.directory)]
    [(1, 'committed', {'loss': 1.0}), (2, 'committed', {'loss': 0.5})]
    """
    files = Directory(to_name(directory))
    workers = REMOTE_WORKERS if files.remote else 1
    for _ in range(LOOKS):
        inside = _inside(files)
        past = _past(files, inside)
        ours = files.steps()
        pins = files.pins() if ours else set[int]()
        found = [one for one in parallel(partial(_make_ours, files, pins), ours, workers=workers) if one is not None]
        # all of them may have been removed meanwhile, or replaced by others that came
        if (found or not ours) and _past(files, inside) == past:
            break
    found = [replace(one, state=REPLACED) if one.step in past else one for one in found]
    unfinished = {os.path.basename(path.rstrip("/")) for path in files.leftovers()}
    steps = [name for name, item in inside.items() if item.folder and is_step(name) and int(name) not in ours]
    unfinished |= {name for name in steps if {NAME, MARKER} & files.names_of(name)}
    found += [_make_unfinished(files, name, inside[name]) for name in unfinished & inside.keys()]
    others = [name for name in inside if name not in unfinished and not (is_step(name) and int(name) in ours)]
    work = partial(_other, files.path, inside)
    found += [_foreign(one) for one in parallel(work, others, workers=workers) if one is not None]
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, one.name))


def _inside(files: Directory) -> dict[str, Item]:
    inside = location(files.path).contents()
    if inside is not None:
        return inside
    if files.path.startswith("http"):
        raise UnsupportedError(
            f"{files}: a web server does not list its folders; name a checkpoint, or use s3:// or gs://"
        )
    if not files.remote and os.path.isdir(files.path):
        return {}
    if not files.remote and os.path.exists(files.path):
        raise FileError(errno.ENOTDIR, "is a file, not the directory of a run", files.path)
    raise MissingFileError(errno.ENOENT, "there is no such directory", str(files))


def _past(files: Directory, inside: Mapping[str, Item]) -> set[int]:
    """The steps that do not count; a server is asked only if it has said that there may be some."""
    return find_superseded(files) if not files.remote or REPLACED_NAME in inside else set()


def _make_ours(files: Directory, pins: set[int], step: int) -> Checkpoint | None:
    name = str(step)
    try:
        return files.steadily(step, partial(_sound, files, pins, step))
    except GoneError:
        return None
    except (FormatError, FileError) as error:
        inside = (location(files.folder(step)).contents() if files.names_of(files.name(step)) else None) or {}
        data = next((one for one in DATA.values() if one in inside), "")
        size, time = sum(one.size for one in inside.values()), max((one.time for one in inside.values()), default=0.0)
        path = join(files.folder(step), data) if data else files.folder(step)
        return Checkpoint(step, path, "statedict", size, time, {}, DAMAGED, step in pins, name, str(error))


def _sound(files: Directory, pins: set[int], step: int) -> Checkpoint:
    """What its manifest says of a checkpoint.

    Raises:
        FormatError: its files have other sizes, or are links out of the run.
        GoneError: it was removed meanwhile.
    """
    folder, manifest = files.folder(step), files.manifest(step)
    sizes = {one: item.size for one, item in (location(folder).contents() or {}).items()}
    for one, size in manifest.files.items():
        files.inner(files.name(step), one)
        if sizes.get(one) != size:
            has = f"has {sizes[one]:,} bytes" if one in sizes else "is not there"
            raise CorruptFileError(f"{redact(join(folder, one))}: {has}, committed were {size:,}")
    data = next((one for one in DATA.values() if one in manifest.files), DATA["safetensors"])
    nbytes, time, metrics = manifest.nbytes, manifest.time, manifest.metrics
    path = join(folder, data)
    return Checkpoint(step, path, "statedict", nbytes, time, metrics, COMMITTED, step in pins, str(step))


def look_again(directory: str | os.PathLike[str], one: Checkpoint) -> Checkpoint | None:
    """A checkpoint of a listing as it is listed now; None if it is gone, or is no checkpoint any more."""
    now = (other for other in listing(directory) if (other.name, other.kind) == (one.name, one.kind))
    return next((other for other in now if other.state != UNFINISHED), None)


def _make_unfinished(files: Directory, name: str, item: Item) -> Checkpoint:
    path = join(files.path, name)
    inside = (location(path).contents() if item.folder and files.names_of(name) else None) or {}
    size, time = sum(one.size for one in inside.values()), max((one.time for one in inside.values()), default=item.time)
    step = int(name) if name.isdecimal() else step_of(name.lstrip(".").partition(".")[0])
    damage = "was not committed; it is being written, or its process died"
    return Checkpoint(step, path, "statedict", size, time, {}, UNFINISHED, False, name, damage)


def _other(directory: str, inside: Mapping[str, Item], name: str) -> Foreign | None:
    return recognize(directory, name, inside[name])


def _foreign(one: Foreign) -> Checkpoint:
    state = FOREIGN if one.damage is None else DAMAGED
    name = os.path.basename(one.path.rstrip("/"))
    return Checkpoint(
        one.step, one.path, one.kind, one.nbytes, one.time, one.metrics, state, False, name, one.damage or ""
    )


def find(checkpoints: Sequence[Checkpoint], which: str | int, where: str = "") -> Checkpoint:
    """One of a listing.

    Args:
        checkpoints: the listing.
        which: a step, a name, `latest`, or `best:METRIC` and `best:METRIC:max`.
        where: names the directory in messages.

    Raises:
        RunError: there is none, or several have that step.
    """
    text, usable = _format_name(which), [one for one in checkpoints if one.usable]
    head, _, metric = text.partition(":")
    if text == "latest":
        stepped = [one for one in usable if one.step is not None] or usable
        found = stepped[-1:]
    elif head == "best" and metric:
        name, _, mode = metric.rpartition(":") if metric.endswith((":min", ":max")) else (metric, "", "min")
        found = best(checkpoints, name, mode)[:1]
        if not found:
            known = ", ".join(sorted({key for one in usable for key in one.metrics})) or "none"
            raise RunError(f"{where or 'the run'}: no checkpoint has the metric {name!r}; there are {known}")
    else:
        found = [one for one in checkpoints if one.name == text]
        if not found and text.isdecimal() and len(text) < _DIGITS:
            found = [one for one in checkpoints if one.step == int(text)]
            found = [one for one in found if one.state != UNFINISHED] or found
    if len(found) > 1:
        raise RunError(f"{where or 'the run'}: {', '.join(one.name for one in found)} have step {text}; give the name")
    if not found:
        there = [one.name for one in checkpoints]
        held = f"it has {'… ' * (len(there) > 5)}{', '.join(there[-5:])}" if there else "it has none"
        raise RunError(f"{where or 'the run'}: has no checkpoint {text!r:.80}; {held}")
    return found[0]


def _format_name(which: str | int) -> str:
    """As a name; Python writes no number of 5,000 digits in decimals, and no step has as many."""
    return f"{which:#x}" if isinstance(which, int) and abs(which) >= WHOLE else str(which)


def best(checkpoints: Sequence[Checkpoint], metric: str, mode: str = "min") -> list[Checkpoint]:
    """Those that can be opened and have a metric, the best first; of equal ones the later first; NaN is no value."""
    check_mode(mode)
    sign = 1 if mode == "min" else -1
    having = [one for one in checkpoints if one.usable and not math.isnan(one.metrics.get(metric, math.nan))]
    return sorted(having, key=lambda one: (sign * one.metrics[metric], -(-1 if one.step is None else one.step)))


@dataclass(frozen=True, slots=True)
class RunVerified:
    """What is wrong with the checkpoints of a run.

    Attributes:
        directory: of the run.
        damage: name → what is wrong, in words; empty for one that is sound. In the order of the steps.
        unfinished: names of what was never committed; it is no checkpoint, and no damage.
        quick: whether the bytes of tensors were left unread.
    """

    directory: str
    damage: dict[str, str]
    unfinished: tuple[str, ...] = ()
    quick: bool = False

    @property
    def ok(self) -> bool:
        """Whether none is damaged."""
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

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As text, of which a line may hold a name with line breaks in it."""
        bad = sum(map(bool, self.damage.values()))
        head = f"{self.directory}: {count(len(self.damage), 'checkpoint')}, {bad or 'none'} damaged"
        lines = [head + (", by headers and sizes" if self.quick else "")]
        lines += [f"  {name}  {damage or 'fine'}" for name, damage in self.damage.items()]
        lines += [f"  {name}  unfinished" for name in self.unfinished]
        return lines


def verify_run(
    directory: str | os.PathLike[str], which: Iterable[str | int] = (), *, quick: bool = False
) -> RunVerified:
    """Look for damage in the checkpoints of a run. What is removed while they are looked at is left out.

    Args:
        directory: of the run, or its URL; whoever wrote it.
        which: steps or names; by default all.
        quick: manifests, headers and sizes only; no tensor is read.

    Raises:
        RunError: there is no such checkpoint.
        StateDictError: what `listing` raises.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs import verify_run
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     _ = manager.save(7, {"w": numpy.ones((4, 5))})
    >>> verify_run(manager.directory).damage
    {'7': ''}
    """
    files, found = Directory(to_name(directory)), listing(directory)
    chosen = [find(found, one, redact(files.path)) for one in which] or found
    looked = {one.name: _steady_damage(files, one, quick) for one in chosen if one.state != UNFINISHED}
    damage = {name: damage for name, damage in looked.items() if damage is not None}
    return RunVerified(redact(files.path), damage, tuple(one.name for one in chosen if one.state == UNFINISHED), quick)


def _steady_damage(files: Directory, one: Checkpoint, quick: bool) -> str | None:
    """What is wrong with one that stays what it is while it is looked at; None if it is gone."""
    for _ in range(LOOKS):
        try:
            damage = _damage(files, one, quick)
        except GoneError:
            damage = "gone"
        if not damage:
            return ""
        now = look_again(files.path, one)
        if now is None:
            return None
        if now == one:
            return damage
        one = now
    return None


def _damage(files: Directory, one: Checkpoint, quick: bool) -> str:
    if one.kind == "statedict" and one.step is not None:
        return files.damage(one.step, "quick" if quick else "full") or ""
    if one.damage:
        return one.damage
    try:
        problems = verify(one.path, quick=quick).problems
    except (FormatError, FileError) as error:
        return str(error)
    return str(problems[0]) if problems else ""
