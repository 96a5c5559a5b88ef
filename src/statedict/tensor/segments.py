"""Which bytes of which storages a set of tensors needs, and copies of the tensors over just those bytes.

Saving, snapshots and owned loads are the same problem: tied tensors share a storage, views share parts of it, and a
small view may lie in a huge storage (pytorch#33101). A segment is a run of a storage that some tensors cover.
Overlapping tensors share one, so ties survive; bytes that no tensor covers are left out.
"""

from __future__ import annotations

from collections import namedtuple
from itertools import accumulate

from statedict.io.pipeline import fill
from statedict.io.source import BytesSource, allocate, find_base
from statedict.tensor.arrays import Strides, numpy_view, torch_storage, torch_view
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

_ARENA = 32 << 20
_SEPARATE = 1 << 20
_ALIGN = 64


# a run of bytes to keep
Segment = namedtuple("Segment", "source start size")
# where a tensor lies: the index of a segment, its first byte there, and its strides, None if contiguous
Place = namedtuple("Place", "segment offset strides")


def plan(tensors: Sequence[LazyTensor]) -> tuple[list[Segment], list[Place]]:
    """The segments that the tensors cover, storage by storage in the order of first use, and each tensor's place."""
    by_storage = _by_storage(tensors)
    segments: list[Segment] = []
    places: list[Place | None] = [None] * len(tensors)
    for index, tensor in enumerate(tensors):
        if places[index] is None:
            members = by_storage[tensor.storage.key]
            if len(members) == 1:
                places[index] = _place_alone(tensor, segments)
            else:
                for group in _group_overlapping(tensors, members):
                    _place_together(tensors, group, segments, places)
    return segments, places  # type: ignore[return-value]


def count_bytes(tensors: Sequence[LazyTensor]) -> int:
    """The bytes of tensors, those of tied ones once; overlapping views count each."""
    if len({tensor.storage.key for tensor in tensors}) == len(tensors):
        return sum(tensor.nbytes for tensor in tensors)
    return sum({tensor.region: tensor.nbytes for tensor in tensors}.values())


def covered_bytes(tensors: Sequence[LazyTensor]) -> int:
    """The bytes that tensors need together; bytes of tied tensors and overlapping views count once.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import numpy
    >>> whole = numpy.zeros(100, "float32")
    >>> covered_bytes([as_lazy(whole), as_lazy(whole), as_lazy(whole[:10])])
    400
    """
    return sum(segment.size for segment in plan(tensors)[0])


def origin(tensor: LazyTensor) -> object:
    """Where the bytes of a tensor lie in a file or in memory; unlike regions, comparable between two loads."""
    source, start = find_base(tensor.storage.source)
    at = start + tensor.storage.offset + tensor.offset
    address = getattr(source, "address", None)
    place = "memory" if address is not None else getattr(source, "identity", None) or id(source)
    return place, at + (address or 0), tensor.dtype, tensor.shape, tensor.strides


def find_ties(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Path of each tensor that has the region of an earlier one → path of that one."""
    firsts: dict[object, str] = {}
    found = {path: firsts.setdefault(tensor.region, path) for path, tensor in tensors.items()}
    return {path: first for path, first in found.items() if path != first}


def storage_bytes(tensors: Iterable[LazyTensor]) -> int:
    """The bytes of all storages behind tensors."""
    return sum({tensor.storage.key: tensor.storage.nbytes for tensor in tensors}.values())


def unseen_bytes(tensors: Sequence[LazyTensor]) -> int:
    """The bytes of the storages behind tensors that no tensor covers."""
    covered = 0
    for members in _by_storage(tensors).values():
        end = 0
        for begin, stop in sorted((tensors[i].offset, tensors[i].offset + tensors[i].span) for i in members):
            covered += max(stop, end) - max(begin, end)
            end = max(stop, end)
    return storage_bytes(tensors) - covered


def _by_storage(tensors: Sequence[LazyTensor]) -> dict[object, list[int]]:
    indices: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        indices.setdefault(tensor.storage.key, []).append(index)
    return indices


def _place_alone(tensor: LazyTensor, segments: list[Segment]) -> Place:
    if tensor.strides is not None and tensor.span > tensor.nbytes:  # it has gaps: keep the elements only
        tensor = tensor.contiguous()
    storage = tensor.storage
    segments.append(Segment(storage.source, storage.offset + tensor.offset, tensor.span))
    return Place(len(segments) - 1, 0, tensor.strides)


def _group_overlapping(tensors: Sequence[LazyTensor], members: list[int]) -> list[list[int]]:
    """Group the members of one storage that share bytes; groups are in the order of their first tensor."""
    groups: list[list[int]] = []
    end = -1
    for index in sorted(members, key=lambda i: (tensors[i].offset, i)):
        tensor = tensors[index]
        if not tensor.span:
            groups.insert(0, [index])
            continue
        if tensor.offset >= end:
            groups.append([])
        groups[-1].append(index)
        end = max(end, tensor.offset + tensor.span)
    return sorted(groups, key=min)


def _place_together(
    tensors: Sequence[LazyTensor], group: list[int], segments: list[Segment], places: list[Place | None]
) -> None:
    regions: dict[object, list[int]] = {}
    for i in group:
        regions.setdefault(tensors[i].region, []).append(i)
    start = min(tensors[i].offset for i in group)
    end = max(tensors[i].offset + tensors[i].span for i in group)
    if len(regions) == 1 or end - start > sum(tensors[members[0]].nbytes for members in regions.values()):
        # only tied tensors, or views with more bytes between them than in them, such as a row and a column
        for members in regions.values():
            place = _place_alone(tensors[members[0]], segments)
            for i in members:
                places[i] = place
        return
    start -= start % 16  # so that every dtype's offset stays a whole number of elements
    storage = tensors[group[0]].storage
    segments.append(Segment(storage.source, storage.offset + start, end - start))
    for i in group:
        places[i] = Place(len(segments) - 1, tensors[i].offset - start, tensors[i].strides)


def copy_segments(
    tensors: Sequence[LazyTensor], room: Callable[[list[int]], list[memoryview]] | None = None
) -> tuple[list[memoryview], list[Place]]:
    """Copy the segments of the tensors into buffers, fresh ones or those that `room` returns for given sizes."""
    segments, places = plan(tensors)
    buffers = (room or _allocate_all)([segment.size for segment in segments])
    fill((s.source, s.start, b) for s, b in zip(segments, buffers, strict=True) if s.size)
    return buffers, places


def _allocate_all(sizes: list[int]) -> list[memoryview]:
    """Buffers of these sizes; small ones share memory."""
    buffers: list[memoryview] = []
    arena, used = allocate(0), 0
    for size in sizes:
        if size >= _SEPARATE:
            buffers.append(allocate(size))
            continue
        if used + size > len(arena):
            arena, used = allocate(min(_ARENA, sum(size + _ALIGN for size in sizes))), 0
        buffers.append(arena[used : used + size])
        used += size + -size % _ALIGN
    return buffers


class Arena:
    """Memory for one copy at a time that the next copy reuses; it grows as needed."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = allocate(0)

    def __call__(self, sizes: list[int]) -> list[memoryview]:
        """Buffers of these sizes; the buffers of the previous call become invalid."""
        ends = list(accumulate(size + -size % _ALIGN for size in sizes))
        if ends and ends[-1] > len(self._memory):
            self._memory = allocate(0)  # free it first
            self._memory = allocate(ends[-1])
        starts = [0, *ends]
        return [self._memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def move_to_copies(tensors: Sequence[LazyTensor], room: Callable[[list[int]], list[memoryview]] | None = None) -> None:
    """Let tensors that nobody else has yet lie over copies of their memory; see `copy_segments`."""
    buffers, places = copy_segments(tensors, room)
    storages = [Storage(BytesSource(buffer), 0, len(buffer)) for buffer in buffers]
    for tensor, place in zip(tensors, places, strict=True):
        tensor.storage, tensor.offset, tensor.strides = storages[place.segment], place.offset, place.strides


def copy_tensors(tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """The tensors over owned memory."""
    copies = [tensor.replace() for tensor in tensors]
    move_to_copies(copies)
    return copies


def numpy_arrays(tensors: Sequence[LazyTensor], copy: bool) -> list[Any]:
    """The tensors as numpy arrays, owned if `copy`; tied tensors stay tied."""
    if not copy:
        return [tensor.numpy() for tensor in tensors]
    buffers, places = copy_segments(tensors)
    return [
        numpy_view(buffers[p.segment][p.offset :], t.dtype, t.shape, p.strides)
        for t, p in zip(tensors, places, strict=True)
    ]


def torch_tensors(tensors: Sequence[LazyTensor], copy: bool) -> list[Any]:
    """The tensors as torch tensors, owned if `copy`; tied tensors share a `torch.UntypedStorage`."""

    def view(storage: Any, tensor: LazyTensor, strides: Strides | None, offset: int) -> Any:
        if isinstance(tensor, Labelled):
            return torch_view(storage, tensor.dtype, tensor.shape, tensor.steps, tensor.first)
        return torch_view(storage, tensor.dtype, tensor.shape, strides, offset // max(tensor.dtype.itemsize, 1))

    if copy:
        buffers, places = copy_segments(tensors)
        owned = [torch_storage(buffer) for buffer in buffers]
        return [view(owned[p.segment], t, p.strides, p.offset) for t, p in zip(tensors, places, strict=True)]
    mapped: dict[object, Any] = {}
    result: list[Any] = [None] * len(tensors)
    apart: list[int] = []  # cannot be mapped; copied together, for they may share storages
    for index, tensor in enumerate(tensors):
        storage, item = tensor.storage, tensor.dtype.itemsize
        if storage.key not in mapped:
            data = storage.view(private=True)
            mapped[storage.key] = None if data is None else torch_storage(data)
        shared = mapped[storage.key]
        if shared is None or not item or shared.data_ptr() % item or tensor.offset % item:
            apart.append(index)
        else:
            result[index] = view(shared, tensor, tensor.strides, tensor.offset)
    if apart:
        for index, copied in zip(apart, torch_tensors([tensors[i] for i in apart], True), strict=True):
            result[index] = copied
    return result
