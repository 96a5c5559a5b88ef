"""Errors of the background that nobody has been told of: they end the program with a message and a status.

A save may fail when the program is at its end, or before, and nobody asks. The interpreter then waits for its thread,
calls what atexit knows, and flushes standard output and standard error. If that fails, its status is 120 ("an error in
the cleanup", says `sys.exit`), in a child of multiprocessing 1. So at that moment, and at no other, flushing fails.
See docs/decisions/0020-interrupts-and-exits.md.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from functools import cache
from types import FrameType
from typing import Any

_ERRORS: dict[int, str] = {}
"""id → text; the errors themselves would keep alive what was to be saved."""


def add(error: BaseException) -> None:
    """Nobody has been told of this one yet."""
    _ERRORS[id(error)] = f"{type(error).__name__}: {error}"


def remove(error: BaseException) -> None:
    """Somebody has."""
    _ERRORS.pop(id(error), None)


@cache
def tell_at_the_end() -> None:
    """See to it that the process ends with what is left; from the first call on, in this process and its forks."""
    os.register_at_fork(after_in_child=_ERRORS.clear)
    # when the interpreter begins to shut down; in children of multiprocessing atexit comes after their status
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(_watch_the_last_flush)
    except RuntimeError:  # it has begun
        _watch_the_last_flush()


def _watch_the_last_flush() -> None:
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, _Last(stream))
            return


class _Last:
    """A stream whose flush tells of errors and fails, when it is called by the interpreter at its end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush."""
        if _ERRORS and _is_the_end(sys._getframe().f_back):
            errors = "\n".join(_ERRORS.values())
            self._stream.write(f"statedict: the program ends, and not all was saved:\n{errors}\n")
            self._stream.flush()
            raise OSError("not all was saved")
        self._stream.flush()


def _is_the_end(caller: FrameType | None) -> bool:
    """Whether it is the interpreter that calls, or multiprocessing at the end of a child."""
    return caller is None or caller.f_globals.get("__name__") == "multiprocessing.util"
