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
    """`size` bytes of writable zeroed memory, on huge pages where the system gives them.

    Raises:
        OutOfMemoryError: it gives none.
    """
    if size < _SMALL:
        return memoryview(zeros(size))
    try:
        return memoryview(_pages(size))
    except (OSError, MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error


def zeros(size: int) -> bytearray:
    """So many bytes.

    Raises:
        OutOfMemoryError: the system gives none.
    """
    try:
        return bytearray(size)
    except (MemoryError, OverflowError) as error:
        raise out_of_memory(size) from error


def out_of_memory(size: int, what: str = "") -> OutOfMemoryError:
    """The error for memory that could not be had."""
    remedy = "free some, take fewer tensors at a time, or raise the limit of this process (ulimit -v)"
    return OutOfMemoryError(f"{what}the system gives no {size:,} bytes of memory; {remedy}")


def _pages(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    # private, for Python's default is shared memory, which gets no huge pages
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:  # a kernel without huge pages: slower, not wrong
            pass
    return memory
