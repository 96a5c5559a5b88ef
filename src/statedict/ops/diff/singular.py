"""The singular values of a change D, and the product of low rank that is closest to it.

They are exact where that is cheap; of larger matrices only the largest are found:

| method | of | memory | what is found |
|---|---|---|---|
| svd | small matrices | D | all, to the last digits |
| gram | up to 2048 on the shorter side | DᴴD | all, down to 1e-8 of the largest: its eigenvalues are their squares |
| randomized | larger ones | a few columns | the largest, in two passes or more |

Randomized: a pass takes columns X, at first random ones, to Y = DX and Z = DᴴY. With T such that U = YT is orthonormal,
UᴴD = (ZT)ᴴ is D's part in that space; its singular vectors are the next X. Each pass makes DᴴD once more the power
that lifts large directions above small ones. Halko, Martinsson, Tropp: Finding structure with randomness, SIAM Review
53 (2011), algorithms 4.4 and 5.1. The columns are 16 more than are asked for, and always the same ones. No square is
overestimated, and the sum of those that are left out is known exactly, for that of all is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy

from statedict.ops.diff.change import Change
from statedict.ops.products import multiply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTIONS = 64
SHORT = 2048
_SVD = (512, 1 << 20)  # the shorter side, and all elements
_MORE = 16
_MOST = 48 << 20  # bytes of random columns
_EPS = 2.0**-52
_SEED = 2011
_PASSES = 24
_GAIN = 1e-3  # of what is left: if the next passes find no more, this one was the last
_EXACT = 1e-13  # of all: if no more is left, nothing is


class Matrix(Protocol):
    """A matrix that is read in rows, as often as needed; `energy` is the sum of its squares once it was read."""

    rows: int
    columns: int
    energy: float
    work: Any

    def each(self, work: Callable[[Any], Any], turned: bool = False) -> Iterator[Any]:
        """As `Change.each`."""


class Low(NamedTuple):
    """Directions of a matrix, the largest first: left · rightᴴ is its part in them, and left is orthonormal."""

    squares: Any  # of the singular values
    left: Any  # rows × n
    right: Any  # columns × n

    def first(self, count: int) -> Low:
        """The largest ones."""
        return Low(self.squares[:count], self.left[:, :count], self.right[:, :count])


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
    short = min(change.rows, change.columns)
    if _is_small(change):
        values = numpy.linalg.svd(numpy.concatenate([*change.each(_same)]), compute_uv=False)
        precision = (max(change.rows, change.columns) * _EPS) ** 2
        return _to_spectrum(values**2, "svd", True, precision)
    if short * change.work.itemsize <= SHORT * 8 or directions + _MORE >= short:
        return _to_spectrum(numpy.linalg.eigvalsh(_gram(change))[::-1], "gram", True, short * _EPS)
    count = directions + _MORE
    passes = _passes(change, count)
    next(passes)
    squares = next(passes).squares
    floor = math.sqrt(count) * max(change.rows, change.columns) * _EPS
    return _to_spectrum(squares[:directions], f"randomized, {directions} directions", False, floor)


def find_directions(matrix: Matrix, rank: int | None, energy: float | None) -> Low:
    """The product of low rank that is closest to a matrix of real numbers, which is read several times.

    Where not all directions are computed, passes go on until the distance from the matrix is within 0.1 % of the least
    that the rank allows, as far as the last ones tell, or 3e-7 of the matrix (docs/decisions/0023-products.md).

    Args:
        matrix: such as a `Change`.
        rank: the most directions; fewer if the matrix has fewer.
        energy: instead, as many as have this share of the sum of all squares.
    """
    short = min(matrix.rows, matrix.columns)
    wanted = min(short, DIRECTIONS if rank is None else rank)
    start: Low | None = None
    while True:
        if _is_small(matrix) or 2 * (wanted + _MORE) >= short:
            found = _find_all(matrix)
        else:
            found = _converge(matrix, wanted, energy or 0.0, start)
        kept = min(rank or short, int((found.squares > found.squares[:1].sum() * _EPS).sum()))
        if energy is not None:
            reached = numpy.cumsum(found.squares) >= energy * matrix.energy * (1 - 1e-9)
            if not reached.any() and len(found.squares) < short and wanted < short:
                wanted, start = min(short, 2 * wanted), found
                continue
            kept = min(kept, int(reached.argmax()) + 1) if reached.any() else kept
        return found.first(kept)


def _same(block: Any) -> Any:
    return block


def _is_small(matrix: Matrix) -> bool:
    return min(matrix.rows, matrix.columns) <= _SVD[0] and matrix.rows * matrix.columns <= _SVD[1]


def _gram(matrix: Matrix) -> Any:
    """DᴴD, or that of the transpose where it is smaller."""
    short = min(matrix.rows, matrix.columns)
    gram = numpy.zeros((short, short), matrix.work)
    for part in matrix.each(lambda block: multiply(block.T.conj(), block), matrix.rows < matrix.columns):
        gram += part
    return gram


def _find_all(matrix: Matrix) -> Low:
    """All directions of a real matrix that is small, or of which most are wanted."""
    if _is_small(matrix):
        left, values, rows = numpy.linalg.svd(numpy.concatenate([*matrix.each(_same)]), full_matrices=False)
        return Low(values**2, left, rows.T * values)
    turned = matrix.rows < matrix.columns
    axes = numpy.linalg.eigh(_gram(matrix))[1][:, ::-1]
    images = numpy.concatenate([*matrix.each(lambda block: multiply(block, axes), turned)])
    squares = numpy.einsum("ij,ij->j", images, images)
    lengths = numpy.sqrt(squares)
    unit = images / numpy.where(lengths, lengths, 1.0)
    return Low(squares, axes, images) if turned else Low(squares, unit, axes * lengths)


def _converge(matrix: Matrix, wanted: int, share: float, start: Low | None) -> Low:
    """The first directions of a real matrix, in as many passes as it takes, unless they surely lack a share of it."""
    total = gain = 0.0
    for number, found in enumerate(_passes(matrix, wanted + _MORE, start), 1):
        last, gain = gain, float(found.squares[:wanted].sum()) - total
        total += gain
        left = max(matrix.energy - total, 0.0)
        rate = min(gain / last, 0.99) if last > 0 else 0.0  # each gain is about so much of the one before
        more = gain * max(rate / (1 - rate), 1)
        if left <= _EXACT * matrix.energy or number == _PASSES:
            break
        if number > 2 and (more <= _GAIN * left or total + 2 * more < share * matrix.energy):
            break
    return found.first(wanted)


def _passes(matrix: Matrix, count: int, start: Low | None = None) -> Iterator[Low]:
    """Directions of a matrix after each pass, better from one to the next."""
    turned = matrix.columns > matrix.rows and matrix.columns * count * matrix.work.itemsize > _MOST
    random = numpy.random.default_rng(_SEED)
    columns = numpy.zeros((matrix.rows if turned else matrix.columns, 0), matrix.work)
    if start is not None:
        columns = start.left if turned else start.right
    while True:
        lacking = count - columns.shape[1]
        fresh = random.standard_normal((len(columns), lacking))
        columns = numpy.concatenate([_normalize(columns), fresh], 1).astype(matrix.work)
        low = _project(matrix, columns, turned)
        columns = low.right
        yield low if not turned else _turn(low)


def _project(matrix: Matrix, columns: Any, turned: bool) -> Low:
    """The part of D, or of its transpose, in the space of D · columns."""
    images, total = [], numpy.zeros_like(columns)
    for image, back in matrix.each(partial(_there_and_back, columns), turned):
        images.append(image)
        total += back
    left = numpy.concatenate(images)
    change = _orthonormalize(left)
    change = change @ _orthonormalize(multiply(left, change))  # again, for what the first time left of small ones
    right = multiply(total, change)
    squares, axes = numpy.linalg.eigh(multiply(right.T.conj(), right))
    axes = axes[:, ::-1]
    return Low(numpy.maximum(squares[::-1], 0.0), multiply(left, change @ axes), multiply(right, axes))


def _there_and_back(columns: Any, block: Any) -> tuple[Any, Any]:
    image = multiply(block, columns)
    return image, multiply(block.T.conj(), image)


def _turn(low: Low) -> Low:
    """Directions of the transpose."""
    lengths = numpy.sqrt(low.squares)
    return Low(low.squares, _normalize(low.right).conj(), (low.left * lengths).conj())


def _normalize(columns: Any) -> Any:
    lengths = numpy.sqrt(numpy.einsum("ij,ij->j", columns, columns.conj()).real)
    return columns / numpy.where(lengths, lengths, 1.0)


def _orthonormalize(columns: Any) -> Any:
    """T such that columns · T is orthonormal, without directions that rounding made.

    Columns are scaled to one length first, so that small directions keep their digits (van der Sluis 1969).
    """
    lengths = numpy.sqrt(numpy.einsum("ij,ij->j", columns, columns.conj()).real)
    scaled = columns / numpy.where(lengths, lengths, 1.0)
    weights, axes = numpy.linalg.eigh(multiply(scaled.T.conj(), scaled))
    kept = weights > weights.max(initial=0.0) * len(weights) * 16 * _EPS
    return axes[:, kept] / numpy.sqrt(weights[kept]) / numpy.where(lengths, lengths, 1.0)[:, None]


def _to_spectrum(squares: Any, method: str, whole: bool, precision: float) -> Spectrum:
    squares = numpy.maximum(squares, 0.0)
    largest = float(squares[0]) if len(squares) else 0.0
    return Spectrum(squares, method, whole, largest * precision)
