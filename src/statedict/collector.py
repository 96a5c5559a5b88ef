"""Python's garbage collector, paused while a hundred thousand objects are made that all stay.

Each new thousand would make it scan all of them again: at 100,000 tensors that is half of the time.
"""

from __future__ import annotations

import gc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Paused:
    """A context in which the collector is off; nested ones and a collector that was off before are respected.

    >>> import gc
    >>> with Paused():
    ...     gc.isenabled()
    False
    """

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._was_on:
            gc.enable()
