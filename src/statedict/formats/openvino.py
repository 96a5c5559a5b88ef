"""OpenVINO: the constants of a model, whose graph is an .xml and whose weights are in a .bin beside it.

    <net name="…" version="11">
      <layers>
        <layer id="1" name="NAME" type="Const" version="opset1">
          <data element_type="f32" shape="3, 5" offset="0" size="60"/>
        <layer id="2" name="NAME" type="If" …>
          <then_body> <layers> …
      <rt_info> <KEY> <KEY value="…"/>

`offset` and `size` count bytes of the .bin; constants of the same bytes share them. The tree has each constant under
the name of its layer, and below `subgraphs` those in bodies of other layers, under NAME/BODY, each a dict like the
tree. What `rt_info` of the model says, how it was compressed for one, is the tree's metadata.

Numbers of 1, 2 and 4 bits are decoded when they are read (tensor/packed.py), those of 3 and 6 bits are bytes.

Source: openvino 2026.4, src/core/xml_util. Limits: an .xml of 1 GiB, nested 64 deep, without a document type.
"""

from __future__ import annotations

import os
from math import prod
from typing import Any
from xml.parsers import expat

from statedict.dtypes import BY_NAME, labelled_dtype
from statedict.errors import CorruptFileError, LimitError, UnsupportedError
from statedict.formats import places
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.blocks import BlockTensor
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.packed import PACKED
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MOST, _CHUNK, _DEEPEST = 1 << 30, 1 << 20, 64
_RESERVE, _FACTOR, _ENTRY = 48 << 20, 17, 600  # bytes of memory that a file may ask for, a byte of it and a constant
_PLAIN = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "boolean": "bool",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu",
}  # fmt: skip
_PACKED = {"u1": "u1", "u2": "uint2", "u4": "uint4", "i4": "int4", "nf4": "nf4", "f4e2m1": "float4_e2m1fn"}
_BITS = {"u3": 3, "u6": 6}


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: the .xml is read, no constant is."""
    return _Reader(source).read()


def list_files(source: ByteSource) -> list[str]:
    """List the file of the weights."""
    return [_name_weights(source)]


def checks(source: ByteSource) -> Iterator[Found]:
    """List the constants; OpenVINO has no sums."""
    yield from by_storage(read(source))


def _name_weights(source: ByteSource) -> str:
    return os.path.basename(getattr(source, "url", source.name)).removesuffix(".xml") + ".bin"


class _Reader:
    """Goes through the .xml; `graphs` are the trees of the graph and the bodies that the parser is in."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.name = source, source.name
        if source.size > _MOST:
            raise LimitError(f"{self.name}: {source.size:,} bytes, and no graph has over {_MOST:,}")
        self.weights = places.open_file(places.resolve_inside(places.get_folder(source), _name_weights(source)))
        self.left = _RESERVE + _FACTOR * source.size
        self.told: dict[str, str] = {}
        self.elements: list[str] = []
        self.layers: list[dict[str, str]] = []
        self.graphs = [StateDict()]
        self.storages: dict[tuple[int, int, str], Any] = {}

    def read(self) -> StateDict:
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.StartDoctypeDeclHandler = self._refuse
        try:
            for at in range(0, self.source.size, _CHUNK):
                size = min(_CHUNK, self.source.size - at)
                parser.Parse(bytes(self.source.read(at, size)), at + size == self.source.size)
        except expat.ExpatError as error:
            raise self._damage(f"is not XML ({error})") from error
        tree = self.graphs[0]
        tree.metadata = self.told
        return tree

    def _refuse(self, *_: object) -> None:
        raise self._damage("has a document type, which OpenVINO never writes")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        above = self.elements[-1] if self.elements else ""
        self.elements.append(element)
        if len(self.elements) > _DEEPEST:
            raise LimitError(f"{self.name}: nested over {_DEEPEST} deep; the file is damaged or forged")
        if len(self.elements) == 1 and element != "net":
            raise self._damage(f"is a document of {element!r:.40}, expected net")
        if element == "layer" and above == "layers":
            self.layers.append(attributes)
        elif element == "layers" and above == "layer":
            raise self._damage("has layers outside of a body")
        elif element == "layers" and len(self.elements) > 2:
            self.graphs.append(StateDict())
        elif element == "data" and above == "layer" and self.layers[-1].get("type") == "Const":
            self._put(self.graphs[-1], self.layers[-1], self._constant(self.layers[-1], attributes))
        elif self.elements[1:2] == ["rt_info"] and "value" in attributes:
            self._spend(len(attributes["value"]))
            self.told[".".join(self.elements[2:])] = attributes["value"]

    def _end(self, element: str) -> None:
        self.elements.pop()
        if element == "layers" and len(self.elements) > 1:
            body, layer = self.graphs.pop(), self.layers[-1]
            if body:
                below = self.graphs[-1].setdefault("subgraphs", StateDict())
                if not isinstance(below, StateDict):
                    raise self._damage("a layer is called 'subgraphs', as a part of the tree is; rename it")
                self._put(below, layer | {"name": f"{layer.get('name')}/{self.elements[-1]}"}, body)
        elif element == "layer" and self.elements[-1:] == ["layers"]:
            self.layers.pop()

    def _put(self, tree: StateDict, layer: dict[str, str], value: Any) -> None:
        """Put an entry under the name of its layer, with its number if another layer has the name."""
        name = layer.get("name", "")
        self._spend(_ENTRY + len(name))
        if name in tree:
            name = f"{name}.{layer.get('id')}"
        if name in tree:
            raise self._damage(f"two layers are called {name!r:.80}")
        tree[name] = value

    def _constant(self, layer: dict[str, str], data: dict[str, str]) -> Any:
        where = f"{self.name}: constant {layer.get('name')!r:.80}"
        try:
            shape = tuple(int(n) for n in data["shape"].split(",") if n.strip())
            begin, size, kind = int(data["offset"]), int(data["size"]), data["element_type"]
        except (KeyError, ValueError) as error:
            raise CorruptFileError(f"{where} is described wrongly ({error}); the file is damaged") from error
        fault = "a negative size" if min(shape, default=0) < 0 else find_shape_fault(shape, 8)
        if fault:
            raise CorruptFileError(f"{where} has the shape {data['shape']:.80}: {fault}; the file is damaged")
        if begin < 0 or size < 0 or begin + size > self.weights.size:
            raise CorruptFileError(
                f"{where}: bytes {begin:,} to {begin + size:,} lie outside {self.weights.name} ({self.weights.size:,} "
                "bytes); it looks truncated, or is of another model; fetch both again"
            )
        if kind == "string":
            return Opaque(f"texts of {size:,} bytes")
        packed = PACKED.get(_PACKED.get(kind, ""))
        dtype = BY_NAME.get(_PLAIN.get(kind, "")) or (labelled_dtype(kind, _BITS[kind]) if kind in _BITS else None)
        if packed is None and dtype is None:
            raise UnsupportedError(f"{where} has the type {kind!r:.40}, which this version does not know")
        bits = 8 // packed.elements if packed else dtype.bits if dtype else 0
        if size != -(-prod(shape) * bits // 8):
            raise CorruptFileError(f"{where} has {size:,} bytes, which are not {list(shape)} of {kind}; it is damaged")
        made = self.storages.get((begin, size, kind))
        if packed:
            tensor: LazyTensor = BlockTensor.make(packed, shape, self.weights, begin, where)
            storage = tensor.storage
        else:
            assert dtype is not None
            storage = Storage(self.weights, begin, size)
            tensor = LazyTensor(dtype, shape, storage)
        if made is not None and made.nbytes == storage.nbytes:
            tensor.storage = made
        self.storages[begin, size, kind] = tensor.storage
        return tensor

    def _spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise LimitError(f"{self.name}: has too many entries for its size; it is damaged or forged")

    def _damage(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: {what}; the file is damaged, fetch it again")
