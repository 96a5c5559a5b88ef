"""A file that is open for writing, and stays so for whoever writes into it at the moment."""

from __future__ import annotations

import errno
import os

from statedict.errors import FileError


class Descriptor:
    """A file descriptor that is closed when its owner has closed it and nobody uses it any more.

    A thread that goes on after its owner was interrupted writes into this file or not at all: never into another one
    that got the number meanwhile. As a context manager it gives the number to a user.

    Args:
        fd: an open descriptor, which now belongs to this object.
    """

    __slots__ = ("_closed", "_fds", "_users")

    def __init__(self, fd: int) -> None:
        # lists, for an interrupt cannot come in the middle of append and pop
        self._fds, self._users, self._closed = [fd], list[None](), False

    def fileno(self) -> int:
        """The number, for its owner.

        Raises:
            FileError: it is closed.
        """
        try:
            return self._fds[0]
        except IndexError:
            raise FileError(errno.EBADF, "what was to be written here was given up") from None

    def __enter__(self) -> int:
        self._users.append(None)  # first, so that either `close` sees it or it sees `close`
        try:
            if self._closed:
                raise FileError(errno.EBADF, "what was to be written here was given up")
            return self.fileno()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._users.pop()
        if self._closed and not self._users:
            self._close()

    def close(self) -> None:
        """Close it, or have the last of its users do so.

        Raises:
            OSError: the file system could not keep what was written.
        """
        self._closed = True
        if not self._users:
            self._close()

    def _close(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:
            return
        os.close(fd)

    def __del__(self) -> None:
        for fd in getattr(self, "_fds", ()):  # an interrupt may have come before there were any
            os.close(fd)
