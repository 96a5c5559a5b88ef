"""Merge methods that decide element by element between a base and models: nearswap, sce, arcee_fusion, ram.

Some need figures of the whole tensor, which is read for them before; none is ever held whole. Everything is computed in
float32. Source of the formulas: mergekit 0.1.5, and the papers that the docstrings name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from statedict.ops.combine.elements import Once, combine, combine_rows, read_pieces, read_whole_rows
from statedict.ops.combine.sparse import Cut, find_cuts, is_kept, magnitude_bits
from statedict.tensor.lazy import LazyTensor


def passthrough(model: LazyTensor, scale: float) -> LazyTensor:
    """The model, times a factor."""
    return model if scale == 1 else combine(partial(_scale, scale), [model])


def _scale(factor: float, values: Any) -> Any:
    return values * factor


def nearswap(base: LazyTensor, model: LazyTensor, t: float) -> LazyTensor:
    """The model where it is within t of the base; beyond, the nearer to the base the further it is from it.

    Alchemonaut 2024, QuartetAnemoi-70B-t0.0001.
    """
    return combine(partial(_near_swap, t), [base, model])


def _near_swap(t: float, base: Any, model: Any) -> Any:
    import numpy

    share = (t / numpy.abs(base - model).clip(1e-6)).clip(0, 1)
    return share * model + (1 - share) * base


def sce(base: LazyTensor, models: Sequence[LazyTensor], select_topk: float) -> LazyTensor:
    """Task vectors where they vary most, weighed by their mean squares, without elements of the minority's sign.

    Wan et al. 2024, FuseChat, arXiv:2408.07990.
    """
    tensors = [base, *models]
    found = Once(partial(_find_shares, tensors, select_topk))
    return combine(partial(_fuse, found), tensors, numbered=True)


def _find_shares(tensors: list[LazyTensor], share: float) -> tuple[Cut | None, list[float]]:
    import numpy

    cut = None
    if share < 1:
        varying = sum(int(numpy.count_nonzero(_variance(values))) for *values, _ in read_pieces(tensors, True))
        counts = [int(share * varying)]
        cut = find_cuts(partial(_read_variances, tensors), counts, tensors[0].numel())[0]
    squares = numpy.zeros(len(tensors) - 1)
    for base, *models, places in read_pieces(tensors, True):
        deltas = _select([model - base for model in models], places, cut)
        squares += [float(numpy.square(delta, dtype="f8").sum()) for delta in deltas]
    squares /= max(tensors[0].numel(), 1)
    total = squares.sum()
    return cut, [1 / len(squares)] * len(squares) if total < 1e-6 else (squares / total).tolist()


def _read_variances(tensors: list[LazyTensor]) -> Any:
    return ((magnitude_bits(_variance(values)), places) for *values, places in read_pieces(tensors, True))


def _variance(values: Sequence[Any]) -> Any:
    import numpy

    return numpy.var([value - values[0] for value in values[1:]], axis=0)


def _select(deltas: list[Any], places: Any, cut: Cut | None) -> list[Any]:
    import numpy

    if cut is None:
        return deltas
    kept = is_kept(magnitude_bits(numpy.var(deltas, axis=0)), places, cut)
    return [delta * kept for delta in deltas]


def _fuse(found: Once[tuple[Cut | None, list[float]]], base: Any, *values: Any) -> Any:
    import numpy

    *models, places = values
    cut, shares = found()
    deltas = _select([model - base for model in models], places, cut)
    sign = numpy.where(sum(deltas) >= 0, 1, -1)
    agree = [numpy.sign(delta) == sign for delta in deltas]
    above = sum(delta * share * one for delta, share, one in zip(deltas, shares, agree, strict=True))
    below: Any = sum(one * base.dtype.type(share) for one, share in zip(agree, shares, strict=True))
    return base + above / below.clip(1e-6)


def arcee_fusion(base: LazyTensor, model: LazyTensor) -> LazyTensor:
    """The model where its difference is an outlier by size and by the divergence of its row, else the base.

    A row is held whole.
    """
    found = Once(partial(_find_outliers, [base, model]))
    return combine_rows(partial(_swap_outliers, found), [base, model])


def _find_outliers(tensors: list[LazyTensor]) -> float:
    import numpy

    number = tensors[0].numel()
    ranks = [number - int(share * (number - 1)) for share in (0.25, 0.5, 0.75)]

    def read() -> Any:
        for base, model in read_whole_rows(tensors):
            bits = magnitude_bits(_importance(base, model)).reshape(-1)
            yield bits, bits  # where equal ones are cut does not matter

    bits = [cut.bits for cut in find_cuts(read, ranks, number)]
    low, middle, high = (float(value) for value in numpy.array(bits, "u4").view("f4"))
    return middle + 1.5 * (high - low)


def _importance(base: Any, model: Any) -> Any:
    import numpy

    one, other = _softmax(model.astype("f8")) + 1e-8, _softmax(base.astype("f8")) + 1e-8
    divergence = (one * numpy.log(one / other)).sum(axis=-1, keepdims=True)
    return (numpy.abs(model - base) * divergence.clip(0)).astype(base.dtype)


def _softmax(values: Any) -> Any:
    import numpy

    powers = numpy.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _swap_outliers(found: Once[float], base: Any, model: Any) -> Any:
    import numpy

    return numpy.where(_importance(base, model) >= found(), model, base)


def ram(
    base: LazyTensor, models: Sequence[LazyTensor], epsilon: float, r: float = 0.0, alpha: float = 0.0
) -> LazyTensor:
    """Elements that one model alone changed by more than `epsilon` as they are, the mean of those that several changed.

    With `r`, those of one model are enlarged by r times its ratio of shared to unique changes, up to `alpha`.
    """
    tensors = [base, *models]
    found = Once(partial(_find_enlargements, tensors, epsilon, r, alpha))
    return combine(partial(_ram, found, epsilon), tensors)


def _find_enlargements(tensors: list[LazyTensor], epsilon: float, r: float, alpha: float) -> list[float]:
    import numpy

    shared, unique = numpy.zeros(len(tensors) - 1), numpy.zeros(len(tensors) - 1)
    for base, *models in read_pieces(tensors) if r else ():
        changed = numpy.abs([model - base for model in models]) > epsilon
        alone = changed.sum(axis=0) == 1
        unique += (changed & alone).sum(axis=1)
        shared += (changed & ~alone).sum(axis=1)
    return [float(1 + r * value) for value in (shared / unique.clip(epsilon)).clip(0, alpha)]


def _ram(found: Once[list[float]], epsilon: float, base: Any, *models: Any) -> Any:
    import numpy

    deltas = numpy.stack([model - base for model in models])
    changed = numpy.abs(deltas) > epsilon
    number = changed.sum(axis=0)
    total = (deltas * changed).sum(axis=0) / number.clip(1)
    enlarged = sum(delta * factor * one for delta, factor, one in zip(deltas, found(), changed, strict=True))
    return base + numpy.where(number == 1, enlarged, total)
