"""What lies in a folder beside the checkpoint that opens it: other checkpoints, configurations, texts.

Trainers put an optimizer, a scheduler and generator states there, accelerate a second model; hubs a configuration and a
tokenizer. `load` opens one of them. Here all are found, read and checked as far as their kind is known, or named.
"""

from __future__ import annotations

import os
import re

from statedict import formats
from statedict.errors import FileError, FormatError, LimitError, UnknownFormatError
from statedict.formats import places
from statedict.io.json import parse
from statedict.io.location import location
from statedict.io.urls import join
from statedict.tensor.checks import Check, Problem, Unread, refusal, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_CHECKPOINT = re.compile(r"\.(pt|pth|ckpt|bin|safetensors|pkl|index\.json)$")
_DEEP = 5
_LARGEST = 64 << 20  # bytes of a text that is read


def is_folder(path: str) -> bool:
    """Whether the files that lie beside a checkpoint belong to it, and can be listed."""
    place = location(path)
    return place.is_folder() and place.names() is not None


def list_others(path: str) -> list[str]:
    """The files in a folder, and in folders in it, that the checkpoint which opens it does not consist of.

    Folders that are hidden, links or too deep end with `/`.
    """
    found: list[str] = []
    _add(path, "", found)
    return found


def _add(path: str, below: str, found: list[str]) -> None:
    own = _list_own(path) if not below else set()
    for name, item in (location(path).contents() or {}).items():
        inner, full = join(path, name), below + name
        if not item.folder:
            found += [] if name in own else [full]
        elif name.startswith((".", "__")) or os.path.islink(inner) or below.count("/") >= _DEEP:
            found.append(full + "/")
        else:
            _add(inner, full + "/", found)


def _list_own(folder: str) -> set[str]:
    """The names of the files of the checkpoint that opens a folder."""
    entry = os.path.basename(places.find_entry(folder))
    try:
        return {entry, *_list_named(places.open_checkpoint(folder))}
    except (FormatError, FileError):  # which whoever reads that file is told
        return {entry}


def _list_named(source: ByteSource) -> set[str]:
    module = formats.FORMATS[formats.detect(source)].load()
    return set(module.list_files(source)) if hasattr(module, "list_files") else set()


def list_checkpoints(path: str) -> list[str]:
    """Those of the other files in a folder that are checkpoints by their names."""
    others = [name for name in list_others(path) if _CHECKPOINT.search(name)]
    named = {shard for name in others if name.endswith(".index.json") for shard in _list_shards(path, name)}
    return [name for name in others if name not in named]


def _list_shards(path: str, index: str) -> set[str]:
    try:
        named = _list_named(places.open_file(places.resolve_inside(path, index)))
        return {os.path.join(os.path.dirname(index), file) for file in named}
    except (FormatError, FileError):
        return set()


def check_others(path: str) -> Iterator[Found]:
    """Yield the checks of the other files in a folder, and those that nobody can check."""
    others = list_others(path)
    named = {shard for name in others if name.endswith(".index.json") for shard in _list_shards(path, name)}
    for name in others:
        if name not in named:
            yield from _check(path, name)


def _check(path: str, name: str) -> Iterator[Found]:
    if name.endswith(("/", ".distcp")):
        yield Unread(name)
        return
    known = bool(_CHECKPOINT.search(name))
    try:
        source = places.open_file(places.resolve_inside(path, name))
        if source.size or known or name.endswith(".json"):
            formats.detect(source)
            known = False  # else no checkpoint begins so
            yield from within(formats.checks(source)[1], name, name)
    except UnknownFormatError as error:
        yield refusal(error, join(path, name), name) if known else _check_text(source, name)
    except (FormatError, FileError) as error:
        yield refusal(error, join(path, name), name)


def _check_text(source: ByteSource, name: str) -> Check | Problem | Unread:
    """What can be said of a file without tensors: JSON is parsed, text decoded, anything else is not looked at."""
    if source.size <= _LARGEST:
        data = bytes(source.read(0, source.size))
        try:
            if name.endswith(".json"):
                parse(data, name, constants=True, surrogates=True)
            elif b"\0" in data:
                return Unread(name)
            data.decode()
            return Check(name, source, 0, source.size)
        except (LimitError, UnicodeDecodeError):
            pass
        except FormatError as error:
            return refusal(error, name, name)
    return Unread(name)
