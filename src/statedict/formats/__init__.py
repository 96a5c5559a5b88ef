"""Formats: one module a kind of file; here the table, to which `kinds.py` adds how files begin.

A format's module has `read(source)`, which returns the tree and reads no tensor, and `checks(source)`, which yields the
parts of the file, notes, and what is wrong with its structure. If it can be written it has `write(tree, sink)`, or
`files(tree, most)` for a folder: name of each file → what writes it, the index last. To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib
import os

from statedict.errors import FormatError, UnsupportedError
from statedict.formats.kinds import KINDS, added, find_row, hint_at_download, run_checks
from statedict.formats.kinds import detect as detect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found


_HOLDERS = {  # the modules of the formats whose files hold, or need, other checkpoints
    "coded": "statedict.formats.coded",
    "zip": "statedict.formats.zip_members",
    "tar": "statedict.formats.tar",
    "torch-export": "statedict.formats.torch.export",
    "distributed": "statedict.formats.distributed",
    "sharded": "statedict.formats.sharded",
    "pipeline": "statedict.formats.pipeline",
}
FORMATS = {name: row if row.module else row._replace(module=_HOLDERS[name]) for name, row in KINDS.items()}
WRITABLE = [name for name, row in FORMATS.items() if row.suffixes or row.folder]
_SUFFIXES = {suffix: name for name, row in FORMATS.items() for suffix in row.suffixes}
_FOREIGN = (".onnx", ".npy", ".keras", ".tflite", ".pb", ".zip", ".pkl", ".json")


def read(source: ByteSource, name: str | None = None) -> Any:
    """Read the tree in a file, in the format `name` or the one that is detected."""
    with hint_at_download(source.name):
        kind = name or detect(source)
        tree = load_format(kind).read(source)
        if name is None and kind == "pickle":
            load_format(kind).refuse_plain(tree, source.name)
        return tree


def checks(source: ByteSource, name: str | None = None) -> tuple[str, Iterator[Found]]:
    """List the checks of the parts of a file, in the format `name` or the one that is detected."""
    with hint_at_download(source.name):
        kind = resolve_name(name or detect(source))
    return kind, run_checks(source, load_format(kind))


def resolve_name(name: str) -> str:
    """The name of a format, which may be given as a suffix: `pth` means torch."""
    return name if name in FORMATS else find_suffix(f".{name}".replace("..", ".")) or name


def find_suffix(suffix: str) -> str | None:
    """The name of the format that writes files with a suffix."""
    return _SUFFIXES.get(suffix) or next((name for name, row in added().items() if suffix in row.suffixes), None)


def load_format(name: str, writable: bool = False) -> ModuleType:
    """Import the module of a format; FormatError, which lists those there are, or only writable ones, if it is none."""
    name = resolve_name(name)
    row = FORMATS.get(name) or find_row(name)
    if row is None:
        names = [one for one in (*FORMATS, *added()) if is_writable(one) or not writable]
        raise FormatError(f"no format {name!r}; there are {', '.join(names)}")
    return row.load()


def is_writable(name: str) -> bool:
    """Whether there is a format of this name that is written."""
    row = find_row(name)
    return row is not None and bool(row.suffixes or row.folder)


def load_writer(name: str) -> ModuleType:
    """As `load_format`; FormatError, too, if the format can only be read."""
    module, name = load_format(name, True), resolve_name(name)
    if not is_writable(name):
        raise FormatError(f"{name} files are read, not written; formats for writing are {', '.join(WRITABLE)}")
    return module


def rewrite(tree: Any, source: ByteSource, before: Any, name: str | None = None) -> tuple[int, bytes] | None:
    """Compute the offset and bytes that turn a file into `tree`, which holds the file's own tensors.

    Returns None if the file must be written anew. `before` is the tree that was read from it; `name` is the format to
    write, by default the file's.
    """
    kind = detect(source)
    row = find_row(kind)
    if row is None or not row.in_place or (name is not None and resolve_name(name) != kind):
        return None
    return importlib.import_module(row.in_place).rewrite(tree, source, before)  # type: ignore[no-any-return]


def choose_writer(path: str, name: str | None = None, sharded: bool = False) -> tuple[ModuleType, bool]:
    """Choose the format for a path, and whether to write a folder, with its `files`.

    A slash at the end, or `sharded`, means a folder: safetensors, unless it replaces a distributed checkpoint. For any
    other path the suffix decides; without one it is torch.
    """
    suffix = get_suffix(path)
    folder = sharded or path.endswith("/")
    if name is None:
        if os.path.isfile(os.path.join(path, ".metadata")):
            name = "distributed"
        elif folder:
            name = "safetensors"
        else:
            name = find_suffix(suffix) if suffix else "torch"
    if not name:
        raise FormatError(
            f"{path}: statedict does not write {suffix} files; name a file that ends in "
            f"{', '.join(_SUFFIXES)}, or a folder that ends in /, or give the format: {', '.join(WRITABLE)}"
        )
    module, name = load_writer(name), resolve_name(name)
    folder_format = FORMATS[name].folder if name in FORMATS else ""
    if not folder and folder_format != name:
        return module, False
    if not folder_format:
        what = "shards are" if sharded else "a folder is"
        those = " or ".join(name for name in WRITABLE if FORMATS[name].folder)
        raise UnsupportedError(f"{path}: {what} written as {those}, not as {name}")
    if suffix in (*_SUFFIXES, *_FOREIGN) and not path.endswith("/") and not os.path.isdir(path):
        stem = path[: -len(suffix)]
        raise FormatError(f"{path}: is the name of a file, and a folder is written; name a folder such as {stem}/")
    return FORMATS[folder_format].load(), True


def get_suffix(path: str) -> str:
    """Return the suffix of a path in lower case; with the one before it for `.tar` and if they are one in the table."""
    stem, suffix = os.path.splitext(path.lower())
    both = os.path.splitext(stem)[1] + suffix
    return both if suffix == ".tar" or both in _SUFFIXES else suffix
