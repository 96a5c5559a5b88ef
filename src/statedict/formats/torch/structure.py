"""The structure of zip archives of torch.save: what can be wrong with it, and how an index is replaced in place.

An archive that we wrote is rebuilt from the names, sizes and CRC-32 in its directory, and every byte that is not data
is compared with that. Any other archive has to agree with itself. One whose index was replaced in place is checked as
what it was before, and then as what was appended to that:

    [the archive as it was, whole][data.pkl][.statedict.json][central directory][end]

The new directory names the new data.pkl first and our record last, if there was one; between them stand the entries
of all other records, as they were. The file up to the header of its data.pkl is the archive that it was, whose index
may have been replaced, too. An entry `.format_version` is left out: by it PyTorch calculates where storages lie from
the order in which the pickle names them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain, islice, pairwise

from statedict.errors import FormatError
from statedict.io.source import Slice
from statedict.io.zip import Inflated, find_end, read_directory
from statedict.io.zip_ends import END, END64, FULL32, LOCATOR64
from statedict.io.zip_table import CENTRAL, DEFERRED, OURS, ArchiveLayout, differs, end_records, read_local
from statedict.tensor.checks import Check, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.io.zip_table import Header
    from statedict.tensor.lazy import LazyTensor

    Records = Mapping[str, Record | Inflated]

INDEX = ("data.pkl", OURS, ".format_version")
_REMEDY = "fetch or save it again"


def make_check(
    name: str, record: Record | Inflated, tensors: tuple[tuple[str, LazyTensor], ...] = (), digest: str | None = None
) -> Check:
    """Make the check of a record."""
    return Check(name, record, 0, record.size, tensors, record.crc, digest)


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


@dataclass(slots=True)
class Earlier:
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
