"""What a run begun anew replaces: its steps no longer count from the moment in which the first new one is committed.

    RUN/.replaced.json      {"by": 10, "marker": "…", "steps": {"50": "…"}, "before": {"40": "…"}}

The file is written before the new checkpoint is committed and names its marker, so that `steps` are in force once that
checkpoint is there, and not before. Steps are named with their markers too: a new checkpoint of an old number counts.
Whoever is interrupted before the old ones are removed leaves it to who writes next. Without `by` they are in force for
good: pinned steps stay, and are of another course. `before` is what was in force when the file was written, and stays
so whether that checkpoint is committed or not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from statedict.errors import CorruptFileError, LimitError, MissingFileError, file_error
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.pipeline import put_bytes
from statedict.io.urls import join, redact
from statedict.runs.directory import Directory, is_step
from statedict.runs.manifest import WHOLE, parse_whole

NAME = ".replaced.json"


@dataclass(frozen=True, slots=True)
class _Replaced:
    """What the file says.

    Attributes:
        steps: step → marker of what is replaced once `by` is there.
        by: the step that replaces them; None if that is done.
        marker: of that step.
        before: step → marker of what was replaced before.
    """

    steps: dict[int, str]
    by: int | None = None
    marker: str = ""
    before: dict[int, str] = field(default_factory=dict)


def announce(files: Directory, step: int, steps: Iterable[int], marker: bytes) -> None:
    """Say which steps a checkpoint replaces, before it is committed.

    Args:
        files: the directory.
        step: of the checkpoint.
        steps: what it replaces; its own number is no matter of this.
        marker: what its marker will hold.

    Raises:
        FormatError: the file that names what was replaced before is damaged, or a link out of the directory.
        FileError: it cannot be read or written.
    """
    found = _read(files)
    before = {} if found is None else _in_force(files, found)
    held = {old: files.marker(old) for old in steps if old != step}
    named = {old: text.hex() for old, text in held.items() if text is not None}
    _write(files, _Replaced(named, step, marker.hex(), before))


def find_superseded(files: Directory) -> set[int]:
    """The steps that are there and do not count.

    Raises:
        FormatError: the file that names them is damaged, or a link out of the directory.
        FileError: it cannot be read.
    """
    found = _read(files)
    return set() if found is None else {*_in_force(files, found)}


def settle(files: Directory) -> None:
    """Remove what was replaced, except what is pinned; only who holds the lock may.

    Raises:
        FormatError: the file is damaged, or a link out of the directory.
        FileError: something could not be removed.
    """
    found = _read(files)
    if found is None:
        return
    there, pins = _in_force(files, found), files.pins()
    for step in sorted(there.keys() - pins, reverse=True):
        files.remove(step)
    left = _Replaced({step: there[step] for step in sorted(there.keys() & pins)})
    if not left.steps:
        _delete(files.inner(NAME), files.remote)
    elif left != found:
        _write(files, left)


def _in_force(files: Directory, found: _Replaced) -> dict[int, str]:
    """Step → marker of what does not count, and is there."""
    named = dict(found.before)
    if found.by is None or _marker(files, found.by) == found.marker:
        named |= found.steps
    return {step: text for step, text in named.items() if _marker(files, step) == text}


def _marker(files: Directory, step: int) -> str | None:
    marker = files.marker(step)
    return None if marker is None else marker.hex()


def _read(files: Directory) -> _Replaced | None:
    name = redact(join(files.path, NAME))
    try:
        data = read_document(location(files.inner(NAME)).open())
    except MissingFileError:
        return None
    try:
        found = parse(data, name)
        if "by" not in found:
            return _Replaced(_markers(found["steps"]))
        by, before = parse_whole(found["by"]), _markers(found.get("before", {}))
        return _Replaced(_markers(found["steps"]), by, str(found["marker"]), before)
    except LimitError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{name}: is no list of replaced steps ({type(error).__name__}: {error}); remove it, and the steps "
            "of the run that was replaced"
        ) from None


def _markers(found: Any) -> dict[int, str]:
    for step, text in found.items():
        if len(step) > len(str(WHOLE)) or not is_step(step) or not isinstance(text, str):
            raise ValueError(f"{step:.40}")
    return {parse_whole(int(step)): text for step, text in found.items()}


def _write(files: Directory, held: _Replaced) -> None:
    said: dict[str, Any] = {} if held.by is None else {"by": held.by, "marker": held.marker}
    said["steps"] = held.steps
    if held.before:
        said["before"] = held.before
    data = (json.dumps(said) + "\n").encode()
    location(files.inner(NAME)).publish(lambda sink: put_bytes(data, sink))


def _delete(name: str, remote: bool) -> None:
    if remote:
        from statedict.io.remote import at

        try:
            at(name).delete()
        except MissingFileError:
            pass
        return
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise file_error(name, "cannot remove", error) from error
