"""New trees from old ones: which entries the new tree has, and how each is made.

Entries stay in their dict, at their place, unless their new path leads out of it. Optimizers follow (follow.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, cast

from statedict.errors import AlterError, UnsupportedError
from statedict.ops.alter.follow import Build, Make, Outline, follow, uses
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import step_counts
from statedict.tree.rename import modules
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import Patterns, filter_paths, visit, walk
from statedict.values import Opaque

P = ParamSpec("P")


class Verb(Protocol[P]):
    """An operation on trees. `on_layout` is the same on layouts, so that a list of steps makes one tree, not many."""

    on_layout: Callable[Concatenate[Layout, P], Layout]

    def __call__(self, state: StateDict, *args: P.args, **kwargs: P.kwargs) -> StateDict:
        """The new tree."""


def on_trees(verb: Callable[Concatenate[Layout, P], Layout]) -> Verb[P]:
    """An operation on trees from one on layouts."""

    @wraps(verb)
    def alter(state: StateDict, *args: P.args, **kwargs: P.kwargs) -> StateDict:
        tree = verb(_lay_out(state, verb.__name__), *args, **kwargs).tree
        if tree is not state:
            drop_hashes(tree)
        return cast(StateDict, tree)

    alter.__annotations__ |= {"state": "StateDict", "return": "StateDict"}
    alter.on_layout = verb  # type: ignore[attr-defined]
    return cast("Verb[P]", alter)


def _lay_out(state: Any, verb: str) -> Layout:
    """The layout of a state_dict, which a file or a live object is not."""
    where, value = "", state
    if isinstance(state, dict):
        layout = Layout(state)
        listed = (item for leaf in layout.leaves.values() if type(leaf) in (list, tuple) for item in leaf)
        kinds = {*map(type, layout.leaves.values()), *map(type, listed)}
        if not any(map(_is_live, kinds)):
            return layout
        where, value = next((path, leaf) for path, leaf in layout.entries().items() if _is_live(type(leaf)))
    path = isinstance(value, str | bytes | os.PathLike)
    get = "statedict.load(path)" if path and not where else "statedict.capture(objects)"
    what = f"{where!r}: alter.{verb}" if where else f"alter.{verb}"
    raise UnsupportedError(f"{what} takes a state_dict, not a {type(value).__name__}; call {get} first")


def _is_live(kind: type) -> bool:
    return callable(getattr(kind, "state_dict", None))


def rebuild(layout: Layout, outline: Outline, dropped: Collection[str] = ()) -> Layout:
    """The layout of the new tree with the entries of an outline, without the optimizers whose paths are `dropped`.

    Raises:
        AlterError: parameters of an optimizer change, and which of its moments are theirs cannot be told.
    """
    used = uses(outline, layout) if layout.optimizers or layout.listed else {}
    leaves = layout.leaves

    def make_leaf(origin: str | Build) -> Any:
        if isinstance(origin, Build):
            return origin.run(*[as_lazy(leaves[path]) for path in origin.sources]) if origin.sources else origin.value
        value = leaves[origin]
        if layout.listed and type(value) in (list, tuple):
            items = ((f"{origin}.{index}", item) for index, item in enumerate(value))
            return type(value)(follow(p, v, layout, used) if p in layout.listed else v for p, v in items)
        return value

    filled = {path for path, leaf in leaves.items() if type(leaf) in (list, tuple, Counter)}
    filled.update(layout.optimizers)
    if len(layout.dicts) == 1 and not filled and not layout.keys and getattr(layout.tree, "_metadata", None) is None:
        return Layout(like(layout.tree, StateDict(zip(outline, map(make_leaf, outline.values()), strict=True))))
    new = Layout(like(layout.tree, StateDict()))
    rows, renamed = _place(layout, outline, dropped, filled)

    def fill(node: StateDict, home: str) -> None:
        below = len(home) + 1 if home else 0
        for row in rows[home]:
            if isinstance(row, str):
                origin = outline[row]
                value = leaves[origin] if type(origin) is str and not layout.listed else make_leaf(origin)
                key = layout.keys[row] if row in layout.keys and origin == row else row[below:]
                node[key] = value
                if isinstance(value, LazyTensor):  # most are; no other entry has its path
                    new.leaves[row], new.home[row] = value, home
                else:
                    new.add(key, value, home)
                continue
            _, key, path = row
            if path in layout.optimizers:
                node[key] = follow(path, layout.optimizers[path], layout, used)
                new.add(key, node[key], home)
                continue
            inside = like(layout.dicts[path], StateDict())
            new.open(key, path, inside, home)
            fill(inside, path)
            if inside:
                node[key] = inside
            else:
                new.close(path, home)
        if renamed.get(home):
            node._metadata = _rename_versions(node._metadata, renamed[home], node)

    fill(new.tree, "")
    return new


Row = tuple[int, Any, str]


def _place(
    layout: Layout, outline: Outline, dropped: Collection[str], filled: Collection[str]
) -> tuple[dict[str, list[str | Row]], dict[str, list[tuple[str, str]]]]:
    """What each new dict holds, in order: paths of leaves, and rows of `layout.inner`; and (old, new) names in it.

    `filled` has the paths that hold entries and take no new ones.
    """
    ranks = {path: rank for rank, path in enumerate(layout.leaves)}
    waiting = {path: [row for row in rows if row[2] not in dropped][::-1] for path, rows in layout.inner.items()}
    placed: dict[str, list[str | Row]] = {path: [] for path in layout.dicts}
    arrived: dict[str, list[str]] = {path: [] for path in layout.dicts}
    renamed: dict[str, list[tuple[str, str]]] = {
        path: [] for path, node in layout.dicts.items() if isinstance(getattr(node, "_metadata", None), dict)
    }
    homes = {path: path for path in layout.dicts}
    home_of = layout.home
    for new, origin in outline.items():
        sources = (origin,) if isinstance(origin, str) else origin.sources
        home = home_of[new] if sources == (new,) else _find_home(new, homes, filled)
        first = next((source for source in sources if home_of[source] == home), None)
        if first is None:
            arrived[home].append(new)
            continue
        rows = waiting[home]
        while rows and rows[-1][0] <= ranks[first]:
            placed[home].append(rows.pop())
        placed[home].append(new)
        if home in renamed and first != new:
            below = len(home) + 1 if home else 0
            renamed[home] += [(source[below:], new[below:]) for source in sources if home_of[source] == home]
    for path, rows in waiting.items():
        placed[path] += rows[::-1]
        placed[path] += arrived[path]
    return placed, renamed


def _find_home(path: str, homes: dict[str, str], filled: Collection[str]) -> str:
    """The nearest dict around a new path. `homes` notes it for the paths between."""
    above, passed = path[: max(path.rfind("."), 0)], []
    while above not in homes:
        if above in filled:
            raise AlterError(f"{path!r}: {above!r} cannot hold an entry; choose another path")
        passed.append(above)
        above = above[: max(above.rfind("."), 0)]
    home = homes[above]
    for between in passed:
        homes[between] = home
    return home


def _rename_versions(
    metadata: dict[str, Any], moved: list[tuple[str, str]], entries: Mapping[Any, Any]
) -> dict[str, Any]:
    """A `_metadata` with the new names of modules."""
    names = modules(moved)
    still = {""}
    for key in entries:
        parent = str(key).rpartition(".")[0]
        while parent not in still:
            still.add(parent)
            parent = parent.rpartition(".")[0]
    result: dict[str, Any] = {}
    for name, entry in metadata.items():
        for now in [name] if name in still or name not in names else names[name]:
            result.setdefault(now, entry)
    return result


def filter_entries(layout: Layout, patterns: Patterns, wanted: bool) -> Layout:
    """The entries that match, or those that do not."""
    found = filter_paths([*layout.leaves, *layout.optimizers], patterns, "entry")
    dropped = [path for path in layout.optimizers if (path in found) is not wanted]
    return rebuild(layout, {path: path for path in layout.leaves if (path in found) is wanted}, dropped)


def map_tensors(
    layout: Layout, patterns: Patterns, make: Make, casts: bool = False, but: Collection[str] = ()
) -> Layout:
    """Make each tensor that matches another one, `but` some paths. What was tied is tied afterwards.

    `casts` says that only dtypes change.
    """
    results: dict[object, LazyTensor] = {}

    def make_once(tensor: LazyTensor) -> LazyTensor:
        region = tensor.region
        result = results.get(region)
        if result is None:
            result = results[region] = make(tensor)
        return result

    lists = {path: leaf for path, leaf in layout.leaves.items() if casts and type(leaf) in (list, tuple)}
    above = tuple(f"{path}." for path in layout.listed) or "\0"  # what optimizers keep follows their parameters
    inside = {
        each: path
        for path, leaf in lists.items()
        for each, item in walk(leaf, path)
        if is_array(item) and not each.startswith(above)
    }
    chosen = {path: None for path in filter_tensors(layout, patterns, not casts, inside) if path not in but}
    new = rebuild(layout, {p: Build((p,), make_once, casts=casts) if p in chosen else p for p in layout.leaves})

    def build(node: Any, below: Any) -> Any:
        if isinstance(node, Opaque) or is_optimizer(node):
            return node
        return like(node, StateDict(below)) if isinstance(node, dict) else type(node)(below)

    for path in {inside[each]: None for each in chosen if each in inside}:
        home = new.home[path]
        key = new.keys.get(path, path[len(home) + 1 if home else 0 :])
        made = visit(
            new.leaves[path], lambda each, leaf: make_once(as_lazy(leaf)) if each in chosen else leaf, build, path
        )
        new.leaves[path] = new.dicts[home][key] = made
    return new


def filter_tensors(
    layout: Layout, patterns: Patterns, counts: bool = True, others: Iterable[str] = ()
) -> dict[str, None]:
    """The paths of the tensors, and others, that match; unless `counts`, without step counts of optimizers."""
    left = set() if counts else step_counts(layout)
    tensors = (path for path, leaf in layout.leaves.items() if is_array(leaf) and path not in left)
    return filter_paths([*tensors, *others], patterns, "tensor")


# kohya's sd-scripts and the model specification of Stability: digests of the tensors' bytes at the time of writing
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


def drop_hashes(tree: Any) -> list[str]:
    """Take digests of other bytes out of the metadata of a new tree; their names."""
    metadata = getattr(tree, "metadata", None)
    stale = [key for key in _HASHES if isinstance(metadata, dict) and key in metadata]
    if stale:
        tree.metadata = {key: value for key, value in tree.metadata.items() if key not in stale}
    return stale
