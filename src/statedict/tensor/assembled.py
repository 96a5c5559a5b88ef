"""One tensor made of others that lie in it, or of what a function makes of another's elements; read in boxes."""

from __future__ import annotations

from functools import partial

from statedict.errors import UnsupportedError
from statedict.tensor.boxes import PANEL, BoxSource, copy, cut, jumps, raw
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.boxes import Box

    Shape = tuple[int, ...]
    Chunk = tuple[Shape, LazyTensor | Callable[[], LazyTensor]]
    """Where a chunk begins along each dimension, and the tensor, or what fetches it when it is first read."""
    Lack = tuple[tuple[Box, ...], Callable[[Shape, Shape], Exception]]

_MAPPED = 2 << 20  # bytes that a function gets at once


def assemble(
    kind: DType,
    shape: Shape,
    chunks: Sequence[Chunk],
    name: str,
    fill: float = 0,
    remote: bool = False,
    lack: Lack | None = None,
) -> LazyTensor:
    """A tensor of chunks; what none of them covers has one value, or is an error.

    Args:
        kind: the dtype of all of them.
        shape: the whole shape.
        chunks: those that it is made of; none overlap.
        name: what errors call it.
        fill: the value of elements that no chunk covers.
        remote: whether those that are not fetched yet are far away.
        lack: where there is no value for what none covers: the boxes that are there, and what makes the error for one
            that is not.

    Raises:
        UnsupportedError: elements are not whole numbers of bytes.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import numpy
    >>> one = as_lazy(numpy.ones((1, 2)))
    >>> assemble(one.dtype, (2, 2), [((1, 0), one)], "example").tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not kind.itemsize:
        raise UnsupportedError(f"{name}: elements of {kind.bits} bits cannot be put together")
    parts = list(chunks)
    remote |= any(isinstance(chunk, LazyTensor) and chunk.storage.source.remote for _, chunk in parts)
    held, error = lack or (None, None)
    # a panel would ask for more than the reader does
    most = partial(_most_of_chunks, parts) if lack is None else int
    source = BoxSource(kind, shape, partial(_chunks, parts, kind, error or fill), name, most, remote, held)
    return LazyTensor(kind, shape, Storage(source, 0, source.size))


def map_elements(tensor: LazyTensor, kind: DType, function: Callable[[Any], Any]) -> LazyTensor:
    """A tensor of the same shape whose elements a function makes of those of another.

    Args:
        tensor: the other one.
        kind: the dtype of the result.
        function: takes a flat numpy array and returns one of as many elements, of the dtype `kind`.
    """
    rows = tensor.contiguous()
    below = rows.storage.source
    at = partial(_make, rows, kind, function)
    most = partial(_most_of_mapped, below, rows.dtype.itemsize, kind.itemsize)
    source = BoxSource(kind, rows.shape, at, below.name, most, below.remote)
    storage = Storage(source, 0, source.size, rows.storage.device)
    return rows.replace(dtype=kind, storage=storage, offset=0)


def _chunks(
    chunks: list[Chunk], kind: DType, fill: float | Callable[[Shape, Shape], Exception], corner: Shape, out: Any
) -> None:
    """A box of chunks."""
    import numpy

    inside: list[tuple[LazyTensor, Shape, Any]] = []
    end = tuple(place + n for place, n in zip(corner, out.shape, strict=True))
    for index, (start, _) in enumerate(chunks):
        chunk = _fetch(chunks, index)
        if start and (start[0] >= end[0] or start[0] + chunk.shape[0] <= corner[0]):
            continue  # most of a thousand chunks
        begin = tuple(map(max, corner, start))
        stop = tuple(min(b, s + n) for b, s, n in zip(end, start, chunk.shape, strict=True))
        if all(a < b for a, b in zip(begin, stop, strict=True)):
            where = (*(slice(a - c, b - c) for a, b, c in zip(begin, stop, corner, strict=True)), ...)
            inside.append((chunk, tuple(a - s for a, s in zip(begin, start, strict=True)), out[where]))
    if sum(part.size for _, _, part in inside) < out.size:
        if callable(fill):
            raise fill(corner, out.shape)
        out[...] = numpy.full(1, fill, kind.numpy).view(raw(kind.itemsize))[0]
    for chunk, place, part in inside:
        _box(chunk, place, part)


def _fetch(chunks: list[Chunk], index: int) -> LazyTensor:
    """A chunk, which from now on stands in the place of what fetched it."""
    start, chunk = chunks[index]
    if not isinstance(chunk, LazyTensor):
        chunk = chunk()
        chunks[index] = start, chunk
    return chunk


def _most_of_chunks(chunks: list[Chunk]) -> int:
    tensors = (_fetch(chunks, index) for index in range(len(chunks)))
    return PANEL * any(jumps(tensor.storage.source, tensor.shape, tensor.strides) for tensor in tensors)


def _most_of_mapped(source: ByteSource, before: int, after: int) -> int:
    """So much that there is room for what the panel is made of, too; itemsizes before and after."""
    return PANEL * after // (before + after) * jumps(source, (), None)


def _box(tensor: LazyTensor, corner: Shape, out: Any) -> None:
    strides = tensor.stride()
    ahead = sum(place * stride for place, stride in zip(corner, strides, strict=True)) * tensor.dtype.itemsize
    copy(tensor.storage.source, tensor.dtype, tensor.storage.offset + tensor.offset + ahead, strides, out)


def _make(tensor: LazyTensor, kind: DType, function: Callable[[Any], Any], corner: Shape, out: Any) -> None:
    import numpy

    native, item, source = tensor.dtype.numpy, tensor.dtype.itemsize, tensor.storage.source
    most = PANEL - _most_of_mapped(source, item, kind.itemsize) if jumps(source, (), None) else _MAPPED
    memory = numpy.empty(min(out.size, max(1, most // item)), raw(item))
    for where in cut(out.shape, len(memory)):
        part = out[(*where, ...)]
        values: Any = memory[: part.size].reshape(part.shape)
        place = tuple(c + w.start for c, w in zip(corner, where, strict=False)) + corner[len(where) :]
        _box(tensor, place, values)
        for few in cut(part.shape, max(1, _MAPPED // item)):
            target = part[(*few, ...)]
            made = function(values[(*few, ...)].reshape(-1).view(native))
            target[...] = made.view(raw(kind.itemsize)).reshape(target.shape)
