"""Bytes behind a URL: a ByteSource over ranges, and files that appear there whole or not at all.

    s3://BUCKET/KEY  gs://BUCKET/KEY  az://CONTAINER/KEY  http(s)://HOST/PATH     object_store.py
    hf://ORG/NAME[@REVISION]/PATH                                               hub.py

A request asks for a range and its answer tells the object's size, so opening a file takes one. Small reads come from
blocks that are kept, large ones are cut into pieces of which several are under way. An object that changes between two
answers is noticed by its size and its tag.

Writing makes a stream that is cut into the parts of a multipart upload; the object is there when the last part is, and
an error or an interruption ends the upload without it.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from statedict.errors import CorruptFileError, FileError
from statedict.io.descriptor import check_space
from statedict.io.parallel import REMOTE_WORKERS, parallel
from statedict.io.pipeline import PIECE
from statedict.io.source import ByteSource, FileSource
from statedict.io.urls import NoRangesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Protocol

    from statedict.io.pipeline import Block
    from statedict.io.urls import Item

    Version = dict[str, str]

    class Remote(Protocol):
        """What may lie behind a URL; as a folder, what lies below it."""

        @property
        def name(self) -> str:
            """The URL without what is secret in it."""

        def get(self, start: int, end: int) -> tuple[Block, int, str]:
            """Bytes of a range, fewer at the end; the size of the whole, and what changes when it does.

            Raises:
                NoRangesError: the server sends the whole instead.
                MissingFileError: there is no such object.
                FileError: the server refuses or does not answer; ERANGE if it sends another range.
            """

        def stream(self) -> tuple[Iterator[Block], int]:
            """All of its bytes, and how many there are (-1: nobody knows)."""

        def size(self) -> int:
            """How many bytes there are, without reading them."""

        def exists(self) -> bool:
            """Whether there is such an object."""

        def contents(self) -> dict[str, Item] | None:
            """The files and folders of this folder; None where the server does not list."""

        def put(self, pieces: Iterator[bytes], size: int) -> None:
            """Write the object of pieces; if they raise, nothing is there afterwards."""

        def look(self) -> tuple[bytes, Version] | None:
            """The bytes of a small object and its version; None if there is none."""

        def write_if(self, data: bytes, seen: Version | None) -> Version | None:
            """Write a small object if it is still the version that was seen; what was written, None if it is not."""

        def delete(self) -> None:
            """Take it away."""


_FIRST = 1 << 16  # of a file: enough for most headers
_SMALL = 1 << 18  # reads up to this size are made of kept blocks
_KEPT = 128  # blocks


def at(url: str) -> Remote:
    """What may lie behind a URL."""
    if url.startswith("hf:"):
        from statedict.io import hub as module
    else:
        from statedict.io import object_store as module  # type: ignore[no-redef]
    return module.at(url)


class RemoteSource(ByteSource):
    """An object behind a URL, read in ranges."""

    __slots__ = ("__weakref__", "_blocks", "_remote", "_tag", "name", "size", "url")

    remote = True

    def __init__(self, url: str, remote: Remote) -> None:
        self.url, self._remote, self.name = url, remote, remote.name
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        first, self.size, self._tag = remote.get(0, _FIRST)
        self._check_length(first, min(_FIRST, self.size))
        self._blocks[0] = bytes(first)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self.size, self._tag)

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        if length > _SMALL:
            return super().read(offset, length)
        self.check_range(offset, length)
        return self._from_blocks(offset, length)

    def fill(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from a range that has been checked."""
        length = len(buffer)
        if length <= _SMALL:
            buffer[:] = self._from_blocks(offset, length)
            return

        def put(at: int) -> None:
            end = min(at + PIECE, length)
            buffer[at:end] = self._get(offset + at, offset + end)

        for _ in parallel(put, range(0, length, PIECE), workers=REMOTE_WORKERS):
            pass

    def _from_blocks(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        first, last = offset // _FIRST, (offset + length - 1) // _FIRST
        kept = {number: self._blocks.get(number) for number in range(first, last + 1)}
        missing = [number for number, block in kept.items() if block is None]
        if missing:
            start, end = missing[0] * _FIRST, min((missing[-1] + 1) * _FIRST, self.size)
            data = self._get(start, end)
            for number in range(missing[0], missing[-1] + 1):
                at = number * _FIRST - start
                kept[number] = self._blocks[number] = bytes(memoryview(data)[at : at + _FIRST])
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        whole = b"".join(block for block in kept.values() if block is not None)
        return whole[offset - first * _FIRST :][:length]

    def _get(self, start: int, end: int) -> Block:
        try:
            data, size, tag = self._remote.get(start, end)
        except FileError as error:
            if error.errno != errno.ERANGE or self._size_now() == self.size:
                raise
            raise self._replaced() from None
        if size != self.size or tag != self._tag:
            raise self._replaced()
        self._check_length(data, end - start)
        return data

    def _size_now(self) -> int:
        try:
            return self._remote.size()
        except FileError:
            return self.size

    def _replaced(self) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: was replaced since it was loaded; load it again")

    def _check_length(self, data: Block, length: int) -> None:
        if len(data) != length:
            raise CorruptFileError(f"{self.name}: the server sent {len(data):,} bytes of {length:,}; try again")


def _reopen(url: str, size: int, tag: str) -> RemoteSource:
    source = RemoteSource(url, at(url))
    if (source.size, source._tag) != (size, tag):
        raise FileError(f"{source.name}: changed since it was loaded; load it again")
    return source


def open_url(url: str) -> RemoteSource | FileSource:
    """Open a URL; from a server that sends no ranges, a copy in a temporary file without a name."""
    remote = at(url)
    try:
        return RemoteSource(url, remote)
    except NoRangesError:
        return _copy(remote)


def _copy(remote: Remote) -> FileSource:
    from tempfile import TemporaryFile

    from statedict.io.progress import meter

    here = meter()
    pieces, size = remote.stream()
    with TemporaryFile() as file:
        try:
            if size > 0:
                check_space(file.fileno(), size)
                here.expect(size)
            for piece in pieces:
                file.write(piece)
                here.advance(len(piece))
            file.flush()
        except OSError as error:
            if isinstance(error, FileError):
                raise
            what = f"its server sends no ranges, and it cannot be copied to a temporary file: {error.strerror}"
            raise FileError(error.errno, what, remote.name) from error
        return FileSource(remote.name, os.dup(file.fileno()))
