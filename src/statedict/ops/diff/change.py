"""The change between two tensors as a matrix: D = B - A, read in blocks, and how much of it rounding can make.

The first dimension is the rows; all others together are the columns, so a convolution is (out, in · height · width).
D is in float64. Numbers that are not finite are left out of it, as zeros.

A number that was rounded to p bits behind the leading one is off by up to half of u = 2^(exponent - p), on average
u²/12 in its square. Both sides may have been rounded, and the size of B's numbers stands for both. Where every number
of a wide dtype would fit a narrower one, as in float32 files of bfloat16 weights, p is that of the narrower one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from statedict.dtypes import DType
from statedict.io.parallel import parallel
from statedict.io.pipeline import PIECE
from statedict.io.progress import Meter
from statedict.ops.diff.compare import BLOCK, Run
from statedict.ops.diff.measure import CHUNK, convert, working_dtype
from statedict.tensor.lazy import LazyTensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ELEMENTS = 1 << 20  # of a block: 8 MB in float64
HELD = 12 << 20  # elements that are kept in float32 rather than read column by column
_FAR = 4  # blocks that are fetched at a time; what is near is read in between, for matrix products take all cores
_WIDTHS = (7, 10, 23)  # bits behind the leading one of bfloat16, float16, float32
_EXPONENT = 0x7FF0_0000_0000_0000
_WORDS = {"float64": "u8", "float32": "u4"}


@dataclass(frozen=True, slots=True)
class _Part:
    """What a block has to say besides its numbers: squares along rows and columns, of powers of two and of D."""

    rows: slice
    columns: slice
    powers: tuple[Any, Any]
    squares: tuple[Any, Any]
    energy: float
    nonfinite: int
    bits: tuple[int, int]


class Change:
    """D of a pair of tensors of one shape, floating or complex, with two dimensions or more.

    D is divided by `scale`, a power of two, so that no square leaves float64. What follows is of the scaled D, and
    known once all blocks were read.

    Attributes:
        rows: how many there are.
        columns: likewise.
        work: numpy dtype of D: float64 or complex128.
        energy: the sum of the squares of D.
        noise: how much of it rounding is expected to make.
        edge: how large the first singular value of such rounding is: the largest norm of a row and that of a column of
            its deviations, summed.
        own_edge: the same of D itself.
        nonfinite: how many elements were left out.
    """

    def __init__(self, one: LazyTensor, other: LazyTensor, largest: float, counter: Meter) -> None:
        import numpy

        self.rows, self.columns = one.shape[0], math.prod(one.shape[1:])
        self._pair = [_flatten(tensor, self.rows, self.columns) for tensor in (one, other)]
        self._far = any(tensor.storage.source.remote for tensor in (one, other))
        self._kind = working_dtype((one.dtype, other.dtype))
        self.work = numpy.dtype(numpy.complex128 if self._kind.kind == "c" else numpy.float64)
        self._beyond = not math.isfinite(largest)  # a difference beyond float64, or not known
        self.scale = 2.0 ** (1020 if self._beyond else math.frexp(largest)[1])
        self.energy = self.noise = self.edge = self.own_edge = 0.0
        self.nonfinite = 0
        self._counter, self._size = counter, one.nbytes + other.nbytes
        self._powers = (numpy.zeros(self.rows), numpy.zeros(self.columns))
        self._squares = (numpy.zeros(self.rows), numpy.zeros(self.columns))
        self._tiny = max(float(_info(tensor.dtype).smallest_normal) for tensor in self._pair)
        self._bits, self._known = [0, 0], False

    def blocks(self) -> Iterator[Any]:
        """D from its first row to the last one, a few rows at a time."""
        step = max(1, ELEMENTS // self.columns)
        runs = [Run(tensor) for tensor in self._pair]

        def read(first: int) -> tuple[Any, _Part | None]:
            here = slice(first, min(first + step, self.rows))
            return self._read(runs, first * self.columns, here, slice(0, self.columns))

        yield from self._all(read, range(0, self.rows, step))

    def panels(self) -> Iterator[Any]:
        """The transpose of D from its first row to the last one, a few rows, which are columns of D, at a time."""
        import numpy

        step = max(1, ELEMENTS // self.rows)
        starts = range(0, self.columns, step)
        if self.rows * self.columns <= HELD and self.columns <= ELEMENTS:
            kind = numpy.complex64 if self.work.kind == "c" else numpy.float32
            held, at = numpy.empty((self.rows, self.columns), kind), 0
            for block in self.blocks():
                held[at : at + len(block)] = block
                at += len(block)
            for first in starts:
                yield held[:, first : first + step].T.astype(self.work)
            return

        def read(first: int) -> tuple[Any, _Part | None]:
            here = slice(first, min(first + step, self.columns))
            runs = [Run(tensor[:, here]) for tensor in self._pair]
            return self._read(runs, 0, slice(0, self.rows), here)

        for panel in self._all(read, starts):
            yield panel.T

    def _all(self, read: Any, starts: range) -> Iterator[Any]:
        for block, part in parallel(read, starts, None, _FAR if self._far else 1, _FAR):
            if part is not None:
                for sums, more in ((self._powers, part.powers), (self._squares, part.squares)):
                    sums[0][part.rows] += more[0]
                    sums[1][part.columns] += more[1]
                self.energy += part.energy
                self.nonfinite += part.nonfinite
                self._bits = [old | new for old, new in zip(self._bits, part.bits, strict=True)]
            self._counter.advance(self._size * block.size // (self.rows * self.columns))
            yield block
        if not self._known:
            self._known = True
            kinds = [tensor.dtype for tensor in self._pair]
            variance = sum(4.0 ** -_precision(kind, bits) for kind, bits in zip(kinds, self._bits, strict=True)) / 12
            variance *= 2 if self.work.kind == "c" else 1
            self.noise = float(self._powers[0].sum()) * variance
            self.edge = math.sqrt(variance) * sum(math.sqrt(sums.max()) for sums in self._powers)
            self.own_edge = sum(math.sqrt(sums.max()) for sums in self._squares)

    def _read(self, runs: list[Run], first: int, rows: slice, columns: slice) -> tuple[Any, _Part | None]:
        """A block of D from an element of two runs, and, of the first time, what else there is to know."""
        import numpy

        shape = (rows.stop - rows.start, columns.stop - columns.start)
        block = numpy.empty(shape, self.work)
        powers = None if self._known else numpy.empty(shape)
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
                    difference = self._subtracted(x, y, flat[here])
                    found = float(numpy.vdot(difference, difference).real)
                    finite = None
                    if not math.isfinite(found):
                        finite = numpy.isfinite(difference)
                        difference[~finite] = 0
                        found = float(numpy.vdot(difference, difference).real)
                    if powers is not None:
                        energy += found
                        nonfinite += 0 if finite is None else int((~finite).sum())
                        _powers(y, powers.reshape(-1)[here], self._tiny, finite)
            if powers is None:
                return block, None
            powers /= self.scale
            sums = [
                (numpy.einsum("ij,ij->i", x, x.conj()).real, numpy.einsum("ij,ij->j", x, x.conj()).real)
                for x in (powers, block)
            ]
        return block, _Part(rows, columns, sums[0], sums[1], energy, nonfinite, (bits[0], bits[1]))

    def _subtracted(self, x: Any, y: Any, out: Any) -> Any:
        import numpy

        if self._beyond:
            x, y = x / 16, y / 16
        numpy.subtract(y, x, out=out, dtype=out.dtype)
        out *= (16 if self._beyond else 1) / self.scale
        return out


def _powers(values: Any, out: Any, tiny: float, finite: Any) -> None:
    """The powers of two at or below some numbers, and no less than the smallest normal one; 0 of what is not finite."""
    import numpy

    numpy.copyto(out, numpy.abs(values) if values.dtype.kind == "c" else values)
    out.view(numpy.uint64).__iand__(numpy.uint64(_EXPONENT))
    numpy.maximum(out, tiny, out=out)
    if finite is not None:
        out[~finite] = 0


def _flatten(tensor: LazyTensor, rows: int, columns: int) -> LazyTensor:
    whole = tensor.contiguous()
    return whole.replace(shape=(rows, columns))


def _precision(kind: DType, bits: int) -> int:
    """Bits behind the leading one that the numbers of a tensor have, of whose bits `bits` are set somewhere."""
    own = int(_info(kind).nmant)
    if not bits or own not in (23, 52):
        return own
    used = own - ((bits & -bits).bit_length() - 1)
    return used if used in _WIDTHS and used < own else own


def _info(kind: DType) -> Any:
    import numpy

    component = kind.component
    if component.name in ("float16", "float32", "float64"):
        return numpy.finfo(component.name)
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(component.numpy)
