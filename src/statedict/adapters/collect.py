"""Whole trees: collect what is live, copy it, put it back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from statedict.adapters import Capture, join, leaf, objects, to_framework, too_deep
from statedict.adapters.explain import findings, remedy
from statedict.adapters.locate import fits, locate
from statedict.adapters.plan import Options, Plan
from statedict.collector import Paused
from statedict.errors import RestoreError, UnsupportedError
from statedict.reports.restore import RestoreReport
from statedict.tensor.arrays import is_numpy, is_torch
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import copy_tensors as tensors_copied
from statedict.tensor.segments import numpy_arrays, torch_tensors
from statedict.tree.state_dict import StateDict, transform
from statedict.tree.walk import MAX_DEPTH, walk


def collect(tree: Any) -> Any:
    """The tree with every live object replaced by its state; arrays are still the live ones."""
    return Capture(names=parameters(tree)[0]).value(tree, "")


def parameters(tree: Any) -> tuple[dict[int, str], dict[int, str]]:
    """The id of each live parameter in the tree → its name, and → the path of the module that it is in.

    Names have the path of their module before them where there are several modules.

    Raises:
        TreeError: the tree is nested deeper than 200.
    """
    modules = module_paths(tree)
    names: dict[int, str] = {}
    homes: dict[int, str] = {}
    for path, module in modules:
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), join(path, name) if len(modules) > 1 else name)
            homes.setdefault(id(parameter), path)
    return names, homes


def module_paths(tree: Any) -> list[tuple[str, Any]]:
    """The live modules in the tree and where they stand.

    Raises:
        TreeError: the tree is nested deeper than 200.
    """
    if sys.modules.get("torch") is None:
        return []
    from statedict.adapters import torch_module

    return list(_modules(tree, "", torch_module.accepts))


def _modules(tree: Any, path: str, accepts: Any, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    if accepts(tree):
        yield path, tree
    elif id(tree) not in above and (own := children(tree)) is not None:
        if len(above) > MAX_DEPTH:
            raise too_deep(path)
        above |= {id(tree)}
        for key, child in own.items():
            if not is_array(child):
                yield from _modules(child, join(path, key), accepts, above)


def children(tree: Any) -> dict[Any, Any] | None:
    """What is in a container or a plain object; None for what is neither."""
    if isinstance(tree, dict):
        return tree
    if type(tree) in (list, tuple):
        return dict(enumerate(tree))
    return objects.attributes(tree) if leaf(tree) is ... and objects.accepts(tree) else None


def lazily(tree: Any) -> Any:
    """The tree with every array as a LazyTensor over its memory.

    Raises:
        UnsupportedError: an array without plain memory; the message names its path.
    """
    try:
        return transform(tree, lambda leaf: as_lazy(leaf) if is_array(leaf) else leaf)
    except UnsupportedError as error:
        raise locate_error(tree, error) from None


def snapshot(tree: Any) -> Any:
    """The tree with a copy of every live array, of its kind; arrays that share memory share it again.

    Raises:
        UnsupportedError: an array without plain memory; the message names its path.
    """
    copies: dict[int, Any] = {}
    leaves = {id(leaf): leaf for _, leaf in walk(tree)}
    for belongs, copy in ((is_torch, torch_tensors), (is_numpy, numpy_arrays)):
        live = [leaf for leaf in leaves.values() if belongs(leaf)]
        if live:
            try:
                arrays = [as_lazy(leaf) for leaf in live]
                made = copy(arrays, True)
            except UnsupportedError as error:
                raise locate_error(tree, error) from None
            for leaf, new, lazy in zip(live, made, arrays, strict=True):
                copies[id(leaf)] = new
                if lazy.attributes:
                    vars(new).update(to_framework(data_of(lazy.attributes)))
    return transform(tree, lambda leaf: copies.get(id(leaf), leaf))


def copy_arrays(tree: Any, room: Any) -> Any:
    """The tree with every array as a LazyTensor over a copy of its memory; what lies in files stays there.

    Args:
        tree: of live arrays and plain values.
        room: makes the buffers, see `segments.own`.

    Raises:
        UnsupportedError: an array without plain memory; the message names its path.
    """
    whole = lazily(tree)
    found = {id(leaf): leaf for _, leaf in walk(whole) if isinstance(leaf, LazyTensor)}
    live = {key: leaf for key, leaf in found.items() if leaf.storage.source.in_memory}
    copies = dict(zip(live, tensors_copied([*live.values()], room), strict=True))
    return transform(whole, lambda leaf: copies.get(id(leaf), leaf))


def locate_error(tree: Any, error: UnsupportedError) -> UnsupportedError:
    """The error with the path of the first array that raises one."""
    for path, entry in walk(tree):
        try:
            _ = is_array(entry) and as_lazy(entry)
        except UnsupportedError as cause:
            return UnsupportedError(f"{path or 'the root'}: {cause}")
    return error


def put_back(obj: Any, state: Any, options: Options, dry_run: bool) -> RestoreReport:
    """Plan for the whole tree, then do it; see `statedict.restore`."""
    if isinstance(state, StateDict) and list(state) == [""] and not (isinstance(obj, dict) and "" in obj):
        state = state[""]
    plan = new_plan(obj, options)
    with Paused():
        plan.tree(obj, state)
    written = not dry_run and not plan.problems
    hints = _hints(plan, obj, state) if plan.problems else ()
    report = RestoreReport(tuple(plan.entries), tuple(plan.problems), written, tuple(plan.notes), hints)
    if dry_run:
        return report
    if plan.problems:
        raise RestoreError(
            "\n".join(
                [
                    "the state does not fit and nothing was written:",
                    *findings(report),
                    "dry_run=True gives the whole report",
                ]
            )
        )
    for path, action in plan.actions:
        try:
            action()
        except Exception as error:
            raise RestoreError(
                f"{path or 'the root'}: could not be written: {type(error).__name__}: {error}\n"
                "the entries before it were written, it may be in part, those after it were not"
            ) from error
    return report


def new_plan(obj: Any, options: Options) -> Plan:
    """A plan for a tree, before anything is in it."""
    return Plan(options, *parameters(obj))


def _hints(plan: Plan, obj: Any, state: Any) -> tuple[str, ...]:
    """What the caller can do about the problems."""
    hints = [*plan.hints]
    if plan.renames:
        count = sum(plan.renamed_alike(entry.path) for entry in plan.problems if entry.action == "unexpected")
        shown = ", ".join(f"{old} → {new}" for old, new in [*plan.renames.items()][:2])
        more = ", …" if len(plan.renames) > 2 else ""
        hints.append(f"{count:,} keys look renamed: {shown}{more}; pass rename={plan.renames!r}")
    nested = _nested_hint(obj, state)
    hints += [nested] if nested else []
    allowing = remedy(plan.problems)
    return tuple(filter(None, [*hints, allowing]))


def _nested_hint(obj: Any, state: Any) -> str:
    """Where in the state the target's own entries seem to be."""
    if isinstance(obj, dict) or not isinstance(state, dict):
        return ""
    if not any(isinstance(child, dict | list | tuple) for child in state.values()):
        return ""
    path, entry = locate(obj, state) or ("", None)
    if not path or not fits(obj, entry):
        return ""
    return f"the entry {path!r} of the state fits, restore from load(path)" + "".join(
        f"[{k!r}]" for k in path.split(".")
    )
