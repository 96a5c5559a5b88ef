"""A tree as tensors under names, and everything else as JSON in strings beside them.

docs/format.md specifies it. A flat state_dict of tensors needs no JSON.
"""

from __future__ import annotations

import json
import re
import warnings
from contextlib import suppress
from functools import partial

from statedict.dtypes import BY_NAME, MAX_NAME, labelled_dtype
from statedict.errors import CorruptFileError, FormatError, TreeError, UnsupportedError
from statedict.io.json import parse
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.attributes import data_of, left_out_note
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict, decode
from statedict.tree.walk import encode, free_name, walk
from statedict.values import from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from statedict.dtypes import DType

KEY = "statedict"
_FLAGS = {"parameter": "parameter", "grad": "requires_grad", "ndarray": "ndarray"}  # in a node → of a LazyTensor
_SURROGATES = re.compile("[\ud800-\udfff]")


def take_apart(
    tree: Any, holds: Callable[[DType], bool] = lambda kind: bool(kind.safetensors)
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Split a tree into tensors by name, each once and row-major, and strings to store beside them.

    Tensors of a dtype that the format does not hold come as bytes, with one more dimension.
    """
    plan = _Plan(holds)
    skeleton = encode(tree, plan.put)
    if plan.left_out:
        warnings.warn(left_out_note(plan.left_out), stacklevel=2)
    strings = getattr(tree, "metadata", {})
    for key, value in strings.items():
        if type(key) is not str or type(value) is not str or _SURROGATES.search(key + value):
            raise UnsupportedError(f"metadata {key!r}: safetensors holds strings of Unicode only; convert it")
        if key.split(".")[0] == KEY:
            raise UnsupportedError(f"metadata {key!r}: the name is reserved for statedict's own; rename it")
    metadata = plan.aliases | {"format": "pt"} | strings
    is_flat = skeleton == {name: {"$tensor": name} for name in plan.tensors}
    if not is_flat or any(value in plan.tensors for value in strings.values()):
        text = json.dumps(skeleton, separators=(",", ":"))
        version = 2 if '{"$member":' in text else 1  # within a JSON string the quotes would be escaped
        metadata[KEY] = f'{{"version":{version},"tree":{text}}}'
    return plan.tensors, metadata


def put_together(tensors: dict[str, LazyTensor], metadata: dict[str, str], name: str) -> Any:
    """Invert `take_apart`."""
    state = _tree(tensors, metadata, name)
    if isinstance(state, StateDict):
        strings = {key: value for key, value in metadata.items() if key.split(".")[0] != KEY}
        aliases: Any = state if KEY not in metadata else ()
        if not aliases and any(value in tensors for value in strings.values()):
            aliases = {path for path, _ in walk(state)}
        state.metadata = {key: value for key, value in strings.items() if not (value in tensors and key in aliases)}
    return state


def _tree(tensors: dict[str, LazyTensor], metadata: dict[str, str], name: str) -> Any:
    text = metadata.get(KEY)
    if text is None:
        for alias, kept in metadata.items():
            if kept in tensors and alias not in tensors and alias != "format":
                tensors[alias] = tensors[kept]
        return StateDict(tensors)

    unnamed = dict(tensors)
    laid_out: dict[Any, LazyTensor] = {}  # tied tensors share one

    def lay_out(stored: LazyTensor, strides: tuple[Any, ...], key: str) -> LazyTensor:
        if (key, strides) not in laid_out:
            laid_out[key, strides] = stored.lay_out(strides)
        return laid_out[key, strides]

    def get(node: Any) -> Any:
        if not isinstance(node, dict) or "$tensor" not in node:
            return from_json(node)
        key = node["$tensor"]
        stored = tensors[key]
        unnamed.pop(key, None)
        if len(node) == 1:
            return stored
        if "dtype" in node:
            stored = _retype(stored, node["dtype"], key)
        if "strides" in node:
            stored = lay_out(stored, tuple(node["strides"]), key)
        if flags := {slot: True for flag, slot in _FLAGS.items() if node.get(flag)}:
            stored = stored.replace(**flags)
        if "attributes" in node:
            if not isinstance(node["attributes"], dict):
                raise TypeError(f"the attributes of {key!r} are not an object")
            attributes = {name: decode(below, get) for name, below in node["attributes"].items()}
            stored = stored.replace(attributes=attributes)
        return stored

    skeleton = parse(text, f"{name}: the skeleton under {KEY!r}", weight=2.5, surrogates=True)
    try:
        if skeleton["version"] not in (1, 2):
            raise FormatError(f"{name}: its skeleton has version {skeleton['version']!r}; a newer version may read it")
        tree = decode(skeleton["tree"], get)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError) and not isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(f"{name}: the skeleton under {KEY!r} is damaged ({error})") from error
    if unnamed:
        raise CorruptFileError(
            f"{name}: tensor {next(iter(unnamed))!r} is not in the skeleton under {KEY!r}; another program changed "
            "the file, take that key out of its metadata to read the tensors alone"
        )
    return tree


def _retype(stored: LazyTensor, name: Any, where: str) -> LazyTensor:
    """Turn rows of bytes into elements of another dtype."""
    known = BY_NAME.get(name)
    is_name = type(name) is str and name.isprintable() and len(name) <= MAX_NAME
    is_rows = stored.dtype.name == "uint8" and bool(stored.shape)
    if not (is_name and is_rows) or (known is not None and stored.shape[-1] != known.itemsize):
        raise CorruptFileError(f"tensor {where!r} cannot hold {name!s:.80}")
    if known is None:
        return Labelled(labelled_dtype(name), stored.shape[:-1], stored.storage)
    return stored.replace(dtype=known, shape=stored.shape[:-1])


class _Plan:
    """Collects the tensors to store, each once, and says how the tree refers to them."""

    def __init__(self, holds: Callable[[DType], bool]) -> None:
        self.holds = holds
        self.tensors: dict[str, LazyTensor] = {}
        self.aliases: dict[str, str] = {}
        self.left_out: list[str] = []
        self._names: dict[Any, str] = {}  # by region

    def put(self, path: str, leaf: Any) -> Any:
        """Return the node of a leaf, with those attributes of a tensor that are data; tensors in these get none."""
        node = self._put("", path, leaf)
        if not isinstance(leaf, LazyTensor) or not leaf.attributes:
            return node
        attributes = {}
        for name, value in data_of(leaf.attributes).items():
            with suppress(UnsupportedError, TreeError):
                attributes[name] = encode(value, partial(self._put, f"{path}.{name}"))
        self.left_out += [f"{path}.{name}" for name in leaf.attributes if name not in attributes]
        return node | {"attributes": attributes} if attributes else node

    def _put(self, above: str, below: str, leaf: Any) -> Any:
        path = f"{above}.{below}" if above and below else above or below
        if not isinstance(leaf, LazyTensor):
            try:
                return to_json(leaf)
            except UnsupportedError as error:
                raise UnsupportedError(f"{path or 'the root'}: {error}; drop it or convert it") from None
        kind = leaf.dtype
        if fault := find_shape_fault((*leaf.shape, *(() if self.holds(kind) else (1,))), kind.itemsize):
            raise UnsupportedError(f"{path or 'the root'}: a tensor of {fault}; it could not be read again")
        wanted = path.encode("utf-8", "backslashreplace").decode()
        wanted = "__metadata__~2" if wanted == "__metadata__" else wanted
        region = leaf.region
        name = self._names.get(region)
        if name is None:
            name = self._names[region] = free_name(wanted, self.tensors)
            rows = leaf.contiguous()
            self.tensors[name] = rows if self.holds(kind) else _as_bytes(rows)
        elif wanted not in self.tensors:
            self.aliases[wanted] = name
        node: dict[str, Any] = {"$tensor": name}
        if not self.holds(kind):
            node["dtype"] = kind.name
        if leaf.is_dense():
            node["strides"] = leaf.strides
        return node | {flag: True for flag, slot in _FLAGS.items() if getattr(leaf, slot)}


def _as_bytes(tensor: LazyTensor) -> LazyTensor:
    """A row-major tensor as bytes with one more dimension."""
    size = tensor.element_bytes() if isinstance(tensor, Labelled) else tensor.dtype.itemsize
    return LazyTensor(BY_NAME["uint8"], (*tensor.shape, size), tensor.storage, tensor.offset)
