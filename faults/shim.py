"""The shim: compiled, loaded before everything else in a process of its own, set up from Python."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
KINDS = [
    "open",
    "write",
    "truncate",
    "allocate",
    "sync",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
    "close",
]
ACTIONS = ["nothing", "kill", "tear", "once", "always", "short", "vanish", "delay"]


def mask(*kinds: str) -> int:
    """The bits of some kinds of calls."""
    return sum(1 << KINDS.index(kind) for kind in kinds)


ALL = mask(*KINDS)
CHANGES = ALL & ~mask("close")
BYTES = mask("write")
GROWS = mask("open", "write", "truncate", "allocate", "sync", "rename", "link", "mkdir")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the n-th call of some kinds.

    Attributes:
        name: in the matrix.
        action: one of `ACTIONS`.
        kinds: which calls count, as bits.
        number: of the error.
    """

    name: str
    action: str
    kinds: int = CHANGES
    number: int = 0

    @property
    def kills(self) -> bool:
        """Whether the process ends."""
        return self.action in ("kill", "tear")


QUIET = Fault("nothing", "nothing")
FAULTS = (
    Fault("kill -9 before the call", "kill"),
    Fault("kill -9 in the middle of a write", "tear", BYTES),
    Fault("disk full, once (ENOSPC)", "once", GROWS, errno.ENOSPC),
    Fault("disk full from there on", "always", GROWS, errno.ENOSPC),
    Fault("disk full in the middle of a write", "short", GROWS, errno.ENOSPC),
    Fault("input/output error, once (EIO)", "once", ALL, errno.EIO),
    Fault("input/output error from there on", "always", ALL, errno.EIO),
    Fault("read-only from there on (EROFS)", "always", CHANGES & ~mask("sync"), errno.EROFS),
    Fault("the directory vanishes", "vanish"),
)


class Shim:
    """The functions of the shim in this process, which has to have been started with it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        if not hasattr(self._library, "faults_arm"):
            raise RuntimeError("this process was started without the shim; run python -m faults")
        self._library.faults_calls.restype = ctypes.c_long

    def arm(self, folder: Path, fault: Fault = QUIET, n: int = 0) -> None:
        """From now on the n-th call that changes something in a folder has the fault."""
        action = ACTIONS.index(fault.action)
        self._library.faults_arm(os.fsencode(folder), fault.kinds, ctypes.c_long(n), action, fault.number)

    def disarm(self) -> None:
        """No more faults."""
        self._library.faults_arm(b"", 0, ctypes.c_long(0), 0, 0)

    @property
    def calls(self) -> int:
        """How many calls were counted."""
        return int(self._library.faults_calls())

    @property
    def fired(self) -> bool:
        """Whether the fault has happened."""
        return bool(self._library.faults_fired())

    def trace(self, fd: int) -> None:
        """Write every call to a file; see `read_trace`."""
        self._library.faults_trace(fd)

    def delay(self, seconds: float) -> None:
        """How long the action `delay` takes."""
        self._library.faults_delay(int(seconds * 1e6))

    def room(self, nbytes: int) -> None:
        """How many bytes the system says are free; -1 for the truth."""
        self._library.faults_room(ctypes.c_longlong(nbytes))

    def clock(self, seconds: float) -> None:
        """How far the clock is off."""
        self._library.faults_clock(ctypes.c_longlong(int(seconds)))

    def exchanges(self, yes: bool) -> None:
        """Whether the file system can exchange two names in one step."""
        self._library.faults_no_exchange(not yes)

    def lower(self, folder: Path) -> None:
        """The directories in a folder are those of a lower layer of overlayfs: they cannot be renamed (EXDEV)."""
        for one in sorted(folder.iterdir()) if folder.is_dir() else ():
            if one.is_dir():
                self._library.faults_lower(os.fsencode(one))


@dataclass(frozen=True, slots=True)
class Call:
    """A call that changed something.

    Attributes:
        kind: one of `KINDS`.
        flags: of an `open`, whether it truncated; of a `rename`, whether it exchanged.
        offset: of a write; the length after a truncation.
        path: its file.
        other: the new name.
        data: what was written.
    """

    kind: str
    flags: int
    offset: int
    path: str
    other: str
    data: bytes


def read_trace(file: Path) -> Iterator[Call]:
    """The calls that the shim has recorded, in order."""
    data, at = file.read_bytes(), 0
    head = struct.Struct("=IIqQII")
    while at < len(data):
        kind, flags, offset, size, path, other = head.unpack_from(data, at)
        cuts = [at + head.size, at + head.size + path, at + head.size + path + other]
        at = cuts[-1] + size
        first, second = (os.fsdecode(data[start:end]) for start, end in pairwise(cuts))
        yield Call(KINDS[kind], flags, offset, first, second, data[cuts[-1] : at])


def build(folder: Path) -> Path:
    """Compile the shim.

    Raises:
        RuntimeError: there is no compiler, or this is not Linux.
    """
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None or not sys.platform.startswith("linux"):
        raise RuntimeError("the faults are injected on Linux, by a library in C; apt-get install gcc libc6-dev")
    library = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, SOURCE, "-ldl", "-lpthread"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{SOURCE} does not compile:\n{done.stderr}")
    return library
