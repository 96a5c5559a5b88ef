"""Calls that threads make, built of steps that an interrupt cannot leave half-done.

Python raises `KeyboardInterrupt` between any two instructions of the main thread. `Thread.start` and
`concurrent.futures` then lose a running thread, which goes on with what its caller has given up. So nothing here waits
for a thread to begin, no lock is held across an instruction, and every step can be taken twice
(docs/decisions/0020-interrupts-and-exits.md).
"""

from __future__ import annotations

from _thread import get_ident
from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

PATIENCE = 1.0  # seconds after which a wait looks again whether somebody is left who works
_NOBODY = "nobody"


class Task:
    """A call that happens once, in the thread that gets to it first, or never if it is cancelled before.

    Attributes:
        value, error: what it returned or raised.
    """

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

    def wait(self, seconds: float = PATIENCE) -> bool:
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


def settle(tasks: deque[Task]) -> None:
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
