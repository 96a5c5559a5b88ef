"""What a checkpoint will not hold of a tree: loaders and samplers without a state, generators of random numbers."""

from __future__ import annotations

import sys
from typing import Any

from statedict.adapters import join, stateful
from statedict.adapters.collect import module_paths
from statedict.runs.rng import Rng

_LOADERS = ("DataLoader", "Dataset", "Sampler")


def covered(tree: Any) -> tuple[Any, tuple[str, ...]]:
    """The part of a tree that can be captured, and what cannot, in words."""
    left: list[str] = []
    kept = _kept(tree, "", left)
    if not _has_rng(tree) and module_paths(tree):
        left.append("the states of random generators; put statedict.rng() into the tree")
    return kept, tuple(left)


def put_back(tree: Any, kept: Any) -> None:
    """What was restored into the part of a tree that can be captured, in the tree itself."""
    if kept is not tree and type(kept) is dict:
        for key, child in kept.items():
            put_back(tree[key], child)
            if type(tree[key]) is not dict:
                tree[key] = child


def _kept(node: Any, path: str, left: list[str]) -> Any:
    """A dict without the loaders in it; itself if there are none."""
    if type(node) is not dict:
        return node
    kept, before = {}, len(left)
    for key, child in node.items():
        full = join(path, key)
        if _without_state(child):
            kind = type(child)
            what = f"{full}: a {kind.__module__}.{kind.__qualname__} without state_dict() and load_state_dict()"
            left.append(f"{what}; its position is lost, see docs/runs.md")
        else:
            kept[key] = _kept(child, full, left)
    return kept if len(left) > before else node


def _without_state(value: Any) -> bool:
    data = sys.modules.get("torch.utils.data")
    if data is None:
        return False
    kinds = tuple(getattr(data, name) for name in _LOADERS)
    return isinstance(value, kinds) and not stateful.accepts(value)


def _has_rng(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_has_rng(child) for child in tree.values())
    return isinstance(tree, Rng)
