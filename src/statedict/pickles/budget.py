"""The memory that reading a pickle may take: 64 MB + 20 n for one of n bytes, including the pickle.

Each object is charged with the most that it may take; the stack, the memo and the marks by their length. Every 16 KB of
pickle the sum is compared with 48 MB + 17 bytes for each byte read so far. tests/pickles/bombs.py measures pickles made
to exceed it. The pickles of one checkpoint, such as its shards, share the 48 MB.

The index of a distributed checkpoint consists of small records, which are charged 45 bytes for each byte of it and take
12. So it may have `RECORDS` instead of 17.
"""

from __future__ import annotations

from contextvars import ContextVar

from statedict.errors import LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sized

RESERVE = 48 << 20
FACTOR = 17
RECORDS = 64
INTERVAL = 1 << 14
# the most that objects take, in bytes
TUPLE = 64  # of up to three items; eight more for each further one
OBJECT = 128  # a list, an Opaque, a tensor
DICT = 256  # an empty dict or set
ENTRY = 80  # a key, and a value, of a dict
TEXT = 80  # a string or a number, and up to four for each byte of it
KEY = 256  # the note of `Keys` on a key whose hash can be chosen
STATE = 1024  # what a numpy array makes of its state
MEMO = 9  # an entry of the memo or of a list
_SLOT = 17  # an entry of the stack, including one while it moves
_MARK = 41

_shared: ContextVar[list[int] | None] = ContextVar("the rest of the reserve", default=None)


def weigh(text: str) -> int:
    """The most bytes that a string takes besides its object: four a character once one is beyond ASCII."""
    return len(text) if text.isascii() else 4 * len(text)


class Together:
    """A context in which all pickles belong to one checkpoint; it can be entered again."""

    __slots__ = ("_reserve", "_token")

    def __init__(self) -> None:
        self._reserve = _shared.get() or [RESERVE]

    def __enter__(self) -> None:
        self._token = _shared.set(self._reserve)

    def __exit__(self, *error: object) -> None:
        _shared.reset(self._token)


class Budget:
    """The memory that a pickle takes so far, and its limit. Its methods raise LimitError beyond it."""

    __slots__ = ("_factor", "_limit", "_reserve", "_spent", "_start")

    def __init__(self, start: int, factor: int = FACTOR) -> None:
        self._reserve = _shared.get() or [RESERVE]
        self._start, self._factor, self._spent, self._limit = start, factor, 0, self._reserve[0]

    def charge(self, cost: int) -> None:
        """Charge an object."""
        self._spent += cost
        if self._spent > self._limit:
            self._refuse()

    def reach(self, position: int) -> None:
        """Raise the limit to what the bytes up to `position` justify."""
        self._limit = self._reserve[0] + self._factor * (position - self._start)

    def look(self, cost: int, position: int, stack: Sized, memo: Sized, marks: Sized) -> int:
        """Charge the objects since the last look, and compare; the position of the next look."""
        self._spent += cost
        self.reach(position)
        if self._spent + _SLOT * len(stack) + MEMO * len(memo) + _MARK * len(marks) > self._limit:
            self._refuse()
        return position + INTERVAL

    def close(self, position: int) -> None:
        """End the pickle at `position`; what it took beyond its size is lost to the next one."""
        self._reserve[0] -= max(0, self._spent - self._factor * (position - self._start))

    def _refuse(self) -> None:
        raise LimitError(
            f"asks for more than {self._limit >> 20} MiB so far, the most that a pickle of its size may need; "
            "it is damaged or hostile"
        )
