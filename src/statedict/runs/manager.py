"""CheckpointManager: saves the checkpoints of a training run, finds the newest sound one, keeps what is to be kept."""

from __future__ import annotations

import errno
import operator
import os
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from statedict.adapters.collect import collect, copied
from statedict.adapters.report import RestoreReport
from statedict.api import bare, load, restore, rooted
from statedict.collector import Paused
from statedict.errors import CorruptFileError, MissingFileError, RunError
from statedict.io.urls import named
from statedict.runs.background import LOG, Background
from statedict.runs.coverage import covered, put_back
from statedict.runs.directory import LEVELS, Directory
from statedict.runs.keep import BestN, Policy, Schedule, keeping, ranked, saving
from statedict.runs.lock import Lock
from statedict.runs.manifest import DATA, Manifest
from statedict.runs.preemption import USUAL, Preemption
from statedict.runs.prune import Pruned, plan, remove
from statedict.runs.writer import Writer, libraries
from statedict.tree import StateDict

_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}
_TRANSIENT |= {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH}
_PAUSE = 0.5  # seconds before the first retry; each pause is four times the one before
_EXISTING = ("error", "continue", "replace")


class CheckpointManager:
    """The checkpoints of a training run, in a directory of their own.

    Each is a directory named by its step, which appears whole: a file that any tool opens, a manifest with digests, and
    a marker. Saving copies the tree and returns; the rest goes on in a thread. One process at a time writes; any number
    may read.

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
            `"error"`, `"continue"`, or `"replace"` them once the new one is committed.
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
        _one_of("format", format, tuple(DATA))
        _one_of("busy", busy, ("wait", "skip"))
        _one_of("verify", verify, LEVELS)
        _one_of("existing", existing, _EXISTING)
        if in_flight < 1 or retries < 0:
            raise RunError(f"in_flight={in_flight}, retries={retries}: in_flight is 1 or more, retries 0 or more")
        self._files = Directory(named(directory))
        self._keep, self._save_every = keeping(keep), saving(save_every)
        self._verify, self._existing, self._waits = verify, existing, busy == "wait"
        self._background = Background(in_flight) if background else None
        self._messages = self._background or Background(1)
        self._writer = Writer(self._files, self._keep, format, retries, self._messages.warn)
        self._lock: Lock | None = None
        self._known = False  # whether the caller knows what is there
        self._last: int | None = None  # saved by this manager
        self._not_captured: tuple[str, ...] | None = None
        self._since = time.monotonic()
        self._files.make()
        signals = USUAL if preemption is True else tuple(preemption or ())
        self._preemption = Preemption(signals) if signals else None
        if check is not None:
            self._rehearse(check)

    @property
    def directory(self) -> str:
        """Where the checkpoints are."""
        return self._files.path

    @property
    def preempted(self) -> bool:
        """Whether a signal has said that the process is to end; the next `save` saves and ends it."""
        return self._preemption is not None and self._preemption.received != 0

    # saving

    def should_save(self, step: int) -> bool:
        """Whether `save` would save at a step."""
        if self.preempted or self._save_every is None:
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
        self._messages.surface(2)
        step, numbers = _step(step), _numbers(metrics or {})
        if not (force or self.should_save(step)):
            return False
        if self._last == step and not overwrite:
            self._end_if_preempted()
            return False
        self._admit(step, overwrite)
        kept, self._not_captured = self._covered(tree)
        manifest = Manifest(step, time.time(), numbers, libraries(), not_captured=self._not_captured)
        if self._background is None:
            with Paused():
                self._writer(rooted(kept), manifest)
        elif not self._start(self._background, kept, manifest):
            return False
        self._last, self._since = step, time.monotonic()
        self._end_if_preempted()
        return True

    def _start(self, background: Background, tree: Any, manifest: Manifest) -> bool:
        room = background.room(self._waits or self.preempted)
        if room is None:
            LOG.info("step %d is not saved, %d are still being written", manifest.step, background.most)
            return False
        try:
            with Paused():
                state = bare(copied(collect(tree), room))
        except BaseException:
            background.give_back(room)
            raise
        background.start(partial(self._writer, state, manifest), room)
        return True

    def _end_if_preempted(self) -> None:
        if self._preemption is not None and self._preemption.received:
            self.wait()
            self.close()
            sys.exit(self._preemption.status)

    def _admit(self, step: int, overwrite: bool) -> None:
        """Refuse a step that is there, and another run's directory; lock it and clean it."""
        if self._lock is None or not self._lock.held:
            self._begin(step, overwrite)
        elif not overwrite and self._files.committed(step) and self._files.damage(step, "quick") is None:
            raise RunError(f"{self._files}: step {step} is committed already; pass overwrite=True to replace it")

    def _begin(self, step: int, overwrite: bool) -> None:
        """What the first save of a manager has to know: whether this directory is for it alone."""
        lock = Lock(self._files.path, self._messages.wait)
        try:
            there = self._files.steps()
            if self._existing == "replace":
                self._writer.replaced = there
            elif there and not self._known and self._existing == "error":
                raise RunError(
                    f"{self._files}: has {len(there):,} checkpoints, up to step {there[-1]}, and nothing was restored; "
                    "restore(tree) to go on, existing='replace' to begin anew, or name another directory"
                )
            after = [one for one in there if one >= step + overwrite and one not in self._writer.replaced]
            later = [one for one in after if self._files.damage(one, self._verify) is None]
            if later:
                raise RunError(
                    f"{self._files}: has step {later[-1]}, which is not before step {step}; restore(tree) from it, "
                    "existing='replace' to begin anew, or remove it with `statedict runs prune`"
                )
            self._files.clean()
        except BaseException:
            lock.release()
            raise
        self._lock, self._known, self._existing = lock, True, "continue"

    def _covered(self, tree: Any) -> tuple[Any, tuple[str, ...]]:
        kept, left = covered(tree)
        if self._not_captured is None:
            for what in left:
                LOG.warning("not captured: %s", what)
        return kept, left

    def _rehearse(self, tree: Any) -> None:
        kept, left = covered(tree)
        with Paused():
            root = rooted(kept)
        lock = Lock(self._files.path, self._messages.wait)
        try:
            self._writer.rehearse(root, Manifest(0, time.time(), {}, libraries(), not_captured=left))
        finally:
            lock.release()

    @property
    def not_captured(self) -> tuple[str, ...]:
        """What the tree that was saved last had and its checkpoint has not, in words."""
        return self._not_captured or ()

    # what is there

    def steps(self) -> list[int]:
        """The steps that are committed, in order."""
        self._known = True
        return self._files.steps()

    def latest(self, verify: str | None = None) -> int | None:
        """The newest step that is committed and sound; None if there is none.

        A damaged one is passed over, with a warning that names the damage. What was found to be sound is not read
        again while its files stay as they are.

        Args:
            verify: as for the manager.
        """
        self._known = True
        level = self._verify if verify is None else verify
        _one_of("verify", level, LEVELS)
        for step in reversed(self._files.steps()):
            damage = self._files.damage(step, level)
            if damage is None:
                return step
            warnings.warn(f"step {step} is passed over, it is damaged: {damage}", stacklevel=2)
        return None

    def best(self, metric: str, mode: str | None = None) -> int | None:
        """The step with the best value of a metric; None if none has it.

        Args:
            metric: its name.
            mode: `"min"` or `"max"`; by default that of the `BestN` in `keep`, and `"min"` if there is none.
        """
        self._known = True
        if mode is None:
            policies = getattr(self._keep, "policies", (self._keep,))
            mode = next((one.mode for one in policies if isinstance(one, BestN) and one.metric == metric), "min")
        found = ranked(self._files.manifests(), metric, mode)
        return next((one.step for one in found if self._files.damage(one.step, "quick") is None), None)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a step.

        Raises:
            FileError: there is no such step.
        """
        return dict(self._files.brief(self._there(step)).metrics)

    def load(self, step: int | None = None) -> StateDict:
        """A checkpoint's tree, lazily; the newest sound one by default.

        Raises:
            FileError: there is none.
        """
        return load(self._files.data(self._chosen(step)))

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
        """
        self.wait()
        chosen = self._chosen(step)
        kept, _ = covered(tree)
        report = restore(kept, load(self._files.data(chosen)), **options)
        if report.written:
            put_back(tree, kept)
            self._last = chosen
        return replace(report, step=chosen)

    def _chosen(self, step: int | None) -> int:
        self._known = True
        if step is None:
            found = self.latest()
            if found is None:
                raise MissingFileError(errno.ENOENT, "holds no sound checkpoint", str(self._files))
            return found
        damage = self._files.damage(self._there(step), self._verify)
        if damage is not None:
            raise CorruptFileError(f"step {step} is damaged: {damage}")
        return step

    def _there(self, step: int) -> int:
        if not self._files.committed(_step(step)):
            there = self._files.steps()
            held = f"it has {', '.join(map(str, there[-5:]))}" if there else "it has none"
            raise MissingFileError(errno.ENOENT, f"step {step} is not committed there; {held}", str(self._files))
        return step

    # the end

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what `keep` does not keep; that happens by itself after each save.

        Args:
            dry_run: remove nothing.

        Returns:
            What stays, and why; what is removed.
        """
        found = plan(self._files, self._keep, set())
        if not dry_run:
            remove(self._files, found)
        return found

    def wait(self) -> None:
        """Until all that was saved is committed.

        Raises:
            FileError: one of them could not be.
        """
        if self._background is not None:
            self._background.wait()
        self._messages.surface(2)

    def close(self) -> None:
        """Wait, and let others write into the directory.

        Raises:
            FileError: a save that went on in the background has failed.
        """
        try:
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
        except OSError as failed:
            if error is None:
                raise
            LOG.error("%s", failed)


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise RunError(f"{name}={given!r}: is none of {', '.join(map(repr, allowed))}")


def _step(given: Any) -> int:
    try:
        step = operator.index(given)
    except TypeError:
        step = -1
    if step < 0 or isinstance(given, bool):
        raise RunError(f"step={given!r}: expected a whole number of 0 or more")
    return step


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            raise RunError(f"metrics[{name!r}]={value!r:.40}: expected a number") from None
    return found
