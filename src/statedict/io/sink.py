"""Where a format's writer puts its parts: a file, anywhere in it, or a stream, one piece after the other."""

from __future__ import annotations

from statedict.errors import CorruptFileError
from statedict.io.blocks import compute_sums
from statedict.io.descriptor import check_space
from statedict.io.parallel import REMOTE_WORKERS, WORKERS, parallel
from statedict.io.pipeline import Part, pour, transfer, write_at
from statedict.io.progress import meter
from statedict.io.source import BytesSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from typing import Protocol

    from statedict.io.blocks import Block, Sums
    from statedict.io.descriptor import Descriptor

    class Sink(Protocol):
        """What a writer writes into."""

        @property
        def in_order(self) -> bool:
            """Whether each part has to follow on the one before."""

        def reserve(self, nbytes: int) -> None:
            """So many bytes will come; raise OSError if there is no room."""

        def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
            """Write parts and return their sums."""

        def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
            """Write, from byte 0, what a function makes of the sums of the parts, and the parts after it."""


class FileSink:
    """A file, open for writing.

    Attributes:
        file: the file, open.
        path: its name; needed with an executor, whose workers open it themselves.
        executor: what carries out the writing, instead of a few threads.
        durable: fsync will follow.
    """

    __slots__ = ("durable", "executor", "file", "path")

    in_order = False

    def __init__(
        self, file: Descriptor, path: str = "", executor: Executor | None = None, durable: bool = False
    ) -> None:
        self.file, self.path, self.executor, self.durable = file, path, executor, durable

    @property
    def fd(self) -> int:
        """Its descriptor, for writing while the file is not closed."""
        return self.file.fileno()

    def reserve(self, nbytes: int) -> None:
        """So many bytes will come; raise OSError if the disk has no room for them."""
        check_space(self.fd, nbytes)
        meter().expect(nbytes)

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write parts at their offsets and return their sums."""
        return transfer(self.file, parts, crc=crc, path=self.path, executor=self.executor, durable=self.durable)

    def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
        """Write the parts, then what a function makes of their sums at byte 0."""
        write_at(self.fd, 0, head(self.put(parts)))


class StreamSink:
    """A stream that takes one piece after the other.

    Attributes:
        write: takes a piece; it may keep it no longer than the call lasts.
        expect: is told beforehand how many bytes will come, roughly.
    """

    __slots__ = ("expect", "write")

    in_order = True

    def __init__(self, write: Callable[[Block], object], expect: Callable[[int], object] = lambda _: None) -> None:
        self.write, self.expect = write, expect

    def reserve(self, nbytes: int) -> None:
        """So many bytes will come."""
        self.expect(nbytes)
        meter().expect(nbytes)

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write parts and return their sums, always with CRC-32."""
        return pour(self.write, parts)

    def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
        """Write what a function makes of the sums of the parts, then the parts; so they are read twice.

        Raises:
            CorruptFileError: they were not the same the second time.
        """
        workers = REMOTE_WORKERS if any(part.source.remote for part in parts) else WORKERS
        before = list(parallel(_sums, parts, workers=workers))
        self.write(head(before))
        for part, one, other in zip(parts, before, self.put(parts), strict=True):
            if one.digest != other.digest:
                raise CorruptFileError(f"{part.source.name}: changed while it was read; nothing was written, try again")


def put_bytes(data: bytes, sink: Sink) -> None:
    """Write a file that is these bytes."""
    sink.put([Part(0, BytesSource(data), 0, len(data))])


def _sums(part: Part) -> Sums:
    return compute_sums(part.source, part.start, part.size, crc=False)
