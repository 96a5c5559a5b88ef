"""One tensor made of others that lie in it, or of what a function makes of another's elements; read in blocks."""

from __future__ import annotations

import math

from statedict.arrays import numpy_view
from statedict.io.source import ComputedSource
from statedict.tensor import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from statedict.dtypes import DType

    Chunk = tuple[tuple[int, ...], Callable[[], LazyTensor]]
    """Where a chunk begins along each dimension, and the tensor, fetched when it is first read."""
    Part = tuple[tuple[int, ...], LazyTensor]


def assembled(kind: DType, shape: tuple[int, ...], chunks: Sequence[Chunk], name: str, fill: float = 0) -> LazyTensor:
    """A tensor of chunks; what none of them covers has one value.

    Args:
        kind: the dtype of all of them.
        shape: the whole shape.
        chunks: those that it is made of; none overlap.
        name: what errors call it.
        fill: the value of elements that no chunk covers.

    >>> from statedict.tensor import as_lazy
    >>> import numpy
    >>> one = as_lazy(numpy.ones((1, 2)))
    >>> assembled(one.dtype, (2, 2), [((1, 0), lambda: one)], "example").tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    opened: dict[int, LazyTensor] = {}

    def part(index: int) -> Part:
        if index not in opened:
            opened[index] = chunks[index][1]()
        return chunks[index][0], opened[index]

    def put(first: int, out: Any) -> None:
        _gather(out, first, shape, [part(index) for index in range(len(chunks))])

    def read(offset: int, buffer: memoryview) -> None:
        if len(chunks) == 1 and part(0)[1].shape == shape:
            whole = part(0)[1].contiguous()
            whole.storage.source.readinto(whole.storage.offset + whole.offset + offset, buffer)
        else:
            _elements(kind, offset, buffer, put, fill)

    nbytes = kind.nbytes(math.prod(shape))
    return LazyTensor(kind, shape, Storage(ComputedSource(nbytes, read, name), 0, nbytes))


def mapped(tensor: LazyTensor, kind: DType, function: Callable[[Any], Any]) -> LazyTensor:
    """A tensor of the same shape whose elements a function makes of those of another.

    Args:
        tensor: the other one.
        kind: the dtype of the result.
        function: takes a flat numpy array and returns one of as many elements, of the dtype `kind`.
    """
    rows = tensor.contiguous()
    start, item = rows.storage.offset + rows.offset, rows.dtype.itemsize

    def put(first: int, out: Any) -> None:
        import numpy

        data = rows.storage.source.read(start + first * item, len(out) * item)
        out[:] = function(numpy.frombuffer(data, rows.dtype.numpy))

    nbytes = kind.nbytes(tensor.numel())
    source = ComputedSource(
        nbytes, lambda offset, buffer: _elements(kind, offset, buffer, put), rows.storage.source.name
    )
    return LazyTensor(
        kind,
        tensor.shape,
        Storage(source, 0, nbytes, tensor.storage.device),
        0,
        None,
        tensor.requires_grad,
        tensor.parameter,
    )


def _elements(
    kind: DType, offset: int, buffer: memoryview, put: Callable[[int, Any], None], fill: float | None = None
) -> None:
    """Fill a buffer with whole elements, of which its first and last byte may be in the midst of one."""
    import numpy

    item = kind.itemsize
    first, last = offset // item, -(-(offset + len(buffer)) // item)
    whole = offset == first * item and len(buffer) == (last - first) * item
    out = numpy.frombuffer(buffer, kind.numpy) if whole else numpy.empty(last - first, kind.numpy)
    if fill is not None:
        out[:] = fill
    put(first, out)
    if not whole:
        skip = offset - first * item
        buffer[:] = out.view(numpy.uint8).data[skip : skip + len(buffer)]


def _gather(out: Any, start: int, shape: tuple[int, ...], parts: list[Part]) -> None:
    """Copy elements `start`, `start + 1`, … of the whole, counted row-major, into the flat array `out`.

    The work is proportional to `len(out)` wherever it starts, however long the rows are.
    """
    if not shape:
        for _, tensor in parts:
            out[0] = _read(tensor)
        return
    row = math.prod(shape[1:])
    done = 0
    while done < len(out):
        index, within = divmod(start + done, row)
        left = len(out) - done
        if (within or left < row) and len(shape) > 1:
            take = min(row - within, left)
            inner = [(o[1:], t[index - o[0]]) for o, t in parts if o[0] <= index < o[0] + t.shape[0]]
            _gather(out[done : done + take], within, shape[1:], inner)
        else:
            rows = left // row
            take = rows * row
            block = out[done : done + take].reshape(rows, *shape[1:])
            for offsets, tensor in parts:
                begin, end = max(index, offsets[0]), min(index + rows, offsets[0] + tensor.shape[0])
                if begin < end:
                    where = (slice(o, o + n) for o, n in zip(offsets[1:], tensor.shape[1:], strict=True))
                    block[(slice(begin - index, end - index), *where)] = _read(
                        tensor[begin - offsets[0] : end - offsets[0]]
                    )
        done += take


def _read(tensor: LazyTensor) -> Any:
    """The elements of a piece; from a file they are read, for pages that are mapped would stay in memory."""
    source = tensor.storage.source
    if source.in_memory or tensor.strides is not None:
        return tensor.numpy()
    data = source.read(tensor.storage.offset + tensor.offset, tensor.nbytes)
    return numpy_view(memoryview(data), tensor.dtype, tensor.shape, None)
