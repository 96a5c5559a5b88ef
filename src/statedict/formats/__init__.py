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


def folder_writer(name: str, sharded: bool) -> Format | None:
    """The format whose `files` write this one into a folder; None if it is one file.

    Args:
        name: of a format that can be written.
        sharded: several files are asked for.

    Raises:
        UnsupportedError: they are, and the format has no shards.
    """
    folder = FORMATS[name].folder
    if sharded and not folder:
        raise UnsupportedError(f"shards are written as {_FOLDERS}, not as {name}")
    return FORMATS[folder].load() if sharded or folder == name else None


def for_writing(path: str, sharded: bool = False) -> str:
    """The name of the format that a path asks for: by its suffix; torch for every unknown one, as torch.save has it.

    A folder that holds a distributed checkpoint asks for another one, any other with shards for safetensors.
    """
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(os.path.join(path, ".metadata")):
        return "distributed"
    if sharded:
        return "safetensors"
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "torch")
