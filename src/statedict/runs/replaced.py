"""What a run begun anew replaces: its steps no longer count from the moment in which the first new one is committed.

    RUN/.replaced.json      {"by": 10, "marker": "…", "steps": {"50": "…"}}

The file is written before the new checkpoint is committed and names its marker, so that it is in force once that
checkpoint is there, and not before. Steps are named with their markers too: a new checkpoint of an old number counts.
Whoever is interrupted before the old ones are removed leaves it to who writes next. Without `by` it is in force for
good: pinned steps stay, and are of another course.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from statedict.errors import CorruptFileError, MissingFileError, file_error
from statedict.io.files import open_source, publish
from statedict.io.json import check
from statedict.io.sink import put_bytes
from statedict.io.urls import joined, shown
from statedict.runs.directory import Directory

NAME = ".replaced.json"


def announce(files: Directory, step: int, steps: Iterable[int], marker: bytes) -> None:
    """Say which steps a checkpoint replaces, before it is committed.

    Args:
        files: the directory.
        step: of the checkpoint.
        steps: what it replaces; its own number is no matter of this.
        marker: what its marker will hold.

    Raises:
        FileError: it cannot be written.
    """
    held = {old: files.marker(old) for old in steps if old != step}
    _write(files, {old: text.hex() for old, text in held.items() if text is not None}, step, marker.hex())


def superseded(files: Directory) -> set[int]:
    """The steps that are there and do not count.

    Raises:
        CorruptFileError: the file that names them is damaged.
        FileError: it cannot be read.
    """
    found = _read(files)
    return set() if found is None or not _in_force(files, found) else _there(files, found)


def settle(files: Directory) -> None:
    """Remove what was replaced, except what is pinned; only who holds the lock may.

    Raises:
        CorruptFileError: the file is damaged.
        FileError: something could not be removed.
    """
    found = _read(files)
    if found is None:
        return
    left: set[int] = set()
    if _in_force(files, found):
        there, pins = _there(files, found), files.pins()
        for step in sorted(there - pins, reverse=True):
            files.remove(step)
        left = there & pins
    if not left:
        _delete(joined(files.path, NAME), files.remote)
    elif "by" in found or left != {*map(int, found["steps"])}:
        _write(files, {step: found["steps"][str(step)] for step in left})


def _in_force(files: Directory, found: dict[str, Any]) -> bool:
    if "by" not in found:
        return True
    marker = files.marker(found["by"])
    return marker is not None and marker.hex() == found["marker"]


def _there(files: Directory, found: dict[str, Any]) -> set[int]:
    markers = {int(step): (files.marker(int(step)), text) for step, text in found["steps"].items()}
    return {step for step, (marker, text) in markers.items() if marker is not None and marker.hex() == text}


def _read(files: Directory) -> dict[str, Any] | None:
    name = joined(files.path, NAME)
    try:
        source = open_source(name)
        data = bytes(source.read(0, source.size))
    except MissingFileError:
        return None
    check(data, shown(name))
    try:
        found: dict[str, Any] = json.loads(data)
        if not all(step.isdecimal() and isinstance(text, str) for step, text in found["steps"].items()):
            raise ValueError("steps")
        if "by" in found and not (type(found["by"]) is int and isinstance(found["marker"], str)):
            raise ValueError("by")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"{shown(name)}: is no list of replaced steps ({type(error).__name__}: {error}); remove it, and the steps "
            "of the run that was replaced"
        ) from None
    return found


def _write(files: Directory, steps: dict[int, str], by: int | None = None, marker: str = "") -> None:
    head: dict[str, Any] = {} if by is None else {"by": by, "marker": marker}
    data = (json.dumps(head | {"steps": steps}) + "\n").encode()
    publish(joined(files.path, NAME), lambda sink: put_bytes(data, sink))


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
