"""What differs between two checkpoints, and between the checkpoints of a run, as a page needs it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from statedict.errors import PatternError, UnknownFormatError
from statedict.formats.places import find_entry
from statedict.io.location import location
from statedict.io.urls import to_name
from statedict.ops.diff.differ import compare_trees
from statedict.render.diff_text import summary
from statedict.reports.diff import ADDED, REMOVED, Diff, TensorDiff
from statedict.reports.stats import StatsReport
from statedict.runs.look.foreign import metrics_of, step_of
from statedict.runs.look.listing import listing
from statedict.view.source import Opened, Patterns, number, text

_VALUES = 2_000
_MODULES = 400
_FIRST = 3


def compare(one: Opened, other: Opened, pick: Patterns, executor: Executor | None) -> Diff:
    """Compare two checkpoints."""
    names = (one.name, other.name)
    if pick.globs is not None:
        with suppress(PatternError):  # it matches the numbers of an optimizer's parameters, which now have names
            return compare_trees(one.state, other.state, names, pick.globs, executor=executor)
    return compare_trees(one.state, other.state, names, executor=executor)


def changes(diff: Diff, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The change of each row, by the number of the row in `after`, and rows of removed tensors."""
    old, new = _rows(before), _rows(after)
    rows: dict[int, Any] = {}
    removed: list[Any] = []
    for tensor in diff.tensors:
        at, was = new.get(tensor.after or ""), old.get(tensor.before or "")
        if tensor.kind == REMOVED and was is not None:
            removed.append(_change(tensor, was))
        elif at is not None:
            rows[at] = _change(tensor, was)
    values = [
        [
            value.kind,
            text(value.path),
            None if value.kind == ADDED else text(value.before),
            None if value.kind == REMOVED else text(value.after),
        ]
        for value in diff.values[:_VALUES]
    ]
    return {
        "summary": summary(diff),
        "same": diff.same,
        "rows": rows,
        "removed": removed,
        "values": values,
        "more_values": max(len(diff.values) - _VALUES, 0),
        "equal_values": diff.equal_values,
        "moved": [[str(rule), rule.count] for rule in diff.moved],
        "notes": list(diff.notes),
        "before": {name: before[name] for name in ("tensors", "dtypes", "roles", "series")},
    }


def _change(tensor: TensorDiff, was: int | None) -> dict[str, Any]:
    record = {
        "kind": tensor.kind,
        "before": None if tensor.before == tensor.after else tensor.before,
        "was": was,
        "dtypes": None if tensor.dtypes[0] == tensor.dtypes[1] else tensor.dtypes,
        "shapes": None if tensor.shapes[0] == tensor.shapes[1] else tensor.shapes,
        "equal": tensor.equal,
        "same_as": tensor.same_as,
        "weak": tensor.weak or None,
    }
    if tensor.measures is not None:
        record |= {name: number(getattr(tensor.measures, name)) for name in ("relative", "max_abs", "cosine", "share")}
        if tensor.measures.nonfinite:  # a tensor with NaN, before or after, changed most
            record["relative"] = number(math.inf)
    return {key: value for key, value in record.items() if value is not None}


def _rows(table: dict[str, Any]) -> dict[str, int]:
    """The row number of each path, both the path in the file and the one on the page."""
    rows = {row[0]: at for at, row in enumerate(table["tensors"])}
    return rows | {row[1]: at for at, row in enumerate(table["tensors"]) if row[1] is not None}


class Step(NamedTuple):
    """A checkpoint of a run."""

    source: Any
    step: int | None = None
    metrics: Mapping[str, float] = MappingProxyType({})


def expand(sources: Sequence[Any]) -> list[Step]:
    """The sources, with the directory of a run replaced by its checkpoints, whoever wrote them.

    Three and more are sorted by step if all have one of their own.
    """
    found: list[Step] = []
    for source in sources:
        name = to_name(source) if isinstance(source, str | os.PathLike) else None
        found += [Step(source)] if name is None else _steps(name) or [_step_of(source, name)]
    numbers = {one.step for one in found}
    if len(found) < 3 or None in numbers or len(numbers) < len(found):
        return [one._replace(step=None) for one in found]
    return sorted(found, key=lambda one: one.step or 0)


def _steps(name: str) -> list[Step]:
    """The checkpoints of a run; none for a checkpoint."""
    if not location(name).is_folder():
        return []
    try:
        find_entry(name)
    except UnknownFormatError:
        return [Step(one.path, one.step, one.metrics) for one in listing(name) if one.usable and one.step is not None]
    return []


def _step_of(source: Any, name: str) -> Step:
    """A checkpoint with what `runs ls` would read from the name of its file, or of the nearest folder with a step."""
    *above, last = [part for part in name.split("/") if part]
    steps = (step_of(part) for part in (last, *reversed(above)))
    return Step(source, next((step for step in steps if step is not None), None), metrics_of(last))


def point(step: Step, at: int, one: Opened, found: StatsReport) -> dict[str, Any]:
    """One step on the page, and the norms of its modules."""
    inside = tuple(f"{optimizer.path}.state.".lstrip(".") for optimizer in one.summary.optimizers) or "\0"
    kinds = Counter(flag.kind for flag in found.flags)
    return {
        "step": at if step.step is None else step.step,
        "metrics": {text(name): number(value) for name, value in step.metrics.items()},
        "name": one.name,
        "size": one.size,
        "bytes": one.summary.total.nbytes,
        "tensors": len(found.tensors),
        "l2": number(found.total.l2),
        "nan": found.total.nan,
        "inf": found.total.inf,
        "flags": dict(sorted(kinds.items())),
        "bad": [one.at.get(flag.name, flag.name) for flag in found.flags if flag.kind in ("nan", "inf")][:_FIRST],
        "norms": {m.name: number(m.l2) for m in found.modules if not m.name.startswith(inside)},
    }


def history(points: Sequence[dict[str, Any]], numbered: bool) -> dict[str, Any]:
    """Bytes, flags, metrics and norms, step by step."""
    names = dict.fromkeys(name for one in points for name in one["norms"])
    kept = set(sorted(names, key=lambda name: name.count("."))[:_MODULES])
    modules = [name for name in names if name in kept]
    return {
        "steps": [{key: value for key, value in one.items() if key != "norms"} for one in points],
        "numbered": numbered,
        "modules": modules,
        "l2": [[one["norms"].get(name) for one in points] for name in modules],
    }
