"""The change that a low-rank adapter makes to one tensor, in blocks of rows.

    W as a matrix ──rows──▶ W + Σ scale · left[rows] · right ──▶ rounded once     left: rows × r, right: r × columns
    DoRA (Liu et al., arXiv:2402.09353): m / ‖W + delta‖ · (W + delta), the norm along the inputs of each output

A convolution is a matrix of out × (in · height · width). Weights of experts are one matrix below the other, each with
its own factors. Where a weight is stored as in × out, as in GPT-2 and in embeddings, the factors are transposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from statedict.dtypes import DType
from statedict.errors import CombineError
from statedict.ops.alter.tensors import round_to
from statedict.ops.combine.elements import Once, work_dtype
from statedict.ops.products import TALL, multiply, multiply_rows
from statedict.tensor.assembled import map_rows, read_rows
from statedict.tensor.lazy import LazyTensor

_PIECE = 1 << 17  # elements that stay in the processor's cache
_HELD = 8  # factors of so many modules are kept in memory, those that were used last


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """The factors of one module.

    Attributes:
        down, up: r × in and out × r, of any number of dimensions; of experts, those of all together.
        scale: the factor of their product.
        weight: another one, that of the adapter.
        gains: r × 1, what the rows of `down` are multiplied by.
        times: another pair of down and up, whose product the product is multiplied by, number by number.
        turned: whether the weight is stored as in × out.
        experts: how many matrices the weight has, one below the other.
        mid: r × r × height × width, between them.
    """

    down: LazyTensor
    up: LazyTensor | None
    scale: float
    turned: bool = False
    experts: int = 1
    mid: LazyTensor | None = None
    weight: float = 1.0
    gains: LazyTensor | None = None
    times: tuple[LazyTensor, LazyTensor] | None = None

    @property
    def factor(self) -> float:
        """What the product is multiplied by."""
        return self.scale * self.weight

    @property
    def rank(self) -> int:
        """The rank; that of all experts together."""
        return min(self.down.shape[0] ** 2, *self.shape) if self.times else self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product of one expert."""
        inputs = math.prod(self.down.shape[1:])
        if self.mid is not None:
            inputs *= math.prod(self.mid.shape[2:])
        out = 1 if self.up is None else self.up.shape[0]
        return (inputs, out) if self.turned else (out, inputs)

    def make(self, work: Any) -> tuple[Any, Any]:
        """The left and the right factor as arrays: experts × rows × r and experts × r × columns."""
        import numpy

        down = _read(self.down, work)
        rank = down.shape[0] // self.experts
        if self.mid is not None:
            down = numpy.einsum("rshw,si->rihw", _read(self.mid, work), down.reshape(len(down), -1))
        up = numpy.ones((1, rank), work) if self.up is None else _read(self.up, work)
        if self.gains is not None:
            down = down * _read(self.gains, work)
        if self.times is not None:  # (A·B) ∘ (C·D) has a column for each pair of columns of A and C
            more, other = (_read(one, work) for one in self.times)
            down, more = down.reshape(rank, -1), more.reshape(rank, -1)
            if rank**2 <= self.rank:
                down = (down[:, None] * more[None]).reshape(rank * rank, -1)
                up = (up[:, :, None] * other[:, None]).reshape(len(up), -1)
            else:  # more than the matrix has; in float64, as errors of these sums are not seen in the factors
                up, down, other, more = (one.astype("f8") for one in (up, down, other, more))
                whole = (multiply(up, down) * multiply(other, more)).astype(work)
                high, wide = whole.shape
                up, down = (numpy.eye(high, dtype=work), whole) if high < wide else (whole, numpy.eye(wide, dtype=work))
            rank = len(down)
        right = down.reshape(self.experts, rank, -1)
        left = up.reshape(up.shape[0], rank, self.experts).transpose(2, 0, 1)
        if self.turned:
            left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
        return numpy.ascontiguousarray(left), numpy.ascontiguousarray(right)


def _read(tensor: LazyTensor, work: Any) -> Any:
    return tensor.contiguous().numpy().astype(work)


@lru_cache(_HELD)
def _load(factors: Factors, work: Any) -> tuple[Any, Any]:
    return factors.make(work)


@dataclass(frozen=True, eq=False, slots=True)
class Low:
    """A tensor with low-rank changes.

    Attributes:
        base: the tensor before.
        factors: what is added to it.
        magnitude: the norms of the outputs afterwards, for DoRA.
    """

    base: LazyTensor
    factors: tuple[Factors, ...]
    magnitude: LazyTensor | None = None

    @property
    def rows(self) -> int:
        """Rows of one expert's matrix."""
        return self.factors[0].shape[0]

    @property
    def matrix(self) -> LazyTensor:
        """The tensor before, as a matrix."""
        experts = self.factors[0].experts
        return self.base.contiguous().replace(shape=(experts * self.rows, self.factors[0].shape[1]))

    def delta(self, work: Any, start: int, stop: int, sizes: bool = False) -> Any:
        """The rows of what is added; with `sizes`, of the sum of the sizes of what is added up in it."""
        import numpy

        total: Any = None
        for one in self.factors:
            left, right = _load(one, numpy.dtype(work))
            scale = one.factor
            if sizes:
                left, right, scale = abs(left), abs(right), abs(scale)
            pieces = []
            for expert in range(start // self.rows, -(-stop // self.rows)):
                first = expert * self.rows
                ends = max(start - first, 0), min(stop - first, self.rows)
                pieces.append(multiply_rows(left[expert], right[expert], *ends))
            part = pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)
            if scale != 1:
                part *= part.dtype.type(scale)
            total = part if total is None else numpy.add(total, part, out=total)
        return total

    def norm(self) -> float:
        """The Frobenius norm of what is added, from the factors alone."""
        import numpy

        parts = [_load(one, numpy.dtype("f8")) for one in self.factors]
        left = numpy.concatenate([one.factor * pair[0] for one, pair in zip(self.factors, parts, strict=True)], 2)
        right = numpy.concatenate([pair[1] for pair in parts], 1)
        grams = left.transpose(0, 2, 1) @ left, right @ right.transpose(0, 2, 1)
        return math.sqrt(max(float((grams[0] * grams[1]).sum()), 0.0))

    def blocks(self, *others: LazyTensor) -> Iterator[tuple[int, list[Any]]]:
        """The number of the first row, and arrays of the rows of the tensor before and of others; piece by piece."""
        start = 0
        for values in read_rows([self.matrix, *(one.contiguous().replace(shape=self.matrix.shape) for one in others)]):
            yield start, values
            start += len(values[0])


def add(low: Low, kind: DType) -> LazyTensor:
    """The tensor afterwards, of a dtype: computed in float32 or wider when it is read, rounded once."""
    matrix = low.matrix
    work = work_dtype([matrix]).numpy
    norms = Once(partial(column_norms, low, work)) if low.magnitude is not None and low.factors[0].turned else None
    result = map_rows([matrix], kind, partial(_add, low, work, kind, norms), numbered=True)
    return result.replace(shape=low.base.shape)


def _add(low: Low, work: Any, kind: DType, norms: Once[Any] | None, start: int, values: Any) -> Any:
    import numpy

    out = numpy.empty(values.shape, kind.numpy)
    step = max(1, _PIECE // max(values.shape[1], 1))
    step += -step % TALL
    edges = [*range(-(start % step), len(values), step), len(values)]  # pieces begin where tiles of products do
    with numpy.errstate(all="ignore"):
        for first, last in pairwise([0, *edges[1:]]):
            some = values[first:last]
            total = low.delta(work, start + first, start + first + len(some))
            total += some.astype(work)
            if low.magnitude is not None:
                total *= factor(low, total, start + first, norms)
            out[first:last] = round_to(kind, total)
    return out


def factor(low: Low, rows: Any, start: int, norms: Once[Any] | None) -> Any:
    """What DoRA multiplies rows of W + delta by."""
    import numpy

    assert low.magnitude is not None
    magnitude = _magnitude(low.magnitude).astype(rows.dtype)
    if norms is not None:
        return magnitude / norms().astype(rows.dtype)
    return (magnitude[start : start + len(rows)] / numpy.sqrt(numpy.einsum("ij,ij->i", rows, rows)))[:, None]


@lru_cache(_HELD)
def _magnitude(tensor: LazyTensor) -> Any:
    return tensor.contiguous().numpy().reshape(-1)


def column_norms(low: Low, work: Any) -> Any:
    """The norms of the columns of W + delta."""
    import numpy

    total: Any = 0.0
    for start, (values,) in low.blocks():
        rows = values.astype(work) + low.delta(work, start, start + len(values))
        total = total + numpy.einsum("ij,ij->j", rows, rows, dtype="f8")
    return numpy.sqrt(total)


def check_shape(where: str, shape: Sequence[int], factors: Factors) -> None:
    """Check that a product has the shape of the weight.

    Raises:
        CombineError: it has not.
    """
    rows, columns = factors.shape
    whole = (shape[0], math.prod(shape[1:])) if factors.experts == 1 and len(shape) > 1 else tuple(shape[-2:])
    ranks = [
        factors.down.shape[0],
        factors.down.shape[0] if factors.up is None else factors.up.numel() // factors.up.shape[0],
    ]
    if (
        ranks[0] != ranks[1]
        or ranks[0] % factors.experts
        or (rows, columns) != (whole if len(shape) > 1 else (1, *shape))
    ):
        made = " × ".join(str(tuple(one.shape)) for one in (factors.up, factors.mid, factors.down) if one is not None)
        raise CombineError(f"{where}: has the shape {tuple(shape)}, which {made} of the adapter does not fit")
