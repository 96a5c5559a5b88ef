"""Checkpoints of TensorFlow, and the variables of a SavedModel.

    NAME.index                      a table (table.py): "" → BundleHeaderProto, a name → BundleEntryProto
    NAME.data-00000-of-00002 …      the elements, row-major
    BundleHeaderProto               num_shards 1, endianness 2 (1: big-endian)
    BundleEntryProto                dtype 1, shape 2, shard_id 3, offset 4, size 5, crc32c 6 (masked), slices 7
    texts                           a varint for each, its length; 4 bytes; then the texts; crc32c is of other bytes

The value of a variable that is saved in slices names them; each is an entry of its own, whose key is made of the name
and the slice (`_key_of_slice`), and the tensor is assembled when it is read.

A checkpoint of objects, one with an entry `_CHECKPOINTABLE_OBJECT_GRAPH`, has keys like
`model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE`, where `.S` stands for `/` in a name and `..` for `.`. It becomes nested
dicts; slots of an optimizer, `VARIABLE/.OPTIMIZER_SLOT/OPTIMIZER/SLOT/…`, stand below OPTIMIZER, `slots`, SLOT under
the path of the variable. Any other checkpoint is a flat dict. Texts are lists; what else TensorFlow keeps is inert.

A folder with saved_model.pb opens by its variables/; constants in its graph are not read.

Source: tensor_bundle.proto and tensor_bundle.cc of TensorFlow 2.21. Limits: no checkpoints of before 2016
(V1), whose tensors are in the table.
"""

from __future__ import annotations

import os
import re
from math import prod
from typing import Any

from statedict.dtypes import BY_NAME, DType, labelled_dtype
from statedict.errors import CorruptFileError, UnknownFormatError, UnsupportedError
from statedict.formats import places
from statedict.formats.tensorflow.table import Table, unmask
from statedict.io.protobuf import FIXED32, LENGTH, VARINT, Reader
from statedict.io.source import BytesSource, swap_bytes
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.assembled import assemble, covers
from statedict.tensor.checks import Check
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.boxes import Box
    from statedict.tensor.checks import Found

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE, _ATTRIBUTES, _SLOT = "VARIABLE_VALUE", ".ATTRIBUTES", ".OPTIMIZER_SLOT"
_MODEL = re.compile(rb"\x08\x01\x12")  # saved_model.pb
_STRING = 7
_MAX_TEXT = 16 << 20
_MAX_SHARDS = 100_000
_TYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    11: "int8", 12: "uint8", 13: "int32", 14: "bfloat16", 15: "int16", 16: "uint16", 17: "uint16", 18: "complex128",
    19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz",
    28: "float8_e5m2fnuz",
}  # fmt: skip
_LABELS = {27: "float8_e4m3b11fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2"}  # a byte each


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: the index is read, and of the data texts."""
    return _Bundle(source).tree()


def list_files(source: ByteSource) -> list[str]:
    """List the files of the data, and for a SavedModel the index."""
    bundle = _Bundle(source)
    names = [os.path.basename(shard.name) for shard in bundle.shards]
    return names if bundle.source is source else [f"variables/{name}" for name in ("variables.index", *names)]


def checks(source: ByteSource) -> Iterator[Found]:
    """List the blocks of the index and the tensors, with their CRC-32C."""
    bundle = _Bundle(source)
    tree = bundle.tree()
    yield from bundle.table.checks()
    paths = {id(tensor): path for path, tensor in tree.tensors().items()}
    for key, entry in bundle.entries.items():
        tensor = bundle.made.get(key)
        if isinstance(tensor, LazyTensor) and not entry.slices:
            owner = bundle.made[bundle.owners.get(key, key)]
            path = paths[id(owner)]
            part = path if owner is tensor else f"{path}, at byte {entry.offset:,}"
            crc, held = unmask(entry.crc), ((path, tensor),)
            yield Check(part, bundle.shards[entry.shard], entry.offset, entry.size, held, crc32c=crc)
    for shard in bundle.shards:
        yield from _find_unused(shard, [e for e in bundle.entries.values() if bundle.shards[e.shard] is shard])


def _find_unused(shard: ByteSource, entries: list[_Entry]) -> Iterator[str]:
    end = max((entry.offset + entry.size for entry in entries), default=0)
    if end < shard.size:
        yield f"{os.path.basename(shard.name)} has {shard.size - end:,} bytes behind the last tensor"


class _Entry:
    """What a BundleEntryProto says."""

    __slots__ = ("code", "crc", "offset", "shape", "shard", "size", "slices")

    def __init__(self, file: Reader, where: str) -> None:
        self.code = self.shard = self.offset = self.size = self.crc = 0
        self.shape: tuple[int, ...] = ()
        self.slices: list[tuple[tuple[int, int], ...]] = []
        names = {1: "code", 3: "shard", 4: "offset", 5: "size"}
        for field in file.fields(0, file.source.size):
            if field.number in names:
                setattr(self, names[field.number], file.check(field, VARINT, where).value)
            elif field.number == 2:
                self.shape = tuple(_sizes(file, file.check(field, LENGTH, where).begin, field.end, where))
            elif field.number == 6:
                file.check(field, FIXED32, where)
                self.crc = int.from_bytes(file.source.read(field.begin, 4), "little")
            elif field.number == 7:
                self.slices.append(tuple(_extents(file, file.check(field, LENGTH, where).begin, field.end, where)))


def _sizes(file: Reader, begin: int, end: int, where: str) -> Iterator[int]:
    """The sizes in a TensorShapeProto: dim 2 (size 1)."""
    for field in file.fields(begin, end):
        if field.number == 2:
            size = 0
            for one in file.fields(file.check(field, LENGTH, where).begin, field.end):
                size = file.integers(one, where)[0] if one.number == 1 and one.kind == VARINT else size
            yield size


def _extents(file: Reader, begin: int, end: int, where: str) -> Iterator[tuple[int, int]]:
    """(start, length) of each dimension of a TensorSliceProto; the length is -1 for all of it."""
    for field in file.fields(begin, end):
        if field.number == 1:
            start, length = 0, -1
            for one in file.fields(file.check(field, LENGTH, where).begin, field.end):
                if one.number == 1:
                    start = file.check(one, VARINT, where).value
                elif one.number == 2:
                    length = file.check(one, VARINT, where).value
            yield start, length


class _Bundle:
    """A checkpoint: its table, the entries by key, and the files of the data."""

    def __init__(self, source: ByteSource) -> None:
        if _MODEL.match(bytes(source.read(0, min(3, source.size)))):
            source = _open_variables(source)
        self.source, self.name = source, source.name
        self.table = Table(source)
        self.entries: dict[bytes, _Entry] = {}
        self.shards: list[ByteSource] = []
        self.made: dict[bytes, Any] = {}
        self.owners: dict[bytes, bytes] = {}  # of slices
        self.big = False
        header = False
        for key, value in self.table.entries():
            file = Reader(BytesSource(value, source.name))
            if not key:
                header = True
                self._read_header(file)
            else:
                self.entries[key] = _Entry(file, f"the entry {key!r:.80}")
        if not header:
            raise CorruptFileError(f"{self.name}: has no header; the file is damaged, fetch it again")

    def _read_header(self, file: Reader) -> None:
        count = 0
        for field in file.fields(0, file.source.size):
            if field.number == 1:
                count = file.check(field, VARINT, "the number of files").value
            elif field.number == 2:
                self.big = file.check(field, VARINT, "the byte order").value == 1
        if not 0 < count <= _MAX_SHARDS:
            raise CorruptFileError(f"{self.name}: has its data in {count:,} files; it is damaged, fetch it again")
        name = getattr(self.source, "url", self.name)
        stem = os.path.basename(name)
        stem = stem.removesuffix(".index") if stem.endswith(".index") else stem
        folder = places.get_folder(self.source)
        files = [f"{stem}.data-{number:05}-of-{count:05}" for number in range(count)]
        for opened in places.open_files(folder, files).values():
            if isinstance(opened, OSError):
                raise opened
            self.shards.append(opened)

    def tree(self) -> StateDict:
        """The tensors, nested where they are a checkpoint of objects."""
        found: dict[str, Any] = {}
        for key, entry in self.entries.items():
            if key[0] == 0 or key == GRAPH.encode():  # a slice
                continue
            try:
                name = key.decode()
            except UnicodeDecodeError as error:
                raise self._damage(f"the name {key!r:.80} is not UTF-8") from error
            found[name] = self.made[key] = self._value(name, entry)
        if GRAPH.encode() not in self.entries:
            return StateDict(found)
        tree = StateDict()
        for name, value in found.items():
            self._put(tree, _split(name), value, name)
        return tree

    def _put(self, tree: StateDict, path: list[str], value: Any, name: str) -> None:
        for part in path[:-1]:
            below = tree.setdefault(part, StateDict())
            if not isinstance(below, StateDict):
                below = tree[part] = StateDict({"": below})  # an object that is a variable and has others
            tree = below
        last = path[-1]
        if isinstance(tree.get(last), StateDict):
            tree, last = tree[last], ""
        if last in tree:
            raise self._damage(f"{name!r:.80} is the path of two variables")
        tree[last] = value

    def _value(self, name: str, entry: _Entry) -> Any:
        where = f"{self.name}: tensor {name!r:.80}"
        kind = BY_NAME.get(_TYPES.get(entry.code, "")) or self._label(entry.code)
        if fault := find_shape_fault(entry.shape, kind.itemsize if kind else 1):
            raise CorruptFileError(f"{where} has the shape {list(entry.shape)!s:.80}: {fault}; the file is damaged")
        if min(entry.shape, default=0) < 0:
            raise CorruptFileError(f"{where} has the shape {list(entry.shape)!s:.80}; the file is damaged")
        if entry.slices:
            if kind is None:
                raise UnsupportedError(f"{where} is saved in slices, and has no numbers ({entry.code})")
            return self._assemble(name, entry, kind, where)
        if not 0 <= entry.shard < len(self.shards):
            raise CorruptFileError(f"{where} lies in file {entry.shard:,} of {len(self.shards):,}; the file is damaged")
        shard = self.shards[entry.shard]
        if entry.offset + entry.size > shard.size:
            raise CorruptFileError(
                f"{where}: bytes {entry.offset:,} to {entry.offset + entry.size:,} lie outside {shard.name} "
                f"({shard.size:,} bytes); it looks truncated, fetch it again"
            )
        if entry.code == _STRING:
            return self._texts(shard, entry, where)
        if kind is None:
            return Opaque(f"a value of TensorFlow's type {entry.code} of {entry.size:,} bytes")
        if entry.size != prod(entry.shape) * kind.itemsize:
            raise CorruptFileError(
                f"{where} has {entry.size:,} bytes, its shape and type take {prod(entry.shape) * kind.itemsize:,}; "
                "the file is damaged, fetch it again"
            )
        if self.big:
            return LazyTensor(
                kind, entry.shape, Storage(swap_bytes(shard, entry.offset, entry.size, kind), 0, entry.size)
            )
        return LazyTensor(kind, entry.shape, Storage(shard, entry.offset, entry.size))

    def _label(self, code: int) -> DType | None:
        return labelled_dtype(_LABELS[code], 8) if code in _LABELS else None

    def _assemble(self, name: str, entry: _Entry, kind: DType, where: str) -> LazyTensor:
        boxes, chunks = list[Any](), list[Any]()
        for extents in entry.slices:
            if len(extents) != len(entry.shape):
                raise CorruptFileError(f"{where} has a slice of {len(extents)} dimensions; the file is damaged")
            box: Box = (
                tuple(start for start, _ in extents),
                tuple(n if length < 0 else length for (_, length), n in zip(extents, entry.shape, strict=True)),
            )
            part = self.entries.get(key := _key_of_slice(name, extents))
            lies = all(o + n <= total for o, n, total in zip(*box, entry.shape, strict=True))
            if part is None or not lies or part.slices or (part.code, part.shape) != (entry.code, box[1]):
                raise CorruptFileError(f"{where}: its slice at {list(box[0])} is missing or wrong; the file is damaged")
            self.made[key], self.owners[key] = self._value(name, part), name.encode()
            boxes.append(box)
            chunks.append((box[0], self.made[key]))
        if not covers(where, entry.shape, boxes):
            raise CorruptFileError(f"{where}: its slices do not make it up; the file is damaged, fetch it again")
        return assemble(kind, entry.shape, chunks, self.name, remote=self.source.remote)

    def _texts(self, shard: ByteSource, entry: _Entry, where: str) -> Any:
        count = prod(entry.shape)
        if entry.size > _MAX_TEXT:
            return Opaque(f"{count:,} texts of {entry.size:,} bytes")
        data = bytes(shard.read(entry.offset, entry.size))
        lengths = list[int]()
        file = Reader(BytesSource(data, where))
        at = 0
        while len(lengths) < count:
            length, at = file.varint(at)
            lengths.append(length)
        if at + 4 + sum(lengths) != len(data):
            raise CorruptFileError(f"{where}: its texts do not take its {len(data):,} bytes; the file is damaged")
        at, texts = at + 4, list[Any]()
        file.spend(100 * count)
        for length in lengths:
            texts.append(_decode(data[at : at + length]))
            at += length
        return texts if entry.shape else texts[0]

    def _damage(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: {what}; the file is damaged, fetch it again")


def _open_variables(source: ByteSource) -> ByteSource:
    try:
        return places.open_file(places.resolve_inside(places.get_folder(source), "variables/variables.index"))
    except OSError as error:
        raise UnknownFormatError(
            f"{source.name}: is a TensorFlow SavedModel without variables/variables.index; its weights are constants "
            "in its graph, which this version does not read, or the folder was not fetched whole"
        ) from error


def _split(key: str) -> list[str]:
    """The path of a key of a checkpoint of objects, in the tree.

    >>> _split("model/a.Sb/kernel/.ATTRIBUTES/VARIABLE_VALUE")
    ['model', 'a/b', 'kernel']
    >>> _split("w/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE")
    ['optimizer', 'slots', 'm', 'w']
    """
    path, _, attribute = key.partition(f"/{_ATTRIBUTES}/")
    parts = [*path.split("/"), *([attribute] if attribute not in ("", _VALUE) else [])]
    if _SLOT in parts:
        at = parts.index(_SLOT)
        owner, name = parts[at + 1 : -1], parts[-1]
        if owner:
            return [*map(_unescape, owner), "slots", _unescape(name), "/".join(map(_unescape, parts[:at]))]
    return [*map(_unescape, parts)]


def _unescape(name: str) -> str:
    return re.sub(r"\.(\.|S)", lambda found: "." if found[1] == "." else "/", name)


def _key_of_slice(name: str, extents: tuple[tuple[int, int], ...]) -> bytes:
    """The key of a slice: 0, the name, and the numbers, in the order-preserving code of TensorFlow's OrderedCode."""
    key = b"\0" + name.encode().replace(b"\0", b"\0\xff") + b"\0\1" + bytes([1, len(extents)] if extents else [0])
    return key + b"".join(_ordered(number) for extent in extents for number in extent)


def _ordered(number: int) -> bytes:
    """A signed number: its first bits say how many bytes it has.

    >>> _ordered(-1).hex(), _ordered(63).hex(), _ordered(64).hex()
    ('7f', 'bf', 'c040')
    """
    length = (~number if number < 0 else number).bit_length() // 7 + 1
    data = bytearray(number.to_bytes(10, "big", signed=True)[-length:])
    mark = ((1 << length) - 1) << (16 - length)
    data[0] ^= mark >> 8
    if length > 8:
        data[1] ^= mark & 255
    return bytes(data)


def _decode(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
