"""Merge methods whose result is a sum of the models with one factor each, found from their inner products.

    Σ c·x, or with a base b + Σ c·(x − b); the factors c follow from ⟨x, y⟩ of each two, which are read once before

So no tensor is ever held whole. Everything is computed in float32, inner products in float64. Source of the formulas:
mergekit 0.1.5 and the papers that the docstrings name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from statedict.errors import CombineError
from statedict.ops.combine.elements import Once, combine, read_pieces
from statedict.ops.products import dot
from statedict.tensor.lazy import LazyTensor

Gram = Sequence[Sequence[float]]
"""Inner products of each two of the models, or of their differences from the base."""
Factors = Callable[[Gram], Sequence[float]]
_NOTHING = 1e-7  # a norm that may be rounding of inner products of unit vectors


def merge(factors: Factors, models: Sequence[LazyTensor], base: LazyTensor | None = None) -> LazyTensor:
    """Σ c·x, or b + Σ c·(x − b) with a base b, where the factors c follow from the inner products."""
    tensors = [*models] if base is None else [base, *models]
    found = Once(partial(_find_factors, factors, tensors, base is not None))
    return combine(partial(_add_up, found, base is not None), tensors)


def _find_factors(factors: Factors, tensors: Sequence[LazyTensor], based: bool) -> Sequence[float]:
    import numpy

    count = len(tensors) - based
    gram = numpy.zeros((count, count))
    for values in read_pieces(tensors):
        vectors = [value.astype("f8") for value in ([one - values[0] for one in values[1:]] if based else values)]
        gram += [[dot(one, other) for other in vectors] for one in vectors]
    return factors(gram.tolist())


def _add_up(factors: Once[Sequence[float]], based: bool, *values: Any) -> Any:
    base, models = (values[0], values[1:]) if based else (0, values)
    total: Any = 0
    for value, factor in zip(models, factors(), strict=True):
        if based:
            value -= base
        value *= factor
        total = total + value
    return total + base


def slerp(gram: Gram, t: float) -> list[float]:
    """From the first model (t = 0) to the second along the arc between their directions; straight if they are parallel.

    Shoemake 1985, "Animating rotation with quaternion curves".

    >>> [round(factor, 4) for factor in slerp([[1, 0], [0, 4]], 0.5)]
    [0.7071, 0.7071]
    """
    cosine = _cosine(gram, 0, 1, 1e-8)
    if abs(cosine) > 0.9995:
        return [1 - t, t]
    return _on_arc(cosine, t)


def nuslerp(gram: Gram, weights: Sequence[float]) -> list[float]:
    """As slerp with t = w₁ / (w₀ + w₁), to either side of the arc; straight only where the directions are the same.

    >>> [round(factor, 4) for factor in nuslerp([[1, 0], [0, 4]], [1, 1])]
    [0.7071, 0.7071]
    """
    total = math.fsum(weights)
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    cosine = _cosine(gram, 0, 1, 1e-7)
    return [1 - t, t] if 1 - cosine * cosine <= 1e-16 else _on_arc(cosine, t)


def _cosine(gram: Gram, one: int, other: int, least: float) -> float:
    """The cosine between two vectors; a norm of up to `least` counts as 1."""
    norms = [math.sqrt(max(gram[i][i], 0)) for i in (one, other)]
    return max(-1.0, min(1.0, gram[one][other] / math.prod(norm if norm > least else 1 for norm in norms)))


def _on_arc(cosine: float, t: float) -> list[float]:
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def multislerp(gram: Gram, weights: Sequence[float], normalize_weights: bool = True, eps: float = 1e-8) -> list[float]:
    """The mean on the sphere, in the tangent space at the mean direction, times the mean norm.

    Of two opposite vectors, which have no mean direction, the weighted sum.

    Raises:
        CombineError: the directions of more than two vectors cancel out.

    >>> multislerp([[4, 0], [0, 4]], [1, 1])[0] - 2**-0.5 < 1e-6
    True
    """
    total = math.fsum(weights) if normalize_weights else 1.0
    shares = [weight / total for weight in weights]
    norms = [math.sqrt(max(gram[i][i], 0)) for i in range(len(gram))]
    units = [[float(i == j) / (norms[i] + eps) for j in range(len(gram))] for i in range(len(gram))]
    mean = _sum(shares, units)
    length = math.sqrt(max(_dot(gram, mean, mean), 0))
    if length < max(eps, _NOTHING):
        if len(gram) == 2 or not any(norms):
            return shares
        raise CombineError("multislerp: the directions of the models cancel out, so they have no mean; change weights")
    mean = [value / length for value in mean]
    tangents = [_sum([1, -_dot(gram, unit, mean)], [unit, mean]) for unit in units]
    step = _sum(shares, tangents)
    length = math.sqrt(max(_dot(gram, step, step), 0)) + eps
    size = math.fsum(share * norm for share, norm in zip(shares, norms, strict=True))
    return [size * factor for factor in _sum([math.cos(length), math.sin(length) / length], [mean, step])]


def karcher(gram: Gram, weights: Sequence[float], max_iter: int = 10, tol: float = 1e-5) -> list[float]:
    """The Riemannian centre of mass of the directions, found by iteration, times the mean norm.

    Beside others, models with a norm up to `tol` have no direction. The iteration starts at the mean direction, or at
    the first model's where they cancel out.

    Karcher 1977, "Riemannian center of mass and mollifier smoothing".

    >>> [round(factor, 4) for factor in karcher([[1, 0], [0, 1]], [1, 1])]
    [0.7071, 0.7071]
    """
    norms = [math.sqrt(max(gram[i][i], 0)) for i in range(len(gram))]
    least = tol if any(norm > tol for norm in norms) else 0.0
    units = [[1 / norms[i] if i == j else 0.0 for j in range(len(gram))] for i in range(len(gram)) if norms[i] > least]
    if not units:
        return [0.0] * len(gram)
    shares = [1 / len(units)] * len(units)
    mean = _sum(shares, units)
    mean = _unit(gram, mean) if _dot(gram, mean, mean) >= tol**2 else units[0]
    for _ in range(max_iter):
        step = [0.0] * len(gram)
        for share, unit in zip(shares, units, strict=True):
            cosine = max(-1.0, min(1.0, _dot(gram, unit, mean)))
            angle = math.acos(cosine)
            if angle >= tol and math.sin(angle) > _NOTHING:
                step = _sum([1, share * angle / math.sin(angle)], [step, _sum([1, -cosine], [unit, mean])])
        length = math.sqrt(max(_dot(gram, step, step), 0))
        if length < tol:
            break
        mean = _unit(gram, _sum([math.cos(length), math.sin(length) / length], [mean, step]))
    size = math.fsum(norms) / len(norms)
    return [size * factor for factor in mean]


def model_stock(gram: Gram, weights: Sequence[float]) -> list[float]:
    """Between the base and the mean of the models, by the mean angle between their differences from the base.

    Jang et al. 2024, arXiv:2403.19522.

    >>> [round(factor, 4) for factor in model_stock([[1, 0.5], [0.5, 1]], [1, 1])]
    [0.3333, 0.3333]
    """
    number = len(gram)
    pairs = [(i, j) for i in range(number) for j in range(i)]
    norms = [math.sqrt(max(gram[i][i], 0)) for i in range(number)]
    cosines = [max(-1.0, min(1.0, gram[i][j] / max(norms[i] * norms[j], 1e-6))) for i, j in pairs]
    cosine = math.fsum(cosines) / len(cosines)
    below = 1 + (number - 1) * cosine
    t = number * cosine / below if abs(below) >= 1e-6 else 0.0
    return [t / number] * number


def _dot(gram: Gram, one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * gram[i][j] * b for i, a in enumerate(one) for j, b in enumerate(other))


def _sum(factors: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(f * v for f, v in zip(factors, row, strict=True)) for row in zip(*vectors, strict=True)]


def _unit(gram: Gram, vector: Sequence[float]) -> list[float]:
    norm = math.sqrt(max(_dot(gram, vector, vector), 0))
    return [value / norm for value in vector] if norm else list(vector)
