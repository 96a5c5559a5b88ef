"""Signals by which a scheduler says that a process has to end: heard at once, answered at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from statedict.errors import RunError

USUAL = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preemption:
    """Listens to signals until `close`. The second one of a kind does what it did before there was a listener.

    Attributes:
        received: the number of the first one; 0 if there was none.

    Raises:
        RunError: this is not the main thread, which alone may listen.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RunError("signals are heard in the main thread only; make the manager there, or leave preemption out")
        self.received = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {number: signal.signal(number, self._heard) for number in signals}

    @property
    def status(self) -> int:
        """The exit status that says which signal ended a process."""
        return 128 + self.received

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.received == number or os.getpid() != self._process:  # a fork answers as it would have without us
            signal.signal(number, self._before[number] or signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = self.received or number

    def close(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._heard:
                signal.signal(number, handler or signal.SIG_DFL)
        self._before = {}
