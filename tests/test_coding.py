"""The coder of deltas: every block of every dtype comes back bit for bit."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statedict.dtypes import BY_NAME, DType
from statedict.errors import CorruptFileError
from statedict.tensor import coding


def round_trip(block: bytes, base: bytes | None, kind: DType) -> tuple[int, list[int]]:
    """Code a block, and check that it comes back; the coder and the sizes of its planes."""
    before = None if base is None else memoryview(base)
    unit, signed = coding.unit_of(kind)
    coder, sizes, coded = coding.encode(memoryview(block), before, unit, signed)
    assert sum(sizes) == len(coded)
    out, ends = memoryview(bytearray(len(block))), list(accumulate(sizes))
    planes = [memoryview(coded)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    coding.decode(coder, planes, before, signed, out)
    assert bytes(out) == block
    return coder, sizes


kinds = st.sampled_from([*BY_NAME.values()])


@given(kinds, st.binary(min_size=16, max_size=160), st.binary(min_size=16, max_size=160))
@settings(max_examples=300, deadline=None)
def test_a_block_of_any_dtype_comes_back_whatever_its_base(kind: DType, block: bytes, base: bytes) -> None:
    size = min(len(block), len(base)) // 16 * 16
    round_trip(block[:size], base[:size], kind)
    round_trip(block[:size], None, kind)


@given(st.sampled_from([16, 32, 64]), st.data())
@settings(max_examples=200, deadline=None)
def test_the_integers_of_floats_have_the_order_of_the_floats(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(width=bits, allow_nan=False), min_size=2, max_size=9))  # type: ignore[arg-type]
    floats = np.array(values, f"<f{bits // 8}")
    numbers = floats.view(f"<u{bits // 8}")
    order = coding._to_order(numbers, np.empty_like(numbers), np.empty_like(numbers)).view(f"<i{bits // 8}")
    for one, other, a, b in zip(floats, floats[1:], order, order[1:], strict=False):
        assert (one < other) <= (a < b)
        assert (one > other) <= (a > b)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64", "complex64", "int32"])
def test_neighbours_of_the_base_take_one_plane(kind: str) -> None:
    unit, _ = coding.unit_of(BY_NAME[kind])
    bits = np.random.default_rng(0).integers(0, 1 << (8 * unit - 1), 4096, f"<u{unit}", endpoint=False)
    moved = (bits + np.resize(np.array([1, -1, 0, 2]).astype(bits.dtype), bits.size)).tobytes()
    coder, sizes = round_trip(moved, bits.tobytes(), BY_NAME[kind])
    assert coder == coding.DELTA
    assert sizes[0] < 2048
    assert not any(sizes[1:])


@given(kinds)
@example(BY_NAME["float32"])
def test_a_block_that_did_not_change_takes_nothing(kind: DType) -> None:
    block = np.random.default_rng(1).bytes(4096)
    assert round_trip(block, block, kind) == (coding.DELTA, [0] * coding.unit_of(kind)[0])


def test_a_base_that_does_not_help_is_not_used() -> None:
    smooth = np.linspace(1, 2, 5000, dtype="f4").tobytes()
    noise = np.random.default_rng(2).bytes(20_000)
    assert round_trip(smooth, noise, BY_NAME["float32"])[0] == coding.PLANES


def test_with_the_size_of_the_base_the_smaller_is_taken_too() -> None:
    def encode(block: Any, base: Any, alone: int) -> int:
        return coding.encode(memoryview(block).cast("B"), memoryview(base).cast("B"), 4, True, alone)[0]

    smooth = np.linspace(1, 2, 5000, dtype="f4")
    noise = np.random.default_rng(2).standard_normal(5000).astype("f4")
    assert encode(smooth * np.float32(1.000001), smooth, 20_000) == coding.DELTA
    assert encode(smooth, noise, 19_000) == coding.PLANES
    ones = np.ones(5000, "f4")
    assert encode(noise * np.float32(1e-5) + ones, ones, 40) == coding.DELTA  # of which the size says nothing


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64), st.integers(2, 1 << 20))
def test_any_bits_come_back_from_a_base_that_shrinks(block: bytes, base: bytes, coder: int) -> None:
    numbers, before = (np.frombuffer(data, "<u4") for data in (block, base))
    out = memoryview(bytearray(64))
    planes = [memoryview(plane.tobytes()) for plane in coding._split(coding._subtract(numbers, before, True, coder))]
    coding.decode(coder, planes, memoryview(base), True, out)
    assert bytes(out) == block


@pytest.mark.parametrize("beta", [0.95, 0.99, 0.999])
def test_second_moments_are_compared_with_what_is_left_of_the_base(beta: float) -> None:
    rng = np.random.default_rng(3)
    before = (rng.standard_normal(20_000) ** 2 * 1e-6).astype("f4")
    gradients = np.where(rng.random(20_000) < 0.1, rng.standard_normal(20_000) * 1e-3, 0)
    after = (beta * before + (1 - beta) * gradients**2).astype("f4")
    coder, sizes = round_trip(after.tobytes(), before.tobytes(), BY_NAME["float32"])
    assert (coder - coding.DELTA) / (1 << 22) == pytest.approx(1 - beta, rel=0.05)
    before[0] = -before[0]
    plain, others = round_trip(after.tobytes(), before.tobytes(), BY_NAME["float32"])
    assert plain == coding.DELTA
    assert sum(sizes) < 0.8 * sum(others)


def test_special_values_survive_with_their_payloads() -> None:
    words = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 0x7F800000, 0xFF800000, 1], "<u4")
    round_trip(np.tile(words, 8).tobytes(), np.tile(words[::-1], 8).tobytes(), BY_NAME["float32"])


@pytest.mark.parametrize(
    "planes", [[b"x", b""], [b"\x28\xb5\x2f\xfd\x00\x00", b""], [bytes(17), b""]], ids=["short", "no size", "long"]
)
def test_a_plane_that_is_none_is_an_error(planes: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"plane|frame|content|format"):
        coding.decode(coding.PLANES, [memoryview(plane) for plane in planes], None, True, memoryview(bytearray(32)))


def test_a_plane_that_claims_another_size_is_not_unpacked() -> None:
    packed = coding.import_zstandard().ZstdCompressor().compress(bytes(1 << 20))
    with pytest.raises(ValueError, match="another size"):
        coding.decode(coding.PLANES, [memoryview(packed)], None, False, memoryview(bytearray(4096)))


@pytest.mark.parametrize("table", [[0, 5, 4], [2, 5, 5], [1 << 31, 5, 5], [0, 1 << 20, 0], [0, 11, 0]])
def test_a_table_that_does_not_fit_its_blocks_is_damage(table: list[int]) -> None:
    assert coding.read_table(coding.pack_table([(0, [5, 5])]), 2, 10, "x").tolist() == [[0, 0, 5, 5]]
    with pytest.raises(CorruptFileError, match="x: the table of its blocks does not fit them"):
        coding.read_table(np.array(table, "<u4").tobytes(), 2, 10, "x")


def test_a_table_of_a_million_blocks_takes_little_memory() -> None:
    data = coding.pack_table([(0, [0])]) * 1_000_000
    tracemalloc.start()
    table = coding.read_table(data, 1, 0, "x")
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 1_000_000
    assert held < 4 * len(data)
    assert most < 12 * len(data)
