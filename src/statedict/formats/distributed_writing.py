"""What a `torch.distributed.checkpoint` directory consists of: names, chunks and the index, as PyTorch would plan them.

    __0_0.distcp, __0_1.distcp …   the chunks one after the other, without holes, each a file of torch.save in itself
    .metadata                      the index, a pickle of protocol 2

An entry is what PyTorch's planner takes for one: dicts are always followed, a list only if a tensor, a dict or such a
list is in it, a tuple never. An entry's name is its keys as text, joined by dots. A tensor is one chunk, row-major;
tied ones are one chunk with several names. Everything else is a chunk that holds the value.

The names do not say all of a tree: keys that are no text, empty dicts, module versions. Where there is any of that,
the index has one attribute more, which PyTorch carries along and never looks at: the tree with None in the place of
each entry, or True for a parameter (docs/format.md).
Source: torch/distributed/checkpoint/_traverse.py, default_planner.py, filesystem.py (PyTorch 2.13).
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from itertools import islice

from statedict.errors import UnsupportedError
from statedict.formats.distributed_tensors import OURS, key_text
from statedict.formats.torch.archive import pickle_tree
from statedict.formats.torch.packing import RECORDS, Packing
from statedict.io.pipeline import Part, StreamSink, put_bytes
from statedict.io.progress import Meter
from statedict.io.source import BytesSource
from statedict.pickles.writer import dumps
from statedict.tensor.attributes import left_out_note
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk
from statedict.values import Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from statedict.formats.torch.packing import Stored
    from statedict.io.pipeline import Sink

    Keys = tuple[str | int, ...]


_GATHER = 4 << 20  # bytes of small chunks that are written together
_SMALL = 1 << 20
_TOGETHER = 1000  # large chunks whose ends are written after all of them
_CHECKPOINT = "torch.distributed.checkpoint."
_METADATA = f"{_CHECKPOINT}metadata."
_LAYOUT = Opaque("torch.serialization._get_layout", ("torch.strided",))
_ROW_MAJOR = Opaque(f"{_METADATA}_MEM_FORMAT_ENCODING", (0,))
_BYTES = Opaque(f"{_METADATA}BytesStorageMetadata", ())
RECORD_NAMES = frozenset(
    [
        _LAYOUT.name,
        f"{_CHECKPOINT}filesystem._StorageInfo",
        *(
            _METADATA + name
            for name in (
                "Metadata",
                "TensorStorageMetadata",
                "TensorProperties",
                "ChunkStorageMetadata",
                "BytesStorageMetadata",
                "MetadataIndex",
                "_MEM_FORMAT_ENCODING",
            )
        ),
    ]
)


class Chunk:
    """An archive in one of the files.

    Attributes:
        data: its pickle.
        storages: its storages.
        size: its bytes.
        file, offset: where it goes.
    """

    __slots__ = ("data", "file", "offset", "size", "storages")

    def __init__(self, data: bytes, storages: list[Stored]) -> None:
        self.data, self.storages = data, storages
        self.size = self.offset = 0
        self.file = ""


def plan_files(tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
    """What to write into the folder: name of each file → what writes it, the index last.

    Args:
        tree: of LazyTensors and plain values.
        most: bytes in a file; one chunk that is larger has a file of its own. All in one by default.

    Raises:
        UnsupportedError: a value that is no data, or two entries with one name.
    """
    walk(tree)  # an error beyond its bounds
    root = tree if isinstance(tree, StateDict) else StateDict({"": tree})
    entries: dict[str, tuple[Keys, Any]] = {}
    template = _follow(root, (), entries)
    noted = [(name, value.attributes) for name, (_, value) in entries.items() if isinstance(value, LazyTensor)]
    if left := [f"{name}.{key}" for name, held in noted for key in held or ()]:
        warnings.warn(left_out_note(left), stacklevel=2)
    chunks, places = _chunks(entries)
    files = _place(chunks, most)
    index = _index(entries, places, template, getattr(root, "metadata", {}))
    writes: dict[str, Callable[[Sink], None]] = {name: partial(_write, held) for name, held in files.items()}
    return writes | {".metadata": partial(put_bytes, index)}


def _follow(node: Any, keys: Keys, entries: dict[str, tuple[Keys, Any]]) -> Any:
    """The tree with None or True in the place of each entry; the entries are added in their order."""
    if isinstance(node, Counter):
        for key, count in node.items():
            _add(count, (*keys, key_text(key)), entries)
        return Counter(dict.fromkeys(node, 0))
    if isinstance(node, dict):
        template = StateDict((key, _follow(value, (*keys, key_text(key)), entries)) for key, value in node.items())
        template._metadata = getattr(node, "_metadata", None)
        return template
    if type(node) is list and not _is_whole(node):
        return [_follow(value, (*keys, index), entries) for index, value in enumerate(node)]
    _add(node, keys, entries)
    return True if isinstance(node, LazyTensor) and node.parameter else None


def _add(value: Any, keys: Keys, entries: dict[str, tuple[Keys, Any]]) -> None:
    name = ".".join(map(str, keys))
    if name in entries:
        raise UnsupportedError(
            f"{name}: two entries have this name in a distributed checkpoint, which joins keys as text; rename one"
        )
    entries[name] = keys, value


def _is_whole(items: list[Any]) -> bool:
    """Whether a list is one entry."""
    return not any(
        isinstance(item, dict | LazyTensor) or (type(item) is list and not _is_whole(item)) for item in items
    )


def _says_nothing_new(template: Any, root: bool = True) -> bool:
    """Whether names and their keys alone give the tree."""
    if isinstance(template, StateDict):
        return (
            template._metadata is None
            and (root or len(template) > 0)
            and all(type(key) is str and _says_nothing_new(child, False) for key, child in template.items())
        )
    if type(template) is list:
        return all(_says_nothing_new(child, False) for child in template)
    return template is None


def _chunks(entries: dict[str, tuple[Keys, Any]]) -> tuple[list[Chunk], dict[str, Chunk]]:
    """The chunks in their order, and which one each entry is in."""
    chunks: list[Chunk] = []
    places: dict[str, Chunk] = {}
    stored: dict[object, Chunk] = {}
    alike: dict[object, bytes] = {}
    for name, (_, value) in entries.items():
        if not isinstance(value, LazyTensor):
            places[name] = Chunk(*pickle_tree(value, name))
            chunks.append(places[name])
            continue
        region = value.region
        chunk = stored.get(region)
        if chunk is None:
            plain = _plain(value)
            kind = (plain.dtype.name, plain.shape, plain.nbytes)
            data = alike.get(kind)
            if data is None:
                data = alike[kind] = pickle_tree(plain, name)[0]
            start = plain.storage.offset + plain.offset
            chunk = stored[region] = Chunk(data, [(plain.storage.source, start, plain.nbytes)])
            chunks.append(chunk)
        places[name] = chunk
    return chunks, places


def _plain(tensor: LazyTensor) -> LazyTensor:
    """Row-major and without flags."""
    tensor = tensor.contiguous()
    if isinstance(tensor, Labelled):
        tensor.element_bytes()  # an error for a view
    return tensor.replace(requires_grad=False, parameter=False, attributes=None)


def _place(chunks: list[Chunk], most: int | None) -> dict[str, list[Chunk]]:
    """The chunks by their file, each with its place in it."""
    sizes: dict[tuple[int, ...], int] = {}
    files: dict[str, list[Chunk]] = {}
    end = 0
    for chunk in chunks:
        lengths = (len(chunk.data), *(size for _, _, size in chunk.storages))
        if lengths not in sizes:
            sizes[lengths] = Packing(chunk.data, chunk.storages, RECORDS).size
        chunk.size = sizes[lengths]
        if not files or (most is not None and end and end + chunk.size > most):
            files[f"__0_{len(files)}.distcp"] = []
            end = 0
        chunk.file, chunk.offset = next(reversed(files)), end
        files[chunk.file].append(chunk)
        end += chunk.size
    return files


def _index(
    entries: dict[str, tuple[Keys, Any]], places: dict[str, Chunk], template: Any, metadata: dict[str, str]
) -> bytes:
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
        chunk = places[name]
        place = {"relative_path": chunk.file, "offset": chunk.offset, "length": chunk.size}
        key = Opaque(f"{_METADATA}MetadataIndex", (), where)
        stored[key] = Opaque(f"{_CHECKPOINT}filesystem._StorageInfo", (), place)
    index: dict[str, Any] = {
        "state_dict_metadata": tensors,
        "planner_data": {name: keys for name, (keys, _) in entries.items()},
        "storage_data": stored,
        "storage_meta": None,
        "version": "1.0.0",
    }
    if metadata or not _says_nothing_new(template):
        index[OURS] = {"version": 1, "tree": template, "metadata": dict(metadata)}
    return dumps(Opaque(f"{_METADATA}Metadata", (), index), _refuse_tensor, records=RECORD_NAMES)


def _describe(tensor: LazyTensor) -> Opaque:
    size = Size(tensor.shape)
    properties = (tensor.dtype, _LAYOUT, tensor.requires_grad, _ROW_MAJOR, False)
    chunk = {"offsets": Size((0,) * tensor.ndim), "sizes": size}
    return Opaque(
        f"{_METADATA}TensorStorageMetadata",
        (),
        {
            "properties": Opaque(f"{_METADATA}TensorProperties", (), properties),
            "size": size,
            "chunks": [Opaque(f"{_METADATA}ChunkStorageMetadata", (), chunk)],
        },
    )


def _refuse_tensor(tensor: LazyTensor) -> Any:
    raise UnsupportedError(f"{tensor!r}: a tensor in a key or in _metadata has no place in the checkpoint; drop it")


def _write(chunks: list[Chunk], sink: Sink) -> None:
    sink.reserve(sum(chunk.size for chunk in chunks))
    for held in _runs(chunks, 1 if sink.in_order else _TOGETHER):
        if held[0].size > _SMALL:
            _write_large(held, sink)
            continue
        gathered = bytearray()
        with Meter():  # these bytes count when they reach the file
            for chunk in held:
                _pack(chunk).write(StreamSink(gathered.extend))
        sink.put([Part(held[0].offset, BytesSource(gathered), 0, len(gathered))])


def _write_large(chunks: list[Chunk], sink: Sink) -> None:
    archives = [_pack(chunk) for chunk in chunks]
    sums = iter(sink.put([part for archive in archives for part in archive.parts], crc=True))
    sink.put([archive.end(list(islice(sums, len(archive.parts)))) for archive in archives])


def _pack(chunk: Chunk) -> Packing:
    return Packing(chunk.data, chunk.storages, RECORDS, at=chunk.offset)


def _runs(chunks: list[Chunk], together: int) -> Iterator[list[Chunk]]:
    """Neighbours that are small, as many as are gathered, or large, so many of them."""
    held: list[Chunk] = []
    size = 0
    for chunk in chunks:
        large = chunk.size > _SMALL
        full = len(held) >= together if large else size + chunk.size > _GATHER
        if held and (full or large is not (held[0].size > _SMALL)):
            yield held
            held, size = [], 0
        held.append(chunk)
        size += chunk.size
    if held:
        yield held
