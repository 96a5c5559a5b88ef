"""Saves beside training: one after the other, a bound on their number, no error lost; and the end of the process.

Each save has a thread, and the end of the program waits for them. When the interpreter shuts down it calls `_finish`,
waits for threads that are not daemons, runs atexit handlers, and flushes standard output and standard error. If the
flush fails, the status is 120 (in a child of multiprocessing 1). So with unreported errors flushing fails then, and
only then. See docs/decisions/0020-interrupts-and-exits.md.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import sys
import threading
import time
import warnings
from _thread import get_ident, start_new_thread
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import count
from types import FrameType
from typing import Any, TypeVar

from statedict.collector import Paused
from statedict.errors import RunError
from statedict.io.parallel import Task
from statedict.tensor.segments import Arena

Result = TypeVar("Result")

LOG = logging.getLogger("statedict.runs")
_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}
_PAUSE = 0.5  # seconds before the first retry; each pause is four times the one before
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_JOBS: set[_Job] = set()  # under way
_ERRORS: dict[int, str] = {}  # number → text; the errors themselves would keep the saved trees alive
_NUMBERS = count()  # unlike ids never used twice
_STATE = {"ending": False}


class Background:
    """Runs jobs one after the other, at most `most` under way; each has memory of its own until it is done."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._rooms = [Arena() for _ in range(most)]
        self._jobs: list[_Job] = []
        self._errors: dict[int, BaseException] = {}
        self.warnings: list[str] = []  # issued at the next call from outside
        self._process = os.getpid()

    def save(self, copy: Callable[[Arena], Any], write: Callable[[Any], None], wait: bool = True) -> bool:
        """Copy into free memory, and have a thread write that; False if none is free and the caller does not wait."""
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
                _JOBS.discard(task)
            raise

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            LOG.error("%s", error)
            if not isinstance(error, Exception) and get_ident() == threading.main_thread().ident:
                raise  # an interrupt of the caller that waits
            self._errors[add_error(error)] = error

    def forget(self) -> None:
        """Drop warnings and errors; they have been logged."""
        self.warnings.clear()
        self._take_errors()

    def surface(self, stacklevel: int) -> None:
        """Issue the warnings and raise the first error of a job, with the others as notes; forget them."""
        if self._process != os.getpid():  # they belong to another process
            return
        while self.warnings:
            warnings.warn(self.warnings.pop(0), stacklevel=stacklevel + 1)
        errors = self._take_errors()
        for error in errors[1:]:
            errors[0].add_note(f"and another save failed: {error}")
        if errors:
            raise errors[0]

    def _take_errors(self) -> list[BaseException]:
        numbers = [*self._errors]  # a job that fails meanwhile may add one
        for number in numbers:
            _ERRORS.pop(number, None)
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
        _prepare()
        _JOBS.add(self)  # first, so that either `_finish` sees it or it sees `_finish`
        if not _STATE["ending"]:
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
        before = self._before  # another thread may clear it meanwhile
        if before is not None:
            before.finish()
            self._before = None
        here = self.run()
        if self.over:
            _JOBS.discard(self)
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


class Preemption:
    """Listens to signals until `close`; a second one of a kind has its usual effect."""

    def __init__(self, signals: Iterable[int]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RunError("signals are heard in the main thread only; make the manager there, or leave preemption out")
        self.received = 0  # the number of the first signal
        self._process = os.getpid()
        self._before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received == number or os.getpid() != self._process:  # in a fork signals have their usual effect
            signal.signal(number, self._before[number] or signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = self.received or number

    def close(self) -> None:
        """Put the old handlers back."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler or signal.SIG_DFL)
        self._before = {}


def add_error(error: BaseException) -> int:
    """Register an unreported error; return its number."""
    number = next(_NUMBERS)
    _ERRORS[number] = f"{type(error).__name__}: {error}"
    return number


@cache
def _prepare() -> None:
    os.register_at_fork(after_in_child=_forget)
    # called when the interpreter begins to shut down; in children of multiprocessing atexit runs after their status
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(_finish)
    except RuntimeError:  # it has begun
        _finish()


def _forget() -> None:
    _JOBS.clear()
    _ERRORS.clear()
    _STATE["ending"] = False


def _finish() -> None:
    _STATE["ending"] = True
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, _Last(stream))
            break
    try:
        for job in list(_JOBS):
            job.finish()
    except BaseException as interrupt:
        add_error(interrupt)
        raise


class _Last:
    """A stream whose flush prints errors and fails if the interpreter calls it at its end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._told: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if _ERRORS and _is_end(sys._getframe().f_back):
            errors = "\n".join(text for number, text in _ERRORS.items() if number not in self._told)
            if errors:  # it flushes more than once, and each time has to fail
                self._told |= _ERRORS.keys()
                self._stream.write(f"statedict: the program ends, and not all was saved:\n{errors}\n")
            self._stream.flush()
            raise OSError("not all was saved")
        self._stream.flush()


def _is_end(caller: FrameType | None) -> bool:
    """Whether the caller is the interpreter, or multiprocessing at the end of a child."""
    return caller is None or caller.f_globals.get("__name__") == "multiprocessing.util"
