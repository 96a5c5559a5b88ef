"""Products of matrices and vectors on the calling thread alone, so that several run side by side.

A BLAS of many threads lets them wait for one another in loops. Beside threads of our own, or on a machine that does
other work, each call then takes ten to thirty times as long (docs/decisions/0023-products.md).
"""

from __future__ import annotations

from typing import Any

_ALONE = 1 << 18  # multiplications that OpenBLAS does on one thread (interface/gemm.c)
_FLAT = 32  # depth up to which tiles are a few rows of many columns, and columns up to which they are many rows
TALL = 32  # rows of which tiles of many columns have all, or half
_SHORT = 8192  # elements of a dot product that OpenBLAS does on one thread (kernel/x86_64/ddot.c)


def dot(x: Any, y: Any) -> float:
    """The sum of the products of two flat arrays; of complex numbers its real part, with the first conjugated."""
    import numpy

    if x.dtype.kind == "c":
        x, y = x.view(x.real.dtype), y.view(y.real.dtype)
    full = len(x) - len(x) % _SHORT
    total = float(x[full:].dot(y[full:]))
    if full:
        total += float(numpy.matmul(x[:full].reshape(-1, 1, _SHORT), y[:full].reshape(-1, _SHORT, 1)).sum(dtype="f8"))
    return total


def multiply(left: Any, right: Any) -> Any:
    """The product of two matrices, in tiles small enough that BLAS does not share them out among threads."""
    return _multiply(left, right, _tile(len(left), *right.shape))


def multiply_rows(left: Any, right: Any, start: int, stop: int) -> Any:
    """Some rows of the product: the same to the bit whichever rows are asked for, as tiles begin where they always do.

    BLAS adds up in another order at the edges of what it is given.
    """
    tile = _tile(len(left), *right.shape)
    first = start - start % tile[0]
    last = min(len(left), stop + -stop % tile[0])
    return _multiply(left[first:last], right, tile)[start - first : stop - first]


def _multiply(left: Any, right: Any, tile: tuple[int, int, int]) -> Any:
    import numpy

    (rows, depth), columns = left.shape, right.shape[1]
    high, deep, wide = tile
    out = numpy.empty((rows, columns), numpy.result_type(left, right))
    full = rows - rows % high
    for start in range(0, columns, wide):
        here = slice(start, start + wide)
        tiles = _stack(out[:full, here], high)  # a stack, multiplied in one call
        for first in range(0, max(depth, 1), deep):  # of no depth it is 0
            some, other = left[:, first : first + deep], right[first : first + deep, here]
            stack = _stack(some[:full], high)
            if first == 0:
                numpy.matmul(stack, other, out=tiles)
                numpy.matmul(some[full:], other, out=out[full:, here])
            else:
                tiles += stack @ other
                out[full:, here] += some[full:] @ other
    return out


def _stack(rows: Any, high: int) -> Any:
    return rows.reshape(len(rows) // high, high, rows.shape[1])


def _tile(rows: int, depth: int, columns: int) -> tuple[int, int, int]:
    """Rows, depth and columns of a tile."""
    high = max(1, min(rows, TALL // 2 if depth <= _FLAT else TALL if columns > _FLAT else 2 * TALL))
    deep = max(1, min(depth, max(128, _ALONE // (high * max(1, columns)))))
    return high, deep, max(1, _ALONE // (high * deep))
