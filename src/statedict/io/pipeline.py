"""The one streaming engine: read → compute → write, in bounded memory, on a few threads.

`transfer` writes parts of known place into a file and sums them on the way; `summed` reads a range for its sums alone;
`fill` reads ranges into buffers. All cut large ranges into blocks, and `batches` gathers small ones, so that neither a
tensor of 100 GB nor a million tensors of 100 bytes costs more than its bytes. What the block sizes are worth:
docs/decisions/0004-reading.md and 0005-writing.md.
"""

from __future__ import annotations

import os
from threading import local

from statedict.io.memory import allocate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol, TypeVar

    from statedict.io.source import ByteSource

    class Sized(Protocol):
        """What has a size in bytes."""

        @property
        def size(self) -> int:
            """Bytes."""

    Job = TypeVar("Job")
    Result = TypeVar("Result")
    Item = TypeVar("Item", bound=Sized)
    Fill = tuple[ByteSource, int, memoryview]

WORKERS = min(4, os.cpu_count() or 1)
BLOCK = 1 << 20  # of a write: summed while it lies in the processor's cache, and written from there
READ = 8 << 20
BATCH = 1 << 20
_BATCH_ITEMS = 4096
_OWN = local()  # each thread's block: fresh memory for every part would cost as much as reading it


class Part:
    """A range of a source and its place in the output.

    `head` goes right before the data, `tail(crc)` right after; both may be missing.
    """

    __slots__ = ("head", "offset", "size", "source", "start", "tail")

    def __init__(
        self,
        offset: int,
        source: ByteSource,
        start: int,
        size: int,
        head: bytes = b"",
        tail: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self.offset, self.source, self.start, self.size, self.head, self.tail = offset, source, start, size, head, tail


class Sums:
    """CRC-32 and XXH3-128 (hexadecimal) of a part's data."""

    __slots__ = ("crc", "digest")

    def __init__(self, crc: int, digest: str) -> None:
        self.crc, self.digest = crc, digest


def transfer(fd: int, parts: Iterable[Part], *, crc: bool = False) -> list[Sums]:
    """Write each part at its offset in `fd` and return its sums, in order.

    Args:
        fd: an open file; parts may be written in any order.
        parts: in ascending order of offset, not overlapping.
        crc: also compute CRC-32 (0 otherwise); the digest is always computed.
    """
    sums: list[Sums] = []
    for done in parallel(lambda batch: _write_batch(fd, batch, crc), batches(parts)):
        sums += done
    return sums


def pour(write: Callable[[bytes | memoryview], object], parts: Iterable[Part]) -> list[Sums]:
    """What `transfer` does with `crc`, into a stream that takes one piece after the other."""
    sums: list[Sums] = []
    for part in parts:
        write(part.head)
        sums.append(summed(part.source, part.start, part.size, use=lambda _, block: write(block)))
        if part.tail is not None:
            write(part.tail(sums[-1].crc, part.size))
    return sums


def fill(ranges: Iterable[Fill]) -> None:
    """Read each (source, offset, buffer) into its buffer."""
    for _ in parallel(_read_batch, _blocks(ranges)):
        pass


def parallel(work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """`map`, on a few threads once there is more than one job; the first error stops the rest."""
    iterator = iter(jobs)
    first = [job for _, job in zip(range(2), iterator, strict=False)]
    if len(first) < 2 or WORKERS == 1:
        for job in first:
            yield work(job)
        for job in iterator:
            yield work(job)
        return
    from concurrent.futures import ThreadPoolExecutor
    from itertools import chain

    with ThreadPoolExecutor(WORKERS, "statedict") as pool:
        yield from pool.map(work, chain(first, iterator))


def batches(parts: Iterable[Item], limit: int = BATCH) -> Iterator[list[Item]]:
    """Neighbours together while they have less than `limit` bytes, so that a job is worth its thread."""
    batch: list[Item] = []
    size = 0
    for part in parts:
        if batch and (size + part.size > limit or len(batch) >= _BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.size
    if batch:
        yield batch


def _write_batch(fd: int, batch: list[Part], with_crc: bool) -> list[Sums]:
    from xxhash import xxh3_128_hexdigest
    from zlib_ng.zlib_ng import crc32

    if len(batch) == 1 and batch[0].size > BATCH:
        return [_write_large(fd, batch[0], with_crc)]
    sums: list[Sums] = []
    base = batch[0].offset - len(batch[0].head)
    out = bytearray()
    for part in batch:
        gap = part.offset - len(part.head) - base - len(out)
        if gap:
            out += bytes(gap)
        data = part.source.read(part.start, part.size)
        crc = crc32(data) if with_crc else 0
        out += part.head
        out += data
        if part.tail is not None:
            out += part.tail(crc, part.size)
        sums.append(Sums(crc, xxh3_128_hexdigest(data)))
    write_at(fd, base, out)
    return sums


def _write_large(fd: int, part: Part, with_crc: bool) -> Sums:
    if part.head:
        write_at(fd, part.offset - len(part.head), part.head)
    ahead = part.offset - part.start
    sums = summed(part.source, part.start, part.size, with_crc, use=lambda at, block: write_at(fd, ahead + at, block))
    if part.tail is not None:
        write_at(fd, part.offset + part.size, part.tail(sums.crc, part.size))
    return sums


def summed(
    source: ByteSource,
    start: int,
    size: int,
    crc: bool = True,
    digest: bool = True,
    use: Callable[[int, memoryview], object] | None = None,
) -> Sums:
    """The sums of a range, read once; `use` gets each block while it lies in the processor's cache.

    Args:
        source: where the bytes are.
        start: its first byte.
        size: its length.
        crc: compute the CRC-32 (0 otherwise).
        digest: compute the digest (empty otherwise).
        use: called with each block and its offset in the source.
    """
    from xxhash import xxh3_128
    from zlib_ng.zlib_ng import crc32

    hasher, crc_so_far = xxh3_128(), 0
    for at, block in blocks(source, start, size):
        if crc:
            crc_so_far = crc32(block, crc_so_far)
        if digest:
            hasher.update(block)
        if use is not None:
            use(at, block)
    return Sums(crc_so_far, hasher.hexdigest() if digest else "")


def blocks(source: ByteSource, start: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, block) of a range; a thread reads one range at a time, for each block overwrites the one before."""
    stream = getattr(source, "stream", None)
    if stream is not None and (start, size) == (0, source.size):  # what is unpacked is not kept
        yield from stream(BLOCK)
        return
    memory = source.view() if source.in_memory else None
    if memory is None and not hasattr(_OWN, "block"):
        _OWN.block = allocate(BLOCK)
    file, ahead = (None, 0) if memory is not None else lowest(source)
    for at in range(start, start + size, BLOCK):
        length = min(BLOCK, start + size - at)
        if memory is not None:
            block = memory[at : at + length]
        else:
            block = _OWN.block[:length]
            # the file itself where there is one: its checks, at the first block, cost as much as reading half a block
            if file is None or at == start or os.preadv(file, [block], ahead + at) != length:
                source.readinto(at, block)
        yield at, block


def lowest(source: Any) -> tuple[int | None, int]:
    """The descriptor of the file that a source is a range of, None if there is none, and where that range begins."""
    offset = 0
    while hasattr(source, "locate"):
        source, start = source.locate()
        offset += start
    return (source.fileno() if hasattr(source, "fileno") else None), offset


def write_at(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _blocks(ranges: Iterable[Fill]) -> Iterator[list[Fill]]:
    batch: list[Fill] = []
    size = 0
    for source, offset, buffer in ranges:
        for at in range(0, len(buffer), READ):
            piece = buffer[at : at + READ]
            batch.append((source, offset + at, piece))
            size += len(piece)
            if size >= READ or len(batch) >= _BATCH_ITEMS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _read_batch(batch: list[Fill]) -> None:
    for source, offset, buffer in batch:
        source.readinto(offset, buffer)
