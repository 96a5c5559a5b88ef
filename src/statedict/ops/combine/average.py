"""The average of states: their models, name by name.

    sources ─▶ the models in each ─▶ tensors of one name ─▶ sum of w·x in float32, divided by the sum of w, rounded once

Optimizers, schedulers, states of generators, and values that differ stay out. An average of integers means nothing, so
they have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from statedict.errors import CombineError
from statedict.ops.alter.outline import drop_hashes, rebuild
from statedict.ops.alter.tensors import NUMBERS
from statedict.ops.combine.align import Aligned
from statedict.ops.combine.elements import WORK, has_mean, weighted_mean
from statedict.ops.diff.compare import Rule, compare
from statedict.reports.combine import CombineReport
from statedict.tensor.assembled import map_elements
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import count_bytes
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import matches, no_match_error, visit, walk_tensors
from statedict.values import same_value

_STATISTICS = ("running_mean", "running_var")


def read_weights(weights: Any, ema: Any, number: int) -> list[float]:
    """The weight of each source, or those of an exponential moving average over them, oldest first.

    Raises:
        CombineError: they are not `number` finite numbers with a sum other than 0, or `ema` is not a decay.

    >>> read_weights(None, 0.5, 3)
    [0.25, 0.25, 0.5]
    """
    if ema is not None:
        if weights is not None or type(ema) not in (int, float) or not 0 <= ema < 1:
            wanted = "a decay below 1, such as 0.99, and no weights beside it"
            raise CombineError(f"ema: expected {wanted}, got {ema!r:.40} and weights={weights!r:.40}")
        return [float(ema) ** (number - 1), *((1 - ema) * float(ema) ** power for power in reversed(range(number - 1)))]
    given = [1.0] * number if weights is None else list(weights) if isinstance(weights, list | tuple) else [weights]
    wrong = [one for one in given if not is_number(one)]
    if wrong or len(given) != number:
        got = f"{wrong[0]!r:.40}" if wrong else f"{len(given):,}"
        raise CombineError(f"weights: expected {number:,} finite numbers, one for each source, got {got}")
    most = max(abs(one) for one in given) or 1.0
    scale = 1.0 if 1e-9 < most < 1e9 else most  # products stay within float32
    if not math.fsum(one / scale for one in given):
        raise CombineError("weights: their sum is 0, and an average is divided by it")
    return [one / scale for one in given]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, as a float can hold it."""
    return isinstance(value, int | float) and value is not True and value is not False and abs(value) < 1e308


class Made(NamedTuple):
    """An entry of the result, and the rule that made it, if it is not the mean."""

    leaf: Any
    rule: str = ""


Mean = Callable[[str, list[LazyTensor]], LazyTensor]
"""Path and tensors of all sources → what they give together."""


def combine(
    aligned: Aligned, mean: Mean, integers: Mapping[str, str], method: str, shares: Sequence[float | None]
) -> tuple[StateDict, CombineReport]:
    """One state of several, and how it is made.

    Args:
        aligned: the sources.
        mean: combines the tensors of one name, which are of float or complex dtypes.
        integers: pattern → rule, for tensors of other dtypes that differ.
        method: its name, for the report.
        shares: what the report says of each source.

    Raises:
        CombineError: entries of one name differ in shape or kind, or cannot be combined.
    """
    for rule in integers.values():
        if rule not in RULES:
            raise CombineError(f"integers: expected one of {', '.join(RULES)}, got {rule!r:.40}")
    for glob in integers:
        if not any(matches(path, (glob,)) for path in aligned.values):
            raise no_match_error(glob, len(aligned.values), "entry")
    equal = _find_equal(aligned)
    known: dict[tuple[object, ...], Made] = {}
    made: dict[str, Made] = {}
    for path, leaves in aligned.values.items():
        tensors = [as_lazy(leaf) for leaf in leaves if is_array(leaf)]
        key = tuple(tensor.region for tensor in tensors) or (path,)
        if path in aligned.settings:
            known[key] = Made(leaves[0], "" if not tensors and same_values(leaves) else "first")
        elif key not in known and not tensors:
            known[key] = _combine_values(leaves, path in aligned.counters)
        elif key not in known and path in equal:
            known[key] = Made(tensors[0], "equal")
        elif key not in known:
            _check(aligned.names, path, leaves)
            rule = _choose_rule(path, tensors, integers, path in aligned.counters)
            known[key] = Made(RULES[rule](tensors) if rule else mean(path, tensors), rule)
        made[path] = known[key]
    results = {path: one.leaf for path, one in made.items() if isinstance(one.leaf, LazyTensor)}
    statistics = sum(path.rpartition(".")[2] in _STATISTICS for path in results)
    note = (
        f"{statistics:,} running means and variances of batch normalization are combined too, and are not those of the "
        "combined weights; recompute them with torch.optim.swa_utils.update_bn(loader, model)"
    )
    return _build(aligned, made), CombineReport(
        method=method,
        sources=tuple(zip(aligned.names, shares, strict=True)),
        tensors=len(results),
        nbytes=count_bytes([*results.values()]),
        rules=tuple((path, one.rule) for path, one in made.items() if one.rule),
        left_out=tuple(aligned.left_out.items()),
        notes=(note,) * bool(statistics),
        written=False,
    )


def average(
    aligned: Aligned, weights: list[float], integers: Mapping[str, str], precision: str
) -> tuple[StateDict, CombineReport]:
    """The average of states, and how it is made; see `statedict.average`.

    Raises:
        CombineError: as `combine`.
    """
    if precision not in WORK:
        raise CombineError(f"precision: expected one of {', '.join(WORK)}, got {precision!r:.40}")
    total = math.fsum(weights)

    def mean(path: str, tensors: list[LazyTensor]) -> LazyTensor:
        return weighted_mean(tensors, weights, precision, keep=True)

    return combine(aligned, mean, integers, "average", [weight / total for weight in weights])


def _build(aligned: Aligned, made: Mapping[str, Made]) -> StateDict:
    """The first source's tree with other leaves, without what is left out."""
    first = aligned.first
    changed = copy(first)
    changed.leaves = {path: made[path].leaf if path in made else leaf for path, leaf in first.leaves.items()}
    changed.optimizers = {
        path: node if path in aligned.left_out else visit(node, lambda at, _: made[at].leaf, _fill, path)
        for path, node in first.optimizers.items()
    }
    dropped = [path for path in first.optimizers if path in aligned.left_out]
    tree: StateDict = rebuild(changed, {path: path for path in aligned.kept}, dropped).tree
    drop_hashes(tree)
    return tree


def _fill(node: Any, below: Any) -> Any:
    return like(node, StateDict(below)) if isinstance(node, dict) else type(node)(below)


def _find_equal(aligned: Aligned) -> set[str]:
    """The paths of tensors without an average whose bytes are the same in all sources."""
    pairs: list[tuple[str, LazyTensor, LazyTensor]] = []
    alike = set()
    for path, leaves in aligned.values.items():
        tensors = [as_lazy(leaf) for leaf in leaves if is_array(leaf)]
        kinds = {(tensor.dtype, tensor.shape) for tensor in tensors}
        if len(tensors) == len(leaves) and len(kinds) == 1 and not has_mean(tensors[0].dtype):
            alike.add(path)
            pairs += ((path, tensors[0], other) for other in tensors[1:])
    tallies = compare([(one, other) for _, one, other in pairs], Rule())
    differ = {path for (path, *_), tally in zip(pairs, tallies, strict=True) if tally is not None}
    return alike - differ


def _combine_values(leaves: list[Any], counts: bool) -> Made:
    if same_values(leaves):
        return Made(leaves[0])
    counts = counts and all(type(leaf) in (int, float) for leaf in leaves)
    return Made(max(leaves), "max") if counts else Made(leaves[0], "first")


def same_values(leaves: list[Any]) -> bool:
    """Whether plain values are the same; those with tensors in them are not compared."""
    if any(any(walk_tensors(leaf)) for leaf in leaves):
        return False
    return all(same_value(leaves[0], leaf) for leaf in leaves[1:])


def _check(names: tuple[str, ...], path: str, leaves: list[Any]) -> None:
    """Check that the entries of one name are tensors of one shape."""
    for name, leaf in zip(names, leaves, strict=True):
        if not is_array(leaf):
            raise CombineError(f"{path}: is a tensor in some sources, and a {type(leaf).__name__} in {name}")
        if tuple(leaf.shape) != tuple(leaves[0].shape):
            shapes = f"the shape {tuple(leaf.shape)} in {name}, {tuple(leaves[0].shape)} in {names[0]}"
            raise CombineError(f"{path}: has {shapes}; make them alike by edit first")


def _choose_rule(path: str, tensors: list[LazyTensor], integers: Mapping[str, str], counts: bool) -> str:
    """What is done with tensors that have no average; "" if they have one."""
    if not counts and all(has_mean(tensor.dtype) for tensor in tensors):
        return ""
    kinds = dict.fromkeys(tensor.dtype for tensor in tensors)
    rule = next((rule for glob, rule in integers.items() if matches(path, (glob,))), "max" * counts)
    whole = len(kinds) == 1 and (rule in ("first", "last") or tensors[0].dtype.kind in NUMBERS)
    if len(kinds) > 1:
        raise CombineError(
            f"{path}: is {' and '.join(map(str, kinds))} in the sources; cast it to one of them by edit first"
        )
    if not rule or not whole:
        what = f"{next(iter(kinds))} has no average, and the sources differ"
        raise CombineError(f"{path}: {what}; pass integers={{{path!r}: 'first'}}, or one of {', '.join(RULES)}")
    return rule


def _extreme(name: str, tensors: list[LazyTensor]) -> LazyTensor:
    return map_elements(tensors[0], tensors[0].dtype, partial(_reduce, name), *tensors[1:])


def _reduce(name: str, *values: Any, out: Any) -> None:
    import numpy

    getattr(numpy, name).reduce(values, out=out)


RULES: dict[str, Callable[[list[LazyTensor]], LazyTensor]] = {
    "max": partial(_extreme, "maximum"),
    "min": partial(_extreme, "minimum"),
    "first": itemgetter(0),
    "last": itemgetter(-1),
}
