"""How a checkpoint of a run goes from a disk, and how one takes the place of another; what readers find meanwhile.

    RUN/100/                 a checkpoint
    RUN/.100.XXXXXXXX.tmp    is being written
    RUN/.100.XXXXXXXX.new    whole, and not what counts
    RUN/.100.XXXXXXXX.next   whole, and step 100 wherever `100/` is none
    RUN/.100.XXXXXXXX.gone   is being removed
    RUN/100/REMOVED          `100/` is being removed where it stands

Where two names can be exchanged in one step that is how one takes the place of another. Elsewhere the new one is called
`.next` first, then the old one goes, then the new one gets its name. Whoever only reads changes nothing, and takes the
`.next` for the step.

A folder is removed under another name, so that a part of it is never taken for a checkpoint. Some file systems cannot
give a folder another name: overlayfs answers EXDEV for one of its lower layers, as in a container whose image holds the
run. Then its marker gets another name first, which is one step too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil

from statedict.io import atomic
from statedict.runs.manifest import DATA, MARKER, NAME

REMOVED = "REMOVED"
LEFTOVER = re.compile(r"\.+(\d+|pins\.json|replaced\.json)\.[0-9a-f]{8}\.(tmp|new|next|gone)(\.[0-9a-f]{8}\.tmp)?")
_NEXT = re.compile(r"\.(\d+)\.[0-9a-f]{8}\.next")


def hidden_name(run: str, step: int, why: str) -> str:
    """A name in a run's directory that nobody has."""
    return os.path.join(run, f".{step}.{os.urandom(4).hex()}.{why}")


def find_waiting(names: list[str]) -> dict[int, str]:
    """Step → the folder that is to be its checkpoint, of the names in a run's directory."""
    return {int(found[1]): found[0] for found in map(_NEXT.fullmatch, sorted(names)) if found}


def put_in_place(run: str, step: int, place: str) -> str:
    """Let a whole folder take the place of a checkpoint.

    Args:
        run: its directory.
        step: of the checkpoint.
        place: the folder, in that directory.

    Returns:
        The folder that is left, under a name that does not count; empty if there is none.

    Raises:
        OSError: the file system refuses.
    """
    target = os.path.join(run, str(step))
    if atomic.exchange(place, target):
        atomic.sync_directory(run)
        return place
    after = hidden_name(run, step, "next")
    os.rename(place, after)
    atomic.sync_directory(run)
    left = put_aside(run, step, target)
    os.rename(after, target)
    atomic.sync_directory(run)
    return left


def put_aside(run: str, step: int, folder: str) -> str:
    """Take a checkpoint out of sight, durably.

    Returns:
        Where it is now, under a name that does not count; empty if it is gone.

    Raises:
        OSError: the file system refuses.
    """
    gone = hidden_name(run, step, "gone")
    try:
        os.rename(folder, gone)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _remove_in_place(run, folder)
        return ""
    atomic.sync_directory(run)
    return gone


def _remove_in_place(run: str, folder: str) -> None:
    if os.path.islink(folder):  # what it leads to is somebody else's
        os.unlink(folder)
        atomic.sync_directory(run)
        return
    marker, removed = os.path.join(folder, MARKER), os.path.join(folder, REMOVED)
    if os.path.lexists(marker):
        os.rename(marker, removed)
    atomic.sync_directory(folder)  # from here on it is no checkpoint, whatever of the rest is lost
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if path == removed:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    atomic.sync_directory(folder)
    if os.path.lexists(removed):
        os.unlink(removed)
    os.rmdir(folder)
    atomic.sync_directory(run)


def is_half_removed(names: list[str] | None) -> bool:
    """Whether that is what a folder holds whose removal where it stands was interrupted."""
    return names is not None and (not names or REMOVED in names) and {*names} <= {REMOVED, NAME, *DATA.values()}


def finish(run: str, names: list[str]) -> None:
    """Do what a process that has died has left undone: the step that waits for a name gets it.

    Args:
        run: its directory.
        names: in it.

    Raises:
        OSError: the file system refuses.
    """
    for step, name in find_waiting(names).items():
        target = os.path.join(run, str(step))
        if os.path.isdir(target) and not os.path.islink(target) and is_half_removed(sorted(os.listdir(target))):
            _remove_in_place(run, target)
        if not os.path.lexists(target):
            os.rename(os.path.join(run, name), target)
            atomic.sync_directory(run)
