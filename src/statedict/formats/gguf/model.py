"""GGUF: the tensors of a model for llama.cpp, with typed metadata.

    4 bytes      GGUF
    u32          version: 2 or 3
    u64, u64     how many tensors, how many pairs of metadata
    the pairs    key: string; type: u32; value: a number, a string, or an array (type: u32; length: u64; values)
    the tensors  name: string; dimensions: u32; sizes: u64 each, that of a row first; type: u32; offset: u64
    padding      to a multiple of general.alignment, by default 32, where the data begins, from which offsets count
    the data     each tensor at a multiple of the alignment

A string is a u64 length and UTF-8. The tree has the metadata, if there is any, as a dict under `metadata`, then each
tensor under its name, its sizes row-major. Types with blocks (tensor/ggml/types.py) become `BlockTensor`s: float32 that
is decoded when it is read. The types of the metadata that Python's values do not tell are JSON in the tree's `metadata`
under `gguf.types`.

Numbers are little-endian unless the version's low 16 bits are 0 when read so. Of big-endian files two dialects exist,
and nothing in a file tells which: `GGUFWriter` leaves BF16 and the scales of blocks little-endian,
`gguf-convert-endian` swaps them. The numbers tell: see `byte_order.py`. `gguf.big_endian` in the tree's `metadata` says
what was found.

A split model is opened as a whole by any of its files, NAME-00001-of-00003.gguf; see `splits.py`.

Source: docs/gguf.md of ggml; gguf 0.19.0. Limits: a header of 1 GiB, with 10 million elements in arrays; 64 dimensions.
"""

from __future__ import annotations

import json
from typing import Any

from statedict.errors import CorruptFileError
from statedict.formats.gguf.byte_order import find_swapped, in_our_order
from statedict.formats.gguf.header import Header
from statedict.formats.gguf.splits import open_parts
from statedict.formats.gguf.values import METADATA, TYPES, type_of
from statedict.io.source import BytesSource
from statedict.tensor.blocks import BlockTensor
from statedict.tensor.checks import Check, within
from statedict.tensor.ggml import BIG_ENDIAN
from statedict.tensor.ggml.types import BLOCKS, PLAIN
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_SPLIT = ("split.no", "split.count", "split.tensors.count")
_FOUND = {True: "BF16 and blocks too", False: "BF16 and blocks little-endian", None: "BF16 and blocks cannot be told"}


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: only the header is read, and of a big-endian file some numbers."""
    parts = open_parts(source)
    values, types, tensors = dict[str, Any](), dict[str, Any](), dict[str, LazyTensor]()
    beside: dict[str, str] = {}
    for _, file, header in parts:
        swapped = find_swapped(file, header) if header.order == ">" else False
        tensors |= make_tensors(file, header, swapped)
        values, types = header.values | values, header.types | types  # the first file's
        if header.order == ">":
            beside[BIG_ENDIAN] = _FOUND[swapped]
    if len(parts) > 1:
        values = {key: value for key, value in values.items() if key not in _SPLIT}
    if METADATA in tensors and values:
        raise CorruptFileError(f"{source.name}: a tensor is called {METADATA!r}, as the metadata is; rename it")
    tree = StateDict(({METADATA: StateDict(values)} if values else {}) | tensors)
    if untold := {key: types[key] for key, value in values.items() if types[key] != type_of(value)}:
        beside[TYPES] = json.dumps(untold, separators=(",", ":"))
    tree.metadata = beside
    return tree


def make_tensors(source: ByteSource, header: Header, swapped: bool | None) -> dict[str, LazyTensor]:
    """The tensors of a file by name; `swapped` as of `in_our_order`."""
    tensors: dict[str, LazyTensor] = {}
    for entry in header.tensors:
        data, start = in_our_order(source, header, entry, swapped)
        if entry.code in PLAIN:
            tensors[entry.name] = LazyTensor(PLAIN[entry.code], entry.shape, Storage(data, start, entry.nbytes))
        else:
            where = f"{source.name}: tensor {entry.name!r}"
            tensors[entry.name] = BlockTensor.make(BLOCKS[entry.code], entry.shape, data, start, where)
    return tensors


def checks(source: ByteSource) -> Iterator[Found]:
    """List the header and every tensor, of each file."""
    parts = open_parts(source)
    for file in parts:
        yield from within(_check_file(file.source, file.header), file.name if len(parts) > 1 else "")


def _check_file(source: ByteSource, header: Header) -> Iterator[Found]:
    swapped = find_swapped(source, header) if header.order == ">" else False
    raw = bytes(source.read(0, min(header.start, source.size)))
    yield Check("header", BytesSource(raw, source.name), 0, len(raw))
    tensors = make_tensors(source, header, swapped)
    for name, _, _, begin, nbytes in header.tensors:
        yield Check(name, source, header.start + begin, nbytes, ((name, tensors[name]),))
    if header.order == ">":
        yield f"big-endian: {_FOUND[swapped]}, by their values"


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors under names, and of plain values under `metadata`."""
    from statedict.formats.gguf.writing import write

    write(tree, sink)
