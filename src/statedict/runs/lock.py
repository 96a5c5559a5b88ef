"""One process writes into a run's directory at a time.

On a disk it holds a POSIX lock on `.lock`, which the system releases when the process ends, however it does. In an
object store `.lock` is an object, see lease.py. The file says who the owner is.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod

from statedict.errors import FileError, RunError, file_error
from statedict.io.urls import is_url, joined, shown
from statedict.runs.lease import Lease, parsed
from statedict.runs.ranks import rank

NAME = ".lock"
_LONGEST = 4096  # bytes of what is in it
_PROCESS = os.urandom(8).hex()  # with the number of the process: which one it is, also among those of other machines
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
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": _PROCESS}
        self._fd = -1
        self._leased: Lease | None = None
        before = _held.get(self._key)
        if before is not None and before.held:
            finish = before._settle()
            if finish is not None:
                finish()
            self._fd, before._fd, self._leased = before._fd, -1, before._leased
        elif is_url(directory):
            self._leased = Lease(self._name, self._owner, partial(_taken, self._name))
        else:
            self._lock()
        _held[self._key] = self

    @property
    def held(self) -> bool:
        """Whether it is still that of this owner."""
        lost = self._leased is not None and self._leased.lost
        return _held.get(self._key) is self and self._owner["pid"] == os.getpid() and not lost

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

    def guard(self) -> None:
        """Raise if it is not this process's any more; in a store, ask for another five minutes.

        Raises:
            RunError: another process has it.
            FileError: the store refuses or does not answer.
        """
        if self._leased is not None:
            self._leased.renew()

    def release(self) -> None:
        """Give it back."""
        if not self.held:
            return
        del _held[self._key]
        if self._leased is not None:
            self._leased.release()
        if self._fd >= 0:
            _write(self._fd, b"")
            try:
                os.close(self._fd)
            except OSError:
                pass  # it is closed even so

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
            owner = parsed(os.pread(fd, _LONGEST, 0))
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _taken(self._name, owner) from None
            return  # a file system without locks
        _write(fd, self._text())
        self._fd = fd

    def _text(self) -> bytes:
        return (json.dumps(self._owner | {"time": time.time()}) + "\n").encode()


def _write(fd: int, text: bytes) -> None:
    """Say who the owner is, if that can be written; the lock holds without."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
    except OSError:
        pass


def _taken(name: str, owner: dict[str, Any]) -> RunError:
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
    number, count = rank()
    remedy = "wait until it ends, or give this run a directory of its own"
    if count > 1:
        remedy = (
            f"this one is rank {number} of {count}, and one of them saves a run: call `save` on rank 0 only, with the "
            "whole state; the others may restore from it"
        )
    return RunError(f"{shown(name)}: {who} writes into this directory; {remedy}")
