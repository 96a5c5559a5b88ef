"""What the optimizers in a checkpoint say: whose state is whose, their groups, and the seeds of trouble."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from statedict.errors import AlterError
from statedict.ops.links import linked
from statedict.ops.outline import Layout, is_optimizer
from statedict.paths import label
from statedict.tensor import as_lazy, is_array

_NAMES = ("params", "param_names")
_FIRST = 3


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer's state in a tree.

    Attributes:
        path: its path.
        model: the path of the state that its parameters are in; None where that cannot be told.
        names: key of an entry in `state` → the name of its parameter in the model, where that can be told.
        inferred: whether the names come from the model's order and shapes and not from the file.
        groups: for each group how many parameters it has, and its hyperparameters.
        troubles: what deserves a look, in words.
    """

    path: str
    model: str | None = None
    names: dict[Any, str] = field(default_factory=dict)
    inferred: bool = False
    groups: tuple[tuple[int, dict[str, Any]], ...] = ()
    troubles: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it; hyperparameters that JSON has no form for are texts."""
        return {
            "path": self.path,
            "model": self.model,
            "names": {label(key): name for key, name in self.names.items()},
            "inferred": self.inferred,
            "groups": [
                {"parameters": count} | {label(key): _plain(value) for key, value in group.items()}
                for count, group in self.groups
            ],
            "troubles": list(self.troubles),
        }


def _plain(value: Any) -> Any:
    if type(value) in (tuple, list):
        return [_plain(item) for item in value]
    simple = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    return value if simple else repr(value)


def optimizers(tree: Any, steps: bool = False) -> list[Optimizer]:
    """Every optimizer in a tree.

    Args:
        tree: a StateDict, or any tree of dicts, lists, arrays and values.
        steps: also compare the step counts, which are read.

    >>> import statedict
    >>> [found] = optimizers(statedict.load("examples/checkpoint.pth"))
    >>> found.path, found.model, found.names[0], found.inferred, found.groups[0][1]["lr"], found.troubles
    ('optimizer_state', 'model_state', 'conv1.weight', True, 0.001, ())
    """
    if not _has_one(tree):
        return []
    if is_optimizer(tree):
        return [_seen("", tree, None, steps)]
    try:
        layout = Layout(tree)
    except AlterError:  # two entries of one path: whose state is whose cannot be told
        return []
    return [_seen(path, state, layout, steps) for path, state in (layout.optimizers | layout.listed).items()]


def _has_one(tree: Any) -> bool:
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


def _seen(path: str, state: Any, layout: Layout | None, steps: bool) -> Optimizer:
    groups = state["param_groups"]
    found = linked(state, layout) if layout is not None else None
    own = {key: name for group in groups for key, name in _named(group) if type(name) is str}
    names, model = own, None
    if found is not None:
        model, paths = found
        names = {key: name.removeprefix(f"{model}." if model else "") for key, name in paths.items()}
    return Optimizer(
        path,
        model,
        names,
        bool(names) and not own,
        tuple((len(group["params"]), {k: v for k, v in group.items() if k not in _NAMES}) for group in groups),
        tuple(_troubles(state, names, steps)),
    )


def _named(group: Any) -> Iterator[tuple[Any, Any]]:
    names = group.get("param_names")
    return zip(group["params"], names if isinstance(names, list) else (), strict=False)


def _troubles(state: Any, names: dict[Any, str], read: bool) -> Iterator[str]:
    held = state["state"]
    known = [key for group in state["param_groups"] for key in group["params"]]

    def said(keys: list[Any]) -> str:
        shown = ", ".join(names.get(key, label(key)) for key in keys[:_FIRST])
        return shown + f" and {len(keys) - _FIRST:,} more" * (len(keys) > _FIRST)

    without = [key for key in known if key not in held]
    if without and len(without) < len(known):
        yield f"{_count(without)} of {len(known):,} without state: {said(without)}"
    stale = [key for key in held if type(key) is int and key not in set(known)]
    if stale:
        yield f"stale state of {_count(stale)} in no group: {said(stale)}"
    steps: dict[Any, list[Any]] = {}
    for key, entries in held.items() if read else ():
        step = entries.get("step") if isinstance(entries, dict) else None
        number = as_lazy(step).item() if is_array(step) and as_lazy(step).numel() == 1 else step
        if type(number) in (int, float):
            steps.setdefault(number, []).append(key)
    if len(steps) > 1:
        usual = max(steps, key=lambda number: len(steps[number]))
        other = [key for number, keys in steps.items() if number != usual for key in keys]
        yield f"{_count(other)} not at step {usual:,.0f} as the others: {said(other)}"


def _count(keys: list[Any]) -> str:
    return f"{len(keys):,} parameter{'s' * (len(keys) != 1)}"
