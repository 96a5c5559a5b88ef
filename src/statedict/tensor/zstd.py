"""Bytes packed by Zstandard, unpacked as they are read, in bounded memory.

A packed chunk can be of gigabytes, and unpacks from its start only. So readers share cursors: each has unpacked up to
somewhere and keeps the last bytes that came out, for threads that read a little behind one another. A reader takes the
cursor that is nearest before it, or begins a new one; so every thread of an operation that reads its own part of a
tensor has a cursor that goes along.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from threading import Lock

from statedict.errors import CorruptFileError, LimitError, MissingExtraError
from statedict.io.source import ByteSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PIECE = 1 << 20
_KEPT = 4 << 20  # bytes that a cursor keeps
_CURSORS = 8  # that are kept, of all chunks together
_WINDOW = 1 << 25  # of Zstandard: level 20 has 32 MiB, Orbax writes level 1 or 3
_GONE = 1 << 62  # behind every offset
_EXPANSION = 32 << 10  # Zstandard makes up to 128 KiB of 4 bytes


def import_zstandard(what: str = "compressed checkpoints", extra: str = "compress") -> Any:
    """Import the library of Zstandard, or raise a MissingExtraError."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(f"{what} take zstandard; install it by: pip install 'statedict[{extra}]'") from error
    return zstandard


def unpack(data: bytes, most: int, name: str) -> bytes:
    """Unpack bytes whole; LimitError if there are more than `most` of them."""
    zstandard = import_zstandard("Orbax checkpoints", "orbax")
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(data, read_across_frames=True)
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := reader.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise LimitError(f"{name}: unpacks to over {most:,} bytes; it is damaged or forged")
    except zstandard.ZstdError as error:
        raise CorruptFileError(f"{name}: cannot be unpacked ({error}); the file is damaged") from error
    return b"".join(pieces)


class ZstdSource(ByteSource):
    """The bytes, `size` of them, that another source holds packed; `key` is one for all sources of the same bytes."""

    __slots__ = ("__weakref__", "key", "name", "packed", "remote", "size")

    remote: bool

    def __init__(self, packed: ByteSource, size: int, name: str, key: object) -> None:
        if size > _EXPANSION * (packed.size + 8):
            raise LimitError(f"{name}: {packed.size:,} bytes claim to unpack to {size:,}; it is damaged or forged")
        self.packed, self.size, self.name, self.key, self.remote = packed, size, name, key, packed.remote

    @property
    def coarse(self) -> bool:
        """Yes: each read looks for a cursor."""
        return True

    def _fill(self, offset: int, buffer: memoryview) -> None:
        while not _find_cursor(self, offset).read(offset, buffer):
            pass  # another thread went on with it meanwhile


class _Cursor:
    """Unpacks the bytes of a source from the start on."""

    def __init__(self, source: ZstdSource) -> None:
        zstandard = import_zstandard("Orbax checkpoints", "orbax")
        self._error, self._source, self._lock = zstandard.ZstdError, source, Lock()
        machine = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._stream = machine.stream_reader(_File(source.packed), read_size=_PIECE, read_across_frames=True)
        self._kept: deque[tuple[int, bytes]] = deque()
        self.first = self.end = 0
        self._whole = True  # unless an interrupt or an error came in between

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill a buffer; False if the bytes at the offset are gone."""
        with self._lock:
            if not self._whole:
                self.first = _GONE
            if offset < self.first:
                return False
            self._whole = False
            stop = offset + len(buffer)
            for begin, piece in self._kept:
                _copy(begin, piece, offset, buffer)
            while self.end < stop:
                begin, piece = self.end, self._next()
                _copy(begin, piece, offset, buffer)
                self._kept.append((begin, piece))
                while self.end - self._kept[0][0] > _KEPT + _PIECE:
                    self._kept.popleft()
                self.first = self._kept[0][0]
            if self.end == self._source.size and self._stream.read(1):
                raise self._fault("unpacks to more bytes than its shape has")
            self._whole = True
            return True

    def _next(self) -> bytes:
        try:
            piece: bytes = self._stream.read(min(_PIECE, self._source.size - self.end))
        except self._error as error:
            raise self._fault(f"cannot be unpacked ({error})") from error
        if not piece:
            raise self._fault(f"ends at byte {self.end:,} of {self._source.size:,}")
        self.end += len(piece)
        return piece

    def _fault(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self._source.name}: {what}; the file is damaged, fetch it again")


def _copy(begin: int, piece: bytes, offset: int, buffer: memoryview) -> None:
    """Copy what a piece has of the bytes that a buffer wants."""
    first, last = max(begin, offset), min(begin + len(piece), offset + len(buffer))
    if first < last:
        buffer[first - offset : last - offset] = piece[first - begin : last - begin]


class _File:
    """A source as a file that is read in order."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._at = source, 0

    def read(self, count: int) -> bytes | bytearray:
        """The next bytes."""
        count = min(count, self._source.size - self._at)
        self._at += count
        return self._source.read(self._at - count, count)


_LOCK = Lock()
_FOUND: OrderedDict[int, tuple[object, _Cursor]] = OrderedDict()  # the cursors in use, the latest last
_NUMBER = iter(range(1 << 62))


def _find_cursor(source: ZstdSource, offset: int) -> _Cursor:
    with _LOCK:
        near = [
            (cursor.end, number)
            for number, (key, cursor) in _FOUND.items()
            if key == source.key and cursor.first <= offset
        ]
        if near:
            number = max(near)[1]
            _FOUND.move_to_end(number)
            return _FOUND[number][1]
        cursor = _Cursor(source)
        _FOUND[next(_NUMBER)] = source.key, cursor
        while len(_FOUND) > _CURSORS:
            _FOUND.popitem(last=False)
        return cursor
