"""An interrupt at any moment: no thread writes into what is not its file any more, and none is left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dis import opmap
from pathlib import Path
from types import FrameType
from typing import Any

from statedict.io import disk, location, parallel, pipeline
from statedict.io.location import Location
from statedict.io.pipeline import Part, fill
from statedict.io.source import ComputedSource

HERE = {module.__file__ for module in (disk, location, parallel, pipeline)}
NOP = opmap["NOP"]
SIZE = 2 << 20
COUNT = 4


@contextmanager
def interrupted(at: int) -> Iterator[list[int]]:
    """KeyboardInterrupt at the n-th line that this thread executes in the code that moves bytes."""
    lines = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in HERE or frame.f_code.co_name == "__del__":  # there Python ignores them
            return None
        if event == "line" and frame.f_code.co_code[frame.f_lasti] != NOP:  # where Python looks for no signals
            lines[0] += 1
            if lines[0] == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def slow(size: int = SIZE) -> ComputedSource:
    """Bytes 1, so slowly that a job is under way for a while."""

    def make(offset: int, buffer: memoryview) -> None:
        time.sleep(0.001)
        buffer[:] = b"\x01" * len(buffer)

    return ComputedSource(size, make)


def every_line(work: Callable[[], None], look: Callable[[bool], None]) -> int:
    """Do the work with an interrupt at each of its lines, and look each time; how many there were."""
    at = 0
    while True:
        at += 1
        done = False
        try:
            with interrupted(at) as lines:
                work()
            done = True
        except KeyboardInterrupt:
            pass
        look(done)
        if done and lines[0] < at:
            return at


def test_wherever_an_interrupt_comes_nothing_is_written_into_another_file(tmp_path: Path) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    ours = [slow() for _ in range(COUNT)]

    def write(file: Any) -> None:
        file.put([Part(SIZE * number, source, 0, SIZE) for number, source in enumerate(ours)])

    def look(done: bool) -> None:
        with open(other, "wb+") as foreign:  # it gets the number of the descriptor that was closed last
            foreign.write(b"foreign")
            foreign.flush()
            time.sleep(0.003)
            foreign.seek(0)
            assert foreign.read() == b"foreign"
        assert {*os.listdir(tmp_path)} - {"target", "other"} == set()
        if target.exists():
            assert target.stat().st_size == COUNT * SIZE
            target.unlink()
        else:
            assert not done

    assert every_line(lambda: Location(str(target)).publish(write, fsync=False), look) > 100


def test_wherever_an_interrupt_comes_no_buffer_is_filled_afterwards() -> None:
    buffers = [memoryview(bytearray(4 * SIZE)) for _ in range(COUNT)]
    source = slow(4 * SIZE)

    def look(done: bool) -> None:
        for buffer in buffers:
            buffer[::4096] = bytes(len(buffer[::4096]))
        time.sleep(0.003)
        for buffer in buffers:
            assert not any(buffer[::4096])

    assert every_line(lambda: fill([(source, 0, buffer) for buffer in buffers]), look) > 50
