"""What differs between two checkpoints, as a page needs it."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

from statedict.errors import PatternError
from statedict.ops.diff.differ import compare_trees as differ
from statedict.render.diff_text import summary
from statedict.reports.diff import ADDED, REMOVED, Diff
from statedict.view.source import Opened, Patterns, number, text

_VALUES = 2_000


def compare(one: Opened, other: Opened, pick: Patterns, executor: Executor | None) -> Diff:
    """How they differ."""
    names = (one.name, other.name)
    if pick.globs is None:
        return differ(one.state, other.state, names, executor=executor)
    try:
        return differ(one.state, other.state, names, pick.globs, executor=executor)
    except PatternError:  # a pattern of an optimizer's own numbers, which the comparison has given names
        return differ(one.state, other.state, names, executor=executor)


def changes(diff: Diff, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What became of each row: by the number of a row of `after`, and rows of what was removed."""
    ours, theirs = _rows(before), _rows(after)
    rows: dict[int, Any] = {}
    gone: list[Any] = []
    for tensor in diff.tensors:
        at = theirs.get(tensor.after or "")
        was = ours.get(tensor.before or "")
        found = tensor.measures
        record = {
            "kind": tensor.kind,
            "before": None if tensor.before == tensor.after else tensor.before,
            "was": was,
            "dtypes": None if tensor.dtypes[0] == tensor.dtypes[1] else tensor.dtypes,
            "shapes": None if tensor.shapes[0] == tensor.shapes[1] else tensor.shapes,
            "equal": tensor.equal,
            "same_as": tensor.same_as,
        }
        if found is not None:
            record |= {name: number(getattr(found, name)) for name in ("relative", "max_abs", "cosine", "share")}
            if found.nonfinite:  # what became NaN, or was, changed most
                record["relative"] = number(math.inf)
        record = {key: value for key, value in record.items() if value is not None}
        if tensor.kind == REMOVED and was is not None:
            gone.append(record)
        elif at is not None:
            rows[at] = record
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
        "removed": gone,
        "values": values,
        "more_values": max(len(diff.values) - _VALUES, 0),
        "equal_values": diff.equal_values,
        "moved": [[str(rule), rule.count] for rule in diff.moved],
        "notes": list(diff.notes),
        "before": {name: before[name] for name in ("tensors", "dtypes", "roles", "series")},
    }


def _rows(table: dict[str, Any]) -> dict[str, int]:
    """The number of the row of each path, by its own and by the one that is shown."""
    rows = {row[0]: at for at, row in enumerate(table["tensors"])}
    return rows | {row[1]: at for at, row in enumerate(table["tensors"]) if row[1] is not None}
