"""The right to write into the directory of a run, and what is refused there."""

from __future__ import annotations

from functools import partial
from threading import local

from statedict.errors import RunError
from statedict.runs.background import Background, retry
from statedict.runs.lock import Lock
from statedict.runs.look.reader import Reader
from statedict.runs.replaced import find_superseded, settle
from statedict.runs.writer import Writer


class Exclusive(Reader):
    """A `Reader` that can take the right to write, which one process has at a time."""

    _writer: Writer
    _messages: Background
    _retries: int
    _existing: str
    _lock: Lock | None = None
    _last: int | None = None  # saved or restored by this manager
    _of_thread: local  # `last`: saved by it; threads that save side by side come in any order
    _ordered = False  # whether it is known that what comes next lies behind what is there

    def _admit(self, step: int, overwrite: bool) -> None:
        """Refuse a step that is there, and another run's directory; lock it and clean it."""
        if self._lock is None or not self._lock.held:
            self._begin(step, overwrite)
            return
        self._lock.renew()
        if not self._ordered:
            self._check_order(step, overwrite, self._files.steps())
        if overwrite:
            return
        if self._counts(step) and self._files.damage(step, "quick") is None:
            raise RunError(f"{self._files}: step {step} is committed already; pass overwrite=True to replace it")
        if step < getattr(self._of_thread, "last", step):
            self._messages.wait()  # the one that comes after may be under way
            self._check_order(step, overwrite, self._files.steps())

    def _counts(self, step: int) -> bool:
        """Whether a step is committed, and of this course."""
        there = step not in self._writer.replaced and self._files.committed(step)
        return there and step not in find_superseded(self._files)

    def _begin(self, step: int, overwrite: bool) -> None:
        """What the first save of a manager has to know: whether this directory is for it alone."""
        lock = self._locked()
        try:
            there = self._files.steps()
            if self._existing == "replace":
                # all of them, or what comes after the one that was restored
                self._writer.replaced = [one for one in there if self._last is None or one > self._last]
            elif there and not self._known and self._existing == "error":
                raise RunError(
                    f"{self._files}: has {len(there):,} checkpoints, up to step {there[-1]}, and nothing was restored; "
                    "restore(tree) to go on, existing='replace' to begin anew, or name another directory"
                )
            self._check_order(step, overwrite, there)
            retry(self._clean, self._retries, "what is left over could not be removed")
        except BaseException:
            lock.release()
            raise
        self._lock, self._known, self._existing = lock, True, "continue"

    def _clean(self) -> None:
        self._files.clean()
        settle(self._files)

    def _check_order(self, step: int, overwrite: bool, there: list[int]) -> None:
        """Refuse to write behind what is there: it would be taken for the newest, and it is of another course."""
        past = {*self._writer.replaced} | find_superseded(self._files)
        after = [one for one in there if one >= step + overwrite and one not in past]
        later = [one for one in after if self._files.damage(one, self._verify) is None]
        if later:
            raise RunError(
                f"{self._files}: has step {later[-1]}, which is not before step {step}; restore(tree) from it, or make "
                "a manager with existing='replace', which removes what comes after the step that it restores"
            )
        self._ordered = True

    def _locked(self) -> Lock:
        lock = retry(
            partial(Lock, self._files.path, self._messages.wait), self._retries, "the directory could not be locked"
        )
        self._files.guard = lock.guard
        return lock
