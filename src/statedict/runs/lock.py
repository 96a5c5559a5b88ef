"""One process at a time writes into a run's directory.

On a disk it holds a POSIX lock on `.lock`, which the system releases when the process ends.

In an object store `.lock` is an object that names its owner, renewed while that process lives. Every change is one
conditional write, "if it is still what I saw", so one of two rivals wins and nobody takes what another holds. The
object is never deleted: its owner leaves it empty. It is free when it is empty, when its process is known to have
ended, and when nobody has renewed it for five minutes by the clocks of both hosts.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from _thread import start_new_thread
from collections.abc import Callable
from threading import Event
from threading import Lock as Mutex
from typing import Any
from weakref import WeakMethod

from statedict.errors import FileError, FormatError, RunError, file_error
from statedict.io.disk import Descriptor
from statedict.io.json import parse
from statedict.io.location import location
from statedict.io.remote import connect
from statedict.io.urls import join, redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.object_store import Version

NAME = ".lock"
LEASE = 300.0  # seconds
_AHEAD = 86_400.0  # seconds by which the clock of another host may be ahead
_TRIES = 5  # how often another may be quicker and give it back again
_TAKEN = (errno.EACCES, errno.EAGAIN)  # another process has the lock
_LONGEST = 4096  # bytes of the file
_PROCESS = os.urandom(8).hex()  # with the pid it tells processes of several machines apart
_RANKS = (  # of torchrun and accelerate, Open MPI, Slurm
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
_held: dict[str, Lock] = {}  # what this process has locked, as POSIX locks do not keep a process from itself


class Lock:
    """The right to write into a directory; within a process the last caller has it.

    `settle` is a method that waits for this owner's writes, before another owner in this process takes over.
    """

    def __init__(self, directory: str, settle: Callable[[], None] | None = None) -> None:
        place = location(directory)
        self._name = join(directory, NAME)
        self._key, _ = place.real_paths(NAME)
        self._settle = WeakMethod(settle) if settle is not None else None
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": _PROCESS}
        self._file: Descriptor | None = None
        self._written = self._lost = False
        self._leased: Lease | None = None
        before = _held.get(self._key)
        if before is not None:
            before._leave()
        if before is not None and before.is_held:
            before.renew()
            self._file, self._leased, self._written = before._file, before._leased, before._written
            before._file = None
        elif place.has_folders:
            self._file = self._lock()
        else:
            self._leased = Lease(self._name, self._owner)
        _held[self._key] = self

    @property
    def is_held(self) -> bool:
        """Whether this owner still has it."""
        lost = self._lost or (self._leased is not None and self._leased.lost)
        return _held.get(self._key) is self and self._owner["pid"] == os.getpid() and not lost

    def renew(self) -> None:
        """Make sure that no other process can have it.

        Code in this process that opens and closes the file, to copy it for instance, gives the lock away, so it is
        taken again; and anew if its file was removed or replaced.
        """
        before = self._file
        if self._leased is not None:
            return
        try:
            if before is None or not _is_same(self._name, before.fileno()):
                self._file = self._lock()
                if before is not None:
                    before.close()
            if self._file is not None:
                self._ask_again(self._file.fileno())
        except FileError:  # the write that follows tells why
            pass
        except RunError:
            self._lost = True
            if before is not None:
                before.close()
            raise

    def guard(self) -> None:
        """Raise if this process has lost it; in a store, extend it by five minutes."""
        if self._leased is not None:
            self._leased.renew()

    def release(self) -> None:
        """Give it back."""
        if not self.is_held:
            return
        if self._leased is not None:
            self._leased.release()
        if self._file is not None:
            try:
                self.renew()  # else the name of another owner could be erased
                _write(self._file.fileno(), b"")
                self._file.close()
            except (RunError, OSError):
                pass  # the file is closed all the same
        del _held[self._key]

    def _leave(self) -> None:
        """Wait for this owner's writes, so that another of this process can take over; in a fork close the file."""
        if self._owner["pid"] == os.getpid():
            settle = self._settle() if self._settle is not None else None
            if settle is not None:
                settle()
        elif self._file is not None:
            self._file.close()  # closed later it would release this process's lock

    def _lock(self) -> Descriptor | None:
        """Open and lock the file; None where there are no locks."""
        if sys.platform == "win32":
            return None
        try:
            # a link could lead to somebody else's file, which would be overwritten
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            doing = "is a link, remove it" if error.errno == errno.ELOOP else "cannot lock the directory of the run"
            raise file_error(self._name, doing, error) from error
        file, refused = Descriptor(fd), _ask(fd)
        if refused:
            owner = parse_owner(os.pread(fd, _LONGEST, 0))
            file.close()
            if refused in _TAKEN:
                raise _taken_error(self._name, owner)
            return None  # a file system without locks
        self._written = _write(fd, _describe(self._owner))
        return file

    def _ask_again(self, fd: int) -> None:
        refused, text = _ask(fd), os.pread(fd, _LONGEST, 0)
        owner = parse_owner(text)
        if refused in _TAKEN:
            raise _taken_error(self._name, owner)
        if self._owner.items() <= owner.items() or refused:
            return
        if owner or (not text and self._written):
            raise RunError(
                f"{redact(self._name)}: {_who(owner)} wrote into this directory meanwhile; give this run a directory "
                "of its own, or end the other one and save again"
            )
        self._written = _write(fd, _describe(self._owner))  # it is damaged


def _describe(owner: dict[str, Any], **more: str) -> bytes:
    return (json.dumps(owner | {"time": time.time()} | more) + "\n").encode()


def _is_same(name: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(name), os.fstat(fd))
    except OSError:
        return False


def _ask(fd: int) -> int:
    """Ask for the lock of a file; return 0 or the errno."""
    import fcntl  # not on Windows

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _write(fd: int, text: bytes) -> bool:
    """Write the owner, if that is possible; the lock holds without it."""
    try:
        os.ftruncate(fd, 0)
        return os.pwrite(fd, text, 0) == len(text)
    except OSError:
        return False


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"


def _find_rank() -> tuple[int, int]:
    """The rank of this process and the number of ranks; (0, 1) if nothing tells. Never imports torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for variables in _RANKS:
        number, count = (os.environ.get(name, "") for name in variables)
        if number.isdecimal() and count.isdecimal() and int(count) > 1:
            return int(number), int(count)
    return 0, 1


def _taken_error(name: str, owner: dict[str, Any]) -> RunError:
    number, count = _find_rank()
    remedy = "wait until it ends, or give this run a directory of its own"
    if count > 1:
        remedy = (
            f"this one is rank {number} of {count}, and one of them saves a run: call `save` on rank 0 only, with the "
            "whole state; the others may restore from it"
        )
    return RunError(f"{redact(name)}: {_who(owner)} writes into this directory; {remedy}")


class Lease:
    """A lock in an object store, held until it is released or lost.

    What the same owner wrote before counts as ours, since the answer may have been lost.
    """

    def __init__(self, name: str, owner: dict[str, Any]) -> None:
        self._remote, self._name, self._owner = connect(name), name, owner
        self._mutex, self._stop = Mutex(), Event()
        self._version: Version | None = None
        self.lost = False  # whether another process has it
        self._take()
        try:
            start_new_thread(self._keep, ())  # Thread.start waits for ever where memory is too short
        except (RuntimeError, MemoryError):  # without a thread each save renews it
            pass

    def renew(self) -> None:
        """Extend it by five minutes."""
        with self._mutex:
            version = None if self.lost else self._remote.write_if(self._text(), self._version)
            if version is not None:
                self._version = version
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
            owner = {} if there is None else parse_owner(there[0])
            ours = all(owner.get(key) == value for key, value in self._owner.items())
            if not (there is None or ours) and (again or not _is_free(owner, str(self._owner["host"]))):
                self.lost = True
                self._stop.set()
                raise _taken_error(self._name, owner)
            version = self._remote.write_if(self._text(), None if there is None else there[1])
            if version is not None:
                self._version = version
                return
        raise _taken_error(self._name, {})

    def _keep(self) -> None:
        while not self._stop.wait(LEASE / 5):
            try:
                self.renew()
            except (FileError, RunError):
                pass  # next time; the next save tells

    def _text(self) -> bytes:
        """Never the same twice, so that a write whose answer was lost is known again."""
        return _describe(self._owner, write=os.urandom(4).hex())


def parse_owner(text: bytes) -> dict[str, Any]:
    """The valid fields of a lock; empty if it is damaged or free."""
    try:
        fields = parse(text, "a lock")
    except FormatError:
        return {}
    valid = _FIELDS.items() if isinstance(fields, dict) else ()
    return {name: fields[name] for name, is_valid in valid if name in fields and is_valid(fields[name])}


def _is_name(value: object) -> bool:
    return type(value) is str and len(value) < 300


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "host": _is_name,
    "pid": lambda value: type(value) is int and 0 < value < 1 << 31,
    "id": _is_name,
    "time": lambda value: type(value) in (int, float) and 0 <= value < 1 << 40,
}


def _is_free(owner: dict[str, Any], host: str) -> bool:
    """Whether its owner has ended, or has not renewed it."""
    # a time far in the future comes from a wrong clock; it could say "held" for years
    late = not -_AHEAD < time.time() - owner.get("time", 0) <= LEASE
    return late or (owner.get("host") == host and not _is_alive(owner.get("pid")))


def _is_alive(pid: int | None) -> bool:
    if pid is None or pid == os.getpid():  # a container that restarts gives the same number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
