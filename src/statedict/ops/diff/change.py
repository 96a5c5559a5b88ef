"""The change between two tensors as a matrix, D = B - A, and how much of it rounding can make.

The first dimension is the rows; all others together are the columns, so a convolution is (out, in · height · width).
D is in float64. Numbers that are not finite are left out of it, as zeros.

A number that was rounded to p bits behind the leading one is off by up to half of u = 2^(exponent - p), on average
u²/12 in its square. Both sides may have been rounded, and the size of B's numbers stands for both. Where every number
of a wide dtype would fit a narrower one, as in float32 files of bfloat16 weights, p is that of the narrower one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from statedict.dtypes import DType
from statedict.io.parallel import WORKERS, parallel
from statedict.io.pipeline import PIECE, Meter
from statedict.ops.diff.measure import CHUNK, convert, working_dtype
from statedict.ops.jobs import BLOCK, Elements
from statedict.ops.products import dot
from statedict.ops.stats.figures import float_info
from statedict.tensor.lazy import LazyTensor

ELEMENTS = 1 << 20  # of a block: 8 MB in float64
HELD = 12 << 20  # elements that are kept in float32 rather than read column by column
_FAR = 4  # blocks that are fetched at a time
_WIDTHS = (7, 10, 23)  # bits behind the leading one of bfloat16, float16, float32
_EXPONENT = 0x7FF0_0000_0000_0000
_WORDS = {"float64": "u8", "float32": "u4"}


@dataclass(frozen=True, slots=True)
class _Part:
    """The sums of a block, from its first read: squares along rows and columns, of powers of two and of D."""

    rows: slice
    columns: slice
    sums: list[tuple[Any, Any]]
    energy: float
    nonfinite: int
    bits: list[int]


class Change:
    """D of a pair of tensors of one shape, floating or complex, with two dimensions or more.

    D is divided by `scale`, a power of two, so that no square leaves float64. What follows is of the scaled D, and
    known once all blocks were read; `noise`, `edge` and `own_edge` only with `rounding`.
    """

    def __init__(
        self, one: LazyTensor, other: LazyTensor, largest: float, counter: Meter, rounding: bool = True
    ) -> None:
        self.rows, self.columns = one.shape[0], math.prod(one.shape[1:])
        self._pair = [t.contiguous().replace(shape=(self.rows, self.columns)) for t in (one, other)]
        self._far = any(tensor.storage.source.remote for tensor in (one, other))
        self._kind = working_dtype((one.dtype, other.dtype))
        self.work = numpy.dtype(numpy.complex128 if self._kind.kind == "c" else numpy.float64)  # of D
        self._beyond = not math.isfinite(largest)  # a difference beyond float64, or not known
        self.scale = 2.0 ** (1020 if self._beyond else math.frexp(largest)[1])
        self.energy = 0.0  # the sum of the squares of D
        self.noise = 0.0  # how much of it rounding is expected to make
        # how large the first singular value of such rounding is: the largest norm of a row of its deviations, and that
        # of a column, summed; and the same of D itself
        self.edge = self.own_edge = 0.0
        self.nonfinite = 0  # elements that are excluded
        self._counter, self._size = counter, one.nbytes + other.nbytes
        self._sums = [(numpy.zeros(self.rows), numpy.zeros(self.columns)) for _ in range(2)]
        self._tiny = max(float(float_info(tensor.dtype).smallest_normal) for tensor in self._pair)
        self._bits, self._known, self._rounding = [0, 0], False, rounding

    def each(self, work: Callable[[Any], Any], turned: bool = False) -> Iterator[Any]:
        """What a function makes of D, a few rows at a time from the first to the last; called in several threads.

        Args:
            work: gets an array of rows, which it may keep.
            turned: whether the rows are those of D's transpose.
        """
        across = self.rows if turned else self.columns
        step = max(1, ELEMENTS // across)
        starts = range(0, self.columns if turned else self.rows, step)
        if turned and self.rows * self.columns <= HELD and self.columns <= ELEMENTS:
            kind = numpy.complex64 if self.work.kind == "c" else numpy.float32
            whole = numpy.concatenate([*self.each(lambda block: block.astype(kind))])
            cut = lambda first: work(whole[:, first : first + step].T.astype(self.work))  # noqa: E731
            yield from parallel(cut, starts, ahead=WORKERS + 1)
            return
        runs = [Elements(tensor) for tensor in self._pair]

        def read(first: int) -> tuple[Any, int, _Part | None]:
            if not turned:
                here = slice(first, min(first + step, self.rows))
                block, part = self._read(runs, first * self.columns, here, slice(0, self.columns))
                return work(block), block.size, part
            here = slice(first, min(first + step, self.columns))
            some = [Elements(tensor[:, here]) for tensor in self._pair]
            block, part = self._read(some, 0, slice(0, self.rows), here)
            return work(block.T), block.size, part

        workers, ahead = (_FAR, _FAR) if self._far else (None, WORKERS + 1)
        for made, size, part in parallel(read, starts, None, workers, ahead):
            self._add(part)
            self._counter.advance(self._size * size // (self.rows * self.columns))
            yield made
        if not self._known:
            self._settle()

    def _add(self, part: _Part | None) -> None:
        if part is not None:
            for sums, more in zip(self._sums, part.sums, strict=False):
                sums[0][part.rows] += more[0]
                sums[1][part.columns] += more[1]
            self.energy += part.energy
            self.nonfinite += part.nonfinite
            self._bits = [old | new for old, new in zip(self._bits, part.bits, strict=True)]

    def _settle(self) -> None:
        """Compute what depends on all blocks, when they were read."""
        self._known = True
        if not self._rounding:
            return
        kinds = [tensor.dtype for tensor in self._pair]
        variance = sum(4.0 ** -_precision(kind, bits) for kind, bits in zip(kinds, self._bits, strict=True)) / 12
        variance *= 2 if self.work.kind == "c" else 1
        powers, squares = self._sums
        self.noise = float(powers[0].sum()) * variance
        self.edge = math.sqrt(variance) * sum(math.sqrt(sums.max()) for sums in powers)
        self.own_edge = sum(math.sqrt(sums.max()) for sums in squares)

    def _read(self, runs: list[Elements], first: int, rows: slice, columns: slice) -> tuple[Any, _Part | None]:
        """A block of D from an element of both sides; its sums too, the first time."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        block = numpy.empty(shape, self.work)
        new = not self._known
        powers = numpy.empty(shape) if new and self._rounding else None
        flat, size = block.reshape(-1), block.size
        words: list[Any] = [_WORDS.get(run.kind.component.name) for run in runs]
        bits, energy, nonfinite = [0, 0], 0.0, 0
        most = (PIECE if any(run.source.remote for run in runs) else BLOCK) // max(run.item for run in runs)
        with numpy.errstate(all="ignore"):
            for at in range(0, size, most):
                count = min(most, size - at)
                raw = [run.read(first + at, count, side) for side, run in enumerate(runs)]
                if powers is not None:
                    for side, word in enumerate(words):
                        if word:
                            bits[side] |= int(numpy.bitwise_or.reduce(numpy.frombuffer(raw[side], word)))
                arrays = [numpy.frombuffer(data, run.kind.numpy) for data, run in zip(raw, runs, strict=True)]
                for start in range(0, count, CHUNK):
                    x, y = (convert(a[start : start + CHUNK], self._kind, side) for side, a in enumerate(arrays))
                    here = slice(at + start, at + start + len(x))
                    difference = self._subtract(x, y, flat[here])
                    squared = dot(difference, difference)
                    finite = None
                    if not math.isfinite(squared):
                        finite = numpy.isfinite(difference)
                        difference[~finite] = 0
                        squared = dot(difference, difference)
                    if new:
                        energy += squared
                        nonfinite += 0 if finite is None else int((~finite).sum())
                    if powers is not None:
                        _powers(y, powers.reshape(-1)[here], self._tiny, finite)
            if powers is None:
                return block, _Part(rows, columns, [], energy, nonfinite, bits) if new else None
            powers /= self.scale
            sums = [
                (numpy.einsum("ij,ij->i", x, x.conj()).real, numpy.einsum("ij,ij->j", x, x.conj()).real)
                for x in (powers, block)
            ]
        return block, _Part(rows, columns, sums, energy, nonfinite, bits)

    def _subtract(self, x: Any, y: Any, out: Any) -> Any:
        if self._beyond:
            x, y = x / 16, y / 16
        numpy.subtract(y, x, out=out, dtype=out.dtype)
        out *= (16 if self._beyond else 1) / self.scale
        return out


def _powers(values: Any, out: Any, tiny: float, finite: Any) -> None:
    """The powers of two at or below some numbers, and no less than the smallest normal one; 0 of what is not finite."""
    numpy.copyto(out, numpy.abs(values) if values.dtype.kind == "c" else values)
    out.view(numpy.uint64).__iand__(numpy.uint64(_EXPONENT))
    numpy.maximum(out, tiny, out=out)
    if finite is not None:
        out[~finite] = 0


def _precision(kind: DType, bits: int) -> int:
    """Bits behind the leading one that the numbers of a tensor use; `bits` are those that are set in any of them."""
    width = int(float_info(kind).nmant)
    if not bits or width not in (23, 52):
        return width
    used = width - ((bits & -bits).bit_length() - 1)
    return used if used in _WIDTHS and used < width else width
