"""Several adapters made into one, factor by factor, as peft's `add_weighted_adapter` does.

    down = mix(√|weight · scale| · down, with the sign of the weight)      up = mix(√|weight · scale| · up)

So the product is not the sum of the products: `cat`, which is, needs no mixing. Source: peft 0.21.2,
tuners/lora/model.py and utils/merge_utils.py. Ties elect signs before the weights, and divide by how many agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.errors import CombineError
from statedict.ops.combine.lora_factors import Factors
from statedict.tensor.lazy import LazyTensor

CAT = "cat"
Arrays = Sequence[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Mixed:
    """The factors of several adapters for one module as one pair; used as `Factors` are.

    Attributes:
        parts: the factors of each, whose scale has the weight in it.
        method: a key of `METHODS`.
        density: the share of each factor's numbers that is kept.
        seed: of the random choices of `dare_*`.
    """

    parts: tuple[Factors, ...]
    method: str
    density: float
    seed: int
    scale: float = 1.0

    @property
    def down(self) -> LazyTensor:
        """A tensor with the rank of the result."""
        return self.parts[0].down

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
        import numpy

        mix, rng = METHODS[self.method], numpy.random.Generator(numpy.random.PCG64(self.seed))
        roots = [math.sqrt(abs(one.scale)) for one in self.parts]
        signed = [math.copysign(root, one.scale) for root, one in zip(roots, self.parts, strict=True)]
        lefts, rights = zip(*(one.make(work) for one in self.parts), strict=True)
        weights = (signed, roots) if self.turned else (roots, signed)
        made = [mix(some, w, self.density, rng) for some, w in zip((lefts, rights), weights, strict=True)]
        return made[0].astype(work), made[1].astype(work)


def _linear(arrays: Arrays, weights: Sequence[float], density: float, rng: Any) -> Any:
    return sum(weight * one for weight, one in zip(weights, arrays, strict=True))


def _keep_largest(one: Any, density: float) -> Any:
    """The numbers of the largest magnitudes, a share of all; others are 0."""
    import numpy

    kept = numpy.zeros(one.size, bool)
    kept[numpy.argsort(-abs(one).reshape(-1), kind="stable")[: int(density * one.size)]] = True
    return one * kept.reshape(one.shape) if density < 1 else one


def _keep_some(one: Any, density: float, rng: Any) -> Any:
    return one * (rng.random(one.shape) < density) / density if density < 1 else one


def _elect(arrays: Arrays, weights: Sequence[float]) -> Any:
    """The mean of the weighted numbers whose sign is that of the sum."""
    import numpy

    majority = numpy.where(sum(arrays) >= 0, 1, -1)
    agree = [numpy.sign(one) == majority for one in arrays]
    total = sum(weight * one * some for weight, one, some in zip(weights, arrays, agree, strict=True))
    return total / numpy.maximum(sum(some.astype(int) for some in agree), 1)


def _prune(arrays: Arrays, weights: Sequence[float], density: float, rng: Any) -> Any:
    return _linear([_keep_largest(one, density) for one in arrays], weights, density, rng)


def _ties(arrays: Arrays, weights: Sequence[float], density: float, rng: Any) -> Any:
    return _elect([_keep_largest(one, density) for one in arrays], weights)


def _dare_linear(arrays: Arrays, weights: Sequence[float], density: float, rng: Any) -> Any:
    return _linear([_keep_some(one, density, rng) for one in arrays], weights, density, rng)


def _dare_ties(arrays: Arrays, weights: Sequence[float], density: float, rng: Any) -> Any:
    return _elect([_keep_some(one, density, rng) for one in arrays], weights)


METHODS: dict[str, Callable[[Arrays, Sequence[float], float, Any], Any]] = {
    "linear": _linear,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "magnitude_prune": _prune,
}


@dataclass(frozen=True, slots=True)
class Mix:
    """How several adapters are combined.

    Attributes:
        method: `cat`, the sum of the changes, or a key of `METHODS`.
        density: the share of each factor's numbers that is kept, for all but `linear`.
        seed: of the random choices of `dare_*`.
    """

    method: str = CAT
    density: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Check that the settings are valid.

        Raises:
            CombineError: they are not.
        """
        if self.method != CAT and self.method not in METHODS:
            raise CombineError(f"combination: expected one of {', '.join([CAT, *METHODS])}, got {self.method!r:.40}")
        needs = self.method not in (CAT, "linear")
        if needs != (self.density is not None):
            raise CombineError(f"combination {self.method}: {'needs a' if needs else 'takes no'} density")
        density = self.density
        if density is not None and not (isinstance(density, int | float) and 0 < density <= 1):
            raise CombineError(f"density: expected a share above 0 and up to 1, got {density!r:.40}")

    def combine(self, path: str, factors: Sequence[Any]) -> list[Any]:
        """The factors of one tensor, combined."""
        import xxhash

        if self.method == CAT:
            return list(factors)
        ranks = [one.down.shape[0] for one in factors]
        if len({*ranks}) > 1:
            raise CombineError(f"{path}: the adapters have the ranks {ranks}, which {self.method} cannot mix; use cat")
        seed = xxhash.xxh3_64_intdigest(f"{self.seed}/{path}".encode())
        return [Mixed(tuple(factors), self.method, self.density or 1.0, seed)]
