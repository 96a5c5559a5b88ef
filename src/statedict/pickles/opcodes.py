"""The opcodes of pickle: the one table that the reader (`machine`) and the scan (`globals`) share.

Each row says how an opcode's argument is laid out, what its bytes become, and how many values it takes from the stack
and leaves there. Python has two unpicklers, in C and in Python, and they read some texts differently: the C one ends a
number at a NUL, reads `I0300` as octal and `I+1` as a bool, and accepts an infinity only by its name; the Python one
accepts spaces. No pickler writes such a text. So an argument has one spelling here, the one that picklers write, and
every other one is damage.

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
    from collections.abc import Callable
    from typing import Any, NamedTuple

    class Opcode(NamedTuple):
        """One row.

        Attributes:
            code: the byte.
            name: as pickletools calls it.
            layout: of its argument: `none`, `fixed`, `counted` (a length, then so many bytes), `line` (ends with a line
                feed) or `lines` (two of them).
            width: of a fixed argument, or of the length of a counted one, in bytes.
            takes: how many values it takes from the stack; `TO_MARK` for all above the last mark, and the mark.
            leaves: how many values it leaves in their place.
            read: what becomes of the argument's bytes. It raises a ValueError or a CorruptFileError if it cannot be.
        """

        code: int
        name: str
        layout: str
        width: int
        takes: int
        leaves: int
        read: Callable[[bytes], Any]

else:
    Opcode = namedtuple("Opcode", "code name layout width takes leaves read")

TO_MARK = -1
_LONGEST = 1024  # bytes of an integer; Python prints none of over 4,300 digits, and torch.load reads 255 bytes
_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_FLOAT = re.compile(rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|inf)")
_ESCAPED = re.compile(rb"(?:[^\\]|\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[0-7]{1,2}(?![0-7])))*+")
_BOOLEANS = {b"00": False, b"01": True}
_MAX_INDEX = 1 << 32


def as_text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _differs(raw: bytes, what: str) -> CorruptFileError:
    return CorruptFileError(f"{what} spelled {raw[:40]!r}, which Python's unpicklers read differently or not at all")


def _unquote(raw: bytes) -> str | bytes:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[0] not in b"\"'":
        raise CorruptFileError("a string without its quotes")
    if not _ESCAPED.fullmatch(raw, 1, len(raw) - 1):
        raise _differs(raw, "a string")
    import codecs

    return as_text(codecs.escape_decode(raw[1:-1])[0])


def _decimal(raw: bytes) -> int:
    if raw.isdigit() and raw[0] != 0x30:  # most of them, fast
        return int(raw)
    if not _INTEGER.fullmatch(raw):
        raise _differs(raw, "a number")
    return int(raw)


def _int(raw: bytes) -> int | bool:
    return _BOOLEANS[raw] if raw in _BOOLEANS else _decimal(raw)


def _index(raw: bytes) -> int:
    if not raw.isdigit() or (raw[0] == 0x30 and len(raw) > 1):
        raise _differs(raw, "a memo index")
    if len(raw) > 10 or (index := int(raw)) >= _MAX_INDEX:
        raise CorruptFileError(f"a memo index of {len(raw)} digits")
    return index


def _float(raw: bytes) -> float:
    if not _FLOAT.fullmatch(raw) or (math.isinf(value := float(raw)) and b"inf" not in raw):
        raise _differs(raw, "a number")
    return value


def _long(raw: bytes) -> int:
    if len(raw) > _LONGEST:
        raise CorruptFileError(f"an integer of {len(raw):,} bytes, which is more than can be shown")
    return int.from_bytes(raw, "little", signed=True)


def _unicode(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _name(raw: bytes) -> str:
    if not raw:
        raise CorruptFileError("a global without a name")
    return raw.decode()


def _ascii(raw: bytes) -> str:
    return raw.decode("ascii")


def _uint(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _sint(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _double(raw: bytes) -> float:
    return float(struct.unpack(">d", raw)[0])


def _no_argument(raw: bytes) -> None:
    return None


def _plain(code: int, name: str, takes: int, leaves: int) -> Opcode:
    return Opcode(code, name, "none", 0, takes, leaves, _no_argument)


def _fixed(code: int, name: str, width: int, takes: int, leaves: int, read: Callable[[bytes], Any]) -> Opcode:
    return Opcode(code, name, "fixed", width, takes, leaves, read)


def _counted(code: int, name: str, width: int, read: Callable[[bytes], Any]) -> Opcode:
    return Opcode(code, name, "counted", width, 0, 1, read)


def _line(code: int, name: str, takes: int, leaves: int, read: Callable[[bytes], Any]) -> Opcode:
    return Opcode(code, name, "line", 0, takes, leaves, read)


_ROWS = [
    _plain(0x28, "MARK", 0, 0),
    _plain(0x29, "EMPTY_TUPLE", 0, 1),
    _plain(0x2E, "STOP", 1, 0),
    _plain(0x30, "POP", 1, 0),
    _plain(0x31, "POP_MARK", TO_MARK, 0),
    _plain(0x32, "DUP", 1, 2),
    _counted(0x42, "BINBYTES", 4, bytes),
    _counted(0x43, "SHORT_BINBYTES", 1, bytes),
    _line(0x46, "FLOAT", 0, 1, _float),
    _fixed(0x47, "BINFLOAT", 8, 0, 1, _double),
    _line(0x49, "INT", 0, 1, _int),
    _fixed(0x4A, "BININT", 4, 0, 1, _sint),
    _fixed(0x4B, "BININT1", 1, 0, 1, _uint),
    _line(0x4C, "LONG", 0, 1, lambda raw: _decimal(raw.removesuffix(b"L"))),
    _fixed(0x4D, "BININT2", 2, 0, 1, _uint),
    _plain(0x4E, "NONE", 0, 1),
    _line(0x50, "PERSID", 0, 1, _ascii),
    _plain(0x51, "BINPERSID", 1, 1),
    _plain(0x52, "REDUCE", 2, 1),
    _line(0x53, "STRING", 0, 1, _unquote),
    _counted(0x54, "BINSTRING", 4, as_text),
    _counted(0x55, "SHORT_BINSTRING", 1, as_text),
    _line(0x56, "UNICODE", 0, 1, lambda raw: raw.decode("raw-unicode-escape")),
    _counted(0x58, "BINUNICODE", 4, _unicode),
    _plain(0x5D, "EMPTY_LIST", 0, 1),
    _plain(0x61, "APPEND", 2, 1),
    _plain(0x62, "BUILD", 2, 1),
    Opcode(0x63, "GLOBAL", "lines", 0, 0, 1, _name),
    _plain(0x64, "DICT", TO_MARK, 1),
    _plain(0x65, "APPENDS", TO_MARK, 0),
    _line(0x67, "GET", 0, 1, _index),
    _fixed(0x68, "BINGET", 1, 0, 1, _uint),
    Opcode(0x69, "INST", "lines", 0, TO_MARK, 1, lambda raw: _name(raw) if raw.isascii() else _ascii(raw)),
    _fixed(0x6A, "LONG_BINGET", 4, 0, 1, _uint),
    _plain(0x6C, "LIST", TO_MARK, 1),
    _plain(0x6F, "OBJ", TO_MARK, 1),
    _line(0x70, "PUT", 0, 0, _index),
    _fixed(0x71, "BINPUT", 1, 0, 0, _uint),
    _fixed(0x72, "LONG_BINPUT", 4, 0, 0, _uint),
    _plain(0x73, "SETITEM", 3, 1),
    _plain(0x74, "TUPLE", TO_MARK, 1),
    _plain(0x75, "SETITEMS", TO_MARK, 0),
    _plain(0x7D, "EMPTY_DICT", 0, 1),
    _fixed(0x80, "PROTO", 1, 0, 0, _uint),
    _plain(0x81, "NEWOBJ", 2, 1),
    _fixed(0x82, "EXT1", 1, 0, 1, _uint),
    _fixed(0x83, "EXT2", 2, 0, 1, _uint),
    _fixed(0x84, "EXT4", 4, 0, 1, _sint),
    _plain(0x85, "TUPLE1", 1, 1),
    _plain(0x86, "TUPLE2", 2, 1),
    _plain(0x87, "TUPLE3", 3, 1),
    _plain(0x88, "NEWTRUE", 0, 1),
    _plain(0x89, "NEWFALSE", 0, 1),
    _counted(0x8A, "LONG1", 1, _long),
    _counted(0x8B, "LONG4", 4, _long),
    _counted(0x8C, "SHORT_BINUNICODE", 1, _unicode),
    _counted(0x8D, "BINUNICODE8", 8, _unicode),
    _counted(0x8E, "BINBYTES8", 8, bytes),
    _plain(0x8F, "EMPTY_SET", 0, 1),
    _plain(0x90, "ADDITEMS", TO_MARK, 0),
    _plain(0x91, "FROZENSET", TO_MARK, 1),
    _plain(0x92, "NEWOBJ_EX", 3, 1),
    _plain(0x93, "STACK_GLOBAL", 2, 1),
    _plain(0x94, "MEMOIZE", 0, 0),
    _fixed(0x95, "FRAME", 8, 0, 0, _uint),
    _counted(0x96, "BYTEARRAY8", 8, bytearray),
    _plain(0x97, "NEXT_BUFFER", 0, 1),
    _plain(0x98, "READONLY_BUFFER", 1, 1),
]
OPCODES: dict[int, Opcode] = {row.code: row for row in _ROWS}
COUNTED = {row.code: row for row in OPCODES.values() if row.layout == "counted"}
LINES = {row.code: row for row in OPCODES.values() if row.layout == "line"}
