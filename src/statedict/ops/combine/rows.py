"""Sphere methods along one dimension: each row of a tensor, or each column, has factors of its own.

A row is held whole. Computed in float32, products in float64. Source of the formulas: mergekit 0.1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from statedict.ops.combine.elements import combine_rows
from statedict.tensor.lazy import LazyTensor


def nuslerp(
    models: Sequence[LazyTensor], base: LazyTensor | None, weights: Sequence[float], columns: bool
) -> LazyTensor:
    """As `span.nuslerp`, for each row along the last dimension, or along the first if `columns`."""
    total = weights[0] + weights[1]
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    tensors = [*models] if base is None else [base, *models]
    turn = columns and tensors[0].ndim > 1
    made = combine_rows(partial(_nuslerp, t, base is not None), [*map(_turn, tensors)] if turn else tensors)
    return _turn(made).contiguous() if turn else made


def _turn(tensor: LazyTensor) -> LazyTensor:
    """The tensor with its first and last dimension exchanged."""
    shape, strides = list(tensor.shape), list(tensor.stride())
    for sizes in (shape, strides):
        sizes[0], sizes[-1] = sizes[-1], sizes[0]
    return tensor.replace(shape=tuple(shape), strides=tuple(strides))


def _nuslerp(t: float, based: bool, *values: Any) -> Any:
    import numpy

    base: Any = values[0] if based else 0
    one, other = (value - base for value in values[based:])
    lengths = [numpy.linalg.norm(value.astype("f8"), axis=-1, keepdims=True).clip(1e-7) for value in (one, other)]
    cosine = ((one.astype("f8") * other).sum(axis=-1, keepdims=True) / (lengths[0] * lengths[1])).clip(-1, 1)
    straight = 1 - cosine * cosine <= 1e-16
    angle = numpy.arccos(numpy.where(straight, 0, cosine))
    below = numpy.sin(angle)
    first = numpy.where(straight, 1 - t, numpy.sin((1 - t) * angle) / below).astype(one.dtype)
    second = numpy.where(straight, t, numpy.sin(t * angle) / below).astype(one.dtype)
    return base + (first * one + second * other)


def model_stock(models: Sequence[LazyTensor], base: LazyTensor) -> LazyTensor:
    """As `span.model_stock`, for each row along the last dimension."""
    return combine_rows(_model_stock, [base, *models])


def _model_stock(base: Any, *models: Any) -> Any:
    import numpy

    deltas = [(model - base).astype("f8") for model in models]
    lengths = [numpy.linalg.norm(delta, axis=-1, keepdims=True) for delta in deltas]
    cosines = [
        ((deltas[i] * deltas[j]).sum(axis=-1, keepdims=True) / (lengths[i] * lengths[j]).clip(1e-6)).clip(-1, 1)
        for i in range(len(deltas))
        for j in range(i)
    ]
    cosine = sum(cosines) / len(cosines)
    below = 1 + (len(deltas) - 1) * cosine
    t = numpy.where(numpy.abs(below) < 1e-6, 0, len(deltas) * cosine / below).astype(base.dtype)
    return base + t * (sum(deltas) / len(deltas)).astype(base.dtype)
