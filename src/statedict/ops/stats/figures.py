"""The figures of a tensor from its bytes, block by block, in float64, without a second pass.

Elements of 8 and 16 bits are counted by their bits, and the counters are evaluated by a table of all values: exact but
for the roundings of one sum. Wider ones become float64, a part at a time: their exponents are counted, mean and
deviation are those of the part. What both ways cost: docs/decisions/0015-statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy

from statedict.dtypes import DType
from statedict.ops.stats.linear import (
    BIAS,
    EXPONENTS,
    FRACTION,
    LEADING,
    add_linear,
    count_integers,
    count_linear,
    sum_linear,
)
from statedict.reports.stats import Figures, Histogram

_PACKED = ("float4_e2m1fn_x2", "quint4x2", "quint2x4")
_FEW = 8192  # up to so many elements, sorting is faster than 65,536 counters for blocks
_VERY_FEW = 1024  # up to so many, counters cost more than they save
_PART = 1 << 17  # elements that become float64 at a time
_COMPLEX = 1 << 16  # halves of complex numbers
_SCALED = 2.0**500  # beyond it, or below its inverse, squares could leave float64
_EXACT = 1 << 53


def is_computable(kind: DType) -> bool:
    """Whether there are figures of a dtype: each element is a number of its own."""
    return bool(kind.itemsize) and kind.kind not in ("bits", "raw") and kind.name not in _PACKED


def compute_figures(kind: DType, blocks: Iterable[Any]) -> Figures:
    """The figures of blocks of whole elements; each block is gone when the next one comes."""
    if kind.itemsize <= 2:
        return _count_codes(kind, blocks)
    parts: list[Figures] = []
    room: Any = numpy.empty((2, 0))
    for block in blocks:
        array = numpy.frombuffer(block, kind.component.numpy)
        step = _COMPLEX if kind.kind == "complex" else _PART
        if room.shape[1] < min(len(array), step):
            room = numpy.empty((2, min(len(array), step)))  # fresh memory for each part would cost more than all else
        parts += [_measure(kind, array[at : at + step], room) for at in range(0, len(array), step)]
    return combine(parts)


def float_info(kind: DType) -> Any:
    """The `finfo` of a float dtype, or of the parts of a complex one."""
    component = kind.component
    module: Any = numpy if component.name in ("float16", "float32", "float64") else ml_dtypes
    return module.finfo(component.numpy)


@cache
def _limits(kind: DType) -> tuple[float, float, float]:
    """The smallest normal number (0 for integers), and both ends."""
    if kind.kind == "bool":
        return 0, math.nan, math.nan
    if kind.kind in ("int", "uint", "quantized"):
        info = numpy.iinfo(kind.numpy)
        return 0, (int(info.min) if info.min else math.nan), int(info.max)
    info = float_info(kind)
    return float(info.smallest_normal), -float(info.max), float(info.max)


# 8 and 16 bits


class _Table:
    """Facts about every value of a dtype, by its bits."""

    def __init__(self, kind: DType) -> None:
        self.integral = kind.kind in ("int", "uint", "bool", "quantized")
        codes = numpy.arange(1 << kind.bits, dtype=f"u{kind.itemsize}")
        with numpy.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            values = codes != 0 if kind.kind == "bool" else codes.view(kind.numpy)
            self.values = values.astype("f8")
        self.nan, self.inf = numpy.isnan(self.values), numpy.isinf(self.values)
        self.finite = ~(self.nan | self.inf)
        self.zeros = self.values == 0
        self.exponents = numpy.frexp(numpy.where(self.finite, self.values, 0))[1].astype("i8") - 1
        tiny, least, most = _limits(kind)
        self.denormal = (abs(self.values) < tiny) & ~self.zeros
        self.edge = (self.values == least) | (self.values == most)


_table = cache(_Table)


def _count_codes(kind: DType, blocks: Iterable[Any]) -> Figures:
    table = _table(kind)
    counters: Any = None
    few: list[Any] = []
    for block in blocks:
        array = numpy.frombuffer(block, f"u{kind.itemsize}")
        if len(array) <= _FEW:
            few.append(numpy.unique(array, return_counts=True))
        else:
            counts = numpy.bincount(array, minlength=len(table.values))
            counters = counts if counters is None else numpy.add(counters, counts, out=counters)
    if counters is not None:
        for codes, counts in few:
            counters[codes] += counts
        codes = numpy.flatnonzero(counters)
        few = [(codes, counters[codes])]
    return combine(_evaluate(table, codes, counts) for codes, counts in few)


def _evaluate(table: _Table, codes: Any, counts: Any) -> Figures:
    def count(mask: Any) -> int:
        return int(counts[mask[codes]].sum())

    elements, finite = int(counts.sum()), table.finite[codes]
    zeros, denormal, edge = (count(mask) for mask in (table.zeros, table.denormal, table.edge))
    figures = Figures(elements=elements, finite=elements, zeros=zeros, denormal=denormal, edge=edge)
    if not finite.all():
        figures = replace(figures, nan=count(table.nan), inf=count(table.inf), finite=count(table.finite))
        codes, counts = codes[finite], counts[finite]
    if not len(codes):
        return figures
    values = table.values[codes]
    low, high = float(values.min()), float(values.max())
    mean, deviation = low, 0.0
    if low != high:
        mean = float((values * counts).sum()) / figures.finite
        deviation = math.sqrt(float((numpy.square(values - mean) * counts).sum()) / figures.finite)
    some = values != 0
    histogram = _bin(values[some] > 0, table.exponents[codes[some]], counts[some])
    ends = (int(low), int(high)) if table.integral else (low, high)
    if table.integral:
        linear = count_integers(values.astype("i8"), int(low), int(high), numpy.empty(len(values)), counts)
    else:
        linear = count_linear(values, low, high, numpy.empty(len(values)), counts)
    return replace(
        figures, min=ends[0], max=ends[1], mean=mean, deviation=deviation, histogram=histogram, linear=linear
    )


# 32 bits and more


def _measure(kind: DType, array: Any, room: Any) -> Figures:
    if kind.kind == "complex":
        return _measure_complex(kind, array)
    tiny, *ends = _limits(kind)
    x, other = room[0, : len(array)], room[1]
    with numpy.errstate(invalid="ignore"):
        x[...] = array
    if kind.kind != "float" and kind.bits == 64:
        _round_down(array, x)
    figures, x, *tally = _count(x, other, tiny)
    if not len(x):
        return figures
    mean, deviation, low, high = _moments(x, other)
    if kind.kind == "float":
        array = x
        linear = len(x) > _VERY_FEW and sum_linear(low, high, figures.zeros, *tally)
        linear = linear or count_linear(x, low, high, other)
    else:
        low, high = int(array.min()), int(array.max())
        linear = count_integers(array, low, high, other)
    figures = replace(figures, linear=linear)
    edge = sum(int(numpy.count_nonzero(array == end)) for end in ends if end in (low, high))
    return replace(figures, min=low, max=high, mean=mean, deviation=deviation, edge=edge)


def _round_down(array: Any, x: Any) -> None:
    """Round integers beyond 2⁵³ in `x` towards 0, so that none rises to the next power of two."""
    if max(-int(array.min()), int(array.max())) >= _EXACT:
        bits = array.view("u8")
        magnitude = numpy.where(array < 0, ~bits + numpy.uint64(1), bits)
        large = numpy.where(magnitude >= _EXACT, magnitude & numpy.uint64((1 << 64) - (1 << 11)), magnitude)
        x[...] = numpy.where(array < 0, -large.astype("f8"), large.astype("f8"))


def _count(x: Any, other: Any, tiny: float) -> tuple[Figures, Any, Any, Any]:
    """Counts and histogram of float64; those that are finite; their leading bits, and how often each occurs.

    `other` is memory to work in.
    """
    codes = other[: len(x)].view("i8")
    numpy.right_shift(x.view("u8"), LEADING, out=codes.view("u8"))
    counts = numpy.ones(len(x), "i8")
    if len(x) > _VERY_FEW:
        counters = numpy.bincount(codes)
        codes = numpy.flatnonzero(counters != 0)
        counts = counters[codes]
    exponents = codes >> FRACTION & (EXPONENTS - 1)
    elements, beyond, lowest = len(x), int(counts[exponents == EXPONENTS - 1].sum()), int(counts[exponents == 0].sum())
    nan = zeros = denormal = 0
    below = Histogram()
    if beyond:
        nan = int(numpy.count_nonzero(numpy.isnan(x)))
        x = x[numpy.isfinite(x)]
    if lowest:
        zeros = len(x) - int(numpy.count_nonzero(x))
        if lowest > zeros:  # denormal numbers of float64, whose bits do not say the exponent
            low = x[(abs(x) < 2.0 ** (1 - BIAS)) & (x != 0)]
            below = _bin(low > 0, numpy.frexp(low)[1].astype("i8") - 1, 1)
    if tiny:
        denormal = int(counts[exponents < math.frexp(tiny)[1] - 1 + BIAS].sum()) - zeros
    normal = (exponents > 0) & (exponents < EXPONENTS - 1)
    positive = codes[normal] >> FRACTION < EXPONENTS
    histogram = _add_histograms([_bin(positive, exponents[normal] - BIAS, counts[normal]), below])
    figures = Figures(elements=elements, finite=len(x), zeros=zeros, denormal=denormal, histogram=histogram)
    finite = exponents < EXPONENTS - 1
    return replace(figures, nan=nan, inf=beyond - nan), x, codes[finite], counts[finite]


def _bin(positive: Any, exponents: Any, counts: Any) -> Histogram:
    """The histogram of values that are not 0, by how often each occurs."""
    if not len(exponents):
        return Histogram()
    first = int(exponents.min())
    bins = numpy.zeros((2, int(exponents.max()) - first + 1), "i8")
    numpy.add.at(bins, (positive.astype("i8"), exponents - first), counts)
    return Histogram(first, *map(tuple, bins.tolist()))


def _moments(x: Any, other: Any) -> tuple[float, float, float, float]:
    """Mean, deviation, smallest and largest of finite float64; `other` is memory to work in."""
    low, high = float(x.min()), float(x.max())
    if low == high:
        return low, 0.0, low, high
    most, scale = max(-low, high), 0
    if not 1 / _SCALED < most < _SCALED:
        scale = math.frexp(most)[1]
        x = numpy.ldexp(numpy.ldexp(x, -scale // 2), -scale - -scale // 2)
    mean = float(x.sum()) / len(x)
    away = numpy.subtract(x, mean, out=other[: len(x)])
    deviation = math.sqrt(float(numpy.square(away, out=away).sum()) / len(x))
    if scale:  # by a rounding they may be beyond what is possible, and beyond float64
        ends = math.ldexp(low, -scale), math.ldexp(high, -scale)
        mean, deviation = min(max(mean, ends[0]), ends[1]), min(deviation, math.ldexp(most, -scale))
    return math.ldexp(mean, scale), math.ldexp(deviation, scale), low, high


def _measure_complex(kind: DType, array: Any) -> Figures:
    with numpy.errstate(invalid="ignore"):
        pairs = array.reshape(-1, 2).astype("f8")
    real, imag = pairs[:, 0].copy(), pairs[:, 1].copy()
    nan = int(numpy.count_nonzero(numpy.isnan(real) | numpy.isnan(imag)))
    inf = int(numpy.count_nonzero(numpy.isinf(real) | numpy.isinf(imag)))
    if nan or inf:
        finite = numpy.isfinite(real) & numpy.isfinite(imag)
        real, imag = real[finite], imag[finite]
    tiny, _, most = _limits(kind)
    with numpy.errstate(over="ignore"):
        modulus = numpy.hypot(real, imag)
    other = numpy.empty(len(real))
    sizes = numpy.minimum(modulus, numpy.finfo("f8").max)
    figures, *_ = _count(sizes, other, tiny)
    figures = replace(figures, elements=len(pairs), nan=nan, inf=inf)
    if not len(real):
        return figures
    means, deviations = zip(*(_moments(part, other)[:2] for part in (real, imag)), strict=True)
    return replace(
        figures,
        min=float(modulus.min()),
        max=float(modulus.max()),
        linear=count_linear(sizes, float(sizes.min()), float(sizes.max()), other),
        mean=complex(*means),
        deviation=math.hypot(*deviations),
        edge=int(numpy.count_nonzero((abs(real) == most) | (abs(imag) == most))),
    )


# sums


def combine(parts: Iterable[Figures]) -> Figures:
    """The figures of several parts together."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    some = [part for part in every if part.finite]
    sums = {
        name: sum(getattr(part, name) for part in every)
        for name in ("elements", "finite", "zeros", "nan", "inf", "denormal", "edge")
    }
    if not some:
        return Figures(**sums)
    low, high = min(part.min for part in some), max(part.max for part in some)  # type: ignore[type-var]
    shares = [(part.finite / sums["finite"], part.mean or 0.0, part.deviation or 0.0) for part in some]
    mean, deviation = _combine_moments(shares)
    if low == high and not isinstance(mean, complex):
        mean, deviation = float(low), 0.0  # type: ignore[arg-type]
    histogram = _add_histograms([part.histogram for part in some])
    linear = add_linear(some, low, high)  # type: ignore[arg-type]
    return Figures(min=low, max=high, mean=mean, deviation=deviation, histogram=histogram, linear=linear, **sums)


def _combine_moments(parts: Sequence[tuple[float, float | complex, float]]) -> tuple[float | complex, float]:
    """Mean and deviation of parts, each with its share of all elements."""
    real = _mean([(share, mean.real) for share, mean, _ in parts])
    imag = _mean([(share, mean.imag) for share, mean, _ in parts])
    roots = [(math.sqrt(share), mean, deviation) for share, mean, deviation in parts]
    deviation = math.hypot(
        *(root * spread for root, _, spread in roots),
        *(root * mean.real - root * real for root, mean, _ in roots),
        *(root * mean.imag - root * imag for root, mean, _ in roots),
    )
    return (complex(real, imag) if any(isinstance(mean, complex) for _, mean, _ in parts) else real), deviation


def _mean(parts: Sequence[tuple[float, float]]) -> float:
    """The mean of means; near the largest number it may be beyond all of them by a rounding."""
    try:
        middle = math.fsum(share * mean for share, mean in parts)
    except OverflowError:
        middle = 2 * math.fsum(share * (mean / 2) for share, mean in parts)
    return min(max(middle, min(mean for _, mean in parts)), max(mean for _, mean in parts))


def _add_histograms(histograms: Sequence[Histogram]) -> Histogram:
    """What several histograms count together."""
    wide = [one for one in histograms if one.positive or one.negative]
    if len(wide) < 2:
        return wide[0] if wide else Histogram()
    low = min(one.exponent for one in wide)
    size = max(one.exponent + len(one.positive) for one in wide) - low
    sides: tuple[list[int], list[int]] = [0] * size, [0] * size
    for one in wide:
        for side, counts in zip(sides, (one.negative, one.positive), strict=True):
            for at, count in enumerate(counts, one.exponent - low):
                side[at] += count
    return Histogram(low, tuple(sides[0]), tuple(sides[1]))
