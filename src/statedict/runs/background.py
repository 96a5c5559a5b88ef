"""Saves beside training: one after the other, a bound on their number, no error lost.

Each has a thread. ending.py makes the program wait for them at its end, and reports those that fail then.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import warnings
from _thread import get_ident, start_new_thread
from collections.abc import Callable
from functools import partial
from threading import main_thread

from statedict.collector import Paused
from statedict.errors import RunError
from statedict.io.parallel import Task
from statedict.runs import ending
from statedict.tensor.segments import Arena

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    Result = TypeVar("Result")


LOG = logging.getLogger("statedict.runs")
_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}
_PAUSE = 0.5  # seconds before the first retry; each pause is four times the one before


class Background:
    """Runs jobs one after the other; each has memory of its own until it is done.

    Attributes:
        most: how many may be under way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._rooms = [Arena() for _ in range(most)]
        self._jobs: list[_Job] = []
        self._errors: dict[int, BaseException] = {}
        self._warnings: list[str] = []
        self._process = os.getpid()

    def save(self, copy: Callable[[Arena], Any], write: Callable[[Any], None], wait: bool = True) -> bool:
        """Copy into free memory and return; a thread, or this one if there is none, writes the copy.

        Returns:
            False if all memory is in use and the caller does not wait.
        """
        room = self._find_room(wait)
        if room is None:
            return False
        try:
            with Paused():
                state = copy(room)
        except BaseException:  # a thread may still write into that room
            self._rooms = [Arena() if one is room else one for one in self._rooms]
            raise
        self._start(partial(write, state), room)
        return True

    def _find_room(self, wait: bool) -> Arena | None:
        while True:
            self._check_process()
            under_way = [job for job in self._jobs if not job.over]
            free = [room for room in self._rooms if all(room is not job.room for job in under_way)]
            if free:
                self._jobs = under_way
                return free[0]
            if not wait:
                return None
            under_way[0].finish()

    def _start(self, job: Callable[[], None], room: Arena) -> None:
        task = _Job(partial(self._run, job), room, self._jobs[-1] if self._jobs else None)
        self._jobs = [*(one for one in self._jobs if not one.over), task]
        try:
            task.start()
        except BaseException:
            if task.cancel():  # if its thread has begun, it goes on
                ending.end(task)
            raise

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            LOG.error("%s", error)
            if not isinstance(error, Exception) and get_ident() == main_thread().ident:
                raise  # an interrupt of the caller that waits
            self._errors[ending.add_error(error)] = error

    def warn(self, text: str) -> None:
        """Warn at the next call from outside."""
        self._warnings.append(text)

    def forget(self) -> None:
        """Drop warnings and errors; they have been logged."""
        self._warnings.clear()
        self._take_errors()

    def surface(self, stacklevel: int) -> None:
        """Issue the warnings and raise the first error of a job, with the others as notes; forget them."""
        if self._process != os.getpid():  # they belong to another process
            return
        while self._warnings:
            warnings.warn(self._warnings.pop(0), stacklevel=stacklevel + 1)
        errors = self._take_errors()
        for error in errors[1:]:
            errors[0].add_note(f"and another save failed: {error}")
        if errors:
            raise errors[0]

    def _take_errors(self) -> list[BaseException]:
        numbers = [*self._errors]  # a job that fails meanwhile may add one
        for number in numbers:
            ending.remove_error(number)
        return [self._errors.pop(number) for number in numbers]

    def wait(self) -> None:
        """Wait until every job is done."""
        self._check_process()
        for job in self._jobs:
            job.finish()

    def close(self) -> None:
        """Wait; in a fork there is nothing to wait for."""
        if self._process == os.getpid():
            self.wait()

    def _check_process(self) -> None:
        if self._process != os.getpid() and any(not job.over for job in self._jobs):
            raise RunError(
                "this process is a fork, made while a save was under way, and only the process that began the save can "
                "wait for it; wait() there before the fork, or make a manager here"
            )


class _Job(Task):
    """A job, its memory, and the job that runs before it."""

    __slots__ = ("_before", "room")

    def __init__(self, call: Callable[[], None], room: Arena, before: _Job | None) -> None:
        super().__init__(call)
        self.room, self._before = room, before

    def start(self) -> None:
        """Run in a thread; right here if there is none, or the program ends."""
        if ending.begin(self):
            try:
                # Thread.start waits until the thread runs: for ever, if memory is too short for it to begin
                start_new_thread(self._follow, ())
                return
            except (RuntimeError, MemoryError):  # the interpreter or the system gives no thread
                pass
        self._follow()

    def finish(self) -> None:
        """Wait until it is done; run it here if no thread has begun it."""
        while not self.wait():
            self._follow()

    def _follow(self) -> None:
        if self._before is not None:
            self._before.finish()
            self._before = None
        here = self.run()
        if self.over:
            ending.end(self)
        if here:
            self.result()


def retry(work: Callable[[], Result], retries: int, what: str) -> Result:
    """Call a function, again after an error that may pass."""
    pause = _PAUSE
    while True:
        try:
            return work()
        except OSError as error:
            if not retries or error.errno not in _TRANSIENT:
                raise
            LOG.warning("%s, which is tried again: %s", what, error)
        time.sleep(pause)
        retries, pause = retries - 1, pause * 4
