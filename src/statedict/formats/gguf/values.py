"""The types of GGUF's metadata: what a Python value is written as if no file says otherwise."""

from __future__ import annotations

import math
import struct
from typing import Any

METADATA = "metadata"
"""The key of the metadata in a tree."""
TYPES = "gguf.types"
"""The key of a tree's `metadata` for what Python's values do not tell of GGUF's."""
_RANGES = {
    "uint8": (0, 1 << 8), "int8": (-(1 << 7), 1 << 7), "uint16": (0, 1 << 16), "int16": (-(1 << 15), 1 << 15),
    "uint32": (0, 1 << 32), "int32": (-(1 << 31), 1 << 31), "uint64": (0, 1 << 64), "int64": (-(1 << 63), 1 << 63),
}  # fmt: skip


def type_of(value: Any) -> Any:
    """The type that a value is written as: numbers of llama.cpp's are uint32 or float32, in arrays int32.

    The first of uint32, int32, uint64 and int64 that holds an integer; float64 where float32 would round. None for what
    GGUF cannot hold.

    >>> type_of(3), type_of(-3), type_of([3]), type_of(0.5), type_of(["a"]), type_of(None)
    ('uint32', 'int32', ['int32'], 'float32', ['string'], None)
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return _type_of_array(value)
    if kind is int:
        return _fit([value], ("uint32", "int32", "uint64", "int64"))
    if kind is float:
        return "float32" if is_float32(value) else "float64"
    return {bool: "bool", str: "string"}.get(kind)


def _type_of_array(values: Any) -> Any:
    kinds = {*map(type, values)}
    if kinds <= {int}:
        found = _fit([min(values, default=0), max(values, default=0)], ("int32", "uint32", "int64", "uint64"))
    elif kinds == {float}:
        found = "float32" if all(map(is_float32, values)) else "float64"
    elif kinds <= {list, tuple}:
        inner = [type_of(value) for value in values]
        return None if None in inner else ["array", *inner]
    else:
        found = {"bool": "bool", "str": "string"}.get(kinds.pop().__name__) if len(kinds) == 1 else None
    return found and [found]


def _fit(values: list[int], choice: tuple[str, ...]) -> str | None:
    return next((name for name in choice if all(fits(value, name) for value in values)), None)


def fits(value: Any, kind: str) -> bool:
    """Whether a type of numbers holds an integer."""
    low, high = _RANGES[kind]
    return bool(low <= value < high)


def is_float32(value: float) -> bool:
    """Whether a number is a float32."""
    if not math.isfinite(value):
        return True
    try:
        return bool(struct.unpack("<f", struct.pack("<f", value))[0] == value)
    except OverflowError:
        return False
