"""Messages of protobuf, made by hand: what no library would write."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A number as a varint."""
    value &= (1 << 64) - 1
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def field(number: int, value: int | str | bytes, kind: int | None = None) -> bytes:
    """A field: a number as a varint, anything else with its length; `kind` says another kind, without a length."""
    if kind is not None:
        assert isinstance(value, bytes)
        return varint(number << 3 | kind) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data
