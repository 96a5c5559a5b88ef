"""Formats: one module a kind of file; here the table. The protocol is in `kinds.py`, with how files begin.

To add one: a module with `read`, `checks` and, if it can, `write` and `rewrite`, or `files` if it is a folder; a row in
`KINDS`; if it writes, an entry in `tests/formats/conftest.py`, whose conformance suite it then runs.
"""

from __future__ import annotations

import os

from statedict.errors import FormatError, UnsupportedError
from statedict.formats.kinds import KINDS, Hinted, hinted
from statedict.formats.kinds import detect as detect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.formats.kinds import Format
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found


_HOLDERS = {  # the modules of the formats whose files hold other checkpoints
    "zip": "statedict.formats.zip_members",
    "torch-export": "statedict.formats.torch.export",
    "distributed": "statedict.formats.distributed",
    "sharded": "statedict.formats.sharded",
}
FORMATS = {name: row.at(_HOLDERS[name]) if row.parts else row for name, row in KINDS.items()}
WRITABLE = [name for name, row in FORMATS.items() if row.suffixes or row.folder]
_FOREIGN = (".gguf", ".onnx", ".h5", ".hdf5", ".npz", ".npy", ".keras", ".tflite", ".pb", ".zip", ".pkl", ".json")
_FOLDERS = " or ".join(name for name in WRITABLE if FORMATS[name].folder)


def read(source: ByteSource, name: str | None = None) -> Any:
    """The tree in a file of this format, or of the one that its content shows."""
    with Hinted(source.name):
        return by_name(name or detect(source)).read(source)


def checks(source: ByteSource) -> tuple[str, Iterator[Found]]:
    """The format of a file, and what there is to check in it."""
    with Hinted(source.name):
        name = detect(source)
    return name, hinted(source, FORMATS[name].load())


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


def rewrite(tree: Any, source: ByteSource, before: Any, name: str | None = None) -> tuple[int, bytes] | None:
    """What to put where in a file so that it holds a tree of its own tensors under other names, with other values.

    Args:
        tree: of LazyTensors and plain values.
        source: the file as it is.
        before: the tree that was read from it.
        name: the format that it should have then; by default its own.

    Returns:
        An offset and bytes; None where the file has to be written anew.
    """
    import importlib

    kind = detect(source)
    if not FORMATS[kind].in_place or name not in (None, kind):
        return None
    found: tuple[int, bytes] | None
    found = importlib.import_module(FORMATS[kind].in_place).rewrite(tree, source, before)
    return found


def choose_writer(path: str, name: str | None = None, sharded: bool = False) -> tuple[Format, bool]:
    """The format in which a path is written, and whether that is as a folder, by its `files`.

    A slash at the end, or shards, mean a folder; any other name is a file. Without a format a folder is one of
    safetensors, or a distributed checkpoint where one is replaced; the suffix of a file says its format, torch without
    any.

    Args:
        path: the target.
        name: the format that is asked for.
        sharded: several files are asked for.

    Raises:
        FormatError: nothing is written under such a name, or not in that format.
        UnsupportedError: a folder is asked for, and the format is a file.
    """
    suffix = suffix_of(path)
    by_suffix = next((name for name, row in FORMATS.items() if suffix in row.suffixes), "")
    folder = sharded or path.endswith("/")
    if name is None:
        if os.path.isfile(os.path.join(path, ".metadata")):
            name = "distributed"
        elif folder:
            name = "safetensors"
        else:
            name = by_suffix if suffix else "torch"
    if not name:
        raise FormatError(
            f"{path}: {suffix} is the suffix of no format that is written; name a file that ends in "
            f"{', '.join(suffix for row in FORMATS.values() for suffix in row.suffixes)}, or a folder that ends in /, "
            f"or give the format: {', '.join(WRITABLE)}"
        )
    module = writer(name)
    if not folder and FORMATS[name].folder != name:
        return module, False
    if not FORMATS[name].folder:
        what = "shards are" if sharded else "a folder is"
        raise UnsupportedError(f"{path}: {what} written as {_FOLDERS}, not as {name}")
    if (by_suffix or suffix in _FOREIGN) and not path.endswith("/") and not os.path.isdir(path):
        stem = path[: -len(suffix)]
        raise FormatError(f"{path}: is the name of a file, and a folder is written; name a folder such as {stem}/")
    return FORMATS[FORMATS[name].folder].load(), True


def suffix_of(path: str) -> str:
    """The suffix of a path in small letters; that of a tar archive with the one before."""
    stem, suffix = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".tar" else suffix
