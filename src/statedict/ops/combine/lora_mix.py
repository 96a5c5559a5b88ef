"""Several adapters made into one, as peft's `add_weighted_adapter` does. Their sum, `cat`, needs no mixing.

| methods | what is mixed |
|---|---|
| linear, ties, … | √|weight · scale| · up, and √|weight · scale| · down with the sign of the weight |
| svd, ties_svd, … | weight · (scale · up · down), then cut down to a rank by its largest singular directions |

So a mix of factors is not the mix of the changes. Source: peft 0.21.2, tuners/lora/model.py and utils/merge_utils.py.
Ties elect signs before the weights, and divide by how many agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy

from statedict.errors import CombineError
from statedict.io.parallel import WORKERS, parallel
from statedict.ops.combine.elements import Once
from statedict.ops.combine.lora_factors import Factors
from statedict.ops.combine.sparse import Cut, draw, find_cuts, is_kept, magnitude_bits
from statedict.ops.diff.singular import find_directions
from statedict.ops.products import dot, multiply

CAT = "cat"
_BLOCK = 1 << 20  # elements of a change that are computed at a time


class Method(NamedTuple):
    """How arrays of several adapters become one."""

    keep: str = "all"  # `all`, the `largest` magnitudes, or `some` by chance, scaled up
    elect: bool = False  # whether only numbers whose sign is that of the sum count


METHODS = {
    "linear": Method(),
    "ties": Method("largest", elect=True),
    "dare_linear": Method("some"),
    "dare_ties": Method("some", elect=True),
    "magnitude_prune": Method("largest"),
}
REDUCED = {"svd": "linear"} | {f"{name}_svd": name for name in METHODS if name != "linear"}
"""Methods that mix the changes and cut the mix down to a rank → the method by which they mix."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How several adapters are combined.

    Attributes:
        method: `cat`, the sum of the changes, or a key of `METHODS` or `REDUCED`.
        density: the share of the numbers that is kept, where some are not.
        seed: of the random choices of `dare_*`.
        rank: that `REDUCED` cut down to; by default the largest of the adapters.
    """

    method: str = CAT
    density: float | None = None
    seed: int = 0
    rank: int | None = None

    def check(self) -> None:
        """Check that the settings are valid.

        Raises:
            CombineError: they are not.
        """
        if self.method not in (CAT, *METHODS, *REDUCED):
            names = ", ".join([CAT, *METHODS, *REDUCED])
            raise CombineError(f"combination: expected one of {names}, got {self.method!r:.40}")
        needs = self.method != CAT and self._how.keep != "all"
        if needs != (self.density is not None):
            raise CombineError(f"combination {self.method}: {'needs a' if needs else 'takes no'} density")
        density = self.density
        if density is not None and not (isinstance(density, int | float) and 0 < density <= 1):
            raise CombineError(f"density: expected a share above 0 and up to 1, got {density!r:.40}")
        if self.rank is not None and self.method not in REDUCED:
            raise CombineError(f"combination {self.method}: takes no rank; {', '.join(REDUCED)} do")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise CombineError(f"rank: expected a whole number above 0, got {self.rank!r:.40}")

    @property
    def _how(self) -> Method:
        return METHODS[REDUCED.get(self.method, self.method)]

    def combine(self, path: str, factors: Sequence[Any], most: int) -> list[Any]:
        """The factors of one tensor, combined; `most` is the largest rank of the adapters."""
        import xxhash

        if self.method == CAT:
            return list(factors)
        ranks = [one.rank // one.experts for one in factors]
        if self.method in METHODS and any(one.times for one in factors):
            raise CombineError(f"{path}: {self.method} mixes factors of LoRA, not of LoHa; use cat or svd")
        if self.method in METHODS and len({*ranks}) > 1:
            raise CombineError(f"{path}: the adapters have the ranks {ranks}, which {self.method} cannot mix; use cat")
        seeds = [xxhash.xxh3_64_intdigest(f"{self.seed}/{path}/{n}".encode()) for n in range(len(factors))]
        how = _How(self._how, self.density or 1.0, tuple(seeds))
        rank = 0 if self.method in METHODS else min(self.rank or most, *factors[0].shape)
        return [Mixed(tuple(factors), how, rank)]


class _How(NamedTuple):
    method: Method
    density: float
    seeds: tuple[int, ...]  # one for each adapter

    def cut(self, read: Any, number: int) -> Cut | None:
        """What `join` needs to know of the arrays of one adapter; `read` gives bits of magnitudes and positions."""
        wanted = self.method.keep == "largest" and self.density < 1
        return find_cuts(read, [int(self.density * number)], number)[0] if wanted else None

    def join(self, arrays: Sequence[Any], places: Any, cuts: Sequence[Cut | None], weights: Sequence[float]) -> Any:
        """One array of those of the adapters."""
        kept = []
        for one, cut, seed in zip(arrays, cuts, self.seeds, strict=True):
            if cut is not None:
                kept.append(one * is_kept(magnitude_bits(one), places, cut))
            elif self.method.keep == "some" and self.density < 1:
                kept.append(one * (draw(seed, places) < self.density) / self.density)
            else:
                kept.append(one)
        if not self.method.elect:
            return sum(weight * one for weight, one in zip(weights, kept, strict=True))
        majority = numpy.where(sum(kept) >= 0, 1, -1)
        agree = [numpy.sign(one) == majority for one in kept]
        total = sum(weight * one * some for weight, one, some in zip(weights, kept, agree, strict=True))
        return total / numpy.maximum(sum(some.astype(int) for some in agree), 1)


class Mixed:
    """The factors of several adapters for one module as one pair; used as `Factors` are.

    Args:
        parts: the factors of each.
        how: how they are mixed.
        reduced: the rank that the mix of their changes is cut down to; 0 if the factors themselves are mixed.
    """

    factor = 1.0
    """What the product is multiplied by."""

    def __init__(self, parts: tuple[Factors, ...], how: _How, reduced: int) -> None:
        self.parts, self.how = parts, how
        self.rank = reduced * self.experts or parts[0].rank
        self._make = Once(partial(_reduce, parts, how, reduced)) if reduced else Once(partial(_mix, parts, how))

    @property
    def experts(self) -> int:
        """How many matrices the weight has."""
        return self.parts[0].experts

    @property
    def turned(self) -> bool:
        """Whether the weight is stored as in × out."""
        return self.parts[0].turned

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product of one expert."""
        return self.parts[0].shape

    def make(self, work: Any) -> tuple[Any, Any]:
        """The left and the right factor, as those of `Factors`."""
        left, right = self._make()
        return left.astype(work), right.astype(work)


def _mix(parts: Sequence[Factors], how: _How) -> tuple[Any, Any]:
    roots = [math.sqrt(abs(one.factor)) for one in parts]
    signed = [math.copysign(root, one.factor) for root, one in zip(roots, parts, strict=True)]
    lefts, rights = zip(*(one.make(numpy.dtype("f4")) for one in parts), strict=True)
    weights = (signed, roots) if parts[0].turned else (roots, signed)
    made = []
    for side, (arrays, some) in enumerate(zip((lefts, rights), weights, strict=True)):
        places = numpy.arange(arrays[0].size).reshape(arrays[0].shape) + side * (1 << 40)
        cuts = [how.cut(partial(_read_whole, one, places), one.size) for one in arrays]
        made.append(how.join(arrays, places, cuts, some))
    return made[0], made[1]


def _read_whole(values: Any, places: Any) -> list[tuple[Any, Any]]:
    return [(magnitude_bits(values).reshape(-1), places.reshape(-1))]


def _reduce(parts: Sequence[Factors], how: _How, rank: int) -> tuple[Any, Any]:
    """The factors of the mix of changes, for each expert alone."""
    pairs = [one.make(numpy.dtype("f4")) for one in parts]
    lefts, rights = [], []
    for expert in range(parts[0].experts):
        some = [(left[expert] * one.scale, right[expert]) for one, (left, right) in zip(parts, pairs, strict=True)]
        low = find_directions(_Change(some, [one.weight for one in parts], how, expert), rank, None)
        lacking = rank - len(low.squares)
        roots = numpy.sqrt(numpy.sqrt(low.squares))
        lefts.append(numpy.pad(low.left * roots, ((0, 0), (0, lacking))))
        rights.append(numpy.pad((low.right / roots).T, ((0, lacking), (0, 0))))
    return numpy.stack(lefts).astype("f4"), numpy.stack(rights).astype("f4")


class _Change:
    """The mix of the changes of several adapters to one matrix, computed in blocks when it is read."""

    work = numpy.dtype("f8")

    def __init__(self, pairs: Sequence[tuple[Any, Any]], weights: Sequence[float], how: _How, expert: int) -> None:
        self.rows, self.columns = len(pairs[0][0]), pairs[0][1].shape[1]
        self.energy = 0.0
        self._pairs, self._weights, self._how = pairs, weights, how
        self._first = expert * self.rows * self.columns
        self._cuts = [how.cut(partial(self._bits, pair), self.rows * self.columns) for pair in pairs]

    def each(self, work: Any, turned: bool = False) -> Iterator[Any]:
        """What a function makes of it, a few rows or, if turned, columns at a time."""

        def read(here: tuple[slice, slice]) -> tuple[Any, float]:
            arrays = [multiply(left[here[0]], right[:, here[1]]) for left, right in self._pairs]
            places = None if self._how.method.keep == "all" else self._places(here)
            block = self._how.join(arrays, places, self._cuts, self._weights).astype(self.work)
            return work(block.T if turned else block), dot(block.reshape(-1), block.reshape(-1))

        total = 0.0
        for made, squares in parallel(read, self._blocks(turned), ahead=WORKERS + 1):
            total += squares
            yield made
        self.energy = total

    def _bits(self, pair: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
        for here in self._blocks(False):
            block = multiply(pair[0][here[0]], pair[1][:, here[1]])
            yield magnitude_bits(block).reshape(-1), self._places(here).reshape(-1)

    def _blocks(self, turned: bool) -> list[tuple[slice, slice]]:
        long, across = (self.columns, self.rows) if turned else (self.rows, self.columns)
        step = max(1, _BLOCK // across)
        runs = [slice(first, min(first + step, long)) for first in range(0, long, step)]
        return [(slice(0, self.rows), run) if turned else (run, slice(0, self.columns)) for run in runs]

    def _places(self, here: tuple[slice, slice]) -> Any:
        rows, columns = (numpy.arange(one.start, one.stop) for one in here)
        return self._first + rows[:, None] * self.columns + columns
