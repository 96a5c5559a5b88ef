"""The header of a GGUF file; its layout is in model.py.

Everything in it is bounded by the bytes that are there: a count of entries by the least that each takes, and an array's
elements by `MAX_ITEMS`, since a list takes eight times the bytes of an array of bytes.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from statedict.errors import CorruptFileError, LimitError, TruncatedError, UnsupportedError
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.ggml.types import BLOCKS, PLAIN, REMOVED, count_bytes, name_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.io.source import ByteSource

MAGIC = b"GGUF"
ALIGNMENT = 32
MAX_HEADER = 1 << 30
MAX_ITEMS = 10_000_000  # in arrays; the largest vocabularies have some hundred thousand
_MAX_DEPTH = 16  # of arrays in arrays
_FIRST, _FIRST_REMOTE = 1 << 18, 1 << 20  # bytes to read at first

STRING, ARRAY = 8, 9
SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "B"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
"""The types of values in the metadata: number → name and code of `struct`."""
_INT8 = {value: value for value in range(-128, 128)}
_LEAST = {code: struct.calcsize(f"<{form}") for code, (_, form) in SCALARS.items()} | {STRING: 8, ARRAY: 12}

# what a header says: version, "<" or ">", key → value, key → type (its name, or of an array a list, see `_array`), the
# tensors, and where the data begins
Header = namedtuple("Header", "version order values types alignment tensors start")
Entry = namedtuple("Entry", "name code shape begin nbytes")  # of a tensor; it begins so many bytes into the data


def read_header(source: ByteSource) -> Header:
    """Read and check a header.

    Raises:
        CorruptFileError: it contradicts itself or the file's size.
        UnsupportedError: its version or a tensor's type is not read.
        LimitError: its arrays have too many elements.
    """
    return _Reader(source).header()


class _Reader:
    """Reads the header from its begin on, a large piece at a time; `at` is the next byte."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.name, self.at, self.items = source, source.name, 0, 0
        self.order = "<"
        self.data = b""

    def need(self, size: int, what: str) -> int:
        """Take so many bytes; where they begin in `data`."""
        begin, end = self.at, self.at + size
        if end > len(self.data):
            if end > min(self.source.size, MAX_HEADER):
                raise TruncatedError(
                    f"{self.name}: {what} at byte {begin:,} takes {size:,} bytes, the file has {self.source.size:,} "
                    f"and a header up to {MAX_HEADER:,}; the file looks truncated or damaged, fetch it again"
                )
            first = _FIRST_REMOTE if self.source.remote else _FIRST
            size = min(max(end, 2 * len(self.data), first), self.source.size)
            self.data += bytes(self.source.read(len(self.data), size - len(self.data)))
        self.at = end
        return begin

    def numbers(self, form: str, what: str) -> tuple[Any, ...]:
        """Take numbers of some codes of `struct`."""
        form = self.order + form
        begin = self.need(struct.calcsize(form), what)  # which may replace `data`
        return struct.unpack_from(form, self.data, begin)

    def number(self, form: str, what: str) -> Any:
        """Take a number."""
        return self.numbers(form, what)[0]

    def header(self) -> Header:
        if bytes(self.source.read(0, min(4, self.source.size))) != MAGIC:
            raise CorruptFileError(f"{self.name}: does not begin with GGUF; it is damaged or not a GGUF file")
        self.need(4, "the magic number")
        version = self.number("I", "the version")
        if version and version & 0xFFFF == 0:
            self.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            old = "; GGUF 1 was used in August 2023: convert the model anew" if version == 1 else ""
            raise UnsupportedError(f"{self.name}: is GGUF version {version:,}; versions 2 and 3 are read{old}")
        tensors, pairs = self.number("Q", "the count of tensors"), self.number("Q", "the count of metadata")
        self.expect(tensors, 24, "tensors")
        self.expect(pairs, 13, "pairs of metadata")
        values: dict[str, Any] = {}
        types: dict[str, Any] = {}
        for number in range(pairs):
            key = self.string(f"the key of pair {number:,} of the metadata")
            if key in values:
                raise self.damage(f"the key {key!r:.80} of the metadata stands twice")
            values[key], types[key] = self.value(self.number("I", f"the type of {key!r:.80}"), f"metadata {key!r:.80}")
        alignment = values.get("general.alignment", ALIGNMENT)
        if types.get("general.alignment", "uint32") != "uint32" or alignment < 1 or alignment & (alignment - 1):
            raise self.damage(f"general.alignment is {alignment!r:.40}, expected a power of two as uint32")
        infos = [self.tensor(number) for number in range(tensors)]
        start = -(-self.at // alignment) * alignment
        entries = self.place(infos, start, alignment)
        return Header(version, self.order, values, types, alignment, entries, start)

    def damage(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self.name}: {what}; the file is damaged, fetch it again")

    def expect(self, count: int, least: int, what: str) -> None:
        left = self.source.size - self.at
        if count * least > left:
            raise TruncatedError(
                f"{self.name}: it claims {count:,} {what}, and {left:,} bytes are left, too few for them; "
                "the file looks truncated or damaged, fetch it again"
            )

    def string(self, what: str) -> str:
        size = self.number("Q", f"the length of {what}")
        begin = self.need(size, what)
        try:
            return str(self.data[begin : begin + size], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damage(f"{what} at byte {begin:,} is not UTF-8 ({error.reason})") from None

    def value(self, code: int, what: str, depth: int = 0) -> tuple[Any, Any]:
        """A value of the metadata and its type."""
        if code == STRING:
            return self.string(what), "string"
        if code == ARRAY:
            return self.array(what, depth + 1)
        if code not in SCALARS:
            raise self.damage(f"{what} has the type {code:,}, which no value has")
        name, form = SCALARS[code]
        value = self.number(form, what)
        return (self.truth([value], what)[0] if name == "bool" else value), name

    def truth(self, values: Any, what: str) -> list[bool]:
        if not {*values} <= {0, 1}:
            raise self.damage(f"{what} is a bool of another byte than 0 or 1")
        return [value == 1 for value in values]

    def array(self, what: str, depth: int) -> tuple[list[Any], list[Any]]:
        """An array, and its type: [type of the elements], or of arrays ["array", type of each …]."""
        code, count = self.number("I", f"the type of {what}"), self.number("Q", f"the length of {what}")
        if code not in _LEAST:
            raise self.damage(f"{what} is an array of the type {code:,}, which no value has")
        if depth > _MAX_DEPTH:
            raise self.damage(f"{what} is nested deeper than {_MAX_DEPTH}")
        self.expect(count, _LEAST[code], f"elements of {what}")
        self.items += count
        if self.items > MAX_ITEMS:
            raise LimitError(f"{self.name}: its arrays have more than {MAX_ITEMS:,} elements; {what} has {count:,}")
        if code == STRING:
            return self.strings(count, what), ["string"]
        if code == ARRAY:
            pairs = [self.array(f"{what}, element {number:,},", depth + 1) for number in range(count)]
            return [value for value, _ in pairs], ["array", *(kind for _, kind in pairs)]
        name, form = SCALARS[code]
        values = list(self.numbers(f"{count}{form}", what))
        if name == "int8":  # Python keeps no negative ones ready: 36 bytes each
            values = [_INT8[value] for value in values]
        return (self.truth(values, what) if name == "bool" else values), [name]

    def strings(self, count: int, what: str) -> list[str]:
        """Many strings; one by one by `string` only where the piece that was read ends, or to raise its error."""
        found: list[str] = []
        form = struct.Struct(self.order + "Q")
        while len(found) < count:
            data, at, end = self.data, self.at, len(self.data)
            unpack, add = form.unpack_from, found.append
            try:
                for _ in range(count - len(found)):
                    begin = at + 8
                    stop = begin + unpack(data, at)[0]
                    if stop > end:
                        break
                    add(str(data[begin:stop], "utf-8"))
                    at = stop
            except (struct.error, UnicodeDecodeError):
                pass
            self.at = at
            if len(found) < count:
                found.append(self.string(f"{what}, element {len(found):,},"))
        return found

    def tensor(self, number: int) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string(f"the name of tensor {number:,}")
        what = f"tensor {name!r:.80}"
        count = self.number("I", f"{what}: its dimensions")
        self.expect(count, 8, f"dimensions of {what}")
        if fault := find_shape_fault((1,) * min(count, 1000), 1):
            raise self.damage(f"{what} has {fault}")
        dims = self.numbers(f"{count}Q", what)
        code, begin = self.number("I", f"{what}: its type"), self.number("Q", f"{what}: its offset")
        return name, code, dims[::-1], begin

    def place(self, infos: list[tuple[str, int, tuple[int, ...], int]], start: int, alignment: int) -> list[Entry]:
        """Check the tensors against one another and the file."""
        entries: dict[str, Entry] = {}
        room = self.source.size - start
        for name, code, shape, begin in infos:
            what = f"tensor {name!r:.80}"
            if name in entries:
                raise self.damage(f"two tensors are called {name!r:.80}")
            if code not in PLAIN and code not in BLOCKS:
                known = (
                    f"{REMOVED[code]}, which llama.cpp removed" if code in REMOVED else f"{code:,}, which is unknown"
                )
                raise UnsupportedError(f"{self.name}: {what} has the type {known}; convert the model anew")
            kind = name_type(code)
            if fault := find_shape_fault(shape, 8):
                raise self.damage(f"{what} has the shape {list(shape)}: {fault}")
            elements = BLOCKS[code].elements if code in BLOCKS else 1
            if (shape[-1] if shape else 1) % elements:
                raise self.damage(
                    f"{what}: its rows have {shape[-1] if shape else 1:,} elements, {kind} {elements} a block"
                )
            nbytes = count_bytes(code, shape)
            if begin % alignment:
                raise self.damage(
                    f"{what} begins at {begin:,} of the data, which is not aligned to {alignment:,} bytes"
                )
            if begin + nbytes > room and nbytes:
                raise TruncatedError(
                    f"{self.name}: {what}: bytes {start + begin:,} to {start + begin + nbytes:,} lie past the end of "
                    f"the file ({self.source.size:,} bytes); the file looks truncated, fetch it again"
                )
            entries[name] = Entry(name, code, shape, begin, nbytes)
        last = None
        for entry in sorted((one for one in entries.values() if one.nbytes), key=lambda one: one.begin):
            if last is not None and entry.begin < last.begin + last.nbytes:
                raise self.damage(f"the tensors {last.name!r:.80} and {entry.name!r:.80} overlap")
            last = entry
        return list(entries.values())
