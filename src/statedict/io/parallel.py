"""Jobs on a few threads, or on the caller's executor: bounded, in order, stopped by the first error.

Python raises `KeyboardInterrupt` between any two instructions of the main thread. `Thread.start` and
`concurrent.futures` then lose a running thread. So nothing here waits for a thread to begin, no lock is held across an
instruction, and every step can be taken twice (docs/decisions/0020-interrupts-and-exits.md).
"""

from __future__ import annotations

import math
import os
from _thread import get_ident, start_new_thread
from collections import deque
from functools import partial
from itertools import chain
from operator import attrgetter
from queue import Empty, SimpleQueue
from threading import Lock, local

from statedict.errors import UnsupportedError, WorkerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from typing import Any, TypeVar

    Job = TypeVar("Job")
    Result = TypeVar("Result")
    Item = TypeVar("Item")

WORKERS = min(4, os.cpu_count() or 1)
REMOTE_WORKERS = 8  # a store far away answers many requests at a time, and each of them waits
BATCH = 1 << 20
BATCH_ITEMS = 4096
_DEATHS = {"BrokenExecutor", "KilledWorker"}  # of concurrent.futures and of dask.distributed
_IN_FLIGHT = 256
_IDLE = 10.0  # seconds after which a thread that nobody gives work ends
_PATIENCE = 1.0  # seconds after which a wait looks again whether somebody is left who works
_NOBODY = "nobody"
_HERE = local()  # the pool whose thread this is
FORKED = (
    "a process made by fork cannot reach a URL; "
    'use ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
)


class Task:
    """A call that happens once, in the thread that gets to it first, or never if it is cancelled before."""

    __slots__ = ("_call", "_end", "_over", "_taken", "error", "value")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self._taken: dict[str, object] = {}  # its setdefault says in one step, and again at each call, who came first
        self._end = Lock()
        self._end.acquire()
        self._over = False
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended, or never begins."""
        return self._over or self._taken.get("by") == _NOBODY

    def run(self) -> bool:
        """Make the call, unless somebody else does or it was cancelled; whether it was made here."""
        me = get_ident()
        try:
            if self._taken.setdefault("by", me) == me and self._call is not None:
                call, self._call = self._call, None
                self.value = call()
        except BaseException as error:
            trace = error.__traceback__
            self.error = error.with_traceback(trace and trace.tb_next)  # not this frame, which would hold the task
        finally:
            if self._taken.get("by") == me and not self._over:
                self._over = True
                self._end.release()
        return self._taken.get("by") == me

    def cancel(self) -> bool:
        """Let it never begin; whether that came in time, or it is over anyway."""
        self._taken.setdefault("by", _NOBODY)
        return self.over

    def wait(self, seconds: float = _PATIENCE) -> bool:
        """Wait until it is over, but no longer than so many seconds; whether it is."""
        if not self.over and self._end.acquire(timeout=seconds):
            self._end.release()
        return self.over

    def result(self) -> Any:
        """Return what it returned, or raise what it raised, once it is over."""
        try:
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            del self  # or the error would hold this frame, and that the error


def _settle(tasks: deque[Task]) -> None:
    """Cancel tasks, and wait for those that have begun; an interrupt is raised when none of them runs."""
    interrupt: BaseException | None = None
    while tasks:
        try:
            if tasks[0].cancel() or tasks[0].wait():
                tasks.popleft()
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def parallel(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    executor: Executor | None = None,
    workers: int | None = None,
    ahead: int = _IN_FLIGHT,
) -> Iterator[Result]:
    """`map`, on a few threads once there is more than one job, or on an executor; the first error stops the rest.

    There is one thread a core by default, up to four. At most `ahead` jobs are under way or done before their results
    are taken.
    """
    iterator = iter(jobs)
    if executor is not None:
        yield from _submit(executor, work, iterator, ahead)
        return
    workers = workers or WORKERS
    first = [job for _, job in zip(range(2), iterator, strict=False)]
    if len(first) < 2 or workers == 1:
        for job in chain(first, iterator):
            yield work(job)
        return
    pool = _Pool(workers)
    try:
        try:
            for job in chain(first, iterator):
                pool.submit(partial(work, job))
                if len(pool.tasks) >= ahead:
                    yield pool.next()
                    pool.tasks.popleft()  # not before: until its result is there, `close` has to know of it
            while pool.tasks:
                yield pool.next()
                pool.tasks.popleft()
        finally:
            pool.close()
    finally:
        pool.close()  # again, for an interrupt may have come before the first one began


class StoppedError(Exception):
    """A job ends early because nobody wants its result any more."""


def check_wanted() -> None:
    """Raise StoppedError in a job whose caller has given up; long jobs call this now and then."""
    pool = getattr(_HERE, "pool", None)
    if pool is not None and pool.stopped:
        raise StoppedError


class _Pool:
    """Threads that run tasks in order; if none can start (memory, a limit, shutdown), the caller runs them."""

    def __init__(self, most: int) -> None:
        self.tasks: deque[Task] = deque()  # whose results were not taken yet
        self._most = most
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._workers: deque[Task] = deque()
        self._stopped = False
        self._above: _Pool | None = getattr(_HERE, "pool", None)

    @property
    def stopped(self) -> bool:
        """Whether the caller has given up, or the caller's caller."""
        return self._stopped or (self._above is not None and self._above.stopped)

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call, with another thread for it if there may be more."""
        task = Task(call)
        self.tasks.append(task)
        self._queue.put(task)
        if self._count_workers() >= self._most:
            return
        worker = Task(partial(_serve, self, self._queue))
        self._workers.append(worker)
        try:
            # Thread.start waits until the thread runs, and loses it if that is interrupted
            start_new_thread(worker.run, ())
        except (RuntimeError, MemoryError):
            self._workers.pop()
            self._most = len(self._workers)

    def next(self) -> Any:
        task = self.tasks[0]
        while not task.wait(_PATIENCE if self._count_workers() else 0):
            self._help()
        return task.result()

    def close(self) -> None:
        """End the threads; none of them does anything more."""
        self._stopped = True
        try:
            _settle(self.tasks)
        finally:
            for _ in self._workers:
                self._queue.put(None)
            _settle(self._workers)

    def _count_workers(self) -> int:
        if any(worker.over for worker in self._workers):  # they had nothing to do for a while
            self._workers = deque(worker for worker in self._workers if not worker.over)
        return len(self._workers)

    def _help(self) -> None:
        """Run a task here; a thread that has not begun by now never will, or need not."""
        for worker in self._workers:
            worker.cancel()
        try:
            task = self._queue.get_nowait()
        except Empty:
            return
        if task is not None:
            task.run()
            if task.error is not None and not isinstance(task.error, Exception):
                raise task.error  # an interrupt of this thread


def _serve(pool: _Pool, queue: SimpleQueue[Task | None]) -> None:
    _HERE.pool = pool
    try:
        while (task := queue.get(timeout=_IDLE)) is not None:
            task.run()
            del task
    except Empty:
        pass


def check_spawned(executor: Executor) -> None:
    """Raise UnsupportedError if the executor's workers are forks, in which the clients of stores hang."""
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise UnsupportedError(FORKED)


def _submit(executor: Executor, work: Callable[[Job], Result], jobs: Iterator[Job], limit: int) -> Iterator[Result]:
    """The results in order; at most `limit` jobs are under way or done at a time."""
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


def batches(
    parts: Iterable[Item],
    limit: float | None = BATCH,
    size_of: Callable[[Item], int] = attrgetter("size"),
    count: float = BATCH_ITEMS,
) -> Iterator[list[Item]]:
    """Neighbours together while they have at most `limit` bytes (None: any), so that a job is worth its thread."""
    limit = math.inf if limit is None else limit
    batch: list[Item] = []
    total = 0
    for part in parts:
        size = size_of(part)
        if batch and (total + size > limit or len(batch) >= count):
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += size
    if batch:
        yield batch
