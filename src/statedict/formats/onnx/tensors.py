"""The tensors of an ONNX model.

    TensorProto          dims 1, data_type 2, segment 3, float_data 4, int32_data 5, string_data 6, int64_data 7,
                         name 8, raw_data 9, double_data 10, uint64_data 11, external_data 13, data_location 14
    SparseTensorProto    values 1, indices 2, dims 3

The elements are in raw_data, row-major and little-endian, or in the numbered field of their type, or in another file of
the model's folder: external_data is pairs of texts, `location`, `offset` and `length`, and the offset need not be
aligned. int32_data also has the bits of floats of 16 and 8 bits, of packed ones a byte in each number, and of those of
6 bits, which raw_data packs, one in each. Numbers of fewer than 8 bits are decoded when they are read, see
tensor/packed.py.

A file that external_data names lies in the model's folder, links included.
"""

from __future__ import annotations

from math import prod
from typing import Any

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, UnsupportedError
from statedict.formats import places
from statedict.io.protobuf import FIXED32, FIXED64, LENGTH, VARINT, Field, Reader, Varints, join
from statedict.io.source import BytesSource, Joined
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.blocks import BlockTensor
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.packed import PACKED, unpacked
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource

_FLOAT, _INT32, _INT64, _DOUBLE, _UINT64 = 4, 5, 7, 10, 11
_NAMES = {4: "float_data", 5: "int32_data", 7: "int64_data", 9: "raw_data", 10: "double_data", 11: "uint64_data"}
_WIDE = {_FLOAT: FIXED32, _DOUBLE: FIXED64}  # the kind of an element that is not packed; varints otherwise
# data_type → our dtype or kind of packed numbers, and the field of its elements
_TYPES = {
    1: ("float32", _FLOAT), 2: ("uint8", _INT32), 3: ("int8", _INT32), 4: ("uint16", _INT32), 5: ("int16", _INT32),
    6: ("int32", _INT32), 7: ("int64", _INT64), 9: ("bool", _INT32), 10: ("float16", _INT32), 11: ("float64", _DOUBLE),
    12: ("uint32", _UINT64), 13: ("uint64", _UINT64), 14: ("complex64", _FLOAT), 15: ("complex128", _DOUBLE),
    16: ("bfloat16", _INT32), 17: ("float8_e4m3fn", _INT32), 18: ("float8_e4m3fnuz", _INT32),
    19: ("float8_e5m2", _INT32), 20: ("float8_e5m2fnuz", _INT32), 21: ("uint4", _INT32), 22: ("int4", _INT32),
    23: ("float4_e2m1fn", _INT32), 24: ("float8_e8m0fnu", _INT32), 25: ("uint2", _INT32), 26: ("int2", _INT32),
    27: ("float6_e2m3fn", _INT32), 28: ("float6_e3m2fn", _INT32),
}  # fmt: skip
_STRING = 8
_PART = 120  # bytes of memory that a range takes
_TEXT = 80  # and a text besides its bytes


class _Proto:
    """What a TensorProto says."""

    __slots__ = ("code", "elements", "external", "located", "name", "raw", "shape", "texts")

    def __init__(self) -> None:
        self.name, self.code, self.shape, self.located = "", 0, list[int](), 0
        self.elements, self.external = dict[int, list[tuple[int, int]]](), dict[str, str]()
        self.raw: Field | None = None
        self.texts = list[Any]()


class Tensors:
    """Makes the tensors of a model's file; `files` are the others that they lie in."""

    def __init__(self, file: Reader) -> None:
        self.file = file
        self.files: dict[str, ByteSource] = {}

    def read(self, field: Field) -> tuple[str, Any]:
        """The name of a TensorProto, and the tensor, or its texts."""
        proto = self._parse(self.file.check(field, LENGTH, "a tensor"))
        where = f"{self.file.name}: tensor {proto.name!r:.80}"
        return proto.name, self._texts(proto, where) if proto.code == _STRING else self._tensor(proto, where)

    def read_sparse(self, field: Field) -> tuple[str, StateDict]:
        """The name of a SparseTensorProto, and its parts."""
        self.file.check(field, LENGTH, "a sparse tensor")
        name, parts, size = "", dict[str, Any](), list[int]()
        for one in self.file.fields(field.begin, field.end):
            if one.number in (1, 2):
                key = ("values", "indices")[one.number - 1]
                self.file.once(parts.get(key), f"{key} of a sparse tensor")
                told, parts[key] = self.read(one)
                name = told if key == "values" else name
            elif one.number == 3:
                size += self.file.integers(one, "dims of a sparse tensor")
        if parts.keys() != {"values", "indices"}:
            raise self.file.damage(f"the sparse tensor {name!r:.80} has no values or no indices")
        return name, StateDict(indices=parts["indices"], values=parts["values"], size=size)

    def _parse(self, field: Field) -> _Proto:
        proto, file = _Proto(), self.file
        for one in file.fields(field.begin, field.end):
            number = one.number
            if number == 1:
                proto.shape += file.integers(one, "dims of a tensor")
            elif number == 2:
                proto.code = file.check(one, VARINT, "data_type").value
            elif number == 8:
                proto.name = file.text(one, "the name of a tensor")
            elif number == 9:
                file.once(proto.raw, "raw_data")
                proto.raw = file.check(one, LENGTH, "raw_data")
            elif number in _NAMES:
                if one.kind not in (LENGTH, _WIDE.get(number, VARINT)):
                    raise file.damage(f"{_NAMES[number]} at byte {one.begin:,} is of the kind {one.kind}")
                file.spend(_PART)
                proto.elements.setdefault(number, []).append((one.begin, one.end))
            elif number == 6:
                data = file.data(one, "a text of a tensor")
                file.spend(_TEXT + len(data))
                proto.texts.append(_decode(data))
            elif number == 13:
                self._pair(file.check(one, LENGTH, "external_data"), proto.external)
            elif number == 14:
                proto.located = file.check(one, VARINT, "data_location").value
            elif number == 3:
                raise UnsupportedError(f"{file.name}: has a tensor in segments, which onnx does not read either")
        return proto

    def _pair(self, field: Field, pairs: dict[str, str]) -> None:
        key = value = ""
        for one in self.file.fields(field.begin, field.end):
            if one.number == 1:
                key = self.file.text(one, "a key of external_data")
            elif one.number == 2:
                value = self.file.text(one, f"{key!r:.40} of external_data")
        self.file.once(pairs.get(key), f"{key!r:.40} of external_data")
        pairs[key] = value

    def _texts(self, proto: _Proto, where: str) -> Any:
        shape = self._check_shape(proto, 1, where)
        if prod(shape) != len(proto.texts) or proto.located:
            raise CorruptFileError(f"{where} has {len(proto.texts):,} texts, its shape {shape}; the file is damaged")
        texts: Any = proto.texts
        for size in reversed(shape[1:]):
            if size:
                texts = [texts[at : at + size] for at in range(0, len(texts), size)]
        return texts if shape else texts[0]

    def _check_shape(self, proto: _Proto, itemsize: int, where: str) -> tuple[int, ...]:
        shape = tuple(proto.shape)
        fault = "a negative size" if min(shape, default=0) < 0 else find_shape_fault(shape, itemsize)
        if fault:
            raise CorruptFileError(f"{where} has the shape {list(shape)!s:.80}: {fault}; the file is damaged")
        return shape

    def _tensor(self, proto: _Proto, where: str) -> LazyTensor:
        if proto.code not in _TYPES:
            raise UnsupportedError(f"{where} has the data_type {proto.code:,}, which onnx 1.23 does not have")
        name, number = _TYPES[proto.code]
        kind = PACKED.get(name)
        dtype = BY_NAME[name] if kind is None else kind.dtype
        shape = self._check_shape(proto, max(dtype.itemsize, 4), where)
        numel = prod(shape)
        nbytes = numel * dtype.itemsize if kind is None else -(-numel * _bits(kind) // 8)
        if proto.located:
            source, start = self._open(proto, nbytes, where)
        elif proto.raw is not None:
            source, start = self.file.source, proto.raw.begin
            self._check_size(proto.raw.end - start, nbytes, where)
        else:
            unpack = kind is not None and kind.elements == 4 and kind.nbytes == 3
            kind = unpacked(kind) if unpack and kind is not None else kind
            count, width = (numel, 1) if unpack else (numel, dtype.itemsize) if kind is None else (nbytes, 1)
            source, start = self._typed(proto, number, count, width, dtype.kind == "complex", where), 0
        if kind is not None:
            whole = -(-numel // kind.elements) * kind.nbytes
            if lack := whole - nbytes if proto.located or proto.raw else 0:  # of the last block of 6-bit numbers
                source, start = Joined([(source, start, nbytes), (BytesSource(bytes(lack)), 0, lack)], where), 0
            return BlockTensor.make(kind, shape, source, start, where)
        return LazyTensor(dtype, shape, Storage(source, start, nbytes))

    def _check_size(self, got: int, expected: int, where: str) -> None:
        if got != expected:
            raise CorruptFileError(
                f"{where} has {got:,} bytes, its shape and type take {expected:,}; the file is damaged, fetch it again"
            )

    def _typed(self, proto: _Proto, number: int, count: int, width: int, pairs: bool, where: str) -> ByteSource:
        """The elements in the field for their type."""
        parts = proto.elements.get(number, [])
        got = sum(end - begin for begin, end in parts)
        data = join(self.file.source, parts)
        if number in _WIDE:
            self._check_size(got, count * width, where)
            return data
        if not count <= got <= 10 * count:
            raise CorruptFileError(
                f"{where} has {got:,} bytes of {_NAMES[number]}, which are not its {count:,} numbers; "
                "the file is damaged, fetch it again"
            )
        return Varints(data, count, width, where)

    def _open(self, proto: _Proto, nbytes: int, where: str) -> tuple[ByteSource, int]:
        """The file that a tensor lies in, and where it begins there."""
        location = proto.external.get("location")
        numbers = [proto.external.get(key) for key in ("offset", "length")]
        if not location or any(text and not (text.isascii() and text.isdigit() and len(text) < 20) for text in numbers):
            raise CorruptFileError(f"{where} lies at {proto.external!s:.120}, which is no place; the file is damaged")
        start = int(numbers[0] or 0)
        if location not in self.files:
            folder = places.get_folder(self.file.source)
            self.files[location] = places.open_file(places.resolve_inside(folder, location))
        source = self.files[location]
        self._check_size(int(numbers[1]) if numbers[1] else nbytes, nbytes, where)
        if start + nbytes > source.size:
            raise CorruptFileError(
                f"{where}: bytes {start:,} to {start + nbytes:,} lie outside {source.name} ({source.size:,} bytes); "
                "fetch that again"
            )
        return source, start


def _bits(kind: Any) -> int:
    return 8 * kind.nbytes // kind.elements  # type: ignore[no-any-return]


def _decode(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
