"""Tensors whose bytes are coded: reading one decodes the blocks that it needs, see coding.py."""

from __future__ import annotations

import weakref
from threading import local

from statedict.errors import CorruptFileError
from statedict.io.pipeline import BLOCK, read_block
from statedict.io.source import ByteSource, find_base
from statedict.tensor import coding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.dtypes import DType
    from statedict.tensor.lazy import LazyTensor

_THREAD = local()
_CODED, _BASE = 2, 3  # which blocks of its thread they are read into: 0 and 1 are taken by what is made of this


class CodedSource(ByteSource):
    """The decoded bytes of a tensor; `coded` is the tensor of its coded ones, `base` what differences are added to."""

    __slots__ = ("__weakref__", "_signed", "_table", "_unit", "base", "coded", "name", "remote", "size")

    remote: bool

    def __init__(self, coded: LazyTensor, kind: DType, size: int, base: LazyTensor | None, name: str) -> None:
        self.coded, self.size, self.name = coded, size, name
        self.base = None if base is None else base.contiguous()
        self._unit, self._signed = coding.unit_of(kind)
        self._table: Any = None  # an array: a damaged file may describe millions of blocks
        below = [tensor.storage.source for tensor in (coded, self.base) if tensor is not None]
        self.remote = any(source.remote for source in below)
        if coded.nbytes < coding.table_size(size, self._unit):
            raise CorruptFileError(f"{name}: {coded.nbytes:,} bytes are too few for it; the file is damaged")

    @property
    def place(self) -> tuple[object, int] | None:
        """What another source of the same coded bytes has too."""
        below, ahead = find_base(self.coded.storage.source)
        file = getattr(below, "identity", None) or getattr(below, "place", None)
        return None if file is None else (file, ahead + self.coded.storage.offset)

    def size_alone(self, offset: int, size: int) -> int | None:
        """The coded bytes of a range, if that is a block which is no difference."""
        index, within = divmod(offset, BLOCK)
        if within or size != min(BLOCK, self.size - offset):
            return None
        _, coder, *sizes = self._read_table()[index].tolist()
        return sum(sizes) if coder == coding.PLANES else None

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            index, within = divmod(offset + done, BLOCK)
            size = min(BLOCK, self.size - index * BLOCK)
            count = min(size - within, len(buffer) - done)
            part = buffer[done : done + count]
            if count == size:
                self._decode(index, part)
            else:
                part[:] = self._get_block(index, size)[within : within + count]
            done += count

    def _get_block(self, index: int, size: int) -> memoryview:
        """A block, which its thread keeps until it needs another."""
        last: tuple[Any, int, memoryview] | None = getattr(_THREAD, "last", None)
        if last is not None and last[0]() is self and last[1] == index:
            return last[2]
        block = memoryview(bytearray(size))
        self._decode(index, block)
        _THREAD.last = weakref.ref(self), index, block
        return block

    def _decode(self, index: int, out: memoryview) -> None:
        begin, coder, *sizes = self._read_table()[index].tolist()
        before = None
        if coder != coding.PLANES and self.base is not None:
            before = _read_block(self.base, index * BLOCK, len(out), _BASE)
        data = _read_block(self.coded, begin, sum(sizes), _CODED)
        planes: list[memoryview] = []
        for size in sizes:
            planes.append(data[:size])
            data = data[size:]
        try:
            coding.decode(coder, planes, before, self._signed, out)
        except ValueError as error:
            what = f"block {index:,} of its coded bytes cannot be decoded ({error}); the file is damaged"
            raise CorruptFileError(f"{self.name}: {what}") from None

    def _read_table(self) -> Any:
        if self._table is None:
            size = coding.table_size(self.size, self._unit)
            blocks = self.coded.nbytes - size
            self._table = coding.read_table(self._read_coded(blocks, size), self._unit, blocks, self.name)
        return self._table

    def _read_coded(self, offset: int, size: int) -> bytes | bytearray:
        storage = self.coded.storage
        return storage.source.read(storage.offset + self.coded.offset + offset, size)


def _read_block(tensor: LazyTensor, offset: int, size: int, side: int) -> memoryview:
    return read_block(tensor.storage.source, tensor.storage.offset + tensor.offset + offset, size, offset > 0, side)
