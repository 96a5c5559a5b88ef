r"""What a zip archive says that it holds, and where readers of it would disagree.

Readers differ in what they follow. PyTorch's (miniz) takes the last end record whatever its comment says, goes by the
offsets that are written, and looks names up without regard to case. Python's takes the last one too, but infers where
the directory lies from where it ends, so that an archive may stand behind something else. Both prefer a zip64 end
record, which one looks for by its offset and the other in front of its locator; others read it only where the short
record is full. So each of these is noted as a problem, and `find_ends` gives every directory that one of them finds.

`io.zip` refuses an archive that has a problem; `scan` lists them and follows each reading. The layout is in `io.zip`.

Source: PKWARE APPNOTE 6.3.10; miniz 3.0.2 as in PyTorch 2.13; CPython's Lib/zipfile.
"""

from __future__ import annotations

import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple, Protocol

    class Readable(Protocol):
        """Bytes at an offset."""

        @property
        def size(self) -> int:
            """How many there are."""

        def read(self, offset: int, length: int) -> bytes | bytearray:
            """Some of them."""

    class Reading(NamedTuple):
        """One directory: where it lies, and where its archive ends.

        `shift` is how far it lies behind the offset that is written; `at` is the end record's place, `wide` the zip64
        end record's or that of the end record again.
        """

        place: int
        size: int
        records: int
        shift: int
        wide: int
        at: int
        stop: int

    class Entry(NamedTuple):
        """What the directory says of one record."""

        name: str
        flags: int
        method: int
        crc: int
        packed: int
        unpacked: int
        header: int
        length: int

    class Local(NamedTuple):
        """What a record's own header says, and where its data begin."""

        name: str
        flags: int
        method: int
        crc: int
        packed: int
        unpacked: int
        start: int
        length: int

else:
    from collections import namedtuple

    Reading = namedtuple("Reading", "place size records shift wide at stop")
    Entry = namedtuple("Entry", "name flags method crc packed unpacked header length")
    Local = namedtuple("Local", "name flags method crc packed unpacked start length")

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
DEFERRED = 8  # the flag of a record whose sums and sizes follow its data
UTF8 = 0x800
UNREADABLE = 0x2061  # encrypted, patched, strongly encrypted, masked headers
_FOLDER = 0x10  # of the attributes of a file
_PATH = 0x7075  # the extra field that gives a name in Unicode
_DAMAGED = "the zip directory is damaged at its byte {:,}, perhaps by a transfer as text; fetch it again"
_WIDE_OUTSIDE = "the zip64 end record lies outside the file; it is damaged"
_TWO_WIDE = "it has two zip64 end records; it is damaged or forged"
_WIDE_DAMAGED = "the zip64 end record is damaged"
_MOST = 100  # problems that are listed
# what PyTorch asks an archive for: storages and others
_STORAGES = ("data/", "constants/")
_ASKED = {"data.pkl", "constants.pkl", "version", "byteorder", ".data/version", ".format_version", ".storage_alignment"}


class Ends:
    """What the end of an archive says.

    Attributes:
        readings: the directories that some reader follows; the first one is what Python's does.
        problems: why not all of them follow the same.
    """

    __slots__ = ("problems", "readings")

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.problems: list[str] = []


def find_ends(source: Readable, end: int) -> Ends:
    """The directories of the archive that ends at byte `end`; none of them where there is no end record.

    A directory that lies behind the offset that is written (`shift`) is no problem here, for archives stand one behind
    the other in some files.
    """
    found = Ends()
    base = max(0, end - END.size - FULL16)
    tail = bytes(source.read(base, end - base))
    places = [at for at in _places(tail, b"PK\5\6") if len(tail) - at >= END.size]
    if not places:
        return found
    exact = [at for at in places if at + END.size + END.unpack_from(tail, at)[7] == len(tail)]
    last = places[-1]
    if set(exact) - {last}:
        found.problems.append(
            f"it has two end records, at bytes {base + exact[0]:,} and {base + last:,}; it is damaged or forged"
        )
    elif last not in exact:
        after, comment = len(tail) - last - END.size, END.unpack_from(tail, last)[7]
        stop = base + last + END.size
        if comment < after:
            found.problems.append(
                f"{after - comment:,} bytes follow the end of the archive at byte {stop + comment:,}; they were "
                "appended or the end is damaged, fetch it again"
            )
        else:
            found.problems.append("its comment at the end is cut short; the file looks truncated, fetch it again")
    for at in dict.fromkeys([last, *reversed(exact)]):
        comment = END.unpack_from(tail, at)[7]
        _read_end(source, found, base + at, min(end, base + at + END.size + comment), end)
    if not found.readings and not found.problems:
        found.problems.append(_DAMAGED.format(0))
    return found


def _places(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _read_end(source: Readable, found: Ends, at: int, stop: int, end: int) -> None:
    """The directories that one end record leads to."""
    _, disk, first, here, count, size, offset, _ = END.unpack(bytes(source.read(at, END.size)))
    short = (count, size, offset, at)
    ends = [short]
    locator = bytes(source.read(at - 20, 20)) if at >= 20 else b""
    disks = disk in (0, FULL16) and first in (0, FULL16)
    if locator[:4] == b"PK\6\7":
        ends, right = _read_wide(source, found, at, locator, short)
        disks = disks and right
    problems: list[str] = []
    for number, length, written, before in ends:
        place = before - length
        if length < 46 * number:
            problems.append(f"{number:,} records cannot lie in a directory of {length:,} bytes")
        elif place < 0 or written > before:
            problems.append("the zip directory lies outside the file; it is truncated or damaged")
        for begin in dict.fromkeys((place, written)):
            if 0 <= begin <= begin + length <= end and _begins(source, begin, number, length):
                reading = Reading(begin, length, number, begin - written, before, at, stop)
                if all(reading[:3] != other[:3] for other in found.readings):
                    found.readings.append(reading)
                if begin != place and all(place != other.place for other in found.readings):
                    problems.append(f"{place - begin:,} bytes lie between the zip directory and its end; it is damaged")
    found.problems += problems
    if not disks or (here != count and here != FULL16):
        found.problems.append("its end record contradicts itself or says that it has several disks; it is damaged")


def _begins(source: Readable, place: int, count: int, size: int) -> bool:
    if not count and not size:
        return True
    return place + 4 <= source.size and bytes(source.read(place, 4)) == b"PK\1\2"


def _read_wide(
    source: Readable, found: Ends, at: int, locator: bytes, short: tuple[int, int, int, int]
) -> tuple[list[tuple[int, int, int, int]], bool]:
    """What zip64 end records say, wherever one is looked for: (count, size, offset, its place) each, and whether there
    is but one disk.
    """
    _, disk, written, disks = LOCATOR64.unpack(locator)
    ends: list[tuple[int, int, int, int]] = []
    one = not disk and disks <= 1
    near = at - LOCATOR64.size - END64.size
    for place in dict.fromkeys((near, written)):
        record = bytes(source.read(place, END64.size)) if 0 <= place <= near else b""
        if record[:4] == b"PK\6\6" and len(record) == END64.size:
            _, length, _, _, disk, first, here, count, size, offset = END64.unpack(record)
            ends.append((count, size, offset, place))
            one = one and not disk and not first and here == count
            if length != END64.size - 12:
                found.problems.append("the zip64 end record has another length than it should; it is damaged")
    if not ends:
        found.problems.append(_WIDE_OUTSIDE if written + END64.size > at else _WIDE_DAMAGED)
        return [short], one
    count, size, offset, place = ends[0]
    inside = size + offset <= near
    if place != near or (inside and written + (near - size - offset) != near):  # behind another archive all are shifted
        two = len(ends) > 1
        outside = written + END64.size > at
        found.problems.append(_TWO_WIDE if two else _WIDE_OUTSIDE if outside else _WIDE_DAMAGED)
    full = (FULL16, FULL32, FULL32)
    if inside and any(a not in (b, c) for a, b, c in zip(short[:3], ends[0][:3], full, strict=True)):
        found.problems.append("its two end records say different things of the directory; it is damaged or forged")
        ends.append(short)
    return ends, one


def read_entries(directory: bytes | bytearray, count: int, problems: list[str]) -> Iterator[Entry]:
    """What a directory says of each record; what can be seen to be wrong with it goes to `problems`."""
    size, at = len(directory), 0
    unpack, make = CENTRAL.unpack_from, tuple.__new__  # which takes half as long as a namedtuple's own
    names: list[str] = []
    aliases: set[tuple[str, str]] = set()
    for number in range(count):
        if at + 46 > size:
            problems.append(f"the zip directory ends after {number:,} of {count:,} records")
            break
        (magic, _, _, flags, method, _, _, crc, packed, unpacked, nlen, xlen, clen, disk, _, outer, header) = unpack(
            directory, at
        )
        if magic != b"PK\1\2":
            problems.append(_DAMAGED.format(at))
            break
        after = at + 46 + nlen
        raw = directory[at + 46 : after]
        following = after + xlen + clen
        name = read_name(raw)
        if following > size:
            problems.append(f"the zip directory ends within record {name!r}")
        if not raw.isascii():
            aliases.add((name, raw.decode("cp437")))
            if flags & UTF8 and not _is_utf8(raw):
                _note(problems, f"the name of record {name!r} is no UTF-8, though it says so")
        if xlen or FULL32 in (unpacked, packed, header):
            extra = bytes(directory[after : after + xlen])
            unpacked, packed, header = _read_extra(extra, name, raw, (unpacked, packed, header), aliases, problems)
        if disk:
            _note(problems, f"record {name!r} says that it lies on another disk")
        if (outer & _FOLDER or raw.endswith(b"/")) and (packed or unpacked):  # PyTorch gives memory as it finds it then
            _note(problems, f"record {name!r} is a folder and has bytes")
        names.append(name)
        yield make(Entry, (name, flags, method, crc, packed, unpacked, header, nlen))
        at = following
    else:
        if at < size:
            problems.append(f"{size - at:,} bytes follow the last of {count:,} records in the zip directory")
    problems += _clashes(names, aliases)


def _note(problems: list[str], text: str) -> None:
    if len(problems) < _MOST:
        problems.append(f"{text}; it is damaged or forged")


def read_name(raw: bytes | bytearray) -> str:
    """A record's name: in UTF-8, or else in the code page of old archivers."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _is_utf8(raw: bytes | bytearray) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_extra(
    extra: bytes,
    name: str,
    raw: bytes | bytearray,
    fields: tuple[int, int, int],
    aliases: set[tuple[str, str]],
    problems: list[str],
) -> tuple[int, int, int]:
    """The two sizes and the offset with those that are all ones taken from the extra fields."""
    wide: list[bytes] = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if len(body) < length:
            _note(problems, f"the extra fields of record {name!r} end early")
        if kind == 1:
            wide.append(body)
        elif kind == _PATH and len(body) > 5:
            path = read_name(body[5:])
            if int.from_bytes(body[1:5], "little") == zlib.crc32(raw) and path != name:
                aliases.add((name, path))
                if raw.isascii() or path.isascii():
                    _note(problems, f"record {name!r} has another name, {path!r}, in an extra field")
        at += 4 + length
    if len(wide) > 1:
        _note(problems, f"record {name!r} has its 64 bit sizes twice")
    values = zip64_values(extra)
    if fields.count(FULL32) > len(values):
        _note(problems, f"record {name!r} lacks its 64 bit sizes")
    return fill_in(values, *fields)  # type: ignore[return-value]


def fill_in(values: tuple[int, ...], *fields: int) -> tuple[int, ...]:
    """The fields, with those that are all ones taken from 64 bit values as far as there are any."""
    wide = iter(values)
    return tuple(next(wide, field) if field == FULL32 else field for field in fields)


def zip64_values(extra: bytes) -> tuple[int, ...]:
    r"""The 64 bit values of a record's extra field of kind 1 (APPNOTE 4.5.3), in their order; none without it.

    >>> from statedict.io.zip_table import zip64_values
    >>> zip64_values(b"\x01\0\x08\0" + (1 << 32).to_bytes(8, "little"))
    (4294967296,)
    """
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        at += 4 + length
    return ()


def _clashes(names: list[str], aliases: set[tuple[str, str]]) -> Iterator[str]:
    """Names that some reader takes for one another."""
    forged = "it is damaged or forged"
    if len(set(names)) < len(names):
        yield f"record {_twice(names)!r} stands twice in the zip directory; {forged}"
        return
    joined = "\0".join(names)
    if joined.count("\0") >= max(len(names), 1):
        name = next(name for name in names if "\0" in name)
        yield f"the name of record {name!r} has a NUL in it, where some readers end it; {forged}"
        return
    if aliases or "\\" in joined:  # Python on Windows takes one slash for the other
        spelled = [name.replace("\\", "/") for name in [*names, *(other for name, other in aliases if other != name)]]
        if len(set(spelled)) < len(spelled):
            yield f"some readers take two records for {_twice(spelled)!r}; {forged}"
    lowered = joined.lower().split("\0")
    folder = names[0].partition("/")[0].lower() + "/" if names and "/" in names[0] else "/"
    if folder == "/" or not {f"{folder}version", f"{folder}.data/version"} & set(lowered):
        return  # no archive for PyTorch, which alone looks names up without regard to case
    if len(set(lowered)) < len(lowered):
        yield f"PyTorch takes two records for {_twice(lowered)!r}, whose names differ in case only; {forged}"
    head = names[0][: len(folder)]
    for name, low in zip(names, lowered, strict=True):
        if name == low and name.startswith(head):
            continue
        asked = low[len(folder) :]
        begin = next((begin for begin in _STORAGES if asked.startswith(begin)), asked if asked in _ASKED else "")
        if low.startswith(folder) and begin and not name.startswith(head + begin):
            yield f"PyTorch takes record {name!r} for {head + asked!r}; {forged}"
            return


def _twice(names: list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def read_local(source: Readable, at: int, guess: int = 226) -> Local | None:
    """The header of a record that stands at a byte; None if none does. `guess` is how long its name may be."""
    room = source.size - at
    head = source.read(at, min(30 + guess, room)) if at >= 0 and room >= 30 else b""
    if len(head) < 30 or head[:4] != b"PK\3\4":
        return None
    _, _, flags, method, _, _, crc, packed, unpacked, nlen, xlen = LOCAL.unpack_from(head)
    raw = head[30 : 30 + nlen]
    if len(raw) < nlen:
        raw += bytes(source.read(at + 30 + len(raw), max(0, min(nlen - len(raw), room - 30 - len(raw)))))
    if FULL32 in (packed, unpacked):
        begin = at + 30 + nlen
        extra = bytes(source.read(begin, max(0, min(xlen, source.size - begin))))
        unpacked, packed = fill_in(zip64_values(extra), unpacked, packed)
    return Local(read_name(raw), flags, method, crc, packed, unpacked, at + 30 + nlen + xlen, nlen)


def differs(entry: Entry, local: Local) -> str:
    """What a record's own header says differently from the directory; empty if nothing.

    Sizes and CRC-32 may be zero in a record that gives them after its data. A name beyond ASCII is in UTF-8 or in a
    code page, which the flags say; the same name may be written the one way here and the other way there.
    """
    sums = local[3:6]
    deferred = bool(local.flags & DEFERRED)
    if (
        (sums == entry[3:6] or (deferred and sums == (0, 0, 0)))
        and (entry.name, entry.method) == (local.name, local.method)
        and not (entry.flags ^ local.flags) & (UNREADABLE | DEFERRED)
        and (entry.name.isascii() or _coded_alike(entry, local))
    ):
        return ""
    for what, said, own in (
        ("name", entry.name, local.name),
        ("method", entry.method, local.method),
        ("encryption", entry.flags & UNREADABLE, local.flags & UNREADABLE),
    ):
        if said != own:
            return f"the {what} in its own header is {own!r}, in the zip directory {said!r}"
    if not entry.name.isascii() and not _coded_alike(entry, local):
        return "by its own header its name is coded otherwise than by the zip directory"
    for what, said, own in (
        ("CRC-32", entry.crc, local.crc),
        ("packed size", entry.packed, local.packed),
        ("size", entry.unpacked, local.unpacked),
    ):
        if said != own and not (deferred and own == 0) and own != FULL32:
            return f"the {what} in its own header is {own:,}, in the zip directory {said:,}"
    if (entry.flags ^ local.flags) & DEFERRED:
        behind, no = ("", "no ") if deferred else ("no ", "")
        return f"by its own header {behind}sums follow its data, by the zip directory {no}sums do"
    return ""


def _coded_alike(entry: Entry, local: Local) -> bool:
    """Whether the flags say the same of the bytes of a name, which are one a character only in a code page."""
    return bool((entry.flags ^ local.flags) & UTF8) == (entry.length != local.length)
