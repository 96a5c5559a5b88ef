"""The opcodes that hold one string or number: how long it is, and what its bytes become."""

from __future__ import annotations

from statedict.errors import CorruptFileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_LONGEST = 1024  # bytes of an integer; Python prints none of over 4,300 digits, and torch.load reads 255 bytes


def as_text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _quoted(raw: bytes) -> str | bytes:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[0] not in b"\"'":
        raise CorruptFileError("a string without its quotes")
    import codecs

    return as_text(codecs.escape_decode(raw[1:-1])[0])


def _integer(raw: bytes) -> int | bool:
    if raw in (b"00", b"01"):
        return raw == b"01"
    return int(raw.removesuffix(b"L"))


def _long(raw: bytes) -> int:
    if len(raw) > _LONGEST:
        raise CorruptFileError(f"an integer of {len(raw):,} bytes, which is more than can be shown")
    return int.from_bytes(raw, "little", signed=True)


def _unicode(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


# opcode: width of the length, what the bytes become
COUNTED: dict[int, tuple[int, Callable[[bytes], Any]]] = {
    0x8A: (1, _long),  # LONG1
    0x8B: (4, _long),  # LONG4
    0x54: (4, as_text),  # BINSTRING
    0x55: (1, as_text),  # SHORT_BINSTRING
    0x42: (4, bytes),  # BINBYTES
    0x43: (1, bytes),  # SHORT_BINBYTES
    0x8E: (8, bytes),  # BINBYTES8
    0x96: (8, bytearray),  # BYTEARRAY8
    0x8D: (8, _unicode),  # BINUNICODE8
}
# opcode: what its line of text becomes
LINES: dict[int, Callable[[bytes], Any]] = {
    0x49: _integer,  # INT
    0x4C: _integer,  # LONG
    0x46: float,  # FLOAT
    0x53: _quoted,  # STRING
    0x56: lambda raw: raw.decode("raw-unicode-escape"),  # UNICODE
}
