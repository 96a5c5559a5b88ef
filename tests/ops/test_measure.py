"""How far two tensors are apart, against numpy in float64, for every dtype."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import BY_NAME, DType
from statedict.io.source import BytesSource
from statedict.ops.diff.compare import Rule, Tally, compare
from statedict.reports.diff import Measures
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import in_numpy

KINDS = [kind for kind in BY_NAME.values() if kind.itemsize and kind.kind != "bits" and in_numpy(kind)]


def tensor(kind: DType, data: bytes) -> LazyTensor:
    return LazyTensor(kind, (len(data) // kind.itemsize,), Storage(BytesSource(data), 0, len(data)))


def compared(one: LazyTensor, other: LazyTensor, **rule: float) -> Tally | None:
    return compare([(one, other)], Rule(**rule))[0]  # type: ignore[arg-type]


def numbers(kind: DType, data: bytes) -> numpy.ndarray:
    if kind.name == "float4_e2m1fn_x2":
        values = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        signed = numpy.concatenate([values, -values])
        raw = numpy.frombuffer(data, "u1")
        return signed[numpy.stack([raw & 15, raw >> 4], 1).reshape(-1)]
    found = numpy.frombuffer(data, kind.numpy)
    return found.astype(complex if kind.kind == "complex" else float)


@given(st.sampled_from(KINDS), st.binary(min_size=64, max_size=320), st.binary(min_size=64, max_size=320))
def test_measures_are_those_of_numpy(kind: DType, one: bytes, other: bytes) -> None:
    size = min(len(one), len(other)) // kind.itemsize * kind.itemsize
    if kind.name == "bool":
        one, other = (bytes(byte & 1 for byte in data) for data in (one, other))
    one, other = one[:size], other[:size]
    found = compared(tensor(kind, one), tensor(kind, other))
    if one == other:
        assert found is None
        return
    assert found is not None
    with numpy.errstate(all="ignore"):
        a, b = numbers(kind, one), numbers(kind, other)
        finite = numpy.isfinite(a) & numpy.isfinite(b)
        raw = numpy.frombuffer(one, "u1") != numpy.frombuffer(other, "u1")
        signs = numpy.signbit(a) != numpy.signbit(b) if kind.kind != "complex" else False
        four = kind.name.startswith("float4")
        differ = (a != b) | signs if four else raw.reshape(-1, kind.itemsize).any(1)
        x, y = a[finite], b[finite]
        gap = numpy.abs(x - y)
        squares = (numpy.square(numpy.abs(x)) + numpy.square(numpy.abs(y)) + numpy.square(gap)).sum()
    measures = found.measures()
    assert (measures.elements, measures.changed) == (len(a), differ.sum())
    assert measures.nonfinite == (differ & ~finite).sum()
    if not len(x) or not squares < 1e300:
        return  # beyond float64
    assert measures.max_abs == pytest.approx(gap.max(), rel=1e-6)
    x, y = x.astype(complex), y.astype(complex)
    norm = numpy.linalg.norm(x)
    if norm > 1e-150:
        assert measures.relative == pytest.approx(numpy.linalg.norm(gap) / norm, rel=1e-4)
        if (other_norm := numpy.linalg.norm(y)) > 1e-150:
            assert measures.cosine == pytest.approx(
                float(numpy.vdot(x, y).real / norm / other_norm), rel=1e-4, abs=1e-5
            )


@pytest.mark.parametrize("kind", [k for k in BY_NAME.values() if not k.itemsize or in_numpy(k)], ids=str)
def test_every_dtype_is_equal_to_itself_and_differs_by_a_bit(kind: DType) -> None:
    data = bytes(range(16)) * 48
    shape = (len(data) * 8 // kind.bits,)

    def made(some: bytes) -> LazyTensor:
        return LazyTensor(kind, shape, Storage(BytesSource(some), 0, len(some)))

    assert compared(made(data), made(bytes(bytearray(data)))) is None
    found = compared(made(data), made(data[:100] + bytes([data[100] ^ 1]) + data[101:]))
    assert found is not None
    assert found.changed == 1


def test_a_difference_anywhere_in_a_large_tensor_is_measured_over_all_of_it() -> None:
    one = numpy.random.default_rng(0).standard_normal(9_000_001, numpy.float32)
    for place in (0, 4_200_000, 9_000_000):
        other = one.copy()
        other[place] += 2
        found = compare([(_lazy(one), _lazy(other))], Rule())[0]
        assert found is not None
        measures = found.measures()
        assert (measures.elements, measures.changed) == (9_000_001, 1)
        assert measures.relative == pytest.approx(2 / numpy.linalg.norm(one.astype(float)), rel=1e-5)


def test_integers_beyond_float64_are_subtracted_exactly() -> None:
    one, other = numpy.array([2**62, -(2**63)]), numpy.array([2**62 + 1, 2**63 - 1])
    found = compare([(_lazy(one[:1]), _lazy(other[:1])), (_lazy(one), _lazy(other))], Rule())
    assert [tally and tally.measures().max_abs for tally in found] == [1, 2**64 - 1]


def test_a_zero_of_four_bits_with_another_sign_has_other_bytes() -> None:
    kind = BY_NAME["float4_e2m1fn_x2"]
    found = compared(tensor(kind, b"\0\0"), tensor(kind, b"\0\x80"))
    assert found is not None
    assert (found.elements, found.changed, found.max_abs) == (4, 1, 0)
    assert compared(tensor(kind, b"\0\0"), tensor(kind, b"\0\x80"), numeric=True) is None


def test_large_integers_of_two_dtypes_are_compared_exactly() -> None:
    one = numpy.array([2**53 + 1, 5])
    assert compare([(_lazy(one), _lazy(one.astype("u8")))], Rule())[0] is None
    found = compare([(_lazy(one), _lazy(numpy.array([2**53, 5], "u8")))], Rule())[0]
    assert found is not None
    assert found.changed == 1


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("kind", ["f8", "c16", "f4"])
def test_an_integer_that_no_float_holds_is_equal_to_none(value: int, kind: str) -> None:
    one = numpy.array([value, 5], "u8" if value >= 2**63 else "i8")
    for a, b in ((one, one.astype(kind)), (one.astype(kind), one)):
        found = compare([(_lazy(a), _lazy(b))], Rule(numeric=True))[0]
        assert found is not None
        assert found.changed == 1
    even = numpy.array([2**62, 5])
    assert compare([(_lazy(even), _lazy(even.astype(kind)))], Rule(numeric=True))[0] is None


def test_small_and_large_float32_keep_their_norms() -> None:
    for size in (1e-25, 1e25):
        one = numpy.full(100, size, numpy.float32)
        found = compare([(_lazy(one), _lazy(one * numpy.float32(1.5)))], Rule())[0]
        assert found is not None
        assert found.measures().relative == pytest.approx(0.5, rel=1e-5)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=20),
    st.integers(-1020, 1020), st.sampled_from(["f8", "c16"]),
)  # fmt: skip
def test_norms_and_angles_hold_where_squares_leave_float64(
    pairs: list[tuple[float, float]], exponent: int, kind: str
) -> None:
    one, other = (numpy.array(side) for side in zip(*pairs, strict=True))
    one[0], other[0] = 1, -0.5
    x, y = (numpy.ldexp(side, exponent) for side in (one, other))
    found = compare([(_lazy(x.astype(kind)), _lazy(y.astype(kind)))], Rule())[0]
    assert found is not None
    measures = found.measures()
    norm, other_norm = numpy.linalg.norm(one), numpy.linalg.norm(other)
    assert measures.relative == pytest.approx(numpy.linalg.norm(one - other) / norm, rel=1e-9)
    assert measures.cosine == pytest.approx(numpy.dot(one, other) / norm / other_norm, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("size", "relative"), [(1e200, 2.0), (1e-200, 0.0)])
def test_a_part_whose_squares_leave_float64_counts_beside_others(size: float, relative: float) -> None:
    for place in (0, 300_000):
        one = numpy.ones(300_001)
        one[place] = size
        other = one.copy()
        other[place] = -size
        found = compare([(_lazy(one), _lazy(other))], Rule())[0]
        assert found is not None
        assert found.measures().relative == pytest.approx(relative, abs=1e-9)
        assert found.measures().cosine == pytest.approx(1 - relative, abs=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "numeric", "equal"),
    [
        ([0.0], [-0.0], False, False),
        ([0.0], [-0.0], True, True),
        ([math.nan], [math.nan], False, True),
        ([math.nan], [math.nan], True, False),
        ([math.inf], [math.inf], True, True),
    ],
)
def test_bytes_decide_unless_numbers_are_asked_for(
    one: list[float], other: list[float], numeric: bool, equal: bool
) -> None:
    for kind in ("float16", "float32", "float64"):
        a, b = numpy.array(one, kind), numpy.array(other, kind)
        assert (compare([(_lazy(a), _lazy(b))], Rule(numeric=numeric))[0] is None) is equal


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=50),
       st.sampled_from([(1e-3, 0.0), (0.0, 0.5), (0.1, 1.0)]))  # fmt: skip
def test_the_tolerance_is_that_of_allclose(pairs: list[tuple[float, float]], tolerance: tuple[float, float]) -> None:
    one, other = (numpy.array(side, "f4") for side in zip(*pairs, strict=True))
    rtol, atol = tolerance
    found = compare([(_lazy(one), _lazy(other))], Rule(rtol=rtol, atol=atol))[0]
    a, b = one.astype(float), other.astype(float)
    same = one.view("u4") == other.view("u4")
    with numpy.errstate(all="ignore"):
        near = (
            same | (a == b) | (numpy.abs(a - b) <= atol + rtol * numpy.abs(b)) & numpy.isfinite(a) & numpy.isfinite(b)
        )
        edge = numpy.isclose(numpy.abs(a - b), atol + rtol * numpy.abs(b), rtol=1e-5) & ~same
    if not edge.any():
        assert (found is None or not found.outside) is bool(near.all())


def test_nothing_infinite_reaches_json() -> None:
    assert Measures(1, 1, 0, math.inf, math.inf, None).to_json()["relative"] is None


def _lazy(array: numpy.ndarray) -> LazyTensor:
    from statedict.tensor.lazy import as_lazy

    return as_lazy(array)
