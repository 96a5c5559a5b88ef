"""Layout: a checkpoint's entries by path, with the dicts and the optimizers that hold them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from statedict.errors import AlterError
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.walk import MAX_DEPTH, label, walk
from statedict.values import Opaque, is_plain_list

_CONTAINERS = (dict, list, tuple, Opaque)
_LONG = 1000  # plain values in a list that is a leaf itself


class Layout:
    """The entries of a tree outside its optimizers, by path, in order.

    Attributes:
        tree: the tree itself.
        leaves: path → value; lists and Opaques are values.
        home: path of an entry → path of the dict that holds it.
        dicts: path → dict.
        optimizers: path → the optimizer's state.
        listed: the same for optimizers in lists, as Lightning keeps them; the list itself is a leaf.
        keys: path → key, of leaves whose key is not a string.
        inner: path of a dict → the dicts and optimizers in it: how many leaves come before it, key, path.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.leaves: dict[str, Any] = {}
        self.home: dict[str, str] = {}
        self.dicts: dict[str, Any] = {"": tree}
        self.optimizers: dict[str, Any] = {}
        self.listed: dict[str, Any] = {}
        self.inner: dict[str, list[tuple[int, Any, str]]] = {"": []}
        self.keys: dict[str, Any] = {}
        self._add_all(tree, "", 0)

    def add(self, key: Any, value: Any, home: str, depth: int = 0) -> None:
        """Add the entry `key` of the dict at `home`, and all below it.

        Raises:
            AlterError: another entry has its path, or it is nested deeper than 200.
        """
        name = key if type(key) is str else label(key)
        path = f"{home}.{name}" if home else name
        if isinstance(value, dict) and type(value) is not Counter:
            if is_optimizer(value):
                self.optimizers[path] = value
                self.inner[home].append((len(self.leaves), key, path))
                return
            if value and path not in self.dicts:
                if depth >= MAX_DEPTH:
                    raise AlterError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")
                self.open(key, path, value, home)
                self._add_all(value, path, depth + 1)
                return
        if path in self.leaves:
            raise AlterError(f"{path!r}: two entries have this path; rename one of them in Python first")
        self.leaves[path] = value
        self.home[path] = home
        if name is not key:
            self.keys[path] = key
        if type(value) in (list, tuple) and not is_plain_list(value):
            self.listed |= {f"{path}.{i}": item for i, item in enumerate(value) if is_optimizer(item)}

    def _add_all(self, node: Any, path: str, depth: int) -> None:
        """Add the entries of the dict at a path."""
        if {*map(type, node.values())} == {LazyTensor} and {*map(type, node)} == {str}:  # as most large dicts are
            tensors = {f"{path}.{key}": tensor for key, tensor in node.items()} if path else node
            if self.leaves.keys().isdisjoint(tensors):
                self.leaves.update(tensors)
                self.home.update(dict.fromkeys(tensors, path))
                return
        for key, child in node.items():
            self.add(key, child, path, depth)

    def open(self, key: Any, path: str, value: Any, home: str) -> None:
        """Add a dict without its entries."""
        self.dicts[path] = value
        self.inner[home].append((len(self.leaves), key, path))
        self.inner[path] = []

    def close(self, path: str, home: str) -> None:
        """Take out a dict without entries, the last that was opened in `home`."""
        del self.dicts[path], self.inner[path], self.inner[home][-1]

    def tensors(self) -> dict[str, LazyTensor]:
        """Path → tensor."""
        return {path: as_lazy(leaf) for path, leaf in self.leaves.items() if is_array(leaf)}

    def entries(self) -> dict[str, Any]:
        """Path → leaf of the whole tree in order, inside lists, objects and optimizers too; a vocabulary is one."""
        if not self.optimizers and not any(isinstance(leaf, _CONTAINERS) for leaf in self.leaves.values()):
            return self.leaves
        rows = [row for inner in self.inner.values() for row in inner if row[2] in self.optimizers]
        waiting = sorted(((rank, path) for rank, _, path in rows), reverse=True)
        found: dict[str, Any] = {}
        for rank, (path, leaf) in enumerate(self.leaves.items()):
            while waiting and waiting[-1][0] <= rank:
                optimizer = waiting.pop()[1]
                found.update(walk(self.optimizers[optimizer], optimizer))
            if isinstance(leaf, _CONTAINERS) and not _is_vocabulary(leaf):
                found.update(walk(leaf, path))
            else:
                found[path] = leaf
        for _, optimizer in reversed(waiting):
            found.update(walk(self.optimizers[optimizer], optimizer))
        return found


def _is_vocabulary(leaf: Any) -> bool:
    return is_plain_list(leaf) and len(leaf) > _LONG


def is_optimizer(node: Any) -> bool:
    """Whether a dict is what an optimizer's `state_dict()` gives."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in node["param_groups"])
    )
