"""CheckpointManager: save the checkpoints of a training run, find the newest sound one, prune the rest."""

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

from statedict.adapters.collect import copy_arrays
from statedict.api.files import load, to_writable, unwrap_root
from statedict.api.live import restore
from statedict.collector import Paused
from statedict.errors import ArgumentError, RunError
from statedict.formats import resolve_name
from statedict.io.location import location
from statedict.io.urls import to_name
from statedict.reports.outcomes import RestoreReport
from statedict.reports.runs import Pruned
from statedict.runs.background import LOG, SIGNALS, Background, Preemption, add_error, retry
from statedict.runs.directory import Directory
from statedict.runs.keep import Policy, Schedule, check_choice, check_step, to_numbers, to_policy, to_schedule
from statedict.runs.loader import put_back, split_covered
from statedict.runs.lock import Lock
from statedict.runs.look.reader import Reader
from statedict.runs.manifest import DATA, Manifest
from statedict.runs.prune import plan, remove
from statedict.runs.replaced import check_needed, find_superseded, settle
from statedict.runs.writer import Writer, libraries, to_compression


class CheckpointManager(Reader):
    """The checkpoints of a training run, in a directory of their own.

    Each is a folder named by its step, which appears whole: a file that any tool opens, a manifest with digests, and a
    marker. Saving copies the tree and returns; a thread does the rest, and the program waits for it at its end. One
    process at a time writes; any number may read.

    Args:
        directory: a path or URL; made if missing.
        keep: which checkpoints stay once a newer one is committed and verified: a policy (`LatestN`, `BestN`,
            `EveryNSteps`, `EveryNSeconds`, `CustomSteps`); an int means `LatestN(int)`, a list any-of, None all.
        save_every: when `save` saves: a number of steps, a `timedelta`, `EveryNSteps`, `EveryNSeconds`, `CustomSteps`,
            or a list of them. None saves at every call.
        format: `"safetensors"` or `"torch"`, or a suffix of theirs such as `"pth"`.
        background: whether `save` returns once the tree is copied.
        compress: `"planes"` compresses each checkpoint by itself; `"delta"` stores most as lossless differences from
            the last whole one. Takes the extra `compress`, and safetensors.
        full_every: with `"delta"`, of so many checkpoints one is whole: damage of one file costs at most these.
        in_flight: most copies at a time; each takes as much memory as a checkpoint.
        busy: what `save` does when there are as many: `"wait"`, or `"skip"` this one.
        verify: how `latest` checks a checkpoint: `"full"` by its digests; `"quick"` by its manifest, headers and
            sizes; `"off"` by its manifest.
        existing: what the first `save` does if the directory has checkpoints and nothing was restored: `"error"`,
            `"continue"`, or `"replace"` them once the new one is committed. After a `restore`, `"replace"` removes
            those after the restored step. Pinned ones stay.
        preemption: signals at which the next `save` saves, whatever `save_every` says, and ends the process with status
            128 + signal. True means SIGTERM and SIGUSR1.
        retries: how often to repeat a write after an error that may pass, such as EIO.
        check: a tree like those to come, to write and remove now, which finds a disk that is too small for all that
            `keep` keeps before training begins.

    Raises:
        ArgumentError: an argument is invalid.
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
        compress: str | None = None,
        full_every: int = 5,
        in_flight: int = 1,
        busy: str = "wait",
        verify: str = "full",
        existing: str = "error",
        preemption: bool | Iterable[int] = False,
        retries: int = 3,
        check: Any = None,
    ) -> None:
        format = resolve_name(format)
        check_choice("format", format, tuple(DATA))
        check_choice("busy", busy, ("wait", "skip"))
        check_choice("existing", existing, ("error", "continue", "replace"))
        if type(in_flight) is not int or type(retries) is not int or in_flight < 1 or retries < 0:
            raise ArgumentError(f"in_flight={in_flight}, retries={retries}: in_flight is 1 or more, retries 0 or more")
        # absolute, as the process may change its directory later
        super().__init__(Directory(location(to_name(directory)).absolute()), to_policy(keep), verify)
        self._save_every = to_schedule(save_every)
        self._existing, self._waits = existing, busy == "wait"
        self._background, self._copies = Background(in_flight), background
        compression = to_compression(compress, full_every, format)
        self._writer = Writer(self._files, self._keep, format, retries, self._background.warnings.append, compression)
        self._lock: Lock | None = None
        self._last: int | None = None  # saved or restored by this manager
        self._of_thread = local()  # `last`: saved in it; threads that save side by side come in any order
        self._ordered = False  # whether the next step is known to come after those that are there
        self._owed = False  # whether the last save failed
        self._process, self._one_at_a_time = os.getpid(), RLock()
        self._not_captured: tuple[str, ...] | None = None
        self._since = time.monotonic()
        self._retries, self._format = retries, format
        retry(self._files.place.make, retries, "the directory could not be made")
        signals = SIGNALS if preemption is True else tuple(preemption or ())
        self._preemption = Preemption(signals) if signals else None
        if check is not None:
            self._rehearse(check)

    def __repr__(self) -> str:
        """The settings that decide what is written and what stays; the disk is not read."""
        settings = f"keep={self._keep}, save_every={self._save_every}, format={self._format!r}"
        return f"CheckpointManager({str(self._files)!r}, {settings})"

    @property
    def preempted(self) -> bool:
        """Whether a signal has announced the end of the process; the next `save` saves and ends it."""
        return self._preemption is not None and self._preemption.received != 0

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
        """Save a checkpoint if one is due. In the background, later changes of the tree do not reach it.

        Args:
            step: 0 or more.
            tree: as for `statedict.save`: models, optimizers, schedulers, samplers, `statedict.rng()`, plain values.
                Loaders without a state are left out, which is logged at the first save and written into the manifest.
            metrics: name → number.
            force: save whatever `save_every` says.
            overwrite: replace a checkpoint of that step.

        Returns:
            Whether it is or will be saved: not if it is not due, if the step was saved or restored last, or if
            `busy="skip"`.

        Raises:
            SystemExit: a signal came, and the checkpoint is committed.
            RunError: the step or those of another run are there already, or another process writes here.
            FileError: the disk refuses, now or during the last save in the background.
            UnsupportedError: a value that no file can hold.
        """
        if os.getpid() != self._process:
            raise RunError(f"{self._files}: this process is a fork of the one that made the manager; save in that one")
        if self.preempted:
            self._background.forget()  # they have been logged, and this is the last chance
        else:
            self._background.surface(2)
        step, measured = check_step(step), to_numbers({} if metrics is None else metrics)
        with self._one_at_a_time:
            saved = (force or self.should_save(step)) and self._save(step, tree, measured, force, overwrite)
            if self._preemption is not None and self._preemption.received:
                self.wait()
                self.close()
                sys.exit(128 + self._preemption.received)
        return saved

    def _save(self, step: int, tree: Any, measured: dict[str, float], force: bool, overwrite: bool) -> bool:
        if self._last == step and not overwrite and not (self._owed and not self._files.is_committed(step)):
            return False
        self._admit(step, overwrite)
        if overwrite:
            self._background.wait()  # a delta to it may be under way
        check_needed(self._files, step, self._writer.replaced, self._verify)
        kept, left = split_covered(tree)
        if self._not_captured is None:
            for what in left:
                LOG.warning("not captured: %s", what)
        self._not_captured = left
        manifest = Manifest(step, time.time(), measured, libraries(), not_captured=left)
        if not self._copies:
            with Paused():
                self._write(to_writable(kept), manifest)
        elif not self._background.save(
            lambda room: unwrap_root(copy_arrays(kept, room)),
            lambda state: self._write(state, manifest),
            self._waits or force or self.preempted,
        ):
            LOG.info("step %d is not saved, %d are still being written", step, self._background.most)
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

    def _rehearse(self, tree: Any) -> None:
        kept, left = split_covered(tree)
        with Paused():
            root = to_writable(kept)
        lock = self._take_lock()
        try:
            self._writer.rehearse(root, Manifest(0, time.time(), {}, libraries(), not_captured=left))
        finally:
            lock.release()

    def _admit(self, step: int, overwrite: bool) -> None:
        """Refuse a step that is there, and another run's directory; the first time lock and clean the directory."""
        if self._lock is None or not self._lock.is_held:
            self._begin(step, overwrite)
            return
        self._lock.renew()
        if not self._ordered:
            self._check_order(step, overwrite, self._files.steps())
        if overwrite:
            return
        there = step not in self._writer.replaced and self._files.is_committed(step)
        if there and step not in find_superseded(self._files) and self._files.damage(step, "quick") is None:
            raise RunError(f"{self._files}: step {step} is committed already; pass overwrite=True to replace it")
        if step < getattr(self._of_thread, "last", step):
            self._background.wait()  # a later step may be under way
            self._check_order(step, overwrite, self._files.steps())

    def _begin(self, step: int, overwrite: bool) -> None:
        lock = self._take_lock()
        try:
            there = self._files.steps()
            if self._existing == "replace":
                self._writer.replaced = [one for one in there if self._last is None or one > self._last]
            self._check_new("nothing was restored; restore(tree)", there)
            self._check_order(step, overwrite, there)
            for clean in (self._files.clean, partial(settle, self._files)):
                retry(clean, self._retries, "what is left over could not be removed")
        except BaseException:
            lock.release()
            raise
        self._lock, self._known, self._existing = lock, True, "continue"

    def _check_new(self, remedy: str, there: list[int]) -> None:
        if there and self._existing == "error" and not self._known:
            raise RunError(
                f"{self._files}: has {len(there):,} checkpoints, up to step {there[-1]}, and {remedy} to go on, "
                "existing='replace' to begin anew, or name another directory"
            )

    def _check_order(self, step: int, overwrite: bool, there: list[int]) -> None:
        """Refuse a step before existing ones, which would be taken for the newest."""
        past = {*self._writer.replaced} | find_superseded(self._files)
        after = [one for one in there if one >= step + overwrite and one not in past]
        later = [one for one in after if self._files.damage(one, self._verify) is None]
        if later:
            raise RunError(
                f"{self._files}: has step {later[-1]}, which is not before step {step}; restore(tree) from it, or make "
                "a manager with existing='replace', which removes what comes after the step that it restores"
            )
        self._ordered = True

    def _take_lock(self) -> Lock:
        take = partial(Lock, self._files.path, self._background.wait)
        lock = retry(take, self._retries, "the directory could not be locked")
        self._files.place.guard = lock.guard
        return lock

    @property
    def not_captured(self) -> tuple[str, ...]:
        """What the last saved tree had and its checkpoint lacks."""
        return self._not_captured or ()

    def restore(self, tree: Any, step: int | None = None, **options: Any) -> RestoreReport:
        """Put a checkpoint back into live objects; the newest sound one by default. Waits for saves under way.

        Args:
            tree: as for `save`.
            step: which one; a damaged one is an error.
            options: those of `statedict.restore`, whose report it returns with the step.

        Raises:
            MissingFileError: there is no checkpoint, or not that one.
            CorruptFileError: that step is damaged.
            RestoreError: it does not fit; nothing was written.
        """
        self.wait()
        kept, _ = split_covered(tree)

        def use(chosen: int) -> RestoreReport:
            return replace(restore(kept, load(self._files.data(chosen)), **options), step=chosen)

        report = self._open(step, use)
        if report.written:
            put_back(tree, kept)
            self._last, self._ordered = report.step, False
        return report

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what `keep` does not keep, as each save does; with `dry_run` only report it.

        Raises:
            RunError: another process writes here.
            FileError: something could not be removed.
        """
        if dry_run:
            return plan(self._files, self._keep, set())
        self._background.wait()  # one at a time changes the directory
        return retry(self._prune, self._retries, "some could not be removed")

    def _prune(self) -> Pruned:
        held = self._lock is not None and self._lock.is_held
        lock = self._lock if self._lock is not None and held else self._take_lock()
        lock.renew()
        try:
            found = plan(self._files, self._keep, set())
            remove(self._files, found)
            return found
        finally:
            if not held:
                lock.release()

    def wait(self) -> None:
        """Wait until everything saved is committed.

        Raises:
            FileError: a save failed.
            RunError: this process is a fork of one that saves.
        """
        self._background.wait()
        self._background.surface(2)

    def close(self) -> None:
        """Wait, and let others write into the directory; in a fork there is nothing to wait for.

        Raises:
            FileError: a save in the background failed.
        """
        try:
            if os.getpid() == self._process:
                self.wait()
        finally:
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
                add_error(failed)  # whoever closes a generator or cancels a task does not see its error


def check_new(manager: CheckpointManager, remedy: str) -> None:
    """Refuse to begin training over checkpoints that nobody asked for; `remedy` says how to go on from them."""
    if manager._existing == "error" and not manager._known:
        manager._check_new(remedy, manager._files.steps())
    manager._known = True
