"""The values of a checkpoint that are neither tensors nor containers, and their JSON.

JSON has strings, numbers, true, false and null; every other value is an object with one key that begins with `$`.
docs/format.md lists them.
"""

from __future__ import annotations

import math
import struct
from collections import Counter

from statedict.dtypes import BY_NAME, MAX_NAME, DType, labelled_dtype
from statedict.errors import CorruptFileError, UnsupportedError, is_failure_of_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


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
    """A `torch.device` where torch may not be installed: its string.

    >>> Device("cuda:0")
    device('cuda:0')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"device({str.__repr__(self)})"


_MAX_INDEX = 127  # PyTorch's is a byte


def device(text: object) -> Device:
    """The Device of a text in a file.

    Raises:
        CorruptFileError: it is in no form that PyTorch reads.

    >>> device("cuda:0")
    device('cuda:0')
    """
    kind, colon, index = text.partition(":") if isinstance(text, str) and len(text) < 100 else ("", "", "")
    named = kind.isascii() and kind.replace("_", "").isalnum() and not kind[:1].isdecimal()
    numbered = index.isascii() and index.isdecimal() and (index == "0" or index[0] != "0") and int(index) <= _MAX_INDEX
    if not named or (colon and not numbered):
        raise CorruptFileError(f"{str(text)[:100]!r} is no device; expected its type and its number, as cuda:0")
    return Device(text)


class Opaque:
    """An object in a file that is not data we know: labelled, inert, never built.

    Attributes:
        name: its qualified name, `"omegaconf.dictconfig.DictConfig"`.
        args: what its constructor would have been called with, as a pair with its keywords if there are any, or with
            what is called if that is an Opaque too; None for a bare reference to a class or function.
        state: what its `__setstate__` or `__dict__` would have received.
        items: what would have been appended to it.
        entries: what would have been set in it, key → value.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

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
        """What it holds: the entries of its dicts under their own keys, all else under the attribute's name."""
        for slot in ("args", "state", "items", "entries"):
            held = getattr(self, slot)
            if isinstance(held, dict):
                yield from held.items()
            elif held is not None and held != ():
                yield slot, held

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in Opaque.__slots__)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


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
    """A text without its middle where it is longer.

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
    """Whether two values are of one type and equal; a NaN is a NaN, and only to numbers 0.0 is -0.0.

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
    return bool(one == other)


def parsed_bytes(size: int | str) -> int:
    """A number of bytes, with decimal or binary units in any case.

    Raises:
        UnsupportedError: it is none.

    >>> parsed_bytes("5GB"), parsed_bytes("1.5 MiB"), parsed_bytes(10)
    (5000000000, 1572864, 10)
    """
    import re

    form = r"\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*(?:([kmgt])(i?))?b?\s*"
    found = re.fullmatch(form, str(size), re.ASCII | re.IGNORECASE)
    number = float(found[1]) if found else 0
    count = 0
    if found and math.isfinite(number):
        count = int(number * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper()))
    if count < 1:
        raise UnsupportedError(f"{size!r}: is no number of bytes; write it as 5GB")
    return count


PLAIN = (type(None), bool, int, float, str)
KINDS = (*PLAIN, complex, bytes, bytearray, Size, Device, DType, set, frozenset, Counter)


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
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is complex:
        return {"$complex": [to_json(value.real), to_json(value.imag)]}
    if kind in (bytes, bytearray):
        from base64 import b64encode

        return {f"${kind.__name__}": b64encode(value).decode()}
    if kind is Size:
        return {"$size": list(value)}
    if kind is Device:
        try:
            return {"$device": str(device(value))}
        except CorruptFileError as error:
            raise UnsupportedError(str(error)) from error
    if kind is DType:
        return {"$dtype": value.name}
    if kind is tuple:
        return {"$tuple": [to_json(item) for item in value]}
    if kind in (set, frozenset):
        return {f"${kind.__name__}": sorted((to_json(item) for item in value), key=repr)}
    if kind is Counter:
        return {"$counter": [[to_json(key), to_json(count)] for key, count in value.items()]}
    raise UnsupportedError(f"{kind.__module__}.{kind.__qualname__} is not data that a checkpoint can hold")


def from_json(node: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
        CorruptFileError: an object that is no value, or holds what it should not.
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
    """The keys, unless so many of them have one hash that a dict or set of them would take for ever."""
    if len(keys) - len(set(map(hash, keys))) > 64:
        raise CorruptFileError("more than 64 keys have the hash of another; the header is hostile")
    return keys


def _items(body: Any) -> list[Any]:
    return distinct([from_json(item) for item in body])


def _bytes(body: Any) -> bytes:
    from base64 import b64decode

    return b64decode(body, validate=True)


def _dtype(name: Any) -> DType:
    """A dtype by its name, also one that no table has yet."""
    known = BY_NAME.get(name)
    if known is None and not (type(name) is str and name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise ValueError(name)
    return known or labelled_dtype(name)


_DECODERS: dict[str, Any] = {
    "$int": lambda body: int(body, 16),
    "$float": lambda body: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[body],
    "$complex": lambda body: complex(*map(from_json, body)),
    "$bytes": _bytes,
    "$bytearray": lambda body: bytearray(_bytes(body)),
    "$size": lambda body: Size(int(n) for n in body),
    "$device": device,
    "$dtype": _dtype,
    "$tuple": lambda body: tuple(map(from_json, body)),
    "$set": lambda body: set(_items(body)),
    "$frozenset": lambda body: frozenset(_items(body)),
    "$counter": lambda body: Counter(
        dict(zip(_items(k for k, _ in body), [from_json(n) for _, n in body], strict=True))
    ),
}
