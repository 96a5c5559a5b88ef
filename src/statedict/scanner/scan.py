"""How `scan` goes through a file: which parts it has, which of them are pickles, what these name.

What a part is its first bytes say. A zip archive is taken apart by its directory and by its local headers, a stream of
pickles one by one, a file of PyTorch before 1.6 by the sizes of its storages. What remains is searched, for PROTO, for
GLOBAL or STACK_GLOBAL with a name, and for records of a zip archive; there a pickle counts that names something.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from dataclasses import replace
from typing import Any

from statedict.errors import CorruptFileError, LimitError
from statedict.io.files import open_source
from statedict.io.json import check
from statedict.io.source import BytesSource
from statedict.io.tar import is_tar
from statedict.io.zip_ends import find_ends
from statedict.io.zip_table import DEFLATED, STORED
from statedict.pickles.constructors import StorageType
from statedict.pickles.tables import DATA
from statedict.reports.scan import DANGEROUS, OPAQUE, WORST_FIRST, Finding, ScanReport
from statedict.scanner.containers import (
    BZIP2,
    Budget,
    Member,
    Part,
    Unpacked,
    Zip,
    before,
    compression,
    local_member,
    tar_members,
    unpackable,
)
from statedict.scanner.globals import ALTERED, COMPUTED, EXTENSION, OBJECTS, Named, Walk, walk
from statedict.scanner.verdicts import RECORDS, grade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource
    from statedict.io.zip_ends import Ends, Reading

_ALLOWED = DATA.keys() | RECORDS
_STRONG = re.compile(rb"\x80[\x00-\x05]")  # PROTO, which nearly every pickle begins with
_OLD = re.compile(rb"[(\]})]|c[\w.]+\n[\w.]+\n")  # how those of protocols 0 and 1 begin
_LINES = re.compile(rb"(?:[\t\r\x20-\x7e\x80-\xff]+\n){3,}[\t\r\x20-\x7e\x80-\xff]*")  # how text begins
_IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_COMPUTED = re.compile(r"[\w.?]+")
_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number before 1.6, and STOP
_HARMLESS = re.compile(rb"GGUF|\x89HDF\r\n|.{5}\x00\x00\x00\{\"", re.DOTALL)  # GGUF, HDF5, safetensors
_EXPECTED = re.compile(
    r"(^|/)(data|constants)\.pkl$|\.(pkl|pickle|debug_pkl)$|^(sys_info|pickle|storages|tensors)$", re.IGNORECASE
)
_STORAGE = re.compile(r"(^|/)(data|constants)/\d+$")
_LONG_MAGIC = ("gzip", "bzip2", "xz")  # what tensors do not begin with by chance
_OBJECT_ARRAY = re.compile(rb"(?<!\()['\"]((?:[^'\"]*,)?[|<>=]?(?:O\d*|object))['\"]")  # a type; names follow a (
_ARRAY = re.compile(
    rb"\{'descr': '[|<>=]?[a-zA-Z](\d{1,9})(?:\[\w+\])?', 'fortran_order': \w+, 'shape': \(((?:\d{1,19}, ?)*\d{0,19})\)"
)
# how something may begin in the midst of other bytes: a pickle, a pickle without PROTO, a record of a zip archive
_HIDDEN = (
    re.compile(rb"\x80[\x00-\x05][\x00-\xff]"),
    re.compile(rb"\x8c[\x01-\x7f][A-Za-z_][\w.]{0,126}(?:\x94|q.|r.{4})?[\x8cXU]", re.DOTALL),
    re.compile(rb"PK\x03\x04"),
)
# the line feed after a module, before a name and an opcode that may follow
_LINE = re.compile(rb"\n(?=[A-Za-z_][\w.]{0,127}\n(?:[(q)\]}XUVSNKJMLITCBRG.0cb\x80-\xff]|p\d))")
_WORD = re.compile(rb"[\w.]{1,128}\Z")
_FIRST_LINE = 4 << 20  # how long the first line of an archive may be for the archive to be looked at as a pickle
_DRAINED = 8 << 20  # how much of a compressed part is unpacked only to see whether that can be done
_SEARCH = 1 << 20
_OVERLAP = 512
_MAX_DEPTH = 8
_MAX_JSON = 64 << 20
_SERIALIZED = re.compile(rb"serialized|\\u")  # a key may be escaped
_MAX_FINDINGS = 20_000
_PATIENCE = 1 << 20  # opcodes without a global, of what may as well be a tensor
_GLANCE = 1 << 12  # the same, of what an archive says is a tensor
_PICKLE = 256  # what looking for one costs, in bytes of the budget
_OPCODE = 4  # what following an opcode costs
_NAME = 40  # what naming a global costs
_SEARCHED = 16  # bytes searched for the end of a line cost one
_SURE = 16  # opcodes that random bytes do not get through


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, each key of it that stands twice included."""


class Scan:
    """The scan of one file or folder: what it has found so far."""

    def __init__(self, path: str) -> None:
        self.path, self.pickles, self.budget, self.patience = path, 0, Budget(0), _PATIENCE
        self.found: dict[tuple[str, str, str, str], Finding] = {}
        self.notes: list[str] = []
        self.damage: list[str] = []

    def report(self) -> ScanReport:
        """All of that."""
        if not self.pickles and not self.found and not self.damage:
            self.notes.append("no pickle in it")
        order = sorted(self.found.values(), key=lambda found: WORST_FIRST.index(found.verdict))
        return ScanReport(self.path, self.pickles, tuple(order), tuple(self.notes), tuple(dict.fromkeys(self.damage)))

    def file(self, path: str, member: str) -> Scan:
        """Look into a file; `member` is what its findings are called by.

        Raises:
            FileError: it cannot be opened.
        """
        return self.look(open_source(path), member)

    def look(self, source: ByteSource, member: str) -> Scan:
        """Look into bytes; `member` is what its findings are called by."""
        self.budget = Budget(source.size)
        try:
            self._thing(Part(source, 0, source.size), member, 0, whole=True)
        except LimitError as error:
            self._unread(member, 0, "the rest", str(error))
        except CorruptFileError as error:  # the file shrank while it was read
            self._broken(member, str(error))
        return self

    def _add(self, member: str, offset: int, named: Named, verdict: str, why: str) -> None:
        key = (member, named.module, named.name, named.kind)
        known = self.found.get(key)
        if known is not None:
            self.found[key] = replace(known, count=known.count + named.count, called=known.called + named.called)
            return
        if len(self.found) >= _MAX_FINDINGS:
            raise LimitError(f"has more than {_MAX_FINDINGS:,} findings")
        count = max(named.count, 1)  # what no opcode names stands once
        self.found[key] = Finding(member, offset, named.module, named.name, verdict, why, named.called, count)

    def _unread(self, member: str, offset: int, what: str, why: str) -> None:
        key = (member, "", what, why)
        self.found.setdefault(key, Finding(member, offset, "", what, OPAQUE, f"{why}: not looked into", 0, 1))

    def _broken(self, member: str, text: str) -> None:
        if len(self.damage) < _MAX_FINDINGS:
            self.damage.append(f"{member}: {text}" if member else text)

    def _thing(self, part: Part, member: str, depth: int, *, whole: bool = False, expected: bool = False) -> None:
        """Look into whatever these bytes are."""
        head = part.read(0, 600)
        self.budget.spend(256)
        if not head:
            return
        if depth > _MAX_DEPTH:
            self._unread(member, 0, "something", f"nested over {_MAX_DEPTH} levels deep")
            return
        known = self._archive(part, member, depth, head, whole)
        if head[:6] == b"\x93NUMPY":
            self._numpy(part, member, depth, head, whole)
            known = True
        if is_tar(head):
            self._tar(part, member, depth)
            known = True
        if codec := compression(head):
            self._packed(part, member, depth, codec, expected, whole)
            known = True
        if not known:
            self._stream(part, member, depth, whole=whole, expected=expected)
        elif head[:1] == b"P":
            self._from_magic(part, member)
        else:
            self._stream(part, member, depth)

    def _from_magic(self, part: Part, member: str) -> None:
        """Note what an archive names that is read as a pickle: its magic begins with PERSID, whose line is ASCII.

        Only a loader with persistent ids gets past that line. What follows is mostly the middle of the first record, so
        what it names too is no news, and where it breaks off is no damage.
        """
        line, newline, _ = part.read(0, _FIRST_LINE).partition(b"\n")
        if not newline or not line.isascii():
            return
        found = walk(part.read, fuel=self.budget.left // _OPCODE, patience=_GLANCE)
        self.budget.spend(_cost(found))
        known = {(named.module, named.name) for named in self.found.values()}
        for named in found.globals:
            plausible = _IDENTIFIERS.fullmatch(f"{named.module}.{named.name}")  # else it is bytes of a record
            if plausible and (named.module, named.name) not in known:
                self._add(member, named.offset, named, *grade(named, _ALLOWED))

    def _archive(self, part: Part, member: str, depth: int, head: bytes, whole: bool) -> bool:
        """Look into the zip archive that a part begins as, or that stands at its end; whether there is one."""
        zipped = head[:4] == b"PK\3\4"
        if not zipped and self.patience == _GLANCE:  # a tensor
            return False
        ends = find_ends(part, part.size)
        if not zipped and (not ends.readings or self._holds(part, head, ends.readings[0])):
            return False
        if ends.readings:
            self._zip(part, member, depth, part.size, ends)
        else:
            self._broken(member, "begins as a zip archive whose directory is missing; it looks truncated")
            for text in ends.problems:
                self._broken(member, text)
            self._search(part, member, depth, 0, part.size, listed=False)
        return True

    def _holds(self, part: Part, head: bytes, reading: Reading) -> bool:
        """Whether an archive's end lies within a pickle or a member of a tar archive that the file begins with."""
        if is_tar(head):
            return any(
                inner.start <= reading.place <= reading.at < inner.end for inner in tar_members(part) if inner.name
            )
        found = walk(part.read, fuel=self.budget.left // _OPCODE)
        self.budget.spend(_cost(found))
        return not found.problem and found.end > reading.at

    def _zip(self, part: Part, member: str, depth: int, end: int, ends: Ends) -> None:
        """Look into an archive, and into those before it: `.distcp` files have one behind the other."""
        now: Ends | None = ends
        seen: set[Member] = set()
        doubtful: list[Reading] = []
        behind = 0  # where an archive should begin by its offsets
        while now is not None:
            reading, *others = now.readings
            if behind and behind != reading.stop:
                self._before(member, behind)
            behind = reading.shift
            doubtful += others
            for text in now.problems:
                self._broken(member, text)
            gaps = self._records(part, member, depth, end, reading, seen)
            now, end = before(part, gaps, end)
            for begin, stop in gaps:
                if stop > end:  # what lies below is in that archive or in a gap of it
                    self._gap(part, member, depth, begin, stop)
        if behind:
            self._before(member, behind)
        for reading in doubtful:  # that of an archive behind another one may be the other's, by its offsets
            known = len(seen)
            self._records(part, member, depth, part.size, reading, seen)
            if len(seen) > known:
                self._broken(member, f"another directory stands at byte {reading.place:,}; it is damaged or forged")

    def _before(self, member: str, shift: int) -> None:
        where = f"{abs(shift):,} bytes {'behind' if shift > 0 else 'before'} where its end says"
        self._broken(member, f"the zip directory lies {where}; something stands before the archive, or it is forged")

    def _records(
        self, part: Part, member: str, depth: int, end: int, reading: Reading, seen: set[Member]
    ) -> list[tuple[int, int]]:
        """Look into the records that a directory lists and that were not looked into; what lies between them."""
        archive = Zip(part, end, reading)
        self.budget.spend(64 * len(archive.members))
        for text in archive.problems:
            self._broken(member, text)
        for inner in dict.fromkeys(archive.members):
            if inner not in seen:
                self._member(part, member, inner, depth)
        seen |= set(archive.members)
        return archive.gaps

    def _gap(self, part: Part, member: str, depth: int, begin: int, stop: int) -> None:
        """Look through bytes that belong to no record of an archive."""
        self.budget.spend(64)
        head = part.read(begin, min(stop - begin, _SEARCH))
        if stop - begin <= 32 and head[:4] == b"PK\7\x08":  # the descriptor of the record before
            begin += 24 if stop - begin >= 24 else 16
            head = head[24 if stop - begin >= 24 else 16 :]
        if begin < stop and (stop - begin > len(head) or head.strip(b"\0")):
            self._stream(part.part(0, stop), member, depth, begin, gap=True)

    def _member(self, part: Part, member: str, inner: Member, depth: int) -> None:
        label = _label(member, inner.name)
        data = part.part(inner.start, inner.end)
        expected = bool(_EXPECTED.search(inner.name))
        if inner.method in (STORED, BZIP2):  # a record of bzip2 is a file of bzip2
            self.patience = _GLANCE if _STORAGE.search(inner.name) else _PATIENCE
            self._thing(data, label, depth + 1, expected=expected)
            self.patience = _PATIENCE
        elif inner.method == DEFLATED:
            packed = part.part(inner.start, inner.end)
            self._packed(packed, label, depth, "deflate", expected, size=inner.size)
        else:
            self._unread(label, 0, f"a record compressed by method {inner.method}", "compressed")

    def _packed(
        self, part: Part, member: str, depth: int, codec: str, expected: bool, whole: bool = False, size: int = -1
    ) -> None:
        """Look into what is compressed; `size` is what an archive says that it unpacks to."""
        if not unpackable(codec):
            self._unread(member, 0, f"{codec} archive", "compressed")
            return
        data, before = Unpacked(part, codec, self.budget), (self.pickles, len(self.found), len(self.damage))
        self._thing(Part(data), member, depth + 1, expected=expected)
        found = before != (self.pickles, len(self.found), len(self.damage))
        sure = whole or expected or found or codec == "deflate" or (codec in _LONG_MAGIC and data.read(0, 1) != b"")
        if sure:
            data.drain(min(_DRAINED, self.budget.left // 2))
        if sure and data.problem:
            self._broken(member, f"compressed by {codec}, and damaged ({data.problem})")
        elif size >= 0 and data.ended and data.size != size:
            self._broken(member, f"unpacks to {data.size:,} bytes, not to the {size:,} that the archive says")
        elif codec not in ("deflate", "zlib") and data.end:
            self._search(part, member, depth, data.end, part.size)

    def _tar(self, part: Part, member: str, depth: int) -> None:
        for inner in tar_members(part):
            if not inner.name and inner.end == part.size:
                self._search(part, member, depth, inner.start, inner.end)
                return
            if inner.end > part.size:
                self._broken(_label(member, inner.name), "goes past the end of the archive; it looks truncated")
            self._member(part, member, inner, depth)

    def _numpy(self, part: Part, member: str, depth: int, head: bytes, whole: bool) -> None:
        wide = head[6:7] != b"\1"
        length = int.from_bytes(head[8 : 12 if wide else 10], "little") + (12 if wide else 10)
        header = part.read(0, min(length, 1 << 16))
        objects, plain = _OBJECT_ARRAY.search(header), _ARRAY.search(header)
        if objects:
            named = Named("numpy", f"dtype({objects[1].decode('latin-1')!r})", OBJECTS, 0)
            self._add(member, 0, named, *grade(named, ()))
        self._stream(part, member, depth, length, expected=objects is not None)
        if whole and plain and not objects:  # numpy.load reads one array after the other from an open file
            width = int(plain[1]) * (4 if b"U" in plain[0].split(b"'")[3] else 1)
            end = length + width * math.prod(int(count) for count in plain[2].split(b",") if count.strip())
            if end < part.size:
                self._gap(part, member, depth, end, part.size)

    def _stream(
        self,
        part: Part,
        member: str,
        depth: int,
        at: int = 0,
        *,
        whole: bool = False,
        expected: bool = False,
        gap: bool = False,
    ) -> None:
        """Pickles one after the other, and what is between them."""
        first, number, legacy, done = at, 0, False, None
        while True:
            done = self._pickle(part, at, member, depth, whole=whole, expected=expected, torch=legacy and number > 2)
            if done is None or done.problem:
                break
            legacy = legacy or (number == 0 and part.read(at, 64)[: done.end - at].endswith(_MAGIC))
            at, number = done.end, number + 1
            if legacy and number == 4:
                storages = done.storages
            if legacy and number == 5:
                at = self._storages(part, member, depth, at, done, storages)
                legacy = False
            if not part.read(at, 1):
                return
            whole = expected = False
        if number == 0 and done is None:
            if self.patience != _GLANCE and part.read(at, 64).lstrip()[:1] in (b"{", b"["):
                self._json(part.part(at), member, depth)
            if expected:
                self._broken(member, "is no pickle, though its place says that it is one; it looks damaged")
            if not gap and (not whole or _HARMLESS.match(part.read(0, 16))):
                return
        self._search(part, member, depth, max(first, at if done is None else done.end), part.size)

    def _json(self, part: Part, member: str, depth: int) -> None:
        """Look into the pickles that Stable-Baselines3 keeps in JSON, in base64."""
        size = min(part.size, _MAX_JSON + 1)
        self.budget.spend(size)
        text = part.read(0, size)
        if not _SERIALIZED.search(text):
            return
        if len(text) > _MAX_JSON:
            self._unread(member, 0, "JSON with pickles in it", f"larger than {_MAX_JSON >> 20} MB")
            return
        check(text, "it")
        try:
            pending = [json.loads(text, object_pairs_hook=_Pairs)]
        except (ValueError, RecursionError) as error:
            self._broken(member, f"JSON that cannot be read, with pickles in it ({str(error)[:100]})")
            return
        while pending:
            value = pending.pop()
            for key, held in value if type(value) is _Pairs else enumerate(value):
                if type(held) in (list, _Pairs):
                    pending.append(held)
                elif key == ":serialized:" and type(held) is str:
                    self._serialized(held, member, depth)

    def _serialized(self, text: str, member: str, depth: int) -> None:
        label = _label(member, ":serialized:")
        try:
            data = binascii.a2b_base64(text.encode())  # as the loader does, it passes over what is no base64
        except ValueError as error:
            self._broken(label, f"is no base64 ({error})")
            return
        self._thing(Part(BytesSource(data, label)), label, depth + 1, expected=True)

    def _storages(self, part: Part, member: str, depth: int, at: int, keys: Walk, storages: dict[str, Named]) -> int:
        """Go past the storages of a file of PyTorch before 1.6, by the numbers of elements."""
        for offset in keys.texts:
            key = keys.text(offset)
            kind = DATA.get(f"{storages[key].module} {storages[key].name}") if key in storages else None
            numel = int.from_bytes(part.read(at, 8), "little", signed=True)
            end = at + 8 + numel * kind.dtype.itemsize if isinstance(kind, StorageType) else -1
            if numel < 0 or end < 0 or end > part.size:
                self._broken(member, f"storage {key!r} at byte {at:,} does not fit into the file; it looks truncated")
                return at
            self.patience = _GLANCE
            for place in (at, at + 8):
                self.budget.spend(64)
                self._pickle(part.part(0, end), place, member, depth)
            self.patience = _PATIENCE
            at = end
        return at

    def _search(self, part: Part, member: str, depth: int, begin: int, end: int, *, listed: bool = True) -> None:
        """Find what is hidden in bytes that have no known form; `listed` says that records have a directory."""
        done = begin
        for base in range(begin, end, _SEARCH - _OVERLAP):
            data = part.read(base, min(_SEARCH, end - base))
            starts = {found.start() for pattern in _HIDDEN for found in pattern.finditer(data)}
            for found in _LINE.finditer(data):
                word = _WORD.search(data, max(0, found.start() - 128), found.start())
                if word:
                    letters = {word.start() + at for at, letter in enumerate(word[0][:-1]) if letter in b"ci"}
                    starts |= letters
                    if any(data[at] == 0x69 for at in letters):  # INST takes what follows a MARK
                        starts.add(max(done - base, 0, data.rfind(b"(", max(0, word.start() - 256), word.end())))
            for start in sorted(starts):
                place = base + start
                if place < done:
                    continue
                self.budget.spend(_PICKLE)
                if data.startswith(b"PK\3\4", start):
                    inner = local_member(part, place, end)
                    if inner is not None:
                        if listed:
                            self._broken(_label(member, inner.name), "stands in no directory of a zip archive")
                        self._member(part, member, inner, depth)
                        honest = part.read(inner.end, 2) == b"PK"  # else what it spans may hide another
                        done = max(place + 4, inner.end if honest else inner.start)
                    continue
                found_here = self._pickle(part.part(0, end), place, member, depth, hidden=True)
                if found_here is not None:
                    done = found_here.end

    def _pickle(
        self,
        part: Part,
        at: int,
        member: str,
        depth: int,
        *,
        whole: bool = False,
        expected: bool = False,
        hidden: bool = False,
        torch: bool = False,
    ) -> Walk | None:
        """Walk over the pickle at a place, if it is one, and note what it names."""
        tensor = self.patience == _GLANCE
        sure = not tensor and _STRONG.match(part.read(at, 2)) is not None
        patience = 1 << 62 if sure or whole or expected else self.patience

        def nested(begin: int, length: int, decode: Any) -> None:
            self._nested(part, begin, length, decode, member, depth + 1)

        found = walk(part.read, at, nested, torch=torch, fuel=self.budget.left // _OPCODE, patience=patience)
        old = whole and _OLD.match(part.read(at, 160)) is not None
        alone = found.truncated and old if found.problem else whole and not part.read(found.end, 1)
        binary = whole and not is_lines(part.read(at, 512))
        if not _is_pickle(found, sure and not hidden, whole, expected, alone, binary):
            self.budget.spend(_cost(found))
            if found.problem and found.opcodes > _PATIENCE and not tensor:
                self._unread(member, at, "something that begins as a pickle", "it goes on without naming anything")
            return None
        self.pickles += 1
        for named in found.globals:
            self._add(member, named.offset, named, *grade(named, _ALLOWED))
        for doubt in found.doubts:
            self._broken(member, f"the pickle at byte {at:,} is read differently by different readers: {doubt}")
        if found.problem and not hidden:
            self._broken(member, f"the pickle at byte {at:,} breaks off at byte {found.end:,}: {found.problem}")
        self.budget.spend(_cost(found))
        return found

    def _nested(self, part: Part, begin: int, length: int, decode: Any, member: str, depth: int) -> None:
        label = _label(member, f"bytes at {begin:,}")
        inner = part.part(begin, begin + length)
        if decode is not None:
            raw = inner.read(0, length)
            self.budget.spend(len(raw))
            try:
                text = decode(raw)
                inner = Part(BytesSource(text.encode("latin-1") if type(text) is str else text, label))
            except ValueError:  # a text that stands for no bytes
                return
        before = self.pickles
        self._thing(inner, label, depth)
        if self.pickles > before and compression(inner.read(0, 600)) == "" and inner.read(0, 2) != b"PK":
            named = Named("", "a pickle inside of a pickle", "", begin)
            self._add(label, 0, named, DANGEROUS, "whatever unpacks it runs what it names")


def is_lines(head: bytes) -> bool:
    """Whether bytes are three lines of text or more: a list of words may look like names."""
    return _LINES.fullmatch(head) is not None


def _is_pickle(found: Walk, sure: bool, whole: bool, expected: bool, alone: bool, binary: bool) -> bool:
    """Whether what a walk went over is a pickle, and not other bytes that happen to look like one.

    Tensors begin in every way there is. Without PROTO, and where nothing else says pickle, it takes a name that could
    be imported.
    """
    known = [named for named in found.globals if _importable(named, bool(found.problem))]
    if not found.problem:
        return sure or expected or alone or bool(known) or (whole and bool(found.globals))
    if (
        (binary and known)
        or (found.crossed and (whole or sure))
        or (sure and (whole or expected or known or found.opcodes >= _SURE))
        or (expected and found.opcodes > 1)
    ):
        return True
    if alone and found.opcodes >= _SURE // 2:
        return True
    last = None if whole else found.cut  # tensors begin so by chance; no other opcode bears it out
    return any(named.called or grade(named, _ALLOWED)[0] == DANGEROUS for named in known if named is not last)


def _importable(named: Named, broken: bool) -> bool:
    if named.kind in (EXTENSION, COMPUTED):
        told = named.kind == EXTENSION and not broken
        return named.called > 0 and (told or bool(_COMPUTED.fullmatch(named.module + named.name)))
    return named.kind in ("", ALTERED) and bool(
        _IDENTIFIERS.fullmatch(named.module) and _IDENTIFIERS.fullmatch(named.name)
    )


def _cost(found: Walk) -> int:
    named = sum(named.count for named in found.globals)
    return _PICKLE + _OPCODE * found.opcodes + _NAME * named + found.searched // _SEARCHED


def _label(member: str, inner: str) -> str:
    return f"{member}: {inner}" if member else inner
