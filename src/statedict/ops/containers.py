r"""Zip, tar and compressed files, taken apart by whoever suspects them.

`io.zip` refuses an archive that contradicts itself, which is right for loading. Here each contradiction is noted and
every reading of it is followed: what the directory says and what the local header says, records that stand in no
directory, bytes before, between and after the records. No checksum is verified and no suffix is looked at.

    a `Part` is a range of bytes whose reads give what is there, and fewer bytes at its end
    `Unpacked` is what a decompressor makes of a part, as far as someone reads, on a budget
"""

from __future__ import annotations

import os
import re
import zlib

from statedict.errors import LimitError
from statedict.io.zip import CENTRAL, END, END64, FULL32, LOCAL, LOCATOR64, zip64_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NamedTuple, Protocol

    class Readable(Protocol):
        """Bytes at an offset."""

        @property
        def size(self) -> int:
            """How many there are."""

        def read(self, offset: int, length: int) -> bytes | bytearray:
            """Some of them."""

    class Member(NamedTuple):
        """One file in an archive: its name, where its bytes lie, how they are packed."""

        name: str
        start: int
        end: int
        method: int

else:
    from collections import namedtuple

    Member = namedtuple("Member", "name start end method")

_CHUNK = 1 << 16
_PAGE = 1 << 12
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x07\x08|\x01\x02)")
STORED, DEFLATED, BZIP2 = 0, 8, 12


class Budget:
    """What is left of the work that a file of some size may cost."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = (64 << 20) + 20 * size

    def spend(self, cost: int) -> None:
        """Take from it.

        Raises:
            LimitError: there is no more.
        """
        self.left -= cost
        if self.left < 0:
            raise LimitError("unpacks to, or asks to go through, more than 64 MB + 20 times its size")


class Part:
    """A range of bytes; without `end` all that follow."""

    __slots__ = ("_base", "_end", "start")

    def __init__(self, base: Readable, start: int = 0, end: int | None = None) -> None:
        self._base, self.start, self._end = base, start, end

    @property
    def size(self) -> int:
        """How many bytes there are; it unpacks what is packed."""
        end = self._base.size
        return max(0, (end if self._end is None else min(self._end, end)) - self.start)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset, fewer at the end."""
        begin = self.start + offset
        if self._end is not None:
            length = min(length, self._end - begin)
        if not isinstance(self._base, Unpacked):
            length = min(length, self._base.size - begin)
        return bytes(self._base.read(begin, length)) if length > 0 else b""

    def prefetch(self, offsets: list[int]) -> None:
        """Have the disk fetch the pages at these places, all at once."""
        if hasattr(self._base, "fileno") and hasattr(os, "posix_fadvise"):
            fd = self._base.fileno()
            for offset in offsets:
                os.posix_fadvise(fd, self.start + offset, 2 * _PAGE, os.POSIX_FADV_WILLNEED)

    def part(self, start: int, end: int | None = None) -> Part:
        """A range of this one."""
        stop = self._end if end is None else self.start + end
        stop = stop if self._end is None or stop is None else min(stop, self._end)
        return Part(self._base, self.start + start, stop)


class Unpacked:
    """What a decompressor gives, as far as someone reads.

    `problem` says why it ended early, `end` how many packed bytes it took.
    """

    def __init__(self, packed: Part, codec: str, budget: Budget) -> None:
        self.problem, self.end = "", 0
        self._data, self._budget = bytearray(), budget
        self._pieces: Iterator[bytes] | None = self._unpack(packed, *_CODECS[codec])

    @property
    def size(self) -> int:
        """How many bytes there are."""
        self._fill(1 << 62)
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset, fewer at the end."""
        self._fill(offset + length)
        return bytes(self._data[offset : offset + length])

    def _fill(self, wanted: int) -> None:
        while self._pieces is not None and len(self._data) < wanted:
            try:
                piece = next(self._pieces, None)
            except (zlib.error, OSError, EOFError, ValueError) as error:
                piece, self.problem = None, str(error)
            except Exception as error:  # lzma's own error has no base of its own
                if type(error).__name__ != "LZMAError":
                    raise
                piece, self.problem = None, str(error)
            if piece is None:
                self._pieces = None
                return
            self._budget.spend(len(piece))
            self._data += piece

    def _unpack(self, packed: Part, magic: bytes, make: Callable[[], Any]) -> Iterator[bytes]:
        machine, data, at = make(), b"", 0
        while True:
            if not data and getattr(machine, "needs_input", True):
                data = packed.read(at, _CHUNK)
                at += len(data)
                if not data:
                    raise EOFError("the compressed data end early")
            piece = machine.decompress(data, _CHUNK)
            data = getattr(machine, "unconsumed_tail", b"")
            if piece:
                yield piece
            if machine.eof:
                rest = machine.unused_data
                self.end = at - len(rest)
                rest = rest or packed.read(at, _CHUNK)
                at = self.end + len(rest)
                if not magic or not rest.startswith(magic):
                    return
                machine, data = make(), rest


def _lzma(kind: str) -> Any:
    import lzma

    return lzma.LZMADecompressor(getattr(lzma, kind), memlimit=256 << 20)


def _bz2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


# codec → how a further stream in the same file begins, what makes the decompressor
_CODECS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "deflate": (b"", lambda: zlib.decompressobj(-15)),
    "zlib": (b"", zlib.decompressobj),
    "gzip": (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
    "bzip2": (b"BZh", _bz2),
    "xz": (b"\xfd7zXZ\0", lambda: _lzma("FORMAT_XZ")),
    "lzma": (b"", lambda: _lzma("FORMAT_ALONE")),
}
_COMPRESSED = (
    ("gzip", re.compile(rb"\x1f\x8b\x08")),
    ("bzip2", re.compile(rb"BZh[1-9]1AY&SY")),
    ("xz", re.compile(rb"\xfd7zXZ\x00")),
    ("lzma", re.compile(rb"\x5d\x00\x00[\x00-\x80]\x00[\x00\xff]")),
    ("zlib", re.compile(rb"\x78[\x01\x5e\x9c\xda]")),
    ("7z", re.compile(rb"7z\xbc\xaf\x27\x1c")),
    ("rar", re.compile(rb"Rar!\x1a\x07")),
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd")),
    ("lz4", re.compile(rb"\x04\x22\x4d\x18")),
    ("compress", re.compile(rb"\x1f\x9d[\x80-\x90]")),
)


def compression(head: bytes) -> str:
    """How a file that begins with these bytes is compressed; empty if it is not."""
    return next((codec for codec, magic in _COMPRESSED if magic.match(head)), "")


def unpackable(codec: str) -> bool:
    """Whether Python's own modules unpack it."""
    return codec in _CODECS


class Zip:
    """An archive that ends before byte `end` of a part.

    Attributes:
        members: what its directory lists, each reading of it, in the order of their places.
        gaps: ranges of bytes that belong to no record and not to the directory.
        problems: where it contradicts itself.
    """

    def __init__(self, part: Part, end: int, directory: tuple[int, int, int, int]) -> None:
        self.members: list[Member] = []
        self.problems: list[str] = []
        place, stop, offset, after = directory
        shift = place - offset
        taken = [(place, after)]
        entries = list(self._entries(part, place, stop))
        part.prefetch([header + shift for *_, header in entries if 0 <= header + shift < place])
        for name, flags, method, packed, header in entries:
            for at in (header + shift, header):
                local = _read_local(part, at)
                if local is not None:
                    break
            else:
                self.problems.append(f"record {name!r}: there is none at byte {header + shift:,}")
                continue
            if (flags | local.flags) & 1:
                self.problems.append(f"record {name!r} is marked as encrypted")
            if (method, name) != (local.method, local.name):
                self.problems.append(f"record {name!r}: the local header says {local.name!r}, method {local.method}")
            if not local.flags & 8 and FULL32 not in (local.packed, packed) and local.packed != packed:
                self.problems.append(f"record {name!r} has {packed:,} bytes, by its local header {local.packed:,}")
            if local.start + packed > place and at < place:
                self.problems.append(f"record {name!r} overlaps the directory")
            longest = max(packed, 0 if local.packed == FULL32 else local.packed)
            for one in dict.fromkeys((method, local.method)):
                self.members.append(Member(name, local.start, local.start + longest, one))
            taken.append((at, local.start + packed))
        self.members.sort(key=lambda member: member.start)
        self.gaps = _gaps(taken, end)

    def _entries(self, part: Part, place: int, stop: int) -> Iterator[tuple[str, int, int, int, int]]:
        data = part.read(place, stop - place)
        at = 0
        while at + 46 <= len(data):
            (magic, _, _, flags, method, _, _, _, packed, unpacked, nlen, xlen, clen, _, _, _, header) = (
                CENTRAL.unpack_from(data, at)
            )
            if magic != b"PK\1\2":
                break
            name = _text(data[at + 46 : at + 46 + nlen])
            extra = data[at + 46 + nlen : at + 46 + nlen + xlen]
            if FULL32 in (unpacked, packed, header):
                unpacked, packed, header = _wide(extra, unpacked, packed, header)
            yield name, flags, method, packed, header
            at += 46 + nlen + xlen + clen
        if at < len(data):
            self.problems.append(f"the zip directory is damaged at its byte {at:,}")


def find_directory(part: Part, end: int) -> tuple[int, int, int, int] | None:
    """The directory of the last archive before `end`: begin, end, begin as written, end of the archive."""
    for length in (22, 22 + 0xFFFF):
        base = max(0, end - length)
        tail = part.read(base, end - base)
        at = len(tail)
        while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
            if len(tail) - at < 22:
                continue
            _, _, _, _, count, size, offset, _ = END.unpack_from(tail, at)
            stop = base + at
            locator = part.read(max(0, stop - 20), 20)
            if locator[:4] == b"PK\6\7":  # where there is a wide record, readers take it whatever the short one says
                for at64 in (stop - 76, LOCATOR64.unpack(locator)[2]):
                    wide = part.read(at64, 56) if at64 >= 0 else b""
                    if wide[:4] == b"PK\6\6" and len(wide) == 56:
                        count, size, offset, stop = *END64.unpack(wide)[7:10], at64
                        break
            for place in (stop - size, offset):
                if 0 <= place <= stop and (part.read(place, 4) == b"PK\1\2" or not count):
                    return place, stop, offset, min(end, base + at + 22)
    return None


def before(part: Part, gaps: list[tuple[int, int]]) -> tuple[tuple[int, int, int, int] | None, int]:
    """The directory of the archive that ends where a gap of a later one does, and where that is; None and 0 if none."""
    for begin, stop in reversed(gaps):
        if stop - begin >= END.size and part.read(stop - END.size, 4) == b"PK\5\6":
            found = find_directory(part, stop)
            if found is not None and found[3] == stop:
                return found, stop
    return None, 0


class _Local:
    __slots__ = ("flags", "method", "name", "packed", "start")

    def __init__(self, flags: int, method: int, packed: int, name: str, start: int) -> None:
        self.flags, self.method, self.packed, self.name, self.start = flags, method, packed, name, start


def _read_local(part: Part, at: int) -> _Local | None:
    head = part.read(at, 256) if at >= 0 else b""
    if len(head) < 30 or head[:4] != b"PK\3\4":
        return None
    _, _, flags, method, _, _, _, packed, unpacked, nlen, xlen = LOCAL.unpack_from(head)
    raw = head[30 : 30 + nlen] if 30 + nlen <= len(head) else part.read(at + 30, nlen)
    if FULL32 in (packed, unpacked):
        _, packed = _wide(part.read(at + 30 + nlen, xlen), unpacked, packed)
    return _Local(flags, method, packed, _text(raw), at + 30 + nlen + xlen)


def local_member(part: Part, at: int, end: int) -> Member | None:
    """The record whose local header stands at a place, whatever a directory says; without a size up to the next one."""
    local = _read_local(part, at)
    if local is None or local.start > end:
        return None
    known = 0 < local.packed < FULL32
    stop = local.start + local.packed if known else _next_signature(part, local.start, end)
    return Member(local.name, local.start, min(end, stop), local.method)


def _next_signature(part: Part, start: int, end: int) -> int:
    for base in range(start, end, _CHUNK - 3):
        found = _SIGNATURE.search(part.read(base, min(_CHUNK, end - base)))
        if found:
            return base + found.start()
    return end


def _wide(extra: bytes, *fields: int) -> list[int]:
    """The fields with those that are all ones taken from the zip64 extra, where it has them."""
    wide = iter(zip64_values(extra))
    return [next(wide, field) if field == FULL32 else field for field in fields]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _gaps(taken: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    gaps, reached = [], 0
    for begin, stop in sorted(taken):
        if begin > reached:
            gaps.append((reached, min(begin, end)))
        reached = max(reached, stop)
    return [*gaps, (reached, end)] if reached < end else gaps


def is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar archive, by its magic or by its checksum."""
    if len(head) < 512 or not head[0]:
        return False
    if head[257:262] == b"ustar":
        return True
    try:
        return sum(head[:148]) + 256 + sum(head[156:512]) == int(head[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False


def tar_members(part: Part) -> Iterator[Member]:
    """The members of a tar archive; the last one, without a name, is what follows the last header."""
    at, override = 0, -1
    while True:
        header = part.read(at, 512)
        if not is_tar(header):
            break
        field = header[124:136]
        try:
            wide = field[:1] in (b"\x80", b"\xff")
            size = int.from_bytes(field[1:], "big") if wide else int(field.strip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        size, override = (override if override >= 0 else size), -1
        start, kind = at + 512, header[156:157]
        if kind in (b"x", b"g"):
            found = re.search(rb"\d size=(\d{1,18})\n", part.read(start, min(size, 1 << 20)))
            override = int(found[1]) if found and kind == b"x" else -1
        size = 0 if kind in (b"1", b"2", b"3", b"4", b"5", b"6") else size
        prefix = header[345:500].rstrip(b"\0") + b"/" if header[257:262] == b"ustar" and header[345] else b""
        yield Member(_text(prefix + header[:100].split(b"\0")[0]).removeprefix("./"), start, start + size, STORED)
        at = start + size + -size % 512
    yield Member("", at, part.size, STORED)
