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
from typing import NamedTuple

from statedict.errors import CorruptFileError, FormatError, LimitError, UnknownFormatError, UnsupportedError
from statedict.io.json import parse
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource, swap_bytes
from statedict.io.zip import OURS, ArchiveLayout, Inflated, read_directory
from statedict.pickles.budget import Together
from statedict.pickles.constructors import StorageType, TypedStorage, storage_type
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.pickles.writer import dumps
from statedict.tensor.arrays import contiguous_strides
from statedict.tensor.checks import group_tensors, refusal, tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.segments import Segment, plan
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk
from statedict.values import Member, Opaque, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, NoReturn

    from statedict.io.pipeline import Sink, Sums
    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.tensor.checks import Found

    Records = dict[str, Record | Inflated]

NDARRAY = "numpy.ndarray"
RECORDS = {"byteorder": b"little"}


def read(source: ByteSource) -> Any:
    """Read the tree lazily: only the pickle is read."""
    records = read_members(source)
    tree, _ = _read_tree(records)
    if OURS in records:
        notes, _ = parse_our_record(records[OURS])
        tree = _add_classes(tree, notes.classes) if notes.classes else tree
        if isinstance(tree, StateDict):
            tree.metadata = notes.metadata
    return tree


class Notes(NamedTuple):
    """What a pickle cannot say: the caller's strings, and the classes of some values by path."""

    metadata: dict[str, str]
    classes: dict[str, str]


NO_NOTES = Notes({}, {})


def get_notes(tree: Any, leaves: Iterable[Any]) -> Notes:
    """Return what the pickle of a tree with these leaves will not say."""
    classes: dict[str, str] = {}
    if any(map(_get_class, leaves)):
        flat = StateDict({"": tree}).flatten()
        classes = {path: kind for path, leaf in flat.items() if (kind := _get_class(leaf))}
    return Notes(getattr(tree, "metadata", {}), classes)


def _get_class(leaf: Any) -> str:
    """Return the class of a value that its pickle will not say, or nothing."""
    if isinstance(leaf, LazyTensor):
        return NDARRAY if leaf.ndarray else ""
    return leaf.kind if isinstance(leaf, Member) else ""


def _add_classes(tree: Any, classes: Mapping[str, str]) -> Any:
    flat = StateDict({"": tree}).flatten()
    for path in classes.keys() & flat.keys():
        leaf, kind = flat[path], classes[path]
        if isinstance(leaf, LazyTensor) and kind == NDARRAY:
            flat[path] = leaf.replace(ndarray=True)
        elif type(leaf) in (str, int):  # else another program changed the pickle
            flat[path] = member(kind, leaf)
    return flat.unflatten()[""]


def _read_tree(records: Records) -> tuple[Any, dict[Storage, str]]:
    """Return the tree, and the record of each storage."""
    with Together():
        tree, storages = unpickle(records)
        places = {storage: f"data/{key}" for key, storage in storages.items()}
        if "constants.pkl" not in records or not _is_module(tree):
            return tree, places
        tree = _unwrap_modules(tree)
        constants, storages = unpickle(records, "constants")
    if isinstance(constants, LazyTensor) or constants:
        tree.setdefault("constants", constants)
    return tree, places | {storage: f"constants/{key}" for key, storage in storages.items()}


def checks(source: ByteSource) -> Iterator[Found]:
    """List every record with its CRC-32 and, if we wrote it, its digest; check the archive's structure."""
    from statedict.formats.torch.structure import NO_SUMS, find_earlier, find_faults, has_sums, make_check

    records = read_records(source)
    summed = has_sums(records)
    if not summed:
        yield NO_SUMS
    folder, digests = "", list[str]()
    tensors: dict[str, list[tuple[str, LazyTensor]]] = {}
    try:
        folder = find_folder(records, source.name)
        held = _strip_folder(records, folder)
        if OURS in held:
            _, digests = parse_our_record(held[OURS])
        tree, places = _read_tree(held)
        tensors = group_tensors(tree, lambda storage: places.get(storage, "data.pkl"))
    except FormatError as error:
        yield refusal(error, source.name)
    order = [name.removeprefix(folder) or name for name in records]
    if digests and not is_in_order(order, digests):
        yield "another program packed the archive anew, so its digests cannot be told apart; CRC-32 only"
        digests = []
    for part, record, digest in zip(order, records.values(), chain(digests, repeat(None)), strict=False):
        yield make_check(part, record, tuple(tensors.get(part, ())), digest, summed)
    before = find_earlier(source, records)
    for older in before:
        for name, record in older.records.items():
            if name not in older.kept:
                part = f"{name.removeprefix(folder)} of the first {older.source.size:,} bytes"
                yield make_check(part, record, summed=summed)
    if before:
        yield (
            f"its index was replaced in place, {len(before):,}×; its first {before[0].source.size:,} bytes are what it "
            "was before; write it anew to drop that"
        )
    for problem in find_faults(source, records, folder + OURS):
        part = problem.part.removeprefix(folder)
        yield problem._replace(part=part, tensors=tuple(path for path, _ in tensors.get(part, ())))


def read_members(source: ByteSource) -> Records:
    """Return the records by their names in the archive's folder: `data.pkl`, `data/0`, `version`."""
    records = read_records(source)
    return _strip_folder(records, find_folder(records, source.name))


def read_records(source: ByteSource) -> Records:
    """Return the records by full name; without a directory, the error says what is there instead."""
    try:
        return read_directory(source)
    except CorruptFileError as error:
        from statedict.formats.torch.structure import explain_cut

        found = explain_cut(source, error)
        if found is None:
            raise
        raise found from error


def find_folder(records: Records, where: str) -> str:
    """Return the folder of `data.pkl`, with its slash; PyTorch looks in that of the first record."""
    first = next(iter(records), "").partition("/")[0] + "/"
    if f"{first}data.pkl" in records:
        return first
    folders = [name[: -len("data.pkl")] for name in records if f"/{name}".endswith("/data.pkl")]
    if not folders:
        raise UnknownFormatError(f"{where}: is a zip archive without data.pkl, so torch.save did not write it")
    return min(folders, key=len)


def _strip_folder(records: Records, folder: str) -> Records:
    return {name[len(folder) :]: record for name, record in records.items() if name.startswith(folder)}


def read_byteorder(records: Mapping[str, Record | Inflated], folder: str = "") -> bytes | None:
    """Return what the record `byteorder` says; None without one."""
    order = records.get(folder + "byteorder")
    return None if order is None else bytes(order.read(0, min(order.size, 16))).strip()


def unpickle(
    records: Records, name: str = "data", big_endian: bool = False, constructors: Mapping[str, Any] = DATA
) -> tuple[Any, dict[str, Storage]]:
    """Return the object in `NAME.pkl`, and the storages in `NAME/` that it refers to.

    `records` come from `read_members`; `big_endian` is the byte order of a file that does not say.
    """
    order = read_byteorder(records)
    swap = big_endian if order is None else order == b"big"
    storages: dict[str, Storage] = {}

    def storage(identifier: Any) -> TypedStorage:
        if type(identifier) is not tuple or len(identifier) < 5 or identifier[0] != "storage":
            raise CorruptFileError("a persistent id that does not name a storage")
        _, kind, key, device, numel = identifier[:5]
        if type(key) is not str or type(device) is not str or type(numel) is not int or numel < 0:
            raise CorruptFileError("a storage that is described wrongly")
        record = records.get(f"{name}/{key}")
        if type(kind) is not StorageType:
            kind = storage_type(kind, numel, record.size if record is not None else 0)
            if kind is None:
                raise CorruptFileError("a storage that is described wrongly")
        found = storages.get(key)
        if found is None:
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
    """Whether a value is a TorchScript module, by a name that only its compiler gives."""
    return type(value) is Opaque and value.name.startswith("__torch__.") and isinstance(value.state, StateDict)


def _unwrap_modules(module: Opaque) -> Any:
    """Replace a TorchScript module, and those below it, by their attributes."""
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


def parse_our_record(record: Record | Inflated) -> tuple[Notes, list[str]]:
    """Return our notes, and the digests of the other records."""
    found = parse(bytes(record.read(0, record.size)), record.label, surrogates=True)
    try:
        notes = Notes(*(found.get(name, {}) for name in Notes._fields))
        digests = found.get("digests", {}).get("xxh3_128", [])
        texts = [text for some in notes for text in some.values()]
        if type(digests) is list and all(type(text) is str for text in [*texts, *digests]):
            return notes, digests
        raise ValueError("metadata, classes or digests that are not strings")
    except (ValueError, AttributeError) as error:
        raise CorruptFileError(f"{record.label}: is damaged ({error})") from error


def is_in_order(names: list[str], digests: list[str]) -> bool:
    """Whether records with these names are as we wrote them: each but the last, ours, has a digest."""
    return (names[0], names[-1], len(names)) == ("data.pkl", OURS, len(digests) + 1)


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors and plain values."""
    Packing(*pickle_tree(tree)).write(sink)


def pickle_tree(tree: Any, path: str = "") -> tuple[bytes, list[Segment], Notes]:
    """Return the pickle of a tree, its storages, and what it does not say; `path` names the root in messages."""
    values = [leaf for _, leaf in walk(tree)]
    leaves = {id(leaf): leaf for leaf in values if isinstance(leaf, LazyTensor)}.values()
    noted = (tensors_of(leaf.attributes) for leaf in leaves if leaf.attributes)
    tensors = [*leaves, *{id(tensor): tensor for found in noted for _, tensor in found}.values()]
    segments, places = plan(tensors)
    by_tensor = {id(tensor): place for tensor, place in zip(tensors, places, strict=True)}

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        where = by_tensor.get(id(tensor)) or refuse_place(tensor)
        strides = contiguous_strides(tensor.shape) if where.strides is None else where.strides
        return str(where.segment), segments[where.segment].size, where.offset, strides

    return dumps(tree, place, path), segments, get_notes(tree, values)


def refuse_place(tensor: LazyTensor) -> NoReturn:
    """Refuse a tensor that is not a leaf of the tree."""
    raise UnsupportedError(f"{tensor!r}: a tensor in a key or in _metadata has no place in the checkpoint; drop it")


class Packing:
    """An archive that is laid out and not yet written.

    `records` go between the pickle `data` and the storages; `notes` go into our record; `at` is the offset in the
    output. `size` counts all bytes; `parts` are the records but the last one, at their offsets.
    """

    __slots__ = ("_at", "_last", "_layout", "_notes", "parts", "size")

    def __init__(
        self,
        data: bytes,
        storages: Iterable[Segment],
        notes: Notes = NO_NOTES,
        records: dict[str, bytes] = RECORDS,
        at: int = 0,
    ) -> None:
        self._layout, self._notes, self._at = ArchiveLayout(), notes, at
        self.parts: list[Part] = []
        small = {"data.pkl": data, **records}
        for name, (source, start, size) in [
            *((name, (BytesSource(record, name), 0, len(record))) for name, record in small.items()),
            *((f"data/{index}", storage) for index, storage in enumerate(storages)),
            ("version", (BytesSource(b"3\n", "version"), 0, 2)),
        ]:
            _, header, data_at = self._layout.add("archive/" + name, size)
            self.parts.append(Part(at + data_at, source, start, size, header, self._layout.descriptor))
        self._last = self._layout.add(f"archive/{OURS}", len(encode_our_record(["0" * 32] * len(self.parts), notes)))
        self.size = self._layout.position + len(self._layout.directory([0] * (len(self.parts) + 1)))

    def write(self, sink: Sink) -> None:
        """Write the archive."""
        sink.reserve(self.size)
        sink.put([self.end(sink.put(self.parts, crc=True))])

    def end(self, sums: list[Sums]) -> Part:
        """Return what follows the parts, given their sums: our record and the directory."""
        from zlib_ng.zlib_ng import crc32

        own = encode_our_record([s.digest for s in sums], self._notes)
        crc = crc32(own)
        rest = own + self._layout.descriptor(crc, len(own)) + self._layout.directory([*(s.crc for s in sums), crc])
        _, header, at = self._last
        return Part(self._at + at, BytesSource(rest), 0, len(rest), header)


def encode_our_record(digests: list[str], notes: Notes) -> bytes:
    """Encode our record: the digests of those before it, and our notes."""
    import json

    content: dict[str, Any] = {"digests": {"xxh3_128": digests}}
    content |= {name: table for name, table in notes._asdict().items() if table}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
