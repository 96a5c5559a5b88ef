"""The lock of a run in an object store: an object that says who writes there, renewed while that process lives.

Every change is one conditional write, "if it is still what I saw", so that of two who want it one gets it, and nobody
takes away what is another's. It is never deleted: who gives it back leaves it empty. It is anybody's when it is empty,
when its process is known to have ended, and when it was not renewed for five minutes by the clocks of both hosts.
"""

from __future__ import annotations

import json
import os
import time
from _thread import start_new_thread
from collections.abc import Callable
from threading import Event, Lock
from typing import Any

from statedict.errors import FileError, FormatError, RunError
from statedict.io.json import parse
from statedict.io.remote import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.remote import Version

LEASE = 300.0  # seconds
_AHEAD = 86_400.0  # seconds by which the clock of another host may be ahead
_TRIES = 5  # times that another may be quicker, who gives it back again


class Lease:
    """A lock in an object store, held until it is given back or lost.

    Args:
        name: its URL.
        owner: who wants it; other attempts of the same owner are this one, whose answers were lost.
        taken: makes the error for a lock that another owner has.

    Raises:
        RunError: another process has it.
        FileError: the store refuses or does not answer.
    """

    def __init__(self, name: str, owner: dict[str, Any], taken: Callable[[dict[str, Any]], RunError]) -> None:
        self._remote, self._owner, self._taken = at(name), owner, taken
        self._mutex, self._stop = Lock(), Event()
        self._version: Version | None = None
        self.lost = False
        """Whether another process has been given it."""
        self._take()
        try:
            start_new_thread(self._keep, ())  # not Thread.start, which waits for ever where memory is too short
        except (RuntimeError, MemoryError):  # no thread to be had: it is renewed by each save
            pass

    def renew(self) -> None:
        """Make it last for another five minutes.

        Raises:
            RunError: it is lost.
            FileError: the store refuses or does not answer.
        """
        with self._mutex:
            made = None if self.lost else self._remote.write_if(self._text(), self._version)
            if made is not None:
                self._version = made
                return
            self._take(again=True)

    def release(self) -> None:
        """Give it back, if it is still this owner's."""
        self._stop.set()
        with self._mutex:
            try:
                self._remote.write_if(b"", self._version)
            except FileError:
                pass  # it runs out by itself

    def _take(self, again: bool = False) -> None:
        for _ in range(_TRIES):
            there = self._remote.look()
            owner = {} if there is None else parsed(there[0])
            if not (there is None or self._is_own(owner)) and (again or not _is_free(owner, str(self._owner["host"]))):
                self.lost = True
                self._stop.set()
                raise self._taken(owner)
            made = self._remote.write_if(self._text(), None if there is None else there[1])
            if made is not None:
                self._version = made
                return
        raise self._taken({})

    def _is_own(self, owner: dict[str, Any]) -> bool:
        return all(owner.get(key) == value for key, value in self._owner.items())

    def _keep(self) -> None:
        while not self._stop.wait(LEASE / 5):
            try:
                self.renew()
            except (FileError, RunError):
                pass  # the next time; whoever saves is told

    def _text(self) -> bytes:
        """Never the same twice, by which a write is known whose answer was lost."""
        return (json.dumps(self._owner | {"time": time.time(), "write": os.urandom(4).hex()}) + "\n").encode()


def parsed(text: bytes) -> dict[str, Any]:
    """What a lock says of its owner, without what makes no sense; nothing if it is damaged or was given back."""
    try:
        found = parse(text, "a lock")
    except FormatError:
        return {}
    fields = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in fields if name in _FIELDS and _FIELDS[name](value)}


def _is_name(value: object) -> bool:
    return type(value) is str and len(value) < 300


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1 << 40  # type: ignore[operator]


_FIELDS = {"host": _is_name, "pid": _is_pid, "id": _is_name, "time": _is_time}


def _is_free(owner: dict[str, Any], host: str) -> bool:
    """Whether its owner has ended, or has not renewed it."""
    # a time to come by so much is of a clock that was wrong, or is; it says nothing, and could do so for years
    late = not -_AHEAD < time.time() - owner.get("time", 0) <= LEASE
    return late or (owner.get("host") == host and not _lives(owner.get("pid")))


def _lives(pid: int | None) -> bool:
    if pid is None or pid == os.getpid():  # a container that is started again gives the same number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
