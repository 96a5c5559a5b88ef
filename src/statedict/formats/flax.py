"""Flax's msgpack: a nested dict of arrays, as `flax.serialization.to_bytes` and `msgpack_serialize` write it.

    msgpack, with maps from text to what is below, and three types of its own:

    1  an array    msgpack of (shape, name of the dtype, bytes row-major)
    2  a complex number    msgpack of (real, imaginary)
    3  a scalar of NumPy    as an array of shape ()

An array of over 2³⁰ bytes is a map of pieces: `__msgpack_chunked_array__`: true, `shape`, and `chunks`, flat arrays,
the last two as maps from "0", "1" … Nothing says the byte order; it is little-endian wherever JAX runs.

The tree has dicts, and an array as a tensor. A scalar of NumPy is a tensor without dimensions. Lists and tuples become
maps from "0", "1" …, as in Flax's own state dicts.

Source: flax 0.12.8, flax/serialization.py; the msgpack specification. Limits: 200 levels.
"""

from __future__ import annotations

import struct
from math import prod

from statedict.dtypes import BY_NAME, labelled_dtype
from statedict.errors import CorruptFileError, LimitError, TruncatedError, UnsupportedError
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource, Joined
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import MAX_DEPTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 1 << 30  # bytes of the largest piece
_WINDOW = 64 << 10
_RESERVE, _FACTOR, _ENTRY = 48 << 20, 17, 150  # bytes of memory that a file may ask for, a byte of it and an entry

# first byte → kind, bytes of the number that follows: a length, or the value's code for `struct`
_LENGTHS = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("array", 2), 0xDD: ("array", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read(source: ByteSource) -> Any:
    """Read the tree lazily: everything but the bytes of arrays is read."""
    reader = _Reader(source, 0, source.size)
    tree = reader.value(0)
    if reader.at != source.size:
        raise CorruptFileError(f"{source.name}: {source.size - reader.at:,} bytes follow the tree; the file is damaged")
    return tree if isinstance(tree, StateDict) else StateDict({"": tree})


def checks(source: ByteSource) -> Iterator[Found]:
    """List the arrays; the file has no sums."""
    yield from by_storage(read(source))


class _Reader:
    """Reads values of msgpack from a range of a source, of which it holds a window."""

    def __init__(self, source: ByteSource, at: int, end: int) -> None:
        self.source, self.at, self.end = source, at, end
        self._window, self._first = b"", 0
        self.left = _RESERVE + _FACTOR * source.size

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if self.at + count > self.end:
            raise TruncatedError(
                f"{self.source.name}: ends within a value at byte {self.at:,}; the file looks truncated, fetch it again"
            )
        begin = self.at - self._first
        if begin < 0 or begin + count > len(self._window):
            size = min(max(count, _WINDOW), self.end - self.at)
            self._window, self._first, begin = bytes(self.source.read(self.at, size)), self.at, 0
        self.at += count
        return self._window[begin : begin + count]

    def value(self, depth: int) -> Any:
        """The next value."""
        self.left -= _ENTRY
        if depth > MAX_DEPTH or self.left < 0:
            what = f"nested over {MAX_DEPTH} deep" if depth > MAX_DEPTH else "too many entries for its size"
            raise LimitError(f"{self.source.name}: {what}; the file is damaged or forged")
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _PLAIN:
            return _PLAIN[code]
        if code in _NUMBERS:
            form = _NUMBERS[code]
            return struct.unpack(form, self.take(struct.calcsize(form)))[0]
        kind, length = self._length(code)
        if kind == "ext":
            return self._extension(self.take(1)[0], length)
        if kind in ("str", "bin"):
            data = self.take(length)
            return data if kind == "bin" else self._decode(data)
        if kind == "array":
            return [self.value(depth + 1) for _ in range(length)]
        return self._map(length, depth)

    def _length(self, code: int) -> tuple[str, int]:
        if code in _LENGTHS:
            kind, width = _LENGTHS[code]
            return kind, int.from_bytes(self.take(width), "big")
        if code in _FIXED:
            return "ext", _FIXED[code]
        if code == 0xC1:
            raise CorruptFileError(f"{self.source.name}: byte {self.at - 1:,} is no msgpack; the file is damaged")
        if code >= 0xA0:
            return "str", code & 0x1F
        return ("array" if code >= 0x90 else "map"), code & 0x0F

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            where = f"{self.source.name}: the text before byte {self.at:,}"
            raise CorruptFileError(f"{where} is not UTF-8; the file is damaged") from error

    def _map(self, length: int, depth: int) -> Any:
        tree = StateDict()
        for _ in range(length):
            key = self.value(depth + 1)
            if type(key) not in (str, int, bytes) or key in tree:
                twice = " stands twice" if type(key) in (str, int, bytes) else " is not a key"
                raise CorruptFileError(f"{self.source.name}: {key!r:.80}{twice}; the file is damaged")
            tree[key] = self.value(depth + 1)
        return self._join(tree) if _CHUNKED in tree else tree

    def _extension(self, code: int, length: int) -> Any:
        begin, end = self.at, self.at + length
        if end > self.end:
            self.take(length)
        inner = _Reader(self.source, begin, end)
        inner._window, inner._first, inner.left = self._window, self._first, self.left
        self.at = end
        if code == _COMPLEX:
            parts = inner.value(0)
            if type(parts) is not list or [*map(type, parts)] != [float, float] or inner.at != end:
                raise CorruptFileError(f"{self.source.name}: the complex number at byte {begin:,} is damaged")
            return complex(*parts)
        if code not in (_ARRAY, _SCALAR):
            raise CorruptFileError(f"{self.source.name}: a value of type {code} at byte {begin:,}, which Flax lacks")
        return inner.array(begin)

    def array(self, begin: int) -> LazyTensor:
        """The array that this range holds."""
        where = f"{self.source.name}: the array at byte {begin:,}"
        if self.take(1) != b"\x93":
            raise CorruptFileError(f"{where} is not (shape, dtype, bytes); the file is damaged")
        shape, name = self.value(0), self.value(0)
        name = name.decode("latin-1") if type(name) is bytes else name
        kind, length = self._length(self.take(1)[0])
        if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape) or type(name) is not str:
            raise CorruptFileError(f"{where} has the shape {shape!r:.80} and dtype {name!r:.40}; the file is damaged")
        if kind not in ("bin", "str") or self.at + length != self.end:
            raise CorruptFileError(f"{where} has {self.end - self.at:,} bytes, and says {length:,}; it is damaged")
        numel = prod(shape)
        known = BY_NAME.get(name)
        if known is None or not known.itemsize:
            if not name.isprintable() or not 0 < len(name) < 40 or (numel and length % numel) or not length:
                raise CorruptFileError(f"{where} has the dtype {name!r:.60} and {length:,} bytes; it is damaged")
            known = labelled_dtype(name, 8 * length // numel)
        if fault := find_shape_fault(tuple(shape), known.itemsize):
            raise CorruptFileError(f"{where} has {fault}; the file is damaged")
        if numel * known.itemsize != length:
            shown = f"of shape {tuple(shape)} and dtype {name} has {length:,} bytes"
            raise CorruptFileError(f"{where} {shown}; the file is damaged")
        return LazyTensor(known, tuple(shape), Storage(self.source, self.at, length))

    def _join(self, tree: StateDict) -> LazyTensor:
        """The array of which a map has the pieces."""
        shape, chunks = (_in_order(tree.get(key)) for key in ("shape", "chunks"))
        kinds = {getattr(chunk, "dtype", None) for chunk in chunks or ()}
        good = shape is not None and chunks and len(kinds) == 1 and None not in kinds
        if not good or any(type(n) is not int or n < 0 for n in shape or ()):
            raise CorruptFileError(f"{self.source.name}: the pieces of an array before byte {self.at:,} are damaged")
        assert shape is not None
        assert chunks
        kind: DType = chunks[0].dtype
        joined = Joined([(one.storage.source, one.storage.offset, one.nbytes) for one in chunks], self.source.name)
        if prod(shape) * kind.itemsize != joined.size or find_shape_fault(tuple(shape), kind.itemsize):
            raise CorruptFileError(f"{self.source.name}: the pieces before byte {self.at:,} do not make {shape}")
        return LazyTensor(kind, tuple(shape), Storage(joined, 0, joined.size))


def _in_order(tree: Any) -> list[Any] | None:
    """The values of a map from "0", "1" …; None if it is not one."""
    if not isinstance(tree, dict) or [*tree] != [str(index) for index in range(len(tree))]:
        return None
    return [*tree.values()]


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors and plain values."""
    writer = _Writer()
    writer.add(tree, "")
    if writer.head:
        writer.put(BytesSource(bytes(writer.head)), 0, 0)
    sink.reserve(writer.at)
    sink.put(writer.parts)


class _Writer:
    """The parts of a file; `head` are the bytes before the next array."""

    def __init__(self) -> None:
        self.head, self.at, self.parts = bytearray(), 0, list[Part]()

    def put(self, source: ByteSource, start: int, size: int) -> None:
        """Add what comes after the head: a range of a source."""
        at = self.at + len(self.head)
        self.parts.append(Part(at, source, start, size, bytes(self.head)))
        self.head, self.at = bytearray(), at + size

    def add(self, value: Any, path: str) -> None:
        """Add a value."""
        if isinstance(value, LazyTensor):
            self._add_tensor(value.contiguous(), path)
        elif isinstance(value, dict) or type(value) in (list, tuple):
            items = value if isinstance(value, dict) else dict(zip(map(str, range(len(value))), value, strict=True))
            self.head += _size(len(items), 0x80, 15, {2: 0xDE, 4: 0xDF})
            for key, below in items.items():
                if type(key) is not str:
                    wanted = "Flax's keys are texts; rename it, or write another format"
                    raise UnsupportedError(
                        f"{path or 'the root'}: the key {key!r:.60} is a {type(key).__name__}; {wanted}"
                    )
                self.add(key, path)
                self.add(below, f"{path}.{key}" if path else key)
        else:
            self.head += _encode(value, path)

    def _add_tensor(self, tensor: LazyTensor, path: str) -> None:
        size = tensor.dtype.itemsize
        if not size or (tensor.dtype.kind == "complex" and size < 8) or tensor.dtype.numpy.name != tensor.dtype.name:
            raise UnsupportedError(f"{path}: Flax has no dtype {tensor.dtype}; convert it, or write another format")
        if tensor.nbytes <= _CHUNK:
            self._add_array(tensor, tensor.shape)
            return
        flat, step = tensor.replace(shape=(tensor.numel(),)), _CHUNK // size
        pieces = [flat[at : at + step] for at in range(0, tensor.numel(), step)]
        self.head += b"\x83" + _encode(_CHUNKED, path) + b"\xc3" + _encode("shape", path)
        self.add(list(tensor.shape), path)
        self.add("chunks", path)
        self.head += _size(len(pieces), 0x80, 15, {2: 0xDE, 4: 0xDF})
        for index, piece in enumerate(pieces):
            self.add(str(index), path)
            self._add_array(piece, piece.shape)

    def _add_array(self, tensor: LazyTensor, shape: tuple[int, ...]) -> None:
        inner = b"\x93" + _size(len(shape), 0x90, 15, {2: 0xDC}) + b"".join(_encode(n, "") for n in shape)
        inner += _encode(tensor.dtype.numpy.name, "") + _size(tensor.nbytes, None, -1, {1: 0xC4, 2: 0xC5, 4: 0xC6})
        length = len(inner) + tensor.nbytes
        fixed = {size: code for code, size in _FIXED.items()}.get(length)
        outer = bytes([fixed]) if fixed else _size(length, None, -1, {1: 0xC7, 2: 0xC8, 4: 0xC9})
        self.head += outer + bytes([_ARRAY]) + inner
        self.put(tensor.storage.source, tensor.storage.offset + tensor.offset, tensor.nbytes)


def _size(count: int, short: int | None, most: int, codes: dict[int, int]) -> bytes:
    """The beginning of what has so many entries or bytes: in one byte up to `most`, or a code and a number."""
    if short is not None and count <= most:
        return bytes([short | count])
    width = next(width for width in codes if count < 1 << 8 * width)
    return bytes([codes[width]]) + count.to_bytes(width, "big")


def _encode(value: Any, path: str) -> bytes:
    """A plain value, in as few bytes as msgpack takes for it."""
    if value is None or type(value) is bool:
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if type(value) is float:
        return struct.pack(">Bd", 0xCB, value)
    if type(value) is str:
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedError(f"{path}: {value!r:.60} is not Unicode, which msgpack needs; rename it") from error
        return _size(len(data), 0xA0, 31, {1: 0xD9, 2: 0xDA, 4: 0xDB}) + data
    if type(value) in (bytes, bytearray):
        return _size(len(value), None, -1, {1: 0xC4, 2: 0xC5, 4: 0xC6}) + bytes(value)
    if type(value) is complex:
        return b"\xc7\x13\x02\x92" + struct.pack(">BdBd", 0xCB, value.real, 0xCB, value.imag)
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        if -32 <= value < 128:
            return struct.pack(">b", value)
        codes = (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3)
        for code in codes:
            try:
                return bytes([code]) + struct.pack(_NUMBERS[code], value)
            except struct.error:
                continue
    raise UnsupportedError(f"{path}: Flax's msgpack holds no {type(value).__name__} such as {value!r:.60}; drop it")
