"""Zip archives field by field: what no honest writer writes, in particular two things that contradict each other."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache

END = ("sig", "disk", "first", "here", "count", "size", "offset", "comment")
END64 = ("sig", "length", "made", "needed", "disk", "first", "here", "count", "size", "offset")
LOCATOR = ("sig", "disk", "offset", "disks")
CENTRAL = (
    "sig", "made", "needed", "flags", "method", "time", "date", "crc", "packed", "unpacked", "name", "extra", "comment",
    "disk", "internal", "external", "header",
)  # fmt: skip
LOCAL = ("sig", "needed", "flags", "method", "time", "date", "crc", "packed", "unpacked", "name", "extra")
_LAYOUTS = {END: "<4s4H2LH", END64: "<4sQ2H2L4Q", LOCATOR: "<4sLQL", CENTRAL: "<4s6H3L5H2L", LOCAL: "<4s5H3L2H"}
_BITS = {"H": 16, "L": 32, "Q": 64}

Fields = dict[str, int]


@dataclass
class Member:
    """A record. `local` and `central` override fields of its two headers, by their names."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    local_name: bytes | None = None
    local: Fields = field(default_factory=dict)
    central: Fields = field(default_factory=dict)
    local_extra: bytes = b""
    central_extra: bytes = b""
    comment: bytes = b""
    listed: bool = True
    packed: bytes | None = None  # what lies in the file, if not the data as the method packs them
    described: bool = False  # by a data descriptor

    def pack(self) -> bytes:
        """The data as they lie in the file."""
        if self.packed is not None:
            return self.packed
        if self.method != 8:
            return self.data
        machine = zlib.compressobj(6, zlib.DEFLATED, -15)
        return machine.compress(self.data) + machine.flush()


@dataclass
class Zip:
    """An archive. `end`, `end64` and `locator` override fields of the records at its end."""

    members: list[Member]
    prefix: bytes = b""
    shift: int = 0  # what every offset is short by
    between: bytes = b""  # before the directory
    after: bytes = b""  # behind the directory
    behind64: bytes = b""  # between the zip64 end record and its locator
    wide: bool = False
    end: Fields = field(default_factory=dict)
    end64: Fields = field(default_factory=dict)
    locator: Fields = field(default_factory=dict)
    comment: bytes = b""
    tail: bytes = b""

    def build(self) -> bytes:
        """The bytes of it."""
        out, directory, count = bytearray(self.prefix), b"", 0
        for member in self.members:
            at, packed = len(out) - self.shift, member.pack()
            sums: Fields = {"crc": zlib.crc32(member.data), "packed": len(packed), "unpacked": len(member.data)}
            common: Fields = {"flags": member.flags | 8 * member.described, "method": member.method, "date": 33}
            name = member.name if member.local_name is None else member.local_name
            own: Fields = {**common, **(dict.fromkeys(sums, 0) if member.described else sums), "needed": 20}
            own |= {"name": len(name), "extra": len(member.local_extra), **member.local}
            out += pack(LOCAL, b"PK\3\4", own) + name + member.local_extra + packed
            if member.described:
                out += pack(("sig", *sums), b"PK\7\x08", sums, "<4s3L")
            if member.listed:
                count += 1
                lengths = {"name": member.name, "extra": member.central_extra, "comment": member.comment}
                entry = {**common, **sums, "header": at, **{key: len(value) for key, value in lengths.items()}}
                entry |= {"needed": 20, **member.central}
                directory += pack(CENTRAL, b"PK\1\2", entry) + b"".join(lengths.values())
        out += self.between
        at = len(out) - self.shift
        out += directory + self.after
        place: Fields = {"here": count, "count": count, "size": len(directory), "offset": at}
        if self.wide:
            at64 = len(out) - self.shift
            out += pack(END64, b"PK\6\6", {"length": 44, "made": 45, "needed": 45, **place, **self.end64})
            out += self.behind64 + pack(LOCATOR, b"PK\6\7", {"offset": at64, "disks": 1, **self.locator})
        out += pack(END, b"PK\5\6", {**place, "comment": len(self.comment), **self.end})
        return bytes(out + self.comment + self.tail)


def pack(names: tuple[str, ...], magic: bytes, fields: Fields, layout: str = "") -> bytes:
    """A header; what is not given is zero, what is too large for its field is cut."""
    layout = layout or _LAYOUTS[names]
    return struct.pack(layout, magic, *(fields.get(name, 0) & full for name, full in _fields(names, layout)))


@cache
def _fields(names: tuple[str, ...], layout: str) -> list[tuple[str, int]]:
    """The name of each field behind the magic, and its largest value."""
    codes = re.sub(r"(\d+)([HLQ])", lambda found: found[2] * int(found[1]), layout[3:])
    return [(name, (1 << _BITS[code]) - 1) for name, code in zip(names[1:], codes, strict=True)]
