"""How far a long piece of work has come: the pipeline counts bytes, a progress bar reads them."""

from __future__ import annotations

from contextvars import ContextVar
from threading import Lock


class Meter:
    """Bytes done and expected; as a context manager it counts what the pipeline moves within."""

    __slots__ = ("_before", "_lock", "done", "total")

    def __init__(self) -> None:
        self.done = self.total = 0
        self._lock = Lock()

    def expect(self, nbytes: int) -> None:
        """Add bytes to expect."""
        with self._lock:
            self.total += nbytes

    def advance(self, nbytes: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self.done += nbytes

    def __enter__(self) -> Meter:
        self._before = _METER.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _METER.reset(self._before)


_METER: ContextVar[Meter | None] = ContextVar("statedict_meter", default=None)


def meter() -> Meter:
    """The meter of this context; without one, a meter that nobody reads."""
    return _METER.get() or Meter()
