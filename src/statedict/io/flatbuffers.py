"""Tables of FlatBuffers as they lie in a file, read field by field.

    u32              where the root table is
    4 bytes          what kind of file it is
    a table          i32: how far before it its vtable is; then its fields
    a vtable         u16: its size, u16: the table's size; u16 each: where a field is in the table, 0 if it lacks
    a text, a vector, a table in a field     u32: how far behind it is
    a vector         u32: how many; the elements, or u32 each: how far behind a table or a text is

Every place is checked against the range that holds the tables. Source: flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from statedict.errors import CorruptFileError, LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.io.source import ByteSource

_WINDOW = 1 << 16
_RESERVE, _FACTOR, _COST = 48 << 20, 17, 200  # bytes of memory that a file may ask for, those of a byte and an entry
_TEXT = 1 << 16

Vector = namedtuple("Vector", "begin count")
"""Where the elements of a vector begin in the source, and how many they are."""


class Buffer:
    """A range of a source that holds tables; `left` are bytes of memory that it may still ask for."""

    def __init__(self, source: ByteSource, begin: int, size: int) -> None:
        source.check_range(begin, size)
        self.source, self.name, self.begin, self.end = source, source.name, begin, begin + size
        self.left = _RESERVE + _FACTOR * size
        self._window, self._first = b"", 0

    def root(self) -> Table:
        """The root table."""
        return Table(self, self.begin + self.number("I", self.begin))

    def take(self, at: int, size: int) -> bytes:
        """Bytes at a place."""
        if at < self.begin or at + size > self.end:
            raise CorruptFileError(f"{self.name}: a field at byte {at:,} does not fit; the file is damaged")
        index = at - self._first
        if not 0 <= index <= len(self._window) - size:
            length = min(max(size, _WINDOW), self.end - at)
            self._window, self._first, index = bytes(self.source.read(at, length)), at, 0
        return self._window[index : index + size]

    def number(self, form: str, at: int) -> Any:
        """A number of a code of `struct`."""
        return struct.unpack("<" + form, self.take(at, struct.calcsize(form)))[0]

    def spend(self, cost: int) -> None:
        """Count bytes of memory that something takes; LimitError if the file cannot justify them."""
        self.left -= cost
        if self.left < 0:
            raise LimitError(f"{self.name}: has too many entries for its size; it is damaged or forged")


class Table:
    """A table."""

    __slots__ = ("_at", "_buffer", "_size", "_vtable")

    def __init__(self, buffer: Buffer, at: int) -> None:
        buffer.spend(_COST)
        self._buffer, self._at = buffer, at
        self._vtable = at - buffer.number("i", at)
        self._size = buffer.number("H", self._vtable)

    def _find(self, field: int) -> int:
        """Where a field is; 0 if it lacks."""
        place = 4 + 2 * field
        inner = self._buffer.number("H", self._vtable + place) if place + 2 <= self._size else 0
        return self._at + inner if inner else 0

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A number."""
        at = self._find(field)
        return int(self._buffer.number(form, at)) if at else default

    def _follow(self, field: int) -> int:
        at = self._find(field)
        return at + int(self._buffer.number("I", at)) if at else 0

    def table(self, field: int) -> Table | None:
        """A table; None if it lacks."""
        at = self._follow(field)
        return Table(self._buffer, at) if at else None

    def vector(self, field: int, width: int) -> Vector:
        """A vector of elements of so many bytes; an empty one if it lacks."""
        at = self._follow(field)
        count = self._buffer.number("I", at) if at else 0
        if at + 4 + count * width > self._buffer.end:
            raise CorruptFileError(
                f"{self._buffer.name}: the vector at byte {at:,} of {count:,} elements does not fit; it is damaged"
            )
        return Vector(at + 4, count)

    def numbers(self, field: int, form: str) -> tuple[int, ...]:
        """The numbers of a vector."""
        width = struct.calcsize(form)
        begin, count = self.vector(field, width)
        self._buffer.spend(40 * count)
        return struct.unpack(f"<{count}{form}", self._buffer.take(begin, count * width))

    def tables(self, field: int) -> list[Table]:
        """The tables of a vector."""
        begin, count = self.vector(field, 4)
        places = range(begin, begin + 4 * count, 4)
        return [Table(self._buffer, at + self._buffer.number("I", at)) for at in places]

    def text(self, field: int) -> str:
        """A text; an empty one if it lacks."""
        begin, count = self.vector(field, 1)
        if count > _TEXT:
            raise LimitError(f"{self._buffer.name}: a text of {count:,} bytes; the file is damaged or forged")
        try:
            return self._buffer.take(begin, count).decode() if count else ""
        except UnicodeDecodeError as error:
            raise CorruptFileError(
                f"{self._buffer.name}: the text at byte {begin:,} is not UTF-8; it is damaged"
            ) from error
