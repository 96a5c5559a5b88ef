"""Singular values of a change, exactly where that is cheap and the largest of them where it is not.

With P as the blocks of D, or of its transpose where that is taller, the matrix DᴴD is the sum of PᴴP:

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

from statedict.ops.diff.change import Change

DIRECTIONS = 64
SHORT = 2048
_SVD = (512, 1 << 20)  # the shorter side, and all elements
_MORE = 16
_MOST = 48 << 20  # bytes of random columns
_EPS = 2.0**-52
_SEED = 2011


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, and how they were found.

    Attributes:
        squares: of the singular values, the largest first.
        method: `svd`, `gram` or `randomized, 64 directions`.
        whole: whether these are all.
        floor: squares up to this one may be nothing but the arithmetic's own rounding.
    """

    squares: Any
    method: str
    whole: bool
    floor: float


def spectrum(change: Change, directions: int = DIRECTIONS) -> Spectrum:
    """The singular values of a change; all of its blocks are read, once or twice.

    Args:
        change: D.
        directions: how many are wanted of a matrix that is too large for all.
    """
    import numpy

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


def passes(rows: int, columns: int) -> int:
    """How often a matrix is read."""
    return 1 if min(rows, columns) <= SHORT else 2


def _randomized_svd(change: Change, directions: int) -> Spectrum:
    import numpy

    count = directions + _MORE
    turned = change.columns > change.rows and change.columns * count * change.work.itemsize > _MOST
    columns = numpy.random.default_rng(_SEED).standard_normal((change.rows if turned else change.columns, count))
    basis = numpy.linalg.qr(_times(change, columns.astype(change.work), turned))[0]
    image = _times(change, basis, turned)
    small = basis.T.conj() @ image
    weights, vectors = numpy.linalg.eigh((small + small.T.conj()) / 2)
    kept = weights > max(0.0, weights[-1]) * count * _EPS
    half = (image @ vectors[:, kept]) / numpy.sqrt(weights[kept])
    squares = numpy.linalg.svd(half, compute_uv=False) ** 2
    method = f"randomized, {directions} directions"
    return _to_spectrum(squares[:directions], method, False, math.sqrt(count) * len(basis) * _EPS)


def _times(change: Change, columns: Any, turned: bool) -> Any:
    """DᴴD, or D's transpose in the place of D, times some columns."""
    import numpy

    total = numpy.zeros_like(columns)
    for block in change.panels() if turned else change.blocks():
        total += block.T.conj() @ (block @ columns)
    return total


def _to_spectrum(squares: Any, method: str, whole: bool, precision: float) -> Spectrum:
    import numpy

    squares = numpy.maximum(squares, 0.0)
    largest = float(squares[0]) if len(squares) else 0.0
    return Spectrum(squares, method, whole, largest * precision)
