"""Write a checkpoint: retry, compare it with the last one, then prune."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from statedict import __version__
from statedict.api.files import load
from statedict.api.look import verify
from statedict.errors import (
    ArgumentError,
    CorruptFileError,
    FileError,
    FormatError,
    MissingFileError,
    UnsupportedError,
    file_error,
)
from statedict.formats import coded_writing
from statedict.formats.coded import Base, digest_rows
from statedict.io.urls import redact
from statedict.runs.background import LOG, retry
from statedict.runs.directory import Directory, Result
from statedict.runs.keep import Policy, check_choice
from statedict.runs.manifest import Entry, Manifest
from statedict.runs.prune import plan, remove
from statedict.runs.replaced import announce, settle
from statedict.tensor.checks import tensors_of
from statedict.tensor.coding import import_zstandard
from statedict.tensor.segments import covered_bytes


class Compression(NamedTuple):
    """How checkpoints are compressed."""

    deltas: bool  # whether as differences from an earlier one
    full_every: int  # of so many checkpoints in a row one is whole, and the others are deltas to it


def to_compression(compress: str | None, full_every: int, format: str) -> Compression | None:
    """How the arguments of a manager compress.

    Raises:
        ArgumentError: one is invalid.
        MissingExtraError: zstandard is not installed.
    """
    if compress is not None:
        check_choice("compress", compress, ("planes", "delta"))
    if type(full_every) is not int or full_every < 1:
        raise ArgumentError(f"full_every={full_every!r:.40}: expected a number of checkpoints, 1 or more")
    if compress is None:
        return None
    if format != "safetensors":
        raise ArgumentError(f"compress={compress!r}: only safetensors are compressed, not format={format!r}")
    import_zstandard()
    return Compression(compress == "delta", full_every)


class Writer:
    """Writes checkpoints into a directory, one at a time."""

    def __init__(
        self,
        files: Directory,
        keep: Policy | None,
        format: str,
        retries: int,
        warn: Callable[[str], None],
        compression: Compression | None = None,
    ) -> None:
        self._files, self._keep, self._format, self._retries, self._warn = files, keep, format, retries, warn
        self._compression = compression
        self._full: tuple[int, str | None] | None = None  # step and marker of what deltas refer to
        self._base: Base | None = None  # the same, without its tensors, for its file may be gone
        self._deltas = 0  # how many refer to it
        self._before: tuple[int, list[Entry]] | None = None
        self.replaced: list[int] = []  # steps to remove once the next one is committed

    def __call__(self, root: Any, manifest: Manifest) -> None:
        """Write one."""
        step = manifest.step
        written = self._write(root, manifest)
        self._compare(written)
        if self._keep is not None or self.replaced:
            removal = "others could not be removed"
            self._retry(
                partial(self._prune, step), f"after step {step} {removal}", f"step {step} is saved, and {removal}"
            )

    def _write(self, root: Any, manifest: Manifest) -> Manifest:
        if self._compression is None:
            return self._commit(root, manifest)
        if (base := self._find_base(manifest.step)) is not None:
            try:
                write = partial(coded_writing.write, base=base)
                written = self._commit(root, replace(manifest, base=base.names["step"]), write)
                self._deltas += 1
                return written
            except (FormatError, UnsupportedError, FileError) as error:
                file = self._files.data(base.names["step"])
                written_to = isinstance(error, FileError) and error.filename not in (file, redact(file))
                if written_to and not isinstance(error, MissingFileError):
                    raise
                LOG.warning("step %d is stored whole, as the base of a delta cannot be read: %s", manifest.step, error)
        written = self._commit(root, manifest, coded_writing.write)
        if self._compression.deltas:
            self._full, self._deltas, self._base = (manifest.step, self._files.marker(manifest.step)), 0, None
        return written

    def _find_base(self, step: int) -> Base | None:
        """The last whole checkpoint, if it is still there and may have another delta."""
        if self._full is None or self._compression is None or self._deltas >= self._compression.full_every - 1:
            return None
        base, marker = self._full
        try:
            if base >= step or self._files.marker(base) != marker:
                return None
            if self._base is None:
                rows = ((one.path, one.dtype, one.shape, one.digest) for one in self._files.manifest(base).entries)
                self._base = Base({}, digest_rows(rows), {"step": base}, set())
            return self._base._replace(tensors=dict(tensors_of(load(self._files.data(base)))))
        except (FormatError, FileError):
            return None

    def _commit(self, root: Any, manifest: Manifest, write: Callable[[Any, Any], Any] | None = None) -> Manifest:
        step = manifest.step
        commit = partial(self._files.commit, root, manifest, self._format, write=write)
        if self.replaced:
            commit = partial(commit, announce=partial(announce, self._files, step, self.replaced))
        return self._retry(commit, f"step {step} could not be saved", f"step {step} was not saved")

    def _retry(self, work: Callable[[], Result], what: str, failure: str) -> Result:
        try:
            return retry(work, self._retries, what)
        except OSError as error:
            if error.errno is None:
                raise FileError(f"{failure}: {error}") from error
            raise file_error(str(error.filename or ""), failure, error) from error

    def _compare(self, written: Manifest) -> None:
        # what training changes: floating tensors of some size, not states of generators nor counts of steps
        trained = [one for one in written.entries if "float" in one.dtype and one.shape not in ((), (1,))]
        before, self._before = self._before, (written.step, trained)
        if before is not None and before[0] != written.step and before[1] and before[1] == trained:
            self._warn(
                f"{self._files}: steps {before[0]} and {written.step} have the same weights; is the model that is "
                "saved the one that is trained?"
            )

    def _prune(self, step: int) -> None:
        report = verify(self._files.data(step))
        if report.problems:
            raise CorruptFileError(f"{report.file}: {report.problems[0]}; nothing was pruned")
        if self.replaced:
            settle(self._files)
        self.replaced = []
        if self._keep is not None:
            remove(self._files, plan(self._files, self._keep, {step}))

    def rehearse(self, root: Any, manifest: Manifest) -> None:
        """Check that the disk has room for all checkpoints to come; write one, and remove it."""

        def attempt() -> None:
            if not self._files.remote:
                self._check_room(covered_bytes([tensor for _, tensor in tensors_of(root)]))
            write = None if self._compression is None else coded_writing.write
            self._files.commit(root, manifest, self._format, write=write, dry_run=True)

        self._retry(attempt, "a checkpoint could not be saved for a try", "no step could be saved here")

    def _check_room(self, nbytes: int) -> None:
        found = os.statvfs(self._files.path)
        most = getattr(self._keep, "n", 1) + 1
        missing = max(most - len(self._files.steps()), 1) * nbytes - found.f_bavail * found.f_frsize
        if missing > 0:
            raise FileError(
                errno.ENOSPC,
                f"{most} checkpoints of {nbytes:,} bytes have to fit, {missing:,} more than are free; make room, keep "
                "fewer, or name another disk",
                self._files.path,
            )


def libraries() -> dict[str, str]:
    """Name → version of what makes checkpoints here."""
    versions = {"statedict": __version__, "python": platform.python_version()}
    loaded = {name: sys.modules.get(name) for name in ("numpy", "torch")}
    return versions | {name: str(module.__version__) for name, module in loaded.items() if module is not None}
