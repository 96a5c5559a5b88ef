"""A `.weights.h5` of Keras 3, as `Model.save_weights` writes it; `keras.py` has the layout.

A tree that was read from Keras's files says which group each layer was. Without that, layers are found by the names
that Keras gives: `dense`, `dense_1` … are the first and the second Dense. Tensors at the top are variables of the model
itself.
"""

from __future__ import annotations

import warnings

from statedict.errors import UnsupportedError
from statedict.formats.hdf5.building import check_name, write_group
from statedict.formats.hdf5.elements import NATIVE
from statedict.formats.hdf5.keras import VARS
from statedict.formats.hdf5.model import checks as checks
from statedict.formats.hdf5.model import read as read
from statedict.formats.hdf5.names import CHILDREN, VARIABLES
from statedict.formats.hdf5.objects import Group
from statedict.tensor.lazy import LazyTensor
from statedict.tree.keras import GROUPS, OPTIMIZER, SEED, read_rows, split_number, walk_keys
from statedict.values import abbreviate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.pipeline import Sink
    from statedict.tree.keras import Row

_FIRST = {"iteration": "0", "learning_rate": "1"}  # of an optimizer's variables
_REMEDY = "save it as .h5, which Keras loads by names, or start from a file of the model"


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of layers and their variables, so that Keras finds each where it looks for it.

    Raises:
        UnsupportedError: an entry is no tensor that Keras loads, or the place of a layer is not known.
    """
    if not isinstance(tree, dict):
        raise UnsupportedError(f"a .weights.h5 holds a dict of layers, not a {type(tree).__name__}")
    leaves: dict[tuple[str, ...], LazyTensor] = {}
    lost: list[str] = []
    for keys, value in walk_keys(tree):
        where = ".".join(map(str, keys))
        if str(keys[-1]).startswith(SEED):
            lost.append(where)
            continue
        if not isinstance(value, LazyTensor):
            shown = f"{value!r:.60} ({type(value).__name__})"
            raise UnsupportedError(f"{where}: Keras's weights are tensors, not {shown}; drop it")
        if not _is_loaded(value.dtype):
            raise UnsupportedError(f"{where}: Keras loads no {value.dtype} from its files; cast it")
        leaves[tuple(keys)] = value
    if lost:
        warnings.warn(
            f"Keras's files do not hold seed generators, which are left out: {abbreviate(lost)}", stacklevel=2
        )
    root = Group({}, {})
    order: dict[tuple[str, ...], int] = {}
    for keys_of in leaves:
        for end in range(len(keys_of)):
            order.setdefault(keys_of[:end], len(order))
    rows = read_rows(tree) or [*_infer_rows(tree)]
    for labels, path, name, variables in sorted(rows, key=lambda row: order.get(tuple(row[0]), len(order))):
        own = _add_group(root, path)
        if name:
            own.attributes["name"] = name
        for variable, key in sorted(variables.items(), key=lambda row: int(row[1]) if row[1].isdecimal() else -1):
            tensor = leaves.pop((*labels, *variable.split("/")), None)
            if tensor is not None:
                own.entries[key] = tensor
    if leaves:
        what = f"no layer of the file that the tree was read from has it; {_REMEDY}"
        raise UnsupportedError(f"{'.'.join(map(str, next(iter(leaves))))}: {what}")
    write_group(root, sink)


def _is_loaded(kind: DType) -> bool:
    """Whether Keras loads a dtype: one of NumPy's own, or bfloat16."""
    return kind.name in NATIVE or kind.name == "bfloat16"


def _add_group(root: Group, path: str) -> Group:
    for part in [*filter(None, path.split("/")), VARS]:
        root = root.entries.setdefault(part, Group({}, {}))
        if not isinstance(root, Group):
            raise UnsupportedError(f"{path}: is a layer and a variable in the tree's metadata {GROUPS!r}; remove them")
    return root


def _infer_rows(tree: Any) -> Iterator[Row]:
    """The rows of a tree with the names that Keras gives."""
    for key in tree:
        check_name(key, str(key))
    yield [], "", "", {key: key for key, value in tree.items() if not isinstance(value, dict)}
    layers: dict[str, list[str]] = {}
    for name, below in tree.items():
        if name == OPTIMIZER and isinstance(below, dict):
            keys: dict[str, str] = {
                key: _FIRST.get(key) or key for key in below if key in _FIRST or str(key).isdecimal()
            }
            yield [name], OPTIMIZER, "", keys
        elif isinstance(below, dict):
            layers.setdefault(split_number(name)[0], []).append(name)
    for kind, names in layers.items():
        for index, name in enumerate(sorted(names, key=lambda name: split_number(name)[1])):
            group = f"layers/{kind}_{index}" if index else f"layers/{kind}"
            yield from _infer_layer([name], group, kind, tree[name])


def _infer_layer(labels: list[str], group: str, kind: str, below: Any) -> Iterator[Row]:
    """The rows of a layer of a class and of those in it."""
    for key in below:
        check_name(key, f"{'.'.join(labels)}.{key}")
    own = {name for name, value in below.items() if not isinstance(value, dict)}
    order = next((one.split() for one in VARIABLES.get(kind, ()) if {*one.split()} == own), None)
    children = {called: (attribute, inner) for attribute, (inner, called) in CHILDREN.get(kind, {}).items()}
    if (own and order is None) or not {*below} - own <= {*children}:
        what = f"Keras looks for weights by class and order, and {labels[-1]!r} does not tell these"
        raise UnsupportedError(f"{'.'.join(labels)}: {what}; {_REMEDY}")
    yield labels, group, labels[-1], {name: str(index) for index, name in enumerate(order or ())}
    for name in {*below} - own:
        attribute, inner = children[name]
        yield from _infer_layer([*labels, name], f"{group}/{attribute}", inner, below[name])
