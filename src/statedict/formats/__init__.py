"""Formats: one module a kind of file; here the protocol, the table and the sniffing.

To add one: a module with `read` and, if it can, `write`; a row in `FORMATS`; an entry in `tests/formats/conftest.py`,
whose conformance suite it then runs.
"""

from __future__ import annotations

import os

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


from statedict.errors import FormatError, UnknownFormatError

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

# what else people find under a checkpoint's name: how it begins, what it is, what to do
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file; run `git lfs pull`"),
    (b"<!doctype html", "is an HTML page; the download needs a login or another address"),
    (b"<html", "is an HTML page; the download needs a login or another address"),
    (b'{"error', "is a server's error message; read it and download again"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (b"GGUF", "is a GGUF file, which this version does not read"),
    (b"\x89HDF", "is an HDF5 file, which this version does not read"),
    (b"\x93NUMPY", "is a .npy file; load it with numpy"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "was written by torch.save before PyTorch 1.6, which this version does not read"),
    (b"\x80", "is a bare pickle, which this version does not read"),
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
        raise UnknownFormatError(f"{source.name}: begins with {len(head)} zero bytes; its write was cut short, fetch it again")
    start = head.lstrip().lower()
    for magic, what in _STRANGERS:
        if head.startswith(magic) or start.startswith(magic):
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
