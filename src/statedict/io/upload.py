"""A stream that becomes an object in a store; its bytes are sent while the next ones are made."""

from __future__ import annotations

from _thread import start_new_thread
from functools import partial
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile

from statedict.errors import FileError
from statedict.io.parallel import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from statedict.io.pipeline import Block
    from statedict.io.remote import Remote

_BLOCK = 1 << 20
_AHEAD = 8  # blocks that may wait for the server
_SHORT = 0.1  # seconds between two looks whether the upload has failed


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
