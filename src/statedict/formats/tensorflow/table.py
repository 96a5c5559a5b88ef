"""A sorted table of LevelDB, as TensorFlow writes the index of a checkpoint.

    blocks       of entries; at the end a block whose values say where the blocks are
    a block      entries; u32 each: where an entry begins whose key is whole; u32: how many; then a byte, 0 for no
                 compression, and u32: the masked CRC-32C of all that
    an entry     varints: bytes of its key that are those of the key before, further ones, bytes of the value; then the
                 further ones, and the value
    48 bytes     at the end: varints: where a block without entries is, and its size; the same of the index; zeros;
                 u64: 0xdb4775248b80fb57

Source: table/format.cc and block_builder.cc of LevelDB; tensorflow/tsl/lib/io. Limits: 256 MiB, no compression.
"""

from __future__ import annotations

from statedict.errors import CorruptFileError, LimitError, UnsupportedError
from statedict.tensor.checks import Check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource

_FOOTER = 48
_TRAILER = 5
_MAGIC = 0xDB4775248B80FB57
_MOST = 256 << 20
_COST, _RESERVE, _FACTOR = 200, 48 << 20, 17  # bytes of memory of an entry, and those that a file may ask for


class Table:
    """The entries of a table, and its blocks as (begin, size)."""

    def __init__(self, source: ByteSource) -> None:
        if source.size > _MOST:
            raise LimitError(f"{source.name}: {source.size:,} bytes, and no index of a checkpoint has over {_MOST:,}")
        self.source, self.name = source, source.name
        self.data = bytes(source.read(0, source.size))
        self.blocks: list[tuple[int, int]] = []
        self._left = _RESERVE + _FACTOR * source.size
        if len(self.data) < _FOOTER or int.from_bytes(self.data[-8:], "little") != _MAGIC:
            raise CorruptFileError(f"{self.name}: has no end of a table; the file looks truncated, fetch it again")

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """The keys, in order, with their values."""
        at = len(self.data) - _FOOTER
        end = len(self.data) - 8
        for _ in range(2):  # what else the table has, which is nothing here
            at = self._number(at, end)[1]
        last = b""
        for _, handle in self._block(*self._handle(self.data[at:end])):
            for key, value in self._block(*self._handle(handle)):
                if key <= last and (last or self.blocks[2:]):
                    raise self._damage(f"the key {key!r:.80} stands behind {last!r:.80}")
                last = key
                yield key, value

    def checks(self) -> Iterator[Check]:
        """A part for each block that was read."""
        for number, (begin, size) in enumerate(self.blocks):
            part = "index" if number == 0 else f"block {number} of the index"
            crc = unmask(int.from_bytes(self.data[begin + size + 1 : begin + size + _TRAILER], "little"))
            yield Check(part, self.source, begin, size + 1, crc32c=crc)

    def _handle(self, data: bytes) -> tuple[int, int]:
        begin, at = _varint(data, 0)
        size, _ = _varint(data, at)
        if begin < 0 or size < 0 or begin + size + _TRAILER > len(self.data) - _FOOTER:
            raise self._damage(f"a block at byte {begin:,} of {size:,} bytes does not fit")
        return begin, size

    def _block(self, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        self.blocks.append((begin, size))
        self._spend(size)
        end = begin + size
        if kind := self.data[end]:
            raise UnsupportedError(f"{self.name}: its block at byte {begin:,} is compressed ({kind}); save it anew")
        restarts = int.from_bytes(self.data[end - 4 : end], "little") if size >= 4 else -1
        end -= 4 + 4 * restarts
        if restarts < 0 or end < begin:
            raise self._damage(f"the block at byte {begin:,} has no entries")
        at, key = begin, b""
        while at < end:
            same, at = self._number(at, end)
            more, at = self._number(at, end)
            length, at = self._number(at, end)
            if same > len(key) or at + more + length > end:
                raise self._damage(f"the entry before byte {at:,} does not fit into its block")
            self._spend(_COST + same + more + length)
            key = key[:same] + self.data[at : at + more]
            at += more + length
            yield key, self.data[at - length : at]

    def _number(self, at: int, end: int) -> tuple[int, int]:
        value, after = _varint(self.data, at)
        if value < 0 or after > end:
            raise self._damage(f"the number at byte {at:,} is none")
        return value, after

    def _spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise LimitError(f"{self.name}: has too many entries for its size; it is damaged or forged")

    def _damage(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: {what}; the file is damaged, fetch it again")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, -1 if there is none, and where it ends."""
    value = 0
    for shift in range(min(10, len(data) - at)):
        byte = data[at + shift]
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    return -1, at


def unmask(stored: int) -> int:
    """The CRC-32C that a masked one stands for.

    >>> hex(unmask(0xA2B2EAD8))
    '0x18'
    """
    turned = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF
