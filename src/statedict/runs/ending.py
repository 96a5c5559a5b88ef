"""The end of the program: saves that go on are waited for, and errors that nobody was told of change its status.

The interpreter, when it shuts down, calls `_finish`, waits for threads that are no daemons, calls what atexit knows,
and flushes standard output and standard error. If that fails, its status is 120 ("an error in the cleanup", says
`sys.exit`), in a child of multiprocessing 1. So at that moment, and at no other, flushing fails.
See docs/decisions/0020-interrupts-and-exits.md.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from functools import cache
from itertools import count
from types import FrameType
from typing import Any, Protocol


class Job(Protocol):
    """What goes on in a thread."""

    def finish(self) -> None:
        """Wait until it is over."""


_JOBS: dict[int, Job] = {}  # id → those that are under way
_ERRORS: dict[int, str] = {}  # number → text; the errors themselves would keep alive what was to be saved
_NUMBERS = count()  # not ids, which others get once an error is freed
_STATE = {"ending": False}


def begin(job: Job) -> bool:
    """Have the end of the program wait for a job; whether it may still have a thread for itself."""
    _prepare()
    _JOBS[id(job)] = job  # first, so that either `_finish` sees it or it sees `_finish`
    return not _STATE["ending"]


def end(job: Job) -> None:
    """It is over."""
    _JOBS.pop(id(job), None)


def add_error(error: BaseException) -> int:
    """Nobody has been told of this one yet; the number that it gets."""
    number = next(_NUMBERS)
    _ERRORS[number] = f"{type(error).__name__}: {error}"
    return number


def remove_error(number: int) -> None:
    """Somebody has."""
    _ERRORS.pop(number, None)


@cache
def _prepare() -> None:
    """From the first job on, in this process and its forks."""
    os.register_at_fork(after_in_child=_forget)
    # when the interpreter begins to shut down; in children of multiprocessing atexit comes after their status
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(_finish)
    except RuntimeError:  # it has begun
        _finish()


def _forget() -> None:
    """What goes on in the process that this one was forked from is not for this one to tell."""
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
    """A stream whose flush tells of errors and fails, when it is called by the interpreter at its end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._told: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush."""
        if _ERRORS and _is_the_end(sys._getframe().f_back):
            errors = "\n".join(text for number, text in _ERRORS.items() if number not in self._told)
            if errors:  # it flushes more than once, and each time has to fail
                self._told |= _ERRORS.keys()
                self._stream.write(f"statedict: the program ends, and not all was saved:\n{errors}\n")
            self._stream.flush()
            raise OSError("not all was saved")
        self._stream.flush()


def _is_the_end(caller: FrameType | None) -> bool:
    """Whether it is the interpreter that calls, or multiprocessing at the end of a child."""
    return caller is None or caller.f_globals.get("__name__") == "multiprocessing.util"
