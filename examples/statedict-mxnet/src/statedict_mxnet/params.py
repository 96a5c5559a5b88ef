"""Apache MXNet's `.params`: a list of arrays and their names, as `mx.nd.save` and Gluon write it.

    uint64 0x112, uint64 0, uint64 arrays
    for each array: uint32 0xF993FAC9 (or 0xF993FACA: of numpy's shapes, where no dimensions are a scalar)
                    int32 storage: 0 dense
                    int32 dimensions, int64 of each
                    int32 device type, int32 device
                    int32 dtype, then the elements in C order, little-endian
    uint64 names, for each: uint64 bytes, UTF-8

Limits: dense arrays of these two versions. A list without names gets "0", "1", ….
Source: MXNet 1.9.1, `src/ndarray/ndarray.cc`, `NDArray::Save`.
"""

from __future__ import annotations

import struct
from typing import Any

from statedict.plugins import (
    ByteSource,
    CorruptFileError,
    LazyTensor,
    Sink,
    StateDict,
    TruncatedError,
    UnsupportedError,
    lazy_tensor,
    put_parts,
)

SUFFIXES = (".params",)
_MAGIC = struct.pack("<QQ", 0x112, 0)
_LEGACY_SHAPES, _NUMPY_SHAPES = 0xF993FAC9, 0xF993FACA
_KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")


def is_format(head: bytes) -> bool:
    """Whether a file begins so."""
    return head[:16] == _MAGIC


class _Cursor:
    """Reads numbers, one after the other."""

    def __init__(self, source: ByteSource, at: int) -> None:
        self.source, self.at = source, at

    def take(self, size: int) -> bytes:
        if size > self.source.size - self.at:
            raise TruncatedError(f"{self.source.name}: ends at byte {self.source.size:,}; fetch it again")
        self.at += size
        return bytes(self.source.read(self.at - size, size))

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))


def read(source: ByteSource) -> StateDict:
    """The arrays by name."""
    cursor = _Cursor(source, len(_MAGIC))
    (count,) = cursor.numbers("Q")
    arrays = []
    while len(arrays) < count:  # each takes bytes, so the file ends before a false count does
        arrays.append(_read_array(cursor, f"{source.name}: array {len(arrays):,}"))
    (named,) = cursor.numbers("Q")
    if named not in (0, count):
        raise CorruptFileError(f"{source.name}: has {count:,} arrays and {named:,} names; the file is damaged")
    names = [str(index) for index in range(count)] if not named else [_read_name(cursor) for _ in range(count)]
    if cursor.at != source.size:
        raise CorruptFileError(f"{source.name}: {source.size - cursor.at:,} bytes follow its end; it is damaged")
    if len({*names}) < count:
        raise CorruptFileError(f"{source.name}: two of its arrays have one name; the file is damaged")
    return StateDict(zip(names, arrays, strict=True))


def _read_array(cursor: _Cursor, where: str) -> LazyTensor:
    version, storage, dimensions = cursor.numbers("Iii")
    if version not in (_LEGACY_SHAPES, _NUMPY_SHAPES) or storage:
        raise UnsupportedError(f"{where} is sparse, or of an older MXNet; save it again as dense by MXNet 1.5 or later")
    if not (0 <= dimensions <= 32) or (dimensions == 0 and version == _LEGACY_SHAPES):
        raise CorruptFileError(f"{where} has {dimensions} dimensions; the file is damaged")
    shape = cursor.numbers(f"{dimensions}q")
    _, _, kind = cursor.numbers("iii")
    if not 0 <= kind < len(_KINDS):
        raise UnsupportedError(f"{where} has the dtype {kind}, which is not known")
    tensor = lazy_tensor(cursor.source, cursor.at, _KINDS[kind], shape)
    cursor.at += tensor.nbytes
    return tensor


def _read_name(cursor: _Cursor) -> str:
    (size,) = cursor.numbers("Q")
    try:
        return cursor.take(size).decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{cursor.source.name}: a name is not UTF-8; the file is damaged") from error


def write(tree: Any, sink: Sink) -> None:
    """Write a flat dict of tensors."""
    parts: list[bytes | LazyTensor] = [_MAGIC, struct.pack("<Q", len(tree))]
    for name, tensor in tree.items():
        if type(name) is not str or not isinstance(tensor, LazyTensor):
            what = "is not a tensor" if type(name) is str else "is not a name"
            raise UnsupportedError(f"{name}: {what}; .params holds a flat dict of tensors, select those")
        if tensor.dtype.name not in _KINDS:
            raise UnsupportedError(f"{name}: MXNet has no dtype {tensor.dtype}; cast it, or write another format")
        form = f"<Iii{len(tensor.shape)}qiii"
        kind = _KINDS.index(tensor.dtype.name)
        version = _LEGACY_SHAPES if tensor.shape and all(tensor.shape) else _NUMPY_SHAPES  # which MXNet asks for
        parts += [struct.pack(form, version, 0, len(tensor.shape), *tensor.shape, 1, 0, kind), tensor]
    parts.append(struct.pack("<Q", len(tree)))
    for name in tree:
        data = name.encode()
        parts.append(struct.pack("<Q", len(data)) + data)
    put_parts(sink, parts)
