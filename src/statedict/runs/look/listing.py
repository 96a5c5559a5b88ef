"""The checkpoints in a directory, whoever wrote them: list, describe and check them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from statedict.api.files import load
from statedict.api.look import inspect, verify
from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError, RunError, UnsupportedError
from statedict.io.location import location
from statedict.io.parallel import parallel
from statedict.io.urls import Item, join, redact, to_name
from statedict.reports.runs import COMMITTED, DAMAGED, REPLACED, UNFINISHED, About, Checkpoint, RunVerified
from statedict.runs.directory import LOOKS, Directory, GoneError, is_step
from statedict.runs.keep import rank
from statedict.runs.look.foreign import INDEX, WEIGHTS, recognize, step_of
from statedict.runs.manifest import DATA, MARKER, NAME, WHOLE
from statedict.runs.replaced import NAME as REPLACED_NAME
from statedict.runs.replaced import find_superseded
from statedict.values import abbreviate

_DIGITS = 1000  # most digits of a step on the command line; it may have leading zeros


def listing(directory: str | os.PathLike[str]) -> list[Checkpoint]:
    """List the checkpoints in a directory, whoever wrote them.

    Of ours it reads the manifest and compares file sizes, not bytes; see `verify_run` for those. Nothing in the files
    of others is executed, and files that are not checkpoints are left out.

    Args:
        directory: a path or URL.

    Returns:
        Checkpoints in the order of their steps, then those without a step; equal steps in the order of names.

    Raises:
        MissingFileError: there is no such directory.
        FileError: it cannot be listed.
        CorruptFileError: the list of pinned steps is damaged.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     for step in (1, 2):
    ...         _ = manager.save(step, {"w": numpy.ones(step)}, metrics={"loss": 1 / step})
    >>> [(one.step, one.state, one.metrics) for one in statedict.runs.listing(manager.directory)]
    [(1, 'committed', {'loss': 1.0}), (2, 'committed', {'loss': 0.5})]
    """
    files = Directory(to_name(directory))
    workers = files.location.workers
    for _ in range(LOOKS):
        inside = _list(files)
        past = _find_past(files, inside)
        ours = files.steps()
        pins = files.pins() if ours else set[int]()
        found = [one for one in parallel(partial(_make_ours, files, pins), ours, workers=workers) if one is not None]
        # all of them may have been removed meanwhile, or replaced by others that came
        if (found or not ours) and _find_past(files, inside) == past:
            break
    found = [replace(one, state=REPLACED) if one.step in past else one for one in found]
    unfinished = {os.path.basename(path.rstrip("/")) for path in files.leftovers()}
    steps = [name for name, item in inside.items() if item.folder and is_step(name) and int(name) not in ours]
    unfinished |= {name for name in steps if {NAME, MARKER} & files.names_of(name)}
    for name in unfinished & inside.keys():
        step = int(name) if name.isdecimal() else step_of(name.lstrip(".").partition(".")[0])
        why = "was not committed; it is being written, or its process died"
        one = Checkpoint(step, "", "statedict", 0, inside[name].time, {}, UNFINISHED, False, name, why)
        found.append(_describe(files, name, one))
    others = [name for name in inside if name not in unfinished and not (is_step(name) and int(name) in ours)]
    read = partial(recognize, files.path, inside)
    found += [one for one in parallel(read, others, workers=workers) if one is not None]
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, one.name))


def _list(files: Directory) -> dict[str, Item]:
    place = files.location
    inside = place.contents()
    if inside is not None:
        return inside
    if files.path.startswith("http"):
        raise UnsupportedError(
            f"{files}: a web server does not list its folders; name a checkpoint, or use s3:// or gs://"
        )
    if place.is_folder():
        return {}
    if place.exists():
        raise FileError(errno.ENOTDIR, "is a file, not the directory of a run", str(files))
    raise MissingFileError(errno.ENOENT, "there is no such directory", str(files))


def _find_past(files: Directory, inside: Mapping[str, Item]) -> set[int]:
    """The steps that do not count; a server is asked only if it has said that there may be some."""
    return find_superseded(files) if not files.remote or REPLACED_NAME in inside else set()


def _make_ours(files: Directory, pins: set[int], step: int) -> Checkpoint | None:
    try:
        return files.read_steadily(step, partial(_read, files, pins, step))
    except GoneError:
        return None
    except (FormatError, FileError) as error:
        one = Checkpoint(step, "", "statedict", 0, 0.0, {}, DAMAGED, step in pins, str(step), str(error))
        return _describe(files, files.name(step), one)


def _read(files: Directory, pins: set[int], step: int) -> Checkpoint:
    """A checkpoint as its manifest describes it."""
    folder, manifest = files.folder(step), files.manifest(step)
    sizes = {one: item.size for one, item in (location(folder).contents() or {}).items()}
    for one, size in manifest.files.items():
        files.inner_path(files.name(step), one)
        if sizes.get(one) != size:
            has = f"has {sizes[one]:,} bytes" if one in sizes else "is not there"
            raise CorruptFileError(f"{redact(join(folder, one))}: {has}, committed were {size:,}")
    if manifest.base is not None and not files.is_committed(manifest.base):
        raise CorruptFileError(f"{redact(folder)}: is a delta to step {manifest.base}, which is gone")
    path = join(folder, next((one for one in DATA.values() if one in manifest.files), DATA["safetensors"]))
    return Checkpoint(
        step, path, "statedict", manifest.nbytes, manifest.time, manifest.metrics, COMMITTED, step in pins, str(step)
    )


def _describe(files: Directory, folder: str, one: Checkpoint) -> Checkpoint:
    """Fill in path, size and time of a checkpoint of ours whose manifest does not tell."""
    path = join(files.path, folder)
    inside = (location(path).contents() if files.names_of(folder) else None) or {}
    data = next((name for name in DATA.values() if name in inside), "")
    return replace(
        one,
        path=join(path, data) if data and one.state == DAMAGED else path,
        nbytes=sum(item.size for item in inside.values()),
        time=max((item.time for item in inside.values()), default=one.time),
    )


def look_again(directory: str | os.PathLike[str], one: Checkpoint) -> Checkpoint | None:
    """A checkpoint as it is listed now; None if it is gone."""
    now = (other for other in listing(directory) if (other.name, other.kind) == (one.name, one.kind))
    return next((other for other in now if other.state != UNFINISHED), None)


def find(checkpoints: Sequence[Checkpoint], which: str | int, where: str = "the run") -> Checkpoint:
    """Pick a checkpoint by step, name, `latest`, `best:METRIC` or `best:METRIC:max`; `where` is for messages."""
    text = f"{which:#x}" if isinstance(which, int) and abs(which) >= WHOLE else str(which)  # str has a limit of digits
    usable = [one for one in checkpoints if one.usable]
    head, _, metric = text.partition(":")
    if text == "latest":
        found = ([one for one in usable if one.step is not None] or usable)[-1:]
    elif head == "best" and metric:
        name, _, mode = metric.rpartition(":") if metric.endswith((":min", ":max")) else (metric, "", "min")
        found = rank(usable, name, mode)[:1]
        if not found:
            known = ", ".join(sorted({key for one in usable for key in one.metrics})) or "none"
            raise RunError(f"{where}: no checkpoint has the metric {name!r}; there are {known}")
    else:
        found = [one for one in checkpoints if one.name == text]
        if not found and text.isdecimal() and len(text) < _DIGITS:
            found = [one for one in checkpoints if one.step == int(text)]
            found = [one for one in found if one.state != UNFINISHED] or found
    if len(found) > 1:
        raise RunError(f"{where}: {', '.join(one.name for one in found)} have step {text}; give the name")
    if not found:
        names = [one.name for one in checkpoints]
        held = f"it has {'… ' * (len(names) > 5)}{', '.join(names[-5:])}" if names else "it has none"
        raise RunError(f"{where}: has no checkpoint {text!r:.80}; {held}")
    return found[0]


def choose(
    checkpoints: Sequence[Checkpoint],
    where: str = "the run",
    *,
    last: int | None = None,
    best: tuple[int, str] | None = None,
    mode: str = "min",
    steps: range | None = None,
) -> list[Checkpoint]:
    """Pick checkpoints in the order of their steps: the last, the best by a metric, or those of a range of steps.

    Raises:
        RunError: there are fewer than asked for, or none in the range.
    """
    usable = [one for one in checkpoints if one.usable and one.step is not None]
    if steps is not None:
        found, wanted = [one for one in usable if one.step in steps], 2
    elif best is not None:
        wanted, metric = best
        found = rank(usable, metric, mode)[:wanted]
    else:
        wanted = last or 0
        found = usable[-wanted:]
    if len(found) < wanted:
        held = abbreviate([one.name for one in usable]) or "none"
        having = f" with the metric {best[1]!r}" if best else " in that range" if steps is not None else ""
        expected = f"expected {wanted:,} or more; there are {held}"
        raise RunError(f"{where}: has {len(found):,} sound checkpoints{having}, {expected}")
    return sorted(found, key=lambda one: one.step or 0)


def about(directory: str | os.PathLike[str], which: str | int = "latest", *, biggest: int = 10) -> About:
    """Describe one checkpoint of a run; no tensor is read.

    Args:
        directory: the run, or its URL, by any writer.
        which: a step, a name, `latest`, `best:METRIC` or `best:METRIC:max`.
        biggest: how many of the largest tensors to list.

    Raises:
        RunError: there is no such checkpoint.
        StateDictError: as `listing` and `load`.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     _ = manager.save(7, {"w": numpy.ones((4, 5))})
    >>> found = statedict.runs.about(manager.directory)
    >>> found.checkpoint.step, found.tensors, found.elements, [*found.files]
    (7, 1, 20, ['checkpoint.safetensors'])
    """
    files = Directory(to_name(directory))
    for _ in range(LOOKS):
        one = find(listing(directory), which, str(files))
        try:
            return _about(files, one, biggest)
        except (FormatError, FileError):
            if look_again(directory, one) == one:
                raise
    raise RunError(f"{files}: {which} changes faster than it can be read; name a step, or try again")


def _about(files: Directory, one: Checkpoint, biggest: int) -> About:
    if one.state == COMMITTED and one.step is not None:
        manifest = files.manifest(one.step)
        found = About(str(files), one, manifest.files, manifest.libraries, manifest.not_captured, base=manifest.base)
    else:
        try:
            files.inner_path(*one.path.removeprefix(f"{files.path}/").split("/"))
            inside = location(one.path).contents() or {}
        except FormatError:  # a link out of the directory
            inside = {}
        held = {name: item.size for name, item in inside.items() if not item.folder}
        found = About(str(files), one, held or {one.name: one.nbytes})
    if not one.usable:
        return found
    summary = inspect(load(one.path))
    most = sorted((tensor for tensor in summary.tensors if not tensor.tied), key=lambda tensor: -tensor.nbytes)
    total = summary.total
    return replace(found, tensors=total.tensors, elements=total.elements, biggest=tuple(most[: max(biggest, 0)]))


def verify_run(
    directory: str | os.PathLike[str], which: Iterable[str | int] = (), *, quick: bool = False
) -> RunVerified:
    """Check the checkpoints of a run for damage. Those that are removed meanwhile are left out.

    Args:
        directory: the run, or its URL, by any writer.
        which: steps or names; all by default.
        quick: check manifests, headers and sizes only; no tensor is read.

    Raises:
        RunError: there is no such checkpoint.
        StateDictError: as `listing`.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     _ = manager.save(7, {"w": numpy.ones((4, 5))})
    >>> statedict.runs.verify_run(manager.directory).damage
    {'7': ''}
    """
    files, found = Directory(to_name(directory)), listing(directory)
    chosen = [find(found, one, str(files)) for one in which] or found
    checked = {one.name: _check(files, one, quick) for one in chosen if one.state != UNFINISHED}
    sound = {name: result for name, result in checked.items() if result is not None}
    unread = {name: left for name, (_, left) in sound.items() if left}
    if not which and (beside := _list_beside(files.path, found)):
        unread[""] = beside
    unfinished = tuple(one.name for one in chosen if one.state == UNFINISHED)
    return RunVerified(str(files), {name: damage for name, (damage, _) in sound.items()}, unfinished, quick, unread)


def _list_beside(directory: str, found: Iterable[Checkpoint]) -> tuple[str, ...]:
    """The files in a directory that look like checkpoints, such as an optimizer's, and belong to none."""
    names = {one.name for one in found}
    shards = [re.compile(re.escape(name.removesuffix(INDEX).rpartition(".")[0]) + r"-\d+-of-\d+\.") for name in names]
    held = (name for name, item in (location(directory).contents() or {}).items() if not item.folder)
    return tuple(
        name
        for name in held
        if name not in names and name.endswith(WEIGHTS) and not any(shard.match(name) for shard in shards)
    )


def _check(files: Directory, one: Checkpoint, quick: bool) -> tuple[str, tuple[str, ...]] | None:
    """The damage of a checkpoint that stays the same meanwhile, and what is not looked at; None if it is gone."""
    for _ in range(LOOKS):
        try:
            damage, unread = _find_damage(files, one, quick)
        except GoneError:
            damage, unread = "gone", ()
        if not damage:
            return "", unread
        now = look_again(files.path, one)
        if now is None:
            return None
        if now == one:
            return damage, unread
        one = now
    return None


def _find_damage(files: Directory, one: Checkpoint, quick: bool) -> tuple[str, tuple[str, ...]]:
    if one.kind == "statedict" and one.step is not None:
        return files.damage(one.step, "quick" if quick else "full") or "", ()
    if one.damage:
        return one.damage, ()
    try:
        report = verify(one.path, quick=quick)
    except (FormatError, FileError) as error:
        return str(error), ()
    return str(report.problems[0]) if report.problems else "", report.unread
