"""Formats: one module a kind of file; here the protocol, the table and the sniffing.

To add one: a module with `read` and, if it can, `write`; a row in `FORMATS`; an entry in `tests/formats/conftest.py`,
whose conformance suite it then runs.
"""

from __future__ import annotations

import os

from statedict.errors import FormatError, UnknownFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from statedict.io.source import ByteSource

    class Format(Protocol):
        """What a format's module offers."""

        def read(self, source: ByteSource) -> Any:
            """The tree in the file, lazily."""

        def write(self, tree: Any, fd: int) -> None:
            """Write a tree of LazyTensors and plain values into an open file."""


_HEAD = 512


class Row:
    """A format in the table: its module, the suffixes that choose it for writing, and how its files begin."""

    __slots__ = ("magic", "module", "suffixes")

    def __init__(self, module: str, suffixes: tuple[str, ...], magic: Callable[[bytes], bool]) -> None:
        self.module, self.suffixes, self.magic = module, suffixes, magic

    def load(self) -> Format:
        """The module."""
        import importlib

        module: Any = importlib.import_module(self.module)
        return module  # type: ignore[no-any-return]


FORMATS: dict[str, Row] = {
    "torch": Row(
        "statedict.formats.torch_zip",
        (".pth", ".pt", ".bin", ".ckpt"),
        lambda head: head[:4] in (b"PK\3\4", b"PK\5\6"),
    ),
    "safetensors": Row(
        "statedict.formats.safetensors",
        (".safetensors",),
        lambda head: head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40,
    ),
}

# what else people find under a checkpoint's name: where and how it shows, what it is and what to do
_STRANGERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "is a git-LFS pointer, not the file; run `git lfs pull`"),
    (0, b"<!doctype html", "is an HTML page; the download needs a login or another address"),
    (0, b"<html", "is an HTML page; the download needs a login or another address"),
    (0, b"<?xml", "is XML, as servers send errors; read it and download again"),
    (0, b'{"error', "is a server's error message; read it and download again"),
    (0, b"{", "is JSON text: an index or a configuration (the weights lie beside it), or a server's error message"),
    (0, b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (0, b"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (0, b"BZh", "is compressed by bzip2; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by Zstandard; unpack it first"),
    (0, b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (0, b"Rar!", "is a RAR archive; unpack it first"),
    (257, b"ustar", "is a tar archive; unpack it first"),
    (0, b"GGUF", "is a GGUF file, which this version does not read"),
    (0, b"\x89HDF", "is an HDF5 file, which this version does not read"),
    (0, b"\x93NUMPY", "is a .npy file; load it with numpy"),
    (
        0,
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "was written by torch.save before PyTorch 1.6, which this version does not read",
    ),
    (0, b"\x80", "is a bare pickle, which this version does not read"),
)


def detect(source: ByteSource) -> str:
    """The name of the format that a file's content shows.

    Raises:
        UnknownFormatError: none; the message says what the file seems to be instead.
    """
    head = bytes(source.read(0, min(source.size, _HEAD)))
    for name, row in FORMATS.items():
        if row.magic(head):
            return name
    if not head:
        raise UnknownFormatError(f"{source.name}: is empty; fetch or save it again")
    if not head.strip(b"\0"):
        raise UnknownFormatError(f"{source.name}: begins with zero bytes only; its write was cut short, fetch it again")
    text = head.lstrip().lower()
    for at, magic, what in _STRANGERS:
        if head.startswith(magic, at) or text.startswith(magic, at):
            raise UnknownFormatError(f"{source.name}: {what}")
    raise UnknownFormatError(
        f"{source.name}: no known checkpoint begins with {head[:8]!r}; formats are {', '.join(FORMATS)}"
    )


def by_name(name: str) -> Format:
    """The format of a name.

    Raises:
        FormatError: there is none.
    """
    if name not in FORMATS:
        raise FormatError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name].load()


def for_writing(path: str) -> str:
    """The name of the format that a path's suffix asks for; torch for every unknown one, as torch.save has it."""
    suffix = os.path.splitext(path)[1].lower()
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "torch")
