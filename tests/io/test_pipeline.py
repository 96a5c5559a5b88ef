"""The one streaming engine: what is written, what is read, and what it sums."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from statedict.io import pipeline
from statedict.io.disk import Descriptor
from statedict.io.parallel import BATCH, parallel
from statedict.io.pipeline import BLOCK, FileSink, Part, compute_sums, fill, write_at
from statedict.io.source import BytesSource, ComputedSource, FileSource

POOL = bytes(range(251)) * 40_000  # 10 MB in which no block equals its neighbour


def computed(data: bytes) -> ComputedSource:
    def fill(offset: int, buffer: memoryview) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    return ComputedSource(len(data), fill)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("pipeline") / "pool"
    path.write_bytes(POOL)
    return [FileSource(str(path)), BytesSource(POOL), computed(POOL)]


sizes = st.sampled_from([0, 1, 63, 1000, BATCH - 1, BATCH, BATCH + 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])


@given(
    st.lists(
        st.tuples(
            sizes, st.integers(0, 1000), st.integers(0, 200), st.binary(max_size=9), st.booleans(), st.integers(0, 2)
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_every_part_lies_at_its_place_with_its_sums(sources: list[Any], wanted: list[Any], crc: bool) -> None:
    parts, expected, at = [], bytearray(), 0
    for size, start, gap, head, tail, which in wanted:
        data = POOL[start : start + size]
        end = (lambda crc, size: b"%d %d" % (crc, size)) if tail else None
        parts.append(Part(at + gap + len(head), sources[which], start, size, head, end))
        expected += bytes(gap) + head + data + (end(zlib.crc32(data) if crc else 0, size) if end else b"")
        at = len(expected)
    fd = os.memfd_create("out")
    try:
        sums = FileSink(Descriptor(os.dup(fd))).put(parts, crc=crc)
        found = os.pread(fd, len(expected) + 1, 0)
        assert found.ljust(len(expected), b"\0") == expected  # a gap before nothing at the end need not be written
    finally:
        os.close(fd)
    datas = [POOL[start : start + size] for size, start, *_ in wanted]
    assert [s.crc for s in sums] == [zlib.crc32(data) if crc else 0 for data in datas]
    assert [s.digest for s in sums] == [xxhash.xxh3_128_hexdigest(data) for data in datas]


@given(st.lists(st.tuples(sizes, st.integers(0, 1000), st.integers(0, 2)), max_size=8))
def test_every_range_is_read_into_its_buffer(sources: list[Any], wanted: list[tuple[int, int, int]]) -> None:
    buffers = [bytearray(size) for size, _, _ in wanted]
    fill((sources[which], start, memoryview(b)) for (_, start, which), b in zip(wanted, buffers, strict=True))
    assert buffers == [POOL[start : start + size] for size, start, _ in wanted]


def test_thousands_of_small_parts_are_written_in_few_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at, real=os.pwrite: calls.append(at) or real(fd, data, at))
    source = BytesSource(POOL)
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        sums = FileSink(Descriptor(os.dup(fd))).put([Part(100 * i, source, i, 100) for i in range(20_000)])
        assert os.pread(fd, 200, 100 * 19_998) == POOL[19_998:20_098] + POOL[19_999:20_099]
    finally:
        os.close(fd)
    assert len(sums) == 20_000
    assert len(calls) <= 10


def test_a_part_larger_than_a_block_is_read_block_by_block() -> None:
    lengths: list[int] = []

    def fill(offset: int, buffer: memoryview) -> None:
        lengths.append(len(buffer))

    fd = os.memfd_create("out")
    try:
        FileSink(Descriptor(os.dup(fd))).put([Part(0, ComputedSource(10 * BLOCK, fill), 0, 10 * BLOCK)])
    finally:
        os.close(fd)
    assert lengths == [BLOCK] * 10


def test_results_come_in_order_whoever_is_first() -> None:
    def work(job: int) -> int:
        time.sleep(0.01 * (job % 3 == 0))
        return job * job

    assert list(parallel(work, range(20))) == [job * job for job in range(20)]


@pytest.mark.parametrize("count", [0, 1])
def test_no_thread_is_started_for_one_job(count: int) -> None:
    assert list(parallel(lambda job: threading.current_thread(), range(count))) == [threading.main_thread()] * count


def test_one_worker_works_in_the_caller_s_thread() -> None:
    assert set(parallel(lambda job: threading.current_thread(), range(5), workers=1)) == {threading.main_thread()}


@pytest.mark.parametrize("failing", [0, 1, 7])
def test_the_first_error_is_raised_and_stops_the_rest(failing: int) -> None:
    done = []

    def work(job: int) -> int:
        if job == failing:
            raise ValueError(f"job {job}")
        time.sleep(0.001)
        done.append(job)
        return job

    with pytest.raises(ValueError, match=f"job {failing}"):
        list(parallel(work, range(500)))
    assert len(done) < 500


def test_jobs_that_cannot_be_listed_raise_their_own_error() -> None:
    def jobs() -> Iterator[int]:
        yield from range(3)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(parallel(lambda job: job, jobs()))


def test_a_short_write_is_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at, real=os.pwrite: real(fd, data[:7], at))
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        for data in (POOL[:100], bytearray(POOL[:100]), memoryview(POOL)[:100]):
            write_at(fd, 3, data)
            assert os.pread(fd, 200, 3) == POOL[:100]
    finally:
        os.close(fd)


@given(
    data=st.binary(max_size=300), bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)), block=st.integers(1, 64)
)
def test_the_sums_of_a_range_are_those_of_its_bytes_whatever_the_blocks(
    data: bytes, bounds: tuple[int, int], block: int
) -> None:
    start, end = sorted(min(bound, len(data)) for bound in bounds)
    part = data[start:end]
    seen: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "BLOCK", block)
        sums = compute_sums(BytesSource(data), start, end - start, use=lambda _, piece: seen.append(bytes(piece)))
    assert (sums.crc, sums.digest) == (zlib.crc32(part), xxhash.xxh3_128_hexdigest(part))
    assert b"".join(seen) == part


def test_what_lies_between_two_parts_is_left_as_it_is(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"0123456789")
        FileSink(Descriptor(os.dup(fd))).put(
            [Part(2, BytesSource(b"ab"), 0, 2), Part(6, BytesSource(b"cd"), 0, 2, head=b"h")]
        )
        assert os.pread(fd, 20, 0) == b"01ab4hcd89"
    finally:
        os.close(fd)
