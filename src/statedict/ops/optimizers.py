"""The optimizers in a checkpoint: whose state is whose, their groups and troubles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from statedict.errors import AlterError
from statedict.reports.summary import Optimizer
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import find_model, names_of
from statedict.tree.walk import label
from statedict.values import abbreviate, count

_NAMES = ("params", "param_names")


def optimizers(tree: Any, item: Callable[[LazyTensor], Any] | None = None) -> list[Optimizer]:
    """Every optimizer in a tree; `item` reads tensors of one element, without which step counts in them are ignored."""
    if not _has_optimizer(tree):
        return []
    if is_optimizer(tree):
        return [_describe("", tree, None, item)]
    try:
        layout = Layout(tree if isinstance(tree, dict) else {"": tree})
    except AlterError:  # two entries of one path: whose state is whose cannot be told
        return []
    found = layout.optimizers | layout.listed
    return [_describe(path.removeprefix("."), state, layout, item) for path, state in found.items()]


def owners(found: Iterable[Optimizer], paths: Iterable[str]) -> dict[str, tuple[Optimizer, Any]]:
    """Path of a tensor that an optimizer keeps for a parameter → the optimizer, and the key of the parameter."""
    entries = {f"{one.path}.state.".removeprefix(".") + label(key): (one, key) for one in found for key in one.keys}
    owned: dict[str, tuple[Optimizer, Any]] = {}
    for path in paths if entries else ():
        above = path
        while above and path not in owned:
            above = above.rpartition(".")[0]
            if above in entries:
                owned[path] = entries[above]
    return owned


def names_by_key(groups: Any, names: Iterable[Any]) -> dict[Any, str]:
    """Key of each parameter → its name, of names group by group."""
    pairs = zip(groups, names, strict=True)
    return {key: name for group, some in pairs for key, name in zip(group["params"], some, strict=True)}


def _has_optimizer(tree: Any) -> bool:
    pending, seen = [tree], set[int]()
    while pending:
        node = pending.pop()
        if is_optimizer(node):
            return True
        if isinstance(node, dict) and id(node) not in seen:
            seen.add(id(node))
            pending += [child for child in node.values() if isinstance(child, dict | list | tuple)]
        elif type(node) in (list, tuple):
            pending += [child for child in node if isinstance(child, dict)]
    return False


def _describe(path: str, state: Any, layout: Layout | None, item: Callable[[LazyTensor], Any] | None) -> Optimizer:
    groups, keys = state["param_groups"], tuple(state["state"])
    settings = tuple((len(group["params"]), {k: v for k, v in group.items() if k not in _NAMES}) for group in groups)
    if not all(type(key) in (int, str) for group in groups for key in group["params"]):
        return Optimizer(path, keys=keys, groups=settings)
    found = find_model(state, layout) if layout is not None else None
    stored = names_of(groups)
    names, model = names_by_key(groups, stored) if stored else {}, None
    if found is not None:
        model, paths = found
        names = {key: name.removeprefix(f"{model}." if model else "") for key, name in paths.items()}
    troubles = dict(_find_troubles(state, names, item))
    return Optimizer(path, model, keys, names, bool(names) and not stored, settings, troubles)


def _find_troubles(
    state: Any, names: dict[Any, str], item: Callable[[LazyTensor], Any] | None
) -> Iterator[tuple[str, str]]:
    held = state["state"]
    known = dict.fromkeys(key for group in state["param_groups"] for key in group["params"])

    def name(keys: list[Any]) -> str:
        return abbreviate([names.get(key, label(key)) for key in keys])

    without = [key for key in known if key not in held]
    # torch.optim.LBFGS keeps one entry for all parameters together
    shared = len(held) == 1 and any(isinstance(entry, dict) and "func_evals" in entry for entry in held.values())
    if without and len(without) < len(known) and not shared:
        yield "missing state", f"{count(len(without), 'parameter')} of {len(known):,} without state: {name(without)}"
    stale = [key for key in held if type(key) is int and key not in known]
    if stale:
        yield "stale state", f"stale state of {count(len(stale), 'parameter')} in no group: {name(stale)}"
    steps: dict[Any, list[Any]] = {}
    for key, entries in held.items():
        step = entries.get("step") if isinstance(entries, dict) else None
        if is_array(step):
            one = as_lazy(step) if item is not None else None
            step = item(one) if item is not None and one is not None and one.numel() == 1 else None
        if type(step) in (int, float):
            steps.setdefault(step, []).append(key)
    if len(steps) > 1:
        usual = max(steps, key=lambda number: len(steps[number]))
        other = [key for number, keys in steps.items() if number != usual for key in keys]
        yield "steps", f"{count(len(other), 'parameter')} not at step {usual:,.0f} as the others: {name(other)}"
