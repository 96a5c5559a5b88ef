"""PyTorch's zip format, what `torch.save` writes since 1.6: .pth, .pt, .bin, .ckpt or any other suffix.

    NAME/data.pkl              the tree as a pickle; tensors refer to storages by persistent id
    NAME/byteorder             "little" or "big"
    NAME/data/0, data/1 …      the storages' bytes, each at a multiple of 64 bytes
    NAME/version               "3"
    NAME/.statedict.json       ours: what the pickle cannot say, see docs/format.md; PyTorch ignores it

TorchScript archives, from `torch.jit.save`, are the same with `NAME/code/…`, which is never looked at, and

    NAME/constants.pkl         a tuple of the tensors that the code refers to
    NAME/constants/0 …         their storages

They open as the attributes of the modules, so a parameter is `conv.weight`; constants, if any, are under `constants`.

Records are stored, not compressed, so a tensor is a range of the file. NAME is any folder; we write `archive`.
Source: caffe2/serialize/inline_container.h and torch/serialization.py (PyTorch 2.13).
"""

from __future__ import annotations

from itertools import chain, repeat

from statedict.arrays import contiguous_strides
from statedict.errors import (
    CorruptFileError,
    FormatError,
    LimitError,
    TruncatedError,
    UnknownFormatError,
    UnsupportedError,
)
from statedict.io.json import check as check_json
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource, swapped
from statedict.io.zip import ArchiveLayout, Inflated, read_directory
from statedict.paths import walk
from statedict.pickles.constructors import StorageType, TypedStorage
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.pickles.writer import dumps
from statedict.segments import plan
from statedict.tensor import LazyTensor, Storage
from statedict.tree import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from statedict.checks import Found
    from statedict.io.sink import Sink
    from statedict.io.source import ByteSource
    from statedict.io.zip import Record

_OURS = ".statedict.json"


def read(source: ByteSource) -> Any:
    """The tree in the file, lazily: the pickle is read, no storage is.

    Raises:
        UnknownFormatError: an archive without `data.pkl`.
        CorruptFileError: a storage that the pickle refers to is missing or too small, or the archive is damaged.
    """
    records = members(source)
    tree, _ = _tree(records)
    if _OURS in records and isinstance(tree, StateDict):
        tree.metadata = _ours(records[_OURS])["metadata"]
    return tree


def _tree(records: dict[str, Record | Inflated]) -> tuple[Any, dict[str, dict[str, Storage]]]:
    """The tree, and the storages by folder and key."""
    tree, storages = unpickle(records)
    places = {"data": storages}
    if "constants.pkl" in records and _is_module(tree):
        tree = _attributes(tree)
        constants, places["constants"] = unpickle(records, "constants")
        if isinstance(constants, LazyTensor) or constants:
            tree.setdefault("constants", constants)
    return tree, places


def checks(source: ByteSource) -> Iterator[Found]:
    """Every record with its CRC-32 and, where we wrote it, its digest; the structure of the archive."""
    from dataclasses import replace

    from statedict.checks import refusal, tensors_of
    from statedict.formats.archive import check, faults

    records = _directory(source)
    folder, digests = "", list[str]()
    tensors: dict[str, list[tuple[str, LazyTensor]]] = {}
    try:
        folder = _folder(records, source.name)
        held = _held(records, folder)
        if _OURS in held:
            digests = _ours(held[_OURS])["digests"]
        tree, storages = _tree(held)
        places = {id(found): f"{where}/{key}" for where, those in storages.items() for key, found in those.items()}
        for path, tensor in tensors_of(tree):
            tensors.setdefault(places.get(id(tensor.storage), "data.pkl"), []).append((path, tensor))
    except FormatError as error:
        yield refusal(error, source.name)
    order = [name.removeprefix(folder) or name for name in records]
    if digests and (order[0], order[-1], len(order)) != ("data.pkl", _OURS, len(digests) + 1):
        yield "another program packed the archive anew, so its digests cannot be told apart; CRC-32 only"
        digests = []
    for part, record, digest in zip(order, records.values(), chain(digests, repeat(None)), strict=False):
        yield check(part, record, tuple(tensors.get(part, ())), digest)
    for problem in faults(source, records, f"{folder}{_OURS}" in records):
        part = problem.part.removeprefix(folder)
        yield replace(problem, part=part, tensors=tuple(path for path, _ in tensors.get(part, ())))


def members(source: ByteSource) -> dict[str, Record | Inflated]:
    """The records of the archive by their names within its folder: `data.pkl`, `data/0`, `version`.

    Raises:
        UnknownFormatError: an archive without `data.pkl`.
    """
    records = _directory(source)
    return _held(records, _folder(records, source.name))


def _directory(source: ByteSource) -> dict[str, Record | Inflated]:
    try:
        return read_directory(source)
    except TruncatedError as error:
        from statedict.formats.truncated import what_is_left

        raise what_is_left(source, error) from error


def _folder(records: dict[str, Record | Inflated], where: str) -> str:
    folders = [name[: -len("data.pkl")] for name in records if f"/{name}".endswith("/data.pkl")]
    if not folders:
        raise UnknownFormatError(f"{where}: is a zip archive without data.pkl, so torch.save did not write it")
    return min(folders, key=len)


def _held(records: dict[str, Record | Inflated], folder: str) -> dict[str, Record | Inflated]:
    return {name[len(folder) :]: record for name, record in records.items() if name.startswith(folder)}


def unpickle(
    records: dict[str, Record | Inflated],
    name: str = "data",
    big_endian: bool = False,
    constructors: Mapping[str, Any] = DATA,
) -> tuple[Any, dict[str, Storage]]:
    """What the pickle `NAME.pkl` holds, and the storages in `NAME/` that it refers to.

    Args:
        records: what `members` returns.
        name: `data` or `constants`.
        big_endian: the byte order of a file that does not say.
        constructors: the allow-list.
    """
    order = records.get("byteorder")
    swap = big_endian if order is None else bytes(order.read(0, min(order.size, 16))).strip() == b"big"
    storages: dict[str, Storage] = {}

    def storage(identifier: Any) -> TypedStorage:
        if type(identifier) is not tuple or len(identifier) < 5 or identifier[0] != "storage":
            raise CorruptFileError("a persistent id that names no storage")
        _, kind, key, device, numel = identifier[:5]
        described = type(kind) is StorageType and type(key) is str and type(device) is str and type(numel) is int
        if not described or numel < 0:
            raise CorruptFileError("a storage that is described wrongly")
        found = storages.get(key)
        if found is None:
            record = records.get(f"{name}/{key}")
            if record is None:
                raise CorruptFileError(f"storage {name}/{key} is missing from the archive; save it again")
            found = storages[key] = Storage(record, 0, record.size, device)
            if swap:
                found.source = swapped(record, 0, record.size, kind.dtype)
        if numel * kind.dtype.itemsize > found.nbytes:
            raise CorruptFileError(
                f"storage {name}/{key}: {numel:,} elements of {kind.dtype} need {numel * kind.dtype.itemsize:,} bytes, "
                f"the archive has {found.nbytes:,}; the file is damaged"
            )
        return TypedStorage(found, kind.dtype)

    pickle = records[f"{name}.pkl"]
    if isinstance(pickle, Inflated) and pickle.size > (8 << 20) + pickle.archive_size:
        raise LimitError(f"{pickle.label}: unpacks to {pickle.size:,} bytes, more than its archive; refused")
    return load(pickle.read(0, pickle.size), constructors, storage, pickle.label)[0], storages


def _is_module(value: Any) -> bool:
    """Whether it is a module of TorchScript, by the name that only its compiler gives."""
    return type(value) is Opaque and value.name.startswith("__torch__.") and isinstance(value.state, StateDict)


def _attributes(module: Opaque) -> Any:
    """The attributes of a module of TorchScript and of those below it."""
    pending, seen = [module.state], {id(module.state)}
    while pending:
        attributes = pending.pop()
        for name, value in attributes.items():
            if _is_module(value):
                attributes[name] = value.state
                if id(value.state) not in seen:
                    seen.add(id(value.state))
                    pending.append(value.state)
    return module.state


def _ours(record: Record | Inflated) -> dict[str, Any]:
    """The caller's strings and the digests in our own record."""
    import json

    text = bytes(record.read(0, record.size))
    check_json(text, record.label)
    try:
        found = json.loads(text)
        metadata, digests = found.get("metadata", {}), found.get("digests", {}).get("xxh3_128", [])
        if type(digests) is list and all(type(text) is str for text in [*metadata.values(), *digests]):
            return {"metadata": metadata, "digests": digests}
        raise ValueError("metadata or digests that are no strings")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{record.label}: is damaged ({error})") from error


def write(tree: Any, sink: Sink) -> None:
    """Write the tree; its leaves are LazyTensors and plain values.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse.
    """
    tensors = list({id(leaf): leaf for _, leaf in walk(tree) if isinstance(leaf, LazyTensor)}.values())
    segments, places = plan(tensors)
    by_tensor = {id(tensor): place for tensor, place in zip(tensors, places, strict=True)}

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        where = by_tensor.get(id(tensor))
        if where is None:
            raise UnsupportedError(f"{tensor!r}: a tensor in a key or in _metadata has no place in the file; drop it")
        strides = contiguous_strides(tensor.shape) if where.strides is None else where.strides
        return str(where.segment), segments[where.segment].size, where.offset, strides

    data = dumps(tree, place)
    storages = [(segment.source, segment.start, segment.size) for segment in segments]
    metadata = getattr(tree, "metadata", None)
    pack(sink, data, storages, {"byteorder": b"little"}, metadata)


def pack(
    sink: Sink,
    data: bytes,
    storages: Iterable[tuple[ByteSource, int, int]],
    records: dict[str, bytes],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write an archive.

    Args:
        sink: what it is written into.
        data: the pickle.
        storages: source, first byte and size of each.
        records: what stands between the pickle and the storages.
        metadata: strings of the caller's.
    """
    import json

    layout = ArchiveLayout()
    parts: list[Part] = []

    def add(name: str, source: ByteSource, start: int, size: int) -> None:
        _, header, data_at = layout.add("archive/" + name, size)
        parts.append(Part(data_at, source, start, size, header, layout.descriptor))

    def small(name: str, data: bytes) -> None:
        add(name, BytesSource(data, name), 0, len(data))

    small("data.pkl", data)
    for name, record in records.items():
        small(name, record)
    for index, storage in enumerate(storages):
        add(f"data/{index}", *storage)
    small("version", b"3\n")
    sink.reserve(layout.position)
    sums = sink.put(parts, crc=True)
    ours: dict[str, Any] = {"digests": {"xxh3_128": [s.digest for s in sums]}}
    if metadata:
        ours["metadata"] = dict(metadata)
    parts = []
    small(_OURS, json.dumps(ours, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"))
    sums += sink.put(parts, crc=True)
    directory = layout.directory([s.crc for s in sums])
    sink.put([Part(layout.position, BytesSource(directory), 0, len(directory))])
