"""Ranges of bytes in a file that is scanned, packed or not, and what reading them may cost."""

from __future__ import annotations

import os
import re
import zlib
from importlib import import_module

from statedict.errors import LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from statedict.io.zip_table import Readable

CHUNK = 1 << 16
_PAGE = 1 << 12
# roles of a part: a whole file; bytes whose name says pickle; bytes whose name says tensor
WHOLE, EXPECTED, TENSOR = "whole", "expected", "tensor"


class Budget:
    """The work that scanning a file of some size may still cost."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = (64 << 20) + 20 * size

    def spend(self, cost: int) -> None:
        """Subtract a cost, or raise LimitError."""
        self.left -= cost
        if self.left < 0:
            raise LimitError("takes more than 64 MB + 20 times its size to unpack or read")


class Part:
    """A range of bytes, to the end of `base` without `end`. Reads return fewer bytes at the end.

    `label` names it in findings, `depth` counts the containers around it, `role` is one of those above or empty.
    """

    __slots__ = ("_base", "_end", "depth", "label", "role", "start")

    def __init__(
        self, base: Readable, start: int = 0, end: int | None = None, label: str = "", depth: int = 0, role: str = ""
    ) -> None:
        self._base, self.start, self._end, self.label, self.depth, self.role = base, start, end, label, depth, role

    @property
    def size(self) -> int:
        """Its length; of packed bytes this unpacks everything."""
        end = self._base.size
        return max(0, (end if self._end is None else min(self._end, end)) - self.start)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset."""
        begin = self.start + offset
        if self._end is not None:
            length = min(length, self._end - begin)
        if not isinstance(self._base, Unpacked):
            length = min(length, self._base.size - begin)
        return bytes(self._base.read(begin, length)) if length > 0 else b""

    def prefetch(self, offsets: list[int]) -> None:
        """Make the disk fetch the pages at these offsets, all at once."""
        if hasattr(self._base, "fileno") and hasattr(os, "posix_fadvise"):
            fd = self._base.fileno()
            for offset in offsets:
                os.posix_fadvise(fd, self.start + offset, 2 * _PAGE, os.POSIX_FADV_WILLNEED)

    def cut(self, start: int, end: int | None = None, role: str | None = None) -> Part:
        """A range of it, with its label; of a tensor it is a tensor, unless `role` says otherwise."""
        stop = self._end if end is None else self.start + end
        stop = stop if self._end is None or stop is None else min(stop, self._end)
        return Part(self._base, self.start + start, stop, self.label, self.depth, self._inherit(role))

    def inner(self, name: str | None, base: Readable | None = None, role: str | None = None) -> Part:
        """The same bytes, or `base`, as a file inside of it."""
        extent = (self._base, self.start, self._end) if base is None else (base, 0, None)
        return Part(*extent, self.label_of(name), self.depth + 1, self._inherit(role))

    def label_of(self, name: str | None) -> str:
        """The label of a file inside of it; without a name, its own."""
        return self.label if name is None else f"{self.label}: {name}" if self.label else name

    def _inherit(self, role: str | None) -> str:
        return role if role is not None else TENSOR if self.role == TENSOR else ""


class Unpacked:
    """The output of a decompressor, produced as far as someone reads.

    `problem` says why it ended early, `end` how many packed bytes it took, `is_complete` that it ended.
    """

    def __init__(self, packed: Part, codec: str, budget: Budget) -> None:
        self.problem, self.end = "", 0
        self._data, self._budget = bytearray(), budget
        self.is_complete = False
        self._pieces = self._unpack(packed, *CODECS[codec])

    @property
    def size(self) -> int:
        """The length of all of it."""
        self._fill(1 << 62)
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset, fewer at the end."""
        self._fill(offset + length)
        return bytes(self._data[offset : offset + length])

    def drain(self, most: int) -> None:
        """Unpack up to `most` more bytes."""
        self._fill(len(self._data) + most)

    def _fill(self, wanted: int) -> None:
        while not self.is_complete and len(self._data) < wanted:
            try:
                piece = next(self._pieces, b"")
            except Exception as error:
                known = isinstance(error, (zlib.error, OSError, EOFError, ValueError))
                if not known and type(error).__name__ != "LZMAError":  # importing lzma for its error costs start-up
                    raise
                piece, self.problem = b"", str(error)
            self.is_complete = not piece
            self._budget.spend(len(piece))
            self._data += piece

    def _unpack(self, packed: Part, magic: bytes, make: Callable[[], Any]) -> Iterator[bytes]:
        machine, data, at = make(), b"", 0
        while True:
            is_all = False
            if not data and getattr(machine, "needs_input", True):
                data = packed.read(at, CHUNK)
                at += len(data)
                is_all = not data
            piece = machine.decompress(data, CHUNK)
            data = getattr(machine, "unconsumed_tail", b"")
            if piece:
                yield piece
            elif is_all and not machine.eof:  # zlib may still hold what the last bytes unpack to
                raise EOFError("the compressed data end early")
            if machine.eof:
                rest = machine.unused_data
                self.end = at - len(rest)
                rest = rest or packed.read(at, CHUNK)
                at = self.end + len(rest)
                if not magic or not rest.startswith(magic):
                    return
                machine, data = make(), rest


def _lzma(kind: str) -> Any:
    lzma = import_module("lzma")
    return lzma.LZMADecompressor(getattr(lzma, kind), memlimit=256 << 20)


# codec → the first bytes of a further stream in the same file, the decompressor
CODECS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "deflate": (b"", lambda: zlib.decompressobj(-15)),
    "zlib": (b"", zlib.decompressobj),
    "gzip": (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
    "bzip2": (b"BZh", lambda: import_module("bz2").BZ2Decompressor()),
    "xz": (b"\xfd7zXZ\0", lambda: _lzma("FORMAT_XZ")),
    "lzma": (b"", lambda: _lzma("FORMAT_ALONE")),
}
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "lzma": re.compile(rb"\x5d\x00\x00[\x00-\x80]\x00[\x00\xff]"),
    "zlib": re.compile(rb"\x78[\x01\x5e\x9c\xda]"),
    "7z": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "rar": re.compile(rb"Rar!\x1a\x07"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "compress": re.compile(rb"\x1f\x9d[\x80-\x90]"),
}


def find_compression(head: bytes) -> str:
    """The compression of a file that begins with these bytes; empty for none."""
    return next((codec for codec, magic in _COMPRESSED.items() if magic.match(head)), "")
