"""Owned memory for large reads.

Fresh memory costs a page fault a page. Asked for as huge pages it comes about three times faster
(docs/decisions/0004-reading.md), so every buffer over a megabyte comes from here.
"""

from __future__ import annotations

import mmap

from statedict.errors import OutOfMemoryError

HUGE = 2 << 20
_SMALL = 1 << 20


def allocate(size: int) -> memoryview:
    """As `zeros`, on huge pages where the system gives them."""
    if size < _SMALL:
        return memoryview(zeros(size))
    try:
        # private, for Python's default is shared memory, which gets no huge pages
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:  # a kernel without huge pages: slower, not wrong
            pass
    return memoryview(memory)


def zeros(size: int) -> bytearray:
    """So many zero bytes; raise OutOfMemoryError if the system gives none."""
    try:
        return bytearray(size)
    except (MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error


def out_of_memory(size: int, what: str = "") -> OutOfMemoryError:
    """The error for memory that the system refuses."""
    remedy = "free some, take fewer tensors at a time, or raise the limit of this process (ulimit -v)"
    return OutOfMemoryError(f"{what}the system gives no {size:,} bytes of memory; {remedy}")
