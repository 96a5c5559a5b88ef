"""CheckpointManager: saves the checkpoints of a training run, finds the newest sound one, keeps what is to be kept."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from threading import RLock, local
from typing import Any

from statedict.adapters.collect import collect, copy_arrays
from statedict.api.files import load, to_writable, unwrap_root
from statedict.api.live import restore
from statedict.collector import Paused
from statedict.errors import RunError
from statedict.io.urls import is_url, to_name
from statedict.reports.restore import RestoreReport
from statedict.runs import ending
from statedict.runs.arguments import numbers, one_of, whole_step
from statedict.runs.background import LOG, Background, retry
from statedict.runs.coverage import put_back, split_covered
from statedict.runs.directory import Directory
from statedict.runs.exclusive import Exclusive
from statedict.runs.keep import Policy, Schedule, to_policy, to_schedule
from statedict.runs.manifest import DATA, Manifest
from statedict.runs.preemption import USUAL, Preemption
from statedict.runs.prune import Pruned, plan, remove
from statedict.runs.writer import Writer, libraries

_EXISTING = ("error", "continue", "replace")


class CheckpointManager(Exclusive):
    """The checkpoints of a training run, in a directory of their own.

    Each is a directory named by its step, which appears whole: a file that any tool opens, a manifest with digests, and
    a marker. Saving copies the tree and returns; the rest goes on in a thread, and the program ends when that has.
    One process at a time writes; any number may read.

    Args:
        directory: where; made if it is not there. Or a URL (`s3://`, `gs://`, `az://`).
        keep: which checkpoints stay, once a newer one is committed and verified: a number for the latest so many, a
            policy (`LatestN`, `BestN`, `EveryNSteps`, `EveryNSeconds`, `CustomSteps`), or a list of them, of which any
            keeps. None keeps all.
        save_every: when `save` saves: a number of steps, a `timedelta`, `EveryNSteps`, `EveryNSeconds`, `CustomSteps`,
            or a list of them. None saves at every call.
        format: `"safetensors"` or `"torch"`.
        background: whether `save` returns once the tree is copied.
        in_flight: how many copies there may be at a time; each takes as much memory as a checkpoint.
        busy: what `save` does when there are as many: `"wait"`, or `"skip"` this one.
        verify: how the newest is looked at before it counts: `"full"`, by its digests; `"quick"`, by its manifest,
            headers and sizes; `"off"`.
        existing: what the first `save` does in a directory that has checkpoints from which nothing was restored:
            `"error"`, `"continue"`, or `"replace"` them once the new one is committed. After a `restore`, `"replace"`
            removes those that come after the step that was restored. Pinned ones stay.
        preemption: signals at which the next `save` saves, whatever `save_every` says, and ends the process with the
            status 128 + signal. True means SIGTERM and SIGUSR1.
        retries: how often a write is tried again after an error that may pass, such as EIO.
        check: a tree like those that will be saved. It is written and taken away again, and its size is held against
            the disk's room for all checkpoints that `keep` lets there be, so that a disk which is too small is known
            before training begins.

    Raises:
        RunError: an argument makes no sense.
        FileError: the directory cannot be made or written.

    >>> import numpy, statedict, tempfile
    >>> weights = {"w": numpy.zeros(3)}
    >>> with statedict.CheckpointManager(tempfile.mkdtemp(), keep=2) as manager:
    ...     for step in (1, 2, 3):
    ...         weights["w"] += 1
    ...         _ = manager.save(step, weights, metrics={"loss": 1 / step})
    ...     manager.wait()
    ...     manager.steps(), manager.latest(), manager.best("loss")
    ([2, 3], 3, 3)
    >>> print(statedict.CheckpointManager(manager.directory).restore(weights, step=2))
    restored 1 of 1 entries
    >>> weights["w"]
    array([2., 2., 2.])
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | Policy | Iterable[int | Policy] | None = None,
        save_every: int | timedelta | Schedule | Iterable[int | Schedule] | None = None,
        format: str = "safetensors",
        background: bool = True,
        in_flight: int = 1,
        busy: str = "wait",
        verify: str = "full",
        existing: str = "error",
        preemption: bool | Iterable[int] = False,
        retries: int = 3,
        check: Any = None,
    ) -> None:
        one_of("format", format, tuple(DATA))
        one_of("busy", busy, ("wait", "skip"))
        one_of("existing", existing, _EXISTING)
        if type(in_flight) is not int or type(retries) is not int or in_flight < 1 or retries < 0:
            raise RunError(f"in_flight={in_flight}, retries={retries}: in_flight is 1 or more, retries 0 or more")
        name = to_name(directory)
        # a relative path is that of now, wherever the process goes afterwards
        super().__init__(Directory(name if is_url(name) else os.path.abspath(name)), to_policy(keep), verify)
        self._save_every = to_schedule(save_every)
        self._existing, self._waits = existing, busy == "wait"
        self._background = Background(in_flight) if background else None
        self._messages = self._background or Background(1)
        self._writer = Writer(self._files, self._keep, format, retries, self._messages.warn)
        self._of_thread = local()
        self._owed = False  # whether a save has failed and none has followed
        self._process, self._one_at_a_time = os.getpid(), RLock()
        self._not_captured: tuple[str, ...] | None = None
        self._since = time.monotonic()
        self._retries = retries
        retry(self._files.make, retries, "the directory could not be made")
        signals = USUAL if preemption is True else tuple(preemption or ())
        self._preemption = Preemption(signals) if signals else None
        if check is not None:
            self._rehearse(check)

    @property
    def preempted(self) -> bool:
        """Whether a signal has said that the process is to end; the next `save` saves and ends it."""
        return self._preemption is not None and self._preemption.received != 0

    # saving

    def should_save(self, step: int) -> bool:
        """Whether `save` would save at a step."""
        if self.preempted or self._owed or self._save_every is None:
            return True
        return self._save_every.due(step, self._last, time.monotonic() - self._since)

    def save(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, float] | None = None,
        *,
        force: bool = False,
        overwrite: bool = False,
    ) -> bool:
        """Save a checkpoint, if one is due. In the background, what happens to the tree afterwards does not reach it.

        Args:
            step: 0 or more.
            tree: as for `statedict.save`: models, optimizers, schedulers, samplers, `statedict.rng()`, plain values.
                Loaders without a state are left out; what is, is logged at the first save and in the manifest.
            metrics: name → number.
            force: save whatever `save_every` says.
            overwrite: replace a checkpoint of that step.

        Returns:
            Whether it was saved, or is about to be: not if it is not due, if it was saved or restored last, or if
            `busy="skip"`.

        Raises:
            SystemExit: a signal has come, and the checkpoint is committed.
            RunError: the step is there already, or those of another run are, or another process writes here.
            FileError: the disk refuses, now or for the save before, which went on in the background.
            UnsupportedError: a value that no file can hold.
        """
        if os.getpid() != self._process:
            raise RunError(f"{self._files}: this process is a fork of the one that made the manager; save in that one")
        if self.preempted:
            self._messages.forget()  # they have been logged, and this is the last chance
        else:
            self._messages.surface(2)
        step, measured = whole_step(step), numbers({} if metrics is None else metrics)
        with self._one_at_a_time:
            saved = (force or self.should_save(step)) and self._save(step, tree, measured, force, overwrite)
            self._end_if_preempted()
        return saved

    def _save(self, step: int, tree: Any, measured: dict[str, float], force: bool, overwrite: bool) -> bool:
        if self._last == step and not overwrite and not (self._owed and not self._files.committed(step)):
            return False
        self._admit(step, overwrite)
        kept, self._not_captured = self._covered(tree)
        manifest = Manifest(step, time.time(), measured, libraries(), not_captured=self._not_captured)
        if self._background is None:
            with Paused():
                self._write(to_writable(kept), manifest)
        elif not self._start(self._background, kept, manifest, self._waits or force or self.preempted):
            return False
        self._last = self._of_thread.last = step
        self._since = time.monotonic()
        return True

    def _write(self, root: Any, manifest: Manifest) -> None:
        try:
            self._writer(root, manifest)
        except BaseException:
            self._owed = True
            raise
        self._owed = False

    def _start(self, background: Background, tree: Any, manifest: Manifest, waiting: bool) -> bool:
        room = background.room(waiting)
        if room is None:
            LOG.info("step %d is not saved, %d are still being written", manifest.step, background.most)
            return False
        try:
            with Paused():
                state = unwrap_root(copy_arrays(collect(tree), room))
        except BaseException:
            background.give_up(room)
            raise
        background.start(partial(self._write, state, manifest), room)
        return True

    def _end_if_preempted(self) -> None:
        if self._preemption is not None and self._preemption.received:
            self.wait()
            self.close()
            sys.exit(self._preemption.status)

    def _covered(self, tree: Any) -> tuple[Any, tuple[str, ...]]:
        kept, left = split_covered(tree)
        if self._not_captured is None:
            for what in left:
                LOG.warning("not captured: %s", what)
        return kept, left

    def _rehearse(self, tree: Any) -> None:
        kept, left = split_covered(tree)
        with Paused():
            root = to_writable(kept)
        lock = self._locked()
        try:
            self._writer.rehearse(root, Manifest(0, time.time(), {}, libraries(), not_captured=left))
        finally:
            lock.release()

    @property
    def not_captured(self) -> tuple[str, ...]:
        """What the tree that was saved last had and its checkpoint has not, in words."""
        return self._not_captured or ()

    def restore(self, tree: Any, step: int | None = None, **options: Any) -> RestoreReport:
        """Put a checkpoint back into live objects; the newest sound one by default.

        What is being saved is waited for first.

        Args:
            tree: as for `save`.
            step: which one; one that is damaged is an error.
            options: those of `statedict.restore`.

        Returns:
            What happened to every entry; its `step` says which checkpoint it was.

        Raises:
            MissingFileError: there is no checkpoint, or not that one.
            CorruptFileError: that step is damaged.
            RestoreError: it does not fit, and nothing was written.
            RunError: this process is a fork, made while a save was under way.
        """
        self.wait()
        kept, _ = split_covered(tree)

        def use(chosen: int) -> RestoreReport:
            return replace(restore(kept, load(self._files.data(chosen)), **options), step=chosen)

        report = self._opened(step, use)
        if report.written:
            put_back(tree, kept)
            self._last, self._ordered = report.step, False
        return report

    # the end

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what `keep` does not keep; that happens by itself after each save.

        Args:
            dry_run: remove nothing.

        Returns:
            What stays, and why; what is removed.

        Raises:
            RunError: another process writes here.
            FileError: something could not be removed.
        """
        if dry_run:
            return plan(self._files, self._keep, set())
        if self._background is not None:
            self._background.wait()  # one at a time changes the directory
        return retry(self._prune, self._retries, "some could not be removed")

    def _prune(self) -> Pruned:
        lock = None
        if self._lock is not None and self._lock.held:
            self._lock.renew()
        else:
            lock = self._locked()
        try:
            found = plan(self._files, self._keep, set())
            remove(self._files, found)
        finally:
            if lock is not None:
                lock.release()
        return found

    def wait(self) -> None:
        """Until all that was saved is committed.

        Raises:
            FileError: one of them could not be.
            RunError: this process is a fork, made while a save was under way.
        """
        if self._background is not None:
            self._background.wait()
        self._messages.surface(2)

    def close(self) -> None:
        """Wait, and let others write into the directory. In a fork there is nothing to wait for.

        Raises:
            FileError: a save that went on in the background has failed.
        """
        try:
            if os.getpid() == self._process:
                self.wait()
        finally:
            if self._background is not None:
                self._background.close()
            if self._preemption is not None:
                self._preemption.close()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as failed:
            if error is None or (isinstance(error, SystemExit) and not error.code):  # nothing else tells of the failure
                raise
            LOG.error("%s", failed)
            error.add_note("\n".join([f"and a save failed: {failed}", *getattr(failed, "__notes__", ())]))
            if not isinstance(error, (Exception, KeyboardInterrupt, SystemExit)):
                ending.add_error(failed)  # who closes a generator or cancels a task is not shown its error
