"""What bytes may be: how pickles and archives begin, and when what a walk went over is a pickle."""

from __future__ import annotations

import re

from statedict.pickles.tables import DATA
from statedict.reports.scan import DANGEROUS
from statedict.scanner.effects import ALTERED, COMPUTED, EXTENSION, Named
from statedict.scanner.globals import Walk
from statedict.scanner.verdicts import RECORDS, grade

ALLOWED = DATA.keys() | RECORDS
STRONG = re.compile(rb"\x80[\x00-\x05]")  # PROTO, which nearly every pickle begins with
OLD = re.compile(rb"[(\]})]|c[\w.]+\n[\w.]+\n")  # how those of protocols 0 and 1 begin
_LINES = re.compile(rb"(?:[\t\r\x20-\x7e\x80-\xff]+\n){3,}[\t\r\x20-\x7e\x80-\xff]*")  # how text begins
IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
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
PATIENCE = 1 << 20  # opcodes without a global, of what may as well be a tensor
GLANCE = 1 << 12  # the same, of what an archive says is a tensor
PICKLE = 256  # what looking for one costs, in bytes of the budget
OPCODE = 4  # what following an opcode costs
_NAME = 40  # what naming a global costs
_SEARCHED = 16  # bytes searched for the end of a line cost one
_SURE = 16  # opcodes that random bytes do not get through


def hidden(data: bytes, done: int) -> list[int]:
    """Where in bytes that have no known form something may begin; what lies before `done` is known."""
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


def is_pickle(found: Walk, sure: bool, whole: bool, expected: bool, alone: bool, binary: bool) -> bool:
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
    return any(named.called or grade(named, ALLOWED)[0] == DANGEROUS for named in known if named is not last)


def _importable(named: Named, broken: bool) -> bool:
    if named.kind in (EXTENSION, COMPUTED):
        told = named.kind == EXTENSION and not broken
        return named.called > 0 and (told or bool(_COMPUTED.fullmatch(named.module + named.name)))
    return named.kind in ("", ALTERED) and bool(
        IDENTIFIERS.fullmatch(named.module) and IDENTIFIERS.fullmatch(named.name)
    )


def cost_of(found: Walk) -> int:
    """What a walk takes of the budget."""
    named = sum(named.count for named in found.globals)
    return PICKLE + OPCODE * found.opcodes + _NAME * named + found.searched // _SEARCHED
