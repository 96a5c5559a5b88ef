"""Where a run's directory is: how its checkpoints are committed, replaced and removed there.

    RUN/100/                 a checkpoint
    RUN/.100.XXXXXXXX.tmp    is being written
    RUN/.100.XXXXXXXX.new    whole, but does not count
    RUN/.100.XXXXXXXX.next   whole, and step 100 as long as there is no `100/`
    RUN/.100.XXXXXXXX.gone   is being removed
    RUN/100/REMOVED          `100/` is being removed in place

Where the system can exchange two names in one step, a new checkpoint replaces an old one that way. Elsewhere the new
one becomes `.next`, the old one goes, and the new one gets its name. Readers change nothing and take `.next` for the
step.

A folder is renamed before it is removed, so that nobody takes a part of it for a checkpoint. Some file systems cannot
rename folders: overlayfs answers EXDEV for those of its lower layers, as in a container whose image holds the run.
There the marker is renamed first, which is one step too.

In an object store objects appear one by one. The marker is the last, and is written only if there is none.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from typing import Any

from statedict.errors import MissingFileError, RunError
from statedict.io import disk
from statedict.io.disk import file_errors
from statedict.io.location import location
from statedict.io.pipeline import put_bytes
from statedict.io.urls import join, redact
from statedict.runs.manifest import DATA, MARKER, NAME, Manifest

REMOVED = "REMOVED"
PARTS = {NAME, MARKER, *DATA.values()}
LEFTOVER = re.compile(r"\.+(\d+|pins\.json|replaced\.json)\.[0-9a-f]{8}\.(tmp|new|next|gone)(\.[0-9a-f]{8}\.tmp)?")
_NEXT = re.compile(r"\.(\d+)\.[0-9a-f]{8}\.next")

Files = dict[str, Callable[[Any], None]]  # name → what writes the file


def hidden_name(run: str, step: int, suffix: str) -> str:
    """An unused name in a run's directory."""
    return os.path.join(run, f".{step}.{os.urandom(4).hex()}.{suffix}")


class _Place:
    def __init__(self, path: str) -> None:
        self._path = path
        # raises if the lock was lost; called before each change that could hurt another writer
        self.guard: Callable[[], None] = lambda: None
        self.untidy = False  # whether something failed and may have left parts behind

    def find_waiting(self, names: Iterable[str]) -> dict[int, str]:
        """Step → the hidden folder that holds its checkpoint, as its process died before it could rename it."""
        return {}

    def make(self) -> None:
        """Make the directory, if there are directories."""

    def finish(self, names: list[str]) -> None:
        """Finish what a process that died left undone."""


class Disk(_Place):
    """A run's directory in a file system."""

    def find_waiting(self, names: Iterable[str]) -> dict[int, str]:
        """Those with the suffix `next`."""
        return {int(found[1]): found[0] for found in map(_NEXT.fullmatch, sorted(names)) if found}

    def is_leftover(self, folder: str) -> bool:
        """Whether a folder without a marker is one whose removal was interrupted."""
        names = location(folder).names()
        return names is not None and (not names or REMOVED in names) and {*names} <= PARTS - {MARKER} | {REMOVED}

    def signature(self, folder: str, manifest: Manifest) -> object:
        """A value that changes when the files of a checkpoint do."""
        stats = [os.stat(join(folder, name)) for name in (*manifest.files, NAME, MARKER)]
        return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in stats]

    def make(self) -> None:
        """Make the directory durably, and those above."""
        if os.path.isdir(self._path):
            return
        missing = [os.path.abspath(self._path)]
        while not os.path.isdir(above := os.path.dirname(missing[-1])):
            missing.append(above)
        with file_errors(self._path, "cannot make the directory of the run"):
            os.makedirs(self._path, exist_ok=True)
            for path in missing:
                disk.sync_directory(os.path.dirname(path))

    def commit(self, step: int, files: Files, mark: Callable[[], bytes], dry_run: bool) -> None:
        """Write a checkpoint beside the old one of that step, if there is one, and replace it."""
        folder = join(self._path, str(step))
        files |= {MARKER: lambda sink: put_bytes(mark(), sink)}
        with file_errors(folder, "cannot commit the checkpoint"):
            exists = os.path.lexists(folder)
            if not dry_run and exists and not _is_replaceable(folder):
                raise RunError(
                    f"{folder}: not a checkpoint of ours and would be replaced; move it away, or name another directory"
                )
            self.untidy = True
            if not dry_run and not exists:
                location(folder).publish_folder(files)
                self.untidy = False
                return
            new = hidden_name(self._path, step, "new")
            location(new).publish_folder(files)
            left = new if dry_run else self._replace(step, new)
            if left:
                disk.discard(left)
            self.untidy = os.path.lexists(left)

    def _replace(self, step: int, new: str) -> str:
        """Put a folder in the place of a checkpoint; return what is left to remove, or an empty string."""
        target = os.path.join(self._path, str(step))
        if disk.exchange(new, target):
            disk.sync_directory(self._path)
            return new
        after = hidden_name(self._path, step, "next")
        self._rename(new, after)
        left = self._put_aside(step, target)
        self._rename(after, target)
        return left

    def _rename(self, path: str, target: str) -> None:
        os.rename(path, target)
        disk.sync_directory(self._path)

    def _put_aside(self, step: int, folder: str) -> str:
        """Hide a checkpoint durably; return where it is now, or an empty string if it is gone."""
        gone = hidden_name(self._path, step, "gone")
        try:
            self._rename(folder, gone)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._remove_in_place(folder)
            return ""
        return gone

    def _remove_in_place(self, folder: str) -> None:
        if os.path.islink(folder):  # its target is somebody else's
            os.unlink(folder)
            disk.sync_directory(self._path)
            return
        marker, removed = os.path.join(folder, MARKER), os.path.join(folder, REMOVED)
        if os.path.lexists(marker):
            os.rename(marker, removed)
        disk.sync_directory(folder)  # from here on it is not a checkpoint, whatever of the rest is lost
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if path != removed:
                (shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
        disk.sync_directory(folder)
        if os.path.lexists(removed):
            os.unlink(removed)
        os.rmdir(folder)
        disk.sync_directory(self._path)

    def remove(self, step: int, folder: str) -> None:
        """Remove a checkpoint; it stops counting at once."""
        untidy, self.untidy = self.untidy, True
        with file_errors(folder, f"cannot remove step {step}"):
            gone = self._put_aside(step, folder)
            if gone:
                (os.unlink if os.path.islink(gone) else shutil.rmtree)(gone)
        self.untidy = untidy

    def finish(self, names: list[str]) -> None:
        """Give waiting folders their names."""
        with file_errors(self._path, "cannot tidy up after a process that has died"):
            for step, name in self.find_waiting(names).items():
                target = os.path.join(self._path, str(step))
                if os.path.isdir(target) and not os.path.islink(target) and self.is_leftover(target):
                    self._remove_in_place(target)
                if not os.path.lexists(target):
                    self._rename(os.path.join(self._path, name), target)

    def discard(self, paths: list[str]) -> None:
        """Remove leftovers."""
        if paths:
            disk.sync_directory(self._path)  # else their names could come back without their files
        for path in paths:
            disk.discard(path)
        self.untidy = any(map(os.path.lexists, paths))


def _is_replaceable(folder: str) -> bool:
    """Whether a folder is empty or holds only what we wrote; data alone may be anybody's."""
    names = location(folder).names()
    return names is not None and {*names} <= PARTS and (not names or bool({*names} & {NAME, MARKER}))


class Store(_Place):
    """A run's directory in an object store."""

    def is_leftover(self, folder: str) -> bool:
        """Whether a folder without a marker holds only parts of a checkpoint."""
        names = location(folder).names()
        return names is not None and {*names} <= PARTS

    def signature(self, folder: str, manifest: Manifest) -> object:
        """The time of the manifest: of objects nothing else can be asked."""
        return manifest.time

    def commit(self, step: int, files: Files, mark: Callable[[], bytes], dry_run: bool) -> None:
        """Write the objects of a checkpoint, the marker last."""
        from statedict.io.remote import connect

        folder = join(self._path, str(step))
        self.remove(step, folder)  # what was never committed, or is to be replaced
        try:
            for name, write in files.items():
                location(join(folder, name)).publish(write)
            marker = mark()
            self.guard()
            if not dry_run and connect(join(folder, MARKER)).write_if(marker, None) is None:
                raise RunError(f"{redact(folder)}: another process committed this step; is a run there twice?")
        except RunError:
            raise
        except BaseException:
            _delete(folder, [MARKER, *files])  # the answer to the marker may be what is missing
            raise
        if dry_run:
            _delete(folder, files)

    def remove(self, step: int, folder: str) -> None:
        """Remove a checkpoint; it stops counting at once."""
        self.guard()
        self.discard([folder])

    def discard(self, paths: list[str]) -> None:
        """Remove leftovers."""
        for path in paths:
            _delete(path, location(path).names() or [])


def _delete(folder: str, names: Iterable[str]) -> None:
    """Delete objects, the marker first: from then on they are not a checkpoint."""
    for name in sorted(names, key=lambda name: name != MARKER):
        try:
            location(join(folder, name)).remove()
        except MissingFileError:
            pass
