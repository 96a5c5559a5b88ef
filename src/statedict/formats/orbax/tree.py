"""An Orbax checkpoint: a directory of arrays, whose tree stands in `_METADATA`.

    _METADATA              JSON: for each leaf its keys, each of a sequence (1) or a dict (2), and what it is
    manifest.ocdbt, d/…    the arrays, in one store, see ocdbt.py; ocdbt.process_N/ has what process N wrote
    NAME/                  or each array in a folder
    _strings.json          texts, by NAME
    _CHECKPOINT_METADATA   JSON: handlers of items, times; commit_timestamp_nsecs is null until it is committed

NAME is the keys of a leaf joined by dots, so that `{"a.b": …}` and `{"a": {"b": …}}` name one array. Orbax lets one
overwrite the other in silence; here such leaves are labels, and `verify` names them. An array is zarr 2 or 3, zarr.py.

A step of a `CheckpointManager`, and a checkpoint of `ocp.v1`, is a directory of items, each such a directory or a
file of JSON, `metadata` or `metrics`; only `_CHECKPOINT_METADATA` lies beside them. The tree has an entry for each,
except that an only one which Orbax itself names (`default`, `state`, `pytree`) is the tree; metrics beside it are in
the tree's `metadata`.

Python's numbers are numbers, as Orbax restores them; tuples are lists, and keys texts. None, `{}` and `[]` stand in
`_METADATA` only. Source: orbax-checkpoint 0.12.8. Limits: no `checkpoint` files of 2023; items of other handlers are
named and not read.
"""

from __future__ import annotations

import json
import os
from functools import cached_property

from statedict.errors import CorruptFileError, FormatError, LimitError, MissingFileError
from statedict.formats import places
from statedict.formats.orbax.ocdbt import MANIFEST, Store
from statedict.formats.orbax.zarr import DOCUMENTS, Array
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.parallel import parallel
from statedict.io.urls import folder_of, join, redact
from statedict.tensor.checks import Problem, Unread, by_storage, within
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import MAX_DEPTH
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

ITEM, STEP = "_METADATA", "_CHECKPOINT_METADATA"
_COMMITTED = "commit_success.txt"
_TEMPORARY = ".orbax-checkpoint-tmp"
_OWN_NAMES = ("default", "state", "pytree")
_JSON, _METRICS = "metadata", "metrics"
_EMPTY = {"None": None, "NamedTuple": None, "Dict": StateDict, "List": list, "Tuple": list}
_BESIDE = (ITEM, STEP, _COMMITTED, "_sharding", "_strings.json", "orbax.checkpoint", MANIFEST)
_SEQUENCE, _DICT = 1, 2
_REMEDY = "it is damaged, fetch it again"

Keys = tuple["str | int", ...]


def read(source: ByteSource) -> Any:
    """Read the tree of the directory in which this `_METADATA` or `_CHECKPOINT_METADATA` lies, lazily."""
    folder, document = places.get_folder(source), parse(read_document(source), source.name)
    _check_committed(folder, document)
    if "tree_metadata" in document:
        return Item(folder, document, source.name).read()
    found = _list_items(folder, document)
    items = {name: _read_item(places.resolve_inside(folder, name), handler) for name, handler in found.items()}
    alone = _find_alone(found)
    custom = document.get("custom_metadata") or {}
    if not isinstance(items.get(alone), StateDict):
        return _with_metadata(StateDict(items), custom)
    return _with_metadata(items[alone], {**custom, **{name: item for name, item in items.items() if name != alone}})


def _find_alone(items: Iterable[str]) -> str:
    """The only item besides metrics, if Orbax itself named it; else nothing."""
    names = [name for name in items if name != _METRICS]
    return names[0] if len(names) == 1 and names[0] in _OWN_NAMES else ""


def _list_items(folder: str, document: Any) -> dict[str, str]:
    """Name → handler of the items of a step."""
    handlers = document.get("item_handlers")
    if isinstance(handlers, str):
        raise FormatError(f"{redact(folder)}: {ITEM} is missing, in which the tree stands; fetch it")
    found = dict(handlers) if isinstance(handlers, dict) else {}
    for name in location(folder).names() or ():  # a handler is not always noted
        if name not in _BESIDE and location(join(folder, name)).is_folder():
            found.setdefault(name, "")
    return {str(name): str(handler) for name, handler in sorted(found.items())}


def _read_item(folder: str, handler: str) -> Any:
    opened = _open(folder, (ITEM, _JSON, _METRICS))
    if opened is None:
        return Opaque(f"an item of {handler or 'no known handler'}")
    document = parse(read_document(opened), opened.name, constants=True)
    if os.path.basename(opened.name) != ITEM:
        return document
    return Item(folder, document, opened.name).read()


def _open(folder: str, names: Iterable[str]) -> ByteSource | None:
    for name in names:
        try:
            return places.open_file(places.resolve_inside(folder, name))
        except MissingFileError:
            continue
    return None


def _check_committed(folder: str, document: Any) -> None:
    """Refuse a directory that Orbax did not commit: it may lack arrays, or hold half of them."""
    above = folder_of(location(folder).absolute().rstrip("/"))
    why = f"its name has {_TEMPORARY}" if _TEMPORARY in location(folder).absolute() else ""
    beside = _open(folder, [STEP]) or _open(above, [STEP])
    times = document if "commit_timestamp_nsecs" in document else None
    if times is None and beside is not None:
        times = parse(read_document(beside), beside.name)
    if isinstance(times, dict) and times.get("commit_timestamp_nsecs", 0) is None:
        why = why or f"{STEP} has no commit_timestamp_nsecs"
    if folder.startswith("gs://") and not why and _open(folder, [_COMMITTED]) is _open(above, [_COMMITTED]) is None:
        why = f"it has no {_COMMITTED}"
    if why:
        raise CorruptFileError(
            f"{redact(folder)}: Orbax did not commit this checkpoint ({why}): saving it was cut short, or goes on; "
            "open an earlier one"
        )


def _with_metadata(tree: StateDict, custom: Any) -> StateDict:
    if isinstance(custom, dict) and custom:
        texts = {str(key): value if type(value) is str else json.dumps(value) for key, value in custom.items()}
        tree.metadata = {**tree.metadata, **texts}
    return tree


class Item:
    """A directory with a tree: its `_METADATA`, and where its arrays are."""

    def __init__(self, folder: str, document: Any, name: str) -> None:
        self.folder, self.document, self.name = folder, document, name
        try:
            found = [_read_entry(entry, name) for entry in document["tree_metadata"].values()]
        except (TypeError, KeyError, AttributeError) as error:
            raise CorruptFileError(f"{name}: does not describe a tree ({error!r:.80}); {_REMEDY}") from error
        self.leaves: dict[Keys, str] = dict(found)
        if len(self.leaves) < len(found):
            raise CorruptFileError(f"{name}: two of its leaves have the same keys; {_REMEDY}")
        named: dict[str, list[Keys]] = {}
        for keys, kind in found:
            if kind not in _EMPTY:
                named.setdefault(_join(keys), []).append(keys)
        self.names = {name: keys[0] for name, keys in named.items()}
        self.shared = {name: keys for name, keys in named.items() if len(keys) > 1}
        self.strict = document.get("store_array_data_equal_to_fill_value") is True

    @cached_property
    def store(self) -> Store | None:
        """The store of all arrays; None if each has a folder."""
        return Store(self.folder) if self.document.get("use_ocdbt", True) else None

    def read(self) -> Any:
        """The tree."""
        arrays = self._read_arrays()
        root = _Node()
        for keys, kind in self.leaves.items():
            leaf: Any
            if kind in _EMPTY:
                make = _EMPTY[kind]
                leaf = None if make is None else make()
            else:
                leaf = arrays[_join(keys)]
                if kind == "scalar" and not getattr(leaf, "shape", True):
                    leaf = leaf.item()
            _insert(root, keys or ("",), leaf, self.name)  # a root that is no container has the key ""
        tree = _to_tree(root, self.name)
        if not isinstance(tree, StateDict):
            tree = StateDict({"": tree})
        return _with_metadata(tree, self.document.get("custom_metadata"))

    def _read_arrays(self) -> dict[str, Any]:
        """Name → tensor, text or label of each leaf."""
        texts = {name for name, keys in self.names.items() if self.leaves[keys] == "string"}
        found: dict[str, Any] = self._read_texts(texts) if texts else {}
        for name, keys in self.shared.items():
            found[name] = Opaque(f"one of {len(keys)} leaves that Orbax wrote as one array, {name!r}")
        wanted = [name for name in self.names if name not in found]
        if self.store is not None:
            self.store.open_all()
        arrays = parallel(self._read_array, wanted, workers=location(self.folder).workers)
        return found | dict(zip(wanted, arrays, strict=True))

    def _read_texts(self, names: set[str]) -> dict[str, Any]:
        source = places.open_file(places.resolve_inside(self.folder, "_strings.json"))
        texts = parse(read_document(source), source.name)
        for name in names:
            if not isinstance(texts, dict) or type(texts.get(name)) is not str:
                raise CorruptFileError(f"{source.name}: does not have the text {name!r:.80}; {_REMEDY}")
        return {name: texts[name] for name in names}

    def _read_array(self, name: str) -> Any:
        values: Store | _Folder
        if self.store is not None:
            values, prefix = self.store, f"{name}/" if name else ""
        else:
            values, prefix = _Folder(places.resolve_inside(self.folder, name) if name else self.folder), ""
        opened = next(filter(None, (values.get(prefix + document) for document in DOCUMENTS)), None)
        if opened is None:
            what = f"the array {name!r:.80}, which {ITEM} names, is missing; fetch the checkpoint again"
            raise CorruptFileError(f"{redact(self.folder)}: {what}")
        where = f"{redact(self.folder)}: array {name!r:.80}"
        return Array(parse(read_document(opened), where), values, prefix, where, self.strict).tensor()

    def checks(self) -> Iterator[Found]:
        """Check the nodes of the store, each array, and that no two leaves share one."""
        for name, keys in self.shared.items():
            what = (
                f"{len(keys)} leaves are one array, so Orbax wrote one over the other: {' and '.join(map(repr, keys))}"
            )
            yield Problem(name, what, remedy="save the checkpoint with keys without dots", tensors=(name,))
        for where, expected, got in self.store.faults() if self.store is not None else ():
            what = "the CRC-32C of the index of its arrays differs, so it is damaged"
            yield Problem(os.path.basename(where), what, expected, got, "fetch the checkpoint again")
        yield from by_storage(self.read())

    def list_files(self) -> list[str]:
        """The files and folders that it consists of."""
        paths = self.store.files() if self.store is not None else self.names
        written = (name for name in location(self.folder).names() or () if name.startswith("ocdbt.process_"))
        stored = dict.fromkeys(path.split("/")[0] for path in ("array_metadatas", "d", *paths, *written))
        return [*_BESIDE, *stored]


class _Folder:
    """The values of a store whose keys are files in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder, self.remote = folder, not location(folder).has_folders

    def get(self, key: str) -> ByteSource | None:
        """The file of a key; None if it is not there."""
        return _open(self.folder, [key])


def _read_entry(entry: Any, where: str) -> tuple[Keys, str]:
    """The keys of a leaf, and its kind."""
    keys: list[str | int] = []
    for key in entry["key_metadata"]:
        name, kind = key["key"], key["key_type"]
        if type(name) not in (str, int) or kind not in (_SEQUENCE, _DICT):
            raise TypeError(f"the key {name!r:.40} of type {kind!r:.40}")
        if kind == _SEQUENCE and not (str(name).isdecimal() and len(str(name)) < 10):
            raise TypeError(f"the index {name!r:.40}")
        keys.append(int(name) if kind == _SEQUENCE else str(name))
    if len(keys) > MAX_DEPTH:
        raise LimitError(f"{where}: nested over {MAX_DEPTH} deep; it is damaged or forged")
    return tuple(keys), str(entry["value_metadata"]["value_type"])


def _join(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _insert(root: _Node, keys: Keys, leaf: Any, where: str) -> None:
    """Put a leaf into nested nodes, in which the keys of sequences are ints."""
    node = root
    for key in keys[:-1]:
        node = node.setdefault(key, _Node())
        if type(node) is not _Node:
            raise CorruptFileError(f"{where}: the keys {keys!r:.80} lead through a leaf; {_REMEDY}")
    if keys[-1] in node:
        raise CorruptFileError(f"{where}: the keys {keys!r:.80} are those of a leaf and of a container; {_REMEDY}")
    node[keys[-1]] = leaf


class _Node(dict["str | int", "Any"]):
    """A container that is not finished; leaves may be empty dicts."""


def _to_tree(node: Any, where: str) -> Any:
    """Finished containers: lists where keys are ints."""
    if type(node) is not _Node:
        return node
    indices = [key for key in node if type(key) is int]
    if not indices:
        return StateDict((key, _to_tree(child, where)) for key, child in node.items())
    if sorted(indices) != list(range(len(node))):
        raise CorruptFileError(f"{where}: a sequence with the keys {[*node]!r:.80}; {_REMEDY}")
    return [_to_tree(node[index], where) for index in range(len(node))]


def checks(source: ByteSource) -> Iterator[Found]:
    """Check every array, and what the index of a store has sums of."""
    folder, document = places.get_folder(source), parse(read_document(source), source.name)
    _check_committed(folder, document)
    if "tree_metadata" in document:
        yield from Item(folder, document, source.name).checks()
        return
    items = _list_items(folder, document)
    for name in items:
        inner = places.resolve_inside(folder, name)
        opened = _open(inner, (ITEM, _JSON, _METRICS))
        if opened is None:
            yield Unread(name)
        elif os.path.basename(opened.name) == ITEM:
            item = Item(inner, parse(read_document(opened), opened.name), opened.name)
            yield from within(item.checks(), name, "" if name == _find_alone(items) else name)


def list_files(source: ByteSource) -> list[str]:
    """The files and folders that the checkpoint consists of."""
    folder, document = places.get_folder(source), parse(read_document(source), source.name)
    if "tree_metadata" in document:
        return Item(folder, document, source.name).list_files()
    return [*_BESIDE, *_list_items(folder, document)]
