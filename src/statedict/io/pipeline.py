"""The one streaming engine: read → compute → write, in bounded memory, on a few threads or on an executor.

`transfer` writes parts of known place into a file and sums them on the way; `pour` writes them one after the other into
a stream; `fill` reads ranges into buffers. All cut large ranges into blocks, and gather small ones, so that neither a
tensor of 100 GB nor a million tensors of 100 bytes costs more than its bytes. What the block sizes are worth:
docs/decisions/0004-reading.md and 0005-writing.md.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import chain

from statedict.io.blocks import PIECE, Sums, blocks, compute_sums, sums_of
from statedict.io.descriptor import Descriptor, write_back
from statedict.io.parallel import (
    BATCH,
    BATCH_ITEMS,
    REMOTE_WORKERS,
    WORKERS,
    batches,
    check_spawned,
    check_wanted,
    parallel,
)
from statedict.io.progress import meter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    from statedict.io.blocks import Block
    from statedict.io.progress import Meter
    from statedict.io.source import ByteSource

    Fill = tuple[ByteSource, int, memoryview]

READ = 8 << 20
_JOB = 16 << 20  # bytes of small parts that a worker of an executor takes at a time


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


def transfer(
    file: Descriptor,
    parts: Iterable[Part],
    *,
    crc: bool = False,
    path: str = "",
    executor: Executor | None = None,
    durable: bool = False,
) -> list[Sums]:
    """Write each part at its offset in a file and return its sums, in order.

    Args:
        file: the file, open; parts may be written in any order.
        parts: in ascending order of offset, not overlapping.
        crc: also compute CRC-32 (0 otherwise); the digest is always computed.
        path: the file's name, by which the workers of an executor open it.
        executor: what carries out the jobs; a few threads by default.
        durable: fsync will follow, so the disk may begin at once.

    Raises:
        UnsupportedError: a source is far away, and the executor's workers are forks of this process.
    """
    sums: list[Sums] = []
    here = meter()
    if executor is None:
        parts, workers = _with_workers(parts)
        for done in parallel(partial(_write_batch, file, crc, durable, here), batches(parts), workers=workers):
            sums += done
    else:
        parts = _reachable(parts, executor)
        for done, nbytes in parallel(partial(_write_by_name, path, crc), batches(parts, _JOB), executor):
            sums += done
            here.advance(nbytes)
    return sums


def pour(write: Callable[[Block], object], parts: Iterable[Part]) -> list[Sums]:
    """What `transfer` does with `crc`, into a stream that takes one piece after the other."""
    sums: list[Sums] = []
    here = meter()

    def forward(_: int, block: Block) -> None:
        write(block)
        here.advance(len(block))

    for part in parts:
        write(part.head)
        sums.append(sums_of(_in_order(part), use=forward))
        if part.tail is not None:
            write(part.tail(sums[-1].crc, part.size))
    return sums


def _in_order(part: Part) -> Iterator[tuple[int, Block]]:
    """The blocks of a part; of one that is far away several are under way at a time."""
    if not part.source.remote:
        yield from blocks(part.source, part.start, part.size)
        return
    end = part.start + part.size
    pieces = [(at, min(PIECE, end - at)) for at in range(part.start, end, PIECE)]
    data = parallel(lambda piece: part.source.read(*piece), pieces, workers=REMOTE_WORKERS, ahead=REMOTE_WORKERS)
    for (at, _), block in zip(pieces, data, strict=True):
        yield at, block


def fill(ranges: Iterable[Fill]) -> None:
    """Read each (source, offset, buffer) into its buffer."""
    ranges = list(ranges)
    workers = REMOTE_WORKERS if any(source.remote for source, _, _ in ranges) else WORKERS
    for _ in parallel(_read_batch, _blocks(ranges), workers=workers):
        pass


def _with_workers(parts: Iterable[Part]) -> tuple[Iterable[Part], int]:
    """The parts, and how many threads they are worth."""
    iterator = iter(parts)
    first = [part for _, part in zip(range(64), iterator, strict=False)]
    return chain(first, iterator), REMOTE_WORKERS if any(part.source.remote for part in first) else WORKERS


def _reachable(parts: Iterable[Part], executor: Executor) -> Iterator[Part]:
    for part in parts:
        if part.source.remote:
            check_spawned(executor)
        yield part


def _write_by_name(path: str, with_crc: bool, batch: list[Part]) -> tuple[list[Sums], int]:
    """What a worker elsewhere does: it opens the file, which has to be there under its name, and syncs its part."""
    file = Descriptor(os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)))
    try:
        sums = _write_batch(file, with_crc, True, meter(), batch)
        os.fsync(file.fileno())
    finally:
        file.close()
    return sums, sum(part.size for part in batch)


def _write_batch(file: Descriptor, with_crc: bool, durable: bool, here: Meter, batch: list[Part]) -> list[Sums]:
    with file as fd:
        if len(batch) == 1 and batch[0].size > BATCH:
            return [_write_large(fd, with_crc, durable, here, batch[0])]
        return _write_small(fd, with_crc, durable, here, batch)


def _write_small(fd: int, with_crc: bool, durable: bool, here: Meter, batch: list[Part]) -> list[Sums]:
    from xxhash import xxh3_128_hexdigest
    from zlib_ng.zlib_ng import crc32

    sums: list[Sums] = []
    base = batch[0].offset - len(batch[0].head)
    out = bytearray()
    for part in batch:
        check_wanted()
        if part.offset - len(part.head) != base + len(out):  # what lies between is not ours to write
            write_at(fd, base, out)
            base, out = part.offset - len(part.head), bytearray()
        data = part.source.read(part.start, part.size)
        crc = crc32(data) if with_crc else 0
        out += part.head
        out += data
        if part.tail is not None:
            out += part.tail(crc, part.size)
        sums.append(Sums(crc, xxh3_128_hexdigest(data)))
    write_at(fd, base, out)
    if durable:
        write_back(fd, base, len(out))
    here.advance(sum(part.size for part in batch))
    return sums


def _write_large(fd: int, with_crc: bool, durable: bool, here: Meter, part: Part) -> Sums:
    ahead = part.offset - part.start

    def write(at: int, block: Block) -> None:
        write_at(fd, ahead + at, block)
        if durable:
            write_back(fd, ahead + at, len(block))
        here.advance(len(block))

    if part.head:
        write_at(fd, part.offset - len(part.head), part.head)
    sums = compute_sums(part.source, part.start, part.size, with_crc, use=write)
    if part.tail is not None:
        write_at(fd, part.offset + part.size, part.tail(sums.crc, part.size))
    return sums


def write_at(fd: int, offset: int, data: Block) -> None:
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
            if size >= READ or len(batch) >= BATCH_ITEMS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _read_batch(batch: list[Fill]) -> None:
    for source, offset, buffer in batch:
        check_wanted()
        source.readinto(offset, buffer)
