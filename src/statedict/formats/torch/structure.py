"""The structure of zip archives of torch.save: what can be wrong with it, and how an index is replaced in place.

An archive that we wrote is rebuilt from the names, sizes and CRC-32 in its directory, and every byte that is not data
is compared with that. Any other archive has to agree with itself. One whose index was replaced in place is checked as
what it was before, and then as what was appended to that:

    [the archive as it was, whole][data.pkl][.statedict.json][central directory][end]

The new directory names the new data.pkl first and our record last, if there was one; between them stand the entries
of all other records, as they were. The file up to the header of its data.pkl is the archive that it was, whose index
may have been replaced, too. An entry `.format_version` is left out: by it PyTorch calculates where storages lie from
the order in which the pickle names them.

Records that PyTorch and we write say their sizes after their data only. So where a file was cut and has no directory at
its end, the pickle, which comes first, says those of the storages; every other record is small and ends at its data
descriptor.
"""

from __future__ import annotations

import re
import struct
from itertools import chain, islice, pairwise
from shlex import quote
from typing import NamedTuple

from statedict.errors import CorruptFileError, FormatError, TruncatedError
from statedict.io.source import Slice
from statedict.io.zip import OURS, ArchiveLayout, Inflated, end_records, find_end, read_directory
from statedict.io.zip_table import CENTRAL, DEFERRED, END, END64, FULL32, LOCATOR64, differs, find_ends, read_local
from statedict.pickles.constructors import StorageType, TypedStorage
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.checks import Check, Problem, group_tensors
from statedict.tensor.lazy import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.io.zip_table import Header
    from statedict.tensor.lazy import LazyTensor

    Records = Mapping[str, Record | Inflated]

INDEX = ("data.pkl", OURS, ".format_version")
_REMEDY = "fetch or save it again"
_MAX_PICKLE = 256 << 20
_SMALL = 1 << 16  # of any other record but a storage
_SEARCH = 1 << 20
_TRIES = 100
_FARTHEST = 64 << 20  # bytes of an index that did not come to its end


NO_SUMS = "PyTorch wrote it without CRC-32 (compute_crc32 = False)"


def has_sums(records: Records) -> bool:
    """Whether the storages in an archive have CRC-32; where PyTorch computes none it writes zeros."""
    filled = {name: record for name, record in records.items() if record.size}
    storages = [record for name, record in filled.items() if "/data/" in name] or [*filled.values()]
    return not storages or any(record.crc for record in storages)


def make_check(
    name: str,
    record: Record | Inflated,
    tensors: tuple[tuple[str, LazyTensor], ...] = (),
    digest: str | None = None,
    summed: bool = True,
) -> Check:
    """Make the check of a record; `summed` is what `has_sums` says of its archive."""
    return Check(name, record, 0, record.size, tensors, record.crc if summed or record.crc else None, digest)


def find_faults(source: ByteSource, records: Records, ours: str | None = None) -> Iterator[Problem]:
    """Yield what is wrong with an archive's structure.

    `records` are all that `read_directory` returned. `ours` is the name of our record; an archive that has it may be
    one that we laid out.
    """
    for older in [*find_earlier(source, records), None]:
        begin, kept = (older.source.size, older.kept) if older else (0, {})
        rebuilt = list(_compare_with_layout(source, records, begin, kept)) if ours in records else None
        # another program that packs our records anew differs in every header, damage in a few
        by_others = rebuilt is None or (older is None and 2 * len(rebuilt) > len(records))
        yield from _compare_with_itself(source, records, begin, kept) if by_others else rebuilt or ()
        if older is not None:
            source, records = older.source, older.records


def _compare_with_layout(source: ByteSource, records: Records, begin: int, kept: dict[str, bytes]) -> Iterator[Problem]:
    """Compare an archive with what we would have written; one problem a record."""
    layout = ArchiveLayout()
    layout.position = begin
    crcs = []
    for name, record in records.items():
        if name in kept:
            continue
        crcs.append(record.crc)
        at, header, data_at = layout.add(name, record.size)
        descriptor = layout.descriptor(record.crc, record.size)
        differences = chain(
            _compare(source, at, header, name, "local header"),
            _compare(source, data_at + record.size, descriptor, name, "data descriptor"),
        )
        yield from islice(differences, 1)
    end = build_directory(layout, crcs, kept.values())
    yield from _compare(source, layout.position, end, "zip directory", "directory at the end")
    yield from _check_surplus(source, layout.position + len(end), source.size, "after the end of the archive")


def _compare(source: ByteSource, at: int, expected: bytes, part: str, what: str) -> Iterator[Problem]:
    got = bytes(source.read(at, max(0, min(len(expected), source.size - at)))) if at < source.size else b""
    if got != expected:
        first = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), len(got))
        shown = (expected[first : first + 4].hex(" "), got[first : first + 4].hex(" ") or "the end of the file")
        yield Problem(part, f"its {what} is not as it was written, at byte {at + first:,} of the file", *shown, _REMEDY)


def _check_surplus(
    source: ByteSource, start: int, end: int, where: str, part: str = "zip archive"
) -> Iterator[Problem]:
    if start > end:
        yield Problem(part, f"parts of it overlap {where} (bytes {end:,} to {start:,})", remedy=_REMEDY)
    elif start < end:
        kind = "" if bytes(source.read(start, min(end - start, 1 << 20))).strip(b"\0") else " zero"
        what = f"{end - start:,}{kind} bytes that belong to nothing lie {where} (bytes {start:,} to {end:,})"
        yield Problem(part, what, remedy="find out what they are, or save it again without them")


def _compare_with_itself(source: ByteSource, records: Records, begin: int, kept: Iterable[str]) -> Iterator[Problem]:
    """Compare local headers with the directory, and check what lies between the records."""
    directory = find_end(source)
    ordered: list[tuple[int, str, Header | None]] = []
    at = directory.place
    for name, entry in read_entries(source, records).items():
        record = records[name].packed
        at += len(entry)
        header_at = record.entry.at
        local = read_local(source, header_at, record.entry.length)
        if name not in kept:
            ordered.append((header_at, name, local))
        if local is None:
            got = repr(bytes(source.read(header_at, 4)))[2:-1] if header_at + 30 <= source.size else "the end"
            where = f"at byte {header_at:,}, where the directory says that it begins,"
            yield Problem(name, f"{where} there is no record", "PK\\3\\4", got, _REMEDY)
        elif difference := differs(record.entry, local):
            yield Problem(name, difference, remedy=_REMEDY)
    ordered.sort()
    directory_end = directory.place + directory.size
    for (_, name, local), (following, *_) in pairwise([*ordered, (directory.place, "", None)]):
        if local is not None:
            yield from _check_after(source, name, local, records[name].packed, records[name].size, following)
    yield from _check_surplus(source, begin, ordered[0][0] if ordered else directory.place, "before the first record")
    yield from _check_surplus(source, at, directory_end, "in the zip directory")
    # `find_end` has checked the 64 bit end record and its locator, which PyTorch always writes
    wide = END64.size + LOCATOR64.size if directory.wide != directory.at else 0
    yield from _check_surplus(source, directory_end + wide, directory.at, "after the zip directory")


def _check_after(
    source: ByteSource, name: str, local: Header, record: Record, size: int, following: int
) -> Iterator[Problem]:
    """Check that only a record's data descriptor lies between its data and the next record."""
    end = local.at + record.size
    if local.flags & DEFERRED and end < following:
        tail = bytes(source.read(end, min(following - end, 24)))
        descriptors = [
            mark + struct.pack(layout, record.crc, record.size, size)
            for layout in (("<L2Q",) if max(record.size, size) >= FULL32 else ("<3L", "<L2Q"))
            for mark in (b"PK\7\x08", b"")
        ]
        found = next((descriptor for descriptor in descriptors if tail.startswith(descriptor)), None)
        if found is None:
            shown = descriptors[0].hex(" "), tail[: len(descriptors[0])].hex(" ")
            yield Problem(name, "its data descriptor is not that of the zip directory", *shown, _REMEDY)
            return
        end += len(found)
    yield from _check_surplus(source, end, following, "after its data", name)


class Earlier(NamedTuple):
    """An archive before its index was replaced: the first bytes of the file, and the records in its directory.

    `kept` are its entries that the newer directory has too, by name, in the newer one's order.
    """

    source: ByteSource
    records: Records
    kept: dict[str, bytes]


def is_index(name: str) -> bool:
    """Whether a new index replaces or drops a record."""
    return name.rpartition("/")[2] in INDEX


def read_entries(source: ByteSource, records: Records) -> dict[str, bytes]:
    """Return the raw entries of an archive's directory by name."""
    directory = find_end(source)
    raw = bytes(source.read(directory.place, directory.size))
    return dict(zip(records, _split(raw, len(records)), strict=True))


def _split(directory: bytes, count: int) -> Iterator[bytes]:
    begin = 0
    for _ in range(count):
        end = begin + 46 + sum(CENTRAL.unpack_from(directory, begin)[10:13])
        yield directory[begin:end]
        begin = end


def build_directory(layout: ArchiveLayout, crcs: list[int], kept: Iterable[bytes] = ()) -> bytes:
    """Build a directory and its end records: the layout's first record, the entries `kept`, its other records."""
    first, *others = _split(layout.directory(crcs), len(crcs))
    whole = [first, *kept, *others]
    body = b"".join(whole)
    return body + end_records(len(whole), len(body), layout.position)


def find_earlier(source: ByteSource, records: Records) -> list[Earlier]:
    """List what an archive was before each replacement of its index, the latest first."""
    found: list[Earlier] = []
    now = source
    while (older := _find_previous(source, now, records)) is not None:
        found.append(older)
        now, records = older.source, older.records
    return found


def _find_previous(file: ByteSource, now: ByteSource, records: Records) -> Earlier | None:
    start = next(iter(records.values())).packed.entry.at if records else 0
    # a directory below would be read again and again for archives one within the other
    if start <= END.size or find_end(now).place < start or bytes(file.read(start - END.size, 4)) != b"PK\5\6":
        return None
    source = Slice(file, 0, start)
    try:
        older = read_directory(source)
    except FormatError:
        return None
    kept = [name for name, record in records.items() if record.packed.entry.at < start]
    if not older.keys() >= set(kept) or not all(map(is_index, older.keys() - set(kept))):
        return None
    before = read_entries(source, older)
    return Earlier(source, older, {name: before[name] for name in kept})


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
