"""How much memory reading a pickle may take: 64 MB + 20 n for one of n bytes, the pickle itself included.

Everything that is made is charged with the most that it may take, and the stack, the memo and the marks by their
length. Every 16 KB of pickle the sum is compared with 48 MB + 17 bytes for each byte that was read so far.
tests/pickles/bombs.py measures what pickles take that are made to exceed it. The pickles of one checkpoint, such as its
shards, share the 48 MB.

The index of a distributed checkpoint is nothing but small records, which are charged for more than they take: 45 bytes
for each byte of it, of which it takes 12. It may have `RECORDS` in the place of 17.
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
# what things take at most, in bytes
TUPLE = 64  # of up to three items; eight more for each further one
OBJECT = 128  # a list, an Opaque, a tensor
DICT = 256  # a dict or a set without entries
ENTRY = 80  # a key, and a value, of a dict
TEXT = 80  # a string or a number, and up to four for each byte of it
KEY = 256  # what `Keys` notes of a key whose hash can be chosen
STATE = 1024  # what a numpy array makes of its state
MEMO = 9  # a place in the memo or in a list
_SLOT = 17  # one in the stack, once more while it moves
_MARK = 41


_shared: ContextVar[list[int] | None] = ContextVar("what is left of the reserve", default=None)


def weigh(text: str) -> int:
    """Bytes that a string takes at most besides its object: four a character, as soon as one is beyond ASCII."""
    return len(text) if text.isascii() else 4 * len(text)


class Together:
    """A context in which all pickles are those of one checkpoint; it can be entered again."""

    __slots__ = ("_reserve", "_token")

    def __init__(self) -> None:
        self._reserve = _shared.get() or [RESERVE]

    def __enter__(self) -> None:
        self._token = _shared.set(self._reserve)

    def __exit__(self, *error: object) -> None:
        _shared.reset(self._token)


class Budget:
    """What a pickle has made so far, and what it may."""

    __slots__ = ("_factor", "_limit", "_reserve", "_spent", "_start")

    def __init__(self, start: int, factor: int = FACTOR) -> None:
        self._reserve = _shared.get() or [RESERVE]
        self._start, self._factor, self._spent, self._limit = start, factor, 0, self._reserve[0]

    def charge(self, cost: int) -> None:
        """Charge something that is made now.

        Raises:
            LimitError: it is too much.
        """
        self._spent += cost
        if self._spent > self._limit:
            self._refuse()

    def reach(self, position: int) -> None:
        """Allow what the bytes up to `position` justify, before what is made of them is charged."""
        self._limit = self._reserve[0] + self._factor * (position - self._start)

    def look(self, cost: int, position: int, stack: Sized, memo: Sized, marks: Sized) -> int:
        """Charge what was made since the last look, and compare; where to look next.

        Raises:
            LimitError: it is too much.
        """
        self._spent += cost
        self._limit = self._reserve[0] + self._factor * (position - self._start)
        if self._spent + _SLOT * len(stack) + MEMO * len(memo) + _MARK * len(marks) > self._limit:
            self._refuse()
        return position + INTERVAL

    def close(self, position: int) -> None:
        """The pickle ends at `position`; what it took beyond its size is no longer there for the next one."""
        self._reserve[0] -= max(0, self._spent - self._factor * (position - self._start))

    def _refuse(self) -> None:
        raise LimitError(
            f"asks for more than {self._limit >> 20} MiB so far, the most that a pickle of its size may need; "
            "it is damaged or hostile"
        )
