"""Linear histograms: bins of one width, a power of two, whose edges are multiples of it.

So bins of parts fit into those of the whole. Why they are as they are: docs/decisions/0015-statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from statedict.reports.stats import Figures, Linear

LEADING = 48  # the last bits of a float64 that are not counted; before them are sign, exponent and 4 of the fraction
FRACTION = 4
EXPONENTS = 2048  # of a float64
BIAS = 1023
_BINS = 4  # a histogram has up to 2 ** _BINS bins and one
_WHOLE = 2.0**52  # a float64 from here on is a whole number in its last bits
_LEAST = -1074  # 2 ** _LEAST is the smallest float64


def _grid(low: Any, high: Any) -> int:
    """The exponent of the width of bins from the smallest to the largest, which are integers or floats."""
    half = (high - low) / 2 if isinstance(low, int) else high / 2 - low / 2
    return max(math.frexp(half)[1] + 1 - _BINS, _LEAST)


def _scale(x: Any, exponent: int, out: Any = None) -> Any:
    """The number of the bin of each of some floats; the end nearer to 0 belongs to a bin."""
    small = abs(exponent) < BIAS - 1
    bins = numpy.multiply(x, 2.0**-exponent, out=out) if small else numpy.ldexp(x, -exponent, out=out)
    numpy.trunc(bins, out=bins)
    bins -= x < 0
    return bins


def _place(value: Any, exponent: int) -> int:
    """The number of the bin of an integer, whose lower end belongs to it, or of a float."""
    if isinstance(value, int):
        return value >> exponent if exponent >= 0 else value << -exponent
    return int(_scale(numpy.array([value]), exponent)[0])


def count_integers(array: Any, low: int, high: int, other: Any, counts: Any = None) -> Linear:
    """As `count_linear`, of integers."""
    if low == high:
        return Linear()
    exponent, places = _grid(low, high), other.view(array.dtype)[: len(array)]
    if exponent >= 0:
        numpy.right_shift(array, exponent, out=places)
        places -= array.dtype.type(low >> exponent)
    else:
        numpy.subtract(array, array.dtype.type(low), out=places)
        places <<= array.dtype.type(-exponent)
    codes = places.astype("i8", copy=False)
    bins = numpy.bincount(codes) if counts is None else numpy.bincount(codes, counts).astype("i8")
    return Linear(exponent, _place(low, exponent), tuple(bins.tolist()))


def count_linear(x: Any, low: float, high: float, other: Any, counts: Any = None) -> Linear:
    """The linear histogram of finite float64, by how often each occurs; `other` is memory to work in."""
    if low == high:
        return Linear()
    exponent = _grid(low, high)
    first = _place(low, exponent)
    places = _scale(x, exponent, other[: len(x)])
    places -= first
    places += _WHOLE  # whose last bits then are the number of the bin
    codes = places.view("i8")
    codes &= 0xFF
    bins = numpy.bincount(codes) if counts is None else numpy.bincount(codes, counts).astype("i8")
    return Linear(exponent, first, tuple(bins.tolist()))


def sum_linear(low: float, high: float, zeros: int, codes: Any, counts: Any) -> Linear | None:
    """The linear histogram of what has these leading bits; None if they do not tell the bins."""
    finest = math.frexp(max(-low, high))[1] - 1 - FRACTION
    lowest = codes >> FRACTION & (EXPONENTS - 1) == 0
    if finest > _grid(low, high) or int(counts[lowest].sum()) > zeros:
        return None
    values = (codes << LEADING).view("f8")
    values[lowest] = 0  # not -0.0
    return count_linear(values, low, high, numpy.empty(len(codes)), counts)


def add_linear(parts: Sequence[Figures], low: float, high: float) -> Linear:
    """The linear histogram of several parts, of which each has bins that fit into those of all."""
    if low == high:
        return Linear()
    exponent = max(_grid(low, high), *(part.linear.exponent for part in parts if part.linear.counts), _LEAST)
    bins: dict[int, int] = {}
    for part in parts:
        own = part.linear
        if not own.counts:  # all are equal
            at = _place(part.min, exponent)
            bins[at] = bins.get(at, 0) + part.finite
        for at, count in enumerate(own.counts, own.first):
            bins[at >> exponent - own.exponent] = bins.get(at >> exponent - own.exponent, 0) + count
    first = min(bins)
    return Linear(exponent, first, tuple(bins.get(at, 0) for at in range(first, max(bins) + 1)))
