"""One process writes into a run's directory at a time.

On a disk it holds a POSIX lock on `.lock`, which the system releases when the process ends, however it does. In an
object store `.lock` is an object, see lease.py. The file says who the owner is.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod

from statedict.errors import FileError, RunError, file_error
from statedict.io.descriptor import Descriptor
from statedict.io.urls import is_url, join, redact
from statedict.runs.lease import Lease, parsed
from statedict.runs.ranks import rank

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)  # another process has the lock
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
        self._name = join(directory, NAME)
        self._key = self._name if is_url(directory) else os.path.realpath(directory)
        self._settle = WeakMethod(settle)
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": _PROCESS}
        self._file: Descriptor | None = None
        self._written = self._lost = False
        self._leased: Lease | None = None
        before = _held.get(self._key)
        if before is not None:
            before._leave()
        if before is not None and before.held:
            self._file, self._leased, self._written = before._file, before._leased, before._written
            self.renew()
            before._file = None
        elif is_url(directory):
            self._leased = Lease(self._name, self._owner, partial(_taken_error, self._name))
        else:
            self._file = self._lock()
        _held[self._key] = self

    @property
    def held(self) -> bool:
        """Whether it is still that of this owner."""
        lost = self._lost or (self._leased is not None and self._leased.lost)
        return _held.get(self._key) is self and self._owner["pid"] == os.getpid() and not lost

    def renew(self) -> None:
        """See that no other process can have it.

        It is asked for again, since whoever in this process opens and closes the file, to copy it for instance, gives
        it away; and taken anew if its file was removed or replaced.

        Raises:
            RunError: another process has it, or had it meanwhile.
        """
        before = self._file
        if self._leased is not None:
            return
        try:
            if before is None or not self._is_in_place(before):
                self._file = self._lock()
                if before is not None:
                    before.close()
            if self._file is not None:
                self._ask_again(self._file.fileno())
        except FileError:  # whoever writes there now is told why
            pass
        except RunError:
            self._lost = True
            if before is not None:
                before.close()
            raise

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
        if self._leased is not None:
            self._leased.release()
        if self._file is not None:
            try:
                self.renew()  # else what another one wrote there would go
                _write(self._file.fileno(), b"")
                self._file.close()
            except (RunError, OSError):
                pass  # it is closed even so
        del _held[self._key]

    def _leave(self) -> None:
        """End what is being written, for another owner of this process; in a fork, have nothing to do with the file."""
        if self._owner["pid"] == os.getpid():
            finish = self._settle()
            if finish is not None:
                finish()
        elif self._file is not None:
            self._file.close()  # later it would take the lock away from this process

    def _is_in_place(self, file: Descriptor) -> bool:
        try:
            return os.path.samestat(os.stat(self._name), os.fstat(file.fileno()))
        except OSError:
            return False

    def _lock(self) -> Descriptor | None:
        """The file, locked; None where there are no locks."""
        if sys.platform == "win32":
            return None
        try:
            # a link could lead to a file of somebody else's, and what is in the lock is replaced
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            doing = "is a link, remove it" if error.errno == errno.ELOOP else "cannot lock the directory of the run"
            raise file_error(self._name, doing, error) from error
        file, refused = Descriptor(fd), _ask(fd)
        if refused:
            owner = parsed(os.pread(fd, _LONGEST, 0))
            file.close()
            if refused in _TAKEN:
                raise _taken_error(self._name, owner)
            return None  # a file system without locks
        self._written = _write(fd, self._text())
        return file

    def _ask_again(self, fd: int) -> None:
        refused = _ask(fd)
        text = os.pread(fd, _LONGEST, 0)
        owner = parsed(text)
        if refused in _TAKEN:
            raise _taken_error(self._name, owner)
        if self._owner.items() <= owner.items() or refused:
            return
        if owner or (not text and self._written):
            raise RunError(
                f"{redact(self._name)}: {_who(owner)} wrote into this directory meanwhile; give this run a directory "
                "of its own, or end the other one and save again"
            )
        self._written = _write(fd, self._text())  # it is damaged

    def _text(self) -> bytes:
        return (json.dumps(self._owner | {"time": time.time()}) + "\n").encode()


def _ask(fd: int) -> int:
    """Ask for the lock of a file; 0, or the number of the error."""
    import fcntl  # which Windows has not

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _write(fd: int, text: bytes) -> bool:
    """Say who the owner is, if that can be written; the lock holds without."""
    try:
        os.ftruncate(fd, 0)
        return os.pwrite(fd, text, 0) == len(text)
    except OSError:
        return False


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"


def _taken_error(name: str, owner: dict[str, Any]) -> RunError:
    number, count = rank()
    remedy = "wait until it ends, or give this run a directory of its own"
    if count > 1:
        remedy = (
            f"this one is rank {number} of {count}, and one of them saves a run: call `save` on rank 0 only, with the "
            "whole state; the others may restore from it"
        )
    return RunError(f"{redact(name)}: {_who(owner)} writes into this directory; {remedy}")
