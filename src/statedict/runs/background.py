"""What goes on while training does: one thread, a bound on what may be under way, errors that are not lost."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from statedict.segments import Arena

LOG = logging.getLogger("statedict.runs")


class Background:
    """Carries out jobs one after the other; each has memory of its own until it is done.

    Attributes:
        most: how many may be under way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._free = [Arena() for _ in range(most)]
        self._errors: list[BaseException] = []
        self._warnings: list[str] = []

    def room(self, waiting: bool) -> Arena | None:
        """Memory for a job; None if all of it is in use and nobody wants to wait."""
        while not self._free and waiting:
            wait(self._jobs, return_when="FIRST_COMPLETED")
        return self._free.pop() if self._free else None

    def give_back(self, room: Arena) -> None:
        """The memory of a job that was not begun."""
        self._free.append(room)

    def start(self, job: Callable[[], None], room: Arena) -> None:
        """Carry out a job; the room is given back at its end."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "statedict-save")
        self._jobs = [one for one in self._jobs if not one.done()]
        self._jobs.append(self._pool.submit(self._run, job, room))

    def _run(self, job: Callable[[], None], room: Arena) -> None:
        try:
            job()
        except BaseException as error:
            LOG.error("%s", error)
            self._errors.append(error)
        finally:
            self._free.append(room)

    def warn(self, text: str) -> None:
        """Warn at the next call from outside."""
        self._warnings.append(text)

    def forget(self) -> None:
        """Drop what there is to warn of and to raise; it has been logged."""
        self._warnings.clear()
        self._errors.clear()

    def surface(self, stacklevel: int) -> None:
        """Warn of what there is to warn of, raise the first error of a job, and forget it."""
        while self._warnings:
            warnings.warn(self._warnings.pop(0), stacklevel=stacklevel + 1)
        if self._errors:
            error, self._errors = self._errors[0], []
            raise error

    def wait(self) -> None:
        """Until every job is done."""
        wait(self._jobs)

    def close(self) -> None:
        """Wait, and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
