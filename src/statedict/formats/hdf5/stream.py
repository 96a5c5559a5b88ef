"""Opens HDF5 by h5py: libhdf5 reads what a ByteSource has, and no other file.

libhdf5 is C. It gets neither a path nor a descriptor, only a Python object whose reads are checked against the size.
"""

from __future__ import annotations

import atexit
import io
from contextlib import contextmanager, suppress
from weakref import WeakSet

from statedict.errors import CorruptFileError, MissingExtraError, StateDictError, TruncatedError, is_failure_of_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource

_BLOCK, _FAR_BLOCK = 32 << 10, 512 << 10  # bytes of metadata that are read at a time, here and from a server
_BLOCKS = 64
_HEAP = b"GCOL"  # how a global heap begins, which has texts of any length
_MAX_HEAP = 64 << 20


def import_h5py() -> Any:
    """Import h5py, or raise a MissingExtraError."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("HDF5 takes h5py; install it by: pip install 'statedict[hdf5]'") from error
    return h5py


class Stream(io.RawIOBase):
    """A source as a file; `error` is what a read raised, and stays.

    A read that raises would leave libhdf5 with a file that it closes when the process ends, by calling Python, which is
    gone. So what cannot be read is zeros, and `Hdf5File.errors` raises.
    """

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self.source, self.at = source, 0
        self.error: BaseException | None = None
        self._size = _FAR_BLOCK if source.remote else _BLOCK
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position."""
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        self.at = offset + (0, self.at, self.source.size)[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; what lies past the end is an error."""
        view = memoryview(buffer).cast("B")
        try:
            if self.error is not None:
                raise self.error
            self.source.check_range(self.at, len(view))
            if len(view) >= self._size:
                self.source.readinto(self.at, view)
            else:
                self._fill(view)
            if view[:4] == _HEAP:
                check_heap(self.source, self.at)
        except BaseException as error:
            self.error = error
            view[:] = bytes(len(view))
        self.at += len(view)
        return len(view)

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, within = divmod(self.at + done, self._size)
            block = self._blocks.get(index)
            if block is None:
                begin = index * self._size
                block = bytes(self.source.read(begin, min(self._size, self.source.size - begin)))
                while len(self._blocks) >= _BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
                self._blocks[index] = block
            part = block[within : within + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)


def check_heap(source: ByteSource, begin: int) -> None:
    """Check the objects of a global heap: libhdf5 2.0 goes on forever over one of size 0.

    Source: HDF5 File Format Specification 3.0, III.E.

    Raises:
        CorruptFileError: they do not fill it, or it does not lie in the file.
    """
    head = bytes(source.read(0, min(source.size, 16)))
    width = head[14] if head[8:9] in (b"\0", b"\1") else head[10]  # bytes of a size
    size = int.from_bytes(source.read(begin + 8, width), "little") if width in (2, 4, 8) else -1
    if not 16 <= size <= min(source.size - begin, _MAX_HEAP):
        raise CorruptFileError(f"{source.name}: the heap at byte {begin:,} has {size:,} bytes; the file is damaged")
    data = bytes(source.read(begin, size))
    at = 16
    while size - at >= 16:
        index, length = (
            int.from_bytes(data[at : at + 2], "little"),
            int.from_bytes(data[at + 8 : at + 8 + width], "little"),
        )
        step = length if index == 0 else 16 + -(-length // 8) * 8
        if step < 16 or at + step > size:
            raise CorruptFileError(f"{source.name}: the heap at byte {begin:,} is damaged at byte {begin + at:,}")
        at += step


def check_superblock(source: ByteSource) -> None:
    """Check that a file has the whole of its superblock: libhdf5 2.0 crashes when a process ends that met part of one.

    Source: HDF5 File Format Specification 3.0, II.A.

    Raises:
        CorruptFileError: it is damaged, or of a version that is not known.
    """
    head = bytes(source.read(0, min(source.size, 16)))
    version, widths = (head[8], head[13:15] if head[8] < 2 else head[9:11]) if len(head) == 16 else (-1, b"")
    if version > 3 or any(width not in (2, 4, 8) for width in widths):
        raise CorruptFileError(f"{source.name}: its superblock is damaged, or of a later HDF5 ({head[8:].hex()})")
    # addresses, the entry of the root group, and what else is in versions 0 and 1; addresses and a sum in 2 and 3
    needed = 24 + 4 * version + 6 * widths[0] + 24 if 0 <= version < 2 else 16 + 4 * sum(widths[:1])
    if source.size < needed:
        raise TruncatedError(f"{source.name}: ends within its superblock; the file is truncated, fetch it again")


_OPEN: WeakSet[Any] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what libhdf5 would close after Python is gone, by calling Python: the process would crash."""
    for one in [*_OPEN]:
        with suppress(Exception):
            one.file.close()


class Hdf5File:
    """A file that h5py has open."""

    def __init__(self, source: ByteSource) -> None:
        h5py = import_h5py()
        check_superblock(source)
        self.source, self.stream = source, Stream(source)
        with self.errors(""):
            self.file = h5py.File(self.stream, "r")
            _OPEN.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hdf5File, (self.source,)

    @contextmanager
    def errors(self, where: str) -> Iterator[None]:
        """Turn what h5py raises into our errors; `where` is a path in the file."""
        try:
            yield
            self._raise_error()
        except StateDictError:
            raise
        except (
            OSError,
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            OverflowError,
            MemoryError,
            AttributeError,
        ) as error:
            self._raise_error()
            if is_failure_of_code(error):
                raise
            what = " ".join(str(error).split())[:200]
            name = f"{self.source.name}: {where}" if where else self.source.name
            kind = TruncatedError if "truncated file" in what else CorruptFileError
            raise kind(f"{name}: libhdf5 says {what!r}; the file is damaged, fetch or save it again") from error

    def _raise_error(self) -> None:
        """Raise what a read raised; from then on libhdf5 may remember zeros, so nothing more is read."""
        error = self.stream.error
        if error is not None and not isinstance(error, Exception):
            self.stream.error = StateDictError(f"{self.source.name}: reading was interrupted; load the file again")
        if error is not None:
            raise error
