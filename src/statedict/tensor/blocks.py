"""Tensors stored as blocks: GGUF's quantized ones, or packed small numbers. PyTorch and NumPy get decoded numbers.

A block holds `elements` elements in a row, with their scales if they have any. A `BlockTensor` is a float32 or 8-bit
tensor whose storage decodes; `find_blocks` gives the stored bytes, which a format of the same blocks copies.
"""

from __future__ import annotations

import math
from collections import namedtuple

from statedict.dtypes import BY_NAME
from statedict.io.source import ByteSource
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.values import human_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLOAT = BY_NAME["float32"]
_BYTE = BY_NAME["uint8"]
_ORDER = ("dtype", "shape", "storage", "offset", "strides", "requires_grad", "parameter", "attributes", "ndarray")
_KEPT = {"requires_grad", "parameter", "attributes", "ndarray"}
_CHUNK = 1 << 18  # elements that are decoded at a time: they stay in the cache, and are worth the calls of NumPy

# a kind of block: its name, how many elements one has, its bytes, decode(bytes, buffer), which fills a buffer with the
# elements of whole blocks, and their dtype
BlockType = namedtuple("BlockType", "name elements nbytes decode dtype", defaults=[_FLOAT])


class BlockSource(ByteSource):
    """The decoded numbers of blocks that lie in another source from `start` on."""

    __slots__ = ("blocks", "kind", "name", "remote", "size", "start")

    remote: bool

    def __init__(self, kind: BlockType, blocks: ByteSource, start: int, count: int, name: str) -> None:
        self.kind, self.blocks, self.start, self.name = kind, blocks, start, name
        self.size = kind.dtype.itemsize * kind.elements * count
        self.remote = blocks.remote

    def _fill(self, offset: int, buffer: memoryview) -> None:
        width = self.kind.dtype.itemsize * self.kind.elements
        most = _CHUNK * 4 // width * width or width
        while len(buffer):
            first, within = divmod(offset, width)
            size = min(len(buffer), most - within)
            count = -(-(within + size) // width)
            data = self.blocks.read(self.start + first * self.kind.nbytes, count * self.kind.nbytes)
            if size == count * width:
                self.kind.decode(data, buffer[:size])
            else:
                whole = memoryview(bytearray(count * width))
                self.kind.decode(data, whole)
                buffer[:size] = whole[within : within + size]
            offset, buffer = offset + size, buffer[size:]


class BlockTensor(LazyTensor):
    """A tensor that is stored as blocks.

    Reading it decodes the blocks; `raw()` gives the numbers. A reshaped or cut tensor is a plain LazyTensor.
    """

    __slots__ = ()

    @classmethod
    def make(cls, kind: BlockType, shape: tuple[int, ...], source: ByteSource, start: int, name: str) -> BlockTensor:
        """The tensor of a shape, whose blocks lie in a source from `start` on; elements may lack at the end."""
        count = -(-math.prod(shape) // kind.elements)
        decoded = BlockSource(kind, source, start, count, name)
        return cls(kind.dtype, shape, Storage(decoded, 0, math.prod(shape) * kind.dtype.itemsize))

    def replace(self, **changes: Any) -> Any:
        """As `LazyTensor.replace`; a plain LazyTensor if other elements, or another shape, come of it."""
        if changes.keys() <= _KEPT:
            return super().replace(**changes)
        return LazyTensor(*(getattr(self, slot) for slot in _ORDER)).replace(**changes)

    def dequantized(self) -> LazyTensor:
        """The same numbers, as a plain tensor."""
        return self.replace(dtype=self.dtype)  # type: ignore[no-any-return]

    @property
    def quantization(self) -> str:
        """The name of its blocks, `"Q4_K"`."""
        return str(self._source.kind.name)

    @property
    def group(self) -> int:
        """How many elements a block has."""
        return int(self._source.kind.elements)

    @property
    def blocks(self) -> LazyTensor:
        """Its stored bytes: uint8, with the bytes of a row as the last dimension if rows are whole blocks."""
        kind = self._source.kind
        if self.shape and self.shape[-1] % kind.elements == 0:
            shape: tuple[int, ...] = (*self.shape[:-1], self.shape[-1] // kind.elements * kind.nbytes)
        else:
            shape = (-(-self.numel() // kind.elements) * kind.nbytes,)
        return LazyTensor(
            _BYTE, shape, Storage(self._source.blocks, self._source.start, math.prod(shape), key=self._source)
        )

    @property
    def _source(self) -> Any:
        return self.storage.source

    def __repr__(self) -> str:
        shape, size = tuple(self.shape), human_bytes(self.blocks.nbytes)
        return f"LazyTensor({self.dtype}, {shape}, {size} as {self.quantization}, {self._source.name!r})"


def find_blocks(tensor: object) -> BlockTensor | None:
    """The tensor itself if it is stored as blocks, and whole."""
    return tensor if isinstance(tensor, BlockTensor) else None


def as_stored(tensor: LazyTensor) -> LazyTensor:
    """The blocks of a tensor that is stored as such, any other itself."""
    blocks = find_blocks(tensor)
    return tensor if blocks is None else blocks.blocks
