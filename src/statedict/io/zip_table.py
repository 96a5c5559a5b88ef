"""What the ends of a zip archive, its directory and each record's own header say, and where readers would disagree.

PyTorch's reader (miniz) takes the last end record, whatever its comment says, and the offset that is written. Python's
takes the last one too, but infers where the directory lies from where it ends, so that an archive may stand behind
something else. Both prefer a zip64 end record: one looks at its offset, the other in front of its locator; others read
it only if the short record is full. `find_ends` gives every directory that one of them finds. PyTorch looks names up
without regard to case, others end a name at a NUL.

Each disagreement is a problem. `io.zip`, which shows the layout, refuses an archive with a problem; `scan` lists them
and follows each reading.

Source: PKWARE APPNOTE 6.3.10; miniz 3.0.2 as in PyTorch 2.13; CPython's Lib/zipfile.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter, namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Readable(Protocol):
        """Bytes at an offset."""

        @property
        def size(self) -> int:
            """How many there are."""

        def read(self, offset: int, length: int) -> bytes | bytearray:
            """Some of them."""


# a directory; `shift` is how far it lies behind the offset that is written, `at` where its end record is, `wide` where
# its zip64 end record is (else `at`), `stop` where its archive ends
Reading = namedtuple("Reading", "place size records shift wide at stop")
# the directories that some reader follows, Python's first, and why not all readers follow the same
Ends = namedtuple("Ends", "readings problems")
# a record; `at` is where its own header begins or, if this is its own header, where its data begin
Header = namedtuple("Header", "name flags method crc packed unpacked at length")

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
_DAMAGED = "the zip directory is damaged at its byte {:,}, perhaps by a transfer as text; fetch it again"
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
DEFERRED = 8  # the flag of a record whose sums and sizes follow its data
UTF8 = 0x800
UNREADABLE = 0x2061  # encrypted, patched, strongly encrypted, masked headers
_FOLDER = 0x10  # of the attributes of a file
_PATH = 0x7075  # the extra field that gives a name in Unicode
_MOST = 100  # problems that are listed
# what PyTorch asks an archive for: storages and others
_STORAGES = ("data/", "constants/")
_ASKED = {"data.pkl", "constants.pkl", "version", "byteorder", ".data/version", ".format_version", ".storage_alignment"}


def find_ends(source: Readable, end: int) -> Ends:
    """The directories of the archive that ends at byte `end`; none without an end record.

    A `shift` is not a problem here: in some files archives stand one behind the other.
    """
    ends = Ends([], [])
    base = max(0, end - END.size - FULL16)
    tail = bytes(source.read(base, end - base))
    places = [match.start() for match in re.finditer(rb"PK\x05\x06", tail) if len(tail) - match.start() >= END.size]
    if not places:
        return ends
    exact = [at for at in places if at + END.size + END.unpack_from(tail, at)[7] == len(tail)]
    last = places[-1]
    if set(exact) - {last}:
        ends.problems.append(
            f"it has two end records, at bytes {base + exact[0]:,} and {base + last:,}; it is damaged or forged"
        )
    elif last not in exact:
        after, comment = len(tail) - last - END.size, END.unpack_from(tail, last)[7]
        stop = base + last + END.size
        if comment < after:
            ends.problems.append(
                f"{after - comment:,} bytes follow the end of the archive at byte {stop + comment:,}; they were "
                "appended or the end is damaged, fetch it again"
            )
        else:
            ends.problems.append("its comment at the end is cut short; the file looks truncated, fetch it again")
    for at in dict.fromkeys([last, *reversed(exact)]):
        comment = END.unpack_from(tail, at)[7]
        _read_end(source, ends, base + at, min(end, base + at + END.size + comment), end)
    if not ends.readings and not ends.problems:
        ends.problems.append(_DAMAGED.format(0))
    return ends


def _read_end(source: Readable, ends: Ends, at: int, stop: int, end: int) -> None:
    _, disk, first, here, count, size, offset, _ = END.unpack(bytes(source.read(at, END.size)))
    records = [(count, size, offset, at)]
    locator = bytes(source.read(at - 20, 20)) if at >= 20 else b""
    disks = disk in (0, FULL16) and first in (0, FULL16)
    if locator[:4] == b"PK\6\7":
        records, right = _read_wide(source, ends, at, locator, records[0])
        disks = disks and right
    problems: list[str] = []
    for number, length, written, before in records:
        place = before - length
        if length < 46 * number:
            problems.append(f"{number:,} records cannot lie in a directory of {length:,} bytes")
        elif place < 0 or written > before:
            problems.append("the zip directory lies outside the file; it is truncated or damaged")
        for begin in dict.fromkeys((place, written)):
            empty = not number and not length
            inside = 0 <= begin <= begin + length <= end
            if inside and (empty or (begin + 4 <= source.size and bytes(source.read(begin, 4)) == b"PK\1\2")):
                reading = Reading(begin, length, number, begin - written, before, at, stop)
                if all(reading[:3] != other[:3] for other in ends.readings):
                    ends.readings.append(reading)
                if begin != place and all(place != other.place for other in ends.readings):
                    problems.append(f"{place - begin:,} bytes lie between the zip directory and its end; it is damaged")
    ends.problems.extend(problems)
    if not disks or (here != count and here != FULL16):
        ends.problems.append("its end record contradicts itself or says that it has several disks; it is damaged")


def _read_wide(
    source: Readable, ends: Ends, at: int, locator: bytes, short: tuple[int, int, int, int]
) -> tuple[list[tuple[int, int, int, int]], bool]:
    """(count, size, offset, its place) of each zip64 end record that a reader looks for; whether there is one disk."""
    _, disk, written, disks = LOCATOR64.unpack(locator)
    records: list[tuple[int, int, int, int]] = []
    single = not disk and disks <= 1
    near = at - LOCATOR64.size - END64.size
    for place in dict.fromkeys((near, written)):
        record = bytes(source.read(place, END64.size)) if 0 <= place <= near else b""
        if record[:4] == b"PK\6\6" and len(record) == END64.size:
            _, length, _, _, disk, first, here, count, size, offset = END64.unpack(record)
            records.append((count, size, offset, place))
            single = single and not disk and not first and here == count
            if length != END64.size - 12:
                ends.problems.append("the zip64 end record has another length than it should; it is damaged")
    outside = written + END64.size > at
    wrong = f"the zip64 end record {'lies outside the file; it ' * outside}is damaged"
    if not records:
        ends.problems.append(wrong)
        return [short], single
    count, size, offset, place = records[0]
    inside = size + offset <= near
    if place != near or (inside and written + (near - size - offset) != near):  # behind another archive all are shifted
        ends.problems.append("it has two zip64 end records; it is damaged or forged" if len(records) > 1 else wrong)
    full = (FULL16, FULL32, FULL32)
    if inside and any(a not in (b, c) for a, b, c in zip(short[:3], records[0][:3], full, strict=True)):
        ends.problems.append("its two end records say different things of the directory; it is damaged or forged")
        records.append(short)
    return records, single


def read_entries(directory: bytes | bytearray, count: int, problems: list[str]) -> Iterator[Header]:
    """What a directory says of each record; adds what is wrong with it to `problems`."""
    size, at = len(directory), 0
    unpack, make = CENTRAL.unpack_from, tuple.__new__  # which takes half as long as a namedtuple's own
    names: list[str] = []
    aliases: set[tuple[str, str]] = set()
    for number in range(count):
        if at + 46 > size:
            problems.append(f"the zip directory ends after {number:,} of {count:,} records")
            break
        fields = unpack(directory, at)
        magic, _, _, flags, method, _, _, crc, packed, unpacked, nlen, xlen, clen, disk, _, outer, header = fields
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
            if flags & UTF8 and name.encode() != raw:
                _note(problems, f"the name of record {name!r} is no UTF-8, though it says so")
        if xlen or FULL32 in (unpacked, packed, header):
            extra = bytes(directory[after : after + xlen])
            unpacked, packed, header = _read_extra(extra, name, raw, (unpacked, packed, header), aliases, problems)
        if disk:
            _note(problems, f"record {name!r} says that it lies on another disk")
        if (outer & _FOLDER or raw.endswith(b"/")) and (packed or unpacked):  # PyTorch gives memory as it finds it then
            _note(problems, f"record {name!r} is a folder and has bytes")
        names.append(name)
        yield make(Header, (name, flags, method, crc, packed, unpacked, header, nlen))
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


def _read_extra(
    extra: bytes,
    name: str,
    raw: bytes | bytearray,
    fields: tuple[int, int, int],
    aliases: set[tuple[str, str]],
    problems: list[str],
) -> tuple[int, int, int]:
    """The two sizes and the offset with those that are all ones taken from the extra fields."""
    count = 0
    for kind, length, body in _extra_fields(extra):
        if len(body) < length:
            _note(problems, f"the extra fields of record {name!r} end early")
        if kind == 1:
            count += 1
        elif kind == _PATH and len(body) > 5:
            path = read_name(body[5:])
            if int.from_bytes(body[1:5], "little") == zlib.crc32(raw) and path != name:
                aliases.add((name, path))
                if raw.isascii() or path.isascii():
                    _note(problems, f"record {name!r} has another name, {path!r}, in an extra field")
    if count > 1:
        _note(problems, f"record {name!r} has its 64 bit sizes twice")
    values = zip64_values(extra)
    if fields.count(FULL32) > len(values):
        _note(problems, f"record {name!r} lacks its 64 bit sizes")
    return _fill_in(values, *fields)  # type: ignore[return-value]


def _extra_fields(extra: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        yield kind, length, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _fill_in(values: tuple[int, ...], *fields: int) -> tuple[int, ...]:
    """The fields, with those that are all ones taken from 64 bit values as far as there are any."""
    wide = iter(values)
    return tuple(next(wide, field) if field == FULL32 else field for field in fields)


def zip64_values(extra: bytes) -> tuple[int, ...]:
    r"""The 64 bit values of a record's extra field of kind 1 (APPNOTE 4.5.3), in their order.

    >>> from statedict.io.zip_table import zip64_values
    >>> zip64_values(b"\x01\0\x08\0" + (1 << 32).to_bytes(8, "little"))
    (4294967296,)
    """
    body = next((body for kind, _, body in _extra_fields(extra) if kind == 1), b"")
    return struct.unpack_from(f"<{len(body) // 8}Q", body)


def _clashes(names: list[str], aliases: set[tuple[str, str]]) -> Iterator[str]:
    forged = "it is damaged or forged"
    if len(set(names)) < len(names):
        yield f"record {_find_duplicate(names)!r} stands twice in the zip directory; {forged}"
        return
    joined = "\0".join(names)
    if joined.count("\0") >= max(len(names), 1):
        name = next(name for name in names if "\0" in name)
        yield f"the name of record {name!r} has a NUL in it, where some readers end it; {forged}"
        return
    if aliases or "\\" in joined:  # Python on Windows takes one slash for the other
        others = [other for name, other in aliases if other != name]
        spelled = [name.replace("\\", "/") for name in names + others]
        if len(set(spelled)) < len(spelled):
            yield f"some readers take two records for {_find_duplicate(spelled)!r}; {forged}"
    lowered = joined.lower().split("\0")
    folder = names[0].partition("/")[0].lower() + "/" if names and "/" in names[0] else "/"
    if folder == "/" or not {f"{folder}version", f"{folder}.data/version"} & set(lowered):
        return  # no archive for PyTorch, which alone looks names up without regard to case
    if len(set(lowered)) < len(lowered):
        yield f"PyTorch takes two records for {_find_duplicate(lowered)!r}, whose names differ in case only; {forged}"
    head = names[0][: len(folder)]
    for name, low in zip(names, lowered, strict=True):
        if name == low and name.startswith(head):
            continue
        asked = low[len(folder) :]
        begin = next((begin for begin in _STORAGES if asked.startswith(begin)), asked if asked in _ASKED else "")
        if low.startswith(folder) and begin and not name.startswith(head + begin):
            yield f"PyTorch takes record {name!r} for {head + asked!r}; {forged}"
            return


def _find_duplicate(names: list[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def read_local(source: Readable, at: int, guess: int = 226) -> Header | None:
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
        unpacked, packed = _fill_in(zip64_values(extra), unpacked, packed)
    return Header(read_name(raw), flags, method, crc, packed, unpacked, at + 30 + nlen + xlen, nlen)


def differs(entry: Header, local: Header) -> str:
    """What a record's own header says differently from the directory; empty if nothing.

    Sizes and CRC-32 may be zero in a record that gives them after its data. A name beyond ASCII is in UTF-8 or in a
    code page, which the flags say; the same name may be written the one way here and the other way there.
    """
    flags, deferred = entry.flags ^ local.flags, local.flags & DEFERRED
    if entry.name != local.name or entry.method != local.method or flags & UNREADABLE:
        for what, said, here in (
            ("name", entry.name, local.name),
            ("method", entry.method, local.method),
            ("encryption", entry.flags & UNREADABLE, local.flags & UNREADABLE),
        ):
            if said != here:
                return f"the {what} in its own header is {here!r}, in the zip directory {said!r}"
    # the bytes of a name are one a character only in a code page
    if not entry.name.isascii() and bool(flags & UTF8) is not (entry.length != local.length):
        return "by its own header its name is coded otherwise than by the zip directory"
    sums = local[3:6]
    if sums != entry[3:6] and not (deferred and sums == (0, 0, 0)):
        for what, said, here in zip(("CRC-32", "packed size", "size"), entry[3:6], sums, strict=True):
            if said != here and not (deferred and here == 0) and here != FULL32:
                return f"the {what} in its own header is {here:,}, in the zip directory {said:,}"
    if flags & DEFERRED:
        behind, no = ("", "no ") if deferred else ("no ", "")
        return f"by its own header {behind}sums follow its data, by the zip directory {no}sums do"
    return ""
