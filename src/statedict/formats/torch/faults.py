"""What can be wrong in a zip archive besides what its bytes say: its headers against each other, gaps and overlaps.

An archive that we wrote is rebuilt from the names, sizes and CRC-32 in its directory, and every byte that is no data is
compared with that. Any other one has to agree with itself. One whose index was replaced in place is looked at as what
it was before, and then as what was appended to that.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from statedict.formats.torch.replaced_index import directory, earlier, entries, record_bytes
from statedict.io.zip import find_end
from statedict.io.zip_ends import END, END64, FULL16, FULL32, LOCATOR64
from statedict.io.zip_table import DEFERRED, LOCAL, ArchiveLayout, differs, read_local
from statedict.tensor.checks import Check, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from statedict.formats.torch.replaced_index import Earlier
    from statedict.io.source import ByteSource
    from statedict.io.zip import Inflated, Record
    from statedict.tensor.lazy import LazyTensor

    Records = Mapping[str, Record | Inflated]

_REMEDY = "fetch or save it again"


def check(
    name: str, record: Record | Inflated, tensors: tuple[tuple[str, LazyTensor], ...] = (), digest: str | None = None
) -> Check:
    """A record as a part to check."""
    return Check(name, record, 0, record.size, tensors, record.crc, digest)


def faults(source: ByteSource, records: Records, ours: str | None = None) -> Iterator[Problem]:
    """What is wrong with the archive's structure.

    Args:
        source: the archive.
        records: what `read_directory` returned for it, all of them.
        ours: the name of our record; an archive that has it may be one that we laid out.
    """
    for older in [*earlier(source, records), None]:
        rebuilt = list(_against_layout(source, records, older)) if ours in records else None
        # another program that packs our records anew differs in every header, damage in a few
        by_others = rebuilt is None or (older is None and 2 * len(rebuilt) > len(records))
        yield from _against_itself(source, records, older) if by_others else rebuilt or ()
        if older is not None:
            source, records = older.source, older.records


def _against_layout(source: ByteSource, records: Records, older: Earlier | None) -> Iterator[Problem]:
    """The differences from the archive that we would have written, one a record."""
    layout = ArchiveLayout()
    layout.position = older.source.size if older else 0
    kept = older.kept if older else {}
    crcs = []
    for name, record in records.items():
        if name in kept:
            continue
        crcs.append(record.crc)
        at, header, data_at = layout.add(name, record.size)
        tail_at, tail = data_at + record.size, layout.descriptor(record.crc, record.size)
        for where, expected, what in ((at, header, "local header"), (tail_at, tail, "data descriptor")):
            problem = _differs(source, where, expected, name, what)
            if problem is not None:
                yield problem
                break
    end = directory(layout, crcs, kept.values())
    for problem in (
        _differs(source, layout.position, end, "zip directory", "directory at the end"),
        _surplus(source, layout.position + len(end), source.size, "after the end of the archive"),
    ):
        if problem is not None:
            yield problem


def _differs(source: ByteSource, at: int, expected: bytes, part: str, what: str) -> Problem | None:
    got = bytes(source.read(at, max(0, min(len(expected), source.size - at)))) if at < source.size else b""
    if got == expected:
        return None
    first = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), len(got))
    shown = (expected[first : first + 4].hex(" "), got[first : first + 4].hex(" ") or "the end of the file")
    return Problem(part, f"its {what} is not as it was written, at byte {at + first:,} of the file", *shown, _REMEDY)


def _surplus(source: ByteSource, start: int, end: int, where: str, part: str = "zip archive") -> Problem | None:
    if start == end:
        return None
    if start > end:
        return Problem(part, f"parts of it overlap {where} (bytes {end:,} to {start:,})", remedy=_REMEDY)
    kind = "" if bytes(source.read(start, min(end - start, 1 << 20))).strip(b"\0") else " zero"
    return Problem(
        part, f"{end - start:,}{kind} bytes that belong to nothing lie {where} (bytes {start:,} to {end:,})",
        remedy="find out what they are, or save it again without them",
    )  # fmt: skip


def _against_itself(source: ByteSource, records: Records, older: Earlier | None) -> Iterator[Problem]:
    """Local headers against the directory, and what lies between the records."""
    count, directory_at, directory_size, end_at = find_end(source)
    kept = older.kept if older else {}
    ordered: list[tuple[int, str]] = []
    at = 0
    for name, entry in entries(source, records).items():
        record = record_bytes(records[name])
        at += len(entry)
        if name not in kept:
            ordered.append((record.entry.at, name))
        yield from _local(source, name, record)
    ordered.sort()
    wide = _wide_end(source, count, directory_at, directory_size, end_at)
    first = ordered[0][0] if ordered else directory_at
    for (_, name), (following, _) in pairwise([*ordered, (directory_at, "")]):
        yield from _after(source, name, record_bytes(records[name]), records[name].size, following)
    for start, end, where in (
        (older.source.size if older else 0, first, "before the first record"),
        (directory_at + at, directory_at + directory_size, "in the zip directory"),
        (directory_at + directory_size + len(wide), end_at, "after the zip directory"),
    ):
        surplus = _surplus(source, start, end, where)
        if surplus is not None:
            yield surplus
    _, disk, first_disk, here, whole, *_ = END.unpack(source.read(end_at, 22))
    if not {disk, first_disk} <= {0, FULL16} or here != whole or whole not in (count, FULL16):
        yield Problem("zip archive", "its end record contradicts itself", remedy=_REMEDY)


def _wide_end(source: ByteSource, count: int, at: int, size: int, end_at: int) -> bytes:
    """The 64 bit end records if they are there and say what the directory is; PyTorch always writes them."""
    found = bytes(source.read(at + size, min(76, max(0, end_at - at - size))))
    if len(found) < 76:
        return b""
    magic, length, _, _, disk, first_disk, here, whole, *place = END64.unpack_from(found)
    locator = LOCATOR64.pack(b"PK\6\7", 0, at + size, 1)
    right = (b"PK\6\6", 44, 0, 0, count, count, [size, at], locator)
    return found if right == (magic, length, disk, first_disk, here, whole, place, found[56:]) else b""


def _local(source: ByteSource, name: str, record: Record) -> Iterator[Problem]:
    """Where a record's own header and the directory disagree."""
    at = record.entry.at
    local = read_local(source, at, record.entry.length)
    if local is None:
        got = repr(bytes(source.read(at, 4)))[2:-1] if at + 30 <= source.size else "the end"
        where = f"at byte {at:,}, where the directory says that it begins,"
        yield Problem(name, f"{where} there is no record", "PK\\3\\4", got, _REMEDY)
    elif difference := differs(record.entry, local):
        yield Problem(name, difference, remedy=_REMEDY)


def _after(source: ByteSource, name: str, record: Record, size: int, following: int) -> Iterator[Problem]:
    """What lies between a record's data and the next record: a data descriptor, or nothing."""
    if record.entry.at + 30 > source.size:
        return
    head = LOCAL.unpack(source.read(record.entry.at, 30))
    end = record.entry.at + 30 + head[9] + head[10] + record.size
    if head[2] & DEFERRED and head[0] == b"PK\3\4" and end < following:
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
    surplus = _surplus(source, end, following, "after its data", name)
    if surplus is not None:
        yield surplus
