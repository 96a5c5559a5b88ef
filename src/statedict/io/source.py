"""ByteSource: where bytes are. Every range is checked against the size, so no offset from a file is trusted.

Buffers over a megabyte come from `allocate`: fresh memory costs a page fault a page, and comes about three times faster
as huge pages (docs/decisions/0004-reading.md).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from bisect import bisect_right
from functools import partial
from itertools import accumulate

from statedict.errors import CorruptFileError, FileError, OutOfMemoryError, file_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from statedict.dtypes import DType

_PREAD_AT_MOST = 1 << 30  # Linux moves at most 2 GiB a call
_SMALL = 1 << 20
_SHORT = 1 << 16  # copies up to here are not worth the call


class ByteSource:
    """Readable bytes of known size; a subclass has `_fill`, which fills a buffer from an offset in a checked range."""

    __slots__ = ()

    name: str
    size: int
    _fill: Callable[[int, memoryview], object]

    @property
    def in_memory(self) -> bool:
        """Whether `view` is memory already, so that reading it into a buffer would be a needless copy."""
        return False

    @property
    def remote(self) -> bool:
        """Whether a read asks a server and waits, so that several at a time are faster."""
        return False

    @property
    def coarse(self) -> bool:
        """Whether a read has a price beside its bytes, so that few large ones are faster."""
        return self.remote

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        self.check_range(offset, length)
        whole = zeros(length)
        self._fill(offset, memoryview(whole))
        return whole

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self.check_range(offset, len(buffer))
        self._fill(offset, buffer)

    def view(self, private: bool = False) -> memoryview | None:
        """All bytes without a copy, or None where that cannot be had.

        With `private` the view is writable; what is written there stays in this process.
        """
        return None

    def check_range(self, offset: int, length: int) -> None:
        """Raise CorruptFileError unless `length` bytes from `offset` lie within the source."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptFileError(self._range_message(f"bytes {offset:,} to {offset + length:,} lie outside"))

    def _range_message(self, what: str) -> str:
        return f"{self.name}: {what} the file ({self.size:,} bytes); it looks truncated or damaged, fetch it again"


class FileSource(ByteSource):
    """A local file, held open, so that replacing it by rename leaves this one readable; `fd` becomes its own."""

    __slots__ = ("__weakref__", "_fd", "_views", "identity", "name", "size")

    def __init__(self, path: str, fd: int = -1) -> None:
        self._fd, self.name = fd, path
        try:
            if fd < 0:
                self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
            status = os.fstat(self._fd)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            raise file_error(path, "cannot open", error) from error
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{path}: is a pipe or a device; save what comes out of it to a file first")
        self.size = status.st_size
        self.identity = _identity(status)
        self._views: dict[bool, memoryview] = {}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit `os` may be gone
        if self._fd >= 0:
            close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (os.path.abspath(self.name), self.identity)

    def fileno(self) -> int:
        """The open file descriptor, for zero-copy system calls."""
        return self._fd

    def _check_unchanged(self) -> None:
        if _identity(os.fstat(self._fd)) != self.identity:
            raise self._changed_error()

    def _changed_error(self) -> CorruptFileError:
        text = "was shortened or overwritten in place since it was loaded; load it again"
        return CorruptFileError(f"{self.name}: {text}")

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        self.check_range(offset, length)
        self._check_unchanged()
        if length <= _PREAD_AT_MOST:
            try:
                data = os.pread(self._fd, length, offset)
            except OSError as error:
                raise file_error(self.name, f"cannot read byte {offset:,}", error) from error
            except MemoryError as error:
                raise out_of_memory(length, f"{self.name}: ") from error
            if len(data) == length:
                return data
        return super().read(offset, length)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        self._check_unchanged()
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done : done + _PREAD_AT_MOST]], offset + done)
            except OSError as error:
                raise file_error(self.name, f"cannot read byte {offset + done:,}", error) from error
            if count == 0:
                raise self._changed_error()
            done += count

    def view(self, private: bool = False) -> memoryview:
        """The file mapped; with `private` writable, and what is written stays in this process."""
        self._check_unchanged()
        if not self.size:
            return memoryview(bytearray() if private else b"")
        if private not in self._views:
            try:
                access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
                self._views[private] = memoryview(mmap.mmap(self._fd, self.size, access=access))
            except (OSError, MemoryError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                    raise file_error(self.name, "cannot map", error) from error
                raise out_of_memory(self.size, f"{self.name}: ") from error
        return self._views[private]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _reopen(path: str, identity: tuple[int, ...]) -> FileSource:
    source = FileSource(path)
    if source.identity != identity:
        raise FileError(f"{path}: changed since it was loaded; load it again")
    return source


class BytesSource(ByteSource):
    """Bytes in memory: any C-contiguous buffer."""

    __slots__ = ("_view", "name", "size")

    in_memory = True

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "memory") -> None:
        self._view = memoryview(data).cast("B")
        self.name, self.size = name, len(self._view)

    def __reduce__(self) -> tuple[Any, ...]:
        return BytesSource, (bytes(self._view), self.name)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes from `offset`."""
        self.check_range(offset, length)
        return bytes(self._memory()[offset : offset + length])

    def _fill(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._memory()[offset : offset + len(buffer)]

    def view(self, private: bool = False) -> memoryview | None:
        """The memory; None for a private view of what is read-only."""
        memory = self._memory()
        return None if private and memory.readonly else memory

    def _memory(self) -> memoryview:
        return self._view


class AddressSource(ByteSource):
    """Memory that a live array owns; `owner` keeps it alive."""

    __slots__ = ("address", "name", "owner", "size")

    in_memory = True

    def __init__(self, address: int, size: int, owner: object, name: str = "memory") -> None:
        self.address, self.size, self.owner, self.name = address, size, owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return BytesSource, (self.read(0, self.size), self.name)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes from `offset`."""
        import ctypes

        self.check_range(offset, length)
        return ctypes.string_at(self.address + offset, length)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        if len(buffer) < _SHORT:
            buffer[:] = self.view()[offset : offset + len(buffer)]
            return
        import ctypes  # whose memmove lets other threads run meanwhile

        ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), self.address + offset, len(buffer))

    def view(self, private: bool = False) -> memoryview:
        """The memory itself."""
        return address_view(self.address, self.size, self.owner)


class ComputedSource(ByteSource):
    """Bytes that a function makes on demand; what makes tensors is in boxes.py."""

    __slots__ = ("_fill", "name", "remote", "size")

    remote: bool

    def __init__(self, size: int, fill: Any, name: str = "computed", remote: bool = False) -> None:
        self.size, self._fill, self.name, self.remote = size, fill, name, remote


class Slice(ByteSource):
    """A range of another source, its `base`."""

    __slots__ = ("_start", "base", "name", "size")

    def __init__(self, base: ByteSource, start: int, size: int, name: str = "") -> None:
        base.check_range(start, size)
        self.base, self._start, self.size, self.name = base, start, size, name or base.name

    def locate(self) -> tuple[ByteSource, int]:
        """The source that it is a range of, and where it begins there."""
        return self.base, self._start

    @property
    def in_memory(self) -> bool:
        """As the source that it is a range of."""
        return self.base.in_memory

    @property
    def remote(self) -> bool:
        """As the source that it is a range of."""
        return self.base.remote

    @property
    def coarse(self) -> bool:
        """As the source that it is a range of."""
        return self.base.coarse

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        self.check_range(offset, length)
        base, start = self.locate()
        return base.read(start + offset, length)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        base, start = self.locate()
        base.readinto(start + offset, buffer)

    def view(self, private: bool = False) -> memoryview | None:
        """Its part of the other source's view."""
        whole = self.base.view(private)
        if whole is None:
            return None
        start = self.locate()[1]
        return whole[start : start + self.size]

    def _range_message(self, what: str) -> str:
        place = f"(bytes {self._start:,} to {self._start + self.size:,})"
        return f"{self.name}: {what} of their part of the file {place}; it looks damaged, fetch it again"


class Joined(ByteSource):
    """Ranges (source, start, size) of other sources, one after the other."""

    __slots__ = ("_ends", "_parts", "name", "remote", "size")

    remote: bool

    def __init__(self, parts: Iterable[tuple[ByteSource, int, int]], name: str) -> None:
        self._parts: list[tuple[ByteSource, int, int]] = []
        for source, start, size in parts:
            last, begin, count = self._parts[-1] if self._parts else (None, 0, 0)
            if last is source and begin + count == start:  # one read for neighbours
                self._parts[-1] = source, begin, count + size
            else:
                self._parts.append((source, start, size))
        self._ends = [*accumulate(size for _, _, size in self._parts)]
        self.name, self.size = name, self._ends[-1] if self._ends else 0
        self.remote = any(source.remote for source, _, _ in self._parts)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        index = bisect_right(self._ends, offset)
        while buffer:
            source, start, size = self._parts[index]
            within = offset - (self._ends[index] - size)
            part = buffer[: size - within]
            source.readinto(start + within, part)
            buffer, offset, index = buffer[len(part) :], offset + len(part), index + 1


def find_base(source: Any) -> tuple[Any, int]:
    """The source that a range of a range … is in, and where the range begins there."""
    offset = 0
    while hasattr(source, "locate"):
        source, start = source.locate()
        offset += start
    return source, offset


def swap_bytes(source: ByteSource, start: int, nbytes: int, kind: DType) -> ByteSource:
    """A part of a source in which a machine of the other byte order wrote elements of `kind`, in our order."""
    itemsize = kind.itemsize // 2 if kind.name.startswith("complex") else kind.itemsize
    if itemsize == 1:
        return Slice(source, start, nbytes)
    source.check_range(start, nbytes)
    return ComputedSource(nbytes, partial(_read_swapped, source, start, nbytes, itemsize), source.name, source.remote)


def _read_swapped(source: ByteSource, start: int, nbytes: int, itemsize: int, offset: int, buffer: memoryview) -> None:
    first, last = offset // itemsize * itemsize, -(-(offset + len(buffer)) // itemsize) * itemsize
    import numpy

    data = numpy.frombuffer(source.read(start + first, min(last, nbytes) - first), "u1").reshape(-1, itemsize)
    data = data.view(f"u{itemsize}").byteswap() if itemsize <= 8 else data[:, ::-1]
    buffer[:] = data.tobytes()[offset - first : offset - first + len(buffer)]


def address_view(address: int, size: int, owner: object) -> memoryview:
    """A writable view of memory at an address; it keeps `owner` alive."""
    import ctypes

    if not size:
        return memoryview(bytearray())
    memory = (ctypes.c_char * size).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")


def allocate(size: int) -> memoryview:
    """As `zeros`, on huge pages where the system gives them."""
    if size < _SMALL:
        return memoryview(zeros(size))
    try:
        # private, for Python's default is shared memory, which gets no huge pages
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:  # a kernel without huge pages: slower, not wrong
            pass
    return memoryview(memory)


def zeros(size: int) -> bytearray:
    """So many zero bytes; raise OutOfMemoryError if the system gives none."""
    try:
        return bytearray(size)
    except (MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error


def out_of_memory(size: int, what: str = "") -> OutOfMemoryError:
    """The error for memory that the system refuses."""
    remedy = "free some, take fewer tensors at a time, or raise the limit of this process (ulimit -v)"
    return OutOfMemoryError(f"{what}the system gives no {size:,} bytes of memory; {remedy}")
