"""The change between two tensors as a matrix, D = B - A: how much of it rounding can make, and its singular values.

The first dimension is the rows; all others together are the columns, so a convolution is (out, in · height · width).
D is in float64. Numbers that are not finite are left out of it, as zeros.

A number that was rounded to p bits behind the leading one is off by up to half of u = 2^(exponent - p), on average
u²/12 in its square. Both sides may have been rounded, and the size of B's numbers stands for both. Where every number
of a wide dtype would fit a narrower one, as in float32 files of bfloat16 weights, p is that of the narrower one.

Its singular values are exact where that is cheap; of larger matrices only the largest are found. With P as the blocks
of D, or of its transpose where that is taller, DᴴD is the sum of PᴴP:

| method | of | memory | what is found |
|---|---|---|---|
| svd | small matrices | D | all, to the last digits |
| gram | up to 2048 on the shorter side | DᴴD | all, down to 1e-8 of the largest: its eigenvalues are their squares |
| randomized | larger ones | a few columns | the largest, in two passes |

Randomized: DᴴD times random columns is made orthonormal, Q; then W = DᴴD Q, and W (QᴴW)⁻¹ Wᴴ, which is DᴴD but for
what lies beside Q, gives the squares. Halko, Martinsson, Tropp: Finding structure with randomness, SIAM Review 53
(2011), algorithms 4.3 and 5.5. The columns are 16 more than are asked for, and always the same ones. No square is
overestimated, and the sum of those that are left out is known exactly, for that of all is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy

from statedict.dtypes import DType
from statedict.io.parallel import parallel
from statedict.io.pipeline import PIECE, Meter
from statedict.ops.diff.measure import CHUNK, convert, working_dtype
from statedict.ops.jobs import BLOCK, Elements
from statedict.ops.stats.figures import float_info
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

DIRECTIONS = 64
SHORT = 2048
_SVD = (512, 1 << 20)  # the shorter side, and all elements
_MORE = 16
_MOST = 48 << 20  # bytes of random columns
_EPS = 2.0**-52
_SEED = 2011


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
    known once all blocks were read.
    """

    def __init__(self, one: LazyTensor, other: LazyTensor, largest: float, counter: Meter) -> None:
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
        self._bits, self._known = [0, 0], False

    def blocks(self) -> Iterator[Any]:
        """D from its first row to the last one, a few rows at a time."""
        step = max(1, ELEMENTS // self.columns)
        runs = [Elements(tensor) for tensor in self._pair]

        def read(first: int) -> tuple[Any, _Part | None]:
            here = slice(first, min(first + step, self.rows))
            return self._read(runs, first * self.columns, here, slice(0, self.columns))

        yield from self._all(read, range(0, self.rows, step))

    def panels(self) -> Iterator[Any]:
        """The transpose of D from its first row to the last one, a few rows at a time."""
        step = max(1, ELEMENTS // self.rows)
        starts = range(0, self.columns, step)
        if self.rows * self.columns <= HELD and self.columns <= ELEMENTS:
            kind = numpy.complex64 if self.work.kind == "c" else numpy.float32
            whole, at = numpy.empty((self.rows, self.columns), kind), 0
            for block in self.blocks():
                whole[at : at + len(block)] = block
                at += len(block)
            for first in starts:
                yield whole[:, first : first + step].T.astype(self.work)
            return

        def read(first: int) -> tuple[Any, _Part | None]:
            here = slice(first, min(first + step, self.columns))
            runs = [Elements(tensor[:, here]) for tensor in self._pair]
            return self._read(runs, 0, slice(0, self.rows), here)

        for panel in self._all(read, starts):
            yield panel.T

    def _all(self, read: Any, starts: range) -> Iterator[Any]:
        for block, part in parallel(read, starts, None, _FAR if self._far else 1, _FAR):
            if part is not None:
                for sums, more in zip(self._sums, part.sums, strict=True):
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
            powers, squares = self._sums
            self.noise = float(powers[0].sum()) * variance
            self.edge = math.sqrt(variance) * sum(math.sqrt(sums.max()) for sums in powers)
            self.own_edge = sum(math.sqrt(sums.max()) for sums in squares)

    def _read(self, runs: list[Elements], first: int, rows: slice, columns: slice) -> tuple[Any, _Part | None]:
        """A block of D from an element of both sides; its sums too, the first time."""
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
                    difference = self._subtract(x, y, flat[here])
                    squared = float(numpy.vdot(difference, difference).real)
                    finite = None
                    if not math.isfinite(squared):
                        finite = numpy.isfinite(difference)
                        difference[~finite] = 0
                        squared = float(numpy.vdot(difference, difference).real)
                    if powers is not None:
                        energy += squared
                        nonfinite += 0 if finite is None else int((~finite).sum())
                        _powers(y, powers.reshape(-1)[here], self._tiny, finite)
            if powers is None:
                return block, None
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


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, and how they were found."""

    squares: Any  # of the singular values, the largest first
    method: str  # `svd`, `gram` or `randomized, 64 directions`
    whole: bool  # whether these are all
    floor: float  # squares up to this one may be rounding errors of the arithmetic


def spectrum(change: Change, directions: int = DIRECTIONS) -> Spectrum:
    """The singular values of a change, only `directions` of them where all would take too long.

    All of its blocks are read, once or twice.
    """
    short, elements = min(change.rows, change.columns), change.rows * change.columns
    wide = change.rows < change.columns
    if short <= _SVD[0] and elements <= _SVD[1]:
        values = numpy.linalg.svd(numpy.concatenate(list(change.blocks())), compute_uv=False)
        precision = (max(change.rows, change.columns) * _EPS) ** 2
        return _to_spectrum(values**2, "svd", True, precision)
    if short * change.work.itemsize <= SHORT * 8 or directions + _MORE >= short:
        gram = numpy.zeros((short, short), change.work)
        for block in change.panels() if wide else change.blocks():
            gram += block.T.conj() @ block
        return _to_spectrum(numpy.linalg.eigvalsh(gram)[::-1], "gram", True, short * _EPS)
    return _randomized_svd(change, directions)


def _randomized_svd(change: Change, directions: int) -> Spectrum:
    count = directions + _MORE
    turned = change.columns > change.rows and change.columns * count * change.work.itemsize > _MOST
    columns = numpy.random.default_rng(_SEED).standard_normal((change.rows if turned else change.columns, count))
    basis = numpy.linalg.qr(_times(change, columns.astype(change.work), turned))[0]
    image = _times(change, basis, turned)
    small = basis.T.conj() @ image
    weights, vectors = numpy.linalg.eigh((small + small.T.conj()) / 2)
    positive = weights > max(0.0, weights[-1]) * count * _EPS
    half = (image @ vectors[:, positive]) / numpy.sqrt(weights[positive])
    squares = numpy.linalg.svd(half, compute_uv=False) ** 2
    method = f"randomized, {directions} directions"
    return _to_spectrum(squares[:directions], method, False, math.sqrt(count) * len(basis) * _EPS)


def find_directions(change: Change, rank: int | None, energy: float | None) -> tuple[Any, Any]:
    """The largest singular values of a change of real numbers, squared, and their right singular vectors as columns.

    Args:
        change: the difference of two tensors, whose blocks are read several times.
        rank: how many; fewer if the change has fewer.
        energy: instead, as many as have this share of the sum of all squares.

    Returns:
        Squares of D / `scale`, the largest first; columns × as many.
    """
    short = min(change.rows, change.columns)
    wanted = min(short, DIRECTIONS if rank is None else rank)
    while True:
        squares, vectors = _find_vectors(change, wanted)
        kept = min(rank or short, int((squares > squares[:1].sum() * _EPS).sum()))
        if energy is not None:
            reached = numpy.cumsum(squares) >= energy * change.energy * (1 - 1e-9)
            if not reached.any() and len(squares) < short:
                wanted = min(short, 2 * wanted)
                continue
            kept = min(kept, int(reached.argmax()) + 1) if reached.any() else kept
        return squares[:kept], vectors[:, :kept]


def _find_vectors(change: Change, count: int) -> tuple[Any, Any]:
    """Squared singular values and right singular vectors: all of small matrices, else the first ones."""
    short, elements = min(change.rows, change.columns), change.rows * change.columns
    if short <= _SVD[0] and elements <= _SVD[1]:
        _, values, rows = numpy.linalg.svd(numpy.concatenate(list(change.blocks())), full_matrices=False)
        return values**2, rows.T
    if 4 * (count + _MORE) >= short:  # all are found at once where that costs no more
        wide = change.rows < change.columns
        gram = numpy.zeros((short, short), change.work)
        for block in change.panels() if wide else change.blocks():
            gram += block.T @ block
        squares, vectors = numpy.linalg.eigh(gram)
        squares, vectors = numpy.maximum(squares[::-1], 0.0), vectors[:, ::-1]
        if not wide:
            return squares, vectors
        kept = min(len(squares), max(count, 1) + _MORE)
        vectors = numpy.concatenate([panel @ vectors[:, :kept] for panel in change.panels()])
        lengths = numpy.linalg.norm(vectors, axis=0)
        return squares[:kept], vectors / numpy.where(lengths, lengths, 1.0)
    columns = numpy.random.default_rng(_SEED).standard_normal((change.columns, count + _MORE)).astype(change.work)
    basis = numpy.linalg.qr(_times(change, columns, False))[0]
    image = _times(change, basis, False)
    small = basis.T @ image
    weights, axes = numpy.linalg.eigh((small + small.T) / 2)
    positive = weights > max(0.0, weights[-1]) * len(weights) * _EPS
    half = (image @ axes[:, positive]) / numpy.sqrt(weights[positive])
    vectors, values, _ = numpy.linalg.svd(half, full_matrices=False)
    return values[:count] ** 2, vectors[:, :count]


def _times(change: Change, columns: Any, turned: bool) -> Any:
    """DᴴD, or D's transpose in the place of D, times some columns."""
    total = numpy.zeros_like(columns)
    for block in change.panels() if turned else change.blocks():
        total += block.T.conj() @ (block @ columns)
    return total


def _to_spectrum(squares: Any, method: str, whole: bool, precision: float) -> Spectrum:
    squares = numpy.maximum(squares, 0.0)
    largest = float(squares[0]) if len(squares) else 0.0
    return Spectrum(squares, method, whole, largest * precision)
