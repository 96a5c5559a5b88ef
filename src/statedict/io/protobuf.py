"""Messages of protobuf as they lie in a file, read by seeking: what is skipped is not read.

    a message    fields, one after the other, in any order
    a field      tag: varint, its number << 3 | its kind; then by its kind:
    0            a varint: 7 bits a byte, the lowest first, and a high bit if more follow; at most 10 bytes
    1, 5         8 or 4 bytes, little-endian
    2            length: varint, then so many bytes: a text, bytes, a message, or packed numbers

What stands once in a message, and twice in the file, is refused: readers differ in whether they merge the two.

Source: protobuf.dev/programming-guides/encoding. Limits: no groups, which ended with version 2.
"""

from __future__ import annotations

from collections import namedtuple

from statedict.errors import CorruptFileError, LimitError, TruncatedError
from statedict.io.source import ByteSource, Joined, Slice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 16
_LONGEST = 10  # bytes of a varint
_TEXT = 1 << 20
_RESERVE, _FACTOR = 48 << 20, 17  # bytes of memory that a file may ask for, and those for each of its bytes
_CHUNK = 1 << 16  # bytes of varints that are decoded at a time

Field = namedtuple("Field", "number kind value begin end")
"""A field: its number, its kind, the value of a varint, and where its bytes lie in the source."""


class Reader:
    """Reads the messages in a source.

    Attributes:
        source: the bytes.
        name: names it in errors.
        left: bytes of memory that it may still ask for.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source, self.name = source, source.name
        self.left = _RESERVE + _FACTOR * source.size
        self._window, self._first = b"", 0

    def spend(self, cost: int) -> None:
        """Count bytes of memory that something takes; LimitError if the file cannot justify them."""
        self.left -= cost
        if self.left < 0:
            raise LimitError(f"{self.name}: has too many entries for its size; it is damaged or forged")

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message in a range."""
        at = begin
        while at < end:
            tag, at = self.varint(at)
            kind, value, start = tag & 7, 0, at
            if kind == VARINT:
                value, at = self.varint(at)
            elif kind == LENGTH:
                size, start = self.varint(at)
                at = start + size
            elif kind in (FIXED32, FIXED64):
                at += 4 if kind == FIXED32 else 8
            else:
                raise self.damage(f"the field at byte {start:,} has the kind {kind}")
            if at > end or not tag >> 3:
                if at > self.source.size:
                    raise self._cut(start)
                raise self.damage(f"the field at byte {start:,} does not fit into its message")
            yield Field(tag >> 3, kind, value, start, at)

    def varint(self, at: int) -> tuple[int, int]:
        """The number at a place, and where it ends."""
        index = at - self._first
        if not 0 <= index <= len(self._window) - _LONGEST:
            if at >= self.source.size:
                raise self._cut(at)
            self._window = bytes(self.source.read(at, min(_WINDOW, self.source.size - at)))
            self._first, index = at, 0
        window = self._window
        value = window[index]
        if value < 128:
            return value, at + 1
        value &= 127
        for shift in range(1, _LONGEST):
            if index + shift >= len(window):
                raise self._cut(at)
            byte = window[index + shift]
            value |= (byte & 127) << 7 * shift
            if byte < 128:
                return value & (1 << 64) - 1, at + shift + 1
        raise self.damage(f"the number at byte {at:,} has more than {_LONGEST} bytes")

    def damage(self, what: str) -> CorruptFileError:
        """The error for something that is wrong."""
        return CorruptFileError(f"{self.name}: {what}; the file is damaged, fetch it again")

    def _cut(self, at: int) -> TruncatedError:
        return TruncatedError(
            f"{self.name}: ends within a field at byte {at:,} ({self.source.size:,} bytes); "
            "the file looks truncated, fetch it again"
        )

    def check(self, field: Field, kind: int, what: str) -> Field:
        """The field itself, if it has this kind."""
        if field.kind != kind:
            raise self.damage(f"{what} is a field of the kind {field.kind}, expected {kind}")
        return field

    def data(self, field: Field, what: str) -> bytes:
        """The bytes of a short field."""
        self.check(field, LENGTH, what)
        size = field.end - field.begin
        if size > _TEXT:
            raise LimitError(f"{self.name}: {what} takes {size:,} bytes, over {_TEXT:,}; the file is damaged or forged")
        index = field.begin - self._first
        if index >= 0 and index + size <= len(self._window):
            return self._window[index : index + size]
        return bytes(self.source.read(field.begin, size))

    def text(self, field: Field, what: str) -> str:
        """The text in a field."""
        try:
            return self.data(field, what).decode()
        except UnicodeDecodeError as error:
            raise self.damage(f"{what} at byte {field.begin:,} is not UTF-8 ({error.reason})") from error

    def once(self, before: Any, what: str) -> None:
        """Refuse a second field where the message has one."""
        if before is not None:
            raise self.damage(f"{what} stands twice")

    def integers(self, field: Field, what: str) -> list[int]:
        """The numbers of a repeated field, signed: the one that it is, or those packed in it, at most 1 MB."""
        if field.kind == VARINT:
            return [_signed(field.value)]
        self.check(field, LENGTH, what)
        if field.end - field.begin > _TEXT:
            raise LimitError(f"{self.name}: {what} takes {field.end - field.begin:,} bytes; the file is damaged")
        found, at = list[int](), field.begin
        while at < field.end:
            value, at = self.varint(at)
            found.append(_signed(value))
        if at > field.end:
            raise self.damage(f"{what} at byte {field.begin:,} ends within a number")
        self.spend(40 * len(found))
        return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def join(source: ByteSource, parts: Sequence[tuple[int, int]]) -> ByteSource:
    """The bytes of ranges (begin, end), one after the other."""
    if len(parts) == 1:
        return Slice(source, parts[0][0], parts[0][1] - parts[0][0])
    return Joined([(source, begin, end - begin) for begin, end in parts], source.name)


class Varints(ByteSource):
    """Numbers that stand as varints in another source, each cut to its lowest `width` bytes."""

    __slots__ = ("_index", "base", "count", "name", "remote", "size", "width")

    remote: bool

    def __init__(self, base: ByteSource, count: int, width: int, name: str) -> None:
        self.base, self.count, self.width, self.name = base, count, width, name
        self.size, self.remote = count * width, base.remote
        self._index: list[tuple[int, int]] = []  # of each chunk: where it begins, the number of its first element

    def _fill(self, offset: int, buffer: memoryview) -> None:
        from bisect import bisect_right

        import numpy

        self._index = self._index or self._list_chunks()
        first, last = offset // self.width, -(-(offset + len(buffer)) // self.width)
        begin = bisect_right(self._index, first, key=lambda chunk: chunk[1]) - 1
        pieces, after = [], begin
        while after < len(self._index) - 1 and self._index[after][1] < last:
            at, end = self._index[after][0], self._index[after + 1][0]
            pieces.append(_decode(numpy.frombuffer(self.base.read(at, end - at), "u1"), self.width))
            after += 1
        data = numpy.concatenate(pieces).tobytes() if pieces else b""
        skip = offset - self._index[begin][1] * self.width
        buffer[:] = data[skip : skip + len(buffer)]

    def _list_chunks(self) -> list[tuple[int, int]]:
        """The chunks, each of whole numbers, and the end."""
        import numpy

        chunks, at, count = [(0, 0)], 0, 0
        while at < self.base.size:
            data = numpy.frombuffer(self.base.read(at, min(_CHUNK, self.base.size - at)), "u1")
            ends = numpy.flatnonzero(data < 128)
            longest = int(numpy.diff(ends, prepend=-1).max()) if len(ends) else len(data)
            if longest > _LONGEST:
                raise CorruptFileError(f"{self.name}: a number has over {_LONGEST} bytes; the file is damaged")
            if not len(ends):
                break
            at, count = at + int(ends[-1]) + 1, count + len(ends)
            chunks.append((at, count))
        if at != self.base.size or count != self.count:
            got = f"{count:,} numbers{' and a part of one' * (at != self.base.size)}"
            raise CorruptFileError(f"{self.name}: has {got}, expected {self.count:,}; the file is damaged")
        return chunks


def _decode(data: Any, width: int) -> Any:
    """The numbers in an array of the bytes of whole varints, as bytes shaped (numbers, width)."""
    import numpy

    ends = numpy.flatnonzero(data < 128)
    starts = numpy.concatenate(([0], ends[:-1] + 1))
    values = numpy.zeros(len(ends), "<u8")
    for place in range(int((ends - starts).max()) + 1):
        more = starts + place <= ends
        values[more] |= (data[starts[more] + place] & 127).astype("u8") << numpy.uint64(7 * place)
    return values.view("u1").reshape(-1, 8)[:, :width]
