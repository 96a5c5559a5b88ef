"""Whole trees: the table of adapters, what collects the live state, copies it and puts it back."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from statedict.adapters import (
    Adapter,
    Capture,
    depth_error,
    join,
    leaf,
    objects,
    qualified_name,
    to_framework,
    unsupported_error,
)
from statedict.adapters.plan import Options, Plan
from statedict.collector import Paused
from statedict.errors import RestoreError, UnsupportedError
from statedict.reports.outcomes import RESTORED, RestoreReport, explain_problems, suggest_options
from statedict.tensor.arrays import is_torch
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import move_to_copies, numpy_arrays, torch_tensors
from statedict.tree.rename import Rules
from statedict.tree.roles import find_models
from statedict.tree.state_dict import StateDict, transform
from statedict.tree.walk import MAX_DEPTH, walk
from statedict.values import PLAIN, Opaque

# module that must be loaded for the adapter to matter, adapter
ADAPTERS: tuple[tuple[str, str], ...] = (
    ("keras", "statedict.adapters.keras"),  # whose layers are modules of torch, too, with that backend
    ("torch", "statedict.adapters.torch_module"),
    ("torch", "statedict.adapters.torch_optimizer"),
    ("torch", "statedict.adapters.torch_scheduler"),
    ("flax.nnx", "statedict.adapters.flax_nnx"),
    ("jax", "statedict.adapters.jax_arrays"),
    ("jax", "statedict.adapters.jax_trees"),
    ("mlx.core", "statedict.adapters.mlx"),
    ("sklearn.base", "statedict.adapters.sklearn"),
    ("sys", "statedict.adapters.generators"),
    ("sys", "statedict.adapters.stateful"),
    ("sys", "statedict.adapters.objects"),
)
_CONTAINERS = frozenset({dict, list, tuple, OrderedDict, StateDict})
_NAMED = 3  # shapes that a hint names one by one
_DEEP = 3  # keys to an entry that may fit an object


def find(value: Any, path: str) -> Adapter:
    """The adapter for an object, or an `UnsupportedError`."""
    if type(value) in _CONTAINERS and not (type(value) is tuple and "jax" in sys.modules):
        return _load("statedict.adapters.objects")
    for framework, name in ADAPTERS:
        if framework == "sys" and (found := _find_added(value)) is not None:
            return found
        if sys.modules.get(framework) is not None and (adapter := _load(name)).accepts(value):
            return adapter
    raise unsupported_error(value, path)


def _find_added(value: Any) -> Adapter | None:
    """An adapter of another package, which comes before those of ours that take objects of any framework."""
    for point in added():
        if sys.modules.get(point.name) is not None and (adapter := _load(point.module)).accepts(value):
            return adapter
    return None


@cache
def added() -> tuple[Any, ...]:
    """The entry points of adapters, see docs/plugins.md; finding them takes milliseconds."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group="statedict.adapters"))


@cache
def _load(name: str) -> Adapter:
    adapter: Any = importlib.import_module(name)
    return adapter  # type: ignore[no-any-return]


def visit(
    tree: Any, stop: Callable[[Any], bool], path: str = "", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """(path, object) for all in a live tree but arrays and plain values; nothing below what `stop` is true of."""
    yield path, tree
    if id(tree) in above or stop(tree):
        return
    if isinstance(tree, dict):
        children = tree
    elif type(tree) in (list, tuple):
        children = dict(enumerate(tree))
    elif leaf(tree) is ... and objects.accepts(tree):
        children = objects.attributes(tree)
    else:
        return
    if len(above) > MAX_DEPTH:
        raise depth_error(path)
    for key, child in children.items():
        if type(child) not in PLAIN and not is_array(child):
            yield from visit(child, stop, join(path, key), above | {id(tree)})


def is_module(value: Any) -> bool:
    """Whether it is a `torch.nn.Module`, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def parameters(tree: Any) -> tuple[dict[int, str], dict[int, str]]:
    """The id of each live parameter in the tree → its name, and → the path of the module that it is in.

    Names begin with the path of their module where there are several modules.
    """
    names: dict[int, str] = {}
    homes: dict[int, str] = {}
    modules = [(path, value) for path, value in visit(tree, is_module) if is_module(value)]
    for path, module in modules:
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), join(path, name) if len(modules) > 1 else name)
            homes.setdefault(id(parameter), path)
    return names, homes


# capture


def collect(tree: Any, make: Callable[[Any], Any] = lambda array: array) -> Any:
    """The tree with every live object replaced by its state, and every array by what `make` makes of it.

    Raises:
        UnsupportedError: an object without an adapter, or what `make` raises; the message begins with the path.
    """
    return Capture(find, parameters(tree)[0], make).value(tree, "")


def snapshot(tree: Any) -> Any:
    """The states of a live tree with a copy of each array, of its kind; arrays that share memory share it again."""
    tensors: list[LazyTensor] = []
    arrays: list[LazyTensor] = []

    def make(value: Any) -> LazyTensor:
        lazy = as_lazy(value)
        if lazy is not value:
            (tensors if is_torch(value) else arrays).append(lazy)
        return lazy

    whole = collect(tree, make)
    new = [*(torch_tensors(tensors, True) if tensors else ()), *(numpy_arrays(arrays, True) if arrays else ())]
    copies = {id(lazy): copy for lazy, copy in zip([*tensors, *arrays], new, strict=True)}
    for lazy in tensors:
        if lazy.attributes:
            vars(copies[id(lazy)]).update(to_framework(data_of(lazy.attributes)))
    return transform(whole, lambda leaf: copies.get(id(leaf), leaf))


def copy_arrays(tree: Any, room: Any) -> Any:
    """The states of a live tree, with arrays as LazyTensors over a copy in a `room`; what lies in files stays there."""
    live: list[LazyTensor] = []

    def make(value: Any) -> LazyTensor:
        tensor = as_lazy(value)
        if tensor.storage.source.in_memory:
            tensor = tensor.replace() if tensor is value else tensor
            live.append(tensor)
        return tensor

    whole = collect(tree, make)
    move_to_copies(live, room)
    return whole


# restore


def as_state(source: Any) -> Any:
    """A tree with each live object replaced by its state, or by a label where no adapter takes it.

    Raises:
        TreeError: as `tree.walk.visit`.
        UnsupportedError: the state of a live object holds what is not data; the message begins with the path.
    """
    live = {id(value): (path, value) for path, value in walk(source) if leaf(value) is ...}
    if not live:
        return source
    capture = Capture(find, parameters(source)[0], lambda array: array)
    states: dict[int, Any] = {}
    for key, (path, value) in live.items():
        try:
            find(value, path)
        except UnsupportedError:
            states[key] = Opaque(qualified_name(value if hasattr(value, "__qualname__") else type(value)))
        else:
            states[key] = capture.value(value, path)
    return transform(source, lambda value: states.get(id(value), value))


def put_back(obj: Any, source: Any, options: Options, dry_run: bool) -> RestoreReport:
    """Plan for the whole tree, then do it; see `statedict.restore`."""
    with Paused():
        state = as_state(source)
    if isinstance(state, StateDict) and list(state) == [""] and not (isinstance(obj, dict) and "" in obj):
        state = state[""]
    with Paused():
        plan = Plan(find, options, *parameters(obj))
        plan.tree(obj, state)
    written = not dry_run and not plan.problems
    hints = _hints(plan, obj, state) if plan.problems else ()
    report = RestoreReport(tuple(plan.entries), tuple(plan.problems), written, tuple(plan.notes), hints)
    if dry_run:
        return report
    if plan.problems:
        lines = ["the state does not fit and nothing was written:", *explain_problems(report)]
        raise RestoreError("\n".join([*lines, "dry_run=True gives the whole report"]))
    for path, action in plan.actions:
        try:
            action()
        except Exception as error:
            raise RestoreError(
                f"{path or 'the root'}: could not be written: {type(error).__name__}: {error}\n"
                "the entries before it were written, it may be in part, those after it were not"
            ) from error
    return report


def _hints(plan: Plan, obj: Any, state: Any) -> tuple[str, ...]:
    """What the caller can do about the problems."""
    hints = [*plan.hints]
    if plan.renames:
        rules, unexpected = Rules(plan.renames), [e.path for e in plan.problems if e.action == "unexpected"]
        count = sum(rules(path) != path for path in unexpected)
        shown = ", ".join(f"{old} → {new}" for old, new in [*plan.renames.items()][:2])
        more = ", …" if len(plan.renames) > 2 else ""
        hints.append(f"{count:,} keys look renamed: {shown}{more}; pass rename={plan.renames!r}")
    shapes = [one.path for one in plan.problems if one.action == "shape" and plan.policy(one.path) == "error"]
    if shapes:
        wanted = dict.fromkeys(shapes, "skip") if len(shapes) <= _NAMED else "skip"
        hints.append(f"where shapes differ, pass shapes={wanted!r} to leave the target as it is, or another policy")
    if not isinstance(obj, dict) and isinstance(state, dict) and any(map(_is_container, state.values())):
        path, entry = next(iter(locate(obj, state).items()), ("", None))
        if path and not _try(obj, entry).problems:
            keys = "".join(f"[{key!r}]" for key in path.split("."))
            hints.append(f"the entry {path!r} of the state fits, restore from load(path){keys}")
    return tuple(filter(None, [*hints, suggest_options(plan.problems)]))


def locate(target: Any, state: Any, rename: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Path → entry of those in a state that fit an object best, by how many of its entries each has.

    Of a module only models are tried, if there are any. None is found if the object is an optimizer and no entry could
    be one's. `rename` has rules for paths below the entry.

    >>> import torch
    >>> [*locate(torch.nn.Linear(2, 1), {"epoch": 3, "net": {"weight": torch.ones(1, 2), "bias": torch.ones(1)}})]
    ['net']
    """
    wanted = hasattr(target, "param_groups")
    places = find_models(state) if is_module(target) else {}
    places = places or {path: node for path, node in _places(state, "") if node and _has_groups(node) is wanted}
    if len(places) < 2:
        return places
    fitting = {path: _count_fitting(target, node, rename or {}) for path, node in places.items()}
    return {path: places[path] for path, fits in fitting.items() if fits == max(fitting.values())}


def _places(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        yield path, state
    if path.count(".") < _DEEP - 1 and not _has_groups(state):
        for key, child in state.items() if isinstance(state, dict) else enumerate(state):
            if _is_container(child):
                yield from _places(child, join(path, key))


def _has_groups(entry: Any) -> bool:
    return isinstance(entry, dict) and "state" in entry and "param_groups" in entry


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)


def _count_fitting(target: Any, state: Any, rename: Mapping[str, str]) -> int:
    plan = _try(target, state, rename)
    good = sum(entry.action in RESTORED for entry in plan.entries)
    return good - sum(problem.action not in ("missing", "shape", "dtype") for problem in plan.problems)


def _try(target: Any, state: Any, rename: Mapping[str, str] | None = None) -> Plan:
    plan = Plan(find, Options(cast=("*",), rename=rename or {}))
    plan.tree(target, state)
    return plan
