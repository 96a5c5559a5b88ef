"""Formats: one module a kind of file; here the protocol, the table and the sniffing.

To add one: a module with `read` and, if it can, `write`; a row in `FORMATS`; if it writes, an entry in
`tests/formats/conftest.py`, whose conformance suite it then runs.
"""

from __future__ import annotations

import os

from statedict.errors import FormatError, UnknownFormatError, file_error

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
            """Write a tree of LazyTensors and plain values into an open file; absent where `suffixes` is empty."""


_HEAD = 512


class Row:
    """A format in the table: its module, the suffixes that choose it for writing, and how its files begin.

    `parts` says that it holds other checkpoints; these are not looked for in one that is such a part itself.
    """

    __slots__ = ("magic", "module", "parts", "suffixes")

    def __init__(
        self, module: str, suffixes: tuple[str, ...], magic: Callable[[bytes], bool], parts: bool = False
    ) -> None:
        self.module, self.suffixes, self.magic, self.parts = module, suffixes, magic, parts

    def load(self) -> Format:
        """The module."""
        import importlib

        module: Any = importlib.import_module(self.module)
        return module  # type: ignore[no-any-return]


_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number, as protocol 2 writes it

FORMATS: dict[str, Row] = {
    "torch": Row(
        "statedict.formats.torch_zip",
        (".pth", ".pt", ".bin", ".ckpt"),
        lambda head: head[:4] == b"PK\3\4",
    ),
    "safetensors": Row(
        "statedict.formats.safetensors",
        (".safetensors",),
        lambda head: head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40,
    ),
    "zip": Row("statedict.formats.zip_members", (), lambda head: head[:4] == b"PK\5\6", parts=True),
    "torch-legacy": Row(
        "statedict.formats.torch_legacy", (), lambda head: head.startswith(_LEGACY) or head[257:262] == b"ustar"
    ),
    "distributed": Row(
        "statedict.formats.distributed",
        (),
        lambda head: _is_pickle(head) and b"torch.distributed.checkpoint.metadata" in head[:80],
        parts=True,
    ),
    "pickle": Row("statedict.formats.pickle", (), lambda head: _is_pickle(head)),
    "sharded": Row(
        "statedict.formats.sharded",
        (),
        lambda head: head.lstrip()[:1] == b"{" and (b'"weight_map"' in head or b'"total_size"' in head),
        parts=True,
    ),
}
WRITABLE = [name for name, row in FORMATS.items() if row.suffixes]
# what a folder is opened by, in this order; without any of them by the only index in it
_ENTRIES = (
    ".metadata",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)

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
    (0, b"GGUF", "is a GGUF file, which this version does not read"),
    (0, b"\x89HDF", "is an HDF5 file, which this version does not read"),
    (0, b"\x93NUMPY", "is a .npy file; load it with numpy"),
)


def detect(source: ByteSource) -> str:
    """The name of the format that a file's content shows.

    Raises:
        UnknownFormatError: none; the message says what the file seems to be instead.
    """
    head = bytes(source.read(0, min(source.size, _HEAD)))
    for name, row in FORMATS.items():
        if row.magic(head):
            return "zip" if name == "torch" and not _has_pickle(source, head) else name
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


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _has_pickle(source: ByteSource, head: bytes) -> bool:
    """Whether a zip archive is one of torch.save or torch.jit.save; mostly its first record says so."""
    if head[30 : 30 + int.from_bytes(head[26:28], "little")].rpartition(b"/")[2] == b"data.pkl":
        return True
    from statedict.io.zip import read_directory

    return any(name.rpartition("/")[2] == "data.pkl" for name in read_directory(source))


def read_part(source: ByteSource) -> Any:
    """The tree in a file that is a part of another checkpoint.

    Raises:
        FormatError: it is no checkpoint, or has parts itself.
    """
    name = detect(source)
    if FORMATS[name].parts:
        raise FormatError(f"{source.name}: checkpoints within checkpoints are read one deep; open this one by itself")
    return FORMATS[name].load().read(source)


def entry(path: str) -> str:
    """The file by which a folder is opened; any other path as it is.

    Raises:
        UnknownFormatError: the folder holds no checkpoint, or several.
        FormatError: that file is a link out of the folder.
    """
    if not os.path.isdir(path):
        return path
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise file_error(path, "cannot list", error) from error
    found = [name for name in _ENTRIES if name in names] or [name for name in names if name.endswith(".index.json")]
    if not found or (len(found) > 1 and found[0] not in _ENTRIES):
        held = f"has several: {', '.join(found)}" if found else f"holds {', '.join(names[:3]) or 'nothing'}"
        raise UnknownFormatError(
            f"{path}: is a folder without .metadata, model.safetensors, pytorch_model.bin or one *.index.json; "
            f"it {held}; name the file to open"
        )
    return inside(path, found[0])


def inside(folder: str, file: str) -> str:
    """The path of a file that a checkpoint's folder or index names, if it lies in that folder.

    The one link that may leave it is that of a Hugging Face cache, from `snapshots/REVISION/…` to `blobs/…`.

    Raises:
        FormatError: it does not, by its name or by a symbolic link.
    """
    root = os.path.realpath(folder or os.curdir)
    refused = not file or "\0" in file or os.path.isabs(file) or ".." in file.replace("\\", "/").split("/")
    if not refused:
        real = os.path.realpath(os.path.join(root, file))
        cache, is_snapshot, _ = root.rpartition("/snapshots/")
        allowed = [root.rstrip(os.sep) + os.sep] + ([cache + "/blobs/"] if is_snapshot else [])
        refused = not real.startswith(tuple(allowed))
    if refused:
        raise FormatError(
            f"{folder or os.curdir}: refers to {file!r}, which lies outside of the folder; refused, "
            "open that file by itself if you trust it"
        )
    return os.path.join(folder, file)


def by_name(name: str) -> Format:
    """The format of a name.

    Raises:
        FormatError: there is none.
    """
    if name not in FORMATS:
        raise FormatError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name].load()


def writer(name: str) -> Format:
    """The format of a name, if it can be written.

    Raises:
        FormatError: there is none, or it can only be read.
    """
    module = by_name(name)
    if name not in WRITABLE:
        raise FormatError(f"{name} files are read, not written; formats for writing are {', '.join(WRITABLE)}")
    return module


def for_writing(path: str) -> str:
    """The name of the format that a path's suffix asks for; torch for every unknown one, as torch.save has it."""
    suffix = os.path.splitext(path)[1].lower()
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "torch")
