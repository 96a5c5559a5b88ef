r"""An HDF5 file: a tree of groups and datasets, read by h5py.

    8 bytes    \x89HDF\r\n\x1a\n, then what libhdf5 reads

A file of Keras becomes the tree of its layers, see `keras.py`. Any other file is a tree of its groups:

    numbers                   a tensor; in chunks or packed it is decoded when it is read
    opaque bytes (V2)         a tensor of `raw` elements, or of the dtype that its attribute `dtype` names
    an enumeration            a tensor of its numbers; of FALSE and TRUE, bools
    text                      a string, or nested lists
    an empty dataset          None
    records, references       an `Opaque`
    links, external storage, virtual datasets    an `Opaque` that says where to; nothing is opened

Attributes go into the tree's metadata, as `path@name`.

Source: HDF5 2.0 by h5py 3.16. Limits: 200 levels, chunks of 1 GiB, texts of 64 MiB; a dataset may be 1,100 times
larger than its bytes in the file, and always 64 MiB.
"""

from __future__ import annotations

from statedict.errors import UnsupportedError
from statedict.formats.hdf5 import keras
from statedict.formats.hdf5.building import check_name, write_group
from statedict.formats.hdf5.objects import Group, describe_attributes, read_objects
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor
from statedict.tree.keras import OPTIMIZER, walk_keys
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import MAX_DEPTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: only the headers of the datasets are read."""
    return build(read_objects(source), source.name)


def build(root: Group, where: str, config: Any = None) -> StateDict:
    """The tree of a file's groups; `config` is that of a Keras model."""
    if keras.is_keras(root):
        return keras.read_keras(root, config)
    if keras.is_legacy(root) and _count(tree := keras.read_legacy(root, where)) == _count(root):
        tree.metadata = describe_attributes("", root.attributes | keras.find_weights(root).attributes)
        return tree
    metadata: dict[str, str] = {}
    tree = _as_tree(root, "", metadata)
    tree.metadata = metadata
    return tree


def _count(node: Any) -> int:
    """How many datasets there are in a group, or entries in a tree."""
    below = node.entries.values() if isinstance(node, Group) else node.values() if isinstance(node, dict) else None
    return 1 if below is None else sum(map(_count, below))


def _as_tree(group: Group, path: str, metadata: dict[str, str]) -> StateDict:
    metadata |= describe_attributes(path, group.attributes)
    tree = StateDict()
    for name, one in group.entries.items():
        tree[name] = _as_tree(one, f"{path}.{name}" if path else name, metadata) if isinstance(one, Group) else one
    return tree


def checks(source: ByteSource) -> Iterator[Found]:
    """List the datasets; what sums a file may have, libhdf5 compares when it reads."""
    yield from by_storage(read(source))


def write(tree: Any, sink: Sink) -> None:
    """Write nested dicts of tensors and texts.

    Dicts become groups. Attributes list the layers and their weights, so that Keras loads the file by names.
    """
    write_group(_as_group(tree, "", 0), sink)


def _as_group(tree: Any, path: str, depth: int) -> Group:
    if not isinstance(tree, dict):
        raise UnsupportedError(f"an HDF5 file holds a dict, not a {type(tree).__name__}")
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"{path[:80]}: nested deeper than {MAX_DEPTH}")
    entries: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        check_name(key, where)
        if isinstance(value, dict):
            entries[key] = _as_group(value, where, depth + 1)
        elif isinstance(value, LazyTensor | str):
            entries[key] = value
        else:
            shown = f"{value!r:.60} ({type(value).__name__})"
            raise UnsupportedError(f"{where}: {shown} is neither a tensor nor text; drop it, or write another format")
    if depth:
        return Group(entries, {})
    if all(isinstance(one, Group) for one in entries.values()):
        for key, below in tree.items():
            names = ["/".join(keys) for keys, one in walk_keys(below) if isinstance(one, LazyTensor)]
            entries[key].attributes["weight_names"] = names
        return Group(entries, {"layer_names": [name for name in entries if name != OPTIMIZER]})
    return Group(entries, {})
