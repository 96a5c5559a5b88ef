"""The opcodes of pickle: the table that the reader (`machine`) and the scan (`globals`) share.

A row gives the layout and the meaning of an opcode's argument, and its effect on the stack. Python has two unpicklers,
in C and in Python, and they read some texts differently: the C one ends a number at a NUL, reads `I0300` as octal and
`I+1` as a bool, and accepts an infinity only by its name; the Python one accepts spaces. Picklers write none of these.
So an argument has one spelling here, the picklers' own, and every other spelling is damage.

Source: CPython's Lib/pickletools.py for the table, Lib/pickle.py and Modules/_pickle.c (3.11 to 3.14) for the texts.
"""

from __future__ import annotations

import math
import re
import struct
from collections import namedtuple

from statedict.errors import CorruptFileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# A row. `code` and `name` are as in pickletools. `layout` is that of the argument: `none`, `fixed`, `counted` (a
# length, then so many bytes), `line` (ends with a line feed) or `lines` (two of them); `width` the bytes of a fixed
# argument, or of the length of a counted one. It `takes` so many values from the stack, `TO_MARK` for the last mark and
# all values above it, and `leaves` so many there. `read` converts the bytes of the argument, or raises ValueError or
# CorruptFileError.
Opcode = namedtuple("Opcode", "code name layout width takes leaves read")

TO_MARK = -1
_LONGEST = 1024  # bytes of an integer; Python prints none of over 4,300 digits, and torch.load reads 255 bytes
_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_FLOAT = re.compile(rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|inf)")
_ESCAPED = re.compile(rb"(?:[^\\]|\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[0-7]{1,2}(?![0-7])))*+")
_BOOLEANS = {b"00": False, b"01": True}
MAX_INDEX = 1 << 31  # of the memo; picklers count from 0, and Python's own would take 16 bytes for each below


def as_text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _spelling_error(raw: bytes, what: str) -> CorruptFileError:
    return CorruptFileError(f"{what} spelled {raw[:40]!r}, which Python's unpicklers read differently or not at all")


def _unquote(raw: bytes) -> str | bytes:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[0] not in b"\"'":
        raise CorruptFileError("a string without its quotes")
    if not _ESCAPED.fullmatch(raw, 1, len(raw) - 1):
        raise _spelling_error(raw, "a string")
    import codecs

    return as_text(codecs.escape_decode(raw[1:-1])[0])


def _decimal(raw: bytes) -> int:
    if raw.isdigit() and raw[0] != 0x30:  # most of them, fast
        return int(raw)
    if not _INTEGER.fullmatch(raw):
        raise _spelling_error(raw, "a number")
    return int(raw)


def _index(raw: bytes) -> int:
    if not raw.isdigit() or (raw[0] == 0x30 and len(raw) > 1):
        raise _spelling_error(raw, "a memo index")
    if len(raw) > 10 or (index := int(raw)) >= MAX_INDEX:
        raise CorruptFileError(f"a memo index of {len(raw)} digits")
    return index


def _float(raw: bytes) -> float:
    if not _FLOAT.fullmatch(raw) or (math.isinf(value := float(raw)) and b"inf" not in raw):
        raise _spelling_error(raw, "a number")
    return value


def _long(raw: bytes) -> int:
    if len(raw) > _LONGEST:
        raise CorruptFileError(f"an integer of {len(raw):,} bytes, too many to show")
    return int.from_bytes(raw, "little", signed=True)


def _unicode(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _name(raw: bytes, encoding: str = "utf-8") -> str:
    if not raw:
        raise CorruptFileError("a global without a name")
    return raw.decode(encoding)


def _uint(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _rows(names: str, layout: str, takes: int, leaves: int, read: Callable[[bytes], Any] = bytes) -> Iterator[Opcode]:
    """Rows that differ in code, name and width only, given as `4A:BININT:4`."""
    for text in names.split():
        code, name, *width = text.split(":")
        yield Opcode(int(code, 16), name, layout, int(width[0]) if width else 0, takes, leaves, read)


OPCODES: dict[int, Opcode] = {
    row.code: row
    for row in (
        *_rows("28:MARK 94:MEMOIZE", "none", 0, 0),
        *_rows("29:EMPTY_TUPLE 4E:NONE 5D:EMPTY_LIST 7D:EMPTY_DICT 88:NEWTRUE 89:NEWFALSE", "none", 0, 1),
        *_rows("8F:EMPTY_SET 97:NEXT_BUFFER", "none", 0, 1),
        *_rows("2E:STOP 30:POP", "none", 1, 0),
        *_rows("51:BINPERSID 85:TUPLE1 98:READONLY_BUFFER", "none", 1, 1),
        *_rows("32:DUP", "none", 1, 2),
        *_rows("52:REDUCE 61:APPEND 62:BUILD 81:NEWOBJ 86:TUPLE2 93:STACK_GLOBAL", "none", 2, 1),
        *_rows("73:SETITEM 87:TUPLE3 92:NEWOBJ_EX", "none", 3, 1),
        *_rows("31:POP_MARK 65:APPENDS 75:SETITEMS 90:ADDITEMS", "none", TO_MARK, 0),
        *_rows("64:DICT 6C:LIST 6F:OBJ 74:TUPLE 91:FROZENSET", "none", TO_MARK, 1),
        *_rows("71:BINPUT:1 72:LONG_BINPUT:4 80:PROTO:1 95:FRAME:8", "fixed", 0, 0, _uint),
        *_rows("4B:BININT1:1 4D:BININT2:2 68:BINGET:1 6A:LONG_BINGET:4 82:EXT1:1 83:EXT2:2", "fixed", 0, 1, _uint),
        *_rows("4A:BININT:4 84:EXT4:4", "fixed", 0, 1, _long),
        *_rows("47:BINFLOAT:8", "fixed", 0, 1, lambda raw: struct.unpack(">d", raw)[0]),
        *_rows("42:BINBYTES:4 43:SHORT_BINBYTES:1 8E:BINBYTES8:8", "counted", 0, 1),
        *_rows("96:BYTEARRAY8:8", "counted", 0, 1, bytearray),
        *_rows("54:BINSTRING:4 55:SHORT_BINSTRING:1", "counted", 0, 1, as_text),
        *_rows("58:BINUNICODE:4 8C:SHORT_BINUNICODE:1 8D:BINUNICODE8:8", "counted", 0, 1, _unicode),
        *_rows("8A:LONG1:1 8B:LONG4:4", "counted", 0, 1, _long),
        *_rows("46:FLOAT", "line", 0, 1, _float),
        *_rows("49:INT", "line", 0, 1, lambda raw: _BOOLEANS[raw] if raw in _BOOLEANS else _decimal(raw)),
        *_rows("4C:LONG", "line", 0, 1, lambda raw: _decimal(raw.removesuffix(b"L"))),
        *_rows("50:PERSID", "line", 0, 1, lambda raw: raw.decode("ascii")),
        *_rows("53:STRING", "line", 0, 1, _unquote),
        *_rows("56:UNICODE", "line", 0, 1, lambda raw: raw.decode("raw-unicode-escape")),
        *_rows("67:GET", "line", 0, 1, _index),
        *_rows("70:PUT", "line", 0, 0, _index),
        *_rows("63:GLOBAL", "lines", 0, 1, _name),
        *_rows("69:INST", "lines", TO_MARK, 1, lambda raw: _name(raw, "ascii")),
    )
}
COUNTED = {row.code: row for row in OPCODES.values() if row.layout == "counted"}
LINES = {row.code: row for row in OPCODES.values() if row.layout == "line"}
