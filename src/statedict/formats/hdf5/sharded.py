"""Weights of Keras 3 in several files, as `save_weights(…, max_shard_size=…)` writes them.

    NAME.weights.json    {"metadata": {"total_size": 4010.0}, "weight_map": {"/layers/dense/vars": [FILE, …], …}}
    FILE                 a `.weights.h5` with some of the variables; those of one layer may be in several

Source: keras 3.15.1, `ShardedH5IOStore`.
"""

from __future__ import annotations

from statedict.errors import CorruptFileError, FileError
from statedict.formats import places
from statedict.formats.hdf5.keras import read_keras
from statedict.formats.hdf5.objects import Group, read_objects
from statedict.io.json import parse, read_document
from statedict.tensor.checks import Problem, by_storage, tensors_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found
    from statedict.tree.state_dict import StateDict


def read(source: ByteSource) -> StateDict:
    """Read the tree of all files lazily."""
    groups, _ = _read_index(source)
    files = places.open_files(places.get_folder(source), [file for some in groups.values() for file in some])
    root, found = Group({}, {}), dict[str, Group]()
    for name, file in files.items():
        if isinstance(file, FileError):
            raise file
        found[name] = read_objects(file)
        _merge(root, found[name], file.name)
    for path, some in groups.items():
        for name in some:
            if not _has(found[name], path):
                raise CorruptFileError(f"{source.name}: says that {path} is in {name}, but it is not; fetch both again")
    return read_keras(root)


def _read_index(source: ByteSource) -> tuple[dict[str, list[str]], Any]:
    """Group → files, and the total size."""
    index = parse(read_document(source), source.name)
    rows = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(rows, dict):
        raise CorruptFileError(f"{source.name}: is JSON without a weight_map; save the weights again")
    groups = {path: [files] if type(files) is str else files for path, files in rows.items()}
    if not all(type(files) is list and {*map(type, files)} == {str} for files in groups.values()):
        raise CorruptFileError(f"{source.name}: its weight_map does not map groups to files; save the weights again")
    metadata = index.get("metadata")
    return groups, metadata.get("total_size") if isinstance(metadata, dict) else None


def list_files(source: ByteSource) -> list[str]:
    """List the files that the index names."""
    return [*dict.fromkeys(file for files in _read_index(source)[0].values() for file in files)]


def _merge(into: Group, other: Group, where: str) -> None:
    """Add the entries of a shard to those of the others."""
    into.attributes.update({name: value for name, value in other.attributes.items() if name not in into.attributes})
    for name, one in other.entries.items():
        if isinstance(one, Group):
            below = into.entries.setdefault(name, Group({}, {}))
            if isinstance(below, Group):
                _merge(below, one, f"{where}: {name}")
                continue
        if name in into.entries:
            raise CorruptFileError(f"{where}: {name} is in another shard too; save the weights again")
        into.entries[name] = one


def _has(root: Any, path: str) -> bool:
    for part in filter(None, path.split("/")):
        root = root.entries.get(part) if isinstance(root, Group) else None
    return isinstance(root, Group)


def checks(source: ByteSource) -> Iterator[Found]:
    """List the tensors; compare their size with that in the index."""
    tree = read(source)
    yield from by_storage(tree)
    size, total = _read_index(source)[1], sum(tensor.nbytes for _, tensor in tensors_of(tree))
    if type(size) in (int, float) and size != total:
        remedy = "the index was not made for these files; save the weights again"
        yield Problem("index", "its total_size is not that of the tensors", f"{total:,}", f"{size:,.0f}", remedy)
