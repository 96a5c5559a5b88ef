"""Tensors that are computed in boxes: put together from chunks, or mapped element by element from another tensor."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import pairwise, product
from math import prod

from statedict.dtypes import dtype
from statedict.errors import CorruptFileError, LimitError, UnsupportedError
from statedict.tensor.arrays import Strides, contiguous_strides, format_boxes
from statedict.tensor.boxes import PANEL, BoxSource, copy_box, cut, is_reordered, raw_dtype, scratch
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.boxes import Box, Shape

    Index = tuple[slice, ...]
    Chunk = tuple[Shape, LazyTensor | Callable[[], LazyTensor]]
    """Its corner, and the tensor or a function that fetches it when it is first read."""
    Lack = tuple[tuple[Box, ...], Callable[[Shape, Shape], Exception]]

REMEDY = "fetch the files of the other ranks, or save it from all ranks"
_MAX_APART = 4096  # chunks that are compared pair by pair
_MAX_SIZE = 1 << 60
_MAPPED = 8 << 20  # bytes that a function gets at once


def assemble(
    kind: DType,
    shape: Shape,
    chunks: Sequence[Chunk],
    name: str,
    fill: float = 0,
    remote: bool = False,
    lack: Lack | None = None,
) -> LazyTensor:
    """A tensor of chunks that do not overlap; errors call it `name`, and `remote` says where unfetched chunks are.

    Elements that no chunk covers have the value `fill`, or are missing: then `lack` has the boxes that are there, and a
    function that makes the error for reading another box.

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
    present, error = lack or (None, None)
    # no panels where elements are missing: a panel would ask for more than its reader does
    limit = partial(_panel_limit, parts) if lack is None else int
    source = BoxSource(kind, shape, partial(_copy_chunks, parts, kind, error or fill), name, limit, remote, present)
    return LazyTensor(kind, shape, Storage(source, 0, source.size))


def covers(where: str, shape: Shape, boxes: list[Box]) -> bool:
    """Whether the chunks of a tensor cover it; CorruptFileError if they overlap."""
    numel, whole = sum(prod(sizes) for _, sizes in boxes), prod(shape)
    if numel == whole and _tile(shape, boxes):
        return True
    if numel >= whole or not _are_apart(shape, boxes):
        raise CorruptFileError(
            f"{where}: its chunks have {numel:,} elements, do not make up its {whole:,} and overlap; they are of "
            "different checkpoints, or damaged"
        )
    return False


def missing_error(
    where: str, shape: Shape, held: tuple[Box, ...], lost: Sequence[str], corner: Shape, sizes: Shape
) -> CorruptFileError:
    """The error for reading a box that is not there; `lost` are the files that are missing."""
    missing = f"; missing: {', '.join(lost[:3])}{', …' * (len(lost) > 3)}" if lost else ""
    return CorruptFileError(
        f"{where}: {format_boxes([(corner, sizes)])} is not all there; of its shape {shape} "
        f"there is {format_boxes(held)} only{missing}; {REMEDY}"
    )


def _tile(size: Shape, chunks: list[Box]) -> bool:
    """Whether chunks with as many elements as the tensor cover it.

    They do if each element is in an odd number of chunks. Then all corners cancel out in pairs but those of the tensor.
    """
    axes = [a for a in range(len(size)) if any(sizes[a] != size[a] for _, sizes in chunks)]
    if 0 in size or not axes:
        return True
    if len(axes) > 8:
        raise LimitError(f"a tensor that is split along {len(axes)} axes")
    odd: set[str] = set()  # of texts, whose hashes cannot be chosen
    for offsets, sizes in [((0,) * len(size), size), *chunks]:
        if 0 not in sizes:
            odd ^= {str(corner) for corner in product(*((offsets[a], offsets[a] + sizes[a]) for a in axes))}
    return not odd


def _are_apart(shape: Shape, boxes: list[Box]) -> bool:
    held = [box for box in boxes if 0 not in box[1]]
    for axis in range(len(shape)):
        runs = sorted((begin[axis], begin[axis] + sizes[axis]) for begin, sizes in held)
        if all(end <= begin for (_, end), (begin, _) in pairwise(runs)):
            return True
    if len(held) > _MAX_APART or any(n > _MAX_SIZE for n in shape):
        raise LimitError(f"an incomplete tensor of {len(held):,} chunks, over {_MAX_APART:,} or too large")
    import numpy

    begins = numpy.array([begin for begin, _ in held], "i8").reshape(len(held), len(shape))
    ends = begins + numpy.array([sizes for _, sizes in held], "i8").reshape(begins.shape)
    return not any(
        ((begins[at] < ends[at + 1 :]) & (begins[at + 1 :] < ends[at])).all(1).any() for at in range(len(held))
    )


def map_elements(tensor: LazyTensor, kind: DType, function: Callable[..., Any], *others: LazyTensor) -> LazyTensor:
    """A tensor of dtype `kind` whose elements `function` makes of flat numpy arrays of those of `tensor` and `others`.

    It fills its argument `out`, as ufuncs do. All have one shape. Flags and attributes are those of `tensor`.
    """
    parts = [part.contiguous() for part in (tensor, *others)] if others else [tensor.contiguous()]
    rows, items = parts[0], sum(part.dtype.itemsize for part in parts)
    below = [part.storage.source for part in parts]
    limit = partial(_mapped_panel_limit, below, items, kind.itemsize)
    remote = any(source.remote for source in below)
    at, flat = partial(_map_box, parts, kind, function), partial(_map_run, parts, kind, function)
    source = BoxSource(kind, rows.shape, at, below[0].name, limit, remote, flat=flat)
    storage = Storage(source, 0, source.size, rows.storage.device)
    flags = rows.requires_grad, rows.parameter, rows.attributes, rows.ndarray
    return LazyTensor(kind, rows.shape, storage, 0, None, *flags)


def map_rows(
    tensors: Sequence[LazyTensor], kind: DType, function: Callable[..., Any], numbered: bool = False
) -> LazyTensor:
    """As `map_elements`, but `function` gets arrays of whole rows along the last dimension, and returns one.

    A row is held whole; a tensor without dimensions is one row of one. `numbered`: of matrices, the function also gets
    the number of the first row, first.
    """
    rows = [tensor.contiguous() for tensor in tensors]
    first = rows[0]
    below = [tensor.storage.source for tensor in rows]
    remote = any(source.remote for source in below)
    at = partial(_map_rows, rows, kind, function, numbered)
    source = BoxSource(kind, first.shape, at, below[0].name, partial(int, PANEL), remote)
    return first.replace(dtype=kind, storage=Storage(source, 0, source.size, first.storage.device), offset=0)


def _map_rows(
    tensors: list[LazyTensor], kind: DType, function: Callable[..., Any], numbered: bool, corner: Shape, out: Any
) -> None:
    if not out.ndim:
        out, corner, tensors = out.reshape(1), (0,), [tensor.replace(shape=(1,)) for tensor in tensors]
    begin, shape = (*corner[:-1], 0), (*out.shape[:-1], tensors[0].shape[-1])
    wanted = slice(corner[-1], corner[-1] + out.shape[-1])
    for where, values in _read_rows(tensors, begin, shape):
        target = out[(*where[: out.ndim - 1], ...)]
        place = [corner[0] + (where[0].start if where else 0)] if numbered else []
        result = function(*place, *values).view(raw_dtype(kind.itemsize)).reshape(*target.shape[:-1], shape[-1])
        target[...] = result[..., wanted]


def read_rows(tensors: Sequence[LazyTensor]) -> Iterator[list[Any]]:
    """Arrays of whole rows of tensors of one shape, piece by piece; each piece overwrites the last one."""
    rows = [tensor.contiguous() for tensor in tensors]
    for _, values in _read_rows(rows, (0,) * rows[0].ndim, rows[0].shape):
        yield values


def _read_rows(tensors: list[LazyTensor], corner: Shape, shape: Shape) -> Iterator[tuple[Index, list[Any]]]:
    import numpy

    length = shape[-1] if shape else 1
    most = max(length, _MAPPED // sum(tensor.dtype.itemsize for tensor in tensors))
    for where in cut(shape, most) if prod(shape) else ():
        inside = (*(w.stop - w.start for w in where), *shape[len(where) :])
        place = tuple(c + w.start for c, w in zip(corner, where, strict=False)) + corner[len(where) :]
        values: list[Any] = []
        for tensor in tensors:
            part = numpy.empty(inside, raw_dtype(tensor.dtype.itemsize))
            copy_tensor_box(tensor, place, part)
            values.append(part.view(tensor.dtype.numpy).reshape(-1, length))
        yield where, values


def positions(shape: Shape) -> LazyTensor:
    """An int64 tensor with the row-major position of each element, computed when it is read.

    >>> positions((2, 2)).tolist()
    [[0, 1], [2, 3]]
    """
    kind = dtype("int64")
    source = BoxSource(kind, shape, partial(_count_up, contiguous_strides(shape)), "positions", int)
    return LazyTensor(kind, shape, Storage(source, 0, source.size))


def _count_up(strides: Strides, corner: Shape, out: Any) -> None:
    import numpy

    numbers: Any = numpy.int64(sum(place * stride for place, stride in zip(corner, strides, strict=True)))
    for axis, (size, stride) in enumerate(zip(out.shape, strides, strict=True)):
        numbers = numbers + numpy.arange(size).reshape(-1, *[1] * (out.ndim - axis - 1)) * stride
    out[...] = numpy.asarray(numbers, "i8").view("u8")


def _copy_chunks(
    chunks: list[Chunk], kind: DType, fill: float | Callable[[Shape, Shape], Exception], corner: Shape, out: Any
) -> None:
    import numpy

    inside: list[tuple[LazyTensor, Shape, Any]] = []
    end = tuple(place + n for place, n in zip(corner, out.shape, strict=True))
    for index, (start, _) in enumerate(chunks):
        chunk = _fetch(chunks, index)
        if start and (start[0] >= end[0] or start[0] + chunk.shape[0] <= corner[0]):
            continue  # a shortcut for tensors of a thousand chunks
        begin = tuple(map(max, corner, start))
        stop = tuple(min(b, s + n) for b, s, n in zip(end, start, chunk.shape, strict=True))
        if all(a < b for a, b in zip(begin, stop, strict=True)):
            where = (*(slice(a - c, b - c) for a, b, c in zip(begin, stop, corner, strict=True)), ...)
            inside.append((chunk, tuple(a - s for a, s in zip(begin, start, strict=True)), out[where]))
    if sum(part.size for _, _, part in inside) < out.size:
        if callable(fill):
            raise fill(corner, out.shape)
        out[...] = numpy.full(1, fill, kind.numpy).view(raw_dtype(kind.itemsize))[0]
    for chunk, place, part in inside:
        copy_tensor_box(chunk, place, part)


def _fetch(chunks: list[Chunk], index: int) -> LazyTensor:
    start, chunk = chunks[index]
    if not isinstance(chunk, LazyTensor):
        chunk = chunk()
        chunks[index] = start, chunk
    return chunk


def _panel_limit(chunks: list[Chunk]) -> int:
    tensors = (_fetch(chunks, index) for index in range(len(chunks)))
    return PANEL * any(is_reordered(tensor.storage.source, tensor.shape, tensor.strides) for tensor in tensors)


def _mapped_panel_limit(sources: list[ByteSource], before: int, after: int) -> int:
    """Leaves room for the elements that the panel is made of; itemsizes before and after."""
    return PANEL * after // (before + after) * any(is_reordered(source, (), None) for source in sources)


def copy_tensor_box(tensor: LazyTensor, corner: Shape, out: Any) -> None:
    """Fill an array of raw elements with the box of a tensor at a corner."""
    storage = tensor.storage
    copy_box(storage.source, tensor.dtype, storage.offset + tensor.offset, tensor.stride(), corner, out)


def _map_box(tensors: list[LazyTensor], kind: DType, function: Callable[..., Any], corner: Shape, out: Any) -> None:
    import numpy

    sizes = sum(tensor.dtype.itemsize for tensor in tensors)
    panel = _mapped_panel_limit([tensor.storage.source for tensor in tensors], sizes, kind.itemsize)
    for where, few, values in _read_pieces(tensors, corner, out.shape, PANEL - panel if panel else _MAPPED):
        target = out[(*where, ...)][(*few, ...)]
        if target.flags.c_contiguous:
            function(*values, out=target.reshape(-1).view(kind.numpy))
        else:
            with scratch(target.nbytes) as memory:
                made = numpy.frombuffer(memory, kind.numpy)
                function(*values, out=made)
                target[...] = made.view(target.dtype).reshape(target.shape)


def _map_run(tensors: list[LazyTensor], kind: DType, function: Callable[..., Any], first: int, out: Any) -> None:
    flat = [tensor if tensor.ndim == 1 else tensor.replace(shape=(tensor.numel(),)) for tensor in tensors]
    _map_box(flat, kind, function, (first,), out)


def read_elements(tensors: Sequence[LazyTensor]) -> Iterator[list[Any]]:
    """Flat numpy arrays of the elements of tensors of one shape, piece by piece; each piece overwrites the last one."""
    rows = [tensor.contiguous() for tensor in tensors]
    panels = any(is_reordered(tensor.storage.source, (), None) for tensor in rows)
    for _, _, values in _read_pieces(rows, (0,) * rows[0].ndim, rows[0].shape, PANEL if panels else _MAPPED):
        yield values


def _read_pieces(
    tensors: list[LazyTensor], corner: Shape, shape: Shape, most: int
) -> Iterator[tuple[Index, Index, list[Any]]]:
    """The elements in a box, as (part, piece of the part, flat arrays); a part has up to `most` bytes."""
    import numpy

    sizes = [tensor.dtype.itemsize for tensor in tensors]
    count = min(prod(shape), max(1, most // sum(sizes)))
    with ExitStack() as stack:
        pieces = [stack.enter_context(scratch(max(count, 1) * size)) for size in sizes]
        memory = [numpy.frombuffer(piece, raw_dtype(size)) for piece, size in zip(pieces, sizes, strict=True)]
        for where in cut(shape, count):
            inside = (*(w.stop - w.start for w in where), *shape[len(where) :])
            place = tuple(c + w.start for c, w in zip(corner, where, strict=False)) + corner[len(where) :]
            parts: list[Any] = [some[: prod(inside)].reshape(inside) for some in memory]
            for tensor, part in zip(tensors, parts, strict=True):
                copy_tensor_box(tensor, place, part)
            for few in cut(inside, max(1, _MAPPED // sum(sizes))):
                pairs = zip(tensors, parts, strict=True)
                yield where, few, [part[(*few, ...)].reshape(-1).view(tensor.dtype.numpy) for tensor, part in pairs]
