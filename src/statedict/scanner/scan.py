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
from typing import Any

from statedict.errors import CorruptFileError, LimitError
from statedict.io.json import check
from statedict.io.location import location
from statedict.io.source import BytesSource
from statedict.io.tar import is_tar
from statedict.pickles.constructors import StorageType
from statedict.pickles.tables import DATA
from statedict.reports.scan import DANGEROUS
from statedict.scanner.archives import SEARCH, Archives, place_of
from statedict.scanner.containers import (
    Budget,
    Part,
    compression,
    local_member,
)
from statedict.scanner.effects import OBJECTS, Named
from statedict.scanner.globals import Walk, walk
from statedict.scanner.recognize import (
    ALLOWED,
    GLANCE,
    IDENTIFIERS,
    OLD,
    OPCODE,
    PATIENCE,
    PICKLE,
    STRONG,
    cost_of,
    hidden,
    is_lines,
    is_pickle,
)
from statedict.scanner.verdicts import grade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number before 1.6, and STOP
_HARMLESS = re.compile(rb"GGUF|\x89HDF\r\n|.{5}\x00\x00\x00\{\"", re.DOTALL)  # GGUF, HDF5, safetensors
_OBJECT_ARRAY = re.compile(rb"(?<!\()['\"]((?:[^'\"]*,)?[|<>=]?(?:O\d*|object))['\"]")  # a type; names follow a (
_ARRAY = re.compile(
    rb"\{'descr': '[|<>=]?[a-zA-Z](\d{1,9})(?:\[\w+\])?', 'fortran_order': \w+, 'shape': \(((?:\d{1,19}, ?)*\d{0,19})\)"
)
_FIRST_LINE = 4 << 20  # how long the first line of an archive may be for the archive to be looked at as a pickle
_OVERLAP = 512
_MAX_DEPTH = 8
_MAX_JSON = 64 << 20
_SERIALIZED = re.compile(rb"serialized|\\u")  # a key may be escaped


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, each key of it that stands twice included."""


class Scan(Archives):
    """The scan of one file or folder."""

    def file(self, path: str, member: str) -> Scan:
        """Look into a file; `member` is what its findings are called by.

        Raises:
            FileError: it cannot be opened.
        """
        return self.look(location(path).open(), member)

    def look(self, source: ByteSource, member: str) -> Scan:
        """Look into bytes; `member` is what its findings are called by."""
        self.budget = Budget(source.size)
        try:
            self.look_into(Part(source, 0, source.size), member, 0, whole=True)
        except LimitError as error:
            self.add_unread(member, 0, "the rest", str(error))
        except CorruptFileError as error:  # the file shrank while it was read
            self.add_damage(member, str(error))
        return self

    def look_into(self, part: Part, member: str, depth: int, *, whole: bool = False, expected: bool = False) -> None:
        """Look into whatever these bytes are."""
        head = part.read(0, 600)
        self.budget.spend(256)
        if not head:
            return
        if depth > _MAX_DEPTH:
            self.add_unread(member, 0, "something", f"nested over {_MAX_DEPTH} levels deep")
            return
        known = self.look_into_archive(part, member, depth, head, whole)
        if head[:6] == b"\x93NUMPY":
            self._numpy(part, member, depth, head, whole)
            known = True
        if is_tar(head):
            self.look_into_tar(part, member, depth)
            known = True
        if codec := compression(head):
            self.look_into_packed(part, member, depth, codec, expected, whole)
            known = True
        if not known:
            self.follow(part, member, depth, whole=whole, expected=expected)
        elif head[:1] == b"P":
            self.follow_magic(part, member)
        else:
            self.follow(part, member, depth)

    def follow_magic(self, part: Part, member: str) -> None:
        """Note what an archive names that is read as a pickle: its magic begins with PERSID, whose line is ASCII.

        Only a loader with persistent ids gets past that line. What follows is mostly the middle of the first record, so
        what it names too is no news, and where it breaks off is no damage.
        """
        line, newline, _ = part.read(0, _FIRST_LINE).partition(b"\n")
        if not newline or not line.isascii():
            return
        found = walk(part.read, fuel=self.budget.left // OPCODE, patience=GLANCE)
        self.budget.spend(cost_of(found))
        known = {(named.module, named.name) for named in self.found.values()}
        for named in found.globals:
            plausible = IDENTIFIERS.fullmatch(f"{named.module}.{named.name}")  # else it is bytes of a record
            if plausible and (named.module, named.name) not in known:
                self.add(member, named.offset, named, *grade(named, ALLOWED))

    def _numpy(self, part: Part, member: str, depth: int, head: bytes, whole: bool) -> None:
        wide = head[6:7] != b"\1"
        length = int.from_bytes(head[8 : 12 if wide else 10], "little") + (12 if wide else 10)
        header = part.read(0, min(length, 1 << 16))
        objects, plain = _OBJECT_ARRAY.search(header), _ARRAY.search(header)
        if objects:
            named = Named("numpy", f"dtype({objects[1].decode('latin-1')!r})", OBJECTS, 0)
            self.add(member, 0, named, *grade(named, ()))
        self.follow(part, member, depth, length, expected=objects is not None)
        if whole and plain and not objects:  # numpy.load reads one array after the other from an open file
            width = int(plain[1]) * (4 if b"U" in plain[0].split(b"'")[3] else 1)
            end = length + width * math.prod(int(count) for count in plain[2].split(b",") if count.strip())
            if end < part.size:
                self.look_into_gap(part, member, depth, end, part.size)

    def follow(
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
            if self.patience != GLANCE and part.read(at, 64).lstrip()[:1] in (b"{", b"["):
                self._json(part.part(at), member, depth)
            if expected:
                self.add_damage(member, "is no pickle, though its place says that it is one; it looks damaged")
            if not gap and (not whole or _HARMLESS.match(part.read(0, 16))):
                return
        self.search_through(part, member, depth, max(first, at if done is None else done.end), part.size)

    def _json(self, part: Part, member: str, depth: int) -> None:
        """Look into the pickles that Stable-Baselines3 keeps in JSON, in base64."""
        size = min(part.size, _MAX_JSON + 1)
        self.budget.spend(size)
        text = part.read(0, size)
        if not _SERIALIZED.search(text):
            return
        if len(text) > _MAX_JSON:
            self.add_unread(member, 0, "JSON with pickles in it", f"larger than {_MAX_JSON >> 20} MB")
            return
        check(text, "it")
        try:
            pending = [json.loads(text, object_pairs_hook=_Pairs)]
        except (ValueError, RecursionError) as error:
            self.add_damage(member, f"JSON that cannot be read, with pickles in it ({str(error)[:100]})")
            return
        while pending:
            value = pending.pop()
            for key, held in value if type(value) is _Pairs else enumerate(value):
                if type(held) in (list, _Pairs):
                    pending.append(held)
                elif key == ":serialized:" and type(held) is str:
                    self._serialized(held, member, depth)

    def _serialized(self, text: str, member: str, depth: int) -> None:
        label = place_of(member, ":serialized:")
        try:
            data = binascii.a2b_base64(text.encode())  # as the loader does, it passes over what is no base64
        except ValueError as error:
            self.add_damage(label, f"is no base64 ({error})")
            return
        self.look_into(Part(BytesSource(data, label)), label, depth + 1, expected=True)

    def _storages(self, part: Part, member: str, depth: int, at: int, keys: Walk, storages: dict[str, Named]) -> int:
        """Go past the storages of a file of PyTorch before 1.6, by the numbers of elements."""
        for offset in keys.texts:
            key = keys.text(offset)
            kind = DATA.get(f"{storages[key].module} {storages[key].name}") if key in storages else None
            numel = int.from_bytes(part.read(at, 8), "little", signed=True)
            end = at + 8 + numel * kind.dtype.itemsize if isinstance(kind, StorageType) else -1
            if numel < 0 or end < 0 or end > part.size:
                self.add_damage(
                    member, f"storage {key!r} at byte {at:,} does not fit into the file; it looks truncated"
                )
                return at
            self.patience = GLANCE
            for place in (at, at + 8):
                self.budget.spend(64)
                self._pickle(part.part(0, end), place, member, depth)
            self.patience = PATIENCE
            at = end
        return at

    def search_through(self, part: Part, member: str, depth: int, begin: int, end: int, *, listed: bool = True) -> None:
        """Find what is hidden in bytes that have no known form; `listed` says that records have a directory."""
        done = begin
        for base in range(begin, end, SEARCH - _OVERLAP):
            data = part.read(base, min(SEARCH, end - base))
            for start in hidden(data, done - base):
                place = base + start
                if place < done:
                    continue
                self.budget.spend(PICKLE)
                if data.startswith(b"PK\3\4", start):
                    inner = local_member(part, place, end)
                    if inner is not None:
                        if listed:
                            self.add_damage(place_of(member, inner.name), "stands in no directory of a zip archive")
                        self.look_into_member(part, member, inner, depth)
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
        tensor = self.patience == GLANCE
        sure = not tensor and STRONG.match(part.read(at, 2)) is not None
        patience = 1 << 62 if sure or whole or expected else self.patience

        def nested(begin: int, length: int, decode: Any) -> None:
            self._nested(part, begin, length, decode, member, depth + 1)

        found = walk(part.read, at, nested, torch=torch, fuel=self.budget.left // OPCODE, patience=patience)
        old = whole and OLD.match(part.read(at, 160)) is not None
        alone = found.truncated and old if found.problem else whole and not part.read(found.end, 1)
        binary = whole and not is_lines(part.read(at, 512))
        if not is_pickle(found, sure and not hidden, whole, expected, alone, binary):
            self.budget.spend(cost_of(found))
            if found.problem and found.opcodes > PATIENCE and not tensor:
                self.add_unread(member, at, "something that begins as a pickle", "it goes on without naming anything")
            return None
        self.pickles += 1
        for named in found.globals:
            self.add(member, named.offset, named, *grade(named, ALLOWED))
        for doubt in found.doubts:
            self.add_damage(member, f"the pickle at byte {at:,} is read differently by different readers: {doubt}")
        if found.problem and not hidden:
            self.add_damage(member, f"the pickle at byte {at:,} breaks off at byte {found.end:,}: {found.problem}")
        self.budget.spend(cost_of(found))
        return found

    def _nested(self, part: Part, begin: int, length: int, decode: Any, member: str, depth: int) -> None:
        label = place_of(member, f"bytes at {begin:,}")
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
        self.look_into(inner, label, depth)
        if self.pickles > before and compression(inner.read(0, 600)) == "" and inner.read(0, 2) != b"PK":
            named = Named("", "a pickle inside of a pickle", "", begin)
            self.add(label, 0, named, DANGEROUS, "whatever unpacks it runs what it names")
