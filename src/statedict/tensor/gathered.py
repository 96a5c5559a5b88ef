"""Tensors whose rows are those of other tensors, in any order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from statedict.tensor.assembled import copy_tensor_box
from statedict.tensor.boxes import BoxSource
from statedict.tensor.lazy import LazyTensor, Storage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.tensor.boxes import Shape


def gather(tensors: Sequence[LazyTensor], which: Sequence[int], rows: Sequence[int]) -> LazyTensor:
    """A tensor whose row `i` is row `rows[i]` of `tensors[which[i]]`; flags are those of the first tensor.

    All have one dtype, and one shape but for the number of rows.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import numpy
    >>> one, other = as_lazy(numpy.arange(2)), as_lazy(numpy.arange(10, 14))
    >>> gather([one, other], [0, 1, 1, 0], [1, 2, 3, 1]).tolist()
    [1, 12, 13, 1]
    """
    import numpy

    models, places = numpy.asarray(which, "i8"), numpy.asarray(rows, "i8")
    moved = (numpy.diff(models) != 0) | (numpy.diff(places) != 1)
    starts = numpy.concatenate([[0], numpy.flatnonzero(moved) + 1])[: len(models)]
    first, shape = tensors[0], (len(models), *tensors[0].shape[1:])
    whole = [tensor.contiguous() for tensor in tensors]
    remote = any(tensor.storage.source.remote for tensor in whole)
    at = partial(_copy_runs, whole, starts, models[starts], places[starts], len(models))
    source = BoxSource(first.dtype, shape, at, first.storage.source.name, int, remote)
    storage = Storage(source, 0, source.size, first.storage.device)
    return first.replace(shape=shape, strides=None, storage=storage, offset=0)


def _copy_runs(
    tensors: Sequence[LazyTensor], starts: Any, models: Any, places: Any, count: int, corner: Shape, out: Any
) -> None:
    begin, end = corner[0], corner[0] + out.shape[0]
    at = int(starts.searchsorted(begin, "right")) - 1
    while begin < end:
        stop = min(end, int(starts[at + 1]) if at + 1 < len(starts) else count)
        row = int(places[at]) + begin - int(starts[at])
        part = out[begin - corner[0] : stop - corner[0]]
        copy_tensor_box(tensors[int(models[at])], (row, *corner[1:]), part)
        begin, at = stop, at + 1
