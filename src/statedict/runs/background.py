"""What goes on while training does: one save after the other, a bound on how many, errors that are not lost.

Each save has a thread; ending.py has the program wait for it at its end, and tell of those that fail then.
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

from statedict.errors import RunError
from statedict.io.parallel import Task
from statedict.runs import ending
from statedict.tensor.segments import Arena

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Result = TypeVar("Result")


LOG = logging.getLogger("statedict.runs")


class Background:
    """Carries out jobs one after the other; each has memory of its own until it is done.

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

    def room(self, waiting: bool) -> Arena | None:
        """Memory for a job; None if all of it is in use and nobody wants to wait.

        Raises:
            RunError: this process is a fork, made while jobs were under way.
        """
        while True:
            self._check_process()
            under_way = [job for job in self._jobs if not job.over]
            free = [room for room in self._rooms if all(room is not job.room for job in under_way)]
            if free:
                self._jobs = under_way
                return free[0]
            if not waiting:
                return None
            under_way[0].finish()

    def give_up(self, room: Arena) -> None:
        """Never use a room again: whatever interrupted a copy into it, a thread may still write there."""
        self._rooms = [Arena() if one is room else one for one in self._rooms]

    def start(self, job: Callable[[], None], room: Arena) -> None:
        """Carry out a job, in a room from `room`; at once where no thread can be started."""
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
                raise  # an interrupt of who waits
            self._errors[ending.add_error(error)] = error

    def warn(self, text: str) -> None:
        """Warn at the next call from outside."""
        self._warnings.append(text)

    def forget(self) -> None:
        """Drop what there is to warn of and to raise; it has been logged."""
        self._warnings.clear()
        self._take_errors()

    def surface(self, stacklevel: int) -> None:
        """Warn of what there is to warn of, raise the first error of a job, with the others as notes; forget them."""
        if self._process != os.getpid():  # they are those of another process
            return
        while self._warnings:
            warnings.warn(self._warnings.pop(0), stacklevel=stacklevel + 1)
        errors = self._take_errors()
        for error in errors[1:]:
            errors[0].add_note(f"and another save failed: {error}")
        if errors:
            raise errors[0]

    def _take_errors(self) -> list[BaseException]:
        """Those that nobody was told of, for whoever is told now; a job that fails meanwhile may add one."""
        numbers = [*self._errors]
        for number in numbers:
            ending.remove_error(number)
        return [self._errors.pop(number) for number in numbers]

    def wait(self) -> None:
        """Until every job is done.

        Raises:
            RunError: this process is a fork, made while jobs were under way.
        """
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
    """A job, its thread, and the job before it, which comes first.

    Attributes:
        room: its memory.
    """

    __slots__ = ("_before", "room")

    def __init__(self, call: Callable[[], None], room: Arena, before: _Job | None) -> None:
        super().__init__(call)
        self.room = room
        self._before: _Job | None = before

    def start(self) -> None:
        """Run in a thread; here where there can be none, or when the program is at its end."""
        if ending.begin(self):
            try:
                # Thread.start waits until the thread runs: for ever, if memory is too short for it to begin
                start_new_thread(self._follow, ())
                return
            except (RuntimeError, MemoryError):  # the interpreter or the system gives no thread
                pass
        self._follow()

    def finish(self) -> None:
        """Wait until it is over; do it here if no thread has begun it."""
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


_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}


_PAUSE = 0.5  # seconds before the first retry; each pause is four times the one before


def retry(work: Callable[[], Result], retries: int, what: str) -> Result:
    """What a function returns; after an error that may pass it is called again.

    Args:
        work: leaves nothing behind that would keep it from being called again.
        retries: how often it is called again.
        what: could not be done, for the log.

    Raises:
        OSError: the error did not pass, or is of another kind.
    """
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
