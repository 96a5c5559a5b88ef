"""Archives of torch.save, laid out before a byte is written: a file by themselves, or chunks of another one."""

from __future__ import annotations

from statedict.io.pipeline import Part
from statedict.io.source import BytesSource
from statedict.io.zip_table import ArchiveLayout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from statedict.io.pipeline import Sink, Sums
    from statedict.io.source import ByteSource

    Stored = tuple[ByteSource, int, int]
    """A storage to write: source, first byte and size."""

OURS = ".statedict.json"
RECORDS = {"byteorder": b"little"}


class Packing:
    """An archive that is laid out and not yet written.

    Attributes:
        parts: its records but for the last one, at their offsets in the output.
        size: bytes of the whole archive.
    """

    __slots__ = ("_at", "_last", "_layout", "_metadata", "parts", "size")

    def __init__(
        self,
        data: bytes,
        storages: Iterable[Stored],
        records: dict[str, bytes],
        metadata: dict[str, str] | None = None,
        at: int = 0,
    ) -> None:
        """Lay it out; the arguments are those of `pack`, and `at` is where it begins in the output."""
        self._layout, self._metadata, self._at = ArchiveLayout(), metadata, at
        self.parts: list[Part] = []
        for name, record in {"data.pkl": data, **records}.items():
            self._add(name, BytesSource(record, name), 0, len(record))
        for index, storage in enumerate(storages):
            self._add(f"data/{index}", *storage)
        self._add("version", BytesSource(b"3\n", "version"), 0, 2)
        self._last = self._layout.add(f"archive/{OURS}", len(our_record(["0" * 32] * len(self.parts), metadata)))
        self.size = self._layout.position + len(self._layout.directory([0] * (len(self.parts) + 1)))

    def _add(self, name: str, source: ByteSource, start: int, size: int) -> None:
        _, header, data_at = self._layout.add("archive/" + name, size)
        self.parts.append(Part(self._at + data_at, source, start, size, header, self._layout.descriptor))

    def write(self, sink: Sink) -> None:
        """Write it."""
        sink.put([self.end(sink.put(self.parts, crc=True))])

    def end(self, sums: list[Sums]) -> Part:
        """What follows the parts, of which these are the sums: our record and the directory."""
        from zlib_ng.zlib_ng import crc32

        own = our_record([s.digest for s in sums], self._metadata)
        crc = crc32(own)
        rest = own + self._layout.descriptor(crc, len(own)) + self._layout.directory([*(s.crc for s in sums), crc])
        _, header, at = self._last
        return Part(self._at + at, BytesSource(rest), 0, len(rest), header)


def our_record(digests: list[str], metadata: dict[str, str] | None) -> bytes:
    """Our own record, with the digests of those before it and strings of the caller's."""
    import json

    content: dict[str, Any] = {"digests": {"xxh3_128": digests}}
    if metadata:
        content["metadata"] = dict(metadata)
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
