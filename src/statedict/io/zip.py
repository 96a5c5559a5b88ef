r"""Zip archives as a table of byte ranges.

    [local header | name | extra | data | data descriptor]*  [central header | name | extra]*  [zip64 end]  [end]

    end (22 bytes, last 64 KiB):  PK\5\6, disks, counts, size and offset of the central directory, comment
    zip64 end and locator:        PK\6\6 and PK\6\7, the same in 64 bits, when a 16 or 32 bit field is all ones
    central header (46 bytes):    PK\1\2, method, CRC-32, sizes, offset of the local header, lengths of name and extra
    local header (30 bytes):      PK\3\4, the same again; its name and extra may have other lengths
    data descriptor:              PK\7\10, CRC-32, sizes (64 bits wide in zip64 entries)

Reading takes the central directory in one piece and resolves a local header only when its record is read, for
touching 300 of them on a cold disk costs more than the rest of the work.

Source: PKWARE APPNOTE 6.3.10. Limits: no encryption, no multiple disks; stored and deflated records.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from statedict.errors import CorruptFileError, FormatError, LimitError, TruncatedError, UnknownFormatError
from statedict.io.source import BytesSource, Slice
from statedict.io.zip_table import (
    CENTRAL,
    DEFERRED,
    DEFLATED,
    END,
    END64,
    FULL16,
    FULL32,
    LOCAL,
    LOCATOR64,
    STORED,
    UNREADABLE,
    UTF8,
    Header,
    Reading,
    differs,
    find_ends,
    read_entries,
    read_local,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource

ALIGNMENT = 64
OURS = ".statedict.json"  # the last record of an archive that we wrote
MAX_COMMENT = FULL16
_BLOCK = 1 << 20
_FLAGS = UTF8 | DEFERRED  # of the records that we write
_PADDING = [struct.pack("<2sH", b"FB", n) + b"Z" * n for n in range(ALIGNMENT)]


class Record(Slice):
    """One stored record; where its data begin is looked up at first use. `entry` is its row of the directory."""

    __slots__ = ("crc", "entry")

    in_memory = False

    def __init__(self, base: ByteSource, entry: Header) -> None:
        self.base, self.entry, self._start, self.name = base, entry, -1, base.name
        self.crc, self.size = entry[3], entry[4]

    @property
    def label(self) -> str:
        """The archive's and the record's name."""
        return f"{self.name}: {self.entry.name}"

    @property
    def packed(self) -> Record:
        """Itself; of a deflated record, the record of its packed bytes."""
        return self

    def locate(self) -> tuple[ByteSource, int]:
        """The archive and the offset of this record's first byte in it."""
        if self._start < 0:
            base, entry = self.base, self.entry
            if entry.at + 30 > base.size:
                raise CorruptFileError(
                    f"{self.label}: its header lies past the end of the file; the file looks truncated"
                )
            local = read_local(base, entry.at, entry.length)
            if local is None:
                raise CorruptFileError(f"{self.label}: no record at byte {entry.at:,}; the archive is damaged")
            if local.at + self.size > base.size:
                raise CorruptFileError(
                    f"{self.label}: bytes {local.at:,} to {local.at + self.size:,} lie past the end of the file "
                    f"({base.size:,} bytes); the file looks truncated, fetch it again"
                )
            if difference := differs(entry, local):
                raise CorruptFileError(f"{self.label}: {difference}; the archive is damaged or forged")
            self._start = local.at
        return self.base, self._start

    def _range_message(self, what: str) -> str:
        return f"{self.label}: {what} the record ({self.size:,} bytes)"


class Inflated(BytesSource):
    """One deflated record, unpacked at first use, kept until its end is read, and never beyond the size it declares."""

    __slots__ = ("crc", "label", "packed")

    in_memory = False

    def __init__(self, packed: Record, size: int) -> None:
        # deflate cannot expand by more than 1032 to 1
        if size > 1032 * packed.size + 64:
            raise LimitError(f"{packed.label}: {packed.size:,} bytes claim to unpack to {size:,}; refused")
        self.packed, self.name, self.label, self.size, self.crc = packed, packed.name, packed.label, size, packed.crc
        self._view = memoryview(b"")

    def __reduce__(self) -> tuple[Any, ...]:
        return Inflated, (self.packed, self.size)

    def stream(self, block: int) -> Iterator[tuple[int, memoryview]]:
        """(offset, up to `block` bytes) of all of it, in order; nothing is kept."""
        import zlib

        machine, piece = zlib.decompressobj(-15), b""
        at = done = 0
        try:
            while done <= self.size and not machine.eof:
                if not piece:
                    piece = bytes(self.packed.read(at, min(block, self.packed.size - at)))
                    at += len(piece)
                data = machine.decompress(piece, block)
                if not data and not piece:  # with all of it read, some may still have to come out
                    break
                piece = machine.unconsumed_tail
                yield done, memoryview(data)
                done += len(data)
        except zlib.error as error:
            raise CorruptFileError(f"{self.label}: {error}; the archive is damaged") from error
        if done != self.size:
            raise CorruptFileError(f"{self.label}: unpacks to another size than the {self.size:,} bytes declared")

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes from `offset`."""
        data = super().read(offset, length)
        self._release(offset + length)
        return data

    def _fill(self, offset: int, buffer: memoryview) -> None:
        super()._fill(offset, buffer)
        self._release(offset + len(buffer))

    def _release(self, end: int) -> None:
        if end == self.size:  # mostly it was read in order: members of an archive do not pile up
            self._view = memoryview(b"")

    def _memory(self) -> memoryview:
        memory = self._view
        if len(memory) != self.size:
            data = bytearray()
            for _, block in self.stream(_BLOCK):
                data += block
            self._view = memory = memoryview(data).toreadonly()
        return memory

    def _range_message(self, what: str) -> str:
        return f"{self.label}: {what} the record ({self.size:,} bytes)"


def read_directory(source: ByteSource) -> dict[str, Record | Inflated]:
    """The records of an archive by name, in the order of its central directory.

    Refuses a directory that is missing, outside the file or contradictory, or not the only one that a reader may find;
    names that some reader takes for one; encryption; and methods other than stored and deflated.
    """
    directory = find_end(source)
    offset = directory.place
    problems: list[str] = []
    records: dict[str, Record | Inflated] = {}
    reach = 0
    apart = True
    for entry in read_entries(source.read(offset, directory.size), directory.records, problems):
        name, flags, method, _, packed, unpacked, header, length = entry
        if problems:
            break
        if flags & UNREADABLE:
            raise _unreadable_error(source, entry, "is encrypted; decrypt the archive first")
        if header + packed > offset:
            raise CorruptFileError(
                f"{source.name}: record {name!r} overlaps the zip directory; it is damaged or forged"
            )
        apart = apart and header >= reach
        reach = header + 30 + length + packed
        record = Record(source, entry)
        if method == STORED:
            if packed != unpacked:
                raise CorruptFileError(f"{source.name}: record {name!r} is stored but has two sizes")
            records[name] = record
        elif method == DEFLATED:
            records[name] = Inflated(record, unpacked)
        else:
            raise _unreadable_error(source, entry, f"is compressed by method {method}; unpack the archive first")
    if problems:
        raise CorruptFileError(f"{source.name}: {problems[0]}")
    if not apart:  # mostly another order of the directory; reading what overlaps could take the square of the size
        spans = sorted(
            (item.packed.entry.at, item.packed.entry.at + 30 + item.packed.size) for item in records.values()
        )
        for (_, end), (begin, _) in pairwise(spans):
            if begin < end:
                raise CorruptFileError(f"{source.name}: records overlap at byte {begin:,}; it is damaged or forged")
    return records


def _unreadable_error(source: ByteSource, entry: Header, what: str) -> FormatError:
    """What the directory says of a record that cannot be read, if the record itself says so too."""
    local = read_local(source, entry.at)
    if local is None or (local.flags & UNREADABLE, local.method) != (entry.flags & UNREADABLE, entry.method):
        what += ", or fetch it again: the record's own header says otherwise"
        return CorruptFileError(f"{source.name}: record {entry.name!r} {what}")
    return UnknownFormatError(f"{source.name}: record {entry.name!r} {what}")


def find_end(source: ByteSource) -> Reading:
    """The only directory that a reader may find."""
    ends = find_ends(source, source.size)
    if ends.problems and "truncated, fetch" not in ends.problems[0]:
        raise CorruptFileError(f"{source.name}: {ends.problems[0]}")
    if not ends.readings or ends.problems:
        length = min(source.size, END.size + FULL16)
        tail = bytes(source.read(source.size - length, length))
        zeros = len(tail) - len(tail.rstrip(b"\0"))
        holes = f" and its last {zeros:,} bytes or more are zero, as in a download that was cut short" * (zeros > 512)
        raise TruncatedError(
            f"{source.name}: begins as a zip archive but its directory at the end is missing{holes}; "
            f"the file ({source.size:,} bytes) looks truncated, fetch it again"
        )
    reading: Reading = ends.readings[0]
    if reading.shift > 0:
        before = find_ends(source, reading.shift)
        if before.readings and not before.problems and before.readings[0].stop == reading.shift:
            raise CorruptFileError(
                f"{source.name}: is several archives, one behind the other; the last one begins at byte "
                f"{reading.shift:,}; if it is a file of a distributed checkpoint, open its folder; any other file was "
                "joined, take it apart"
            )
    if len(ends.readings) > 1 or reading.shift:
        place, written = reading.place, reading.place - reading.shift
        raise CorruptFileError(
            f"{source.name}: the zip directory lies at byte {place:,}, and at byte {written:,} by the end of the "
            "archive; something stands before the archive, or it is damaged or forged"
        )
    return reading


def read_comment(source: ByteSource) -> bytes:
    """The text at the end of an archive."""
    start = find_end(source).at + END.size
    return bytes(source.read(start, source.size - start))


def refuse_behind(source: ByteSource, end: int) -> None:
    """Raise CorruptFileError if a zip archive follows the end of a pickle; some readers would read that instead."""
    if source.size - end < END.size:
        return
    ends = find_ends(source, source.size)
    if ends.readings and ends.readings[0].at >= end:
        raise CorruptFileError(
            f"{source.name}: begins as a pickle, which ends at byte {end:,}, and ends as a zip archive, which some "
            "readers read instead; it is damaged or forged"
        )


class ArchiveLayout:
    """Where each record of a new archive goes, decided before a byte is written.

    A record is appended as it comes, with its CRC-32 in a data descriptor, as PyTorch does; its data begin on a
    multiple of 64 bytes.

    >>> from statedict.io.zip import ArchiveLayout
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

    def directory(self, crcs: list[int], comment: bytes = b"") -> bytes:
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
        return body + end_records(len(self._entries), len(body), self.position, comment)


def end_records(count: int, size: int, at: int, comment: bytes = b"") -> bytes:
    """What follows a central directory of so many entries and bytes that begins at byte `at`."""
    end = b""
    if count >= FULL16 or size >= FULL32 or at >= FULL32:
        end = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
        end += LOCATOR64.pack(b"PK\6\7", 0, at + size, 1)
    short = min(count, FULL16)
    return end + END.pack(b"PK\5\6", 0, 0, short, short, min(size, FULL32), min(at, FULL32), len(comment)) + comment
