"""A part of a source: the same bytes, and none beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statedict.dtypes import dtype
from statedict.errors import CorruptFileError
from statedict.io.source import BytesSource, FileSource, Slice, swap_bytes

DATA = bytes(range(100))


@pytest.fixture(params=["file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The same hundred bytes in a file and in memory."""
    if request.param == "memory":
        return BytesSource(DATA, "x")
    (tmp_path / "x").write_bytes(DATA)
    return FileSource(str(tmp_path / "x"))


def test_a_slice_and_a_slice_of_it_have_their_part_of_the_bytes(base: Any) -> None:
    for part, expected in ((Slice(base, 10, 50), DATA[10:60]), (Slice(Slice(base, 10, 50), 5, 3), DATA[15:18])):
        assert (part.name, part.size, part.in_memory) == (base.name, len(expected), base.in_memory)
        assert bytes(part.read(1, 2)) == expected[1:3]
        buffer = bytearray(len(expected))
        part.readinto(0, memoryview(buffer))
        assert bytes(buffer) == bytes(part.view()) == expected


@pytest.mark.parametrize(("start", "size"), [(-1, 5), (0, 101), (100, 1), (5, -1)])
def test_a_slice_lies_within_its_source(base: Any, start: int, size: int) -> None:
    with pytest.raises(CorruptFileError, match="lie outside the file"):
        Slice(base, start, size)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 51), (50, 1), (3, -1)])
def test_nothing_beyond_a_slice_is_read(base: Any, offset: int, length: int) -> None:
    part = Slice(base, 10, 50)
    with pytest.raises(CorruptFileError, match=r"lie outside of their part of the file \(bytes 10 to 60\)"):
        part.read(offset, length)
    if length >= 0:
        with pytest.raises(CorruptFileError, match="outside of their part"):
            part.readinto(offset, memoryview(bytearray(length)))


@pytest.mark.parametrize("code", ["u1", "i2", "f4", "f8", "c8", "c16"])
def test_swapped_turns_each_number_round_wherever_reading_begins(code: str) -> None:
    numbers = np.arange(12).astype(code)
    raw = b"head" + numbers.astype(">" + code).tobytes() + b"tail"
    source = swap_bytes(BytesSource(raw), 4, numbers.nbytes, dtype(numbers.dtype))
    assert source.read(0, source.size) == numbers.tobytes()
    for start in range(numbers.nbytes - 5):
        assert source.read(start, 5) == numbers.tobytes()[start : start + 5]
    with pytest.raises(CorruptFileError):
        swap_bytes(BytesSource(raw), 4, len(raw), dtype(numbers.dtype))
