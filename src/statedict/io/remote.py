"""Bytes behind a URL: a ByteSource over ranges, and uploads that appear whole or not at all.

A request asks for a range and its answer tells the object's size, so opening a file takes one. Small reads come from
blocks in memory, large ones are cut into pieces of which several are under way. If an object changes between two
answers, its size or its tag differs.
"""

from __future__ import annotations

import errno
import os
from _thread import start_new_thread
from collections import OrderedDict
from functools import partial
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile

from statedict.errors import CorruptFileError, FileError
from statedict.io.disk import check_space
from statedict.io.parallel import REMOTE_WORKERS, Task, parallel
from statedict.io.pipeline import PIECE, meter
from statedict.io.source import ByteSource, FileSource
from statedict.io.urls import NoRangesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, TypeAlias

    from statedict.io.hub import _HubFile
    from statedict.io.object_store import _Object
    from statedict.io.pipeline import Block

    Remote: TypeAlias = "_HubFile | _Object"
    """What lies behind a URL; as a folder, what lies below it."""


_FIRST = 1 << 16  # of a file: enough for most headers
_SMALL = 1 << 18  # reads up to this size are made of kept blocks
_KEPT = 128  # blocks
_BLOCK = 1 << 20
_AHEAD = 8  # blocks that may wait for the server
_SHORT = 0.1  # seconds between two looks whether the upload has failed


def connect(url: str) -> Remote:
    """What may lie behind a URL."""
    if url.startswith("hf:"):
        from statedict.io import hub as module
    else:
        from statedict.io import object_store as module  # type: ignore[no-redef]
    return module.connect(url)


class RemoteSource(ByteSource):
    """An object behind a URL, read in ranges."""

    __slots__ = ("__weakref__", "_blocks", "_remote", "name", "size", "tag", "url")

    remote = True

    def __init__(self, url: str, remote: Remote) -> None:
        self.url, self._remote, self.name = url, remote, remote.name
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        first, self.size, self.tag = remote.get(0, _FIRST)
        self._check_length(first, min(_FIRST, self.size))
        self._blocks[0] = bytes(first)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self.size, self.tag)

    @property
    def place(self) -> tuple[str, str]:
        """What another source of the same object has too."""
        return self.url, self.tag

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        if length > _SMALL:
            return super().read(offset, length)
        self.check_range(offset, length)
        return self._from_blocks(offset, length)

    def _fill(self, offset: int, buffer: memoryview) -> None:
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
            if error.errno != errno.ERANGE or self._current_size() == self.size:
                raise
            raise self._replaced_error() from None
        if size != self.size or tag != self.tag:
            raise self._replaced_error()
        self._check_length(data, end - start)
        return data

    def _current_size(self) -> int:
        try:
            return self._remote.size()
        except FileError:
            return self.size

    def _replaced_error(self) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: was replaced since it was loaded; load it again")

    def _check_length(self, data: Block, length: int) -> None:
        if len(data) != length:
            raise CorruptFileError(f"{self.name}: the server sent {len(data):,} bytes of {length:,}; try again")


def _reopen(url: str, size: int, tag: str) -> RemoteSource:
    source = RemoteSource(url, connect(url))
    if (source.size, source.tag) != (size, tag):
        raise FileError(f"{source.name}: changed since it was loaded; load it again")
    return source


def open_url(url: str) -> RemoteSource | FileSource:
    """Open a URL; from a server that sends no ranges, a copy in a temporary file without a name."""
    remote = connect(url)
    try:
        return RemoteSource(url, remote)
    except NoRangesError:
        return _copy(remote)


def _copy(remote: Remote) -> FileSource:
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


class Upload:
    """A stream whose bytes another thread sends; if no thread can start, a temporary file holds them until the end."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._size = remote, 0
        self._queue: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()  # those in the queue that are free
        self._buffer = bytearray()
        self._task: Task | None = None
        self._spool: IO[bytes] | None = None

    def expect(self, nbytes: int) -> None:
        """Announce roughly so many bytes."""
        self._size = nbytes

    def write(self, data: Block) -> None:
        """Take a piece; it is copied."""
        self._buffer += data
        if len(self._buffer) >= _BLOCK:
            self._send(bytes(self._buffer))
            self._buffer.clear()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._abandon(error)
            return
        try:
            self._finish()
        except BaseException as failed:
            self._abandon(failed)
            raise

    def _finish(self) -> None:
        task = self._begin()
        if self._buffer:
            self._send(bytes(self._buffer))
        if self._spool is not None:
            self._spool.seek(0)
            self._remote.put(iter(partial(self._spool.read, _BLOCK), b""), self._size)
            self._spool.close()
            return
        self._queue.put(None)
        while not task.wait():
            pass
        task.result()

    def _begin(self) -> Task:
        if self._task is None:
            for _ in range(_AHEAD):
                self._places.put(None)
            self._task = Task(partial(self._remote.put, self._pieces(), self._size))
            try:
                start_new_thread(self._task.run, ())
            except (RuntimeError, MemoryError):  # the interpreter or the system gives no thread
                self._spool = TemporaryFile()  # noqa: SIM115 (closed by the end of the upload)
        return self._task

    def _send(self, item: bytes) -> None:
        task = self._begin()
        if self._spool is not None:
            self._spool.write(item)
            return
        while not task.over:
            try:
                self._places.get(timeout=_SHORT)
            except Empty:
                continue
            self._queue.put(item)
            return
        task.result()
        raise FileError(f"{self._remote.name}: the upload ended before the data did; try again")

    def _pieces(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._places.put(None)
            yield item

    def _abandon(self, error: BaseException) -> None:
        """Have the upload fail, so that the store drops its parts, and wait until it has."""
        if self._task is None:
            return
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            pass
        self._queue.put(InterruptedError(str(error)))
        while not self._task.cancel():
            self._task.wait()
        if self._spool is not None:
            self._spool.close()
