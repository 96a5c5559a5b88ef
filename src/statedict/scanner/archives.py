"""Archives and compressed files in a scan, and the files in them, read without trusting them.

`io.zip` refuses an archive that contradicts itself, which is right for loading. Here each contradiction is recorded and
every reading is followed: the directory and the local headers, records in no directory, bytes before, between and after
the records. Checksums and suffixes are ignored.
"""

from __future__ import annotations

import re
from collections import namedtuple
from itertools import pairwise

from statedict.io import zip_table
from statedict.io.tar import is_tar
from statedict.scanner.containers import CHUNK, CODECS, EXPECTED, TENSOR, WHOLE, Part, Unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.zip_table import Ends, Reading
    from statedict.scanner.scan import Scan

# a file in an archive: its name, the range and the method of its packed bytes, its unpacked size
Member = namedtuple("Member", "name start end method size", defaults=[-1])

_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x07\x08|\x01\x02)")
_BZIP2 = 12
_EXPECTED = re.compile(
    r"(^|/)(data|constants)\.pkl$|\.(pkl|pickle|debug_pkl)$|^(sys_info|pickle|storages|tensors)$", re.IGNORECASE
)
_STORAGE = re.compile(r"(^|/)(data|constants)/\d+$")
_LONG_MAGIC = ("gzip", "bzip2", "xz")  # a tensor does not begin with one by chance
_DRAINED = 8 << 20  # most bytes that are unpacked only to see whether they unpack
SEARCH = 1 << 20


def look_into_archive(scan: Scan, part: Part, head: bytes) -> bool:
    """Look into a zip archive that is the part or ends it; whether there is one."""
    zipped = head[:4] == b"PK\3\4"
    if not zipped and part.role == TENSOR:
        return False
    ends = zip_table.find_ends(part, part.size)
    if not zipped and (not ends.readings or _holds(scan, part, head, ends.readings[0])):
        return False
    if ends.readings:
        _look_into_zip(scan, part, ends)
    else:
        missing = "begins as a zip archive whose directory is missing; it looks truncated"
        scan.add_damage(part.label, missing, *ends.problems)
        scan.search_through(part, 0, part.size, listed=False)
    return True


def _holds(scan: Scan, part: Part, head: bytes, reading: Reading) -> bool:
    """Whether an archive's end lies within a pickle or a member of a tar archive that the file begins with."""
    if is_tar(head):
        return any(inner.start <= reading.place <= reading.at < inner.end for inner in tar_members(part) if inner.name)
    pickle = scan.walk(part)
    return not pickle.problem and pickle.end > reading.at


def _look_into_zip(scan: Scan, part: Part, ends: Ends) -> None:
    """Look into an archive and into those before it: a `.distcp` file has one after another."""
    end, start = part.size, 0  # where the archive behind should begin by its offsets
    seen: set[Member] = set()
    doubtful: list[Reading] = []
    current: Ends | None = ends
    while current is not None:
        reading, *others = current.readings
        if start and start != reading.stop:
            _add_shift(scan, part, start)
        start = reading.shift
        doubtful += others
        scan.add_damage(part.label, *current.problems)
        gaps = _look_into_records(scan, part, end, reading, seen)
        current, end = find_ends_before(part, gaps, end)
        for begin, stop in gaps:
            if stop > end:  # what lies below is in that archive or in a gap of it
                look_into_gap(scan, part, begin, stop)
    if start:
        _add_shift(scan, part, start)
    for reading in doubtful:  # by its offsets it may belong to the archive behind
        known = len(seen)
        _look_into_records(scan, part, part.size, reading, seen)
        if len(seen) > known:
            text = f"another directory stands at byte {reading.place:,}; it is damaged or forged"
            scan.add_damage(part.label, text)


def _add_shift(scan: Scan, part: Part, shift: int) -> None:
    where = f"{abs(shift):,} bytes {'behind' if shift > 0 else 'before'} where its end says"
    text = f"the zip directory lies {where}; something precedes the archive, or it is forged"
    scan.add_damage(part.label, text)


def _look_into_records(scan: Scan, part: Part, end: int, reading: Reading, seen: set[Member]) -> list[tuple[int, int]]:
    """Look into the records of a directory that are not in `seen`; the gaps between the records."""
    members, gaps, problems = zip_members(part, end, reading)
    scan.budget.spend(64 * len(members))
    scan.add_damage(part.label, *problems)
    for inner in dict.fromkeys(members):
        if inner not in seen:
            look_into_member(scan, part, inner)
    seen.update(members)
    return gaps


def look_into_gap(scan: Scan, part: Part, begin: int, stop: int) -> None:
    """Look through bytes that belong to no record of an archive."""
    scan.budget.spend(64)
    head = part.read(begin, min(stop - begin, SEARCH))
    if stop - begin <= 32 and head[:4] == b"PK\7\x08":  # the descriptor of the record before
        size = 24 if stop - begin >= 24 else 16
        begin, head = begin + size, head[size:]
    if begin < stop and (stop - begin > len(head) or head.strip(b"\0")):
        scan.follow(part.cut(0, stop, role=""), begin, gap=True)


def look_into_member(scan: Scan, part: Part, inner: Member) -> None:
    """Look into a record or a file of an archive."""
    data = part.cut(inner.start, inner.end)
    role = EXPECTED if _EXPECTED.search(inner.name) else ""
    if inner.method in (zip_table.STORED, _BZIP2):  # a record of bzip2 is a file of bzip2
        scan.look_into(data.inner(inner.name, role=TENSOR if _STORAGE.search(inner.name) else role))
    elif inner.method == zip_table.DEFLATED:
        look_into_packed(scan, data, "deflate", inner.name, role, inner.size)
    else:
        scan.add_unread(part.label_of(inner.name), f"a record compressed by method {inner.method}", "compressed")


def look_into_packed(
    scan: Scan, part: Part, codec: str, name: str | None = None, role: str | None = None, size: int = -1
) -> None:
    """Look into compressed bytes; `size` is the unpacked size that an archive gives."""
    label = part.label_of(name)
    if codec not in CODECS:
        scan.add_unread(label, f"{codec} archive", "compressed")
        return
    data, before = Unpacked(part, codec, scan.budget), scan.count_findings()
    scan.look_into(part.inner(name, data, role))
    has_findings = scan.count_findings() != before
    likely = part.role in (WHOLE, EXPECTED) or codec == "deflate" or (codec in _LONG_MAGIC and data.read(0, 1) != b"")
    if has_findings or likely:
        data.drain(min(_DRAINED, scan.budget.left // 2))
        if data.problem:
            scan.add_damage(label, f"compressed by {codec}, and damaged ({data.problem})")
            return
    if size >= 0 and data.is_complete and data.size != size:
        scan.add_damage(label, f"unpacks to {data.size:,} bytes, not to the {size:,} that the archive says")
    elif codec not in ("deflate", "zlib") and data.end:
        scan.search_through(part, data.end, part.size)


def look_into_tar(scan: Scan, part: Part) -> None:
    """Look into the files of a tar archive."""
    for inner in tar_members(part):
        if not inner.name and inner.end == part.size:
            scan.search_through(part.cut(0, role=""), inner.start, inner.end)
            return
        if inner.end > part.size:
            scan.add_damage(part.label_of(inner.name), "goes past the end of the archive; it looks truncated")
        look_into_member(scan, part, inner)


def zip_members(part: Part, end: int, reading: Reading) -> tuple[list[Member], list[tuple[int, int]], list[str]]:
    """The records of an archive that ends before byte `end`, by one reading of its directory; gaps; contradictions.

    A record whose headers disagree stands once for each reading.
    """
    members: list[Member] = []
    problems: list[str] = []
    place, size, count, shift, _, last, _ = reading
    taken = [(place, last + zip_table.END.size)]  # the comment is a gap
    entries = list(zip_table.read_entries(part.read(place, size), count, problems))
    part.prefetch([entry.at + shift for entry in entries if 0 <= entry.at + shift < place])
    for entry in entries:
        name, method, packed = entry.name, entry.method, entry.packed
        for at in dict.fromkeys((entry.at + shift, entry.at)):
            local = zip_table.read_local(part, at)
            if local is not None:
                break
        else:
            problems.append(f"record {name!r}: there is none at byte {entry.at + shift:,}")
            continue
        if (entry.flags | local.flags) & zip_table.UNREADABLE:
            problems.append(f"record {name!r} is marked as encrypted")
        if difference := zip_table.differs(entry, local):
            problems.append(f"record {name!r}: {difference}")
        if method == zip_table.STORED and packed != entry.unpacked:
            problems.append(f"record {name!r} is stored but has two sizes")
        if local.at + packed > place and at < place:
            problems.append(f"record {name!r} overlaps the directory")
        sizes = {packed, *((entry.unpacked,) if method == zip_table.STORED else ())}
        if local.packed != zip_table.FULL32 and (local.packed or not local.flags & zip_table.DEFERRED):
            sizes.add(local.packed)
        stop = local.at + max(sizes)
        members += [Member(name, local.at, stop, one, entry.unpacked) for one in dict.fromkeys((method, local.method))]
        taken.append((at, local.at + packed))
    taken.sort()
    if any(reach > begin for (_, reach), (begin, _) in pairwise(taken) if begin < place):
        problems.append("records overlap")
    gaps, reached = [], 0
    for begin, stop in [*taken, (end, end)]:
        if begin > reached:
            gaps.append((reached, min(begin, end)))
        reached = max(reached, stop)
    return sorted(members, key=lambda member: member.start), gaps, problems


def find_ends_before(part: Part, gaps: list[tuple[int, int]], end: int) -> tuple[Ends | None, int]:
    """The end of an archive that stands before the one that ends at `end`, and its offset; None and 0 without one."""
    for begin, stop in reversed(gaps):
        if stop < end and stop - begin >= zip_table.END.size and part.read(stop - zip_table.END.size, 4) == b"PK\5\6":
            before = zip_table.find_ends(part, stop)
            if before.readings and before.readings[0].stop == stop:
                return before, stop
    return None, 0


def local_member(part: Part, at: int, end: int) -> Member | None:
    """The record whose local header stands at an offset; without a size it reaches to the next header."""
    local = zip_table.read_local(part, at)
    if local is None or local.at > end:
        return None
    stop = local.at + local.packed
    if not 0 < local.packed < zip_table.FULL32:
        stop = end
        for base in range(local.at, end, CHUNK - 3):
            if signature := _SIGNATURE.search(part.read(base, min(CHUNK, end - base))):
                stop = base + signature.start()
                break
    return Member(local.name, local.at, min(end, stop), local.method)


def tar_members(part: Part) -> Iterator[Member]:
    """The members of a tar archive; the last one, without a name, is what follows the last header."""
    at, override = 0, -1
    while True:
        header = part.read(at, 512)
        if not is_tar(header):
            break
        field = header[124:136]
        try:
            wide = field[:1] in (b"\x80", b"\xff")
            size = int.from_bytes(field[1:], "big") if wide else int(field.strip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        size, override = (override if override >= 0 else size), -1
        start, kind = at + 512, header[156:157]
        if kind in (b"x", b"g"):
            stated = re.search(rb"\d size=(\d{1,18})\n", part.read(start, min(size, 1 << 20)))
            override = int(stated[1]) if stated and kind == b"x" else -1
        size = 0 if b"1" <= kind <= b"6" else size
        prefix = header[345:500].rstrip(b"\0") + b"/" if header[257:262] == b"ustar" and header[345] else b""
        name = zip_table.read_name(prefix + header[:100].split(b"\0")[0]).removeprefix("./")
        yield Member(name, start, start + size, zip_table.STORED)
        at = start + size + -size % 512
    yield Member("", at, part.size, zip_table.STORED)
