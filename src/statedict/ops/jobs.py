"""Passes over the bytes of tensors: jobs on threads or an executor, and the elements of a tensor block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from statedict.dtypes import DType
from statedict.io.parallel import BATCH, REMOTE_WORKERS, batches, parallel
from statedict.io.pipeline import Meter, blocks, meter, read_block
from statedict.tensor.lazy import LazyTensor

BLOCK = 1 << 20

Job = TypeVar("Job", bound=Any)


def run_jobs(
    work: Callable[[Job, Meter], Any],
    jobs: Iterable[Job],
    executor: Executor | None = None,
    batch: int = BATCH,
    workers: int | None = None,
    ahead: int = 64,
) -> Iterator[tuple[Job, Any]]:
    """Each job with its result, in order; `work` advances the meter by the bytes that it reads.

    A job has a `size` in bytes, and without `workers` says whether it is `remote`. Small jobs go to a worker together,
    up to `batch` bytes. With an executor the meter advances by whole batches.
    """
    every = list(jobs)
    counter = meter()
    counter.expect(sum(job.size for job in every))
    groups = list(batches(every, batch))
    call = partial(_run_batch, work, None if executor else counter)
    workers = workers or (REMOTE_WORKERS if any(job.remote for job in every) else None)
    for group, results in zip(groups, parallel(call, groups, executor, workers, ahead), strict=True):
        if executor is not None:
            counter.advance(sum(job.size for job in group))
        yield from zip(group, results, strict=True)


def _run_batch(work: Callable[[Job, Meter], Any], counter: Meter | None, batch: list[Job]) -> list[Any]:
    counter = counter or Meter()
    return [work(job, counter) for job in batch]


def whole_elements(blocks: Iterable[Any], itemsize: int) -> Iterator[Any]:
    """The blocks, cut between elements; those of a compressed record end anywhere."""
    rest = b""
    for block in blocks:
        data = block if not rest else rest + bytes(block)
        extra = len(data) % itemsize
        rest = bytes(data[len(data) - extra :]) if extra else b""
        if len(data) >= itemsize:
            yield data[: len(data) - extra] if extra else data


class Part(NamedTuple):
    """A part of a contiguous tensor: `size` bytes from `start`, whole units of `unit` bytes."""

    name: str
    tensor: LazyTensor
    unit: int
    start: int
    size: int

    @property
    def remote(self) -> bool:
        """Whether its bytes come from far away."""
        return self.tensor.storage.source.remote

    def blocks(self, counter: Meter) -> Iterator[Any]:
        """Its bytes, in blocks of whole elements."""
        tensor, storage = self.tensor, self.tensor.storage
        pieces = blocks(storage.source, storage.offset + tensor.offset + self.start, self.size)
        for block in whole_elements((piece for _, piece in pieces), tensor.dtype.itemsize or 1):
            yield block
            counter.advance(len(block))


class Elements:
    """The elements of a tensor in its order: from `start` in a source, `item` bytes each."""

    __slots__ = ("item", "kind", "source", "start")

    def __init__(self, tensor: LazyTensor) -> None:
        tensor = tensor.contiguous()
        self.source, self.start = tensor.storage.source, tensor.storage.offset + tensor.offset
        self.kind: DType = tensor.dtype
        self.item = self.kind.itemsize or 1

    def read(self, first: int, count: int, side: int) -> memoryview:
        """`count` elements from `first`; they overwrite those that this thread read before for the same side."""
        return read_block(self.source, self.start + first * self.item, count * self.item, first > 0, side)
