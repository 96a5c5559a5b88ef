"""What a `torch.distributed.checkpoint` directory consists of: names, chunks and the index, as PyTorch would plan them.

    __0_0.distcp, __0_1.distcp …   the chunks one after the other, without holes, each a file of torch.save in itself
    .metadata                      the index, a pickle of protocol 2

Entries are those of PyTorch's planner: it always follows dicts, lists only if they hold a tensor, a dict or a list that
it follows, and tuples never. An entry's name is its keys as text, joined by dots. A tensor is one chunk, row-major;
tied tensors are one chunk with several names. Everything else is a chunk that holds the value.

Names alone lose keys that are not text, empty dicts and module versions. A tree with these adds one attribute to the
index, which PyTorch ignores: the tree with None in place of each entry, True for a parameter, "numpy.ndarray" for an
array (docs/format.md).
Source: torch/distributed/checkpoint/_traverse.py, default_planner.py, filesystem.py (PyTorch 2.13).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

from statedict.errors import UnsupportedError
from statedict.formats.distributed_tensors import OURS, format_key
from statedict.formats.guard import watch_too
from statedict.formats.torch.archive import NDARRAY, NO_NOTES, Notes, Packing, pickle_tree, refuse_place
from statedict.io.parallel import batches
from statedict.io.pipeline import Meter, Part, StreamSink, put_bytes
from statedict.io.source import BytesSource
from statedict.pickles.writer import dumps
from statedict.tensor.attributes import left_out_note
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import Segment
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import check_bounds
from statedict.values import Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from statedict.io.pipeline import Sink

    Keys = tuple[str | int, ...]
    Entries = dict[str, tuple[Keys, Any]]


_GATHER = 4 << 20  # bytes of small chunks that are written together
_SMALL = 1 << 20
_TOGETHER = 1000  # large chunks whose ends are written after all of them
_CHECKPOINT = "torch.distributed.checkpoint."
_METADATA = f"{_CHECKPOINT}metadata."
_INFO = f"{_CHECKPOINT}filesystem._StorageInfo"
_LAYOUT = Opaque("torch.serialization._get_layout", ("torch.strided",))
_ROW_MAJOR = Opaque(f"{_METADATA}_MEM_FORMAT_ENCODING", (0,))
_BYTES = Opaque(f"{_METADATA}BytesStorageMetadata", ())
_CLASSES = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
_RECORD_NAMES = frozenset(
    [_INFO, _LAYOUT.name, _ROW_MAJOR.name, _BYTES.name, *(f"{_METADATA}{name}" for name in _CLASSES)]
)


@dataclass(slots=True, eq=False)
class Chunk:
    """An archive in one of the files: its pickle, its storages, what these cannot say, and its place."""

    data: bytes
    storages: list[Segment]
    notes: Notes = NO_NOTES
    size: int = 0
    file: str = ""
    offset: int = 0


def files(tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
    """Map each file of the folder to the function that writes it, the index last.

    A file has at most `most` bytes, unless it is a single chunk. By default there is one file.
    """
    check_bounds(tree)
    root = tree if isinstance(tree, StateDict) else StateDict({"": tree})
    entries: Entries = {}
    template = _follow(root, (), entries)
    noted = [(name, value.attributes) for name, (_, value) in entries.items() if isinstance(value, LazyTensor)]
    if left := [f"{name}.{key}" for name, held in noted for key in held or ()]:
        warnings.warn(left_out_note(left), stacklevel=2)
    chunks = _make_chunks(entries)
    placed = _place_in_files(list(dict.fromkeys(chunks.values())), most)
    index = _make_index(entries, chunks, template, getattr(root, "metadata", {}))
    writes: dict[str, Callable[[Sink], None]] = {name: partial(_write, held) for name, held in placed.items()}
    return writes | {".metadata": partial(put_bytes, index)}


def _follow(node: Any, keys: Keys, entries: Entries) -> Any:
    """Return the tree with None, or what its tensor is, in place of each entry, and add these to `entries`."""
    if isinstance(node, Counter):
        for key, count in node.items():
            _add(count, (*keys, format_key(key)), entries)
        return Counter(dict.fromkeys(node, 0))
    if isinstance(node, dict):
        template = StateDict((key, _follow(value, (*keys, format_key(key)), entries)) for key, value in node.items())
        template._metadata = getattr(node, "_metadata", None)
        return template
    if type(node) is list and not _is_single_entry(node):
        return [_follow(value, (*keys, index), entries) for index, value in enumerate(node)]
    _add(node, keys, entries)
    if isinstance(node, LazyTensor):
        return True if node.parameter else NDARRAY if node.ndarray else None
    return None


def _add(value: Any, keys: Keys, entries: Entries) -> None:
    name = ".".join(map(str, keys))
    if name in entries:
        raise UnsupportedError(
            f"{name}: two entries have this name in a distributed checkpoint, which joins keys as text; rename one"
        )
    entries[name] = keys, value


def _is_single_entry(items: list[Any]) -> bool:
    return not any(
        isinstance(item, dict | LazyTensor) or (type(item) is list and not _is_single_entry(item)) for item in items
    )


def _is_implied(template: Any, root: bool = True) -> bool:
    """Whether the names and their keys alone give the tree."""
    if isinstance(template, StateDict):
        return (
            template._metadata is None
            and (root or len(template) > 0)
            and all(type(key) is str and _is_implied(child, False) for key, child in template.items())
        )
    if type(template) is list:
        return all(_is_implied(child, False) for child in template)
    return template is None


def _make_chunks(entries: Entries) -> dict[str, Chunk]:
    """Make the chunk of each entry; tied tensors share one."""
    chunks: dict[str, Chunk] = {}
    stored: dict[object, Chunk] = {}
    alike: dict[object, bytes] = {}
    for name, (_, value) in entries.items():
        if not isinstance(value, LazyTensor):
            chunks[name] = Chunk(*pickle_tree(value, name))
            continue
        region = value.region
        if region not in stored:
            plain = value.contiguous()
            if isinstance(plain, Labelled):
                plain.element_bytes()  # an error for a view
            plain = plain.replace(requires_grad=False, parameter=False, attributes=None)
            kind = (plain.dtype.name, plain.shape, plain.nbytes)
            if kind not in alike:
                alike[kind] = pickle_tree(plain, name)[0]
            start = plain.storage.offset + plain.offset
            stored[region] = Chunk(alike[kind], [Segment(plain.storage.source, start, plain.nbytes)])
        chunks[name] = stored[region]
    return chunks


def _place_in_files(chunks: list[Chunk], most: int | None) -> dict[str, list[Chunk]]:
    sizes: dict[object, int] = {}
    for chunk in chunks:
        lengths = (len(chunk.data), *(size for _, _, size in chunk.storages), *chunk.notes.classes.items())
        if lengths not in sizes:
            sizes[lengths] = Packing(chunk.data, chunk.storages, chunk.notes).size
        chunk.size = sizes[lengths]
    groups = batches(chunks, most, count=math.inf)
    files = {f"__0_{number}.distcp": held for number, held in enumerate(groups)}
    for file, held in files.items():
        end = 0
        for chunk in held:
            chunk.file, chunk.offset = file, end
            end += chunk.size
    return files


def _make_index(entries: Entries, chunks: dict[str, Chunk], template: Any, metadata: dict[str, str]) -> bytes:
    described: dict[object, Opaque] = {}
    starts: dict[int, Size] = {}
    tensors: dict[str, Opaque] = {}
    stored: dict[Opaque, Opaque] = {}
    for name, (_, value) in entries.items():
        where: dict[str, Any] = {"fqn": name, "index": None}
        tensors[name] = _BYTES
        if isinstance(value, LazyTensor):
            kind = (value.dtype.name, value.shape, value.requires_grad)
            where = {"fqn": name, "index": 0, "offset": starts.setdefault(value.ndim, Size((0,) * value.ndim))}
            tensors[name] = described.get(kind) or described.setdefault(kind, _describe(value))
        chunk = chunks[name]
        place = {"relative_path": chunk.file, "offset": chunk.offset, "length": chunk.size}
        stored[Opaque(f"{_METADATA}MetadataIndex", (), where)] = Opaque(_INFO, (), place)
    index: dict[str, Any] = {
        "state_dict_metadata": tensors,
        "planner_data": {name: keys for name, (keys, _) in entries.items()},
        "storage_data": stored,
        "storage_meta": None,
        "version": "1.0.0",
    }
    leaves = {name: value for name, (_, value) in entries.items() if isinstance(value, LazyTensor)}
    strides = {name: value.strides for name, value in leaves.items() if value.is_dense()}
    if metadata or strides or not _is_implied(template):
        index[OURS] = {"version": 1, "tree": template, "metadata": dict(metadata)}
        index[OURS] |= {"strides": strides} if strides else {}
    return dumps(Opaque(f"{_METADATA}Metadata", (), index), refuse_place, records=_RECORD_NAMES)


def _describe(tensor: LazyTensor) -> Opaque:
    size = Size(tensor.shape)
    properties = (tensor.dtype, _LAYOUT, tensor.requires_grad, _ROW_MAJOR, False)
    chunk = {"offsets": Size((0,) * tensor.ndim), "sizes": size}
    state = {
        "properties": Opaque(f"{_METADATA}TensorProperties", (), properties),
        "size": size,
        "chunks": [Opaque(f"{_METADATA}ChunkStorageMetadata", (), chunk)],
    }
    return Opaque(f"{_METADATA}TensorStorageMetadata", (), state)


def _write(chunks: list[Chunk], sink: Sink) -> None:
    sink.reserve(sum(chunk.size for chunk in chunks))
    for large, neighbours in groupby(chunks, key=lambda chunk: chunk.size > _SMALL):
        most = (1 if sink.in_order else _TOGETHER) if large else math.inf
        for held in batches(neighbours, None if large else _GATHER, count=most):
            packed = (Packing(chunk.data, chunk.storages, chunk.notes, at=chunk.offset) for chunk in held)
            if large:
                archives = list(packed)
                sums = iter(sink.put([part for archive in archives for part in archive.parts], crc=True))
                sink.put([archive.end(list(islice(sums, len(archive.parts)))) for archive in archives])
                continue
            gathered = bytearray()
            with Meter():  # these bytes count when they reach the file
                for archive in packed:
                    archive.write(watch_too(sink, StreamSink(gathered.extend)))
            sink.put([Part(held[0].offset, BytesSource(gathered), 0, len(gathered))])
