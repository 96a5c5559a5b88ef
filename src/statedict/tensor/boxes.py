"""Boxes of tensors: read from a file, or computed, in bounded memory and work.

    runs of a file ──copy──▶ a box of an array        a box: a corner, and a size along each dimension
    BoxSource.at(corner, box): computes a box; boxes of boxes go down to the file in one step

A transposed, sliced or computed tensor is written in another order than it has in the file. So it is made in panels of
many rows: a panel reads each run once, and also reads the gap between two runs where that is cheaper than another call.
Only readers of small blocks use panels. docs/decisions/0013-panels.md explains the sizes.
"""

from __future__ import annotations

import math
import os
import weakref
from bisect import bisect_left, insort
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from threading import local

from statedict.io.parallel import REMOTE_WORKERS, WORKERS
from statedict.io.pipeline import locate_file
from statedict.io.source import ByteSource, allocate
from statedict.tensor.arrays import contiguous_strides

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.tensor.arrays import Strides

    Shape = tuple[int, ...]
    Box = tuple[Shape, Shape]
    """Corner and sizes."""
    At = Callable[[Shape, Any], None]
    """Fills an array of raw elements (see `raw_dtype`) with the box of its shape at a corner."""

PANEL = (64 << 20) // WORKERS
PIECE = 1 << 20  # fits into the processor's cache
_ROW = 64 << 10  # shorter runs are copied many at once
_GAP = 8 << 10  # what another call costs, in bytes of a file
_GAP_COMPUTED = 64 << 10
_THREAD = local()
_SPARES, _SPARE = 4, 4 << 20  # how many pieces of memory a thread keeps, and of how many bytes at most


def raw_dtype(itemsize: int) -> Any:
    """The numpy dtype for moving elements; numpy copies the dtypes of ml_dtypes one element at a time."""
    import numpy

    return numpy.dtype({1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}.get(itemsize, f"V{itemsize}"))


class BoxSource(ByteSource):
    """The bytes of a tensor that a function makes box by box.

    Args:
        kind, shape, name: of the tensor.
        at: makes a box.
        panel_limit: returns the largest size of a panel; 0 if the bytes below have the same order.
        remote: whether the bytes below are: more threads then make smaller panels.
        present: the boxes that can be made; None if all can.
        flat: fills a flat array from an element on, whatever the shape.
    """

    __slots__ = (
        "__weakref__",
        "_panel",
        "at",
        "flat",
        "kind",
        "name",
        "origin",
        "panel_limit",
        "present",
        "remote",
        "shape",
        "size",
    )

    remote: bool

    def __init__(
        self,
        kind: DType,
        shape: Shape,
        at: At,
        name: str,
        panel_limit: Callable[[], int],
        remote: bool = False,
        present: tuple[Box, ...] | None = None,
        flat: Callable[[int, Any], None] | None = None,
    ) -> None:
        self.kind, self.shape, self.at, self.name, self.panel_limit = kind, shape, at, name, panel_limit
        self.remote, self.present, self.flat = remote, present, flat
        # the row-major tensor whose elements these are, and their strides here
        self.origin: tuple[Any, Strides] | None = None
        self.size = math.prod(shape) * kind.itemsize
        self._panel = -1

    @property
    def coarse(self) -> bool:
        """Yes: each read makes calls of numpy."""
        return True

    @property
    def panel(self) -> int:
        """Bytes to make at a time, in whole rows, for readers of small blocks; 0 to make just what they ask for."""
        if self._panel < 0:
            limit = self.panel_limit() * WORKERS // (REMOTE_WORKERS if self.remote else WORKERS)
            rows = accumulate(reversed(self.shape), lambda size, n: size * n, initial=self.kind.itemsize)
            row = max((size for size in rows if 0 < size <= limit), default=0)
            self._panel = limit // max(row, 1) * row
        return self._panel

    def _fill(self, offset: int, buffer: memoryview) -> None:
        if 4 * len(buffer) >= min(self.panel, self.size):
            self._compute(offset, buffer)
            return
        done = 0
        while done < len(buffer):
            index, within = divmod(offset + done, self.panel)
            part = self._get_panel(index)[within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
        if offset + done == self.size:
            _THREAD.last = None

    def _get_panel(self, index: int) -> memoryview:
        """A panel, which its thread keeps until it needs another."""
        last: tuple[Any, int, memoryview, memoryview] | None = getattr(_THREAD, "last", None)
        if last is not None and last[0]() is self and last[1] == index:
            return last[3]
        _THREAD.last = None  # making a panel may need panels of other sources
        memory = allocate(PANEL) if last is None else last[2]
        panel = memory[: min(self.panel, self.size - index * self.panel)]
        self._compute(index * self.panel, panel)
        _THREAD.last = weakref.ref(self), index, memory, panel
        return panel

    def _compute(self, offset: int, buffer: memoryview) -> None:
        import numpy

        item = self.kind.itemsize
        first, last = offset // item, -(-(offset + len(buffer)) // item)
        whole = offset == first * item and len(buffer) == (last - first) * item
        out = numpy.frombuffer(buffer, raw_dtype(item)) if whole else numpy.empty(last - first, raw_dtype(item))
        if self.flat is not None and not self.panel:
            self.flat(first, out)
        else:
            done = 0
            for corner, sizes in boxes(self.shape, first, last - first):
                count = math.prod(sizes)
                self.at(corner, out[done : done + count].reshape(sizes))
                done += count
        if not whole:  # the buffer begins or ends within an element
            skip = offset - first * item
            buffer[:] = out.view(numpy.uint8).data[skip : skip + len(buffer)]


@contextmanager
def scratch(size: int) -> Iterator[memoryview]:
    """Memory to work in, which its thread keeps for the next one that asks; fresh pages cost more than most work."""
    spare: list[memoryview] = _THREAD.__dict__.setdefault("spare", [])  # the shortest first
    place = bisect_left(spare, size, key=len)
    memory = spare.pop(place) if place < len(spare) else allocate(size)
    try:
        yield memory[:size]
    finally:
        if size <= _SPARE:
            insort(spare, memory, key=len)
            del spare[:-_SPARES]


def boxes(shape: Shape, first: int, count: int) -> Iterator[Box]:
    """The boxes that `count` elements from `first` on make up, in row-major order.

    >>> list(boxes((4, 10), 8, 25))
    [((0, 8), (1, 2)), ((1, 0), (2, 10)), ((3, 0), (1, 3))]
    """
    if not shape:
        yield from [((), ())] * (count > 0)
        return
    row = math.prod(shape[1:])
    while count > 0:
        index, within = divmod(first, row)
        if within or count < row:
            length = min(row - within, count)
            for corner, sizes in boxes(shape[1:], within, length):
                yield (index, *corner), (1, *sizes)
        else:
            length = count // row * row
            yield (index, *[0] * (len(shape) - 1)), (count // row, *shape[1:])
        first, count = first + length, count - length


def cut(shape: Shape, most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a box into parts of up to `most` elements; parts of a contiguous box are contiguous.

    >>> list(cut((5, 2), 4))
    [(slice(0, 2, None),), (slice(2, 4, None),), (slice(4, 5, None),)]
    """
    row = math.prod(shape[1:])
    if not shape or row * shape[0] <= most:
        yield ()
    elif row <= most:
        for start in range(0, shape[0], most // row):
            yield (slice(start, min(start + most // row, shape[0])),)
    else:
        for index in range(shape[0]):
            yield from ((slice(index, index + 1), *rest) for rest in cut(shape[1:], most))


def is_reordered(source: ByteSource, shape: Shape, strides: Strides | None) -> bool:
    """Whether reading a tensor in its order jumps around in a file below it."""
    if isinstance(source, BoxSource) and source.panel:
        return True
    if source.in_memory:
        return False
    moving = [stride for n, stride in zip(shape, strides or (), strict=False) if n > 1 and stride]
    return moving != sorted(moving, reverse=True)


def gather(source: ByteSource, kind: DType, offset: int, shape: Shape, strides: Strides) -> BoxSource:
    """The elements of a strided tensor row-major; `offset` in bytes, strides in elements."""
    at = partial(copy_box, source, kind, offset, strides)
    return BoxSource(kind, shape, at, source.name, partial(_panel_limit, source, shape, strides), source.remote)


def _panel_limit(source: ByteSource, shape: Shape, strides: Strides) -> int:
    return PANEL * is_reordered(source, shape, strides)


def copy_box(source: ByteSource, kind: DType, offset: int, strides: Strides, corner: Shape, out: Any) -> None:
    """Copy the box at a corner of a strided tensor, whose first element is at the byte `offset` of a source.

    Strides are in elements, not negative. `out` is an array of raw elements, of any layout, with the shape of the box.
    """
    import numpy

    if not out.size:
        return
    item = kind.itemsize
    offset += sum(place * stride for place, stride in zip(corner, strides, strict=True)) * item
    span = sum((n - 1) * s for n, s in zip(out.shape, strides, strict=True)) + 1
    source.check_range(offset, span * item)
    if isinstance(source, BoxSource) and source.kind is kind:
        found = _find_axes(source, offset, strides, out.shape)
        if found is not None:  # the box is one in the shape of its source, too
            start, axes = found
            flat = out[(*(0 if n == 1 else slice(None) for n in out.shape), ...)]
            turned = flat.transpose([axis for axis in axes if axis is not None])
            source.at(start, turned[(*(None if axis is None else slice(None) for axis in axes), ...)])
            return
    memory = source.view() if source.in_memory else None
    if memory is not None:
        part = memory[offset : offset + span * item]
        out[...] = numpy.ndarray(out.shape, raw_dtype(item), part, 0, tuple(s * item for s in strides))
        return
    order = sorted(range(out.ndim), key=lambda d: (-strides[d] if out.shape[d] > 1 else 1, d))
    moving = [(out.shape[d], strides[d]) for d in order if out.shape[d] > 1 and strides[d]]
    # in the order of the source; repeated elements are read once
    _copy_pieces(_Reader(source, item, offset), moving, 0, out.transpose(order))


def _find_axes(source: BoxSource, offset: int, strides: Strides, shape: Shape) -> tuple[Shape, list[int | None]] | None:
    """The corner of a strided box in its source, and for each dimension of the source the box's dimension, if not 1.

    None if it is not a box there: it skips elements, or was reshaped.
    """
    first, within = divmod(offset, source.kind.itemsize)
    units = contiguous_strides(source.shape)
    corner = tuple(first // unit % max(n, 1) for unit, n in zip(units, source.shape, strict=True))
    axes: list[int | None] = [None] * len(source.shape)
    for number, (n, stride) in enumerate((n, s) for n, s in zip(shape, strides, strict=True) if n != 1):
        wide = (j for j, unit in enumerate(units) if unit == stride and corner[j] + n <= source.shape[j])
        axis = next(wide, None)
        if within or axis is None or axes[axis] is not None:
            return None
        axes[axis] = number
    return corner, axes


def find_present_boxes(source: ByteSource, offset: int, strides: Strides, shape: Shape) -> tuple[Box, ...] | None:
    """Which boxes of a strided tensor can be read, in its own dimensions; None if all can.

    For a tensor that skips elements the answer is none.
    """
    if not isinstance(source, BoxSource) or source.present is None or 0 in shape:
        return None
    found = _find_axes(source, offset, strides, shape)
    if found is None:
        return ()
    corner, axes = found
    wide = [n for n in shape if n != 1]
    sizes = tuple(1 if axis is None else wide[axis] for axis in axes)
    inside: list[Box] = []
    for begin, size in source.present:
        first = tuple(map(max, begin, corner))
        last = tuple(min(b + n, c + m) for b, n, c, m in zip(begin, size, corner, sizes, strict=True))
        if all(a < b for a, b in zip(first, last, strict=True)):
            ranges = {axis: (a - c, b - a) for axis, a, b, c in zip(axes, first, last, corner, strict=True)}
            numbers = iter(range(len(wide)))
            box = [ranges[next(numbers)] if n != 1 else (0, 1) for n in shape]
            inside.append((tuple(a for a, _ in box), tuple(n for _, n in box)))
    if sum(math.prod(n) for _, n in inside) == math.prod(shape):
        return None
    return tuple(inside)


class _Reader:
    """Reads runs of a source: the first through the source, which checks it, the others from its file if it has one."""

    __slots__ = ("ahead", "file", "gap", "item", "offset", "source")

    def __init__(self, source: ByteSource, item: int, offset: int) -> None:
        self.source, self.item, self.offset = source, item, offset
        self.file, self.ahead = locate_file(source)
        self.gap = _GAP_COMPUTED if self.file is None else _GAP

    def run(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer from an element on."""
        self.source.readinto(self.offset + at * self.item, buffer)

    def runs(self, at: int, stride: int, memory: memoryview, count: int, pitch: int, length: int) -> None:
        """Fill `count` rows of a memory, `pitch` bytes apart, with `length` bytes each."""
        self.run(at, memory[:length])
        start, step = self.ahead + self.offset + at * self.item, stride * self.item
        for row in range(1, count):
            part = memory[row * pitch : row * pitch + length]
            if self.file is None or os.preadv(self.file, [part], start + row * step) != length:
                self.run(at + row * stride, part)


def _copy_pieces(reader: _Reader, moving: list[tuple[int, int]], at: int, out: Any) -> None:
    """Copy a box whose first dimensions have the sizes and descending strides of `moving`; the others are repeated."""
    import numpy

    item = reader.item
    sizes, strides = zip(*moving, strict=True) if moving else ((), ())
    if out.flags.c_contiguous and math.prod(sizes) == out.size and strides == contiguous_strides(sizes):
        reader.run(at, out.reshape(-1).view(numpy.uint8).data)
        return
    span, joined = 1, len(moving)  # elements to read at once, and the first dimension that they cover whole
    for place in range(len(moving) - 1, -1, -1):
        n, stride = moving[place]
        if (stride - span) * item > reader.gap:
            break
        span, joined = span + (n - 1) * stride, place
    repeated = (1,) * (out.ndim - len(moving))
    if joined == 0 and span * item <= PIECE:
        memory = _borrow()
        reader.run(at, memory[: span * item])
        steps = (*(stride * item for stride in strides), *repeated)
        out[...] = numpy.ndarray((*sizes, *repeated), raw_dtype(item), memory, 0, steps)
        _THREAD.memory = memory
        return
    count, stride = moving[0]
    if joined == 1 and span * item < _ROW:
        pitch = (span * item + 64) // item * item  # rows at powers of two would collide in the cache
        rows = PIECE // pitch
        memory = _borrow()
        for start in range(0, count, rows):
            some = min(rows, count - start)
            reader.runs(at + start * stride, stride, memory, some, pitch, span * item)
            shape = (some, *sizes[1:], *repeated)
            steps = (pitch, *(step * item for step in strides[1:]), *repeated)
            out[start : start + some] = numpy.ndarray(shape, raw_dtype(item), memory, 0, steps)
        _THREAD.memory = memory
        return
    # one dimension less, or as much of this one as one read takes
    rest = span - (count - 1) * stride if joined == 0 else 0
    some = max(1, (PIECE // item - rest) // stride + 1) if joined == 0 else 1
    for start in range(0, count, some):
        part = out[start : start + some]
        if len(part) == 1:
            _copy_pieces(reader, moving[1:], at + start * stride, part[0, ...])  # a view, of one element too
        else:
            _copy_pieces(reader, [(len(part), stride), *moving[1:]], at + start * stride, part)


def _borrow() -> memoryview:
    """The thread's memory for a piece; the borrower puts it back."""
    memory = getattr(_THREAD, "memory", None)
    _THREAD.memory = None
    return allocate(PIECE + _ROW) if memory is None else memory
