"""What is left of a file of torch.save that was cut: its directory at the end is gone, the records' headers are not.

Records that PyTorch and we write say their sizes after their data only. The pickle, which comes first, says those of
the storages; every other record is small and ends at its data descriptor.
"""

from __future__ import annotations

from statedict.errors import FormatError, TruncatedError
from statedict.io.zip_ends import FULL32, find_all
from statedict.io.zip_table import read_local
from statedict.pickles.constructors import StorageType, TypedStorage
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.checks import group_tensors
from statedict.tensor.lazy import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource

_MAX_PICKLE = 256 << 20
_SMALL = 1 << 16


def what_is_left(source: ByteSource, error: TruncatedError) -> TruncatedError:
    """The error with how much of the file is there, where that can be told."""
    try:
        sizes, tensors = _list_storages(source)
        records = list(_walk(source, sizes))
    except (FormatError, UnicodeDecodeError):
        return error
    seen = {name for name, _, _ in records}
    total = max(end for _, end, _ in records) + sum(size for name, size in sizes.items() if name not in seen)
    whole = {name for name, end, _ in records if end <= source.size}
    cut = next((name for name, end, _ in records if end > source.size), "")
    names = tensors.get(cut, [])
    if records and not cut and bytes(source.read(records[-1][2], min(4, source.size - records[-1][2]))) == b"PK\1\2":
        return TruncatedError(
            f"{source.name}: is a zip archive of torch.save whose directory at the end is missing in part; all "
            f"{len(records):,} records are there; the file looks truncated, fetch it again, or bytes were appended"
        )
    where = f"ends within {cut}{f' ({names[0]})' if names else ''}" if cut else "ends between two records"
    least = f" of over {total:,}" if total > source.size else ""
    return TruncatedError(
        f"{source.name}: is a zip archive of torch.save whose directory at the end is missing: {source.size:,}{least} "
        f"bytes are there, {len(whole & sizes.keys()):,} of {len(sizes):,} storages whole, "
        f"and it {where}; the file looks truncated, fetch it again"
    )


def _list_storages(source: ByteSource) -> tuple[dict[str, int], dict[str, list[str]]]:
    """The bytes of each storage that the pickle in the first record refers to, and the tensors in them."""
    sizes: dict[str, int] = {}
    storages: dict[str, Storage] = {}

    def storage(identifier: Any) -> TypedStorage:
        _, kind, key, _, numel = identifier[:5]
        if type(kind) is not StorageType or type(key) is not str or type(numel) is not int or numel < 0:
            raise TruncatedError("a storage that is described wrongly")
        name = f"data/{key}"
        sizes[name] = max(numel * kind.dtype.itemsize, sizes.get(name, 0))
        storages.setdefault(name, Storage(source, 0, 0)).nbytes = sizes[name]
        return TypedStorage(storages[name], kind.dtype, 0, numel)

    name, start, _ = _header(source, 0)
    if name != "data.pkl":
        raise TruncatedError("the pickle does not come first")
    tree = load(source.read(start, min(source.size - start, _MAX_PICKLE)), DATA, storage, source.name)[0]
    names = {storage: name for name, storage in storages.items()}
    tensors = group_tensors(tree, lambda storage: names.get(storage, ""))
    return sizes, {name: [path for path, _ in those] for name, those in tensors.items()}


def _header(source: ByteSource, at: int) -> tuple[str, int, int]:
    """A record's name within its folder, where its data begin and, if its header says so, how long they are."""
    local = read_local(source, at)
    if local is None or local.at > source.size:
        raise TruncatedError("no record")
    return local.name.partition("/")[2], local.at, local.packed


def _walk(source: ByteSource, sizes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """(name, end, begin of what follows) of each record whose header is there."""
    at = 0
    while at + 30 < source.size:
        try:
            name, start, stated = _header(source, at)
        except (FormatError, UnicodeDecodeError):
            return
        size = sizes.get(name, stated)
        if not size and name not in sizes:
            window = bytes(source.read(start, max(0, min(source.size - start, _MAX_PICKLE if not at else _SMALL))))
            ends = (i for i in find_all(window, b"PK\7\x08") if window[i + 8 : i + 12] == i.to_bytes(4, "little"))
            size = next(ends, len(window) + 1)
        end = start + size
        at = end + (24 if size >= FULL32 else 16)
        yield name, end, min(at, source.size)
