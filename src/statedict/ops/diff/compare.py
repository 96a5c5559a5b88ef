"""Pairs of tensors, compared by their bytes and measured where these differ.

Both sides are read block by block into two buffers a thread, or looked at in memory. Large tensors are cut into
slices, so that all threads have work; a slice is measured from its beginning once a block of it differs.
docs/decisions/0016-comparing.md has what the sizes are worth.
"""

from __future__ import annotations

import os
from functools import partial
from threading import local
from typing import Any

from statedict.dtypes import DType
from statedict.io.memory import allocate
from statedict.io.parallel import BATCH, REMOTE_WORKERS, WORKERS, batches, parallel
from statedict.io.pipeline import PIECE, locate_file
from statedict.io.progress import Meter, meter
from statedict.ops.diff.measure import Rule, Tally, add, comparable
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    Pair = tuple[LazyTensor, LazyTensor]

BLOCK = 1 << 20
_SLICE = 16 << 20
_REMOTE_SLICE = 4 << 20
_EXECUTOR_BATCH = 16 << 20
_OWN = local()


class Run:
    """The elements of a tensor in its order: from `start` in a source, `item` bytes each."""

    __slots__ = ("item", "kind", "source", "start")

    def __init__(self, tensor: LazyTensor) -> None:
        tensor = tensor.contiguous()
        self.source, self.start = tensor.storage.source, tensor.storage.offset + tensor.offset
        self.kind: DType = tensor.dtype
        self.item = self.kind.itemsize or 1

    def read(self, first: int, count: int, side: int) -> memoryview:
        """A few elements; of one side those before are overwritten."""
        at, size = self.start + first * self.item, count * self.item
        if self.source.in_memory:
            memory = self.source.view()
            if memory is not None:
                return memory[at : at + size]
        block = _buffer(side)[:size]
        file, ahead = locate_file(self.source)
        # the file itself where there is one: its checks, at the first block, cost as much as reading half a block
        if file is None or not first or os.preadv(file, [block], ahead + at) != size:
            self.source.readinto(at, block)
        return block


class Job:
    """A slice of a pair: `count` elements from `first`, or bytes where an element has no whole number of them."""

    __slots__ = ("count", "first", "force", "number", "one", "other")

    def __init__(self, number: int, one: Run, other: Run, first: int, count: int, force: bool = False) -> None:
        self.number, self.one, self.other, self.first, self.count, self.force = number, one, other, first, count, force

    @property
    def size(self) -> int:
        """Bytes of both sides."""
        return self.count * (self.one.item + self.other.item)


def compare(pairs: Sequence[Pair], rule: Rule, executor: Executor | None = None) -> list[Tally | None]:
    """For each pair of tensors of as many elements what they differ in, None where they are equal.

    Args:
        pairs: of one dtype, or of two that are `comparable`.
        rule: when elements are equal.
        executor: what compares; a few threads by default.
    """
    found: list[Tally | None] = [None] * len(pairs)
    firsts: dict[object, int] = {}
    same: list[tuple[int, int]] = []
    todo: list[tuple[int, Run, Run, int]] = []
    repeated: dict[int, int] = {}
    remote = False
    for number, (one, other) in enumerate(pairs):
        here = (origin(one), origin(other))
        first = firsts.setdefault(here, number)
        if first != number:
            same.append((number, first))
        elif _are_other_labels(one, other):
            found[number] = other_label = Tally()
            other_label.changed = 1
        elif one.nbytes and not (here[0] == here[1] and not _inexact(one, other, rule)):
            todo.append((number, *_runs(one, other)))
            repeated[number] = max(one.numel() // todo[-1][3], 1) if one.dtype.itemsize else 1
            remote |= one.storage.source.remote or other.storage.source.remote
    counter = meter()
    jobs = [job for item in todo for job in _slices(*item, remote)]
    counter.expect(sum(job.size for job in jobs))
    equal: dict[int, list[Job]] = {}
    for job, tally in _carried_out(jobs, rule, executor, remote, counter):
        _note(found, job, tally)
        if tally is None:
            equal.setdefault(job.number, []).append(job)
    again = [
        Job(job.number, job.one, job.other, job.first, job.count, True)
        for number, some in equal.items()
        if found[number] is not None and comparable(some[0].one.kind, some[0].other.kind)
        for job in some
    ]
    counter.expect(sum(job.size for job in again))
    for job, tally in _carried_out(again, rule, executor, remote, counter):
        _note(found, job, tally)
    for number, tally in enumerate(found):
        if tally is not None and not tally.changed and tally.elements:  # by numbers equal after all
            found[number] = None
        elif tally is not None:
            tally.repeat(repeated.get(number, 1))
    for number, first in same:
        found[number] = found[first]
    return found


def _are_other_labels(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether tensors whose elements have no known size differ before a byte is read."""
    if not isinstance(one, Labelled) or not isinstance(other, Labelled):
        return False
    return (one.nbytes, one.first, one.steps) != (other.nbytes, other.first, other.steps)


def _inexact(one: LazyTensor, other: LazyTensor, rule: Rule) -> bool:
    """Whether equal bytes may be different numbers, as NaN are."""
    return rule.numeric and one.dtype.kind in ("float", "complex")


def _runs(one: LazyTensor, other: LazyTensor) -> tuple[Run, Run, int]:
    """The elements of both sides, in one order, and how many.

    Where they lie alike, in the order of the bytes, and each once though it is repeated.
    """
    alike = one.strides is not None and one.strides == other.strides and one.shape == other.shape
    if alike and one.dtype is other.dtype:
        one, other = _once(one), _once(other)
        if one.strides is not None and _dense(one):
            one, other = _flat(one), _flat(other)
    return Run(one), Run(other), one.numel() if one.dtype.itemsize else one.nbytes


def _once(tensor: LazyTensor) -> LazyTensor:
    """Without the repetitions of an expanded tensor."""
    if 0 not in (tensor.strides or ()):
        return tensor
    return tensor[tuple(slice(None) if stride else 0 for stride in tensor.strides or ())]


def _dense(tensor: LazyTensor) -> bool:
    """Whether its elements are all that lies between the first and the last one, each once."""
    size = 1
    for stride, length in sorted(zip(tensor.strides or (), tensor.shape, strict=True)):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


def _flat(tensor: LazyTensor) -> LazyTensor:
    return tensor.replace(shape=(tensor.span // tensor.dtype.itemsize,), strides=None)


def _slices(number: int, one: Run, other: Run, count: int, remote: bool) -> Iterator[Job]:
    step = (_REMOTE_SLICE if remote else _SLICE) // max(one.item, other.item)
    for first in range(0, count, step):
        yield Job(number, one, other, first, min(step, count - first))


def _carried_out(
    jobs: list[Job], rule: Rule, executor: Executor | None, remote: bool, counter: Meter
) -> Iterator[tuple[Job, Tally | None]]:
    """Each job with what it found."""
    groups = list(batches(jobs, BATCH if executor is None else _EXECUTOR_BATCH))
    work = partial(_compare_jobs, rule, None if executor else counter)
    workers = REMOTE_WORKERS if remote else WORKERS
    for group, tallies in zip(groups, parallel(work, groups, executor, workers), strict=True):
        if executor is not None:
            counter.advance(sum(job.size for job in group))
        yield from zip(group, tallies, strict=True)


def _compare_jobs(rule: Rule, counter: Meter | None, jobs: list[Job]) -> list[Tally | None]:
    found = []
    for job in jobs:
        found.append(_compare_one(job, rule))
        if counter is not None:
            counter.advance(job.size)
    return found


def _compare_one(job: Job, rule: Rule) -> Tally | None:
    one, other = job.one, job.other
    most = PIECE if one.source.remote or other.source.remote else BLOCK
    step = most // max(one.item, other.item)
    kinds = (one.kind, other.kind)
    numeric = rule.numeric and one.kind.kind in ("float", "complex")
    end = job.first + job.count
    if kinds[0] is kinds[1] and not numeric and not job.force:
        for first in range(job.first, end, step):
            count = min(step, end - first)
            if not _equal(one.read(first, count, 0), other.read(first, count, 1)):
                break
        else:
            return None
    tally = Tally()
    if not comparable(*kinds):
        tally.changed = 1
        return tally
    for first in range(job.first, end, step):
        count = min(step, end - first)
        add(tally, one.read(first, count, 0), other.read(first, count, 1), kinds, rule)
    return tally


def _note(found: list[Tally | None], job: Job, tally: Tally | None) -> None:
    before = found[job.number]
    if before is None:
        found[job.number] = tally
    elif tally is not None:
        before += tally


def _buffer(side: int) -> memoryview:
    buffers: list[memoryview] | None = getattr(_OWN, "buffers", None)
    if buffers is None:
        buffers = _OWN.buffers = [allocate(PIECE), allocate(PIECE)]
        _OWN.places = [_address(buffer) for buffer in buffers]
    return buffers[side]


def _equal(one: memoryview, other: memoryview) -> bool:
    """Whether the bytes are equal."""
    size = len(one)
    compared = _memcmp()
    if compared is not None and not one.readonly and not other.readonly:
        return bool(compared(_address(one), _address(other), size) == 0)
    import numpy

    wide = size & ~7
    head = numpy.array_equal(numpy.frombuffer(one[:wide], "u8"), numpy.frombuffer(other[:wide], "u8"))
    return head and one[wide:] == other[wide:]


def _address(memory: memoryview) -> int:
    import ctypes

    return ctypes.addressof((ctypes.c_char * 1).from_buffer(memory)) if len(memory) else 0


def _memcmp() -> Any:
    """C's memcmp, which lets other threads run; None where it is not found."""
    if not hasattr(_OWN, "memcmp"):
        import ctypes

        try:
            found = ctypes.CDLL(None).memcmp
            found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        except (OSError, TypeError, AttributeError):
            found = None
        _OWN.memcmp = found
    return _OWN.memcmp
