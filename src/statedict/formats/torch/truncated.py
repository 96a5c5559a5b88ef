"""Why a file of torch.save has no directory at its end: it was cut, or a change in place was.

Records that PyTorch and we write say their sizes after their data only. The pickle, which comes first, says those of
the storages; every other record is small and ends at its data descriptor.
"""

from __future__ import annotations

import re
from shlex import quote

from statedict.errors import CorruptFileError, FormatError, TruncatedError
from statedict.formats.torch.structure import is_index
from statedict.io.source import Slice
from statedict.io.zip import read_directory
from statedict.io.zip_ends import END, FULL32, find_ends
from statedict.io.zip_table import ArchiveLayout, read_local
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
_SEARCH = 1 << 20
_TRIES = 100
_FARTHEST = 64 << 20  # bytes of an index that did not come to its end


def explain_cut(source: ByteSource, error: CorruptFileError) -> CorruptFileError | None:
    """Say what was cut and how much is there; None if that cannot be told.

    `error` says why the directory cannot be read.
    """
    end = _find_whole(source)
    if end:
        return CorruptFileError(
            f"{source.name}: what follows the end of the archive at byte {end:,} is not a whole index, as after a "
            "change in place that was cut short; what it was before is all there, "
            f"`truncate -s {end} {quote(source.name)}` brings it back"
        )
    if not isinstance(error, TruncatedError):
        return None
    try:
        return _count_records(source)
    except FormatError:
        return None


def _find_whole(source: ByteSource) -> int:
    """Find where a whole archive ends and a new index begins; 0 if nothing looks like that."""
    if source.remote:
        return 0
    window, begin, tries = b"", source.size, 0
    followed: set[int] = set()  # where an archive begins that is whole by itself
    while begin > max(0, source.size - _FARTHEST):
        step = min(begin, _SEARCH)
        begin -= step
        window = bytes(source.read(begin, step)) + window[: END.size]
        at = len(window)
        while (at := window.rfind(b"PK\5\6", 0, at)) >= 0:
            tries += 1
            end = begin + at + END.size
            if tries > _TRIES:
                return 0
            if end > source.size:
                continue
            if end in followed:
                return 0
            followed.update(reading.shift for reading in find_ends(source, end).readings[:1])
            if end < source.size and _is_begun(source, end) and _is_whole(Slice(source, 0, end)):
                return end
    return 0


def _is_begun(source: ByteSource, at: int) -> bool:
    """Whether our data.pkl seems to begin at a byte, or zeros, as on a disk that was not written yet."""
    head = bytes(source.read(at, min(1 << 10, source.size - at)))
    if not head.strip(b"\0"):
        return True
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if not name.isascii() or name.rpartition(b"/")[2] != b"data.pkl":
        return False
    layout = ArchiveLayout()
    layout.position = at
    header = layout.add(name.decode(), 0)[1]
    return header[: len(head)] == head[: len(header)]


def _is_whole(source: ByteSource) -> bool:
    try:
        return any(map(is_index, read_directory(source)))
    except FormatError:
        return False


def _count_records(source: ByteSource) -> TruncatedError:
    """Say how much of the file is there; FormatError if that cannot be told."""
    sizes, tensors = _list_storages(source)
    records = list(_walk(source, sizes))
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
    """Return the bytes of each storage in the first record, which must be the pickle, and the tensors in it."""
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

    name, start, _ = _read_header(source, 0) or ("", 0, 0)
    if name != "data.pkl":
        raise TruncatedError("the pickle does not come first")
    tree = load(source.read(start, min(source.size - start, _MAX_PICKLE)), DATA, storage, source.name)[0]
    names = {storage: name for name, storage in storages.items()}
    tensors = group_tensors(tree, lambda storage: names.get(storage, ""))
    return sizes, {name: [path for path, _ in those] for name, those in tensors.items()}


def _read_header(source: ByteSource, at: int) -> tuple[str, int, int] | None:
    """Return a record's name in its folder, where its data begin and their length, 0 if the header has none."""
    local = read_local(source, at)
    if local is None or at + 30 + local.length > source.size:
        return None
    return local.name.partition("/")[2], local.at, local.packed


def _walk(source: ByteSource, sizes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, end, begin of what follows) of each record whose header is there."""
    at = 0
    while header := _read_header(source, at):
        name, start, stated = header
        size = sizes.get(name, stated)
        if not size and name not in sizes:
            window = bytes(source.read(start, max(0, min(source.size - start, _MAX_PICKLE if not at else _SMALL))))
            marks = (match.start() for match in re.finditer(rb"PK\x07\x08", window))
            ends = (i for i in marks if window[i + 8 : i + 12] == i.to_bytes(4, "little"))
            size = next(ends, len(window) + 1)
        end = start + size
        at = end + (24 if size >= FULL32 else 16)
        yield name, end, min(at, source.size)
