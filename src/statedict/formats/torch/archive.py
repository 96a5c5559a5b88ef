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

from statedict.errors import (
    CorruptFileError,
    FormatError,
    LimitError,
    TruncatedError,
    UnknownFormatError,
    UnsupportedError,
)
from statedict.formats.torch.packing import OURS, RECORDS, Packing
from statedict.io.json import parse
from statedict.io.source import swap_bytes
from statedict.io.zip import Inflated, read_directory
from statedict.pickles.budget import Together
from statedict.pickles.constructors import StorageType, TypedStorage, storage_type
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.pickles.writer import dumps
from statedict.tensor.arrays import contiguous_strides
from statedict.tensor.checks import tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.segments import plan
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from statedict.formats.torch.packing import Stored
    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.tensor.checks import Found


def read(source: ByteSource) -> Any:
    """The tree in the file, lazily: the pickle is read, no storage is.

    Raises:
        UnknownFormatError: an archive without `data.pkl`.
        CorruptFileError: a storage that the pickle refers to is missing or too small, or the archive is damaged.
    """
    records = members(source)
    tree, _ = _tree(records)
    if OURS in records and isinstance(tree, StateDict):
        tree.metadata = parse_our_record(records[OURS])["metadata"]
    return tree


def _tree(records: dict[str, Record | Inflated]) -> tuple[Any, dict[str, dict[str, Storage]]]:
    """The tree, and the storages by folder and key."""
    with Together():
        tree, storages = unpickle(records)
        places = {"data": storages}
        if "constants.pkl" not in records or not _is_module(tree):
            return tree, places
        tree = _attributes(tree)
        constants, places["constants"] = unpickle(records, "constants")
    if isinstance(constants, LazyTensor) or constants:
        tree.setdefault("constants", constants)
    return tree, places


def checks(source: ByteSource) -> Iterator[Found]:
    """Every record with its CRC-32 and, where we wrote it, its digest; the structure of the archive."""
    from dataclasses import replace

    from statedict.formats.torch.faults import check, faults
    from statedict.formats.torch.replaced_index import earlier
    from statedict.tensor.checks import group_tensors, refusal

    records = directory(source)
    folder, digests = "", list[str]()
    tensors: dict[str, list[tuple[str, LazyTensor]]] = {}
    try:
        folder = folder_of(records, source.name)
        held = _has_record(records, folder)
        if OURS in held:
            digests = parse_our_record(held[OURS])["digests"]
        tree, storages = _tree(held)
        places = {found: f"{where}/{key}" for where, those in storages.items() for key, found in those.items()}
        tensors = group_tensors(tree, lambda storage: places.get(storage, "data.pkl"))
    except FormatError as error:
        yield refusal(error, source.name)
    order = [name.removeprefix(folder) or name for name in records]
    if digests and not in_order(order, digests):
        yield "another program packed the archive anew, so its digests cannot be told apart; CRC-32 only"
        digests = []
    for part, record, digest in zip(order, records.values(), chain(digests, repeat(None)), strict=False):
        yield check(part, record, tuple(tensors.get(part, ())), digest)
    before = earlier(source, records)
    for older in before:
        for name, record in older.replaced.items():
            yield check(f"{name.removeprefix(folder)} of the first {older.source.size:,} bytes", record)
    if before:
        yield (
            f"its index was replaced in place, {len(before):,}×; its first {before[0].source.size:,} bytes are what it "
            "was before, and a file that is written anew has none of that"
        )
    for problem in faults(source, records, folder + OURS):
        part = problem.part.removeprefix(folder)
        yield replace(problem, part=part, tensors=tuple(path for path, _ in tensors.get(part, ())))


def members(source: ByteSource) -> dict[str, Record | Inflated]:
    """The records of the archive by their names within its folder: `data.pkl`, `data/0`, `version`.

    Raises:
        UnknownFormatError: an archive without `data.pkl`.
    """
    records = directory(source)
    return _has_record(records, folder_of(records, source.name))


def in_order(order: list[str], digests: list[str]) -> bool:
    """Whether digests are those of the records of an archive, of which the names are given."""
    return (order[0], order[-1], len(order)) == ("data.pkl", OURS, len(digests) + 1)


def directory(source: ByteSource) -> dict[str, Record | Inflated]:
    """The records of the archive by their full names.

    Raises:
        CorruptFileError: there is no directory that makes sense; the message says what is there.
    """
    try:
        return read_directory(source)
    except CorruptFileError as error:
        from statedict.formats.torch.replaced_index import cut_short
        from statedict.formats.torch.truncated import what_is_left

        found = cut_short(source)
        if found is None and isinstance(error, TruncatedError):
            found = what_is_left(source, error)
        if found is None:
            raise
        raise found from error


def folder_of(records: dict[str, Record | Inflated], where: str) -> str:
    """What stands before `data.pkl` in its name: the first folder of the first record, where PyTorch looks, if it does.

    Raises:
        UnknownFormatError: there is none.
    """
    first = next(iter(records), "").partition("/")[0] + "/"
    if f"{first}data.pkl" in records:
        return first
    folders = [name[: -len("data.pkl")] for name in records if f"/{name}".endswith("/data.pkl")]
    if not folders:
        raise UnknownFormatError(f"{where}: is a zip archive without data.pkl, so torch.save did not write it")
    return min(folders, key=len)


def _has_record(records: dict[str, Record | Inflated], folder: str) -> dict[str, Record | Inflated]:
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
        described = type(key) is str and type(device) is str and type(numel) is int
        if not described or numel < 0:
            raise CorruptFileError("a storage that is described wrongly")
        if type(kind) is not StorageType:
            record = records.get(f"{name}/{key}")
            kind = storage_type(kind, numel, record.size if record is not None else 0)
            if kind is None:
                raise CorruptFileError("a storage that is described wrongly")
        found = storages.get(key)
        if found is None:
            record = records.get(f"{name}/{key}")
            if record is None:
                raise CorruptFileError(f"storage {name}/{key} is missing from the archive; save it again")
            found = storages[key] = Storage(record, 0, record.size, device)
            if swap and kind.dtype.kind == "raw":
                raise FormatError(
                    f"storage {name}/{key}: {kind.dtype} in the byte order of another machine is not known"
                )
            if swap:
                found.source = swap_bytes(record, 0, record.size, kind.dtype)
        if numel * kind.dtype.itemsize > found.nbytes:
            raise CorruptFileError(
                f"storage {name}/{key}: {numel:,} elements of {kind.dtype} need {numel * kind.dtype.itemsize:,} bytes, "
                f"the archive has {found.nbytes:,}; the file is damaged"
            )
        return TypedStorage(found, kind.dtype)

    pickle = records[f"{name}.pkl"]
    if isinstance(pickle, Inflated) and pickle.size > (8 << 20) + pickle.packed.base.size:
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


def parse_our_record(record: Record | Inflated) -> dict[str, Any]:
    """The caller's strings and the digests in our own record."""
    found = parse(bytes(record.read(0, record.size)), record.label, surrogates=True)
    try:
        metadata, digests = found.get("metadata", {}), found.get("digests", {}).get("xxh3_128", [])
        if type(digests) is list and all(type(text) is str for text in [*metadata.values(), *digests]):
            return {"metadata": metadata, "digests": digests}
        raise ValueError("metadata or digests that are no strings")
    except (ValueError, AttributeError) as error:
        raise CorruptFileError(f"{record.label}: is damaged ({error})") from error


def write(tree: Any, sink: Sink) -> None:
    """Write the tree; its leaves are LazyTensors and plain values.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse.
    """
    data, storages = pickle_tree(tree)
    pack(sink, data, storages, RECORDS, getattr(tree, "metadata", None))


def pickle_tree(tree: Any, path: str = "") -> tuple[bytes, list[Stored]]:
    """The pickle of a tree, and its storages: source, first byte and size of each.

    Args:
        tree: of LazyTensors and plain values.
        path: what messages call the root.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse.
    """
    leaves = {id(leaf): leaf for _, leaf in walk(tree) if isinstance(leaf, LazyTensor)}.values()
    noted = (tensors_of(leaf.attributes) for leaf in leaves if leaf.attributes)
    tensors = [*leaves, *{id(tensor): tensor for found in noted for _, tensor in found}.values()]
    segments, places = plan(tensors)
    by_tensor = {id(tensor): place for tensor, place in zip(tensors, places, strict=True)}

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        where = by_tensor.get(id(tensor))
        if where is None:
            raise placeless(tensor)
        strides = contiguous_strides(tensor.shape) if where.strides is None else where.strides
        return str(where.segment), segments[where.segment].size, where.offset, strides

    return dumps(tree, place, path), [(segment.source, segment.start, segment.size) for segment in segments]


def placeless(tensor: LazyTensor) -> UnsupportedError:
    """The error for a tensor that is no leaf of the tree."""
    return UnsupportedError(f"{tensor!r}: a tensor in a key or in _metadata has no place in the file; drop it")


def pack(
    sink: Sink,
    data: bytes,
    storages: Iterable[Stored],
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
    archive = Packing(data, storages, records, metadata)
    sink.reserve(archive.size)
    archive.write(sink)
