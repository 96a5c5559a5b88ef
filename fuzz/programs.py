"""Pickles that no pickler writes: programs over every opcode with arguments of every spelling, and damaged real ones.

Every name in them is of a module that does not exist, or of a class that holds data.
"""

from __future__ import annotations

import collections
import pickle
import struct
from collections.abc import Callable
from random import Random
from typing import Any

MODULES = ("home", "home.inner", "collections", "builtins", "torch._utils", "extension_home")
NAMES = ("Thing", "thing", "OrderedDict", "set", "_rebuild", "x")
# what the registry of extension codes holds while the readers run
EXTENSIONS = {
    1: ("extension_home", "one"),
    200: ("extension_home", "two"),
    300: ("home", "Three"),
    70000: ("home", "x"),
}
_TEXTS = ("", "a", "weight", "0", "1", "é", "\u2028", "\U0001f600", "_metadata", "\ud800", "a\nb", "\x80\x04", "\0")
_NUMBERS = (
    "0", "1", "-1", "7", "00", "01", "10", "255", "65536", "-2147483649", "256", "99999999999999999999", "0300", "007",
    "+1", "-0", "+0", " 1", "1 ", "\t1", "1\r", "1_0", "_1", "0x10", "0b1", "0o7", "1L", "01L", "L", "", "1\0",
    "1\x002", "\x00", "1.5", "1e5", "true", "\u0661", "000000000000000000001", "0000000000000000000012", "1" + "0" * 30,
    "--1",
)  # fmt: skip
_FLOATS = (
    "0.0", "1.5", "-1e-05", "1e+16", "nan", "inf", "-inf", "infinity", "NaN", "-nan", "1e999", "-1e999", "1_0.5",
    " 1.5", "1.5 ", "1.5\0", "0x1p3", "1.", ".5", "", "1e", "+1.5", "1,5", "1.5L", "Infinity", "INF", "1E5",
)  # fmt: skip
_STRINGS = (
    "'a'", '"a"', "''", "'", "'a", "a'", "'a\"", "a", "", "'a' ", " 'a'", "'\\x61'", "'\\141'", "'\\777'", "'\\q'",
    "'\\'", "'a\\'", "'\\n'", "'é'", "'a'b'", "'\\x6'", "'\\u0061'", "'home'", "'Thing'", "'\\x80'", "'a\0b'",
)  # fmt: skip
_UNICODES = ("a", "", "home", "Thing", "\\u0061", "\\U00000061", "\\u00", "\\x61", "é", "a\\", "\\U00110000", "\\ud800")
_LENGTHS = (0, 1, 2, 3, 7, 8, 255)

Argument = Callable[[Random], bytes]


def _fixed(width: int, values: tuple[int, ...]) -> Argument:
    return lambda random: (
        random.choice(values) if random.random() < 0.8 else random.getrandbits(8 * width)
    ).to_bytes(width, "little")  # fmt: skip


def _line(texts: tuple[str, ...], plain: int) -> Argument:
    """A line of one of the texts, mostly of the first ones, which are as picklers write them."""
    lines = [text.encode("utf-8", "surrogatepass") + b"\n" for text in texts]
    return lambda random: random.choice(lines[:plain] if random.random() < 0.7 else lines)


def _indexes(width: int) -> Argument:
    values = (0, 0, 1, 1, 2, 3, 4, 7, 9, 255 if width == 1 else 1000)
    return lambda random: random.choice(values).to_bytes(width, "little")


def _name(random: Random) -> str:
    return random.choice(MODULES if random.random() < 0.5 else NAMES)


def _text(random: Random) -> bytes:
    text = random.choice(_TEXTS) if random.random() < 0.4 else _name(random)
    raw = text.encode("utf-8", "surrogatepass")
    return raw + bytes(random.getrandbits(8) for _ in range(random.choice((0,) * 15 + (1,))))


def _counted(width: int, signed: bool = False) -> Argument:
    def make(random: Random) -> bytes:
        raw = _text(random) if random.random() < 0.8 else random.randbytes(random.choice(_LENGTHS))
        length = len(raw) if random.random() < 0.985 else random.choice((len(raw) + 1, max(0, len(raw) - 1), 255))
        return (length & ((1 << 8 * width) - 1)).to_bytes(width, "little") + raw

    return make


def _lines(random: Random) -> bytes:
    if random.random() < 0.95:
        module, name = random.choice(MODULES), random.choice(NAMES)
    else:
        module, name = (
            random.choice(("", "a b", "é", "home\r", ".", "home\0", "-")),
            random.choice(("", "a.b", "é", " ")),
        )
    return f"{module}\n{name}\n".encode()


def _nothing(random: Random) -> bytes:
    return b""


_NUMBER = _line(_NUMBERS, 10)
# code, what it needs on the stack from below (`v` a value, `s` a string, `g` a global, `m` an object that a call made,
# `t` a tuple, `l` a list, `d` a dict, `e` a set, `(` a mark and what is above it), what it leaves, its argument
_GRAMMAR: tuple[tuple[bytes, str, str, Argument], ...] = (
    (b"(", "", "(", _nothing),
    (b")", "", "t", _nothing),
    (b"0", "v", "", _nothing),
    (b"1", "(", "", _nothing),
    (b"2", "v", "2", _nothing),
    (b"B", "", "v", _counted(4)),
    (b"C", "", "v", _counted(1)),
    (b"F", "", "v", _line(_FLOATS, 7)),
    (b"G", "", "v", lambda random: struct.pack(">d", random.choice((0.0, -0.0, 1.5, float("nan"), float("inf"))))),
    (b"I", "", "v", _line(_NUMBERS, 10)),
    (b"J", "", "v", _fixed(4, (0, 1, 255, 1 << 31, (1 << 32) - 1))),
    (b"K", "", "v", _fixed(1, (0, 1, 255))),
    (b"L", "", "v", lambda random: _NUMBER(random).replace(b"\n", random.choice((b"L\n", b"\n")))),
    (b"M", "", "v", _fixed(2, (0, 1, 65535))),
    (b"N", "", "v", _nothing),
    (b"P", "", "m", _line(("0", "key", "", "a b", "é"), 4)),
    (b"Q", "v", "m", _nothing),
    (b"R", "gt", "m", _nothing),
    (b"R", "mt", "m", _nothing),
    (b"S", "", "s", _line(_STRINGS, 3)),
    (b"T", "", "s", _counted(4)),
    (b"U", "", "s", _counted(1)),
    (b"V", "", "s", _line(_UNICODES, 6)),
    (b"X", "", "s", _counted(4)),
    (b"]", "", "l", _nothing),
    (b"a", "lv", "l", _nothing),
    (b"a", "mv", "m", _nothing),
    (b"b", "mv", "m", _nothing),
    (b"b", "gd", "g", _nothing),
    (b"c", "", "g", _lines),
    (b"d", "(", "d", _nothing),
    (b"e", "l(", "l", _nothing),
    (b"e", "m(", "m", _nothing),
    (b"g", "", "2", _line(_NUMBERS, 2)),
    (b"h", "", "2", _indexes(1)),
    (b"i", "(", "m", _lines),
    (b"j", "", "2", _indexes(4)),
    (b"l", "(", "l", _nothing),
    (b"o", "(g", "m", _nothing),
    (b"p", "v", "=", _line(_NUMBERS, 2)),
    (b"q", "v", "=", _indexes(1)),
    (b"r", "v", "=", _indexes(4)),
    (b"s", "dvv", "d", _nothing),
    (b"s", "mvv", "m", _nothing),
    (b"t", "(", "t", _nothing),
    (b"u", "d(", "d", _nothing),
    (b"u", "m(", "m", _nothing),
    (b"}", "", "d", _nothing),
    (b"\x80", "", "", _fixed(1, (0, 2, 3, 4, 5, 5, 4, 2))),
    (b"\x81", "gt", "m", _nothing),
    (b"\x82", "", "g", _fixed(1, (1, 200) * 4 + (0, 7))),
    (b"\x83", "", "g", _fixed(2, (1, 300, 200) * 4 + (0,))),
    (b"\x84", "", "g", _fixed(4, (1, 70000, 300) * 4 + (0, 1 << 31))),
    (b"\x85", "v", "t", _nothing),
    (b"\x86", "vv", "t", _nothing),
    (b"\x87", "vvv", "t", _nothing),
    (b"\x88", "", "v", _nothing),
    (b"\x89", "", "v", _nothing),
    (b"\x8a", "", "v", _counted(1)),
    (b"\x8b", "", "v", _counted(4)),
    (b"\x8c", "", "s", _counted(1)),
    (b"\x8d", "", "s", _counted(8)),
    (b"\x8e", "", "v", _counted(8)),
    (b"\x8f", "", "e", _nothing),
    (b"\x90", "e(", "e", _nothing),
    (b"\x90", "m(", "m", _nothing),
    (b"\x91", "(", "v", _nothing),
    (b"\x92", "gtd", "m", _nothing),
    (b"\x93", "ss", "g", _nothing),
    (b"\x94", "v", "=", _nothing),
    (b"\x96", "", "v", _counted(8)),
    (b"\x97", "", "v", _nothing),
    (b"\x98", "v", "=", _nothing),
)
_BY_NEED: dict[str, list[int]] = {}
for _index, _rule in enumerate(_GRAMMAR):
    _BY_NEED.setdefault(_rule[1][-1:], []).append(_index)
_MEMO = {b"g": 0, b"h": 1, b"j": 4, b"p": 0, b"q": 1, b"r": 4}  # width of the index
_SEEDS: list[bytes] = []


class Point:
    """A class whose instances stand in real pickles; it is never imported from one."""

    def __init__(self, x: Any) -> None:
        self.x = x


def real() -> list[bytes]:
    """Pickles as Python's pickler writes them, in each protocol."""
    if not _SEEDS:
        shared = ["x"]
        state: dict[str, Any] = {"epoch": 3, "lr": 1e-3, "names": ["a", "b"], "nested": {"t": (1, 2, 3), "n": None}}
        trees: list[Any] = [
            state,
            [shared, shared, {"s": shared}],
            collections.OrderedDict([("weight", b"\0\1\2"), ("bias", bytearray(b"abc"))]),
            {1, 2, 3},
            frozenset([True]),
            [Point(1), Point(Point([1]))],
            ("é" * 40, "a" * 300, -1, 1 << 70, 1.5, float("nan"), True, complex(1, 2)),
            [list(range(300)), {n: str(n) for n in range(40)}],
        ]
        _SEEDS.extend(pickle.dumps(tree, protocol) for tree in trees for protocol in range(6))
    return _SEEDS


def program(random: Random) -> bytes:
    """One pickle."""
    kind = random.random()
    if kind < 0.7:
        return _framed(_operations(random), random)
    data = random.choice(real()) if kind < 0.9 else _framed(_operations(random), random)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = _damaged(data, random)
    return data


def _operations(random: Random) -> list[bytes]:
    """A program that mostly has on its stack what each operation takes; ends with STOP."""
    stack: list[str] = []
    out: list[bytes] = []
    memo: list[int] = []
    for _ in range(random.choice((2, 4, 6, 8, 12, 16, 24))):
        code, need, leaves, argument = _choose(stack, random)
        text = argument(random)
        if code in _MEMO:
            text = _remembered(code, text, memo, random)
            if not text:
                continue
        elif code == b"\x94":
            memo.append(len(memo))
        out.append(code + text)
        top = ""
        for kind in reversed(need):
            while stack and kind == "(" and stack.pop() != "(":
                pass
            if stack and kind != "(":
                top = stack.pop() if stack[-1] != "(" else ""
        if leaves == "2":
            stack += [top or "v"] * (2 if need else 1)
        elif leaves == "=":
            stack += top
        else:
            stack += leaves
    while "(" in stack:
        out.append(random.choice((b"t", b"l", b"1", b"d")))
        while stack.pop() != "(":
            pass
        stack += "t"
    if len(stack) > 1 and random.random() < 0.5:
        return [b"(", *out, b"t", b"."]
    return [*out, b"N", b"."] if not stack else [*out, b"."]


def _remembered(code: bytes, text: bytes, memo: list[int], random: Random) -> bytes:
    """The argument of an operation on the memo: mostly a place that is filled, or is next; empty if there is none."""
    if code in b"pqr":
        index = len(memo)
        memo.append(index)
    elif not memo:
        return b""
    else:
        index = random.choice(memo)
    if random.random() < 0.15:
        return text
    width = _MEMO[code]
    return index.to_bytes(width, "little") if width else str(index).encode() + b"\n"


def _choose(stack: list[str], random: Random) -> tuple[bytes, str, str, Argument]:
    if random.random() < 0.02:
        return random.choice(_GRAMMAR)
    for _ in range(20):
        rule = random.choice(_GRAMMAR) if random.random() < 0.5 else _GRAMMAR[random.choice(_BY_NEED[_top(stack)])]
        if _fits(rule[1], stack) and (rule[0] not in b"\x97\x98" or random.random() < 0.1):
            return rule
    return _GRAMMAR[0]


def _top(stack: list[str]) -> str:
    return stack[-1] if stack and stack[-1] in _BY_NEED else ""


def _fits(need: str, stack: list[str]) -> bool:
    at = len(stack)
    for kind in reversed(need):
        if kind == "(":
            while at and stack[at - 1] != "(":
                at -= 1
            at -= 1
            if at < 0:
                return False
            continue
        at -= 1
        if at < 0 or stack[at] == "(" or (kind != "v" and stack[at] != kind):
            return False
    return True


def _framed(operations: list[bytes], random: Random) -> bytes:
    head = random.choice((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"\x80\x04", b"", b"", b"\x80\x03"))
    if random.random() < 0.65:
        return head + b"".join(operations)
    out, begin = [head], 0
    while begin < len(operations):
        end = begin + random.choice((1, 2, 3, 5, 8, 100))
        body = b"".join(operations[begin:end])
        if random.random() < 0.75:
            length, how = len(body), random.random()
            if how < 0.1:  # a frame that ends within the last operation, where a line can begin anew
                length -= random.randrange(len(operations[begin:end][-1]))
            elif how < 0.2:
                length += random.choice((-2, -1, 1, 2, 4, 8, 1 << 40))
            body = b"\x95" + struct.pack("<Q", max(0, length)) + body
        out.append(body)
        begin = end
    return b"".join(out)


def _damaged(data: bytes, random: Random) -> bytes:
    at, kind = random.randrange(len(data) + 1), random.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([random.getrandbits(8)]) + data[at + 1 :]
    if kind == 1:
        code, _, _, argument = random.choice(_GRAMMAR)
        return data[:at] + code + argument(random) + data[at:]
    if kind == 2:
        return data[:at] + data[at + random.choice((1, 1, 2, 4, 9)) :]
    if kind == 3:
        end = at + random.choice((1, 2, 5, 10, 20))
        return data[:end] + data[at:end] + data[end:]
    if kind == 4 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 5:
        return data[:at] + b"\x95" + struct.pack("<Q", random.choice((0, 1, 3, len(data) - at))) + data[at:]
    return data[:at] + random.choice(_NUMBERS).encode() + data[at:]
