"""Where each record of a new zip archive goes. The layout is in `io.zip`.

A record is appended as it comes, with its CRC-32 in a data descriptor, as PyTorch does; its data begin on a multiple of
64 bytes.
"""

from __future__ import annotations

import struct

from statedict.io.zip_ends import END, END64, FULL16, FULL32, LOCATOR64
from statedict.io.zip_table import CENTRAL, LOCAL

_FLAGS = 0x0808  # names in UTF-8, data descriptor
ALIGNMENT = 64
_PADDING = [struct.pack("<2sH", b"FB", n) + b"Z" * n for n in range(ALIGNMENT)]


class ArchiveLayout:
    """Where each record of a new archive goes, decided before a byte is written.

    >>> from statedict.io.zip_layout import ArchiveLayout
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
