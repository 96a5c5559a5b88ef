"""Tar archives as a table of byte ranges.

    512 bytes    name 0–99, size in octal 124–135, sum of the bytes 148–155, kind 156, ustar 257–261, prefix 345–499
    the bytes of the member, padded to a multiple of 512

A size of which the first bit is set is binary. Kinds: 0 or NUL a file, 5 a folder, L the name of the next member, x
what pax says of the next one (`path`, `size`).

Source: POSIX.1-2017, pax; the manual of GNU tar. Limits: no sparse members.
"""

from __future__ import annotations

import re
from collections import namedtuple

from statedict.errors import CorruptFileError, TruncatedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource

Member = namedtuple("Member", "name kind begin size")
"""A member of an archive; the kind of a file is "0"."""

_BLOCK = 512
_MAX_NAME = 1 << 16
_PAX = re.compile(rb"(\d{1,10}) ([^=\n]+)=")


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


def read_members(source: ByteSource) -> Iterator[Member]:
    """The members of an archive, in order, without those that describe others.

    Raises:
        CorruptFileError: a header is damaged, or the archive ends within a member.
    """
    at, told = 0, dict[str, bytes]()
    while at < source.size:
        if at + _BLOCK > source.size:
            raise TruncatedError(f"{source.name}: ends within a tar header at byte {at:,}; fetch it again")
        head = bytes(source.read(at, _BLOCK))
        if not head.strip(b"\0"):
            return
        if not is_tar(head):
            raise CorruptFileError(f"{source.name}: the tar header at byte {at:,} is damaged; fetch it again")
        begin, kind = at + _BLOCK, head[156:157]
        stated = told.pop("size", b"")
        try:
            size = int(stated) if stated else _read_size(head[124:136])
        except ValueError as error:
            raise CorruptFileError(f"{source.name}: the member at byte {at:,} has no size; it is damaged") from error
        if begin + size > source.size:
            raise TruncatedError(
                f"{source.name}: the member at byte {at:,} has {size:,} bytes, and {source.size - begin:,} are left; "
                "the archive looks truncated, fetch it again"
            )
        at = min(begin + -(-size // _BLOCK) * _BLOCK, source.size)
        if kind in (b"L", b"x", b"g", b"K"):
            if size > _MAX_NAME:
                raise CorruptFileError(f"{source.name}: a name of {size:,} bytes at byte {begin:,}; it is damaged")
            data = bytes(source.read(begin, size))
            told |= {"path": data.rstrip(b"\0")} if kind == b"L" else _read_pax(data) if kind == b"x" else {}
            continue
        prefix = head[345:500].split(b"\0")[0] + b"/" if head[257:263] == b"ustar\0" and head[345] else b""
        name = told.pop("path", prefix + head[:100].split(b"\0")[0]).decode("utf-8", "replace")
        told.clear()
        yield Member(name.removeprefix("./"), "0" if kind in (b"\0", b"0", b"7") else chr(kind[0]), begin, size)


def _read_size(field: bytes) -> int:
    if field[0] & 128:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)


def _read_pax(data: bytes) -> dict[str, bytes]:
    """The records `LENGTH KEY=VALUE` of a pax header that matter."""
    found, at = dict[str, bytes](), 0
    while record := _PAX.match(data, at):
        end = at + int(record[1])
        if record[2] in (b"path", b"size"):
            found[record[2].decode()] = data[record.end() : end - 1]
        if end <= at:
            break
        at = end
    return found
