r"""Zip archives as a table of byte ranges.

    [local header | name | extra | data | data descriptor]*  [central header | name | extra]*  [zip64 end]  [end]

    end (22 bytes, last 64 KiB):  PK\5\6, disks, counts, size and offset of the central directory, comment
    zip64 end and locator:        PK\6\6 and PK\6\7, the same in 64 bits, when a 16 or 32 bit field is all ones
    central header (46 bytes):    PK\1\2, method, CRC-32, sizes, offset of the local header, lengths of name and extra
    local header (30 bytes):      PK\3\4, the same again; its name and extra may have other lengths
    data descriptor:              PK\7\10, CRC-32, sizes (64 bits wide in zip64 entries)

Reading takes the central directory in one piece and resolves a local header only when its record is read, for
touching 300 of them on a cold disk costs more than the rest of the work. Writing appends a record as it comes, with
its CRC-32 in a data descriptor, as PyTorch does; every record starts on a multiple of 64 bytes.

Source: PKWARE APPNOTE 6.3.10. Limits: no encryption, no multiple disks; stored and deflated records.
"""

from __future__ import annotations

import struct

from statedict.errors import CorruptFileError, FormatError, LimitError, TruncatedError, UnknownFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_FLAGS = 0x0808  # names in UTF-8, data descriptor
ALIGNMENT = 64
_PADDING = [struct.pack("<2sH", b"FB", n) + b"Z" * n for n in range(ALIGNMENT)]


class Record:
    """One stored record as a ByteSource; where its data begin is looked up at first use."""

    __slots__ = ("_base", "_start", "crc", "header", "record", "size")

    in_memory = False

    def __init__(self, base: ByteSource, record: str, header: int, size: int, crc: int) -> None:
        self._base, self.record, self.header, self._start = base, record, header, -1
        self.size, self.crc = size, crc

    @property
    def name(self) -> str:
        """The archive's name."""
        return self._base.name

    @property
    def remote(self) -> bool:
        """As the archive."""
        return self._base.remote

    @property
    def base(self) -> ByteSource:
        """The archive."""
        return self._base

    @property
    def archive_size(self) -> int:
        """Bytes of the archive that it lies in."""
        return self._base.size

    @property
    def span(self) -> tuple[int, int]:
        """Where it begins in the archive, and where it ends at the earliest."""
        return self.header, self.header + 30 + self.size

    @property
    def label(self) -> str:
        """The archive's and the record's name."""
        return f"{self._base.name}: {self.record}"

    def locate(self) -> tuple[ByteSource, int]:
        """The archive and the offset of this record's first byte in it."""
        if self._start < 0:
            base = self._base
            if self.header + 30 > base.size:
                raise CorruptFileError(
                    f"{self.label}: its header lies past the end of the file; the file looks truncated"
                )
            head = LOCAL.unpack(base.read(self.header, 30))
            start = self.header + 30 + head[9] + head[10]
            if head[0] != b"PK\3\4":
                raise CorruptFileError(f"{self.label}: no record at byte {self.header:,}; the archive is damaged")
            if start + self.size > base.size:
                raise CorruptFileError(
                    f"{self.label}: bytes {start:,} to {start + self.size:,} lie past the end of the file "
                    f"({base.size:,} bytes); the file looks truncated, fetch it again"
                )
            self._start = start
        return self._base, self._start

    def _at(self, offset: int, length: int) -> int:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptFileError(
                f"{self.label}: bytes {offset:,} to {offset + length:,} lie outside the record ({self.size:,} bytes)"
            )
        return self.locate()[1] + offset

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        return self._base.read(self._at(offset, length), length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._base.readinto(self._at(offset, len(buffer)), buffer)

    def view(self, private: bool = False) -> memoryview | None:
        """The record's part of the archive's view."""
        whole = self._base.view(private)
        if whole is None:
            return None
        start = self.locate()[1]
        return whole[start : start + self.size]


class Inflated:
    """One deflated record, unpacked at first use and never beyond the size that it declares."""

    __slots__ = ("_data", "crc", "label", "name", "packed", "size")

    in_memory = True
    remote = False

    def __init__(self, packed: Record, size: int) -> None:
        # deflate cannot expand by more than 1032 to 1
        if size > 1032 * packed.size + 64:
            raise LimitError(f"{packed.label}: {packed.size:,} bytes claim to unpack to {size:,}; refused")
        self.packed, self.name, self.label, self.size, self.crc = packed, packed.name, packed.label, size, packed.crc
        self._data: memoryview | None = None

    def __reduce__(self) -> tuple[type[Inflated], tuple[Record, int]]:
        return Inflated, (self.packed, self.size)

    @property
    def archive_size(self) -> int:
        """Bytes of the archive that it lies in."""
        return self.packed.archive_size

    @property
    def span(self) -> tuple[int, int]:
        """Where it begins in the archive, and where it ends at the earliest."""
        return self.packed.span

    def _inflate(self) -> memoryview:
        if self._data is None:
            import zlib

            try:
                machine = zlib.decompressobj(-15)
                data = machine.decompress(self.packed.read(0, self.packed.size), self.size + 1)
            except zlib.error as error:
                raise CorruptFileError(f"{self.label}: {error}; the archive is damaged") from error
            if len(data) != self.size:
                raise CorruptFileError(f"{self.label}: unpacks to another size than the {self.size:,} bytes declared")
            self._data = memoryview(data)
        return self._data

    def stream(self, block: int) -> Iterator[tuple[int, memoryview]]:
        """(offset, up to `block` bytes) of all of it, in order; nothing is kept."""
        import zlib

        machine, piece = zlib.decompressobj(-15), b""
        at = done = 0
        while done <= self.size and not machine.eof:
            if not piece:
                piece = bytes(self.packed.read(at, min(block, self.packed.size - at)))
                at += len(piece)
            if not piece:
                break
            try:
                data = machine.decompress(piece, block)
            except zlib.error as error:
                raise CorruptFileError(f"{self.label}: {error}; the archive is damaged") from error
            piece = machine.unconsumed_tail
            yield done, memoryview(data)
            done += len(data)
        if done != self.size:
            raise CorruptFileError(f"{self.label}: unpacks to another size than the {self.size:,} bytes declared")

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """A copy of `length` bytes from `offset`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptFileError(
                f"{self.label}: bytes {offset:,} to {offset + length:,} lie outside the record ({self.size:,} bytes)"
            )
        return bytes(self._inflate()[offset : offset + length])

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self.read(offset, len(buffer))

    def view(self, private: bool = False) -> memoryview | None:
        """The unpacked bytes; None for a private view."""
        return None if private else self._inflate()


def read_directory(source: ByteSource) -> dict[str, Record | Inflated]:
    """The records of an archive by name, in the order of its central directory.

    Raises:
        CorruptFileError: the directory is missing, lies outside the file, or contradicts itself.
        UnknownFormatError: an encrypted record, or a method other than stored and deflated.
    """
    count, offset, size, _ = find_end(source)
    if size < 46 * count:
        raise CorruptFileError(f"{source.name}: {count:,} records cannot lie in a directory of {size:,} bytes")
    directory = source.read(offset, size)
    records: dict[str, Record | Inflated] = {}
    at = reach = 0
    apart = True
    unpack = CENTRAL.unpack_from
    for _ in range(count):
        if at + 46 > size:
            raise CorruptFileError(f"{source.name}: the zip directory ends after {len(records):,} of {count:,} records")
        (magic, _, _, flags, method, _, _, crc, packed, unpacked, nlen, xlen, clen, _, _, _, header) = unpack(
            directory, at
        )
        if magic != b"PK\1\2":
            raise CorruptFileError(
                f"{source.name}: the zip directory is damaged at its byte {at:,}, perhaps by a transfer as text; "
                "fetch it again"
            )
        try:
            name = directory[at + 46 : at + 46 + nlen].decode()
        except UnicodeDecodeError:
            name = directory[at + 46 : at + 46 + nlen].decode("cp437")
        if unpacked == FULL32 or packed == FULL32 or header == FULL32:
            extra = bytes(directory[at + 46 + nlen : at + 46 + nlen + xlen])
            unpacked, packed, header = _zip64_fields(source, name, extra, unpacked, packed, header)
        at += 46 + nlen + xlen + clen
        if flags & 1:
            raise _unread(source, name, header, flags, method, "is encrypted; decrypt the archive first")
        if name in records:
            raise CorruptFileError(
                f"{source.name}: record {name!r} stands twice in the zip directory; it is damaged or forged"
            )
        if header + packed > offset:
            raise CorruptFileError(
                f"{source.name}: record {name!r} overlaps the zip directory; it is damaged or forged"
            )
        apart = apart and header >= reach
        reach = header + 30 + nlen + packed
        record = Record(source, name, header, packed, crc)
        if method == _STORED:
            if packed != unpacked:
                raise CorruptFileError(f"{source.name}: record {name!r} is stored but has two sizes")
            records[name] = record
        elif method == _DEFLATED:
            records[name] = Inflated(record, unpacked)
        else:
            what = f"is compressed by method {method}; unpack the archive first"
            raise _unread(source, name, header, flags, method, what)
    if not apart:  # mostly another order of the directory; reading what overlaps could take the square of the size
        _check_overlap(source, records)
    return records


def _check_overlap(source: ByteSource, records: dict[str, Record | Inflated]) -> None:
    reach = 0
    for begin, end in sorted(record.span for record in records.values()):
        if begin < reach:
            raise CorruptFileError(f"{source.name}: records overlap at byte {begin:,}; it is damaged or forged")
        reach = end


def _unread(source: ByteSource, name: str, header: int, flags: int, method: int, what: str) -> FormatError:
    """What the directory says of a record that cannot be read, if the record itself says so too."""
    local = LOCAL.unpack(source.read(header, 30)) if header + 30 <= source.size else None
    if local is None or (local[2] & 1, local[3]) != (flags & 1, method):
        what += ", or fetch it again: the record's own header says otherwise"
        return CorruptFileError(f"{source.name}: record {name!r} {what}")
    return UnknownFormatError(f"{source.name}: record {name!r} {what}")


def find_end(source: ByteSource) -> tuple[int, int, int, int]:
    """The number of records, offset and size of the central directory, offset of the end record.

    Raises:
        TruncatedError: there is no end.
        CorruptFileError: it contradicts itself or the file.
    """
    tail_length = min(source.size, 22 + 0xFFFF)
    base = source.size - tail_length
    tail = bytes(source.read(base, tail_length))
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if len(tail) - at >= 22:
            _, _, _, _, _, size, offset, comment = END.unpack_from(tail, at)
            if comment == len(tail) - at - 22:
                break
            if base + at - offset - size in (0, 76) and comment < len(tail) - at - 22:  # 76 of 64 bit end records
                raise CorruptFileError(
                    f"{source.name}: {len(tail) - at - 22:,} bytes follow the end of the archive at byte "
                    f"{base + at + 22:,}; they were appended or the end is damaged, fetch it again"
                )
    else:
        zeros = len(tail) - len(tail.rstrip(b"\0"))
        holes = f" and its last {zeros:,} bytes or more are zero, as in a download that was cut short" * (zeros > 512)
        raise TruncatedError(
            f"{source.name}: begins as a zip archive but its directory at the end is missing{holes}; "
            f"the file ({source.size:,} bytes) looks truncated, fetch it again"
        )
    _, _, _, _, count, size, offset, _ = END.unpack_from(tail, at)
    end = base + at
    if count == FULL16 or size == FULL32 or offset == FULL32:
        locator = source.read(end - 20, 20) if end >= 20 else b""
        if locator[:4] == b"PK\6\7":
            at64 = LOCATOR64.unpack(locator)[2]
            if at64 + 56 > end:
                raise CorruptFileError(f"{source.name}: the zip64 end record lies outside the file; it is damaged")
            record = END64.unpack(source.read(at64, 56))
            if record[0] != b"PK\6\6":
                raise CorruptFileError(f"{source.name}: the zip64 end record is damaged")
            count, size, offset, end = record[7], record[8], record[9], at64
    if offset + size > end:
        raise CorruptFileError(f"{source.name}: the zip directory lies outside the file; it is truncated or damaged")
    return count, offset, size, base + at


def _zip64_fields(source: ByteSource, name: str, extra: bytes, *fields: int) -> list[int]:
    wide = iter(zip64_values(extra))
    try:
        return [next(wide) if field == FULL32 else field for field in fields]
    except StopIteration:
        raise CorruptFileError(
            f"{source.name}: record {name!r} lacks its 64 bit sizes; the zip directory is damaged"
        ) from None


def zip64_values(extra: bytes) -> tuple[int, ...]:
    r"""The 64 bit values of a record's extra field of kind 1 (APPNOTE 4.5.3), in their order; none without it.

    >>> from statedict.io.zip import zip64_values
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


class ArchiveLayout:
    """Where each record of a new archive goes, decided before a byte is written.

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
