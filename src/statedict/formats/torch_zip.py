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

from statedict.arrays import contiguous_strides
from statedict.errors import CorruptFileError, UnknownFormatError
from statedict.io.pipeline import Part, transfer, write_at
from statedict.io.source import BytesSource, swapped
from statedict.io.zip import ArchiveLayout, read_directory
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
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.io.zip import Inflated, Record

_OURS = ".statedict.json"


def read(source: ByteSource) -> Any:
    """The tree in the file, lazily: the pickle is read, no storage is.

    Raises:
        UnknownFormatError: an archive without `data.pkl`.
        CorruptFileError: a storage that the pickle refers to is missing or too small, or the archive is damaged.
    """
    records = read_directory(source)
    folders = [name[: -len("data.pkl")] for name in records if name.rpartition("/")[2] == "data.pkl"]
    if not folders:
        raise UnknownFormatError(f"{source.name}: is a zip archive without data.pkl, so torch.save did not write it")
    folder = min(folders, key=len)
    order = records.get(folder + "byteorder")
    swap = order is not None and bytes(order.read(0, min(order.size, 16))).strip() == b"big"
    tree = _tree(records, folder, "data", swap)
    ours = records.get(folder + _OURS)
    if ours is not None and isinstance(tree, StateDict):
        tree.metadata = _metadata(ours)
    if folder + "constants.pkl" in records and _is_module(tree):
        tree = _attributes(tree)
        constants = _tree(records, folder, "constants", swap)
        if constants:
            tree.setdefault("constants", constants)
    return tree


def _tree(records: dict[str, Record | Inflated], folder: str, name: str, swap: bool) -> Any:
    """What the pickle `NAME.pkl` holds over the storages in `NAME/`."""
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
            record = records.get(f"{folder}{name}/{key}")
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

    pickle = records[f"{folder}{name}.pkl"]
    return load(pickle.read(0, pickle.size), DATA, storage, pickle.label)[0]


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


def _metadata(record: Record | Inflated) -> dict[str, str]:
    """The caller's strings in our own record."""
    import json

    try:
        metadata = json.loads(bytes(record.read(0, record.size))).get("metadata", {})
        if all(type(value) is str for value in metadata.values()):
            return metadata  # type: ignore[no-any-return]
        raise ValueError("metadata that is no strings")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{record.label}: is damaged ({error})") from error


def write(tree: Any, fd: int) -> None:
    """Write the tree into an open file; its leaves are LazyTensors and plain values.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse.
    """
    import json

    tensors = list({id(leaf): leaf for _, leaf in walk(tree) if isinstance(leaf, LazyTensor)}.values())
    segments, places = plan(tensors)
    by_tensor = {id(tensor): place for tensor, place in zip(tensors, places, strict=True)}

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        where = by_tensor[id(tensor)]
        strides = contiguous_strides(tensor.shape) if where.strides is None else where.strides
        return str(where.segment), segments[where.segment].size, where.offset, strides

    layout = ArchiveLayout()
    parts: list[Part] = []

    def add(name: str, source: ByteSource, start: int, size: int) -> None:
        _, header, data_at = layout.add("archive/" + name, size)
        parts.append(Part(data_at, source, start, size, header, layout.descriptor))

    def small(name: str, data: bytes) -> None:
        add(name, BytesSource(data, name), 0, len(data))

    small("data.pkl", dumps(tree, place))
    small("byteorder", b"little")
    for index, segment in enumerate(segments):
        add(f"data/{index}", segment.source, segment.start, segment.size)
    small("version", b"3\n")
    sums = transfer(fd, parts, crc=True)
    extra: dict[str, Any] = {"digests": {"xxh3_128": [s.digest for s in sums]}}
    if getattr(tree, "metadata", None):
        extra["metadata"] = dict(tree.metadata)
    parts = []
    small(_OURS, json.dumps(extra, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape"))
    sums += transfer(fd, parts, crc=True)
    write_at(fd, layout.position, layout.directory([s.crc for s in sums]))
