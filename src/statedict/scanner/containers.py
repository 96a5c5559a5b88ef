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
from itertools import pairwise

from statedict.errors import LimitError
from statedict.io.tar import is_tar
from statedict.io.zip_ends import END, FULL32, Ends, find_ends
from statedict.io.zip_table import DEFERRED, STORED, UNREADABLE, differs, read_entries, read_local, read_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NamedTuple

    from statedict.io.zip_ends import Readable, Reading

    class Member(NamedTuple):
        """One file in an archive: its name, where its bytes lie, how they are packed, how many it unpacks to."""

        name: str
        start: int
        end: int
        method: int
        size: int = -1

else:
    from collections import namedtuple

    Member = namedtuple("Member", "name start end method size", defaults=[-1])

_CHUNK = 1 << 16
_PAGE = 1 << 12
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x07\x08|\x01\x02)")
BZIP2 = 12


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

    @property
    def ended(self) -> bool:
        """Whether all of it was unpacked."""
        return self._pieces is None

    def drain(self, most: int) -> None:
        """Unpack the rest, if it is no more than so many bytes."""
        self._fill(len(self._data) + most)

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
    """An archive that ends before byte `end` of a part, by one reading of its directory.

    Attributes:
        members: what its directory lists, each reading of it, in the order of their places.
        gaps: ranges of bytes that belong to no record and not to the directory.
        problems: where it contradicts itself.
    """

    def __init__(self, part: Part, end: int, reading: Reading) -> None:
        self.members: list[Member] = []
        self.problems: list[str] = []
        place, size, count, shift, _, last, _ = reading
        taken = [(place, last + END.size)]  # the comment is looked through
        entries = list(read_entries(part.read(place, size), count, self.problems))
        part.prefetch([entry.at + shift for entry in entries if 0 <= entry.at + shift < place])
        for entry in entries:
            name, method, packed = entry.name, entry.method, entry.packed
            for at in dict.fromkeys((entry.at + shift, entry.at)):
                local = read_local(part, at)
                if local is not None:
                    break
            else:
                self.problems.append(f"record {name!r}: there is none at byte {entry.at + shift:,}")
                continue
            if (entry.flags | local.flags) & UNREADABLE:
                self.problems.append(f"record {name!r} is marked as encrypted")
            if difference := differs(entry, local):
                self.problems.append(f"record {name!r}: {difference}")
            if method == STORED and packed != entry.unpacked:
                self.problems.append(f"record {name!r} is stored but has two sizes")
            if local.at + packed > place and at < place:
                self.problems.append(f"record {name!r} overlaps the directory")
            sizes = {packed, *((entry.unpacked,) if method == STORED else ())}
            if local.packed != FULL32 and (local.packed or not local.flags & DEFERRED):
                sizes.add(local.packed)
            for one in dict.fromkeys((method, local.method)):
                self.members.append(Member(name, local.at, local.at + max(sizes), one, entry.unpacked))
            taken.append((at, local.at + packed))
        taken.sort()
        if any(reach > begin for (_, reach), (begin, _) in pairwise(taken) if begin < place):
            self.problems.append("records overlap")
        self.members.sort(key=lambda member: member.start)
        self.gaps = _gaps(taken, end)


def before(part: Part, gaps: list[tuple[int, int]], end: int) -> tuple[Ends | None, int]:
    """The end of the archive that ends where a gap of one that ends at `end` does, and that place; or None and 0."""
    for begin, stop in reversed(gaps):
        if stop < end and stop - begin >= END.size and part.read(stop - END.size, 4) == b"PK\5\6":
            found = find_ends(part, stop)
            if found.readings and found.readings[0].stop == stop:
                return found, stop
    return None, 0


def local_member(part: Part, at: int, end: int) -> Member | None:
    """The record whose local header stands at a place, whatever a directory says; without a size up to the next one."""
    local = read_local(part, at)
    if local is None or local.at > end:
        return None
    known = 0 < local.packed < FULL32
    stop = local.at + local.packed if known else _next_signature(part, local.at, end)
    return Member(local.name, local.at, min(end, stop), local.method)


def _next_signature(part: Part, start: int, end: int) -> int:
    for base in range(start, end, _CHUNK - 3):
        found = _SIGNATURE.search(part.read(base, min(_CHUNK, end - base)))
        if found:
            return base + found.start()
    return end


def _gaps(taken: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    gaps, reached = [], 0
    for begin, stop in taken:
        if begin > reached:
            gaps.append((reached, min(begin, end)))
        reached = max(reached, stop)
    return [*gaps, (reached, end)] if reached < end else gaps


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
        yield Member(read_name(prefix + header[:100].split(b"\0")[0]).removeprefix("./"), start, start + size, STORED)
        at = start + size + -size % 512
    yield Member("", at, part.size, STORED)
