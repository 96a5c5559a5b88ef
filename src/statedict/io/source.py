"""ByteSource: where bytes are.

A source has a `name` for messages, a `size` in bytes, and three ways to get at bytes:
`read` copies them out, `readinto` fills a buffer, `view` maps them without a copy where that is possible.
Every range is checked against the size first, so that no offset from a file is ever trusted.
"""

from __future__ import annotations

import os

from statedict.errors import CorruptFileError, FileError, file_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class ByteSource(Protocol):
        """Readable bytes of known size."""

        name: str
        size: int

        @property
        def in_memory(self) -> bool:
            """Whether `view` is memory already, so that reading it into a buffer would be a needless copy."""

        def read(self, offset: int, length: int) -> bytes | bytearray:
            """A copy of `length` bytes from `offset`."""

        def readinto(self, offset: int, buffer: memoryview) -> None:
            """Fill `buffer` from `offset`."""

        def view(self, private: bool = False) -> memoryview | None:
            """All bytes without a copy, or None where that cannot be had.

            With `private` the view is writable; what is written there stays in this process.
            """


_PREAD_AT_MOST = 1 << 30  # Linux moves at most 2 GiB a call


def check_range(source: ByteSource, offset: int, length: int) -> None:
    """Raise CorruptFileError unless `length` bytes from `offset` lie within the source."""
    if offset < 0 or length < 0 or offset + length > source.size:
        raise CorruptFileError(
            f"{source.name}: bytes {offset:,} to {offset + length:,} lie outside the file ({source.size:,} bytes); "
            "it looks truncated or damaged, fetch it again"
        )


class FileSource:
    """A local file, held open, so that replacing it by rename leaves this one readable."""

    __slots__ = ("__weakref__", "_fd", "_private", "_view", "identity", "name", "size")

    in_memory = False

    def __init__(self, path: str) -> None:
        self._fd = -1
        self.name = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            status = os.fstat(self._fd)
        except OSError as error:
            raise file_error(path, "cannot open", error) from error
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self._view: memoryview | None = None
        self._private: memoryview | None = None

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (os.path.abspath(self.name), self.identity)

    def fileno(self) -> int:
        """The open file descriptor, for zero-copy system calls."""
        return self._fd

    def read(self, offset: int, length: int) -> bytes | bytearray:
        check_range(self, offset, length)
        data = os.pread(self._fd, length, offset) if length <= _PREAD_AT_MOST else b""
        if len(data) == length:
            return data
        whole = bytearray(length)
        self.readinto(offset, memoryview(whole))
        return whole

    def readinto(self, offset: int, buffer: memoryview) -> None:
        length = len(buffer)
        check_range(self, offset, length)
        done = 0
        while done < length:
            try:
                count = os.preadv(self._fd, [buffer[done : done + _PREAD_AT_MOST]], offset + done)
            except OSError as error:
                raise file_error(self.name, f"cannot read byte {offset + done:,}", error) from error
            if count == 0:
                raise CorruptFileError(
                    f"{self.name}: ended at byte {offset + done:,} of {self.size:,}; "
                    "it was shortened while it was open, load it again"
                )
            done += count

    def view(self, private: bool = False) -> memoryview | None:
        import mmap

        if not self.size:
            return memoryview(bytearray() if private else b"")
        if private:
            if self._private is None:
                self._private = memoryview(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY))
            return self._private
        if self._view is None:
            self._view = memoryview(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ))
        return self._view


def _reopen(path: str, identity: tuple[int, ...]) -> FileSource:
    source = FileSource(path)
    if source.identity != identity:
        raise FileError(f"{path}: changed since it was loaded; load it again")
    return source


class BytesSource:
    """Bytes in memory: any C-contiguous buffer."""

    __slots__ = ("_view", "name", "size")

    in_memory = True

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "memory") -> None:
        self._view = memoryview(data).cast("B")
        self.name, self.size = name, len(self._view)

    def __reduce__(self) -> tuple[Any, ...]:
        return BytesSource, (bytes(self._view), self.name)

    def read(self, offset: int, length: int) -> bytes | bytearray:
        check_range(self, offset, length)
        return bytes(self._view[offset : offset + length])

    def readinto(self, offset: int, buffer: memoryview) -> None:
        check_range(self, offset, len(buffer))
        buffer[:] = self._view[offset : offset + len(buffer)]

    def view(self, private: bool = False) -> memoryview | None:
        if private and self._view.readonly:
            return None
        return self._view


class AddressSource:
    """Memory that a live array owns; `owner` keeps it alive."""

    __slots__ = ("address", "name", "owner", "size")

    in_memory = True

    def __init__(self, address: int, size: int, owner: object, name: str = "memory") -> None:
        self.address, self.size, self.owner, self.name = address, size, owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return BytesSource, (self.read(0, self.size), self.name)

    def read(self, offset: int, length: int) -> bytes | bytearray:
        import ctypes

        check_range(self, offset, length)
        return ctypes.string_at(self.address + offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        check_range(self, offset, len(buffer))
        buffer[:] = self.view()[offset : offset + len(buffer)]

    def view(self, private: bool = False) -> memoryview:
        return address_view(self.address, self.size, self.owner)


class ComputedSource:
    """Bytes that a function makes on demand: what a lazy operation returns."""

    __slots__ = ("fill", "name", "size")

    in_memory = False

    def __init__(self, size: int, fill: Any, name: str = "computed") -> None:
        self.size, self.fill, self.name = size, fill, name

    def read(self, offset: int, length: int) -> bytes | bytearray:
        check_range(self, offset, length)
        whole = bytearray(length)
        self.fill(offset, memoryview(whole))
        return whole

    def readinto(self, offset: int, buffer: memoryview) -> None:
        check_range(self, offset, len(buffer))
        self.fill(offset, buffer)

    def view(self, private: bool = False) -> memoryview | None:
        return None


def address_view(address: int, size: int, owner: object) -> memoryview:
    """A writable view of memory at an address; it keeps `owner` alive."""
    import ctypes

    if not size:
        return memoryview(bytearray())
    memory = (ctypes.c_char * size).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")
