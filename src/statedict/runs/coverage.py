"""What a checkpoint will not hold of a tree: loaders and samplers without a state, generators of random numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from statedict.adapters import join, stateful
from statedict.adapters.collect import children, module_paths
from statedict.errors import UnsupportedError
from statedict.runs.loader import ResumableLoader
from statedict.runs.rng import Rng
from statedict.tensor.lazy import is_array
from statedict.tree.walk import MAX_DEPTH
from statedict.values import PLAIN

_LOADERS = ("DataLoader", "Dataset", "Sampler")
_REMEDY = "its position is lost, unless statedict.ResumableLoader(loader) stands for the loader"


def split_covered(tree: Any) -> tuple[Any, tuple[str, ...]]:
    """The part of a tree that can be captured, and what cannot, in words.

    Raises:
        UnsupportedError: a loader without a state, where nothing can be left out.
    """
    left: list[str] = []
    kept = _without_loaders(tree, "", left)
    has_rng = False
    for path, node in _nodes(kept, ""):
        has_rng = has_rng or isinstance(node, Rng)
        if isinstance(node, ResumableLoader) and node.not_captured:
            left.append(f"{path}: {node.not_captured}")
        elif _without_state(node, _LOADERS[:1]):  # others may be captured by their attributes
            raise UnsupportedError(f"{_describe(node, path)}; {_REMEDY}. Only entries of dicts can be left out")
    if not has_rng and module_paths(tree):
        left.append("the states of random generators; put statedict.rng() into the tree")
    return kept, tuple(left)


def put_back(tree: Any, kept: Any) -> None:
    """What was restored into the part of a tree that can be captured, in the tree itself."""
    if kept is not tree and type(kept) is dict:
        for key, child in kept.items():
            put_back(tree[key], child)
            if type(tree[key]) is not dict:
                tree[key] = child


def _without_loaders(node: Any, path: str, left: list[str]) -> Any:
    """A dict without the loaders in it; itself if there are none."""
    if type(node) is not dict:
        return node
    kept, before = {}, len(left)
    for key, child in node.items():
        full = join(path, key)
        if _without_state(child):
            left.append(f"{_describe(child, full)}; {_REMEDY}")
        else:
            kept[key] = _without_loaders(child, full, left)
    return kept if len(left) > before else node


def _nodes(node: Any, path: str, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """What is in a tree, down to arrays, plain values and what has a state of its own."""
    yield path, node
    if id(node) in above or len(above) > MAX_DEPTH or _without_state(node, _LOADERS[:1]):
        return
    for key, child in (children(node) or {}).items():
        if type(child) not in PLAIN and not is_array(child):
            yield from _nodes(child, join(path, key), above | {id(node)})


def _describe(value: Any, path: str) -> str:
    kind = type(value)
    return f"{path}: a {kind.__module__}.{kind.__qualname__} without state_dict() and load_state_dict()"


def _without_state(value: Any, names: tuple[str, ...] = _LOADERS) -> bool:
    data = sys.modules.get("torch.utils.data")
    if data is None:
        return False
    kinds = tuple(getattr(data, name) for name in names)
    return isinstance(value, kinds) and not stateful.accepts(value)
