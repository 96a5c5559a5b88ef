"""StateDict: nesting, paths, flatten and its exact inverse."""

from __future__ import annotations

from collections import OrderedDict

from statedict.dtypes import DType, import_torch
from statedict.errors import CorruptFileError, PathError, TreeError, UnsupportedError
from statedict.shown import Viewed
from statedict.tensor.arrays import is_numpy
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.tensor.segments import numpy_arrays, torch_tensors
from statedict.tree.walk import MAX_DEPTH, encode, free_name, label, visit, walk, walk_tensors
from statedict.values import Device, Member, Opaque, Size, distinct, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class StateDict(dict["Any", "Any"], Viewed):
    """A state_dict: a dict of names → tensors, plain values, lists and nested state_dicts.

    It is a real dict: ordered, mutable, with keys of any type, and `torch.nn.Module.load_state_dict` takes it as it is.
    `path` below means the keys from the root joined by a dot.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> list(state)
    ['epoch', 'model_state', 'optimizer_state']
    >>> list(state.tensors())[0]
    'model_state.conv1.weight'
    """

    _metadata: Any = None
    """The module versions that `Module.state_dict()` records and `load_state_dict` reads."""

    @property
    def metadata(self) -> dict[str, str]:
        """Strings that a file carries beside its tensors, as safetensors' `__metadata__`."""
        return self.__dict__.setdefault("metadata", {})  # type: ignore[no-any-return]

    @metadata.setter
    def metadata(self, value: Mapping[str, str]) -> None:
        self.__dict__["metadata"] = dict(value)

    def copy(self) -> StateDict:
        """A shallow copy."""
        return like(self, StateDict(self))

    __copy__ = copy

    def at(self, path: str) -> Any:
        """The value at a path; at a module's, the entries below it.

        Raises:
            PathError: there is none; the message names the nearest ones.

        >>> import statedict
        >>> statedict.load("examples/checkpoint.pth").at("optimizer_state.param_groups.0.momentum")
        0.9
        """
        found = _find(self, path)
        if found is _MISSING and self.keys() == {""}:  # a file that holds a list, say, stands at the empty key
            found = _find(self[""], path)
        if found is _MISSING:
            paths = [p for p, _ in walk(self)]
            raise PathError(f"no entry {path!r} among {len(paths):,}; {_nearest(path, paths)}")
        return found

    def __missing__(self, key: Any) -> Any:
        raise PathError(key, explain=lambda: _no_key(self, key))

    def flatten(self) -> FlatState:
        """Path → leaf. `unflatten` is the exact inverse.

        Leaves are tensors and plain values; empty containers, key types, lists and tuples live in its `skeleton`.
        Should two entries have one path (the keys `1` and `"1"`), later ones get `~2`, `~3` … appended.

        Raises:
            TreeError: the tree contains itself, is nested deeper than 200, or has over 20 million entries.

        >>> flat = StateDict({"a": {"b": 1, "c": [2, ()]}}).flatten()
        >>> dict(flat), flat.unflatten()
        ({'a.b': 1, 'a.c.0': 2}, {'a': {'b': 1, 'c': [2, ()]}})
        """
        flat = FlatState()

        def put(path: str, leaf: Any) -> Any:
            name = free_name(path, flat)
            flat[name] = leaf
            return {"$leaf": name}

        flat.skeleton = encode(self, put)
        flat.metadata = dict(self.metadata)
        return flat

    @staticmethod
    def unflatten(flat: Mapping[str, Any], skeleton: Any = None) -> Any:
        """See `statedict.unflatten`."""
        return unflatten(flat, skeleton)

    def tensors(self) -> dict[str, LazyTensor]:
        """Path → LazyTensor for every tensor and array, those inside an Opaque included."""
        found: dict[str, LazyTensor] = {}
        for path, leaf in walk_tensors(self):
            found[free_name(path, found)] = as_lazy(leaf)
        return found

    def numpy(self, copy: bool = False) -> dict[Any, Any]:
        """Plain nested dicts with numpy arrays, members of enumerations as names; see `LazyTensor.numpy`.

        With `copy`, tied tensors stay tied.
        """
        return realize(self, lambda tensors: numpy_arrays(tensors, copy), _plain_value)  # type: ignore[no-any-return]

    def torch(self, copy: bool = False) -> dict[Any, Any]:
        """Plain nested dicts with torch tensors, sizes, dtypes and devices, members of enumerations as names.

        See `LazyTensor.torch`. Tied tensors share their storage again.
        """
        return realize(self, lambda tensors: torch_tensors(tensors, copy), torch_value)  # type: ignore[no-any-return]


class FlatState(dict[str, "Any"]):
    """Path → leaf, with the `skeleton` from which `unflatten` rebuilds the tree."""

    skeleton: Any = None
    metadata: dict[str, str]

    def unflatten(self) -> Any:
        """The tree that was flattened."""
        return unflatten(self)


_MISSING: Any = object()


def like(origin: Any, new: StateDict) -> StateDict:
    """`new` with what `origin` carries beside its entries."""
    new._metadata = getattr(origin, "_metadata", None)
    metadata = getattr(origin, "metadata", None)
    if isinstance(metadata, dict) and metadata:
        new.metadata = metadata
    return new


def unflatten(flat: Mapping[str, Any], skeleton: Any = None) -> Any:
    """Rebuild the tree of `StateDict.flatten`.

    Args:
        flat: path → leaf. Leaves may have been replaced; paths that were added or removed are an error.
        skeleton: by default the one that `flat` carries; a plain dict without one is nested at every dot.

    Raises:
        TreeError: paths and skeleton do not agree, or a path is both a leaf and a parent.

    >>> unflatten({"fc.weight": 1, "fc.bias": 2})
    {'fc': {'weight': 1, 'bias': 2}}
    """
    if skeleton is None:
        skeleton = getattr(flat, "skeleton", None)
    if skeleton is None:
        return _nest(flat)
    left = dict.fromkeys(flat)

    def get(node: Any) -> Any:
        name = node.get("$leaf") if isinstance(node, dict) else None
        if type(name) is not str or name not in flat:
            raise TreeError(f"the skeleton has an entry {name!r} that the flat dict lacks; it was renamed or removed")
        left.pop(name, None)
        return flat[name]

    tree = decode(skeleton, get)
    if left:
        raise TreeError(
            f"{len(left)} paths are not in the skeleton, the first is {next(iter(left))!r}; add them to the tree"
        )
    if isinstance(tree, StateDict) and getattr(flat, "metadata", None):
        tree.metadata = flat.metadata  # type: ignore[attr-defined]
    return tree


def _nest(flat: Mapping[str, Any]) -> StateDict:
    root = StateDict()
    parents = {"": root}
    for path, leaf in flat.items():
        *above, key = path.split(".")
        if len(above) > MAX_DEPTH:
            raise TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")
        node, prefix = root, ""
        for name in above:
            prefix += "." + name
            if prefix not in parents:
                if name in node:
                    raise TreeError(f"{prefix[1:]!r} is both a leaf and a parent")
                node[name] = parents[prefix] = StateDict()
            node = parents[prefix]
        if key in node:
            raise TreeError(f"{path!r} is both a leaf and a parent")
        node[key] = leaf
    return root


def decode(skeleton: Any, get: Callable[[Any], Any]) -> Any:
    """The inverse of `encode`; `get` turns what `put` returned back into a leaf.

    Raises:
        CorruptFileError: the skeleton is not one.
    """

    def visit(node: Any, depth: int) -> Any:
        if depth > MAX_DEPTH + 1:
            raise TreeError(f"the skeleton is nested deeper than {MAX_DEPTH}")
        depth += 1
        if type(node) is list:
            return [visit(child, depth) for child in node]
        if type(node) is not dict:
            return get(node)
        tag = next(iter(node), "")
        if tag[:1] != "$":
            return StateDict({key: visit(child, depth) for key, child in node.items()})
        if tag == "$tensor":  # most are
            return get(node)
        try:
            if tag == "$tuple":
                return tuple(visit(child, depth) for child in node[tag])
            if tag == "$opaque":
                return Opaque(str(node[tag]), **{k: visit(v, depth) for k, v in node.items() if k != tag})
            if tag == "$dict":
                keys = distinct([from_json(key) for key, _ in node[tag]])
                state = StateDict(zip(keys, (visit(child, depth) for _, child in node[tag]), strict=True))
                if len(state) != len(keys):
                    raise CorruptFileError("a $dict in the skeleton has a key twice; the header is damaged")
                if "metadata" in node:
                    metadata = decode(node["metadata"], from_json)
                    state._metadata = OrderedDict(metadata) if isinstance(metadata, dict) else metadata
                return state
        except (TypeError, ValueError, KeyError) as error:
            if isinstance(error, (TreeError, CorruptFileError)):
                raise
            raise CorruptFileError(f"a {tag} in the skeleton is malformed; the header is damaged") from error
        return get(node)

    return visit(skeleton, 0)


def _nearest(name: str, names: list[str]) -> str:
    """A hint at what may have been meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, names, 3)
    return f"did you mean {', '.join(near)}?" if near else f"the first is {names[0]!r}" if names else "it is empty"


def _no_key(state: StateDict, key: Any) -> str:
    what = f"no key {key!r:.200} among {len(state):,}"
    if type(key) is str and _find(state, key) is not _MISSING:
        return f"{what}; it is a path, use .at({key!r})"
    return f"{what}; {_nearest(str(key), [*map(label, state)])}"


def _find(node: Any, path: str) -> Any:
    if not path:
        return node
    if isinstance(node, Opaque):
        for held in (node.state, node.entries, {"args": node.args, "items": node.items, "state": node.state}):
            if isinstance(held, dict) and (found := _find(held, path)) is not _MISSING:
                return found
        return _MISSING
    if isinstance(node, dict):
        children: Mapping[str, Any] = (
            node if all(type(key) is str for key in node) else {label(k): v for k, v in node.items()}
        )
    elif isinstance(node, (list, tuple)):
        children = {str(index): value for index, value in enumerate(node)}
    else:
        return _MISSING
    end = len(path)
    while end >= 0:
        if path[:end] in children and (found := _find(children[path[:end]], path[end + 1 :])) is not _MISSING:
            return found
        end = path.rfind(".", 0, end)
    module = {key[len(path) + 1 :]: child for key, child in children.items() if key.startswith(path + ".")}
    return StateDict(module) if module else _MISSING


def transform(
    tree: Any, leaf: Callable[[Any], Any], container: Callable[[dict[Any, Any], Any], Any] | None = None
) -> Any:
    """A new tree of StateDicts, lists and tuples with `leaf(value)` for each leaf, called once for each object.

    What stood in several places, a leaf or a container, is made once and stands there again.

    Args:
        tree: any nesting of dicts, lists, tuples and Opaques.
        leaf: makes the new leaf.
        container: makes the new dict from its entries and the old dict; a StateDict by default.
    """
    build = container or (lambda entries, origin: like(origin, StateDict(entries)))
    objects: list[tuple[Opaque, dict[str, Any]]] = []

    def make(node: Any, below: Any) -> Any:
        if isinstance(node, dict):
            return build(below, node)
        if not isinstance(node, Opaque):
            return type(node)(below)
        objects.append((Opaque(node.name), below))
        return objects[-1][0]

    result = visit(tree, lambda path, value: leaf(value), make, once=True)
    for new, parts in objects:
        for slot, value in parts.items():
            setattr(new, slot, value)
    return result


def realize(tree: Any, arrays: Callable[[list[LazyTensor]], list[Any]], value: Callable[[Any], Any]) -> Any:
    """The tree with plain dicts, its tensors made in one go by `arrays`, its other leaves by `value`."""
    leaves = {id(leaf): leaf for _, leaf in walk_tensors(tree)}
    lazy = [as_lazy(leaf) for leaf in leaves.values()]
    for tensor, leaf in zip(lazy, leaves.values(), strict=True):
        tensor.ndarray = tensor.ndarray or is_numpy(leaf)
    made = dict(zip(leaves, arrays(lazy), strict=True))

    def plain(entries: dict[Any, Any], origin: Any) -> dict[Any, Any]:
        metadata = getattr(origin, "_metadata", None)
        if metadata is None:
            return entries
        ordered = OrderedDict(entries)
        ordered._metadata = metadata  # type: ignore[attr-defined]
        return ordered

    return transform(tree, lambda leaf: made[id(leaf)] if id(leaf) in made else value(leaf), plain)


def _plain_value(value: Any) -> Any:
    return value.plain if isinstance(value, Member) else value


def torch_value(value: Any) -> Any:
    """A plain value as PyTorch has it: `torch.Size`, `torch.device`, `torch.dtype`."""
    if isinstance(value, Size | Device | DType):
        torch = import_torch()
        if isinstance(value, Size):
            return torch.Size(value)
        if isinstance(value, DType):
            return value.torch
        try:
            return torch.device(str(value))
        except RuntimeError as error:
            raise UnsupportedError(f"torch {torch.__version__} has no device {str(value)[:100]!r}") from error
    return _plain_value(value)
