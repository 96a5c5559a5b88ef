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

from collections import Counter

from statedict.errors import (
    CorruptFileError,
    FileError,
    FormatError,
    MissingFileError,
    UnknownFormatError,
    is_failure_of_code,
)
from statedict.formats import places
from statedict.formats.distributed_tensors import OURS, Tensors, format_key, get_fields
from statedict.formats.kinds import check_part, read_part
from statedict.formats.torch.archive import NDARRAY
from statedict.io.source import Slice
from statedict.pickles.budget import RECORDS, Together
from statedict.pickles.machine import load
from statedict.pickles.objects import Keys
from statedict.pickles.tables import DATA
from statedict.tensor.arrays import format_boxes
from statedict.tensor.assembled import REMEDY
from statedict.tensor.checks import Check, Problem, refusal
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
    """Read the tree of the checkpoint that this `.metadata` describes, lazily."""
    with Together():
        return _read(source, _read_metadata(source))[0]


def _read(index: ByteSource, metadata: dict[str, Any]) -> tuple[StateDict, dict[Any, Any]]:
    try:
        with Together():
            leaves = _read_leaves(index, metadata)
            if OURS in metadata:
                return _arrange(metadata[OURS], leaves, index.name), leaves
            planner = metadata.get("planner_data")
            paths = planner if isinstance(planner, dict) else {}
            tree = StateDict()
            for name, leaf in leaves.items():
                keys = paths.get(name, (name,))
                _insert(tree, keys if type(keys) is tuple and keys else (name,), leaf)
            _number(tree)
            return tree, leaves
    except (TypeError, AttributeError) as error:
        if is_failure_of_code(error):
            raise
        raise CorruptFileError(f"{index.name}: does not describe a checkpoint ({error})") from error


def _read_metadata(index: ByteSource) -> dict[str, Any]:
    metadata = get_fields(load(index.read(0, index.size), DATA, None, index.name, factor=RECORDS)[0])
    if not all(isinstance(metadata.get(name), dict) for name in ("state_dict_metadata", "storage_data")):
        raise CorruptFileError(f"{index.name}: does not describe a checkpoint of torch.distributed")
    return metadata


def _list_stored(metadata: dict[str, Any], where: str) -> Iterator[tuple[Any, Any, str, int, int]]:
    """Yield (name, offset in its tensor or None for a value, file, offset, length) of each thing that is stored."""
    for key, info in metadata["storage_data"].items():
        place, what = get_fields(info), get_fields(key)
        file, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if type(file) is not str or type(offset) is not int or type(length) is not int:
            raise CorruptFileError(f"{where}: an entry without file, offset and length")
        if place.get("transform_descriptors"):
            raise FormatError(f"{where}: chunks are transformed ({place['transform_descriptors']}), which is not read")
        chunk = what.get("offset")
        if not isinstance(chunk, Size | None):
            raise CorruptFileError(f"{where}: an entry whose offset in the tensor is not a shape")
        yield what.get("fqn"), None if chunk is None else tuple(chunk), file, offset, length


def list_files(source: ByteSource) -> list[str]:
    """List the files that `.metadata` names."""
    return [file for _, _, file, _, _ in _list_stored(_read_metadata(source), source.name)]


def _read_leaves(index: ByteSource, metadata: dict[str, Any]) -> dict[Any, Any]:
    stored = list(_list_stored(metadata, index.name))
    files = places.open_files(places.get_folder(index), (file for _, _, file, _, _ in stored))
    lost = {file: source for file, source in files.items() if isinstance(source, FileError)}
    for error in lost.values():
        if len(lost) == len(files) or not isinstance(error, MissingFileError):
            raise error
    known = Keys()
    chunks: dict[tuple[Any, ...], Slice] = {}
    for name, chunk, file, offset, length in stored:
        key = known.check((name, chunk))
        source = files[file]
        if not isinstance(source, FileError):
            chunks[key] = Slice(source, offset, length)
        elif chunk is None:  # a value, which cannot be there in part
            raise source
    there = sum(source.size for source in files.values() if not isinstance(source, FileError))
    if sum(s.size for (_, chunk), s in chunks.items() if chunk is None) > there:
        raise CorruptFileError(f"{index.name}: several names for the same bytes; the metadata is damaged or forged")
    tensors = Tensors(chunks, index.name, [*lost])
    leaves: dict[Any, Any] = {}
    for name, entry in metadata["state_dict_metadata"].items():
        described = get_fields(entry)
        if "chunks" in described:
            leaves[name] = tensors.make(name, described)
        elif (name, None) in chunks:
            leaves[name] = read_part(chunks[name, None])
        else:
            raise CorruptFileError(f"{index.name}: the bytes of {name!r} are missing")
    return leaves


def _insert(tree: StateDict, keys: tuple[Any, ...], leaf: Any) -> None:
    """Put a leaf under its keys; an int is an index into a list."""
    node: Any = tree
    for key, following in zip(keys, (*keys[1:], None), strict=True):
        new = leaf if following is None else [] if type(following) is int else StateDict()
        is_index = type(key) is int and isinstance(node, list) and 0 <= key <= len(node) + 4096
        if not (is_index or (type(key) in (str, int) and not isinstance(node, list))):
            raise CorruptFileError(f"the path {keys!r:.80} of an entry makes no sense")
        if isinstance(node, list):
            node += [None] * (key + 1 - len(node))
            if node[key] is None:
                node[key] = new
            node = node[key]
        elif isinstance(node, dict):
            node = node.setdefault(key, new)
        else:
            raise CorruptFileError(f"the path {keys!r:.80} of an entry leads through a leaf")


def _number(tree: Any) -> None:
    """Turn the keys of optimizer state back into ints where `param_groups` has ints.

    PyTorch's planner makes text of them, and its optimizers ignore state with such keys.
    """
    waiting: list[Any] = [tree]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict | list) or id(node) in seen:  # a value that was pickled may contain itself
            continue
        seen.add(id(node))
        waiting += node.values() if isinstance(node, dict) else node
        state, groups = (node.get("state"), node.get("param_groups")) if isinstance(node, dict) else (None, None)
        if isinstance(state, dict) and isinstance(groups, list):
            listed = [group.get("params") for group in groups if isinstance(group, dict)]
            ints = {n for some in listed if isinstance(some, list) for n in some if type(n) is int} - state.keys()
            numbers = {str(n): n for n in ints if 0 <= n < 10**19}
            entries = [(numbers.get(key, key), entry) for key, entry in state.items()]
            state.clear()
            state.update(entries)


def _arrange(ours: Any, leaves: dict[Any, Any], where: str) -> StateDict:
    """Build the tree from our own record, which names each entry once."""
    version = ours.get("version") if isinstance(ours, dict) else None
    if version != 1:
        raise FormatError(f"{where}: its record of the tree has version {version!r:.40}; a newer version may read it")
    left = leaves | _lay_out(ours.get("strides", {}), leaves, where)
    seen: set[int] = set()

    def take(path: tuple[str, ...]) -> Any:
        name = ".".join(path)
        if name not in left:
            raise CorruptFileError(f"{where}: the record of the tree has {name!r:.80}, the checkpoint has not")
        return left.pop(name)

    def visit(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict | list):
            leaf = take(path)
            if isinstance(leaf, LazyTensor) and (node is True or node == NDARRAY):
                leaf = leaf.replace(parameter=node is True, ndarray=node == NDARRAY)
            return leaf
        if id(node) in seen or len(path) > MAX_DEPTH:
            raise CorruptFileError(f"{where}: the record of the tree holds a container twice or is nested too deep")
        seen.add(id(node))
        if isinstance(node, Counter):
            return Counter({key: take((*path, format_key(key))) for key in node})
        if isinstance(node, list):
            return [visit(child, (*path, str(index))) for index, child in enumerate(node)]
        made = StateDict((key, visit(child, (*path, format_key(key)))) for key, child in node.items())
        made._metadata = getattr(node, "_metadata", None)
        return made

    tree = visit(ours.get("tree"), ())
    if left or not isinstance(tree, StateDict):
        raise CorruptFileError(f"{where}: {next(iter(left), '')!r:.80} is not in the record of the tree")
    metadata = ours.get("metadata")
    if isinstance(metadata, dict):
        tree.metadata = {str(key): text for key, text in metadata.items() if type(text) is str}
    return tree


def _lay_out(strides: dict[Any, Any], leaves: dict[Any, Any], where: str) -> dict[Any, LazyTensor]:
    """The tensors that had other strides than row-major ones; tied ones share a storage."""
    found: dict[Any, LazyTensor] = {}
    laid_out: dict[Any, LazyTensor] = {}
    for name, steps in strides.items():
        leaf = leaves.get(name)
        if not isinstance(leaf, LazyTensor):
            raise CorruptFileError(f"{where}: the record of the tree gives strides to {name!r:.80}, which is no tensor")
        if leaf.present_boxes is None:
            try:
                made = laid_out.get((leaf.region, steps), leaf.lay_out(steps))
            except ValueError as error:
                raise CorruptFileError(f"{where}: {name!r:.80}: {error}") from error
            found[name] = laid_out.setdefault((leaf.region, steps), made).replace(requires_grad=leaf.requires_grad)
    return found


def checks(source: ByteSource) -> Iterator[Found]:
    """Check every chunk, and that the chunks make up their files and tensors."""
    sound, absent, remedy = True, False, "fetch or save the checkpoint again"
    metadata = _read_metadata(source)
    files: dict[str, dict[tuple[int, int], list[tuple[str, Any]]]] = {}  # tied tensors are names of one chunk
    for name, chunk, file, offset, length in _list_stored(metadata, source.name):
        files.setdefault(file, {}).setdefault((offset, length), []).append((str(name), chunk))
    for file, whole in places.open_files(places.get_folder(source), files).items():
        chunks = files[file]
        if isinstance(whole, FileError):
            names = dict.fromkeys(name for held in chunks.values() for name, _ in held)
            yield refusal(whole, whole.filename, file, names)
            absent = True
            continue
        if sum(length for _, length in chunks) > whole.size:
            yield Problem(file, "its chunks overlap or lie past its end, and are not read", remedy=remedy)
            sound = False
            continue
        for (offset, length), held in chunks.items():
            name, chunk = held[0]
            part = f"{file}: {name} from {chunk}" if chunk and any(chunk) else f"{file}: {name}"
            try:
                for item in check_part(Slice(whole, offset, length), part, name):
                    if isinstance(item, Check) and item.tensors:
                        item.tensors += tuple((tied, item.tensors[0][1]) for tied, _ in held[1:])
                    yield item
            except (CorruptFileError, UnknownFormatError) as error:
                yield refusal(error, whole.name, part, (name for name, _ in held))
                sound = False
        if sound:
            ranges = [(offset, offset + length) for offset, length in chunks]
            for gap in places.find_gaps(ranges, whole.size):
                yield Problem(file, f"its chunks {gap}", remedy=remedy)
    if sound:
        try:
            _, leaves = _read(source, metadata)
        except FileError:
            if not absent:  # else it is told already
                raise
            return
        for name, leaf in leaves.items():
            if isinstance(leaf, LazyTensor) and leaf.present_boxes is not None:
                what = f"of its shape {leaf.shape} there is {format_boxes(leaf.present_boxes)} only"
                yield Problem(str(name), what, remedy=REMEDY, tensors=(str(name),))


def files(tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
    """As `distributed_writing.files`, which only writing imports."""
    from statedict.formats import distributed_writing

    return distributed_writing.files(tree, most)
