"""Work that is counted. A clock would also measure what else the machine does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

from statedict.io import parallel
from statedict.io.source import FileSource

EXACT = 1.1  # a linear count may be off by this factor: what happens once, and dicts that grow


def steps(call: Callable[[], object], expect: type[BaseException] | tuple[()] = ()) -> int:
    """Lines of Python that a call executes, each turn of a loop anew. No threads start: the caller does their jobs.

    Args:
        call: what to count.
        expect: an error that the call may raise.
    """
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    def no_thread(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    before = sys.gettrace()
    with mock.patch.object(parallel, "start_new_thread", no_thread), suppress(*([expect] if expect else ())):
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
    return count


def bytes_read(call: Callable[[], object]) -> int:
    """Bytes that a call reads from local files."""
    count = 0
    read, readinto = FileSource.read, FileSource.readinto

    def counted_read(self: FileSource, offset: int, length: int) -> bytes | bytearray:
        nonlocal count
        count += length
        return read(self, offset, length)

    def counted_readinto(self: FileSource, offset: int, buffer: memoryview) -> None:
        nonlocal count
        count += len(buffer)
        readinto(self, offset, buffer)

    with mock.patch.multiple(FileSource, read=counted_read, readinto=counted_readinto):
        call()
    return count


def assert_linear(cost: Callable[[int], int], small: int, large: int) -> None:
    """Work grows no faster than what there is to do."""
    few, many = cost(small), cost(large)
    assert many <= EXACT * large / small * few, (few, many)
