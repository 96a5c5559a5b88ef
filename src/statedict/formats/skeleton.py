"""The tree of a checkpoint whose tensors lie under names: what is no tensor as JSON, in strings beside them.

docs/format.md specifies it. A flat state_dict of tensors needs nothing of it.
"""

from __future__ import annotations

import json
import warnings
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
    from typing import Any

KEY = "statedict"


def taken_apart(tree: Any) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors to store by name, each once and row-major, and the strings to keep with them.

    Raises:
        UnsupportedError: a value that is no data, or metadata that are no strings.
    """
    plan = _Plan()
    skeleton = encode(tree, plan.put)
    if plan.left_out:
        warnings.warn(left_out_note(plan.left_out), stacklevel=2)
    own = _strings(getattr(tree, "metadata", {}))
    metadata = plan.aliases | {"format": "pt"} | own
    says_nothing_new = skeleton == {name: {"$tensor": name} for name in plan.tensors}
    if not says_nothing_new or any(value in plan.tensors for value in own.values()):
        metadata[KEY] = json.dumps({"version": 1, "tree": skeleton}, separators=(",", ":"))
    return plan.tensors, metadata


def put_together(tensors: dict[str, LazyTensor], metadata: dict[str, str], name: str) -> Any:
    """The inverse of `taken_apart`.

    Raises:
        CorruptFileError: the strings do not describe these tensors.
    """
    state = _tree(tensors, metadata, name)
    if isinstance(state, StateDict):
        kept = {key: value for key, value in metadata.items() if not is_ours(key)}
        aliases: Any = state if KEY not in metadata else ()
        if not aliases and any(value in tensors for value in kept.values()):
            aliases = {path for path, _ in walk(state)}
        state.metadata = {key: value for key, value in kept.items() if not (value in tensors and key in aliases)}
    return state


def is_ours(key: str) -> bool:
    """Whether a key of the metadata is one that we write."""
    return key == KEY or key.startswith(KEY + ".")


def _tree(tensors: dict[str, LazyTensor], metadata: dict[str, str], name: str) -> Any:
    text = metadata.get(KEY)
    if text is None:
        for alias, kept in metadata.items():
            if kept in tensors and alias not in tensors and alias != "format":
                tensors[alias] = tensors[kept]
        return StateDict(tensors)

    unnamed = dict(tensors)

    def get(node: Any) -> Any:
        if not isinstance(node, dict) or "$tensor" not in node:
            return from_json(node)
        stored = tensors[node["$tensor"]]
        unnamed.pop(node["$tensor"], None)
        if len(node) == 1:
            return stored
        stored = _retype(stored, node["dtype"], node["$tensor"]) if "dtype" in node else stored
        if "grad" in node or "parameter" in node:
            grad, parameter = bool(node.get("grad")), bool(node.get("parameter"))
            stored = stored.replace(requires_grad=grad, parameter=parameter)
        if "attributes" in node:
            noted = node["attributes"]
            if not isinstance(noted, dict):
                raise TypeError(f"the attributes of {node['$tensor']!r} are no object")
            stored = stored.replace(attributes={name: decode(below, get) for name, below in noted.items()})
        return stored

    skeleton = parse(text, f"{name}: the skeleton under {KEY!r}", weight=2.5, surrogates=True)
    try:
        if skeleton["version"] != 1:
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
    """The tensor whose elements are the rows of bytes that are stored."""
    known = BY_NAME.get(name)
    whole = (
        stored.dtype.name == "uint8"
        and bool(stored.shape)
        and type(name) is str
        and name.isprintable()
        and len(name) <= MAX_NAME
    )
    if not whole or (known is not None and stored.shape[-1] != known.itemsize):
        raise CorruptFileError(f"tensor {where!r} cannot hold {name!s:.80}")
    if known is None:
        return Labelled(labelled_dtype(name), stored.shape[:-1], stored.storage)
    return stored.replace(dtype=known, shape=stored.shape[:-1])


def _strings(metadata: dict[str, str]) -> dict[str, str]:
    """The caller's metadata, if the format can hold it."""
    for key, value in metadata.items():
        if type(key) is not str or type(value) is not str or not _utf8(key + value):
            raise UnsupportedError(f"metadata {key!r}: safetensors holds strings of Unicode only; convert it")
        if is_ours(key):
            raise UnsupportedError(f"metadata {key!r}: the name is reserved for statedict's own; rename it")
    return metadata


def _utf8(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


class _Plan:
    """The tensors to store by name, each once, and how the tree refers to them."""

    def __init__(self) -> None:
        self.tensors: dict[str, LazyTensor] = {}
        self.aliases: dict[str, str] = {}
        self.left_out: list[str] = []
        self._stored: dict[Any, str] = {}

    def put(self, path: str, leaf: Any) -> Any:
        node = self.bare(path, leaf)
        if isinstance(leaf, LazyTensor) and leaf.attributes and (noted := self.attributes(path, leaf.attributes)):
            node["attributes"] = noted
        return node

    def attributes(self, path: str, held: dict[Any, Any]) -> dict[str, Any]:
        """The nodes of a tensor's attributes, those that are data; a tensor among them leaves its own behind."""
        nodes: dict[str, Any] = {}
        for name, value in data_of(held).items():
            try:
                nodes[name] = encode(value, partial(self.below, f"{path}.{name}"))
            except (UnsupportedError, TreeError):
                pass
        self.left_out += [f"{path}.{name}" for name in held if name not in nodes]
        return nodes

    def below(self, above: str, path: str, leaf: Any) -> Any:
        """What stands for a leaf of an attribute."""
        return self.bare(f"{above}.{path}" if path else above, leaf)

    def bare(self, path: str, leaf: Any) -> Any:
        """What stands for a leaf, without its attributes."""
        if not isinstance(leaf, LazyTensor):
            try:
                return to_json(leaf)
            except UnsupportedError as error:
                raise UnsupportedError(f"{path or 'the root'}: {error}; drop it or convert it") from None
        if fault := find_shape_fault((*leaf.shape, *(() if leaf.dtype.safetensors else (1,))), leaf.dtype.itemsize):
            raise UnsupportedError(f"{path or 'the root'}: a tensor of {fault}; it could not be read again")
        region = leaf.region
        wanted = path.encode("utf-8", "backslashreplace").decode()
        wanted = "__metadata__~2" if wanted == "__metadata__" else wanted
        name = self._stored.get(region)
        if name is None:
            name = self._stored[region] = free_name(wanted, self.tensors)
            self.tensors[name] = _storable(leaf)
        elif wanted not in self.tensors:
            self.aliases[wanted] = name
        node: dict[str, Any] = {"$tensor": name}
        if not leaf.dtype.safetensors:
            node["dtype"] = leaf.dtype.name
        if leaf.parameter:
            node["parameter"] = True
        if leaf.requires_grad:
            node["grad"] = True
        return node


def _storable(tensor: LazyTensor) -> LazyTensor:
    """Row-major, and as bytes with one more dimension where safetensors has no name for the dtype."""
    tensor = tensor.contiguous()
    if tensor.dtype.safetensors:
        return tensor
    size = tensor.element_bytes() if isinstance(tensor, Labelled) else tensor.dtype.itemsize
    shape = (*tensor.shape, size)
    return LazyTensor(BY_NAME["uint8"], shape, tensor.storage, tensor.offset)
