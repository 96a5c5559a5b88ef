"""Merge methods that keep some elements of each task vector: of the difference d = x − b of a model from the base.

    b + λ·Σ w·(d where it is kept)        elected: only where d has the sign of the sum; divided by the Σ w of those

Which elements are kept depends on the whole tensor, which is read up to three times before; none is ever held whole.
Everything is computed in float32. Source of the formulas: mergekit 0.1.5, and the papers that the docstrings name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from statedict.ops.combine.elements import Once, add_up, combine, combine_rows, read_pieces, read_whole_rows
from statedict.tensor.lazy import LazyTensor

_NOTHING = 1 << 31  # above the bits of every magnitude


@dataclass(frozen=True, slots=True)
class Vector:
    """How one model's task vector goes into the sum; a keeper takes what it needs of it."""

    weight: float = 1.0
    density: float = 1.0  # the share that is kept
    gamma: float = 0.0  # the share of the largest that are dropped
    epsilon: float = 0.0  # how far the chance of an element may be from the density
    seed: int = 0  # of the random choice


Keep = Callable[..., Any]
"""Values d, their positions, the vector and what was found before → d with zeros where it is not kept."""


class Keeper(NamedTuple):
    """A way to choose which elements are kept."""

    keep: Keep
    find: Callable[[Vector, Callable[[], Iterable[tuple[Any, Any]]], int], Any]
    """The vector, what reads d and positions, and the number of elements → what `keep` needs to know."""
    rows: bool = False  # whether it needs whole rows
    rescale: bool = False  # whether what is kept is scaled to the sum of magnitudes of all


def merge(
    keeper: Keeper,
    base: LazyTensor,
    models: Sequence[LazyTensor],
    vectors: Sequence[Vector],
    *,
    elect: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> LazyTensor:
    """Base + scale · Σ w·d of what is kept of each task vector d.

    Args:
        keeper: what is kept.
        base: what the task vectors are differences from.
        models: tensors of its shape.
        vectors: one for each model.
        elect: leave out elements whose sign is not that of the sum. Yadav et al. 2023, arXiv:2306.01708.
        normalize: divide by Σ w, with `elect` of those that agree.
        scale: λ.
    """
    if keeper.keep is _keep_all and not elect:  # positions cost more than the sum
        weights = [vector.weight for vector in vectors]
        return combine(partial(_add_all, weights, _divisor(weights) if normalize else 1.0, scale), [base, *models])
    found = [Once(partial(_find, keeper, vector, base, model)) for vector, model in zip(vectors, models, strict=True)]
    call = partial(_combine, keeper, vectors, found, elect, normalize, scale)
    make = combine_rows if keeper.rows else combine
    return make(call, [base, *models], numbered=True)


def _divisor(weights: Sequence[float]) -> float:
    return sum(weights) if abs(sum(weights)) >= 1e-8 else 1.0


def _add_all(weights: Sequence[float], divisor: float, scale: float, base: Any, *models: Any) -> Any:
    for model in models:
        model -= base
    total = add_up(weights, divisor, *models)
    total *= scale
    total += base
    return total


def _find(keeper: Keeper, vector: Vector, base: LazyTensor, model: LazyTensor) -> tuple[Any, float]:
    """What `keep` needs to know, and the factor for what is kept."""
    import numpy

    def read() -> Iterator[tuple[Any, Any]]:
        for first, second, places in (read_whole_rows if keeper.rows else read_pieces)([base, model], numbered=True):
            yield second - first, places

    known = keeper.find(vector, read, base.numel())
    if not keeper.rescale:
        return known, 1.0
    whole = kept = 0.0
    for values, places in read():
        whole += float(numpy.abs(values).sum(dtype="f8"))
        kept += float(numpy.abs(keeper.keep(values, places, vector, known)).sum(dtype="f8"))
    return known, whole / kept if whole >= 1e-7 and kept >= 1e-7 else 1.0


def _combine(
    keeper: Keeper,
    vectors: Sequence[Vector],
    found: Sequence[Once[tuple[Any, float]]],
    elect: bool,
    normalize: bool,
    scale: float,
    base: Any,
    *values: Any,
) -> Any:
    import numpy

    *models, places = values
    parts = []
    for model, vector, once in zip(models, vectors, found, strict=True):
        known, factor = once()
        part = keeper.keep(model - base, places, vector, known)
        part *= factor
        part *= vector.weight
        parts.append(part)
    if elect:
        sign = numpy.where(sum(parts) >= 0, 1, -1)
        agree = [numpy.sign(part) == sign for part in parts]
        total = sum(part * one for part, one in zip(parts, agree, strict=True))
        shares: Any = sum(one * base.dtype.type(vector.weight) for one, vector in zip(agree, vectors, strict=True))
    else:
        total = sum(parts)
        shares = numpy.asarray(sum(vector.weight for vector in vectors), base.dtype)
    if normalize:
        total /= numpy.where(numpy.abs(shares) < 1e-8, 1, shares)
    total *= scale
    return base + total


def _find_nothing(vector: Vector, read: Any, number: int) -> None:
    """What a keeper needs that looks at single elements."""


def _keep_all(values: Any, places: Any, vector: Vector, known: Any) -> Any:
    return values


def _find_largest(vector: Vector, read: Callable[[], Iterable[tuple[Any, Any]]], number: int) -> list[Cut]:
    return find_cuts(partial(_read_bits, read), [max(1, int(vector.density * number))], number)


def _keep_largest(values: Any, places: Any, vector: Vector, cuts: list[Cut]) -> Any:
    return values * is_kept(magnitude_bits(values), places, cuts[0])


def _find_middle(vector: Vector, read: Callable[[], Iterable[tuple[Any, Any]]], number: int) -> list[Cut]:
    kept = int(vector.density * number)
    top = min(int(vector.gamma * number), number - kept)
    return find_cuts(partial(_read_bits, read), [top, top + kept], number)


def _keep_middle(values: Any, places: Any, vector: Vector, cuts: list[Cut]) -> Any:
    bits = magnitude_bits(values)
    return values * (is_kept(bits, places, cuts[1]) & ~is_kept(bits, places, cuts[0]))


def _read_bits(read: Callable[[], Iterable[tuple[Any, Any]]]) -> Iterator[tuple[Any, Any]]:
    return ((magnitude_bits(values), places) for values, places in read())


def _keep_some(values: Any, places: Any, vector: Vector, known: Any) -> Any:
    return values * (draw(vector.seed, places) < vector.density)


def _keep_by_rank(values: Any, places: Any, vector: Vector, known: Any) -> Any:
    """Whether each is kept is drawn; the chance grows with the rank of its magnitude within the row."""
    import numpy

    length = values.shape[-1]
    ranks = numpy.argsort(numpy.argsort(magnitude_bits(values), axis=-1, kind="stable"), axis=-1)
    lowest, span = vector.density - vector.epsilon, 2 * vector.epsilon
    chances = lowest + ranks * (span / (length - 1)) if length > 1 else vector.density
    return values * (draw(vector.seed, places) < chances)


ALL = Keeper(_keep_all, _find_nothing)
LARGEST = Keeper(_keep_largest, _find_largest)
MIDDLE = Keeper(_keep_middle, _find_middle)
SOME = Keeper(_keep_some, _find_nothing, rescale=True)
BY_RANK = Keeper(_keep_by_rank, _find_nothing, rows=True, rescale=True)


def draw(seed: int, places: Any) -> Any:
    """Numbers from 0 up to 1, one for each position, the same for the same seed: SplitMix64 of seed and position.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    import numpy

    word = numpy.uint64
    mixed = (places.astype("u8") + word(1)) * word(0x9E3779B97F4A7C15) + word(seed & (1 << 64) - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> word(shift))) * word(factor)
    mixed ^= mixed >> word(31)
    return (mixed >> word(11)).astype("f8") * 2.0**-53


class Cut(NamedTuple):
    """The largest of many magnitudes: those above a bound, and of equal ones the first."""

    bits: int  # of the bound, a float32
    last: int  # the position of the last one that equals it and is kept


_NONE = Cut(_NOTHING, -1)
_SMALL = 1 << 16  # magnitudes that are sorted instead of counted


def find_cuts(read: Callable[[], Iterable[tuple[Any, Any]]], counts: Sequence[int], number: int) -> list[Cut]:
    """Where to cut so that `count` of `number` magnitudes are kept, for each of several counts.

    `read` gives their bits and positions, piece by piece. Two passes find the bound by its halves, a third one the
    position if equal ones are kept in part.
    """
    import numpy

    counts = [min(count, number) for count in counts]
    if number <= _SMALL:
        pairs = [numpy.stack([bits.reshape(-1), places.reshape(-1)]).astype("i8") for bits, places in read()]
        bits, places = numpy.concatenate([numpy.zeros((2, 0), "i8"), *pairs], axis=1)
        order = numpy.argsort(-bits, kind="stable")
        return [
            _NONE if count < 1 else Cut(*(int(some[order[count - 1]]) for some in (bits, places))) for count in counts
        ]
    bins = [1 << 15, 1 << 16]
    high = numpy.zeros(bins[0], "i8")
    for bits, _ in read():
        high += numpy.bincount(bits >> 16, minlength=bins[0])
    wanted = [count for count in counts if count > 0]
    halves = {count: _find_bin(high, count) for count in wanted}
    low = {half: numpy.zeros(bins[1], "i8") for half, _ in halves.values()}
    for bits, _ in read() if wanted else ():
        for half, sums in low.items():
            sums += numpy.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=bins[1])
    found: dict[int, Cut] = {}
    partly: dict[int, tuple[int, int]] = {}
    for count, (half, rest) in halves.items():
        end, kept = _find_bin(low[half], rest)
        bound = half << 16 | end
        found[count] = Cut(bound, number)
        if kept < low[half][end]:
            partly[count] = bound, kept
    for bits, places in read() if partly else ():
        for count, (bound, kept) in list(partly.items()):
            equal = places[bits == bound]
            if len(equal) >= kept:
                found[count] = Cut(bound, int(equal[kept - 1]))
                del partly[count]
            else:
                partly[count] = bound, kept - len(equal)
    return [found.get(count, _NONE) for count in counts]


def _find_bin(sums: Any, count: int) -> tuple[int, int]:
    """The bin from above in which the `count`-th largest lies, and which one of that bin it is."""
    above = sums[::-1].cumsum()
    index = int(above.searchsorted(count))
    return len(sums) - 1 - index, count - int(above[index] - sums[::-1][index])


def is_kept(bits: Any, places: Any, cut: Cut) -> Any:
    """Whether magnitudes are among the largest."""
    return (bits > cut.bits) | ((bits == cut.bits) & (places <= cut.last))


def magnitude_bits(values: Any) -> Any:
    """The bits of magnitudes, which as integers have their order."""
    return values.astype("f4", copy=False).view("u4") & 0x7FFFFFFF
