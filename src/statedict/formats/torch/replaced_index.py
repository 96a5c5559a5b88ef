"""Archives of torch.save whose index was replaced in place: what they are now, and what they were before.

    [the archive as it was, whole][data.pkl][.statedict.json][central directory][end]

The new directory names the new data.pkl first and our record last, if there was one; between them stand the entries
of all other records, as they were. So the old index (data.pkl, our record, the directory) belongs to nothing any more,
and yet to something: the file up to the header of its data.pkl is an archive, the one that it was. It may have had its
index replaced before that, and so on. An entry `.format_version` is left out: by it PyTorch calculates where storages
lie from the order in which the pickle names them.
"""

from __future__ import annotations

from shlex import quote

from statedict.errors import CorruptFileError, FormatError
from statedict.io.source import Slice
from statedict.io.zip import Inflated, find_end, read_directory
from statedict.io.zip_ends import END, find_ends
from statedict.io.zip_table import CENTRAL, ArchiveLayout, end_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from statedict.io.source import ByteSource
    from statedict.io.zip import Record

    Records = Mapping[str, Record | Inflated]

OURS = ".statedict.json"
INDEX = ("data.pkl", OURS, ".format_version")
_SEARCH = 1 << 20
_TRIES = 100
_FARTHEST = 64 << 20  # bytes of an index that did not come to its end


class Earlier:
    """What an archive was before its index was replaced.

    Attributes:
        source: the first bytes of the file.
        records: those of its directory.
        kept: the entries in it of those that the newer directory has too, by name, in the newer one's order.
    """

    __slots__ = ("kept", "records", "source")

    def __init__(self, source: ByteSource, records: Records, kept: dict[str, bytes]) -> None:
        self.source, self.records, self.kept = source, records, kept

    @property
    def replaced(self) -> dict[str, Record | Inflated]:
        """The records that the newer directory does not have, or has elsewhere."""
        return {name: record for name, record in self.records.items() if name not in self.kept}


def record_bytes(record: Record | Inflated) -> Record:
    """The record as it lies in the archive."""
    return record.packed if isinstance(record, Inflated) else record


def is_index(name: str) -> bool:
    """Whether a record is one that a new index replaces or leaves out."""
    return name.rpartition("/")[2] in INDEX


def entries(source: ByteSource, records: Records) -> dict[str, bytes]:
    """The entries of an archive's directory as they stand there, by the names of its records."""
    _, at, size, _ = find_end(source)
    directory = bytes(source.read(at, size))
    return dict(zip(records, _split(directory, len(records)), strict=True))


def _split(directory: bytes, count: int) -> Iterator[bytes]:
    begin = 0
    for _ in range(count):
        end = begin + 46 + sum(CENTRAL.unpack_from(directory, begin)[10:13])
        yield directory[begin:end]
        begin = end


def directory(layout: ArchiveLayout, crcs: list[int], kept: Iterable[bytes] = ()) -> bytes:
    """A central directory and the end records: the first record of a layout, entries that are kept, the other records.

    Args:
        layout: the records.
        crcs: their CRC-32.
        kept: entries of records that lie before.
    """
    first, *others = _split(layout.directory(crcs), len(crcs))
    whole = [first, *kept, *others]
    body = b"".join(whole)
    return body + end_records(len(whole), len(body), layout.position)


def earlier(source: ByteSource, records: Records) -> list[Earlier]:
    """What an archive was before each replacement of its index, the latest first; empty if there was none."""
    found: list[Earlier] = []
    now = source
    while (older := _before(source, now, records)) is not None:
        found.append(older)
        now, records = older.source, older.records
    return found


def _before(file: ByteSource, now: ByteSource, records: Records) -> Earlier | None:
    start = record_bytes(next(iter(records.values()))).entry.at if records else 0
    # a directory below would be read again and again for archives one within the other
    if start <= END.size or find_end(now)[1] < start or bytes(file.read(start - END.size, 4)) != b"PK\5\6":
        return None
    source = Slice(file, 0, start)
    try:
        older = read_directory(source)
    except FormatError:
        return None
    kept = [name for name, record in records.items() if record_bytes(record).entry.at < start]
    if not older.keys() >= set(kept) or not all(map(is_index, older.keys() - set(kept))):
        return None
    before = entries(source, older)
    return Earlier(source, older, {name: before[name] for name in kept})


def cut_short(source: ByteSource) -> CorruptFileError | None:
    """The error for an archive to which a new index was not appended whole; None if it does not look like that."""
    if source.remote:
        return None
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
                return None
            if end > source.size:
                continue
            if end in followed:
                return None
            followed.update(reading.shift for reading in find_ends(source, end).readings[:1])
            if end < source.size and _is_begun(source, end) and _is_whole(Slice(source, 0, end)):
                return CorruptFileError(
                    f"{source.name}: what follows the end of the archive at byte {end:,} is no whole index, as after a "
                    "change in place that was cut short; what it was before is all there, "
                    f"`truncate -s {end} {quote(source.name)}` brings it back"
                )
    return None


def _is_begun(source: ByteSource, at: int) -> bool:
    """Whether a data.pkl of ours seems to begin at a byte, or what a disk has where it was not written yet."""
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
