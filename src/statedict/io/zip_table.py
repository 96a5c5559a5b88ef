"""What the directory of a zip archive and each record's own header say, and where readers of them would disagree.

PyTorch's reader (miniz) looks names up without regard to case, others end a name at a NUL; each such name is a problem.
`io.zip`, which shows the layout, refuses an archive with a problem; `scan` lists them and follows each reading.

Source: PKWARE APPNOTE 6.3.10; miniz 3.0.2 as in PyTorch 2.13; CPython's Lib/zipfile.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter, namedtuple

from statedict.io.zip_ends import DAMAGED, END, END64, FULL16, FULL32, LOCATOR64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.zip_ends import Readable

# a record; `at` is where its own header begins or, if this is its own header, where its data begin
Header = namedtuple("Header", "name flags method crc packed unpacked at length")
ALIGNMENT = 64
OURS = ".statedict.json"  # the last record of an archive of torch.save that we wrote
_PADDING = [struct.pack("<2sH", b"FB", n) + b"Z" * n for n in range(ALIGNMENT)]
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
DEFERRED = 8  # the flag of a record whose sums and sizes follow its data
UTF8 = 0x800
UNREADABLE = 0x2061  # encrypted, patched, strongly encrypted, masked headers
_FLAGS = UTF8 | DEFERRED  # of the records that we write
_FOLDER = 0x10  # of the attributes of a file
_PATH = 0x7075  # the extra field that gives a name in Unicode
_MOST = 100  # problems that are listed
# what PyTorch asks an archive for: storages and others
_STORAGES = ("data/", "constants/")
_ASKED = {"data.pkl", "constants.pkl", "version", "byteorder", ".data/version", ".format_version", ".storage_alignment"}


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
    sums = local[3:6]
    deferred = bool(local.flags & DEFERRED)
    if (
        (sums == entry[3:6] or (deferred and sums == (0, 0, 0)))
        and (entry.name, entry.method) == (local.name, local.method)
        and not (entry.flags ^ local.flags) & (UNREADABLE | DEFERRED)
        and (entry.name.isascii() or _has_same_encoding(entry, local))
    ):
        return ""
    for what, said, here in (
        ("name", entry.name, local.name),
        ("method", entry.method, local.method),
        ("encryption", entry.flags & UNREADABLE, local.flags & UNREADABLE),
    ):
        if said != here:
            return f"the {what} in its own header is {here!r}, in the zip directory {said!r}"
    if not entry.name.isascii() and not _has_same_encoding(entry, local):
        return "by its own header its name is coded otherwise than by the zip directory"
    for what, said, here in zip(("CRC-32", "packed size", "size"), entry[3:6], sums, strict=True):
        if said != here and not (deferred and here == 0) and here != FULL32:
            return f"the {what} in its own header is {here:,}, in the zip directory {said:,}"
    if (entry.flags ^ local.flags) & DEFERRED:
        behind, no = ("", "no ") if deferred else ("no ", "")
        return f"by its own header {behind}sums follow its data, by the zip directory {no}sums do"
    return ""


def _has_same_encoding(entry: Header, local: Header) -> bool:
    """Whether the flags say the same of the bytes of a name, which are one a character only in a code page."""
    return bool((entry.flags ^ local.flags) & UTF8) is bool(entry.length != local.length)


class ArchiveLayout:
    """Where each record of a new archive goes, decided before a byte is written.

    A record is appended as it comes, with its CRC-32 in a data descriptor, as PyTorch does; its data begin on a
    multiple of 64 bytes.

    >>> from statedict.io.zip_table import ArchiveLayout
    >>> layout = ArchiveLayout()
    >>> header_at, header, data_at = layout.add("archive/data.pkl", 100)
    >>> header_at, data_at % 64
    (0, 0)
    """

    def __init__(self) -> None:
        self.position = 0
        self._entries: list[tuple[bytes, int, int]] = []

    def add(self, name: str, size: int) -> tuple[int, bytes, int]:
        """Place a record of `size` bytes: its header's offset, its header with padding, its data's offset."""
        encoded = name.encode()
        header_at = self.position
        wide = size >= FULL32
        extra = struct.pack("<2H2Q", 1, 16, 0, 0) if wide else b""
        start = header_at + 30 + len(encoded) + len(extra) + 4
        padding = -start % ALIGNMENT
        extra += _PADDING[padding]
        sizes = (FULL32, FULL32) if wide else (0, 0)  # the descriptor has them
        version = 45 if wide else 20
        header = LOCAL.pack(b"PK\3\4", version, _FLAGS, 0, 0, 0, 0, *sizes, len(encoded), len(extra)) + encoded + extra
        data_at = start + padding
        self._entries.append((encoded, header_at, size))
        self.position = data_at + size + (24 if wide else 16)
        return header_at, header, data_at

    @staticmethod
    def descriptor(crc: int, size: int) -> bytes:
        """What follows a record's data."""
        return struct.pack("<4sL2Q" if size >= FULL32 else "<4s3L", b"PK\7\x08", crc, size, size)

    def directory(self, crcs: list[int]) -> bytes:
        """The central directory and the end records, given each record's CRC-32 in the order of `add`."""
        parts: list[bytes] = []
        pack = CENTRAL.pack
        for (name, header_at, size), crc in zip(self._entries, crcs, strict=True):
            extra = b""
            if size >= FULL32 or header_at >= FULL32:
                wide = [v for v in (size, size, header_at) if v >= FULL32]
                extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide)
            short_size, short_at = min(size, FULL32), min(header_at, FULL32)
            version = 45 if extra else 20
            parts.append(
                pack(b"PK\1\2", version, version, _FLAGS, 0, 0, 0, crc, short_size, short_size,
                     len(name), len(extra), 0, 0, 0, 0, short_at)
                + name + extra
            )  # fmt: skip
        body = b"".join(parts)
        return body + end_records(len(self._entries), len(body), self.position)


def end_records(count: int, size: int, at: int) -> bytes:
    """What follows a central directory of so many entries and bytes that begins at byte `at`."""
    end = b""
    if count >= FULL16 or size >= FULL32 or at >= FULL32:
        end = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
        end += LOCATOR64.pack(b"PK\6\7", 0, at + size, 1)
    short = min(count, FULL16)
    return end + END.pack(b"PK\5\6", 0, 0, short, short, min(size, FULL32), min(at, FULL32), 0)
