"""How far a long piece of work has come: the pipeline counts bytes, whoever wants to know looks."""

from __future__ import annotations

from contextvars import ContextVar
from threading import Lock


class Meter:
    """Bytes that were moved, of those that are known to be ahead.

    As a context manager it counts what the pipeline moves within.
    """

    __slots__ = ("_before", "_lock", "done", "total")

    def __init__(self) -> None:
        self.done = self.total = 0
        self._lock = Lock()

    def expect(self, nbytes: int) -> None:
        """So many more are ahead."""
        with self._lock:
            self.total += nbytes

    def advance(self, nbytes: int) -> None:
        """So many more are done."""
        with self._lock:
            self.done += nbytes

    def __enter__(self) -> Meter:
        self._before = _METER.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _METER.reset(self._before)


_METER: ContextVar[Meter | None] = ContextVar("statedict_meter", default=None)


def meter() -> Meter:
    """The meter of this context; one that nobody reads where there is none."""
    return _METER.get() or Meter()
