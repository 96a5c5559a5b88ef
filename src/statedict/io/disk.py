"""The local disk: steps on names that a crash cannot leave half-done, and files that are open for writing."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from functools import cache

from statedict.errors import FileError, file_error
from statedict.io.source import FileSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from statedict.io.source import ByteSource

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of <fcntl.h>: begin, and do not wait
_LEAST = 1 << 18  # bytes worth a call
UNCHANGED = "cannot write (what was there is unchanged)"


@contextmanager
def file_errors(path: str, doing: str) -> Iterator[None]:
    """Turn errors of the system into FileErrors that name a path."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise file_error(path, doing, error) from error


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable."""
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError:  # a system that cannot open directories has nothing to sync
        return
    try:
        with file_errors(directory, "cannot make the names in it durable"):
            os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: str, other: str) -> bool:
    """Exchange two names in one step; a crash leaves both as they were, or both exchanged.

    Linux: renameat2(2) with RENAME_EXCHANGE. macOS: renamex_np(2) with RENAME_SWAP. False if the system or the file
    system cannot; overlayfs cannot with folders of its lower layers.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renameat2"):
            failed = library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE))
        else:
            failed = library.renamex_np(os.fsencode(one), os.fsencode(other), ctypes.c_uint(_EXCHANGE))
    except (AttributeError, OSError, TypeError):  # neither is there
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), one)


def discard(path: str) -> None:
    """Remove a file or a folder as far as possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        os.unlink(path)


class Descriptor:
    """An open file descriptor that closes when its owner has closed it and nobody uses it any more.

    A thread that goes on after its owner was interrupted writes into this file or not at all: never into another one
    that got the number meanwhile. As a context manager it gives the number to a user.
    """

    __slots__ = ("_closed", "_fds", "_users")

    def __init__(self, fd: int) -> None:
        # lists, for an interrupt cannot come in the middle of append and pop
        self._fds, self._users, self._closed = [fd], list[None](), False

    def fileno(self) -> int:
        """The number, for its owner."""
        try:
            return self._fds[0]
        except IndexError:
            raise _closed_error() from None

    def __enter__(self) -> int:
        self._users.append(None)  # first, so that either `close` sees it or it sees `close`
        try:
            if self._closed:
                raise _closed_error()
            return self.fileno()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._users.pop()
        if self._closed and not self._users:
            self._close()

    def close(self) -> None:
        """Close it, or have the last of its users do so."""
        self._closed = True
        if not self._users:
            self._close()

    def _close(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:
            return
        os.close(fd)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit `os` may be gone
        for fd in getattr(self, "_fds", ()):  # an interrupt may have come before there were any
            close(fd)


def _closed_error() -> FileError:
    return FileError(errno.EBADF, "what was to be written here was given up")


def check_space(place: int | str, nbytes: int) -> None:
    """Raise OSError unless so many bytes fit on the disk of an open file or a folder, beside the old ones."""
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if nbytes > free:
        raise OSError(
            errno.ENOSPC,
            f"needs {nbytes:,} bytes and the disk has {free:,} free; make room for {nbytes - free:,} more, or name "
            "another disk",
        )


def write_at(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def write_back(fd: int, offset: int, size: int) -> None:
    """Have the disk begin to write a range that fsync will wait for; a hint, which never fails.

    It makes saving 900 MB take 0.40 s instead of 0.57 (docs/decisions/0005-writing.md).
    """
    if size >= _LEAST:
        begin = _sync_file_range()
        if begin is not None:
            begin(fd, offset, size, _WRITE)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        begin = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    begin.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return begin


def same_file(one: ByteSource, other: ByteSource) -> bool:
    """Whether two sources are one file, with the same bytes when each was opened."""
    return isinstance(one, FileSource) and isinstance(other, FileSource) and one.identity == other.identity


def overwrite(source: FileSource, offset: int, data: bytes) -> None:
    """Put bytes into an existing file, over its first ones or after its last one, and wait until they are on the disk.

    A failure is undone: the file gets its old length and bytes back. Only a crash between the first byte and the end of
    fsync leaves a part of the new bytes. A file that was changed or replaced since it was opened is an error.
    """
    path = source.name
    with file_errors(path, UNCHANGED):
        fd = os.open(path, os.O_RDWR)
        try:
            if not os.path.samestat(os.fstat(fd), os.fstat(source.fileno())):
                raise FileError(f"{path}: was replaced since it was loaded; load it again")
            old = source.read(offset, min(len(data), source.size - offset))
            check_space(fd, max(0, offset + len(data) - source.size))
            try:
                write_at(fd, offset, data)
                os.fsync(fd)
            except BaseException as error:
                _put_back(fd, source, offset, old, error)
                raise
        finally:
            os.close(fd)


def _put_back(fd: int, source: FileSource, offset: int, old: bytes | bytearray, error: BaseException) -> None:
    try:
        os.ftruncate(fd, source.size)
        try:
            write_at(fd, offset, old)
        except OSError:
            if os.pread(fd, len(old), offset) != old:  # what could not be written may be what never changed
                raise
        os.fsync(fd)
    except OSError as again:
        remedy = "its first bytes are damaged, fetch or save it again" if old else f"cut it to {source.size} bytes"
        raise FileError(
            f"{source.name}: was written in part ({error}) and could not be put back ({again}); {remedy}"
        ) from error
