"""How a scan takes archives and compressed files apart, and looks into their records."""

from __future__ import annotations

import re

from statedict.io.tar import is_tar
from statedict.io.zip_ends import find_ends
from statedict.io.zip_table import DEFLATED, STORED
from statedict.scanner.containers import (
    BZIP2,
    Budget,
    Member,
    Part,
    Unpacked,
    Zip,
    before,
    tar_members,
    unpackable,
)
from statedict.scanner.findings import Findings
from statedict.scanner.globals import walk
from statedict.scanner.recognize import (
    GLANCE,
    OPCODE,
    PATIENCE,
    cost_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.zip_ends import Ends, Reading

_EXPECTED = re.compile(
    r"(^|/)(data|constants)\.pkl$|\.(pkl|pickle|debug_pkl)$|^(sys_info|pickle|storages|tensors)$", re.IGNORECASE
)
_STORAGE = re.compile(r"(^|/)(data|constants)/\d+$")
_LONG_MAGIC = ("gzip", "bzip2", "xz")  # what tensors do not begin with by chance
_DRAINED = 8 << 20  # how much of a compressed part is unpacked only to see whether that can be done
SEARCH = 1 << 20


class Archives(Findings):
    """A scan, as far as it is about what holds other files.

    Attributes:
        budget: what is left of the work that the file may cost.
        patience: after how many opcodes without a global a pickle is none.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.budget, self.patience = Budget(0), PATIENCE

    def look_into(self, part: Part, member: str, depth: int, *, whole: bool = False, expected: bool = False) -> None:
        """Look into whatever these bytes are."""
        raise NotImplementedError

    def follow(self, part: Part, member: str, depth: int, at: int = 0, *, gap: bool = False) -> None:
        """Go through pickles one after the other, and what is between them."""
        raise NotImplementedError

    def search_through(self, part: Part, member: str, depth: int, begin: int, end: int, *, listed: bool = True) -> None:
        """Find what is hidden in bytes that have no known form; `listed` says that records have a directory."""
        raise NotImplementedError

    def look_into_archive(self, part: Part, member: str, depth: int, head: bytes, whole: bool) -> bool:
        """Look into the zip archive that a part begins as, or that stands at its end; whether there is one."""
        zipped = head[:4] == b"PK\3\4"
        if not zipped and self.patience == GLANCE:  # a tensor
            return False
        ends = find_ends(part, part.size)
        if not zipped and (not ends.readings or self._holds(part, head, ends.readings[0])):
            return False
        if ends.readings:
            self._look_into_zip(part, member, depth, part.size, ends)
        else:
            self.add_damage(member, "begins as a zip archive whose directory is missing; it looks truncated")
            for text in ends.problems:
                self.add_damage(member, text)
            self.search_through(part, member, depth, 0, part.size, listed=False)
        return True

    def _holds(self, part: Part, head: bytes, reading: Reading) -> bool:
        """Whether an archive's end lies within a pickle or a member of a tar archive that the file begins with."""
        if is_tar(head):
            return any(
                inner.start <= reading.place <= reading.at < inner.end for inner in tar_members(part) if inner.name
            )
        found = walk(part.read, fuel=self.budget.left // OPCODE)
        self.budget.spend(cost_of(found))
        return not found.problem and found.end > reading.at

    def _look_into_zip(self, part: Part, member: str, depth: int, end: int, ends: Ends) -> None:
        """Look into an archive, and into those before it: `.distcp` files have one behind the other."""
        now: Ends | None = ends
        seen: set[Member] = set()
        doubtful: list[Reading] = []
        behind = 0  # where an archive should begin by its offsets
        while now is not None:
            reading, *others = now.readings
            if behind and behind != reading.stop:
                self._note_shift(member, behind)
            behind = reading.shift
            doubtful += others
            for text in now.problems:
                self.add_damage(member, text)
            gaps = self._look_into_records(part, member, depth, end, reading, seen)
            now, end = before(part, gaps, end)
            for begin, stop in gaps:
                if stop > end:  # what lies below is in that archive or in a gap of it
                    self.look_into_gap(part, member, depth, begin, stop)
        if behind:
            self._note_shift(member, behind)
        for reading in doubtful:  # that of an archive behind another one may be the other's, by its offsets
            known = len(seen)
            self._look_into_records(part, member, depth, part.size, reading, seen)
            if len(seen) > known:
                self.add_damage(member, f"another directory stands at byte {reading.place:,}; it is damaged or forged")

    def _note_shift(self, member: str, shift: int) -> None:
        where = f"{abs(shift):,} bytes {'behind' if shift > 0 else 'before'} where its end says"
        self.add_damage(member, f"the zip directory lies {where}; something stands before the archive, or it is forged")

    def _look_into_records(
        self, part: Part, member: str, depth: int, end: int, reading: Reading, seen: set[Member]
    ) -> list[tuple[int, int]]:
        """Look into the records that a directory lists and that were not looked into; what lies between them."""
        archive = Zip(part, end, reading)
        self.budget.spend(64 * len(archive.members))
        for text in archive.problems:
            self.add_damage(member, text)
        for inner in dict.fromkeys(archive.members):
            if inner not in seen:
                self.look_into_member(part, member, inner, depth)
        seen |= set(archive.members)
        return archive.gaps

    def look_into_gap(self, part: Part, member: str, depth: int, begin: int, stop: int) -> None:
        """Look through bytes that belong to no record of an archive."""
        self.budget.spend(64)
        head = part.read(begin, min(stop - begin, SEARCH))
        if stop - begin <= 32 and head[:4] == b"PK\7\x08":  # the descriptor of the record before
            begin += 24 if stop - begin >= 24 else 16
            head = head[24 if stop - begin >= 24 else 16 :]
        if begin < stop and (stop - begin > len(head) or head.strip(b"\0")):
            self.follow(part.part(0, stop), member, depth, begin, gap=True)

    def look_into_member(self, part: Part, member: str, inner: Member, depth: int) -> None:
        """Look into a record or a file of an archive."""
        label = place_of(member, inner.name)
        data = part.part(inner.start, inner.end)
        expected = bool(_EXPECTED.search(inner.name))
        if inner.method in (STORED, BZIP2):  # a record of bzip2 is a file of bzip2
            self.patience = GLANCE if _STORAGE.search(inner.name) else PATIENCE
            self.look_into(data, label, depth + 1, expected=expected)
            self.patience = PATIENCE
        elif inner.method == DEFLATED:
            packed = part.part(inner.start, inner.end)
            self.look_into_packed(packed, label, depth, "deflate", expected, size=inner.size)
        else:
            self.add_unread(label, 0, f"a record compressed by method {inner.method}", "compressed")

    def look_into_packed(
        self, part: Part, member: str, depth: int, codec: str, expected: bool, whole: bool = False, size: int = -1
    ) -> None:
        """Look into what is compressed; `size` is what an archive says that it unpacks to."""
        if not unpackable(codec):
            self.add_unread(member, 0, f"{codec} archive", "compressed")
            return
        data, before = Unpacked(part, codec, self.budget), (self.pickles, len(self.found), len(self.damage))
        self.look_into(Part(data), member, depth + 1, expected=expected)
        found = before != (self.pickles, len(self.found), len(self.damage))
        sure = whole or expected or found or codec == "deflate" or (codec in _LONG_MAGIC and data.read(0, 1) != b"")
        if sure:
            data.drain(min(_DRAINED, self.budget.left // 2))
        if sure and data.problem:
            self.add_damage(member, f"compressed by {codec}, and damaged ({data.problem})")
        elif size >= 0 and data.ended and data.size != size:
            self.add_damage(member, f"unpacks to {data.size:,} bytes, not to the {size:,} that the archive says")
        elif codec not in ("deflate", "zlib") and data.end:
            self.search_through(part, member, depth, data.end, part.size)

    def look_into_tar(self, part: Part, member: str, depth: int) -> None:
        """Look into the files of a tar archive."""
        for inner in tar_members(part):
            if not inner.name and inner.end == part.size:
                self.search_through(part, member, depth, inner.start, inner.end)
                return
            if inner.end > part.size:
                self.add_damage(place_of(member, inner.name), "goes past the end of the archive; it looks truncated")
            self.look_into_member(part, member, inner, depth)


def place_of(member: str, inner: str) -> str:
    """What findings in something inside of a member are called by."""
    return f"{member}: {inner}" if member else inner
