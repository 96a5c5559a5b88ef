"""Tensors of small integers that are packed into words, and tensors whose elements stand for blocks of others.

Both are computed box by box when they are read, so that a quantized weight is decoded in bounded memory.
"""

from __future__ import annotations

import math
from functools import partial

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError
from statedict.tensor.assembled import copy_tensor_box
from statedict.tensor.boxes import PANEL, BoxSource, is_reordered, raw_dtype
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.tensor.boxes import At, Shape

_BYTE = BY_NAME["uint8"]


def unpack(
    tensor: LazyTensor,
    bits: int,
    axis: int,
    length: int,
    *,
    order: Sequence[int] = (),
    high_first: bool = False,
    gaps: bool = False,
) -> LazyTensor:
    """The numbers of 1 to 8 bits that words along an axis hold, as uint8, the lowest bits of a word first.

    Args:
        tensor: of words of 8 or 32 bits.
        bits: of a number, which may lie in two words.
        axis: along which words follow one another.
        length: how many numbers there are along it.
        order: which numbers the places in a word hold, from the lowest bits on; by default 0, 1, 2, …
        high_first: the first number has the highest bits of its word.
        gaps: no number lies in two words; the highest bits of a word may be unused.

    Raises:
        ValueError: there are too few words.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import numpy
    >>> unpack(as_lazy(numpy.array([0x21, 0x43], "uint8")), 4, 0, 4).tolist()
    [1, 2, 3, 4]
    """
    if axis >= tensor.ndim:
        raise ValueError(f"{tuple(tensor.shape)} has no dimension {axis}")
    if axis == tensor.ndim - 1 and tensor.strides is None and not order and not high_first and 8 % bits == 0:
        item = tensor.dtype.itemsize
        tensor = tensor.replace(dtype=_BYTE, shape=(*tensor.shape[:-1], tensor.shape[-1] * item))
    word = tensor.dtype.itemsize * 8
    whole = word // bits * bits if gaps else math.lcm(bits, word)
    count, words = whole // bits, -(-whole // word)
    if -(-length * bits // word) > tensor.shape[axis] or (gaps and -(-length // count) > tensor.shape[axis]):
        raise ValueError(f"{tensor.shape[axis]} words of {word} bits do not hold {length} numbers of {bits}")
    if order and len(order) != count:
        raise ValueError(f"words of {word} bits do not have {len(order)} numbers of {bits}")
    places = [divmod(lane * bits, word) for lane in range(count)]
    if high_first:
        places = [(0, word - bits - shift) for _, shift in places]
    lanes = [(order[lane] if order else lane, *place) for lane, place in enumerate(places)]
    shape = (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
    return _compute(tensor, shape, partial(_unpack, tensor, axis, bits, count, words, lanes))


def _compute(tensor: LazyTensor, shape: Shape, at: At, kind: Any = _BYTE) -> LazyTensor:
    below = tensor.storage.source
    limit = partial(_limit, tensor)
    source = BoxSource(kind, shape, at, below.name, limit, below.remote)
    return LazyTensor(kind, shape, Storage(source, 0, source.size, tensor.storage.device))


def _limit(tensor: LazyTensor) -> int:
    return PANEL * is_reordered(tensor.storage.source, tensor.shape, tensor.strides)


def _unpack(
    tensor: LazyTensor,
    axis: int,
    bits: int,
    count: int,
    words: int,
    lanes: list[tuple[int, int, int]],
    corner: Shape,
    out: Any,
) -> None:
    """Fill a box; `count` numbers lie in `words` words: for each its place, its word and the shift in it."""
    import numpy

    begin, size = corner[axis], out.shape[axis]
    first, last = begin // count, -(-(begin + size) // count)
    there = min(last * words, tensor.shape[axis]) - first * words
    shape = (*out.shape[:axis], (last - first) * words, *out.shape[axis + 1 :])
    raw = numpy.zeros(shape, raw_dtype(tensor.dtype.itemsize))
    copy_tensor_box(tensor, (*corner[:axis], first * words, *corner[axis + 1 :]), numpy.moveaxis(
        numpy.moveaxis(raw, axis, 0)[:there], 0, axis
    ))  # fmt: skip
    whole = begin == first * count and size == (last - first) * count
    made = out if whole else numpy.empty((*shape[:axis], (last - first) * count, *shape[axis + 1 :]), numpy.uint8)
    source, target = numpy.moveaxis(raw, axis, 0), numpy.moveaxis(made, axis, 0)
    width, mask = tensor.dtype.itemsize * 8, raw.dtype.type((1 << bits) - 1)
    for place, word, shift in lanes:
        numbers = source[word::words] >> raw.dtype.type(shift)
        if shift + bits > width:
            numbers |= source[word + 1 :: words] << raw.dtype.type(width - shift)
        numbers &= mask
        target[place::count] = numbers
    if not whole:
        skip = begin - first * count
        out[...] = numpy.moveaxis(target[skip : skip + size], 0, axis)


def spread(
    tensor: LazyTensor, shape: Shape, sizes: Sequence[int], index: tuple[int, LazyTensor] | None = None
) -> LazyTensor:
    """A tensor of a larger shape whose elements repeat those of a small one, such as the scales of blocks.

    Args:
        tensor: of as many dimensions as the shape.
        shape: of the result.
        sizes: for each dimension how many elements in a row are the same one.
        index: a dimension, and the number of the element for each place along it instead.

    Raises:
        ValueError: there are too few elements.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import numpy
    >>> spread(as_lazy(numpy.array([[1, 2]])), (2, 3), (2, 2)).tolist()
    [[1, 1, 2], [1, 1, 2]]
    """
    axes = zip(shape, sizes, tensor.shape, strict=True)
    few = [axis for axis, (n, size, there) in enumerate(axes) if -(-n // size) > there]
    indexed = [] if index is None else [index[0]]
    if (few and few != indexed) or (index is not None and index[1].shape != (shape[index[0]],)):
        raise ValueError(f"{tuple(tensor.shape)} are not those of blocks of {tuple(sizes)} of {shape}")
    return _compute(tensor, shape, partial(_spread, tensor, tuple(sizes), index), tensor.dtype)


def _spread(tensor: LazyTensor, sizes: Shape, index: tuple[int, LazyTensor] | None, corner: Shape, out: Any) -> None:
    import numpy

    places: list[Any] = []
    for axis, (begin, count, size) in enumerate(zip(corner, out.shape, sizes, strict=True)):
        if index is not None and index[0] == axis:
            places.append(_read_index(index[1], begin, count, tensor.shape[axis]))
        elif size >= begin + count:
            places.append(numpy.zeros(1, "i8"))
        else:
            places.append(numpy.arange(begin, begin + count) // size)
    start = tuple(int(place.min()) for place in places)
    part = numpy.empty(
        [int(p.max()) + 1 - s for p, s in zip(places, start, strict=True)], raw_dtype(tensor.dtype.itemsize)
    )
    copy_tensor_box(tensor, start, part)
    for axis, (place, first) in enumerate(zip(places, start, strict=True)):
        if len(place) > 1 and not (len(place) == part.shape[axis] and sizes[axis] == 1 and index is None):
            part = part.take(place - first, axis)
    out[...] = part


def _read_index(index: LazyTensor, begin: int, count: int, most: int) -> Any:
    import numpy

    numbers = numpy.asarray(index[begin : begin + count].numpy()).astype("i8")
    if int(numbers.min()) < 0 or int(numbers.max()) >= most:
        raise CorruptFileError(
            f"{index.storage.source.name}: an index of groups has {numbers.min()} to {numbers.max()}, and there are "
            f"{most:,} groups; it is damaged, fetch it again"
        )
    return numbers


def turn(tensor: LazyTensor, *axes: int) -> LazyTensor:
    """The tensor with its dimensions in another order, row-major; computed when it is read."""
    shape, strides = (tuple(some[axis] for axis in axes) for some in (tensor.shape, tensor.stride()))
    return tensor.replace(shape=shape, strides=strides).contiguous()
