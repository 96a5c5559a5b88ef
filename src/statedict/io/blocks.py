"""A range of a source, block by block, and its sums."""

from __future__ import annotations

import os
from threading import local

from statedict.io.memory import allocate
from statedict.io.parallel import check_wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from statedict.io.source import ByteSource

    Block = bytes | bytearray | memoryview

BLOCK = 1 << 20  # of a write: summed while it lies in the processor's cache, and written from there
PIECE = 2 << 20  # of what is far away, in one request
_THREAD = local()  # each thread's block: fresh memory for every part would cost as much as reading it


class Sums:
    """CRC-32 and XXH3-128 (hexadecimal) of a part's data."""

    __slots__ = ("crc", "digest")

    def __init__(self, crc: int, digest: str) -> None:
        self.crc, self.digest = crc, digest


def compute_sums(
    source: ByteSource,
    start: int,
    size: int,
    crc: bool = True,
    digest: bool = True,
    use: Callable[[int, Block], object] | None = None,
) -> Sums:
    """The sums of a range, read once; without `crc` that is 0, without `digest` empty.

    `use` gets the offset of each block and the block, while it lies in the processor's cache.
    """
    return sums_of(blocks(source, start, size), crc, digest, use)


def sums_of(
    blocks: Iterable[tuple[int, Block]],
    crc: bool = True,
    digest: bool = True,
    use: Callable[[int, Block], object] | None = None,
) -> Sums:
    """As `compute_sums`, of blocks that come with their offsets."""
    from xxhash import xxh3_128
    from zlib_ng.zlib_ng import crc32

    hasher, crc_so_far = xxh3_128(), 0
    for at, block in blocks:
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
    if stream is not None and (start, size) == (0, source.size):  # what is unpacked is not kept
        yield from stream(BLOCK)
        return
    memory = source.view() if source.in_memory else None
    most = PIECE if source.remote else BLOCK
    if memory is None and len(getattr(_THREAD, "block", b"")) < most:
        _THREAD.block = allocate(most)
    file, ahead = (None, 0) if memory is not None else lowest(source)
    for at in range(start, start + size, most):
        check_wanted()
        length = min(most, start + size - at)
        if memory is not None:
            block = memory[at : at + length]
        else:
            block = _THREAD.block[:length]
            # the file itself where there is one: its checks, at the first block, cost as much as reading half a block
            if file is None or at == start or os.preadv(file, [block], ahead + at) != length:
                source.readinto(at, block)
        yield at, block


def lowest(source: Any) -> tuple[int | None, int]:
    """The descriptor of the file that a source is a range of, None if it is not a file, and where the range begins."""
    offset = 0
    while hasattr(source, "locate"):
        source, start = source.locate()
        offset += start
    return (source.fileno() if hasattr(source, "fileno") else None), offset
