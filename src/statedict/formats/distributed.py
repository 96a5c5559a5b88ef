"""`torch.distributed.checkpoint` directories, read without PyTorch and without a process group.

    .metadata        a pickle of Metadata: for each name the size, dtype and chunks of a tensor, or that it is bytes;
                     for each chunk its file, offset and length; for each name the keys that it had in the tree
    __RANK_N.distcp  the chunks one after the other, each of them a file of torch.save in itself

A tensor of several chunks is assembled when it is read, block by block. The chunk's own header is looked at only then,
so opening costs `.metadata` and the entries that are bytes. Names that share a chunk are tied tensors.
distributed_writing.py says what we write.
Source: torch/distributed/checkpoint/metadata.py, filesystem.py, _nested_dict.py (PyTorch 2.13).
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise

from statedict.errors import (
    CorruptFileError,
    FileError,
    FormatError,
    MissingFileError,
    UnknownFormatError,
    is_failure_of_code,
)
from statedict.formats import places as folders
from statedict.formats.distributed_tensors import OURS, REMEDY, Tensors, fields, key_text
from statedict.formats.kinds import part_checks, read_part
from statedict.io.source import Slice
from statedict.pickles.budget import RECORDS, Together
from statedict.pickles.keys import Keys
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.arrays import format_boxes
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import MAX_DEPTH
from statedict.values import Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found


def read(source: ByteSource) -> StateDict:
    """The tree of the checkpoint whose `.metadata` this is, lazily.

    Raises:
        CorruptFileError: `.metadata` does not describe a checkpoint, or chunks are missing.
        FormatError: a chunk lies in a file outside of the folder.
    """
    folder = folders.beside(source)
    try:
        with Together():
            return _tree(source, folder)
    except (TypeError, AttributeError) as error:
        if is_failure_of_code(error):
            raise
        raise CorruptFileError(f"{source.name}: does not describe a checkpoint ({error})") from error


def _tree(index: ByteSource, folder: str) -> StateDict:
    metadata = _metadata(index)
    leaves = _leaves(index, folder, metadata)
    if OURS in metadata:
        return _arrange(metadata[OURS], leaves, index.name)
    planner = metadata.get("planner_data")
    paths = planner if isinstance(planner, dict) else {}
    tree = StateDict()
    for name, leaf in leaves.items():
        keys = paths.get(name, (name,))
        _insert(tree, keys if type(keys) is tuple and keys else (name,), leaf)
    _number(tree)
    return tree


def _leaves(index: ByteSource, folder: str, metadata: dict[str, Any]) -> dict[Any, Any]:
    """The entries by their names."""
    entries = metadata.get("state_dict_metadata")
    if not isinstance(entries, dict):
        raise CorruptFileError(f"{index.name}: does not describe a checkpoint of torch.distributed")
    stored = list(_list_stored(metadata, index.name))
    paths = {file: folders.inside(folder, file) for _, _, file, _, _ in stored}
    sources = folders.open_files(paths.values())
    opened = {file: sources[path] for file, path in paths.items()}
    lost = {file: source for file, source in opened.items() if isinstance(source, FileError)}
    files = {file: source for file, source in opened.items() if not isinstance(source, FileError)}
    for error in lost.values():
        if not files or not isinstance(error, MissingFileError):
            raise error
    known = Keys()
    places: dict[tuple[Any, ...], Slice] = {}
    for name, chunk, file, offset, length in stored:
        key = known.check((name, chunk))
        if file in files:
            places[key] = Slice(files[file], offset, length)
        elif chunk is None:  # a value, which cannot be there in part
            raise lost[file]
    if sum(s.size for (_, chunk), s in places.items() if chunk is None) > sum(f.size for f in files.values()):
        raise CorruptFileError(f"{index.name}: several names for the same bytes; the metadata is damaged or forged")
    tensors = Tensors(places, index.name, [*lost])
    return {name: _leaf(name, fields(entry), tensors) for name, entry in entries.items()}


def _number(tree: Any) -> None:
    """Make the keys of optimizers' states integers again, where `param_groups` has integers.

    PyTorch's planner makes text of them, and with such keys its optimizers take no state in.
    """
    waiting: list[Any] = [tree]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # a value that was pickled may contain itself
            continue
        seen.add(id(node))
        waiting += [child for child in (node.values() if isinstance(node, dict) else node) if _holds(child)]
        state, groups = (node.get("state"), node.get("param_groups")) if isinstance(node, dict) else (None, None)
        if isinstance(state, dict) and isinstance(groups, list):
            listed = [group.get("params") for group in groups if isinstance(group, dict)]
            numbers = {n for some in listed if isinstance(some, list) for n in some if type(n) is int}
            numbers -= state.keys()
            entries = [(_as_number(key, numbers), entry) for key, entry in state.items()]
            state.clear()
            state.update(entries)


def _holds(node: Any) -> bool:
    return isinstance(node, dict | list)


def _as_number(key: Any, numbers: set[int]) -> Any:
    short = type(key) is str and key.isdecimal() and len(key) < 20
    return int(key) if short and int(key) in numbers and str(int(key)) == key else key


def _metadata(index: ByteSource) -> dict[str, Any]:
    return fields(load(index.read(0, index.size), DATA, None, index.name, factor=RECORDS)[0])


def _list_stored(metadata: dict[str, Any], where: str) -> Iterator[tuple[Any, Any, str, int, int]]:
    """Of each thing that is stored its name, its place in a tensor (None for bytes), file, offset and length."""
    stored = metadata.get("storage_data")
    if not isinstance(stored, dict):
        raise CorruptFileError(f"{where}: does not describe a checkpoint of torch.distributed")
    for key, info in stored.items():
        place, what = fields(info), fields(key)
        file, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if type(file) is not str or type(offset) is not int or type(length) is not int:
            raise CorruptFileError(f"{where}: an entry without file, offset and length")
        if place.get("transform_descriptors"):
            raise FormatError(f"{where}: chunks are transformed ({place['transform_descriptors']}), which is not read")
        chunk = what.get("offset")
        if not isinstance(chunk, Size | None):
            raise CorruptFileError(f"{where}: an entry whose place in the tensor is no shape")
        yield what.get("fqn"), None if chunk is None else tuple(chunk), file, offset, length


def checks(source: ByteSource) -> Iterator[Found]:
    """Every chunk, each a file in itself, and whether they make up the files of the ranks and the tensors."""
    from dataclasses import replace

    from statedict.tensor.checks import Check, Problem, refusal, within

    folder, sound, absent = folders.beside(source), True, 0
    metadata = _metadata(source)
    files: dict[str, dict[tuple[int, int], list[tuple[str, Any]]]] = {}  # tied tensors are names of one chunk
    for name, chunk, file, offset, length in _list_stored(metadata, source.name):
        files.setdefault(file, {}).setdefault((offset, length), []).append((str(name), chunk))
    for file, chunks in files.items():
        try:
            whole = folders.open_file(folders.inside(folder, file))
        except FileError as error:
            missing = refusal(error, os.path.join(folder, file), file)
            yield replace(missing, tensors=tuple(dict.fromkeys(name for held in chunks.values() for name, _ in held)))
            absent += 1
            continue
        if sum(length for _, length in chunks) > whole.size:
            what = "its chunks overlap or lie past its end, and are not read"
            yield Problem(file, what, remedy="fetch or save the checkpoint again")
            sound = False
            continue
        for (offset, length), held in chunks.items():
            name, chunk = held[0]
            part = f"{file}: {name} from {chunk}" if chunk and any(chunk) else f"{file}: {name}"
            try:
                for item in within(part_checks(Slice(whole, offset, length)), part, name):
                    if isinstance(item, Check) and item.tensors:
                        item.tensors += tuple((tied, item.tensors[0][1]) for tied, _ in held[1:])
                    yield item
            except (CorruptFileError, UnknownFormatError) as error:
                yield replace(refusal(error, whole.name, part), tensors=tuple(name for name, _ in held))
                sound = False
        ranges = sorted((offset, offset + length) for offset, length in chunks)
        for (_, end), (begin, _) in pairwise([(0, 0), *ranges, (whole.size, whole.size)]):
            if begin != end and sound:
                what = f"its chunks {'overlap' if begin < end else 'leave a hole'} at byte {min(begin, end):,}"
                yield Problem(file, f"{what} (to {max(begin, end):,})", remedy="fetch or save the checkpoint again")
    if sound:
        try:
            read(source)
            leaves = _leaves(source, folder, metadata)
        except FileError:
            if not absent:  # else it is told already
                raise
            return
        for name, leaf in leaves.items():
            if isinstance(leaf, LazyTensor) and leaf.present_boxes is not None:
                what = f"of its shape {leaf.shape} there is {format_boxes(leaf.present_boxes)} only"
                yield Problem(str(name), what, remedy=REMEDY, tensors=(str(name),))


def _leaf(name: str, entry: dict[str, Any], tensors: Tensors) -> Any:
    if "chunks" in entry:
        return tensors.tensor(name, entry)
    place = tensors.places.get((name, None))
    if place is None:
        raise CorruptFileError(f"{tensors.where}: the bytes of {name!r} are missing")
    return read_part(place)


def _insert(tree: StateDict, keys: tuple[Any, ...], leaf: Any) -> None:
    """Put a leaf under its keys; integers are places in a list."""
    node: Any = tree
    for key, following in zip(keys, (*keys[1:], None), strict=True):
        new = leaf if following is None else [] if type(following) is int else StateDict()
        if type(key) not in (str, int):
            raise CorruptFileError(f"the path {keys!r:.80} of an entry makes no sense")
        if isinstance(node, list):
            if type(key) is not int or key < 0 or key > len(node) + 4096:
                raise CorruptFileError(f"the path {keys!r:.80} of an entry makes no sense")
            node += [None] * (key + 1 - len(node))
            if node[key] is None:
                node[key] = new
            node = node[key]
        elif isinstance(node, dict):
            node = node.setdefault(key, new)
        else:
            raise CorruptFileError(f"the path {keys!r:.80} of an entry leads through a leaf")


def _arrange(ours: Any, leaves: dict[Any, Any], where: str) -> StateDict:
    """The tree as our own record has it: each entry is in it once, under its name."""
    if not isinstance(ours, dict) or ours.get("version") != 1:
        version = ours.get("version") if isinstance(ours, dict) else None
        raise FormatError(f"{where}: its record of the tree has version {version!r:.40}; a newer version may read it")
    left = dict(leaves)
    seen: set[int] = set()

    def take(path: tuple[str, ...], parameter: bool = False) -> Any:
        name = ".".join(path)
        if name not in left:
            raise CorruptFileError(f"{where}: the record of the tree has {name!r:.80}, the checkpoint has not")
        leaf = left.pop(name)
        if not parameter or not isinstance(leaf, LazyTensor):
            return leaf
        return leaf.replace(parameter=True)

    def visit(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict | list):
            return take(path, node is True)
        if id(node) in seen or len(path) > MAX_DEPTH:
            raise CorruptFileError(f"{where}: the record of the tree holds a container twice or is nested too deep")
        seen.add(id(node))
        if isinstance(node, Counter):
            return Counter({key: take((*path, key_text(key))) for key in node})
        if isinstance(node, dict):
            made = StateDict((key, visit(child, (*path, key_text(key)))) for key, child in node.items())
            made._metadata = getattr(node, "_metadata", None)
            return made
        return [visit(child, (*path, str(index))) for index, child in enumerate(node)]

    tree = visit(ours.get("tree"), ())
    if left or not isinstance(tree, StateDict):
        raise CorruptFileError(f"{where}: {next(iter(left), '')!r:.80} is not in the record of the tree")
    metadata = ours.get("metadata")
    if isinstance(metadata, dict):
        tree.metadata = {str(key): text for key, text in metadata.items() if type(text) is str}
    return tree


def files(tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
    """What to write into a folder: name of each file → what writes it, the index last.

    Args:
        tree: of LazyTensors and plain values.
        most: bytes in a file; one thing that is larger has a file of its own. All in one by default.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse, or two entries with one name.
    """
    from statedict.formats.distributed_writing import plan_files

    return plan_files(tree, most)
