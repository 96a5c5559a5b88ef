"""What each opcode does to the stack of a walk over a pickle, and what the walk makes a note of."""

from __future__ import annotations

import re

from statedict.pickles.opcodes import COUNTED, OPCODES, TO_MARK

COMPUTED, EXTENSION, OBJECTS, ALTERED, MORE = "computed", "extension", "objects", "altered", "more"
MAX_NAME = 1000

_SPECIAL = b"ab(st.02R\x81\x92\x93ghjpqr\x94\x95\x80\x82\x83\x84\x85\x86\x87"
# opcodes of no interest: how many bytes follow, how many values they take, how many they leave
PLAIN = [
    (row.width, row.takes, row.leaves)
    if row is not None and row.layout in ("none", "fixed") and row.takes != TO_MARK and code not in _SPECIAL
    else None
    for code, row in ((code, OPCODES.get(code)) for code in range(256))
]
WIDTHS = {code: row.width for code, row in COUNTED.items()}
NUMBERS = {code for code, row in COUNTED.items() if row.name.startswith("LONG")}
TEXTS = {code for code, row in COUNTED.items() if row.name.endswith(("UNICODE", "UNICODE8", "STRING"))}
TUPLES = {code: row.takes for code, row in OPCODES.items() if re.fullmatch("TUPLE[123]", row.name)}
MARKED = {code: row.leaves for code, row in OPCODES.items() if row.takes == TO_MARK and row.name not in ("INST", "OBJ")}
ADDS = {code for code in MARKED if OPCODES[code].name in ("APPENDS", "SETITEMS", "ADDITEMS")}
BEGINNINGS = re.compile(  # of what may hide in a constant: pickles, archives, arrays, compressed files
    rb"\x80[\x00-\x05]|\xc2\x80[\x00-\x05]|PK\x03\x04|\x93NUMPY|\xc2\x93NUMPY|\x1f\x8b\x08|\xfd7zXZ|BZh"
    rb"|x[\x01\x5e\x9c\xda]|[ci][^\n]{0,100}\n|[(\]})][\x00-\xff]{0,100}?\n|[(\]})]?.?.?.?\x8c[^\n]{2,60}\x93"
)
LINE_BEGINNINGS = re.compile(  # the same, escaped
    rb"['\"]?(?:\x80|\\x80|\\u0080|PK\\|\x93NUMPY|\\x93NUMPY|[ci(\]})][\x00-\xff]{0,100}?(?:\\n|\\u000a))"
)


def decode_name(name: bytes) -> str:
    """A name as text, its first characters."""
    name = name[:MAX_NAME]
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


class Named:
    """A global in one pickle.

    Attributes:
        module, name: as the pickle spells them.
        kind: empty; or `computed`, `extension`, `objects` (a dtype of Python objects), `altered` (something is stored
            in it), `more` (over 10,000).
        offset: of the opcode that names it first.
        count: how many opcodes name it.
        called: how many opcodes call it, make an instance of it, or give it a state.
    """

    __slots__ = ("called", "count", "kind", "module", "name", "offset")

    def __init__(self, module: str, name: str, kind: str, offset: int) -> None:
        self.module, self.name, self.kind, self.offset, self.count, self.called = module, name, kind, offset, 0, 0
