"""Jobs on a few threads, or on an executor of the caller's: bounded, in order, stopped by the first error."""

from __future__ import annotations

import os
from collections import deque
from itertools import chain

from statedict.errors import UnsupportedError, WorkerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from typing import Protocol, TypeVar

    class Sized(Protocol):
        """What has a size in bytes."""

        @property
        def size(self) -> int:
            """Bytes."""

    Job = TypeVar("Job")
    Result = TypeVar("Result")
    Item = TypeVar("Item", bound=Sized)

WORKERS = min(4, os.cpu_count() or 1)
REMOTE_WORKERS = 8  # a store far away answers many requests at a time, and each of them waits
BATCH = 1 << 20
BATCH_ITEMS = 4096
_DEATHS = {"BrokenExecutor", "KilledWorker"}  # of concurrent.futures and of dask.distributed
_IN_FLIGHT = 256
FORKED = (
    "a process made by fork cannot reach a URL; "
    'use ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
)


def parallel(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    executor: Executor | None = None,
    workers: int | None = None,
    ahead: int = _IN_FLIGHT,
) -> Iterator[Result]:
    """`map`, on a few threads once there is more than one job, or on an executor; the first error stops the rest.

    Args:
        work: what to do with each job.
        jobs: taken as they are needed.
        executor: what carries them out instead of threads.
        workers: how many threads; one a core by default, up to four.
        ahead: how many jobs may be under way or done before their results are taken.
    """
    iterator = iter(jobs)
    if executor is not None:
        yield from _submitted(executor, work, iterator, ahead)
        return
    workers = workers or WORKERS
    first = [job for _, job in zip(range(2), iterator, strict=False)]
    if len(first) < 2 or workers == 1:
        for job in chain(first, iterator):
            yield work(job)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers, "statedict") as pool:
        yield from _submitted(pool, work, chain(first, iterator), ahead)


def check_spawned(executor: Executor) -> None:
    """Raise UnsupportedError if the executor's workers are forks, in which the clients of stores hang."""
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise UnsupportedError(FORKED)


def _submitted(executor: Executor, work: Callable[[Job], Result], jobs: Iterator[Job], limit: int) -> Iterator[Result]:
    """The results in order, of which no more than `limit` are on their way or wait to be taken."""
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(executor.submit(work, job))
            if len(pending) >= limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except Exception as error:
        if {kind.__name__ for kind in type(error).__mro__} & _DEATHS:
            what = "a worker of the executor died; what was there is unchanged, see why (its memory?) and try again"
            raise WorkerError(what) from error
        raise
    finally:
        for future in pending:
            future.cancel()


def batches(parts: Iterable[Item], limit: int = BATCH) -> Iterator[list[Item]]:
    """Neighbours together while they have less than `limit` bytes, so that a job is worth its thread."""
    batch: list[Item] = []
    size = 0
    for part in parts:
        if batch and (size + part.size > limit or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.size
    if batch:
        yield batch
