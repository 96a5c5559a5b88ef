"""Write a checkpoint: retry, compare it with the last one, then prune."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from statedict import __version__
from statedict.api.look import verify
from statedict.errors import CorruptFileError, FileError, file_error
from statedict.runs.background import retry
from statedict.runs.directory import Directory, Result
from statedict.runs.keep import Policy
from statedict.runs.manifest import Entry, Manifest
from statedict.runs.prune import plan, remove
from statedict.runs.replaced import announce, settle
from statedict.tensor.checks import tensors_of
from statedict.tensor.segments import covered_bytes


class Writer:
    """Writes checkpoints into a directory, one at a time."""

    def __init__(
        self, files: Directory, keep: Policy | None, format: str, retries: int, warn: Callable[[str], None]
    ) -> None:
        self._files, self._keep, self._format, self._retries, self._warn = files, keep, format, retries, warn
        self._before: tuple[int, list[Entry]] | None = None
        self.replaced: list[int] = []  # steps to remove once the next one is committed

    def __call__(self, root: Any, manifest: Manifest) -> None:
        """Write one."""
        step = manifest.step
        commit = partial(self._files.commit, root, manifest, self._format)
        if self.replaced:
            commit = partial(commit, announce=partial(announce, self._files, step, self.replaced))
        written = self._retry(commit, f"step {step} could not be saved", f"step {step} was not saved")
        self._compare(written)
        if self._keep is not None or self.replaced:
            removal = "others could not be removed"
            self._retry(
                partial(self._prune, step), f"after step {step} {removal}", f"step {step} is saved, and {removal}"
            )

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
            self._files.commit(root, manifest, self._format, dry_run=True)

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
    return versions | {name: str(sys.modules[name].__version__) for name in ("numpy", "torch") if name in sys.modules}
