"""What a fine-tune did to each matrix: the rank of the change, and whether a low-rank adapter explains it.

An adapter of rank r (LoRA: Hu et al., arXiv:2106.09685) adds a matrix of rank r, and the sum is rounded to the dtype
that is stored. So D = B - A is that matrix and noise, whose size is known from the dtype and the weights. An adapter
of rank r explains D where beside its first r directions

- there is no more energy than rounding is expected to make (twice, for A may have been rounded too, and 2⁻¹⁷ of
  the whole for an adapter that was multiplied out in bfloat16), and
- no direction stands out: a matrix of independent errors has no singular value above s(√m + √n) (Bai and Yin,
  Annals of Probability 21, 1993), and with errors of uneven size hardly one above the sum of the largest norms of a row
  and a column of their deviations (Bandeira and van Handel, Annals of Probability 44, 2016).

The smallest such r counts if the adapter has no more than a quarter of the numbers of the matrix, r(m + n) ≤ mn / 4.
Where the change is no larger than rounding, or most of it lies beside those directions, its rank cannot be told.
docs/decisions/0017-low-rank.md says why, and what that cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy

from statedict.io.pipeline import Meter
from statedict.ops.diff.change import Change
from statedict.ops.diff.singular import DIRECTIONS, SHORT, Spectrum, spectrum
from statedict.ops.jobs import run_jobs
from statedict.reports import diff as kinds
from statedict.reports.diff import FULL, LOW_RANK, ROUNDING, SMALL, LowRank, TensorDiff
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import origin

_TOP = (1, 4, 8, 16, 32, 64, 128, 256)
_OWN = 2.0**-17  # of the energy of a product that was rounded to bfloat16; what happens is a third of it
_MARGIN = 1.1  # for what the first singular value of small matrices is above the edge of large ones
_PARALLEL = 8  # matrices on their way to an executor


class _Matrix(NamedTuple):
    """A pair of matrices, and the largest difference of their elements."""

    one: LazyTensor
    other: LazyTensor
    largest: float

    @property
    def size(self) -> int:
        """Bytes that are read: twice where not all singular values are computed."""
        rows = self.one.shape[0]
        passes = 1 if min(rows, self.one.numel() // rows) <= SHORT else 2
        return (self.one.nbytes + self.other.nbytes) * passes


def find_ranks(
    tensors: Sequence[TensorDiff],
    a: Mapping[str, LazyTensor],
    b: Mapping[str, LazyTensor],
    rank: int | None = None,
    executor: Executor | None = None,
) -> list[TensorDiff]:
    """The tensors, each changed floating or complex matrix with the rank of its change.

    An adapter counts up to `rank`; by default if it has a quarter of the matrix's numbers. Without an executor it is
    one matrix at a time, for the matrix products use all cores.
    """
    ranked = list(tensors)
    matrices: dict[object, _Matrix] = {}
    numbers: dict[object, list[int]] = {}
    for number, tensor in enumerate(tensors):
        one, other = a.get(str(tensor.before)), b.get(str(tensor.after))
        if one is not None and other is not None and tensor.measures is not None and _is_matrix(tensor, one, other):
            key = origin(one), origin(other)
            matrices.setdefault(key, _Matrix(one, other, float(tensor.measures.max_abs)))
            numbers.setdefault(key, []).append(number)
    work = partial(_judge_one, rank)
    done = run_jobs(work, matrices.values(), executor, batch=0, workers=1, ahead=_PARALLEL)
    for same, (_, change) in zip(numbers.values(), done, strict=True):
        for number in same:
            ranked[number] = replace(ranked[number], change=change)
    return ranked


def _is_matrix(tensor: TensorDiff, one: LazyTensor, other: LazyTensor) -> bool:
    floating = all(t.dtype.kind in ("float", "complex") and t.dtype.name != "float4_e2m1fn_x2" for t in (one, other))
    return tensor.kind in (kinds.CHANGED, kinds.RETYPED) and floating and one.ndim >= 2 and one.numel() > 0


def _judge_one(rank: int | None, matrix: _Matrix, counter: Meter) -> LowRank:
    change = Change(*matrix, counter)
    return judge(change, spectrum(change, max(DIRECTIONS, rank or 0)), rank)


def judge(change: Change, singular: Spectrum, rank: int | None = None) -> LowRank:
    """The verdict on a change whose blocks were all read, from its singular values and the largest rank that counts."""
    m, n, total = change.rows, change.columns, change.energy
    squares = singular.squares
    left = _energy_left(singular, total)
    above = max(singular.floor, (_MARGIN * change.edge) ** 2)
    stand = int((squares > above).sum())
    bounded = not singular.whole and stand == len(squares) and left[-1] > singular.floor
    most = m * n // (4 * (m + n)) if rank is None else rank
    verdict, adapter = _verdict(change, singular, left, most)
    counts = sorted({*_TOP, *([] if rank is None else [rank])})
    return LowRank(
        rows=m,
        columns=n,
        verdict=verdict,
        adapter=adapter,
        rank=stand,
        effective_rank=_effective_rank(squares[:stand], float(left[-1]) if bounded else 0.0, min(m, n) - len(squares)),
        stable_rank=total / float(squares[0]) if total else 0.0,
        top=tuple((r, min(1.0, float(1 - left[r] / total)) if total else 0.0) for r in counts if r <= len(squares)),
        rounding=change.noise / total if total else 0.0,
        method=singular.method,
        bounded=bounded,
        nonfinite=change.nonfinite,
    )


def _energy_left(singular: Spectrum, total: float) -> Any:
    """The energy beside the first r directions, for each r from 0; summed up from the end where that is known."""
    if singular.whole:
        return numpy.append(numpy.cumsum(singular.squares[::-1])[::-1], 0.0)
    return numpy.maximum(total - numpy.append(0.0, numpy.cumsum(singular.squares)), 0.0)


def _verdict(change: Change, singular: Spectrum, left: Any, most: int) -> tuple[str, int | None]:
    if change.nonfinite:  # which no adapter explains, and no rounding
        return FULL, None
    total, squares = change.energy, singular.squares
    allowed = change.noise + _OWN * total
    if change.noise > _OWN * total:  # the edge of errors whose energy is 1
        edge = change.edge / math.sqrt(change.noise)
    else:
        edge = change.own_edge / math.sqrt(total) if total else 0.0
    following = numpy.append(squares, 0.0 if singular.whole else squares[-1])
    limits = numpy.maximum((_MARGIN * edge) ** 2 * left, max(singular.floor, (_MARGIN * change.edge) ** 2))
    fits = numpy.flatnonzero((left <= allowed) & (following <= limits))
    first = int(fits[0]) if len(fits) else None
    if first == 0 or total <= change.noise or (first is not None and left[first] >= total / 2):
        return ROUNDING, None
    if first is not None and first <= most:
        return LOW_RANK, first
    return (SMALL if most < 1 else FULL), None


def _effective_rank(squares: Any, left: float, others: int) -> float:
    """The exponential of the entropy of singular values; energy that is left is spread evenly over `others` more."""
    values = numpy.sqrt(squares[squares > 0])
    even = math.sqrt(left / others) if others > 0 else 0.0
    whole = float(values.sum()) + others * even
    if not whole:
        return 0.0
    shares = values / whole
    entropy = -float((shares * numpy.log(shares)).sum())
    if even:
        entropy -= others * (even / whole) * math.log(even / whole)
    return math.exp(entropy)
