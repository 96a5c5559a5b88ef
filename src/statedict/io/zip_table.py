r"""What the directory of a zip archive and each record's own header say, and where readers of them would disagree.

PyTorch's reader (miniz) looks names up without regard to case, others end a name at a NUL. So each of these is noted as
a problem. `io.zip` refuses an archive that has one; `scan` lists them and follows each reading. The layout is in
`io.zip`.

Source: PKWARE APPNOTE 6.3.10; miniz 3.0.2 as in PyTorch 2.13; CPython's Lib/zipfile.
"""

from __future__ import annotations

import struct
import zlib

from statedict.io.zip_ends import DAMAGED, FULL32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple

    from statedict.io.zip_ends import Readable

    class Header(NamedTuple):
        """What the directory, or a record's own header, says of it.

        `at` is where its own header begins; in what its own header says, where its data begin.
        """

        name: str
        flags: int
        method: int
        crc: int
        packed: int
        unpacked: int
        at: int
        length: int

else:
    from collections import namedtuple

    Header = namedtuple("Header", "name flags method crc packed unpacked at length")

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


def read_entries(directory: bytes | bytearray, count: int, problems: list[str]) -> Iterator[Header]:
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
            problems.append(DAMAGED.format(at))
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
        unpacked, packed = fill_in(zip64_values(extra), unpacked, packed)
    return Header(read_name(raw), flags, method, crc, packed, unpacked, at + 30 + nlen + xlen, nlen)


def differs(entry: Header, local: Header) -> str:
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


def _coded_alike(entry: Header, local: Header) -> bool:
    """Whether the flags say the same of the bytes of a name, which are one a character only in a code page."""
    return bool((entry.flags ^ local.flags) & UTF8) == (entry.length != local.length)
