"""How pickles and archives begin, and when what a walk went over is a pickle."""

from __future__ import annotations

import re

from statedict.pickles.tables import DATA
from statedict.reports.scan import DANGEROUS
from statedict.scanner.containers import EXPECTED, WHOLE, Part
from statedict.scanner.globals import Walk
from statedict.scanner.names import ALTERED, COMPUTED, EXTENSION, GlobalRef
from statedict.scanner.verdicts import IDENTIFIERS, RECORDS, grade

ALLOWED = DATA.keys() | RECORDS
STRONG = re.compile(rb"\x80[\x00-\x05]")  # PROTO, which nearly every pickle begins with
_OLD = re.compile(rb"[(\]})]|c[\w.]+\n[\w.]+\n")  # how those of protocols 0 and 1 begin
_LINES = re.compile(rb"(?:[\t\r\x20-\x7e\x80-\xff]+\n){3,}[\t\r\x20-\x7e\x80-\xff]*")  # how text begins
_COMPUTED = re.compile(r"[\w.?]+")
# how something may begin in the midst of other bytes: a pickle, a pickle without PROTO, a record of a zip archive
_HIDDEN = (
    re.compile(rb"\x80[\x00-\x05][\x00-\xff]"),
    re.compile(rb"\x8c[\x01-\x7f][A-Za-z_][\w.]{0,126}(?:\x94|q.|r.{4})?[\x8cXU]", re.DOTALL),
    re.compile(rb"PK\x03\x04"),
)
# the line feed after a module, before a name and an opcode that may follow
_LINE = re.compile(rb"\n(?=[A-Za-z_][\w.]{0,127}\n(?:[(q)\]}XUVSNKJMLITCBRG.0cb\x80-\xff]|p\d))")
_WORD = re.compile(rb"[\w.]{1,128}\Z")
PATIENCE = 1 << 20  # opcodes without a global after which a walk gives up
GLANCE = 1 << 12  # the same, where an archive says tensor
# costs, in bytes of the budget: of a search for a pickle, an opcode, a name; and bytes of a line that cost one
PICKLE, OPCODE, _NAME, _SEARCHED = 256, 4, 40, 16
_SURE = 16  # random bytes do not get through so many opcodes


def find_beginnings(data: bytes, done: int) -> list[int]:
    """Offsets where something may begin in bytes of no known form; what lies before `done` is known."""
    starts = {found.start() for pattern in _HIDDEN for found in pattern.finditer(data)}
    for found in _LINE.finditer(data):
        word = _WORD.search(data, max(0, found.start() - 128), found.start())
        if word:
            letters = {word.start() + at for at, letter in enumerate(word[0][:-1]) if letter in b"ci"}
            starts |= letters
            if any(data[at] == 0x69 for at in letters):  # INST takes what follows a MARK
                starts.add(max(done, 0, data.rfind(b"(", max(0, word.start() - 256), word.end())))
    return sorted(starts)


def is_lines(head: bytes) -> bool:
    """Whether bytes are three lines of text or more: a list of words may look like names."""
    return _LINES.fullmatch(head) is not None


def is_pickle(found: Walk, part: Part, sure: bool) -> bool:
    """Whether a walk went over a pickle, and not over other bytes that happen to look like one.

    Tensors begin in every way. Without PROTO (`sure`) and a role that says pickle, it takes a name that could be
    imported.
    """
    whole, expected = part.role == WHOLE, part.role == EXPECTED
    known = [ref for ref in found.globals if _is_importable(ref, bool(found.problem))]
    if not found.problem:
        alone = whole and not part.read(found.end, 1)
        return sure or expected or alone or bool(known) or (whole and bool(found.globals))
    if (
        (whole and known and not is_lines(part.read(found.start, 512)))
        or (found.crossed and (whole or sure))
        or (sure and (whole or expected or known or found.opcodes >= _SURE))
        or (expected and found.opcodes > 1)
    ):
        return True
    if whole and found.truncated and found.opcodes >= _SURE // 2 and _OLD.match(part.read(found.start, 160)):
        return True
    last = None if whole else found.cut  # tensors begin so by chance; no other opcode bears it out
    return any(ref.called or grade(ref, ALLOWED)[0] == DANGEROUS for ref in known if ref is not last)


def _is_importable(ref: GlobalRef, broken: bool) -> bool:
    if ref.kind in (EXTENSION, COMPUTED):
        certain = ref.kind == EXTENSION and not broken
        return ref.called > 0 and (certain or bool(_COMPUTED.fullmatch(ref.module + ref.name)))
    return ref.kind in ("", ALTERED) and bool(IDENTIFIERS.fullmatch(ref.module) and IDENTIFIERS.fullmatch(ref.name))


def cost_of(found: Walk) -> int:
    """The cost of a walk, in bytes of the budget."""
    names = sum(ref.count for ref in found.globals)
    return PICKLE + OPCODE * found.opcodes + _NAME * names + found.searched // _SEARCHED
