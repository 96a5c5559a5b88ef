"""The ends of zip archives, and where readers of them would disagree.

PyTorch's reader (miniz) takes the last end record, whatever its comment says, and the offset that is written. Python's
takes the last one too, but infers where the directory lies from where it ends, so that an archive may stand behind
something else. Both prefer a zip64 end record: one looks at its offset, the other in front of its locator; others read
it only if the short record is full. Each disagreement is a problem, and `find_ends` gives every directory that one of
them finds.

Source: PKWARE APPNOTE 6.3.10; miniz 3.0.2 as in PyTorch 2.13; CPython's Lib/zipfile.
"""

from __future__ import annotations

import re
import struct
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
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

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
DAMAGED = "the zip directory is damaged at its byte {:,}, perhaps by a transfer as text; fetch it again"
_TWO_WIDE = "it has two zip64 end records; it is damaged or forged"
_WIDE_OUTSIDE = "the zip64 end record lies outside the file; it is damaged"
_WIDE_DAMAGED = "the zip64 end record is damaged"


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
        ends.problems.append(DAMAGED.format(0))
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
    wrong = _WIDE_OUTSIDE if written + END64.size > at else _WIDE_DAMAGED
    if not records:
        ends.problems.append(wrong)
        return [short], single
    count, size, offset, place = records[0]
    inside = size + offset <= near
    if place != near or (inside and written + (near - size - offset) != near):  # behind another archive all are shifted
        ends.problems.append(_TWO_WIDE if len(records) > 1 else wrong)
    full = (FULL16, FULL32, FULL32)
    if inside and any(a not in (b, c) for a, b, c in zip(short[:3], records[0][:3], full, strict=True)):
        ends.problems.append("its two end records say different things of the directory; it is damaged or forged")
        records.append(short)
    return records, single
