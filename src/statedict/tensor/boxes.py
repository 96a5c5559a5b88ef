"""Boxes of tensors: read from where they are, or made by a function, in bounded memory and work.

    runs of a file ──copy──▶ a box of an array        a box: a corner, and a size along each dimension
    BoxSource.at(corner, box): what a lazy operation does; boxes of boxes go down to the file in one step

A tensor that is transposed, sliced or computed is written in its own order, in which it does not lie in the file. So it
is made in panels, of many rows at a time: each run of the file that a panel needs is read once for it, and what lies
between runs is read along where that costs less than another call. Only what someone reads in order, block by block,
goes by way of a panel; boxes within boxes are made in place. What the sizes are worth: docs/decisions/0013-panels.md.
"""

from __future__ import annotations

import math
import os
import weakref
from functools import partial
from itertools import accumulate
from threading import local

from statedict.io.blocks import lowest
from statedict.io.memory import allocate, zeros
from statedict.io.parallel import REMOTE_WORKERS, WORKERS
from statedict.io.source import check_range
from statedict.tensor.arrays import contiguous_strides

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.arrays import Strides

    Shape = tuple[int, ...]
    Box = tuple[Shape, Shape]
    """Its corner and its sizes."""
    At = Callable[[Shape, Any], None]
    """Fills an array of raw elements (see `raw`) with the box of its shape from a corner."""

PANEL = (64 << 20) // WORKERS
PIECE = 1 << 20  # read and copied on while it lies in the processor's cache
_ROW = 64 << 10  # runs that are shorter are copied many at once
_GAP = 8 << 10  # what another call costs, in bytes of a file
_GAP_COMPUTED = 64 << 10
_OWN = local()


def raw(itemsize: int) -> Any:
    """The numpy dtype in which elements are moved: not their own, for numpy copies those of ml_dtypes one by one."""
    import numpy

    return numpy.dtype({1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}.get(itemsize, f"V{itemsize}"))


class BoxSource:
    """The bytes of a tensor that a function makes box by box.

    Attributes:
        kind: dtype of its elements.
        shape: its shape.
        at: makes a box.
        most: how large a panel may be; 0 where its order is that of the bytes which it is made of.
        remote: whether these are far away, so that more threads make panels at a time, and smaller ones.
        regions: the boxes that can be made, as corner and sizes; None where all can.
    """

    __slots__ = ("__weakref__", "_panel", "at", "kind", "most", "name", "regions", "remote", "shape", "size")

    in_memory = False

    def __init__(
        self,
        kind: DType,
        shape: Shape,
        at: At,
        name: str,
        most: Callable[[], int],
        remote: bool = False,
        regions: tuple[Box, ...] | None = None,
    ) -> None:
        self.kind, self.shape, self.at, self.name, self.most, self.remote = kind, shape, at, name, most, remote
        self.regions = regions
        self.size, self._panel = math.prod(shape) * kind.itemsize, -1

    @property
    def panel(self) -> int:
        """Bytes that are made at a time for readers of small blocks; 0 where these cost no more than their share."""
        if self._panel < 0:
            most = self.most() * WORKERS // (REMOTE_WORKERS if self.remote else WORKERS)
            self._panel = _whole_rows(self.shape, self.kind.itemsize, most) if most else 0
        return self._panel

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        check_range(self, offset, length)
        whole = zeros(length)
        self.readinto(offset, memoryview(whole))
        return whole

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        check_range(self, offset, len(buffer))
        if 4 * len(buffer) >= min(self.panel, self.size):
            self._make(offset, buffer)
            return
        done = 0
        while done < len(buffer):
            index, within = divmod(offset + done, self.panel)
            part = self._made(index)[within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
        if offset + done == self.size:
            _OWN.last = None

    def view(self, private: bool = False) -> memoryview | None:
        """None: nothing is there before it is made."""
        return None

    def _made(self, index: int) -> memoryview:
        """A panel, which stays with its thread until that makes another."""
        last: tuple[Any, int, memoryview, memoryview] | None = getattr(_OWN, "last", None)
        if last is not None and last[0]() is self and last[1] == index:
            return last[3]
        _OWN.last = None  # for what is made in the course of it
        memory = allocate(PANEL) if last is None else last[2]
        panel = memory[: min(self.panel, self.size - index * self.panel)]
        self._make(index * self.panel, panel)
        _OWN.last = weakref.ref(self), index, memory, panel
        return panel

    def _make(self, offset: int, buffer: memoryview) -> None:
        import numpy

        item = self.kind.itemsize
        first, last = offset // item, -(-(offset + len(buffer)) // item)
        whole = offset == first * item and len(buffer) == (last - first) * item
        out = numpy.frombuffer(buffer, raw(item)) if whole else numpy.empty(last - first, raw(item))
        done = 0
        for corner, sizes in boxes(self.shape, first, last - first):
            count = math.prod(sizes)
            self.at(corner, out[done : done + count].reshape(sizes))
            done += count
        if not whole:  # its first and last byte are in the midst of an element
            skip = offset - first * item
            buffer[:] = out.view(numpy.uint8).data[skip : skip + len(buffer)]


def _whole_rows(shape: Shape, itemsize: int, most: int) -> int:
    """Up to so many bytes, in whole rows, or rows of rows, where one fits."""
    sizes = accumulate(reversed(shape), lambda size, n: size * n, initial=itemsize)
    row = max(size for size in sizes if 0 < size <= most)
    return most // row * row


def boxes(shape: Shape, first: int, count: int) -> Iterator[tuple[Shape, Shape]]:
    """Corner and sizes of the boxes that elements `first`, `first + 1`, … make up, counted row-major.

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
            taken = min(row - within, count)
            for corner, sizes in boxes(shape[1:], within, taken):
                yield (index, *corner), (1, *sizes)
        else:
            taken = count // row * row
            yield (index, *[0] * (len(shape) - 1)), (count // row, *shape[1:])
        first, count = first + taken, count - taken


def cut(shape: Shape, most: int) -> Iterator[tuple[slice, ...]]:
    """A box in parts of up to `most` elements, each of which lies in one run where the whole does.

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


def jumps(source: ByteSource, shape: Shape, strides: Strides | None) -> bool:
    """Whether a tensor that is read in its order is not read in that of the bytes below it, in a file."""
    if isinstance(source, BoxSource) and source.panel:
        return True
    if source.in_memory:
        return False
    moving = [stride for n, stride in zip(shape, strides or (), strict=False) if n > 1 and stride]
    return moving != sorted(moving, reverse=True)


def gather(source: ByteSource, kind: DType, offset: int, shape: Shape, strides: Strides) -> BoxSource:
    """The elements of a strided tensor row-major; `offset` in bytes, strides in elements."""
    at = partial(_read_strided, source, kind, offset, strides)
    return BoxSource(kind, shape, at, source.name, partial(_most, source, shape, strides), source.remote)


def _most(source: ByteSource, shape: Shape, strides: Strides) -> int:
    return PANEL * jumps(source, shape, strides)


def _read_strided(source: ByteSource, kind: DType, offset: int, strides: Strides, corner: Shape, out: Any) -> None:
    ahead = sum(place * stride for place, stride in zip(corner, strides, strict=True))
    copy(source, kind, offset + ahead * kind.itemsize, strides, out)


def copy(source: ByteSource, kind: DType, offset: int, strides: Strides | None, out: Any) -> None:
    """Copy a strided box out of a source.

    Args:
        source: where it is.
        kind: dtype of its elements.
        offset: its first byte in the source.
        strides: in elements, none negative; None for row-major.
        out: an array of raw elements, of any layout; its shape is that of the box.
    """
    import numpy

    if not out.size:
        return
    if strides is None:
        strides = contiguous_strides(out.shape)
    item = kind.itemsize
    span = sum((n - 1) * s for n, s in zip(out.shape, strides, strict=True)) + 1
    check_range(source, offset, span * item)
    if isinstance(source, BoxSource) and source.kind is kind:
        found = _box_of(source, offset, strides, out)
        if found is not None:
            source.at(*found)
            return
    memory = source.view() if source.in_memory else None
    if memory is not None:
        part = memory[offset : offset + span * item]
        out[...] = numpy.ndarray(out.shape, raw(item), part, 0, tuple(s * item for s in strides))
        return
    order = sorted(range(out.ndim), key=lambda d: (-strides[d] if out.shape[d] > 1 else 1, d))
    moving = [(out.shape[d], strides[d]) for d in order if out.shape[d] > 1 and strides[d]]
    # in the order of the source; of what is repeated one is read
    _pieces(_Reader(source, item, offset), moving, 0, out.transpose(order))


def _box_of(source: BoxSource, offset: int, strides: Strides, out: Any) -> tuple[Shape, Any] | None:
    """The corner of a strided box in the shape of its source, and `out` with the dimensions of the source.

    None where it is no box there: it skips elements, or was reshaped.
    """
    found = _axes_of(source, offset, strides, out.shape)
    if found is None:
        return None
    corner, axes = found
    flat = out[(*(0 if n == 1 else slice(None) for n in out.shape), ...)]
    turned = flat.transpose([axis for axis in axes if axis is not None])
    return corner, turned[(*(None if axis is None else slice(None) for axis in axes), ...)]


def _axes_of(source: BoxSource, offset: int, strides: Strides, shape: Shape) -> tuple[Shape, list[int | None]] | None:
    """The corner of a strided box, and for each dimension of its source which one of its own, but for those of 1."""
    first, within = divmod(offset, source.kind.itemsize)
    units = contiguous_strides(source.shape)
    corner = tuple(first // unit % max(n, 1) for unit, n in zip(units, source.shape, strict=True))
    axes: list[int | None] = [None] * len(source.shape)
    kept = 0
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        wide = (j for j, unit in enumerate(units) if unit == stride and corner[j] + n <= source.shape[j])
        axis = next(wide, None)
        if within or axis is None or axes[axis] is not None:
            return None
        axes[axis] = kept
        kept += 1
    return corner, axes


def regions_of(source: ByteSource, offset: int, strides: Strides, shape: Shape) -> tuple[Box, ...] | None:
    """Which boxes of a strided tensor can be made, in its own dimensions; None where all can.

    Of one that skips elements none is named.
    """
    held = source.regions if isinstance(source, BoxSource) else None
    if held is None or 0 in shape:
        return None
    found = _axes_of(source, offset, strides, shape)  # type: ignore[arg-type]
    if found is None:
        return ()
    corner, axes = found
    wide = [n for n in shape if n != 1]
    sizes = tuple(1 if axis is None else wide[axis] for axis in axes)
    inside: list[Box] = []
    for begin, size in held:
        first = tuple(map(max, begin, corner))
        last = tuple(min(b + n, c + m) for b, n, c, m in zip(begin, size, corner, sizes, strict=True))
        if all(a < b for a, b in zip(first, last, strict=True)):
            ranges = {axis: (a - c, b - a) for axis, a, b, c in zip(axes, first, last, corner, strict=True)}
            kept = iter([ranges[axis] for axis in range(len(wide))])
            own = [next(kept) if n != 1 else (0, 1) for n in shape]
            inside.append((tuple(a for a, _ in own), tuple(n for _, n in own)))
    if sum(math.prod(n) for _, n in inside) == math.prod(shape):
        return None
    return tuple(inside)


class _Reader:
    """Runs of a source, of which the first is checked and the others go straight to the file where there is one."""

    __slots__ = ("ahead", "file", "gap", "item", "offset", "source")

    def __init__(self, source: ByteSource, item: int, offset: int) -> None:
        self.source, self.item, self.offset = source, item, offset
        self.file, self.ahead = lowest(source)
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


def _pieces(reader: _Reader, moving: list[tuple[int, int]], at: int, out: Any) -> None:
    """Copy a box whose first dimensions, `moving`, have these sizes and descending strides; the others are repeated."""
    import numpy

    item = reader.item
    if out.flags.c_contiguous and _dense(moving, out.size):
        reader.run(at, out.reshape(-1).view(numpy.uint8).data)
        return
    span, joined = 1, len(moving)  # what is read at once, and the dimensions from which on it is
    for place in range(len(moving) - 1, -1, -1):
        n, stride = moving[place]
        if (stride - span) * item > reader.gap:
            break
        span, joined = span + (n - 1) * stride, place
    repeated = (1,) * (out.ndim - len(moving))
    if joined == 0 and span * item <= PIECE:
        memory = _borrow()
        reader.run(at, memory[: span * item])
        shape = (*(n for n, _ in moving), *repeated)
        steps = (*(stride * item for _, stride in moving), *repeated)
        out[...] = numpy.ndarray(shape, raw(item), memory, 0, steps)
        _OWN.memory = memory
        return
    count, stride = moving[0]
    if joined == 1 and span * item < _ROW:
        pitch = (span * item + 64) // item * item  # rows at powers of two would fall on one another in the cache
        rows = PIECE // pitch
        memory = _borrow()
        for start in range(0, count, rows):
            some = min(rows, count - start)
            reader.runs(at + start * stride, stride, memory, some, pitch, span * item)
            shape = (some, *(n for n, _ in moving[1:]), *repeated)
            steps = (pitch, *(step * item for _, step in moving[1:]), *repeated)
            out[start : start + some] = numpy.ndarray(shape, raw(item), memory, 0, steps)
        _OWN.memory = memory
        return
    # of one dimension less, or as much of this one as is read at once
    rest = span - (count - 1) * stride if joined == 0 else 0
    some = max(1, (PIECE // item - rest) // stride + 1) if joined == 0 else 1
    for start in range(0, count, some):
        part = out[start : start + some]
        if len(part) == 1:
            _pieces(reader, moving[1:], at + start * stride, part[0])
        else:
            _pieces(reader, [(len(part), stride), *moving[1:]], at + start * stride, part)


def _dense(moving: list[tuple[int, int]], size: int) -> bool:
    """Whether a box is one run."""
    expected = 1
    for n, stride in reversed(moving):
        if stride != expected:
            return False
        expected *= n
    return expected == size


def _borrow() -> memoryview:
    """The thread's memory for a piece; whoever borrows it puts it back."""
    memory = getattr(_OWN, "memory", None)
    _OWN.memory = None
    return allocate(PIECE + _ROW) if memory is None else memory
