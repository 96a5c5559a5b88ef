"""Write into an existing file: over its first bytes, or after its last one.

That is not atomic, but a failure is undone: the file gets its old length and bytes back. Only a crash between the first
byte and the end of fsync leaves a part of the new bytes.
"""

from __future__ import annotations

import os

from statedict.errors import FileError, file_error
from statedict.io.descriptor import check_space
from statedict.io.pipeline import write_at
from statedict.io.source import FileSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource


def same_file(one: ByteSource, other: ByteSource) -> bool:
    """Whether two sources are one file, with the same bytes when each was opened."""
    return isinstance(one, FileSource) and isinstance(other, FileSource) and one.identity == other.identity


def overwrite(source: FileSource, offset: int, data: bytes) -> None:
    """Put bytes into a file, and wait until they are on the disk.

    Args:
        source: the file as it was read.
        offset: where they go, at most its length.
        data: the bytes.

    Raises:
        CorruptFileError: its bytes changed since it was opened.
        FileError: it was replaced since then, or the file system refuses; what was there is unchanged.
    """
    path = source.name
    try:
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
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise file_error(path, "cannot write (what was there is unchanged)", error) from error


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
