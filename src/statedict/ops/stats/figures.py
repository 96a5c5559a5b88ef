"""The figures of a tensor from its bytes, block by block, in float64, without a second pass.

Elements of 8 and 16 bits are counted by their bits, and the counters are evaluated by a table of all values: exact but
for the roundings of one sum. Wider ones become float64, a part at a time: their exponents are counted, mean and
deviation are those of the part. What both ways cost: docs/decisions/0015-statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from statedict.dtypes import DType
from statedict.reports.figures import Figures, Histogram, add_histograms, combine

_PACKED = ("float4_e2m1fn_x2", "quint4x2", "quint2x4")
_FEW = 8192  # elements that are sorted sooner than 65,536 counters are looked through
_PART = 1 << 17  # elements that become float64 at a time
_COMPLEX = 1 << 16  # halves of complex numbers
_SCALED = 2.0**500  # beyond it, or below its inverse, squares could leave float64
_EXPONENTS = 2048  # of a float64; times two signs
_BIAS = 1023
_EXACT = 1 << 53


def computable(kind: DType) -> bool:
    """Whether there are figures of a dtype: each element is a number of its own."""
    return bool(kind.itemsize) and kind.kind not in ("bits", "raw") and kind.name not in _PACKED


def of_blocks(kind: DType, blocks: Iterable[Any]) -> Figures:
    """The figures of what comes in blocks of bytes; each block is gone when the next one comes."""
    whole = whole_elements(blocks, kind.itemsize)
    if kind.itemsize <= 2:
        return _of_counts(kind, whole)
    import numpy

    parts: list[Figures] = []
    room: Any = numpy.empty((2, 0))
    for block in whole:
        array = numpy.frombuffer(block, kind.component.numpy)
        step = _COMPLEX if kind.kind == "complex" else _PART
        if room.shape[1] < min(len(array), step):
            room = numpy.empty((2, min(len(array), step)))  # fresh memory for each part would cost more than all else
        parts += [_of_array(kind, array[at : at + step], room) for at in range(0, len(array), step)]
    return combine(parts)


def whole_elements(blocks: Iterable[Any], itemsize: int) -> Iterator[Any]:
    """The blocks, cut between elements; what is unpacked comes as it happens to."""
    rest = b""
    for block in blocks:
        data = block if not rest else rest + bytes(block)
        extra = len(data) % itemsize
        rest = bytes(data[len(data) - extra :]) if extra else b""
        if len(data) >= itemsize:
            yield data[: len(data) - extra] if extra else data


# of 8 and 16 bits


class _Table:
    """Of every value that the bits of a dtype can mean."""

    def __init__(self, kind: DType) -> None:
        import numpy

        self.integral = kind.kind in ("int", "uint", "bool", "quantized")
        codes = numpy.arange(1 << kind.bits, dtype=f"u{kind.itemsize}")
        with numpy.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            values = codes != 0 if kind.kind == "bool" else codes.view(kind.numpy)
            self.values = values.astype("f8")
        self.nan, self.inf = numpy.isnan(self.values), numpy.isinf(self.values)
        self.finite = ~(self.nan | self.inf)
        self.zero = self.values == 0
        self.exponents = numpy.frexp(numpy.where(self.finite, self.values, 0))[1].astype("i8") - 1
        tiny, least, most = _limits(kind)
        magnitudes = abs(self.values)
        self.denormal = (magnitudes < tiny) & ~self.zero
        self.edge = (self.values == least) | (self.values == most)


_TABLES: dict[str, _Table] = {}


def _limits(kind: DType) -> tuple[float, float, float]:
    """The smallest normal number (0 for integers), and both ends."""
    import numpy

    if kind.kind in ("int", "uint", "quantized"):
        info = numpy.iinfo(kind.numpy)
        return 0, (int(info.min) if info.min else math.nan), int(info.max)
    if kind.kind == "bool":
        return 0, math.nan, math.nan
    component = kind.component
    if component.name in ("float16", "float32", "float64"):
        found: Any = numpy.finfo(component.name)
    else:
        import ml_dtypes

        finfo: Any = ml_dtypes.finfo
        found = finfo(component.numpy)
    return float(found.smallest_normal), -float(found.max), float(found.max)


_LIMITS: dict[str, tuple[float, float, float]] = {}


def _limits_of(kind: DType) -> tuple[float, float, float]:
    if kind.name not in _LIMITS:
        _LIMITS[kind.name] = _limits(kind)
    return _LIMITS[kind.name]


def _of_counts(kind: DType, blocks: Iterable[Any]) -> Figures:
    import numpy

    table = _TABLES.get(kind.name)
    if table is None:
        table = _TABLES[kind.name] = _Table(kind)
    counters: Any = None
    few: list[Any] = []
    for block in blocks:
        array = numpy.frombuffer(block, f"u{kind.itemsize}")
        if len(array) <= _FEW:
            few.append(numpy.unique(array, return_counts=True))
        elif counters is None:
            counters = numpy.bincount(array, minlength=len(table.values))
        else:
            counters += numpy.bincount(array, minlength=len(table.values))
    if counters is not None:
        for codes, counts in few:
            counters[codes] += counts
        codes = numpy.flatnonzero(counters)
        few = [(codes, counters[codes])]
    return combine(_evaluate(table, codes, counts) for codes, counts in few)


def _evaluate(table: _Table, codes: Any, counts: Any) -> Figures:
    import numpy

    def number(mask: Any) -> int:
        return int(counts[mask[codes]].sum())

    elements = int(counts.sum())
    figures = Figures(
        elements=elements,
        finite=elements,
        zeros=number(table.zero),
        denormal=number(table.denormal),
        edge=number(table.edge),
    )
    finite = table.finite[codes]
    if not finite.all():
        figures = replace(figures, nan=number(table.nan), inf=number(table.inf), finite=int(counts[finite].sum()))
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
    histogram = Histogram()
    if some.any():
        exponents, above = table.exponents[codes[some]], (values > 0)[some].astype("i8")
        first = int(exponents.min())
        bins = numpy.zeros((2, int(exponents.max()) - first + 1), "i8")
        numpy.add.at(bins, (above, exponents - first), counts[some])
        histogram = _trim(first, *bins)
    ends = (int(low), int(high)) if table.integral else (low, high)
    return replace(figures, min=ends[0], max=ends[1], mean=mean, deviation=deviation, histogram=histogram)


# of 32 bits and more


def _of_array(kind: DType, array: Any, room: Any) -> Figures:
    if kind.kind == "complex":
        return _of_complex(kind, array)
    if kind.kind != "float":
        return _of_integers(array, room, _limits_of(kind))
    import numpy

    tiny, _, most = _limits_of(kind)
    x, other = room[0, : len(array)], room[1]
    with numpy.errstate(invalid="ignore"):
        x[...] = array
    figures, x = _count(x, other, tiny)
    if not len(x):
        return figures
    mean, deviation, low, high = _moments(x, other)
    edge = int(numpy.count_nonzero(abs(x) == most)) if max(-low, high) >= most else 0
    return replace(figures, min=low, max=high, mean=mean, deviation=deviation, edge=edge)


def _count(x: Any, other: Any, tiny: float) -> tuple[Figures, Any]:
    """Counts and histogram of float64, and those that are finite; `other` is memory to work in."""
    import numpy

    codes = other[: len(x)].view("i8")
    numpy.right_shift(x.view("i8"), 52, out=codes)
    codes &= 2 * _EXPONENTS - 1
    bins = numpy.bincount(codes, minlength=2 * _EXPONENTS).reshape(2, _EXPONENTS)
    elements, lowest, beyond = len(x), int(bins[:, 0].sum()), int(bins[:, -1].sum())
    nan = zeros = denormal = 0
    below = Histogram()
    if beyond:
        nan = int(numpy.count_nonzero(numpy.isnan(x)))
        x = x[numpy.isfinite(x)]
    if lowest:
        zeros = len(x) - int(numpy.count_nonzero(x))
        if lowest > zeros:
            below = _below_normal(x)
    if tiny:
        denormal = int(bins[:, : math.frexp(tiny)[1] - 1 + _BIAS].sum()) - zeros
    bins[:, 0] = bins[:, -1] = 0
    histogram = add_histograms([_trim(-_BIAS, bins[1], bins[0]), below])
    inf = beyond - nan
    return Figures(
        elements=elements, finite=len(x), nan=nan, inf=inf, zeros=zeros, denormal=denormal, histogram=histogram
    ), x


def _below_normal(x: Any) -> Histogram:
    """The histogram of the denormal numbers of float64, whose bits do not say the exponent."""
    import numpy

    low = x[(abs(x) < 2.0 ** (1 - _BIAS)) & (x != 0)]
    exponents = numpy.frexp(low)[1].astype("i8") - 1
    first = int(exponents.min())
    size = int(exponents.max()) - first + 1
    sides = [numpy.bincount(exponents[side] - first, minlength=size) for side in (low < 0, low > 0)]
    return _trim(first, *sides)


def _trim(exponent: int, negative: Any, positive: Any) -> Histogram:
    import numpy

    used = numpy.flatnonzero(negative + positive)
    if not len(used):
        return Histogram()
    part = slice(int(used[0]), int(used[-1]) + 1)
    return Histogram(exponent + part.start, tuple(negative[part].tolist()), tuple(positive[part].tolist()))


def _moments(x: Any, other: Any) -> tuple[float, float, float, float]:
    """Mean, deviation, smallest and largest of finite float64; `other` is memory to work in."""
    import numpy

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


def _of_integers(array: Any, room: Any, limits: tuple[float, float, float]) -> Figures:
    import numpy

    low, high = int(array.min()), int(array.max())
    x, other = room[0, : len(array)], room[1]
    x[...] = array
    if max(-low, high) >= _EXACT:  # rounded towards 0, so that none rises to the next power of two
        bits = array.view("u8")
        magnitude = numpy.where(array < 0, ~bits + numpy.uint64(1), bits)
        large = numpy.where(magnitude >= _EXACT, magnitude & numpy.uint64((1 << 64) - (1 << 11)), magnitude)
        x[...] = numpy.where(array < 0, -large.astype("f8"), large.astype("f8"))
    figures, x = _count(x, other, 0)
    mean, deviation, _, _ = _moments(x, other)
    edge = sum(int(numpy.count_nonzero(array == end)) for end in limits[1:] if end in (low, high))
    return replace(figures, min=low, max=high, mean=mean, deviation=deviation, edge=edge)


def _of_complex(kind: DType, array: Any) -> Figures:
    import numpy

    with numpy.errstate(invalid="ignore"):
        pairs = array.reshape(-1, 2).astype("f8")
    real, imag = pairs[:, 0].copy(), pairs[:, 1].copy()
    nan = int(numpy.count_nonzero(numpy.isnan(real) | numpy.isnan(imag)))
    inf = int(numpy.count_nonzero(numpy.isinf(real) | numpy.isinf(imag)))
    if nan or inf:
        finite = numpy.isfinite(real) & numpy.isfinite(imag)
        real, imag = real[finite], imag[finite]
    tiny, _, most = _limits_of(kind)
    with numpy.errstate(over="ignore"):
        modulus = numpy.hypot(real, imag)
    other = numpy.empty(len(real))
    figures, _ = _count(numpy.minimum(modulus, numpy.finfo("f8").max), other, tiny)
    figures = replace(figures, elements=len(pairs), nan=nan, inf=inf)
    if not len(real):
        return figures
    means, deviations = zip(*(_moments(part, other)[:2] for part in (real, imag)), strict=True)
    return replace(
        figures,
        min=float(modulus.min()),
        max=float(modulus.max()),
        mean=complex(*means),
        deviation=math.hypot(*deviations),
        edge=int(numpy.count_nonzero((abs(real) == most) | (abs(imag) == most))),
    )
