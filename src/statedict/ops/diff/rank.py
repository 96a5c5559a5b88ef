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
from typing import Any

from statedict.io.parallel import parallel
from statedict.io.progress import Meter, meter
from statedict.ops.diff.change import Change
from statedict.ops.diff.spectrum import DIRECTIONS, Spectrum, passes, spectrum
from statedict.reports import diff as kinds
from statedict.reports.diff import LowRank, TensorDiff
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import origin

LOW_RANK, FULL, ROUNDING, SMALL = VERDICTS = ("low-rank", "full", "rounding", "small")
_TOP = (1, 4, 8, 16, 32, 64, 128, 256)
_OWN = 2.0**-17  # of the energy of a product that was rounded to bfloat16; what happens is a third of it
_MARGIN = 1.1  # for what the first singular value of small matrices is above the edge of large ones
_PARALLEL = 8  # matrices on their way to an executor


def looked_into(
    tensors: Sequence[TensorDiff],
    a: Mapping[str, LazyTensor],
    b: Mapping[str, LazyTensor],
    rank: int | None = None,
    executor: Executor | None = None,
) -> list[TensorDiff]:
    """The tensors, each changed floating or complex matrix with what its change is.

    Args:
        tensors: what became of each.
        a: the tensors of the first state.
        b: those of the second one.
        rank: the largest rank of an adapter that counts; by default what has a quarter of the matrix's numbers.
        executor: what computes; by default one matrix at a time, for the matrix products use all cores.
    """
    found = list(tensors)
    firsts: dict[object, int] = {}
    jobs: list[tuple[int, LazyTensor, LazyTensor, float]] = []
    same: list[tuple[int, int]] = []
    for number, tensor in enumerate(tensors):
        one, other = a.get(str(tensor.before)), b.get(str(tensor.after))
        if one is None or other is None or not _matrix(tensor, one, other):
            continue
        first = firsts.setdefault((origin(one), origin(other)), number)
        if first != number:
            same.append((number, first))
        else:
            assert tensor.measures is not None
            jobs.append((number, one, other, float(tensor.measures.max_abs)))
    counter = meter()
    counter.expect(sum((x.nbytes + y.nbytes) * passes(x.shape[0], x.numel() // x.shape[0]) for _, x, y, _ in jobs))
    work = partial(_judge_one, rank, None if executor else counter)
    for job, change in zip(jobs, parallel(work, jobs, executor, 1, _PARALLEL), strict=True):
        found[job[0]] = replace(found[job[0]], change=change)
        if executor is not None:
            counter.advance(job[1].nbytes + job[2].nbytes)
    for number, first in same:
        found[number] = replace(found[number], change=found[first].change)
    return found


def _matrix(tensor: TensorDiff, one: LazyTensor, other: LazyTensor) -> bool:
    floating = all(t.dtype.kind in ("float", "complex") and t.dtype.name != "float4_e2m1fn_x2" for t in (one, other))
    changed = tensor.kind in (kinds.CHANGED, kinds.RETYPED) and tensor.measures is not None
    return changed and floating and one.ndim >= 2 and one.numel() > 0


def _judge_one(rank: int | None, counter: Meter | None, job: tuple[int, LazyTensor, LazyTensor, float]) -> LowRank:
    _, one, other, largest = job
    change = Change(one, other, largest, counter or Meter())
    return judge(change, spectrum(change, max(DIRECTIONS, rank or 0)), rank)


def judge(change: Change, found: Spectrum, rank: int | None = None) -> LowRank:
    """What a spectrum says of a change whose blocks were all read.

    Args:
        change: the change.
        found: its singular values.
        rank: the largest rank that counts.
    """
    m, n, total = change.rows, change.columns, change.energy
    squares = found.squares
    left = _energy_left(found, total)
    above = max(found.floor, (_MARGIN * change.edge) ** 2)
    stand = int((squares > above).sum())
    bounded = not found.whole and stand == len(squares) and left[-1] > found.floor
    most = m * n // (4 * (m + n)) if rank is None else rank
    verdict, adapter = _verdict(change, found, left, most)
    counts = sorted({*_TOP, *([] if rank is None else [rank])})
    top = [(r, min(1.0, float(1 - left[r] / total)) if total else 0.0) for r in counts if r <= len(squares)]
    effective = _effective(squares[:stand], float(left[-1]) if bounded else 0.0, min(m, n) - len(squares))
    stable = total / float(squares[0]) if total else 0.0
    rounding = change.noise / total if total else 0.0
    return LowRank(
        m, n, verdict, adapter, stand, effective, stable, tuple(top), rounding, found.method, bounded, change.nonfinite
    )


def _energy_left(found: Spectrum, total: float) -> Any:
    """The energy beside the first r directions, for each r from 0; summed up from the end where that is known."""
    import numpy

    if found.whole:
        return numpy.append(numpy.cumsum(found.squares[::-1])[::-1], 0.0)
    return numpy.maximum(total - numpy.append(0.0, numpy.cumsum(found.squares)), 0.0)


def _verdict(change: Change, found: Spectrum, left: Any, most: int) -> tuple[str, int | None]:
    import numpy

    if change.nonfinite:  # which no adapter explains, and no rounding
        return FULL, None
    total, squares = change.energy, found.squares
    allowed = change.noise + _OWN * total
    if change.noise > _OWN * total:  # the edge of errors whose energy is 1
        edge = change.edge / math.sqrt(change.noise)
    else:
        edge = change.own_edge / math.sqrt(total) if total else 0.0
    following = numpy.concatenate([squares, [0.0 if found.whole else squares[-1]]])
    limits = numpy.maximum((_MARGIN * edge) ** 2 * left, max(found.floor, (_MARGIN * change.edge) ** 2))
    fits = numpy.flatnonzero((left <= allowed) & (following <= limits))
    first = int(fits[0]) if len(fits) else None
    if first == 0 or total <= change.noise or (first is not None and left[first] >= total / 2):
        return ROUNDING, None
    if first is not None and first <= most:
        return LOW_RANK, first
    return (SMALL if most < 1 else FULL), None


def _effective(squares: Any, left: float, others: int) -> float:
    """The exponential of the entropy of singular values; energy left over is spread evenly over as many others."""
    import numpy

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
