"""The one streaming engine: read → compute → write, in bounded memory, on a few threads.

`transfer` writes parts of known place into a file and sums them on the way; `fill` reads ranges into buffers.
Both cut large ranges into blocks and gather small ones into batches, so that neither a tensor of 100 GB nor a
million tensors of 100 bytes costs more than its bytes. What the block sizes are worth: docs/decisions/0004-reading.md
and 0005-writing.md.
"""

from __future__ import annotations

import os

from statedict.io.memory import allocate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from statedict.io.source import ByteSource

    Job = TypeVar("Job")
    Result = TypeVar("Result")
    Fill = tuple[ByteSource, int, memoryview]

WORKERS = min(4, os.cpu_count() or 1)
BLOCK = 1 << 20  # of a write: summed while it lies in the processor's cache, and written from there
READ = 8 << 20
BATCH = 1 << 20
_BATCH_ITEMS = 4096


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
    for done in parallel(lambda batch: _write_batch(fd, batch, crc), _batches(parts)):
        sums += done
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


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        if batch and (size + part.size > BATCH or len(batch) >= _BATCH_ITEMS):
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
    from xxhash import xxh3_128
    from zlib_ng.zlib_ng import crc32

    hasher, crc = xxh3_128(), 0
    source, start, size = part.source, part.start, part.size
    memory = source.view() if source.in_memory else None
    buffer = allocate(min(BLOCK, size)) if memory is None else memoryview(b"")
    if part.head:
        write_at(fd, part.offset - len(part.head), part.head)
    for at in range(0, size, BLOCK):
        length = min(BLOCK, size - at)
        if memory is not None:
            block = memory[start + at : start + at + length]
        else:
            block = buffer[:length]
            source.readinto(start + at, block)
        if with_crc:
            crc = crc32(block, crc)
        hasher.update(block)
        write_at(fd, part.offset + at, block)
    if part.tail is not None:
        write_at(fd, part.offset + size, part.tail(crc, size))
    return Sums(crc, hasher.hexdigest())


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
