"""One process writes into a run's directory at a time.

On a disk it holds a POSIX lock on `.lock`, which the system releases when the process ends, however it does. In an
object store `.lock` is an object that is put there only if there is none, renewed while its owner lives, and anybody's
when it was not renewed for five minutes. The file says who the owner is.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any
from weakref import WeakMethod

from statedict.errors import FileError, FormatError, MissingFileError, RunError, file_error
from statedict.io.files import open_source, publish
from statedict.io.json import parse
from statedict.io.sink import put_bytes
from statedict.io.urls import is_url, joined, shown

NAME = ".lock"
_LEASE = 300.0  # seconds
_LONGEST = 4096  # bytes of what is in it
_held: dict[str, Lock] = {}
"""What this process has locked; POSIX locks do not keep a process from itself."""


class Lock:
    """The right to write into a directory; within a process who asks last has it.

    Args:
        directory: of the run.
        settle: waits until nothing of this owner is being written; called before another of this process takes over.

    Raises:
        RunError: another process has it.
    """

    def __init__(self, directory: str, settle: Callable[[], None]) -> None:
        self._name = joined(directory, NAME)
        self._key = self._name if is_url(directory) else os.path.realpath(directory)
        self._settle = WeakMethod(settle)
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": os.urandom(8).hex()}
        self._fd, self._stop = -1, Event()
        before = _held.get(self._key)
        if before is not None and before._owner["pid"] == os.getpid():
            finish = before._settle()
            if finish is not None:
                finish()
            self._fd, before._fd, self._stop, self._owner = before._fd, -1, before._stop, before._owner
        elif is_url(directory):
            self._lease()
        else:
            self._lock()
        _held[self._key] = self

    @property
    def held(self) -> bool:
        """Whether it is still that of this owner."""
        return _held.get(self._key) is self and self._owner["pid"] == os.getpid()

    def renew(self) -> None:
        """Take it anew if its file was removed or replaced: others would be given it.

        Raises:
            RunError: another process has been given it.
        """
        held = self._fd
        try:
            if held < 0 or os.path.samestat(os.stat(self._name), os.fstat(held)):
                return
        except OSError:
            pass
        try:
            self._lock()
        except FileError:  # whoever writes there now is told why
            return
        os.close(held)

    def release(self) -> None:
        """Give it back."""
        if not self.held or self._owner["pid"] != os.getpid():
            return
        del _held[self._key]
        self._stop.set()
        if self._fd >= 0:
            _write(self._fd, b"")
            try:
                os.close(self._fd)
            except OSError:
                pass  # it is closed even so
        elif is_url(self._name):
            from statedict.io.remote import at

            try:
                at(self._name).delete()
            except FileError:
                pass  # it runs out by itself

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            # a link could lead to a file of somebody else's, and what is in the lock is replaced
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            doing = "is a link, remove it" if error.errno == errno.ELOOP else "cannot lock the directory of the run"
            raise file_error(self._name, doing, error) from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _parsed(os.pread(fd, _LONGEST, 0))
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _taken(self._name, owner) from None
            return  # a file system without locks
        _write(fd, self._text())
        self._fd = fd

    def _lease(self) -> None:
        from statedict.io.remote import at

        for _ in range(2):
            if at(self._name).create(self._text()):
                break
            try:
                source = open_source(self._name)
                owner = _parsed(bytes(source.read(0, min(source.size, _LONGEST))))
            except MissingFileError:
                continue
            here = owner.get("host") == self._owner["host"]
            late = time.time() - float(owner.get("time", 0)) > _LEASE
            if not late and (not here or _lives(owner.get("pid"))):
                raise _taken(self._name, owner)
            at(self._name).delete()
        else:
            raise _taken(self._name, {})
        Thread(target=self._renew, name="statedict-lock", daemon=True).start()

    def _renew(self) -> None:
        while not self._stop.wait(_LEASE / 5):
            try:
                publish(self._name, lambda sink: put_bytes(self._text(), sink))
            except FileError:
                pass  # the next time

    def _text(self) -> bytes:
        return (json.dumps(self._owner | {"time": time.time()}) + "\n").encode()


def _write(fd: int, text: bytes) -> None:
    """Say who the owner is, if that can be written; the lock holds without."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
    except OSError:
        pass


def _parsed(text: bytes) -> dict[str, Any]:
    """What a lock says of its owner; without what makes no sense."""
    try:
        found = parse(text, NAME)
    except FormatError:
        return {}
    sound = {"host": _is_host, "pid": _is_pid, "id": _is_host, "time": _is_time}
    fields = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in fields if name in sound and sound[name](value)}


def _is_host(value: object) -> bool:
    return type(value) is str and len(value) < 300


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1 << 40  # type: ignore[operator]


def _lives(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _taken(name: str, owner: dict[str, Any]) -> RunError:
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
    return RunError(
        f"{shown(name)}: {who} writes into this directory; wait until it ends, or give this run a directory of its own"
    )
