"""Arrays of zarr 2 and 3, as TensorStore writes them for Orbax: a document, and chunks in a regular grid.

    .zarray      zarr 2: shape, chunks, dtype ("<f4", "bfloat16"), compressor; chunk keys "1.0", "0" without dimensions
    zarr.json    zarr 3: shape, chunk_grid, data_type, codecs; chunk keys "c/1/0", "c"
    a chunk      its elements row-major, at the edges too as large as all chunks, packed by Zstandard or not
    a shard      of zarr 3: chunks, then for each its offset and length as u64, ones if it is absent, and a CRC-32C

A 4-bit integer takes a byte. Chunks are found when they are read, and unpacked as a stream, so that memory does not
grow with them. A chunk that is absent has the fill value if the writer left such chunks out, and else is missing.

Source: tensorstore's drivers zarr and zarr3 (0.1.86). Limits: no other codecs, no filters, little-endian, row-major.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from math import prod

from statedict.dtypes import BY_CODE, BY_NAME, labelled_dtype
from statedict.errors import CorruptFileError, LimitError, UnsupportedError
from statedict.formats.orbax.ocdbt import crc32c
from statedict.io.source import Slice
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.assembled import copy_tensor_box
from statedict.tensor.boxes import PANEL, BoxSource, raw_dtype
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.zstd import ZstdSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.boxes import Shape

    class Values(Protocol):
        """The values of a store: chunks, as far as they are there."""

        def get(self, key: str, /) -> ByteSource | None:
            """The bytes under a key; None if there is no such key."""


DOCUMENTS = (".zarray", "zarr.json")
_LABELS = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")  # a byte each
_ABSENT = (1 << 64) - 1
_FILLED = 1 << 40  # bytes of an array without its chunks
_LITTLE = {"endian": "little"}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_REMEDY = "it is damaged, fetch it again"
_ADVICE = "open it with orbax-checkpoint"


class Array:
    """What the document of an array says, and where its chunks are.

    Attributes:
        shape, kind: of the array.
        shard: the shape of what has a key of its own; a chunk, unless chunks lie in shards.
        chunk: the shape of a chunk.
        sharded, packed: whether chunks lie in shards; whether they are packed.
        fill: the value of elements without a chunk; None if such an element is missing.
    """

    __slots__ = (
        "_far",
        "_index",
        "chunk",
        "fill",
        "kind",
        "name",
        "packed",
        "prefix",
        "shape",
        "shard",
        "sharded",
        "values",
        "version",
    )

    def __init__(self, document: Any, values: Values, prefix: str, name: str, strict: bool) -> None:
        self.values, self.prefix, self.name = values, prefix, name
        self._index: tuple[Shape, bytes] | None = None
        self._far: dict[Shape, LazyTensor] = {}  # chunks behind a server, which would be asked for each again
        try:
            self.version = document["zarr_format"]
            self.shape = _to_shape(document["shape"])
            codecs = self._read_2(document) if self.version == 2 else self._read_3(document)
            sizes = {len(self.shape), len(self.shard), len(self.chunk)}
            if len(sizes) > 1 or 0 in self.chunk or any(n % m for n, m in zip(self.shard, self.chunk, strict=True)):
                raise ValueError(f"{self.shape} in chunks of {self.shard} and {self.chunk}")
        except UnsupportedError:
            raise
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            raise CorruptFileError(f"{name}: its document describes no array ({error!r:.120}); {_REMEDY}") from error
        if codecs not in ([], ["zstd"]):
            raise UnsupportedError(f"{name}: its chunks are coded by {codecs!r:.120}, which is not read; {_ADVICE}")
        self.packed = bool(codecs)
        fill = document.get("fill_value") or 0
        self.fill = None if strict else fill
        if self.fill is not None and type(fill) not in (bool, int, float):
            raise UnsupportedError(f"{name}: leaves out chunks of {fill!r:.40}, which is not read; {_ADVICE}")
        for shape in (self.shape, self.shard):
            if fault := find_shape_fault(shape, self.kind.itemsize):
                raise CorruptFileError(f"{name}: has {fault}; {_REMEDY}")

    def _read_2(self, document: Any) -> list[str]:
        """Read the document of zarr 2; the names of the codecs."""
        self.kind = _to_kind(document["dtype"], self.name)
        self.shard = self.chunk = _to_shape(document["chunks"])
        self.sharded = False
        codecs = [*(document.get("filters") or ()), *filter(None, [document["compressor"]])]
        names = [str(codec["id"]) for codec in codecs]
        usual = document["order"] == "C" and document.get("dimension_separator", ".") == "."
        return names if usual else ["another order", *names]

    def _read_3(self, document: Any) -> list[str]:
        """As `_read_2`, of zarr 3."""
        self.kind = _to_kind(document["data_type"], self.name)
        self.shard = self.chunk = _to_shape(document["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = document["codecs"]
        self.sharded = codecs[0]["name"] == "sharding_indexed"
        usual = document["chunk_key_encoding"] in ({"name": "default"}, _KEYS)
        if self.sharded:
            settings = codecs[0]["configuration"]
            self.chunk, codecs, rest = _to_shape(settings["chunk_shape"]), settings["codecs"], codecs[1:]
            usual &= not rest and settings.get("index_location", "end") == "end"
            usual &= [codec["name"] for codec in settings["index_codecs"]] == ["bytes", "crc32c"]
        usual &= codecs[0]["name"] == "bytes" and codecs[0].get("configuration", _LITTLE) == _LITTLE
        names = [str(codec["name"]) for codec in codecs[1:]]
        return names if usual else ["another order", *names]

    def tensor(self) -> LazyTensor:
        """The array as a tensor."""
        limit = PANEL * (self.chunk[1:] != self.shape[1:])
        flat = partial(_copy_flat, self) if self.chunk == self.shape else None
        remote = getattr(self.values, "remote", False)
        at = partial(_copy_box, self)
        source = BoxSource(self.kind, self.shape, at, self.name, partial(int, limit), remote, flat=flat)
        return LazyTensor(self.kind, self.shape, Storage(source, 0, source.size))

    def open(self, place: Shape) -> LazyTensor | None:
        """The chunk at a place in the grid; None if its elements have the fill value."""
        if place in self._far:
            return self._far[place]
        inside = tuple(n // m for n, m in zip(self.shard, self.chunk, strict=True))
        outer = tuple(i // n for i, n in zip(place, inside, strict=True))
        texts = [*map(str, outer)]
        key = self.prefix + ((".".join(texts) or "0") if self.version == 2 else "/".join(["c", *texts]))
        source = self.values.get(key)
        if source is not None and self.sharded:
            source = self._find_in_shard(
                source, outer, tuple(i % n for i, n in zip(place, inside, strict=True)), inside
            )
        if source is None:
            if self.fill is None:
                raise CorruptFileError(f"{self.name}: its chunk {key} is missing; fetch or save the checkpoint again")
            if self.kind.nbytes(prod(self.shape)) > _FILLED:
                raise LimitError(f"{self.name}: an array of over a terabyte, and its chunk {key} is missing; {_REMEDY}")
            return None
        size = self.kind.nbytes(prod(self.chunk))
        where = f"{self.name}: chunk {key}"
        if self.packed:
            source = ZstdSource(source, size, where, (self, place))
        elif source.size != size:
            raise CorruptFileError(f"{where}: has {source.size:,} bytes, and its shape {size:,}; {_REMEDY}")
        tensor = LazyTensor(self.kind, self.chunk, Storage(source, 0, size))
        if source.remote:
            self._far[place] = tensor
        return tensor

    def _find_in_shard(self, source: ByteSource, outer: Shape, inner: Shape, inside: Shape) -> ByteSource | None:
        """The bytes of a chunk in a shard, whose index is at its end."""
        index = self._index  # another thread may replace it
        if index is None or index[0] != outer:
            size = 16 * prod(inside) + 4
            data = bytes(source.read(source.size - size, size))
            if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise CorruptFileError(f"{self.name}: the CRC-32C of the index of a shard differs; {_REMEDY}")
            index = self._index = outer, data
        number = sum(i * step for i, step in zip(inner, contiguous_strides(inside), strict=True))
        entry = index[1][16 * number : 16 * number + 16]
        offset, size = int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")
        return None if offset == size == _ABSENT else Slice(source, offset, size)


def _to_shape(value: Any) -> Shape:
    if type(value) is not list or any(type(n) is not int or n < 0 for n in value):
        raise ValueError(f"{value!r:.60} is not a shape")
    return tuple(value)


def _to_kind(name: Any, where: str) -> DType:
    """The dtype of a name in a document: of zarr 2 a code of numpy, `"<f4"`, or as of zarr 3, `"bfloat16"`."""
    if type(name) is not str:
        raise TypeError(f"the dtype {name!r:.40}")
    found = BY_NAME.get(name) or (BY_CODE.get(name[1:]) if name[:1] in "<|" else None)
    if found is None and name in _LABELS:
        found = labelled_dtype(name, 8)
    if found is None or not found.itemsize:
        raise UnsupportedError(f"{where}: has the dtype {name!r:.60}, which is not read; {_ADVICE}")
    return found


def _copy_flat(array: Array, first: int, out: Any) -> None:
    """Fill a flat array from an element of an array of one chunk on."""
    chunk = array.open((0,) * len(array.shape))
    if chunk is None:
        _fill(array, out)
    elif out.size:
        chunk.storage.source.readinto(first * array.kind.itemsize, out.view("u1").data)


def _copy_box(array: Array, corner: Shape, out: Any) -> None:
    """Fill an array of raw elements with the box at a corner."""
    if not out.size:
        return
    sizes = list(zip(corner, out.shape, array.chunk, strict=True))
    for place in product(*(range(c // n, (c + size - 1) // n + 1) for c, size, n in sizes)):
        chunk = array.open(place)
        begins = [max(c, i * n) for i, (c, _, n) in zip(place, sizes, strict=True)]
        ends = [min(c + size, (i + 1) * n) for i, (c, size, n) in zip(place, sizes, strict=True)]
        part = out[(*(slice(b - c, e - c) for b, e, c in zip(begins, ends, corner, strict=True)), ...)]
        if chunk is None:
            _fill(array, part)
        else:
            copy_tensor_box(chunk, tuple(b - i * n for b, i, n in zip(begins, place, array.chunk, strict=True)), part)


def _fill(array: Array, out: Any) -> None:
    import numpy

    kind = array.kind.numpy if array.fill else out.dtype
    out[...] = numpy.full(1, array.fill, kind).view(raw_dtype(array.kind.itemsize))[0]
