"""What must hold for every input, however damaged: it is read or refused by an error of ours, and nothing else happens.

Errors: load, flatten, inspect, show, scan, verify, save and reading a tensor raise a StateDictError or nothing.
Effects: no code is compiled or run, no module imported, no process or connection made, no library loaded, and no file
opened outside of the input's folder; Python's audit events say so.
Memory: opening takes at most 64 MB + 20 × the input. Time: all of it at most 2 s + 50 µs a byte of the processor.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import runs

SMALL = 8 << 20  # tensors of up to so many bytes are read
RESERVE, FACTOR = 64 << 20, 20
SECONDS, SECONDS_A_BYTE = 2.0, 50e-6

# what opening, reading and writing may do, where it concerns a path only within the folder
_ANYWHERE = {
    "builtins.id", "mmap.__new__", "ctypes.cdata", "ctypes.cdata/buffer", "ctypes.string_at", "ctypes.addressof",
    "object.__getattr__", "object.__setattr__", "sys._getframe", "_thread.start_new_thread",
    "array.__new__", "fcntl.lockf", "socket.gethostname",
}  # fmt: skip
_INSIDE = {
    "open", "os.chmod", "os.rename", "os.remove", "os.link", "os.listdir", "os.scandir", "os.mkdir", "os.rmdir",
    "shutil.rmtree", "os.truncate", "os.walk",
}  # fmt: skip
_FOLLOWING = {"open", "os.chmod", "os.listdir", "os.scandir", "os.truncate"}  # a link in the last place

_NOT_READING = ("__main__", "torch", "integrations", "testing")


class Violation(BaseException):
    """Something happened that must not; the reader's own `except Exception` cannot hide it."""


class Guard:
    """Reports every audit event beyond those that reading a checkpoint needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.armed = False
        self.found: list[str] = []
        self.memory = Memory()
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed or event in _ANYWHERE:
            return
        follows = event in _FOLLOWING and not (event == "open" and args[2] & os.O_NOFOLLOW)
        paths = [path for path in args[:2] if isinstance(path, (str, bytes, Path))]
        if event in _INSIDE and all(self._inside(path, follows) for path in paths):
            return
        self.found.append(f"{event} {str(args)[:100]}")

    def _inside(self, path: str | bytes | Path, follows: bool) -> bool:
        text = os.fsdecode(path)
        if not follows:
            folder, name = os.path.split(text)
            return f"{os.path.join(os.path.realpath(folder), name)}/".startswith(f"{self.folder}/")
        real = os.path.realpath(text)
        return text in ("r", "w") or f"{real}/".startswith(f"{self.folder}/")


def warm() -> None:
    """Import what statedict imports lazily, so that any import during a probe is one that a file has caused."""
    import base64
    import codecs
    import concurrent.futures.thread  # noqa: F401
    import ctypes  # noqa: F401
    import difflib  # noqa: F401
    import html  # noqa: F401
    import importlib
    import mmap  # noqa: F401
    import pkgutil
    import zlib  # noqa: F401

    import google_crc32c  # noqa: F401
    import h5py  # noqa: F401
    import ml_dtypes  # noqa: F401
    import numpy
    import xxhash  # noqa: F401
    import zlib_ng.zlib_ng  # noqa: F401
    import zstandard  # noqa: F401

    import statedict

    for module in pkgutil.walk_packages(statedict.__path__, "statedict."):
        # integrations and suites import the libraries that they are for, and read no file
        if not module.name.startswith(tuple(f"statedict.{name}" for name in _NOT_READING)):
            importlib.import_module(module.name)
    for name in ("formats.kinds", "adapters.collect"):  # which look for those of other packages
        importlib.import_module(f"statedict.{name}").added()
    for name in statedict.__all__:
        getattr(statedict, name)
    for name in (
        "cp437",
        "ascii",
        "latin-1",
        "raw-unicode-escape",
        "unicode-escape",
        "utf-8",
        "utf-16-le",
        "utf-16-be",
        "utf-32-le",
        "utf-32-be",
        "utf-8-sig",
        "utf-16",
        "utf-32",
    ):
        codecs.lookup(name)
    base64.b64decode("")
    statedict.diff({"w": numpy.ones(3)}, {"w": numpy.ones(3)})
    repr(numpy.ones(3))


def probe(path: str, size: int, guard: Guard) -> str:
    """Do with an input all that people do; how it ended.

    Args:
        path: the file or folder to open.
        size: of all its files.
        guard: of the folder that they lie in.

    Raises:
        Violation: something happened that must not.
    """
    import statedict

    return guarded(path, size, guard, lambda check_memory: _probe(path, size, statedict, check_memory))


def guarded(path: str, size: int, guard: Guard, work: Callable[[Callable[[], None]], str]) -> str:
    """What `work` says, which is given a function that checks the memory taken so far.

    Raises:
        Violation: something happened that must not.
    """

    def late(*_: Any) -> None:
        raise Violation(f"takes more than {limit:.1f} s")

    limit = SECONDS + SECONDS_A_BYTE * size
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, limit)
    most = guard.memory.reset() + RESERVE + FACTOR * size

    def check_memory() -> None:
        over = guard.memory.peak() - most
        if over > 0:
            raise Violation(f"takes {over >> 20} MiB more memory than it may")

    guard.found.clear()
    guard.armed = True
    try:
        return work(check_memory)
    except Violation:
        raise
    except BaseException as error:
        raise Violation(f"{type(error).__name__} {_where(error)}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        guard.armed = False
        if guard.found:
            raise Violation(f"event {guard.found[0]}")


def _said(report: Any) -> Any:
    """What a report says, in every form that it has."""
    str(report)
    report._repr_html_()
    return report.to_json()


def attempted(path: str, statedict: Any, refusals: set[str]) -> Callable[..., Any]:
    """A function that does something with an input and notes how it is refused."""

    def attempt(do: Callable[[], Any], *also: type[Exception]) -> Any:
        try:
            return do()
        except (statedict.StateDictError, *also) as error:
            refusals.add(f"{type(error).__name__}: {skeleton(error, path)}")
            return None

    return attempt


def _probe(path: str, size: int, statedict: Any, check_memory: Callable[[], None]) -> str:
    refusals: set[str] = set()
    attempt = attempted(path, statedict, refusals)
    if os.path.isdir(path):
        restored = runs.use(path, size, statedict, attempt)
        check_memory()
        return " ".join(["loaded" if restored else "refused", *sorted(refusals)])
    attempt(lambda: statedict.load(os.path.basename(path)).flatten())  # from within, by its bare name
    attempt(lambda: _said(statedict.scan(path)))
    attempt(lambda: _said(statedict.verify(path, values=True)))
    state = attempt(lambda: statedict.load(path))
    if state is not None:
        flat = attempt(state.flatten)
        attempt(state._repr_html_)
        summary = attempt(lambda: statedict.inspect(state))
        if summary is not None:
            from statedict.render.tree_text import summary_lines

            attempt(lambda: json.dumps(_said(summary)))
            attempt(lambda: list(summary_lines(summary, None)))
        check_memory()
        if flat is not None:  # otherwise it has no end, or too many
            repr(state)
            _read(state, attempt)
            _write(state, os.path.dirname(path), statedict, attempt)
    check_memory()
    return " ".join(["refused" if state is None else "loaded", *sorted(refusals)])


def _read(state: Any, attempt: Callable[..., Any]) -> None:
    for tensor in state.tensors().values():
        if tensor.nbytes <= SMALL:
            attempt(tensor.raw)
            attempt(lambda tensor=tensor: tensor.numpy(copy=True))
            attempt(lambda tensor=tensor: tensor[:1].raw(), IndexError)  # of a scalar
        attempt(tensor.numpy)


def _write(state: Any, folder: str, statedict: Any, attempt: Callable[..., Any]) -> None:
    tensors = state.tensors()
    if sum(tensor.nbytes for tensor in tensors.values()) > SMALL:
        return
    for suffix in (".safetensors", ".pth"):
        target = os.path.join(folder, f"written{suffix}")
        if attempt(lambda target=target: statedict.save(state, target, fsync=False) or True):
            assert statedict.load(target).tensors().keys() == tensors.keys(), "what was written reads otherwise"


def _where(error: BaseException) -> str:
    """The last line of ours that an error came through; not by `traceback`, which would open our files."""
    found, at = "in the harness", error.__traceback__
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if f"{os.sep}statedict{os.sep}" in file:
            found = f"at {os.path.basename(file)}:{at.tb_lineno}"
        at = at.tb_next
    return found


def skeleton(error: BaseException, path: str) -> str:
    """A message without what differs from one input to the next."""
    text = str(error).replace(path, "…")
    return re.sub(r"'[^']*'|\"[^\"]*\"|b'.*|[0-9][0-9,.]*", "·", text)[:90]


class Memory:
    """The peak of this process's memory since `reset`; 0 on systems other than Linux, which do not tell it."""

    def __init__(self) -> None:
        linux = os.path.exists("/proc/self/clear_refs")
        self.status = os.open("/proc/self/status", os.O_RDONLY) if linux else -1
        self.clear = os.open("/proc/self/clear_refs", os.O_WRONLY) if linux else -1

    def reset(self) -> int:
        """Begin a new measurement; what there is now."""
        if self.clear >= 0:
            os.write(self.clear, b"5")
        return self.peak()

    def peak(self) -> int:
        """The most that there was, in bytes."""
        if self.status < 0:
            return 0
        found = re.search(rb"VmHWM:\s*(\d+)", os.pread(self.status, 1 << 16, 0))
        return int(found[1]) << 10 if found else 0
