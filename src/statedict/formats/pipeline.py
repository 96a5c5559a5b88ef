"""A pipeline of several models: a folder of diffusers, or of sentence-transformers, with a model in each folder in it.

    model_index.json    diffusers: {"_class_name": …, NAME: [LIBRARY, CLASS], …}; NAME is a folder too, if it has files
    modules.json        sentence-transformers: [{"idx": 0, "name": "0", "path": PATH, "type": CLASS}, …]; the first path
                        is mostly empty, which is the folder itself

Each component that has weights is a dict under its name, that of a module under its path or, of the first one, its
class. A folder with modules.json opens by the first module; name that file to open all of them.

Source: diffusers/pipelines/pipeline_utils.py (0.42), sentence_transformers/SentenceTransformer.py (5.1).
"""

from __future__ import annotations

import os
from typing import Any

from statedict.errors import CorruptFileError, FormatError, UnknownFormatError
from statedict.formats import places, sharded
from statedict.formats.kinds import check_part, detect, read_part, run_checks
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import join
from statedict.pickles.budget import Together
from statedict.tensor.checks import within
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MOST = 100  # components


def read(source: ByteSource) -> StateDict:
    """Read the trees of the components, lazily."""
    document = _parse(source)
    tree, together = StateDict(), Together()
    for name, _, part in _open(source, document):
        with together:
            tree[name] = sharded.read(part) if detect(part) == "sharded" else read_part(part)
    if not tree:
        raise UnknownFormatError(f"{source.name}: none of its components has weights here; fetch them too")
    if isinstance(document, dict):
        tree.metadata = {key: value for key, value in document.items() if key[:1] == "_" and type(value) is str}
    return tree


def list_files(source: ByteSource) -> list[str]:
    """List the files of the components."""
    found = []
    for _, file, part in _open(source, _parse(source)):
        found.append(file)
        if detect(part) == "sharded":
            found += [os.path.join(os.path.dirname(file), shard) for shard in sharded.list_files(part)]
    return found


def checks(source: ByteSource) -> Iterator[Found]:
    """Check every component."""
    for name, _, part in _open(source, _parse(source)):
        if detect(part) == "sharded":
            yield from within(run_checks(part, sharded), name, name)
        else:
            yield from check_part(part, name, name)


def _parse(source: ByteSource) -> Any:
    return parse(read_document(source), source.name, constants=True, surrogates=True)


def _list_components(document: Any, where: str) -> dict[str, str]:
    """The folders of the components, by their names."""
    found: dict[str, str] = {}
    if isinstance(document, dict):
        found = {key: key for key, value in document.items() if isinstance(value, list) and len(value) == 2}
    elif isinstance(document, list):
        for one in document:
            path, kind = (one.get(key) if isinstance(one, dict) else None for key in ("path", "type"))
            if type(path) is not str or type(kind) is not str:
                raise CorruptFileError(f"{where}: describes a module without a path or a type; the file is damaged")
            found[path or kind.rpartition(".")[2]] = path
    if not found or len(found) > _MOST:
        raise CorruptFileError(f"{where}: names {len(found):,} components, expected up to {_MOST}; it is damaged")
    return found


def _open(source: ByteSource, document: Any) -> Iterator[tuple[str, str, ByteSource]]:
    """The name of each component that has weights, their file in the folder, and that file."""
    folder = places.get_folder(source)
    for name, path in _list_components(document, source.name).items():
        below = places.resolve_inside(folder, path) if path else folder or os.curdir
        if location(below).names_with(()) is None and not location(below).is_folder():
            continue  # a component of its name alone, such as one that a pipeline lacks
        try:
            entry = places.find_entry(below)
        except FormatError:  # a tokenizer, or the settings of a scheduler
            continue
        if entry == below or os.path.basename(entry) == "model_index.json":
            continue
        part = places.open_file(entry)
        yield name, join(path, os.path.basename(entry)) if path else os.path.basename(entry), part
