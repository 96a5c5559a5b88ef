"""Which entries of several states are combined: those of their models, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.errors import AlterError, CombineError
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import is_count
from statedict.tree.roles import MODEL, choose_model, find_models, find_roles, members
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label, walk, walk_tensors
from statedict.values import abbreviate, count, same_value

_SCHEDULER = "last_epoch"  # a key that every scheduler of PyTorch has
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch normalization, and of torch.optim.swa_utils


@dataclass(frozen=True, slots=True)
class Aligned:
    """States by the paths of the first one.

    Attributes:
        names: what each source is called.
        first: the first source.
        values: path → the leaves of all sources, of what is combined.
        counters: paths that count steps or batches, in models and optimizers.
        settings: paths in the groups of optimizers, whose values are those of the first source.
        kept: the paths of the first source's leaves that the result has, outside of optimizers.
        left_out: path in the first source → why it is not in the result.
    """

    names: tuple[str, ...]
    first: Layout
    values: dict[str, list[Any]]
    counters: set[str]
    settings: set[str]
    kept: list[str]
    left_out: dict[str, str]


def align(sources: Sequence[tuple[str, StateDict]], optimizer: bool = False) -> Aligned:
    """Align the models of states, and their optimizers if asked for.

    Values beside the models stay if all sources have the same; the rest is left out.

    Args:
        sources: names and trees.
        optimizer: whether optimizers are combined too.

    Raises:
        CombineError: a source has no model, or they have other models or other names.
    """
    names = tuple(name for name, _ in sources)
    layouts, models = zip(*(_lay_out(name, tree) for name, tree in sources), strict=True)
    for name, paths in zip(names, models, strict=True):
        if {*paths} != {*models[0]} and not len(paths) == len(models[0]) == 1:
            mine, other = (abbreviate([path or "the root" for path in one]) for one in (paths, models[0]))
            which = f"the models {mine}, {names[0]} has {other}"
            raise CombineError(f"{name}: has {which}; name one state_dict of each as file::path")
    found = [dict(_entries(layout, paths, models[0])) for layout, paths in zip(layouts, models, strict=True)]
    counters = {path for path in found[0] if path.rpartition(".")[2] in _COUNTERS}
    settings: set[str] = set()
    for name, entries, layout in zip(names, found, layouts, strict=True) if optimizer else ():
        if not layout.optimizers:
            listed = "it is in a list; average the models alone" if layout.listed else "average the models alone"
            raise CombineError(f"{name}: has no optimizer beside its model that could be averaged; {listed}")
        for path, node in layout.optimizers.items():
            entries.update(walk(node, path))
            counters.update(at for at, leaf in walk(node, path) if is_count(at.rpartition(".")[2], leaf))
            groups = f"{path}.param_groups." if path else "param_groups."
            settings.update(at for at, _ in walk(node, path) if at.startswith(groups))
    _check_names(names, found)
    first = layouts[0]
    left_out = dict.fromkeys([] if optimizer else first.optimizers, "optimizer")
    beside: dict[str, list[str]] = {}
    for path in first.leaves:
        if path not in found[0]:
            beside.setdefault(_find_whole(path, models[0]), []).append(path)
    for whole, paths in beside.items():
        reason = _find_reason(paths, layouts)
        if reason:
            left_out[whole] = reason
    known = {*map(label, first.tree)}
    for name, layout, paths in zip(names[1:], layouts[1:], models[1:], strict=True):
        for key in map(label, layout.tree if "" not in (*paths, *models[0]) else ()):
            if key not in known and not any(f"{path}.".startswith(f"{key}.") for path in paths):
                left_out[key] = f"only in {name}"
    gone = {path for whole in left_out for path in beside.get(whole, ())}
    kept = [path for path in first.leaves if path not in gone]
    return Aligned(
        names, first, {path: [there[path] for there in found] for path in found[0]}, counters, settings, kept, left_out
    )


def only_model(name: str, tree: Any) -> tuple[str, Any]:
    """The path and the state_dict of the only model of a source.

    Raises:
        CombineError: there is none, or several could be meant.
    """
    try:
        return choose_model(tree, "name one as file::{}")
    except AlterError as error:
        raise CombineError(f"{name}: {error}") from error


def _find_whole(path: str, models: Sequence[str]) -> str:
    """The outermost entry around a path that no model lies in."""
    parts = path.split(".")
    heads = [".".join(parts[:length]) for length in range(1, len(parts))]
    return next((head for head in heads if not any(f"{one}.".startswith(f"{head}.") for one in models)), path)


def _find_reason(paths: Sequence[str], layouts: Sequence[Layout]) -> str:
    """Why values beside the models are left out; "" if they stay."""
    leaves = [layouts[0].leaves[path] for path in paths]
    if any(path.rpartition(".")[2] == _SCHEDULER for path in paths):
        return "scheduler"
    if any(type(leaf) in (list, tuple) and any(map(is_optimizer, leaf)) for leaf in leaves):
        return "optimizer"
    if any(any(walk_tensors(leaf)) for leaf in leaves):
        return "tensors beside the model"
    others = [[layout.leaves.get(path, ...) for path in paths] for layout in layouts[1:]]
    return "" if all(same_value(leaves, other) for other in others) else "differs"


def _lay_out(name: str, tree: StateDict) -> tuple[Layout, list[str]]:
    """The layout of a source, and the paths of its models. Of a whole module it is that of its state_dict."""
    models = find_models(tree)
    if not models:
        raise CombineError(f"{name}: there is no model in it; name its state_dict as file::path")
    layout = Layout(tree)
    homes = {path: node for path, node in layout.dicts.items() if path or "" not in layout.leaves}
    whole = [path for path in models if path not in homes or members(homes[path]) is not None]
    if whole and len(models) > 1:
        raise CombineError(
            f"{name}: has several models, {whole[0] or 'the root'!r} as a whole module; name one as file::path"
        )
    return (Layout(models[whole[0]]), [""]) if whole else (layout, [*models])


def _entries(layout: Layout, models: list[str], names: list[str]) -> Iterator[tuple[str, Any]]:
    """(path in the first source, leaf) of the entries of models; a single model may stand elsewhere in each source."""
    homes = dict(zip(models, names if len(models) == 1 else models, strict=True))
    others = {path for role, path, _ in find_roles(layout.tree) if role != MODEL}
    for path, leaf in layout.leaves.items():
        home = layout.home[path]
        while home and home not in homes and home not in others:
            home = home.rpartition(".")[0]
        if home in homes:
            below = path[len(home) + 1 :] if home else path
            yield f"{homes[home]}.{below}" if homes[home] else below, leaf


def _check_names(names: Sequence[str], found: Sequence[dict[str, Any]]) -> None:
    for name, entries in zip(names, found, strict=True):
        for lacking, having, one, other in (
            (name, names[0], entries, found[0]),
            (names[0], name, found[0], entries),
        ):
            missing = [path for path in other if path not in one]
            if missing:
                what = f"lacks {count(len(missing), 'entry', 'entries')} that {having} has: {abbreviate(missing)}"
                raise CombineError(f"{lacking}: {what}; rename or drop them by edit first")
