"""Bytes that are unpacked as they are read."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from statedict.errors import CorruptFileError, LimitError
from statedict.io.source import BytesSource
from statedict.tensor import zstd


def make(data: bytes, size: int | None = None) -> zstd.ZstdSource:
    packed = BytesSource(zstandard.ZstdCompressor(level=1).compress(data))
    return zstd.ZstdSource(packed, len(data) if size is None else size, "x", object())


DATA = random.Random(0).randbytes(1 << 20) * 12


def test_any_range_is_what_was_packed() -> None:
    source = make(DATA)
    for offset, size in ((0, 10), (11 << 20, 1 << 20), (5, 3 << 20), (0, len(DATA)), (7 << 20, 1)):
        assert bytes(source.read(offset, size)) == DATA[offset : offset + size]


def test_threads_read_different_parts_at_once() -> None:
    source = make(DATA)
    ranges = [(at, 256 << 10) for at in range(0, len(DATA), 256 << 10)]
    random.Random(1).shuffle(ranges)
    with ThreadPoolExecutor(4) as pool:
        for (at, size), got in zip(ranges, pool.map(lambda one: bytes(source.read(*one)), ranges), strict=True):
            assert got == DATA[at : at + size]


def test_reading_in_order_unpacks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begin = zstd._Cursor.__init__

    def count(self: zstd._Cursor, source: zstd.ZstdSource) -> None:
        made.append(1)
        begin(self, source)

    monkeypatch.setattr(zstd._Cursor, "__init__", count)
    source = make(DATA)
    for at in range(0, len(DATA), 1 << 20):
        source.read(at, 1 << 20)
        source.read(max(0, at - (2 << 20)), 1 << 20)  # a little behind
    assert len(made) == 1


def test_an_interrupt_leaves_no_cursor_that_has_lost_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    source, copy = make(DATA), zstd._copy
    source.read(0, 1 << 20)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zstd, "_copy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        source.read(1 << 20, 2 << 20)
    monkeypatch.setattr(zstd, "_copy", copy)
    for at in (1 << 20, 3 << 20, 0):
        assert bytes(source.read(at, 1 << 20)) == DATA[at : at + (1 << 20)]


def test_sizes_that_are_not_those_of_the_bytes_are_errors() -> None:
    with pytest.raises(CorruptFileError, match="more bytes than its shape has"):
        make(DATA, len(DATA) - 1).read(0, len(DATA) - 1)
    with pytest.raises(CorruptFileError, match=r"ends at byte 12,582,912 of 12,582,913"):
        make(DATA, len(DATA) + 1).read(0, len(DATA) + 1)
    with pytest.raises(LimitError, match="claim to unpack to"):
        make(b"", 1 << 40)
    with pytest.raises(LimitError, match="unpacks to over 100 bytes"):
        zstd.unpack(zstandard.ZstdCompressor().compress(bytes(101)), 100, "x")
    with pytest.raises(CorruptFileError, match="cannot be unpacked"):
        zstd.unpack(b"nothing of the kind", 100, "x")
