"""Goes through the parts of a file, and records the globals that the pickles among them name.

The first bytes say what a part is. A zip archive is taken apart by its directory and by its local headers, a stream of
pickles one by one, a file of PyTorch before 1.6 by the sizes of its storages. The rest is searched for PROTO, for
GLOBAL or STACK_GLOBAL with a name, and for records of a zip archive; there, a pickle counts if it names something.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

from statedict.errors import CorruptFileError, LimitError, StateDictError
from statedict.io.json import check
from statedict.io.location import location
from statedict.io.source import ByteSource, BytesSource
from statedict.io.tar import is_tar
from statedict.pickles.constructors import StorageType
from statedict.pickles.joblib import list_arrays
from statedict.pickles.tables import DATA
from statedict.reports.outcomes import OPAQUE, WORST_FIRST, Finding, ScanReport
from statedict.scanner import archives, keras, verdicts
from statedict.scanner.containers import EXPECTED, TENSOR, WHOLE, Budget, Part, find_compression
from statedict.scanner.globals import Walk, walk
from statedict.scanner.names import NESTED, OBJECTS, GlobalRef

MAX_FINDINGS = 20_000
_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number before 1.6, and STOP
_HARMLESS = re.compile(rb"GGUF|\x89HDF\r\n|.{5}\x00\x00\x00\{\"", re.DOTALL)  # GGUF, HDF5, safetensors
_OBJECT_ARRAY = re.compile(rb"(?<!\()['\"]((?:[^'\"]*,)?[|<>=]?(?:O\d*|object))['\"]")  # a type; names follow a (
_ARRAY = re.compile(
    rb"\{'descr': '[|<>=]?[a-zA-Z](\d{1,9})(?:\[\w+\])?', 'fortran_order': \w+, 'shape': \(((?:\d{1,19}, ?)*\d{0,19})\)"
)
_FIRST_LINE = 4 << 20  # most bytes in the first line of an archive that is also read as a pickle
_OVERLAP = 512
_JOBLIB = b"joblib.numpy_pickle"
_MAX_JOBLIB = 1 << 30
_MAX_DEPTH = 8
_MAX_JSON = 64 << 20
_SERIALIZED = re.compile(rb"serialized|\\u")  # a key may be escaped


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, including keys that stand twice."""


class Scan:
    """The scan of one file or folder.

    Attributes:
        path: as the caller spells it.
        pickles: how many it has read.
        found: by member, module, name and kind.
        notes, damage: lines of text.
        budget: the work left for the current file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.pickles, self.budget = path, 0, Budget(0)
        self.found: dict[tuple[str, str, str, str], Finding] = {}
        self.notes: list[str] = []
        self.damage: list[str] = []

    def file(self, path: str, member: str) -> Scan:
        """Look into a file; its findings are labelled `member`.

        Raises:
            FileError: it cannot be opened.
        """
        return self.look(location(path).open(), member)

    def look(self, source: ByteSource, member: str) -> Scan:
        """Look into the bytes of a file."""
        self.budget = Budget(source.size)
        try:
            self.look_into(Part(source, 0, source.size, member, 0, WHOLE))
        except LimitError as error:
            self.add_unread(member, "the rest", str(error))
        except CorruptFileError as error:  # the file shrank while it was read
            self.add_damage(member, str(error))
        return self

    def report(self) -> ScanReport:
        """All findings."""
        if self.count_findings() == (0, 0, 0):
            self.notes.append("no pickle in it")
        order = sorted(self.found.values(), key=lambda found: WORST_FIRST.index(found.verdict))
        return ScanReport(self.path, self.pickles, tuple(order), tuple(self.notes), tuple(dict.fromkeys(self.damage)))

    def count_findings(self) -> tuple[int, int, int]:
        """The numbers of pickles, globals and damaged places."""
        return self.pickles, len(self.found), len(self.damage)

    def add(self, label: str, ref: GlobalRef) -> None:
        """Record a global."""
        key = (label, ref.module, ref.name, ref.kind)
        known = self.found.get(key)
        if known is not None:
            self.found[key] = replace(known, count=known.count + ref.count, called=known.called + ref.called)
            return
        if len(self.found) >= MAX_FINDINGS:
            raise LimitError(f"has more than {MAX_FINDINGS:,} findings")
        count = max(ref.count, 1)  # what no opcode names stands once
        verdict, why = verdicts.grade(ref, verdicts.ALLOWED)
        self.found[key] = Finding(label, ref.offset, ref.module, ref.name, verdict, why, ref.called, count)

    def add_unread(self, label: str, what: str, why: str, offset: int = 0) -> None:
        """Record a part that is not looked into."""
        finding = Finding(label, offset, "", what, OPAQUE, f"{why}: not looked into", 0, 1)
        self.found.setdefault((label, "", what, why), finding)

    def add_damage(self, label: str, *texts: str) -> None:
        """Record damage."""
        lines = (f"{label}: {text}" if label else text for text in texts)
        self.damage += islice(lines, max(0, MAX_FINDINGS - len(self.damage)))

    def look_into(self, part: Part) -> None:
        """Look into bytes of any kind."""
        head = part.read(0, 600)
        self.budget.spend(256)
        if not head:
            return
        if part.depth > _MAX_DEPTH:
            self.add_unread(part.label, "something", f"nested over {_MAX_DEPTH} levels deep")
            return
        archive = archives.look_into_archive(self, part, head)
        array, codec = head[:6] == b"\x93NUMPY", find_compression(head)
        if array:
            self._look_into_array(part, head)
        if is_tar(head):
            archives.look_into_tar(self, part)
            archive = True
        if codec:
            archives.look_into_packed(self, part, codec, role="" if part.role == WHOLE else part.role)
        if not (archive or array or codec):
            if not self._follow_joblib(part):
                self.follow(part)
        elif head[:1] == b"P":
            self._follow_magic(part)
        else:
            self.follow(part.cut(0, role="" if archive else None))

    def walk(self, part: Part, patience: int = 1 << 62) -> Walk:
        """Walk over the opcodes that the part begins with."""
        walked = walk(part.read, fuel=self.budget.left // verdicts.OPCODE, patience=patience)
        self.budget.spend(verdicts.cost_of(walked))
        return walked

    def _follow_magic(self, part: Part) -> None:
        """Record what a zip archive names when read as a pickle: its magic begins with PERSID, whose line is ASCII.

        Only a loader with persistent ids gets past that line. The rest is mostly the middle of the first record, so
        known names are not recorded again, and it breaks off without being damaged.
        """
        line, newline, _ = part.read(0, _FIRST_LINE).partition(b"\n")
        if not newline or not line.isascii():
            return
        walked = self.walk(part, patience=verdicts.GLANCE)
        known = {(finding.module, finding.name) for finding in self.found.values()}
        for ref in walked.globals:
            plausible = verdicts.IDENTIFIERS.fullmatch(f"{ref.module}.{ref.name}")  # else it is bytes of a record
            if plausible and (ref.module, ref.name) not in known:
                self.add(part.label, ref)

    def _follow_joblib(self, part: Part) -> bool:
        """Look into a pickle of joblib without the arrays that lie between its opcodes; False if it is none."""
        if part.role == TENSOR or _JOBLIB not in part.read(0, 1 << 16) or part.size > _MAX_JOBLIB:
            return False
        data = part.read(0, part.size)
        self.budget.spend(len(data))
        try:
            arrays, pickles, end = list_arrays(data, part.label)
        except StateDictError:
            return False
        kept = [(begin, stop) for (_, begin), (stop, _) in pairwise([(0, 0), *arrays, (end, end)])]
        pieces = b"".join(data[begin:stop] for begin, stop in kept)
        self.follow(Part(BytesSource(pieces, part.label), 0, None, part.label, part.depth, part.role))
        for begin, stop in pickles:
            self.look_into(part.cut(begin, stop).inner(f"an array of objects at byte {begin:,}", role=EXPECTED))
        self.search_through(part, end, part.size)
        return True

    def _look_into_array(self, part: Part, head: bytes) -> None:
        wide = head[6:7] != b"\1"
        length = int.from_bytes(head[8 : 12 if wide else 10], "little") + (12 if wide else 10)
        header = part.read(0, min(length, 1 << 16))
        objects, plain = _OBJECT_ARRAY.search(header), _ARRAY.search(header)
        if objects:
            self.add(part.label, GlobalRef("numpy", f"dtype({objects[1].decode('latin-1')!r})", OBJECTS, 0))
        self.follow(part.cut(0, role=EXPECTED if objects else None), length)
        if part.role == WHOLE and plain and not objects:  # numpy.load reads several arrays from an open file
            width = int(plain[1]) * (4 if b"U" in plain[0].split(b"'")[3] else 1)
            end = length + width * math.prod(int(count) for count in plain[2].split(b",") if count.strip())
            if end < part.size:
                archives.look_into_gap(self, part, end, part.size)

    def follow(self, part: Part, at: int = 0, *, gap: bool = False) -> None:
        """Read pickles one after the other, and search what is between and behind them."""
        first, number, legacy = at, 0, False
        while True:
            done = self._pickle(part, at, torch=legacy and number > 2)
            if done is None or done.problem:
                break
            legacy = legacy or (number == 0 and part.read(at, 64)[: done.end - at].endswith(_MAGIC))
            at, number = done.end, number + 1
            if legacy and number == 4:
                storages = done.storages
            if legacy and number == 5:
                at = self._skip_storages(part, at, done, storages)
                legacy = False
            if not part.read(at, 1):
                return
            part = part.cut(0)
        if number == 0 and done is None:
            if part.role != TENSOR and part.read(at, 64).lstrip()[:1] in (b"{", b"["):
                self._look_into_json(part.cut(at))
            if part.role != TENSOR and part.read(at, 8) == keras.HDF5:
                keras.search_hdf5(self, part.cut(at))
            if part.role == EXPECTED:
                self.add_damage(part.label, "is not a pickle, although its name says so; it looks damaged")
            if not gap and (part.role != WHOLE or _HARMLESS.match(part.read(0, 16))):
                return
        self.search_through(part, max(first, at if done is None else done.end), part.size)

    def _look_into_json(self, part: Part) -> None:
        """Look into the pickles that Stable-Baselines3 keeps in JSON, in base64, and at what Keras would make."""
        size = min(part.size, _MAX_JSON + 1)
        self.budget.spend(size)
        text = part.read(0, size)
        configured = keras.MARK.search(text) is not None
        if not _SERIALIZED.search(text) and not configured:
            return
        if len(text) > _MAX_JSON:
            self.add_unread(part.label, "JSON with pickles or a model in it", f"larger than {_MAX_JSON >> 20} MB")
            return
        check(text, "it")
        try:
            pending = [json.loads(text, object_pairs_hook=_Pairs)]
        except (ValueError, RecursionError) as error:
            self.add_damage(part.label, f"JSON that cannot be read, with pickles in it ({str(error)[:100]})")
            return
        if configured:
            keras.find_objects(self, part.label, pending[0])
        while pending:
            value = pending.pop()
            for key, item in value if type(value) is _Pairs else enumerate(value):
                if type(item) in (list, _Pairs):
                    pending.append(item)
                elif key == ":serialized:" and type(item) is str:
                    try:
                        data = binascii.a2b_base64(item.encode())  # skips what is not base64, as the loader does
                    except ValueError as error:
                        self.add_damage(part.label_of(key), f"is not base64 ({error})")
                    else:
                        self.look_into(part.inner(key, BytesSource(data, key), EXPECTED))

    def _skip_storages(self, part: Part, at: int, keys: Walk, storages: dict[str, GlobalRef]) -> int:
        """Go past the storages of a file of PyTorch before 1.6, by the numbers of elements; the offset after them."""
        for offset in keys.texts:
            key = keys.text(offset)
            kind = DATA.get(f"{storages[key].module} {storages[key].name}") if key in storages else None
            numel = int.from_bytes(part.read(at, 8), "little", signed=True)
            end = at + 8 + numel * kind.dtype.itemsize if isinstance(kind, StorageType) else -1
            if numel < 0 or end < 0 or end > part.size:
                text = f"storage {key!r} at byte {at:,} does not fit into the file; it looks truncated"
                self.add_damage(part.label, text)
                return at
            for place in (at, at + 8):
                self.budget.spend(64)
                self._pickle(part.cut(0, end, TENSOR), place)
            at = end
        return at

    def search_through(self, part: Part, begin: int, end: int, *, listed: bool = True) -> None:
        """Find what is hidden in bytes of no known form; `listed` says that records have a directory."""
        done = begin
        for base in range(begin, end, archives.SEARCH - _OVERLAP):
            data = part.read(base, min(archives.SEARCH, end - base))
            for start in verdicts.find_beginnings(data, done - base):
                place = base + start
                if place < done:
                    continue
                self.budget.spend(verdicts.PICKLE)
                if not data.startswith(b"PK\3\4", start):
                    walked = self._pickle(part.cut(0, end), place, hidden=True)
                    done = done if walked is None else walked.end
                    continue
                inner = archives.local_member(part, place, end)
                if inner is not None:
                    if listed:
                        self.add_damage(part.label_of(inner.name), "stands in no directory of a zip archive")
                    archives.look_into_member(self, part, inner)
                    honest = part.read(inner.end, 2) == b"PK"  # else what it spans may hide another
                    done = max(place + 4, inner.end if honest else inner.start)

    def _pickle(self, part: Part, at: int, *, hidden: bool = False, torch: bool = False) -> Walk | None:
        """Walk over the pickle at an offset, if there is one, and record what it names."""
        tensor = part.role == TENSOR
        sure = not tensor and verdicts.STRONG.match(part.read(at, 2)) is not None
        patience = verdicts.GLANCE if tensor else 1 << 62 if sure or part.role else verdicts.PATIENCE

        def scan_nested(begin: int, length: int, decode: Any) -> None:
            self._look_into_constant(
                part.cut(begin, begin + length).inner(f"bytes at {begin:,}"), length, decode, begin
            )

        walked = walk(
            part.read, at, scan_nested, torch=torch, fuel=self.budget.left // verdicts.OPCODE, patience=patience
        )
        known = verdicts.is_pickle(walked, part, sure and not hidden)
        if known:
            self.pickles += 1
            for ref in walked.globals:
                self.add(part.label, ref)
            what = f"the pickle at byte {at:,} is read differently by different readers"
            self.add_damage(part.label, *(f"{what}: {doubt}" for doubt in walked.doubts))
            if walked.problem and not hidden:
                text = f"the pickle at byte {at:,} breaks off at byte {walked.end:,}: {walked.problem}"
                self.add_damage(part.label, text)
        elif walked.problem and walked.opcodes > verdicts.PATIENCE and not tensor:
            self.add_unread(part.label, "something that begins as a pickle", "it goes on without naming anything", at)
        self.budget.spend(verdicts.cost_of(walked))
        return walked if known else None

    def _look_into_constant(self, part: Part, length: int, decode: Any, at: int) -> None:
        if decode is not None:
            raw = part.read(0, length)
            self.budget.spend(len(raw))
            try:
                text = decode(raw)
                data = BytesSource(text.encode("latin-1") if type(text) is str else text, part.label)
            except ValueError:  # a text that stands for no bytes
                return
            part = Part(data, 0, None, part.label, part.depth, part.role)
        before = self.pickles
        self.look_into(part)
        if self.pickles > before and not find_compression(part.read(0, 600)) and part.read(0, 2) != b"PK":
            self.add(part.label, GlobalRef("", "a pickle inside of a pickle", NESTED, 0))
