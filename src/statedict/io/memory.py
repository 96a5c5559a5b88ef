"""Owned memory for large reads.

Fresh memory costs a page fault a page. Asked for as huge pages it comes about three times faster
(docs/decisions/0004-reading.md), so every buffer over a megabyte comes from here.
"""

from __future__ import annotations

import mmap

from statedict.errors import NoMemoryError

HUGE = 2 << 20
_SMALL = 1 << 20


def allocate(size: int) -> memoryview:
    """`size` bytes of writable zeroed memory, on huge pages where the system gives them.

    Raises:
        NoMemoryError: the system has not so much.
    """
    if size < _SMALL:
        return memoryview(bytearray(size))
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return memoryview(mmap.mmap(-1, size))
        # private, for Python's default is shared memory, which gets no huge pages
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, MemoryError) as error:
        raise NoMemoryError(f"{size:,} bytes of memory are more than the system gives ({error})") from error
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:  # a kernel without huge pages: slower, not wrong
            pass
    return memoryview(memory)


def make_buffer(size: int) -> bytearray:
    """`size` bytes for what is read.

    Raises:
        NoMemoryError: the system has not so much.
    """
    try:
        return bytearray(size)
    except (MemoryError, OverflowError) as error:
        raise NoMemoryError(f"{size:,} bytes of memory are more than the system gives") from error
