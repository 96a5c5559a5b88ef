"""Tensors computed element by element from several: in float32 or wider, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

from statedict.dtypes import DType, dtype
from statedict.ops.alter.tensors import SCALED, round_to
from statedict.tensor.assembled import map_elements, map_rows, positions, read_elements, read_rows
from statedict.tensor.boxes import scratch
from statedict.tensor.lazy import LazyTensor

Result = TypeVar("Result")
WORK = {"float32": ("float32", "complex64"), "float64": ("float64", "complex128")}
"""Precision → the dtypes of sums, of real and of complex numbers."""
_COMPLEX = {"float16": "complex32", "bfloat16": "bcomplex32", "float32": "complex64", "float64": "complex128"}
_PIECE = 1 << 18  # elements: enough that calls are long, see docs/decisions/0005-writing.md


def has_mean(kind: DType) -> bool:
    """Whether elements of a dtype are numbers that can be averaged."""
    return kind.kind in ("float", "complex") and bool(kind.itemsize) and kind.name not in SCALED


def to_dtype(tensor: LazyTensor, kind: DType) -> LazyTensor:
    """The tensor in another dtype, rounded as PyTorch rounds."""
    return tensor if tensor.dtype is kind else map_elements(tensor, kind, partial(round_to, kind))


def combine(
    function: Callable[..., Any],
    tensors: Sequence[LazyTensor],
    precision: str = "float32",
    numbered: bool = False,
) -> LazyTensor:
    """A tensor, of the widest dtype, whose elements a function makes of flat arrays of those of tensors of one shape.

    Args:
        function: gets an array for each tensor, which it may change, and returns one; called with pieces of any length.
        tensors: of float or complex dtypes; flags and attributes are those of the first.
        precision: `"float32"` or `"float64"`, the least width that the function computes in.
        numbered: whether the function also gets the position of each element, last.
    """
    kind = widest(tensors)
    more = [positions(tensors[0].shape)] if numbered else []
    call = partial(_compute, function, work_dtype(tensors, precision), kind, len(tensors))
    return map_elements(tensors[0], kind, call, *tensors[1:], *more)


def combine_rows(function: Callable[..., Any], tensors: Sequence[LazyTensor], numbered: bool = False) -> LazyTensor:
    """As `combine`, but with arrays of whole rows along the last dimension."""
    kind = widest(tensors)
    more = [positions(tensors[0].shape)] if numbered else []
    call = partial(_compute_rows, function, work_dtype(tensors), kind, len(tensors))
    return map_rows([*tensors, *more], kind, call)


def read_whole_rows(tensors: Sequence[LazyTensor], numbered: bool = False) -> Iterator[list[Any]]:
    """Arrays of rows of tensors as `combine_rows` passes them, from the first to the last."""
    work = work_dtype(tensors).numpy
    for values in read_rows([*tensors, positions(tensors[0].shape)] if numbered else tensors):
        yield [*(value.astype(work) for value in values[: len(tensors)]), *values[len(tensors) :]]


def _compute_rows(function: Callable[..., Any], work: DType, kind: DType, count: int, *values: Any) -> Any:
    import numpy

    with numpy.errstate(all="ignore"):
        result = function(*(value.astype(work.numpy) for value in values[:count]), *values[count:])
        wrong = ~numpy.isfinite(result)
        if wrong.any():
            few = [value[wrong].astype(work.numpy) for value in values[:count]]
            result[wrong] = _keep_shared(result[wrong], few)
        return round_to(kind, result)


def work_dtype(tensors: Sequence[LazyTensor], precision: str = "float32") -> DType:
    """What elements of these tensors are computed in."""
    wide = any(one.dtype.component.bits > 32 for one in tensors)
    return dtype(WORK["float64" if wide else precision][any(one.dtype.kind == "complex" for one in tensors)])


def read_pieces(tensors: Sequence[LazyTensor], numbered: bool = False) -> Iterator[list[Any]]:
    """Arrays of the elements of tensors as `combine` passes them, from the first to the last."""
    work = work_dtype(tensors).numpy
    for values in read_elements([*tensors, positions(tensors[0].shape)] if numbered else tensors):
        for start in range(0, len(values[0]), _PIECE):
            part = slice(start, start + _PIECE)
            floats = [value[part].astype(work) for value in values[: len(tensors)]]
            yield [*floats, *(value[part] for value in values[len(tensors) :])]


def widest(tensors: Sequence[LazyTensor]) -> DType:
    """The dtype that holds the elements of all, as PyTorch promotes dtypes."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) == 1:
        return kinds.pop()
    parts = {kind.component for kind in kinds}
    most = max(kind.bits for kind in parts)
    widest = [kind for kind in parts if kind.bits == most]
    real = widest[0] if len(widest) == 1 else dtype("float32")  # such as float16 and bfloat16
    return dtype(_COMPLEX[real.name]) if any(kind.kind == "complex" for kind in kinds) else real


def _compute(function: Callable[..., Any], work: DType, kind: DType, count: int, *values: Any, out: Any) -> None:
    import numpy

    with numpy.errstate(all="ignore"), scratch(count * _PIECE * work.itemsize) as memory:
        rooms = numpy.frombuffer(memory, work.numpy).reshape(count, _PIECE)
        for start in range(0, len(out), _PIECE):
            part = slice(start, start + _PIECE)
            pieces = [value[part] for value in values]
            floats = [room[: len(piece)] for room, piece in zip(rooms, pieces, strict=False)]
            for array, piece in zip(floats, pieces, strict=False):
                array[...] = piece
            result = function(*floats, *pieces[count:])
            _mend(result, function, count, pieces)
            round_to(kind, result, out[part])


def _mend(result: Any, function: Callable[..., Any], count: int, values: list[Any]) -> None:
    """Compute again what is not finite, in float64."""
    import numpy

    if numpy.isfinite(result.sum()):  # one pass, without an array in between
        return
    wrong = numpy.flatnonzero(~numpy.isfinite(result))
    if not len(wrong):
        return
    few = [value[wrong].astype(numpy.promote_types(result.dtype, "f8")) for value in values[:count]]
    again = function(*(array.copy() for array in few), *(value[wrong] for value in values[count:]))
    result[wrong] = _keep_shared(again, few)


def _keep_shared(result: Any, values: list[Any]) -> Any:
    """The result, or the number that all sources have, such as the -inf of a mask."""
    import numpy

    return numpy.where(numpy.logical_and.reduce([value == values[0] for value in values]), values[0], result)


def weighted_mean(
    tensors: Sequence[LazyTensor], weights: Sequence[float], precision: str = "float32", keep: bool = False
) -> LazyTensor:
    """Σ w·x / Σ w of float or complex tensors of one shape, in float32 or wider, rounded once to their widest dtype.

    With `keep` an element that is the same in all stays so: in float32 (x + x + x) / 3 is not always x.

    Source: mergekit 0.1.5, merge_methods/linear.py.

    >>> import numpy
    >>> from statedict.tensor.lazy import as_lazy
    >>> one, other = (as_lazy(numpy.array([value], "float16")) for value in (1, 4))
    >>> weighted_mean([one, other], [2, 1]).tolist()
    [2.0]
    """
    exact = keep and work_dtype(tensors, precision) is widest(tensors)  # a wider sum is exact enough
    return combine(partial(_keep_equal if exact else add_up, weights, math.fsum(weights)), tensors, precision)


def _keep_equal(factors: Sequence[float], divisor: float, *values: Any) -> Any:
    import numpy

    equal, first = numpy.logical_and.reduce([value == values[0] for value in values[1:]]), values[0].copy()
    total = add_up(factors, divisor, *values)
    numpy.copyto(total, first, where=equal)
    return total


def add_up(factors: Sequence[float], divisor: float, *values: Any) -> Any:
    """Σ f·x / divisor of arrays, which are changed."""
    for value, factor in zip(values, factors, strict=True):
        if factor != 1:
            value *= factor
    total, *others = values
    for value in others:
        total += value
    if divisor != 1:
        total /= divisor
    return total


class Once(Generic[Result]):
    """A call that is made when its result is first asked for, by one thread."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call, self._lock, self._result = call, Lock(), list[Result]()

    def __call__(self) -> Result:
        """The result."""
        with self._lock:
            if not self._result:
                self._result.append(self._call())
            return self._result[0]

    def __reduce__(self) -> tuple[Any, ...]:  # another process makes the call itself
        return Once, (self._call,)
