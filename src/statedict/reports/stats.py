"""StatsReport: the figures of every tensor, and what deserves a look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from statedict.errors import PathError
from statedict.reports.quantization import UNQUANTIZED, Quantization
from statedict.reports.summary import Optimizer
from statedict.shown import Shown, Viewed, to_record
from statedict.tree.walk import sort_by_module


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many finite elements that are not 0 lie between powers of two."""

    exponent: int = 0  # that of the first bin
    negative: tuple[int, ...] = ()  # entry i counts what is in (-2 ** (exponent + i + 1), -2 ** (exponent + i)]
    positive: tuple[int, ...] = ()  # entry i counts what is in [2 ** (exponent + i), 2 ** (exponent + i + 1))

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


@dataclass(frozen=True, slots=True)
class Linear:
    """How many finite elements lie in bins of one width, from the smallest to the largest.

    The width is a power of two, and the edges are multiples of it. There are 9 to 17 bins, none if all are equal. Of
    floats the edge nearer to 0 belongs to a bin, of integers the lower one.
    """

    exponent: int = 0  # the width is 2 ** exponent
    first: int = 0  # entry i counts what is between (first + i) * width and (first + i + 1) * width
    counts: tuple[int, ...] = ()

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def start(self) -> float:
        """The left edge of the first bin."""
        return self.first * self.width

    def to_json(self) -> dict[str, Any]:
        """The bins: `start`, `width` and `counts`."""
        return {"start": _strict(self.start), "width": self.width, "counts": list(self.counts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Statistics of some elements. NaN and infinities are counted and excluded from everything else."""

    elements: int = 0
    finite: int = 0  # how many are finite
    # the smallest and the largest; of the modulus of complex numbers. None if no element is finite.
    min: float | None = None
    max: float | None = None
    mean: float | complex | None = None  # complex if an element is
    deviation: float | None = None  # the standard deviation of the population; `std` is that of a sample
    zeros: int = 0  # how many are 0
    nan: int = 0  # how many are NaN, or infinite
    inf: int = 0
    denormal: int = 0  # how many are closer to 0 than the dtype's smallest normal number, and not 0
    edge: int = 0  # how many are as large as the dtype allows
    histogram: Histogram = Histogram()  # by powers of two; of the modulus of complex numbers
    linear: Linear = Linear()  # in bins of one width; of the modulus of complex numbers

    @property
    def std(self) -> float | None:
        """The standard deviation of a sample, as `torch.Tensor.std`; None for less than two finite elements."""
        if self.deviation is None or self.finite < 2:
            return None
        return self.deviation * math.sqrt(self.finite / (self.finite - 1))

    @property
    def rms(self) -> float | None:
        """The root mean square."""
        if self.mean is None or self.deviation is None:
            return None
        return math.hypot(self.mean.real, self.mean.imag, self.deviation)

    @property
    def l2(self) -> float | None:
        """The root of the sum of squares; infinite beyond float64."""
        rms = self.rms
        return None if rms is None else rms * math.sqrt(self.finite)

    def bins(self, log: bool = False, octaves: int = 4) -> list[int]:
        """The counts of a histogram to draw: linear, or by powers of two on both sides of 0."""
        if log:
            return self.histogram.counts(self.zeros, octaves)
        return list(self.linear.counts) or [self.finite] * bool(self.finite)

    def record(self) -> dict[str, Any]:
        """The figures, ready for `json.dumps`: a complex number as [re, im], a number beyond float64 as `"inf"`."""
        names = ("elements", "min", "max", "mean", "std", "l2", "zeros", "nan", "inf", "denormal", "edge")
        return {name: _strict(getattr(self, name)) for name in names} | {
            "histogram": to_record(self.histogram) | {"linear": self.linear.to_json()}
        }


def _strict(value: Any) -> Any:
    if isinstance(value, complex):
        return [_strict(value.real), _strict(value.imag)]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats(Figures, Viewed):
    """The figures of one tensor."""

    name: str
    dtype: str  # PyTorch's name
    shape: tuple[int, ...]
    # the path of an earlier tensor with the same bytes, which alone counts for modules and in total
    tied: str | None = None
    # how many entries along the first dimension are all 0; None for less than two dimensions
    dead_rows: int | None = None
    computed: bool = True  # whether there are figures; packed dtypes and those of less than a byte have none
    parameter: str | None = None  # for optimizer state the name of its parameter, where known
    inferred: bool = False  # whether that name is inferred from the model's order and shapes
    quantized: str | None = None  # how the weight is stored, if these figures are of its dequantized numbers

    @property
    def kind(self) -> str:
        """The dtype, or what was dequantized."""
        return f"{self.quantized}, dequantized" if self.quantized else self.dtype

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`; what was not computed is null."""
        record = self.record()
        if not self.computed:
            record = dict.fromkeys(record) | {"elements": self.elements}
        head = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        tail = {"dead_rows": self.dead_rows, "tied": self.tied, "parameter": self.parameter, "inferred": self.inferred}
        tail |= {"quantized": self.quantized} if self.quantized else {}
        return head | record | tail


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats(Figures, Viewed):
    """The figures of several tensors together."""

    name: str  # the path of the module, or the dtype; empty for all
    tensors: int  # how many there are; tied ones count once, and those that were not computed do not

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`."""
        return {"name": self.name, "tensors": self.tensors} | self.record()


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that deserves a look."""

    name: str  # the tensor's path, or the optimizer's
    # `nan`, `inf`, `zeros`, `constant`, `dead rows`, `exploded`, `denormal` or `edge`; of an optimizer `missing
    # state`, `stale state` or `steps`; of a quantized weight `missing`, `shape`, `range` or `negative` too
    kind: str
    what: str  # the finding, in words

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True, slots=True)
class StatsReport(Shown):
    """What `stats` found."""

    tensors: tuple[TensorStats, ...]  # every tensor in the order of the file
    modules: tuple[GroupStats, ...]  # every module in the order of a tree: each prefix of a tensor's path
    dtypes: tuple[GroupStats, ...]  # every dtype in order
    total: GroupStats  # all together
    flags: tuple[Flag, ...]  # what deserves a look
    # those that have some of the tensors, with their groups and the names of their parameters
    optimizers: tuple[Optimizer, ...] = ()
    quantization: Quantization = UNQUANTIZED  # quantized weights, whose packed numbers have no figures
    # the quantized weights by their own names, with the figures of their dequantized numbers; modules, dtypes and total
    # count these, and not what they are stored in
    weights: tuple[TensorStats, ...] = ()

    @property
    def by_module(self) -> list[TensorStats]:
        """Every tensor and quantized weight in the order of a tree, with those of a module together."""
        return sort_by_module((*self.tensors, *self.weights), attrgetter("name"))

    def __getitem__(self, name: str) -> TensorStats | GroupStats:
        """The figures of a quantized weight, of a tensor, or of a module.

        Raises:
            PathError: there is no tensor or module of that name.
        """
        everything: tuple[TensorStats | GroupStats, ...] = (*self.weights, *self.tensors, *self.modules)
        for one in everything:
            if one.name == name:
                return one
        raise PathError(f"no tensor and no module {name!r}")
