"""Figures of a tensor, and the sums of several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many finite elements that are not 0 lie between powers of two.

    Attributes:
        exponent: that of the first bin.
        negative: entry i counts what is in (-2 ** (exponent + i + 1), -2 ** (exponent + i)].
        positive: entry i counts what is in [2 ** (exponent + i), 2 ** (exponent + i + 1)).
    """

    exponent: int = 0
    negative: tuple[int, ...] = ()
    positive: tuple[int, ...] = ()

    def counts(self, zeros: int = 0, octaves: int = 4) -> list[int]:
        """The largest octaves below 0, from the outermost; all that is closer to 0; the largest octaves above it.

        >>> Histogram(0, (1, 2), (4, 8)).counts(zeros=3, octaves=1)
        [2, 8, 8]
        """
        counts = [0] * (2 * octaves + 1)
        for side, sign in ((self.negative, -1), (self.positive, 1)):
            for index, count in enumerate(side):
                counts[octaves + sign * max(octaves - (len(side) - 1 - index), 0)] += count
        counts[octaves] += zeros
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Statistics of some elements. NaN and infinities are counted and excluded from everything else.

    Attributes:
        elements: how many there are.
        finite: how many are finite.
        min, max: the smallest and the largest; of the modulus of complex numbers. None where nothing is finite.
        mean: complex if a number is.
        deviation: the standard deviation of the population; `std` is that of a sample.
        zeros: how many are 0.
        nan, inf: how many are NaN, or infinite.
        denormal: how many are closer to 0 than the dtype's smallest normal number, and not 0.
        edge: how many are as large as the dtype allows.
        histogram: by powers of two; of the modulus of complex numbers.
    """

    elements: int = 0
    finite: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | complex | None = None
    deviation: float | None = None
    zeros: int = 0
    nan: int = 0
    inf: int = 0
    denormal: int = 0
    edge: int = 0
    histogram: Histogram = Histogram()

    @property
    def std(self) -> float | None:
        """The standard deviation as `torch.Tensor.std` has it, of a sample; None for less than two finite elements."""
        if self.deviation is None or self.finite < 2:
            return None
        return self.deviation * math.sqrt(self.finite / (self.finite - 1))

    @property
    def rms(self) -> float | None:
        """The root of the mean square."""
        if self.mean is None or self.deviation is None:
            return None
        return math.hypot(self.mean.real, self.mean.imag, self.deviation)

    @property
    def l2(self) -> float | None:
        """The root of the sum of squares; infinite where that is beyond float64."""
        rms = self.rms
        return None if rms is None else rms * math.sqrt(self.finite)

    def record(self) -> dict[str, Any]:
        """The figures ready for `json.dumps`: a complex number as [re, im], what is beyond float64 as `"inf"`."""
        names = ("elements", "min", "max", "mean", "std", "l2", "zeros", "nan", "inf", "denormal", "edge")
        record: dict[str, Any] = {name: _strict(getattr(self, name)) for name in names}
        bins = self.histogram
        record["histogram"] = {"exponent": bins.exponent, "negative": bins.negative, "positive": bins.positive}
        return record


def _strict(value: Any) -> Any:
    if isinstance(value, complex):
        return [_strict(value.real), _strict(value.imag)]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
    mean, deviation = _combine_moments(
        [(part.finite / sums["finite"], part.mean or 0.0, part.deviation or 0.0) for part in some]
    )
    if low == high and not isinstance(mean, complex):
        mean, deviation = float(low), 0.0  # type: ignore[arg-type]
    histogram = add_histograms([part.histogram for part in some])
    return Figures(min=low, max=high, mean=mean, deviation=deviation, histogram=histogram, **sums)


def _combine_moments(parts: Sequence[tuple[float, float | complex, float]]) -> tuple[float | complex, float]:
    """Mean and deviation of parts, each with its share of all elements."""
    real = _mean([(share, mean.real) for share, mean, _ in parts])
    imag = _mean([(share, mean.imag) for share, mean, _ in parts])
    roots = [(math.sqrt(share), mean, deviation) for share, mean, deviation in parts]
    deviation = math.hypot(
        *(root * own for root, _, own in roots),
        *(root * mean.real - root * real for root, mean, _ in roots),
        *(root * mean.imag - root * imag for root, mean, _ in roots),
    )
    return (complex(real, imag) if any(isinstance(mean, complex) for _, mean, _ in parts) else real), deviation


def _mean(parts: Sequence[tuple[float, float]]) -> float:
    """The mean of means; near the largest number it may be beyond all of them by a rounding."""
    try:
        found = math.fsum(share * mean for share, mean in parts)
    except OverflowError:
        found = 2 * math.fsum(share * (mean / 2) for share, mean in parts)
    return min(max(found, min(mean for _, mean in parts)), max(mean for _, mean in parts))


def add_histograms(histograms: Sequence[Histogram]) -> Histogram:
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
