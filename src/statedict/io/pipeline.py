"""The one streaming engine: read → compute → write, in bounded memory, on a few threads or on an executor.

A format's writer puts parts into a sink: a file, anywhere in it, or a stream, one piece after the other. `fill` reads
ranges into buffers. All cut large ranges into blocks, and gather small ones. What the block sizes are worth:
docs/decisions/0004-reading.md and 0005-writing.md.
"""

from __future__ import annotations

import os
from collections import namedtuple
from contextvars import ContextVar
from functools import partial
from threading import Lock, local

from statedict.errors import CorruptFileError
from statedict.io.disk import Descriptor, check_space, write_at, write_back
from statedict.io.parallel import BATCH, REMOTE_WORKERS, WORKERS, batches, check_spawned, check_wanted, parallel
from statedict.io.source import BytesSource, allocate, find_base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from typing import Any

    from statedict.io.source import ByteSource

    Block = bytes | bytearray | memoryview
    Fill = tuple[ByteSource, int, memoryview]

BLOCK = 1 << 20  # of a write: summed while it lies in the processor's cache, and written from there
PIECE = 2 << 20  # of what is far away, in one request, or computed
_THREAD = local()  # each thread's block: fresh memory for every part would cost as much as reading it
READ = 8 << 20
_JOB = 16 << 20  # bytes of small parts that a worker of an executor takes at a time


class Meter:
    """Bytes done and expected; as a context manager it counts what the pipeline moves within."""

    __slots__ = ("_before", "_lock", "done", "total")

    def __init__(self) -> None:
        self.done = self.total = 0
        self._lock = Lock()

    def expect(self, nbytes: int) -> None:
        """Add bytes to expect."""
        with self._lock:
            self.total += nbytes

    def advance(self, nbytes: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self.done += nbytes

    def __enter__(self) -> Meter:
        self._before = _METER.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _METER.reset(self._before)


_METER: ContextVar[Meter | None] = ContextVar("statedict_meter", default=None)


def meter() -> Meter:
    """The meter of this context; without one, a meter that nobody reads."""
    return _METER.get() or Meter()


# a range of a source and its place in the output; `head` goes right before the data, `tail(crc, size)` right after;
# `seed` is the CRC-32 of what the data continue
Part = namedtuple("Part", "offset source start size head tail seed", defaults=(b"", None, 0))
# of the data of a part: CRC-32, and XXH3-128 in hexadecimal
Sums = namedtuple("Sums", "crc digest")


class FileSink:
    """An open file; with an executor, whose workers open it by its `path`. `durable`: fsync will follow."""

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
        """Announce so many bytes; raise OSError if the disk has no room for them."""
        check_space(self.fd, nbytes)
        meter().expect(nbytes)

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write parts at their offsets, in ascending order, and return their sums; bytes between parts stay."""
        here = meter()
        if self.executor is None:
            results = parallel(partial(self._write, crc, here), batches(parts), workers=_workers(parts))
            return [sums for batch in results for sums in batch]
        if any(part.source.remote for part in parts):
            check_spawned(self.executor)
        every: list[Sums] = []
        jobs = list(batches(parts, _JOB))
        for job, sums in zip(jobs, parallel(partial(_write_by_name, self.path, crc), jobs, self.executor), strict=True):
            every += sums
            here.advance(sum(part.size for part in job))
        return every

    def write(self, offset: int, data: Block) -> None:
        """Write bytes at an offset."""
        self._write_at(self.fd, offset, data)

    def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
        """Write the parts, then a head made from their sums at byte 0."""
        write_at(self.fd, 0, head(self.put(parts)))

    def _write(self, crc: bool, here: Meter, batch: list[Part]) -> list[Sums]:
        with self.file as fd:
            if len(batch) == 1 and batch[0].size > BATCH:
                return [self._write_large(fd, crc, here, batch[0])]
            return self._write_small(fd, crc, here, batch)

    def _write_small(self, fd: int, with_crc: bool, here: Meter, batch: list[Part]) -> list[Sums]:
        from xxhash import xxh3_128_hexdigest
        from zlib_ng.zlib_ng import crc32

        sums: list[Sums] = []
        base = batch[0].offset - len(batch[0].head)
        out = bytearray()
        for part in batch:
            check_wanted()
            if part.offset - len(part.head) != base + len(out):  # what lies between is not ours to write
                self._write_at(fd, base, out)
                base, out = part.offset - len(part.head), bytearray()
            data = part.source.read(part.start, part.size)
            crc = crc32(data, part.seed) if with_crc else 0
            out += part.head
            out += data
            if part.tail is not None:
                out += part.tail(crc, part.size)
            sums.append(Sums(crc, xxh3_128_hexdigest(data)))
        self._write_at(fd, base, out)
        here.advance(sum(part.size for part in batch))
        return sums

    def _write_large(self, fd: int, with_crc: bool, here: Meter, part: Part) -> Sums:
        ahead = part.offset - part.start

        def write(at: int, block: Block) -> None:
            self._write_at(fd, ahead + at, block)
            here.advance(len(block))

        if part.head:
            write_at(fd, part.offset - len(part.head), part.head)
        sums = compute_sums(part.source, part.start, part.size, with_crc, use=write, seed=part.seed)
        if part.tail is not None:
            write_at(fd, part.offset + part.size, part.tail(sums.crc, part.size))
        return sums

    def _write_at(self, fd: int, offset: int, data: Block) -> None:
        write_at(fd, offset, data)
        if self.durable:
            write_back(fd, offset, len(data))


def _write_by_name(path: str, crc: bool, batch: list[Part]) -> list[Sums]:
    """The job of a worker elsewhere: it opens the file, which has to be there under its name, and syncs its part."""
    file = Descriptor(os.open(path, os.O_WRONLY))
    try:
        sums = FileSink(file, durable=True)._write(crc, Meter(), batch)
        os.fsync(file.fileno())
    finally:
        file.close()
    return sums


class StreamSink:
    """A stream that takes one piece after the other.

    `write` takes a piece, to hold no longer than the call lasts; `expect` hears roughly how many bytes will come.
    """

    __slots__ = ("expect", "write")

    in_order = True

    def __init__(self, write: Callable[[Block], object], expect: Callable[[int], object] = lambda _: None) -> None:
        self.write, self.expect = write, expect

    def reserve(self, nbytes: int) -> None:
        """Announce so many bytes."""
        self.expect(nbytes)
        meter().expect(nbytes)

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write parts and return their sums, always with CRC-32."""
        sums: list[Sums] = []
        here = meter()

        def forward(_: int, block: Block) -> None:
            self.write(block)
            here.advance(len(block))

        for part in parts:
            self.write(part.head)
            sums.append(compute_sums(part.source, part.start, part.size, use=forward, read=_in_order, seed=part.seed))
            if part.tail is not None:
                self.write(part.tail(sums[-1].crc, part.size))
        return sums

    def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
        """Write a head made from the sums of the parts, then the parts; so they are read twice."""
        sums = parallel(lambda p: compute_sums(p.source, p.start, p.size, crc=False), parts, workers=_workers(parts))
        before = list(sums)
        self.write(head(before))
        for part, first, second in zip(parts, before, self.put(parts), strict=True):
            if first.digest != second.digest:
                raise CorruptFileError(f"{part.source.name}: changed while it was read; nothing was written, try again")


Sink = FileSink | StreamSink


def _in_order(source: ByteSource, start: int, size: int) -> Iterator[tuple[int, Block]]:
    """The blocks of a range; of a remote one several are under way at a time."""
    if not source.remote:
        return blocks(source, start, size)
    end = start + size
    pieces = [(at, min(PIECE, end - at)) for at in range(start, end, PIECE)]
    data = parallel(lambda piece: source.read(*piece), pieces, workers=REMOTE_WORKERS, ahead=REMOTE_WORKERS)
    return zip((at for at, _ in pieces), data, strict=True)


def _workers(parts: list[Part]) -> int:
    return REMOTE_WORKERS if any(part.source.remote for part in parts[:64]) else WORKERS


def put_bytes(data: bytes, sink: Sink) -> None:
    """Write a file that is these bytes."""
    sink.put([Part(0, BytesSource(data), 0, len(data))])


def fill(ranges: Iterable[Fill]) -> None:
    """Read each (source, offset, buffer) into its buffer."""
    ranges = list(ranges)
    workers = REMOTE_WORKERS if any(source.remote for source, _, _ in ranges) else WORKERS
    pieces = (
        (source, offset + at, buffer[at : at + READ])
        for source, offset, buffer in ranges
        for at in range(0, len(buffer), READ)
    )
    for _ in parallel(_read_batch, batches(pieces, READ, lambda piece: len(piece[2])), workers=workers):
        pass


def _read_batch(batch: list[Fill]) -> None:
    for source, offset, buffer in batch:
        check_wanted()
        source.readinto(offset, buffer)


def compute_sums(
    source: ByteSource,
    start: int,
    size: int,
    crc: bool = True,
    digest: bool = True,
    use: Callable[[int, Block], object] | None = None,
    read: Callable[[ByteSource, int, int], Iterable[tuple[int, Block]]] | None = None,
    seed: int = 0,
) -> Sums:
    """The sums of a range, read once, by `blocks` or `read`; without `crc` that is 0, without `digest` empty.

    `use` gets the offset of each block and the block, while it lies in the processor's cache.
    """
    from xxhash import xxh3_128
    from zlib_ng.zlib_ng import crc32

    hasher, crc_so_far = xxh3_128(), seed
    for at, block in (read or blocks)(source, start, size):
        if crc:
            crc_so_far = crc32(block, crc_so_far)
        if digest:
            hasher.update(block)
        if use is not None:
            use(at, block)
    return Sums(crc_so_far, hasher.hexdigest() if digest else "")


def blocks(source: ByteSource, start: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, block) of a range; a thread reads one range at a time, because each block overwrites the last one."""
    stream = getattr(source, "stream", None)
    if stream is not None and 2 * size >= source.size:  # what is unpacked is not kept
        for at, block in stream(BLOCK):  # to its end, where it is checked
            if part := block[max(start - at, 0) : max(start + size - at, 0)]:
                yield max(at, start), part
        return
    most = PIECE if source.coarse else BLOCK
    for at in range(start, start + size, most):
        check_wanted()
        yield at, read_block(source, at, min(most, start + size - at), at > start)


def read_block(source: ByteSource, at: int, size: int, again: bool, side: int = 0) -> memoryview:
    """Up to `PIECE` bytes: where they lie in memory, or in this thread's block for the side, 0 or 1.

    `again` says that the caller has read from the source before.
    """
    memory = source.view() if source.in_memory else None
    if memory is not None:
        return memory[at : at + size]
    held: dict[int, memoryview] = _THREAD.__dict__.setdefault("blocks", {})
    if side not in held or len(held[side]) < size:
        held[side] = allocate(max(size, BLOCK))
    block = held[side][:size]
    file, ahead = locate_file(source)
    # the file itself where there is one: its checks, at the first block, cost as much as reading half a block
    if file is None or not again or os.preadv(file, [block], ahead + at) != size:
        source.readinto(at, block)
    return block


def locate_file(source: Any) -> tuple[int | None, int]:
    """The descriptor of the file that a source is a range of, None if it is not a file, and where the range begins."""
    source, offset = find_base(source)
    return (source.fileno() if hasattr(source, "fileno") else None), offset
