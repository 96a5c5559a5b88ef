"""The values of a checkpoint that are neither tensors nor containers, and their JSON, which docs/format.md lists.

A value that JSON lacks is an object with one key that begins with `$`.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter

from statedict.dtypes import BY_NAME, MAX_NAME, DType, labelled_dtype
from statedict.errors import CorruptFileError, UnsupportedError, is_failure_of_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


_DEVICE = re.compile(r"(?!\d)(?=_*[^\W_])\w+(?::(?:0|[1-9]\d?|1[01]\d|12[0-7]))?", re.ASCII)


class Size(tuple[int, ...]):
    """A shape that prints as PyTorch prints one.

    >>> Size((6, 3, 5, 5))
    torch.Size([6, 3, 5, 5])
    """

    __slots__ = ()

    def numel(self) -> int:
        """The product of the sizes."""
        return math.prod(self)

    def __repr__(self) -> str:
        return f"torch.Size({list(self)})"

    __str__ = __repr__


class Device(str):
    """A `torch.device` without torch: its string.

    >>> Device("cuda:0")
    device('cuda:0')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"device({str.__repr__(self)})"


def device(text: object) -> Device:
    """The Device of a text in a file.

    Raises:
        CorruptFileError: PyTorch reads no device of this form.
    """
    if not isinstance(text, str) or len(text) >= 100 or not _DEVICE.fullmatch(text):
        raise CorruptFileError(f"{str(text)[:100]!r} is not a device; expected a type and an index, as cuda:0")
    return Device(text)


class Opaque:
    """An object in a file that is not data we know: labelled, inert, never built.

    Attributes:
        name: its qualified name, `"omegaconf.dictconfig.DictConfig"`.
        args: the arguments of its constructor, as a pair with the keywords if there are any, or with the callable if
            that is an Opaque too; None for a bare reference to a class or function.
        state: the argument of its `__setstate__`, or its `__dict__`.
        items: what would have been appended to it.
        entries: what would have been set in it, key → value.
    """

    __slots__ = ("args", "entries", "items", "name", "state")
    __match_args__ = ("name", "args", "state", "items", "entries")

    def __init__(
        self,
        name: str,
        args: Any = None,
        state: Any = None,
        items: list[Any] | None = None,
        entries: dict[Any, Any] | None = None,
    ) -> None:
        self.name, self.args, self.state, self.items, self.entries = name, args, state, items, entries

    def children(self) -> Iterator[tuple[Any, Any]]:
        """The entries of its dicts under their own keys, everything else under the attribute's name."""
        for slot in ("args", "state", "items", "entries"):
            value = getattr(self, slot)
            if isinstance(value, dict):
                yield from value.items()
            elif value is not None and value != ():
                yield slot, value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in Opaque.__slots__)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


class Member:
    """A member of an `enum.Enum` in a tree: it equals its name, or the number of flags, and knows its class.

    Attributes:
        kind: the qualified name of the class, `"lab.Norm"`.
        plain: the name or the number alone.

    >>> member("lab.Norm", "AUTO"), member("lab.Norm", "AUTO") == "AUTO", member("lab.Access", 3)
    (lab.Norm.AUTO, True, lab.Access(3))
    """

    __slots__ = ()
    kind: str
    plain: str | int

    def __reduce__(self) -> tuple[Any, ...]:
        return member, (self.kind, self.plain)

    def __repr__(self) -> str:
        text = f"{self.kind}.{self.plain}" if type(self.plain) is str else f"{self.kind}({self.plain})"
        return text if text.isprintable() else repr(text)


class MemberName(Member, str):
    """A member by its name."""


class MemberFlags(Member, int):
    """Members of an `enum.Flag` by their number, for several together have no one name."""


def member(kind: object, value: object) -> Member:
    """The member of a class, by its name or number.

    Raises:
        ValueError: it is neither.
    """
    if type(kind) is not str or type(value) not in (str, int):
        raise ValueError("not a member of an enumeration")
    made: Any = (MemberName if type(value) is str else MemberFlags)(value)  # type: ignore[call-overload]
    made.kind, made.plain = kind, value
    return made  # type: ignore[no-any-return]


def human_bytes(count: int) -> str:
    """Bytes in decimal units, three digits.

    >>> human_bytes(3360), human_bytes(2_070_000_000)
    ('3.4 kB', '2.1 GB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things.

    >>> count(1, "tensor"), count(3000, "tensor"), count(2, "entry", "entries")
    ('1 tensor', '3,000 tensors', '2 entries')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shorten(text: str, longest: int) -> str:
    """A text, without its middle if it is longer.

    >>> shorten("abcdefghij", 7)
    'abc…hij'
    """
    tail = longest // 2
    return text if len(text) <= longest else f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def abbreviate(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> abbreviate(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    return ", ".join(names[:most]) + f" and {len(names) - most:,} more" * (len(names) > most)


def same_value(one: Any, other: Any, numeric: bool = False) -> bool:
    """Whether two values have the same type and are equal; NaN equals NaN, and 0.0 equals -0.0 only if `numeric`.

    >>> same_value(1, 1.0), same_value((1, float("nan")), (1, float("nan")))
    (False, True)
    """
    if type(one) is not type(other):
        return isinstance(one, dict) and isinstance(other, dict) and one == other
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(same_value(x, y, numeric) for x, y in zip(one, other, strict=True))
    if type(one) is dict:
        return list(one) == list(other) and all(same_value(one[key], other[key], numeric) for key in one)
    if type(one) is float:
        return one == other if numeric else struct.pack("d", one) == struct.pack("d", other)
    if type(one) is complex:
        return same_value((one.real, one.imag), (other.real, other.imag), numeric)
    if isinstance(one, Opaque):
        return bool(one.name == other.name)
    if isinstance(one, Member):
        return bool(one.kind == other.kind and one == other)
    return bool(one == other)


def parse_bytes(size: int | str) -> int:
    """A number of bytes, with decimal or binary units in any case.

    Raises:
        UnsupportedError: it is not a valid size.

    >>> parse_bytes("5GB"), parse_bytes("1.5 MiB"), parse_bytes(10)
    (5000000000, 1572864, 10)
    """
    form = r"\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*(?:([kmgt])(i?))?b?\s*"
    found = re.fullmatch(form, str(size), re.ASCII | re.IGNORECASE)
    number = float(found[1]) if found else 0
    count = 0
    if found and math.isfinite(number):
        count = int(number * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper()))
    if count < 1:
        raise UnsupportedError(f"{size!r}: is not a valid size; write it as 5GB")
    return count


PLAIN = (type(None), bool, int, float, str)
_SIMPLE = frozenset(PLAIN)


def is_plain_list(value: object) -> bool:
    """Whether it is a list or tuple of nothing but text, numbers, bools and None, as a tokenizer's vocabulary is."""
    return (type(value) is list or type(value) is tuple) and _SIMPLE.issuperset(map(type, value))


_MEMBERS = (MemberName, MemberFlags)
KINDS = (*PLAIN, complex, bytes, bytearray, Size, Device, DType, set, frozenset, Counter, *_MEMBERS)


def to_json(value: Any) -> Any:
    """The JSON of a plain value.

    Raises:
        UnsupportedError: it is not one of `KINDS`.

    >>> to_json(1j), to_json(float("inf")), to_json({3})
    ({'$complex': [0.0, 1.0]}, {'$float': 'inf'}, {'$set': [3]})
    """
    kind = type(value)
    if kind in (type(None), bool, str):
        return value
    if kind is int and -(1 << 63) <= value < 1 << 64:
        return value
    if kind is float and math.isfinite(value):
        return value
    coder = _CODERS.get(kind)
    if coder is None:
        raise UnsupportedError(f"{kind.__module__}.{kind.__qualname__} is not data that a checkpoint can hold")
    return {coder[0]: coder[1](value)}


def from_json(node: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
        CorruptFileError: an object is not the JSON of a value.
    """
    if not isinstance(node, dict):
        return node
    try:
        ((tag, body),) = node.items()
        return _DECODERS[tag](body)
    except CorruptFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if is_failure_of_code(error):
            raise
        raise CorruptFileError(f"not a value: {', '.join(map(repr, node))[:80]}; the header is damaged") from error


def distinct(keys: list[Any]) -> list[Any]:
    """The keys; an error if so many have the same hash that a dict of them would take forever."""
    if len(keys) - len(set(map(hash, keys))) > 64:
        raise CorruptFileError("more than 64 keys have the hash of another; the header is hostile")
    return keys


def _decode_items(body: Any) -> list[Any]:
    return distinct([from_json(item) for item in body])


def _encode_bytes(value: Any) -> str:
    from base64 import b64encode

    return b64encode(value).decode()


def _decode_bytes(body: Any) -> bytes:
    from base64 import b64decode

    return b64decode(body, validate=True)


def _encode_device(value: Device) -> str:
    try:
        return str(device(value))
    except CorruptFileError as error:
        raise UnsupportedError(str(error)) from error


def _decode_dtype(name: Any) -> DType:
    known = BY_NAME.get(name)
    if known is None and not (type(name) is str and name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise ValueError(name)
    return known or labelled_dtype(name)


def _encode_set(value: Any) -> list[Any]:
    return sorted(map(to_json, value), key=repr)


def _decode_counter(body: Any) -> Counter[Any]:
    return Counter(dict(zip(_decode_items(key for key, _ in body), [from_json(n) for _, n in body], strict=True)))


def _encode_member(value: Member) -> list[Any]:
    return [value.kind, to_json(value.plain)]


def _decode_member(body: Any) -> Member:
    kind, value = body
    return member(kind, from_json(value))


# type, tag, encoder, decoder
_TABLE: tuple[tuple[type, str, Any, Any], ...] = (
    (int, "$int", hex, lambda body: int(body, 16)),
    (float, "$float", repr, lambda body: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[body]),
    (complex, "$complex", lambda z: [to_json(z.real), to_json(z.imag)], lambda body: complex(*map(from_json, body))),
    (bytes, "$bytes", _encode_bytes, _decode_bytes),
    (bytearray, "$bytearray", _encode_bytes, lambda body: bytearray(_decode_bytes(body))),
    (Size, "$size", list, lambda body: Size(int(n) for n in body)),
    (Device, "$device", _encode_device, device),
    (DType, "$dtype", lambda kind: kind.name, _decode_dtype),
    (tuple, "$tuple", lambda items: list(map(to_json, items)), lambda body: tuple(map(from_json, body))),
    (set, "$set", _encode_set, lambda body: set(_decode_items(body))),
    (frozenset, "$frozenset", _encode_set, lambda body: frozenset(_decode_items(body))),
    (Counter, "$counter", lambda counts: [[to_json(k), to_json(n)] for k, n in counts.items()], _decode_counter),
    *((kind, "$member", _encode_member, _decode_member) for kind in _MEMBERS),
)
_CODERS = {kind: (tag, encode) for kind, tag, encode, _ in _TABLE}
_DECODERS = {tag: decode for _, tag, _, decode in _TABLE}
