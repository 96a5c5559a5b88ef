"""The end of the process: signals that announce it, saves that it waits for, errors that change its status.

When the interpreter shuts down it calls `_finish`, waits for threads that are not daemons, runs atexit handlers, and
flushes standard output and standard error. If the flush fails, the status is 120 (in a child of multiprocessing 1). So
with unreported errors flushing fails then, and only then. See docs/decisions/0020-interrupts-and-exits.md.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterable
from functools import cache
from itertools import count
from types import FrameType
from typing import Any, Protocol

from statedict.errors import RunError

USUAL = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preemption:
    """Listens to signals until `close`; a second one of a kind has its usual effect.

    Attributes:
        received: the number of the first signal; 0 if there was none.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RunError("signals are heard in the main thread only; make the manager there, or leave preemption out")
        self.received = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in signals}

    @property
    def status(self) -> int:
        """The exit status for a process that the signal ended."""
        return 128 + self.received

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


class Job(Protocol):
    """Work in a thread."""

    def finish(self) -> None:
        """Wait until it is done."""


_JOBS: dict[int, Job] = {}  # id → job under way
_ERRORS: dict[int, str] = {}  # number → text; the errors themselves would keep the saved trees alive
_NUMBERS = count()  # unlike ids never used twice
_STATE = {"ending": False}


def begin(job: Job) -> bool:
    """Have the end of the program wait for a job; return whether the job may still start a thread."""
    _prepare()
    _JOBS[id(job)] = job  # first, so that either `_finish` sees it or it sees `_finish`
    return not _STATE["ending"]


def end(job: Job) -> None:
    """Stop waiting for a job that is done."""
    _JOBS.pop(id(job), None)


def add_error(error: BaseException) -> int:
    """Register an unreported error; return its number."""
    number = next(_NUMBERS)
    _ERRORS[number] = f"{type(error).__name__}: {error}"
    return number


def remove_error(number: int) -> None:
    """Forget an error that was reported."""
    _ERRORS.pop(number, None)


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
        for job in list(_JOBS.values()):
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
