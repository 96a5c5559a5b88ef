"""A diff as lines for people: what there is of each kind first, then a screenful of each."""

from __future__ import annotations

from typing import Any

from statedict.reports import diff as kinds
from statedict.reports.diff import Diff, TensorDiff, ValueDiff

LIMIT = 20
_LONGEST = 60
_SAID = {kinds.CHANGED: "changed", kinds.CLOSE: "close"}


def lines(diff: Diff, limit: int | None = LIMIT) -> list[str]:
    """The report.

    Args:
        diff: what was found.
        limit: how many lines of a kind there may be; None for all.
    """
    found = [summary(diff), *(f"moved {rule}: {_number(rule.count, 'tensor')}" for rule in diff.moved)]
    for kind in (kinds.CHANGED, kinds.CLOSE, kinds.RETYPED, kinds.RESHAPED, kinds.RENAMED, kinds.ADDED, kinds.REMOVED):
        tensors = (
            diff.filter(kind).sort().tensors if kind in (kinds.CHANGED, kinds.CLOSE) else diff.filter(kind).tensors
        )
        found += _group(kind, [tensor(one) for one in tensors], limit)
    for kind in (kinds.CHANGED, kinds.ADDED, kinds.REMOVED):
        found += _group(f"values {kind}", [value(one) for one in diff.values if one.kind == kind], limit)
    if diff.deep:
        from statedict.render import low_rank_text

        found += low_rank_text.lines(diff, limit)
    return found + [f"note: {note}" for note in diff.notes]


def summary(diff: Diff) -> str:
    """One line: how many there are of each kind."""
    parts: list[str] = []
    counts = {kind: sum(tensor.kind == kind for tensor in diff.tensors) for kind in kinds.KINDS_OF_CHANGE}
    for kind, count in counts.items():
        if count:
            word = "alike" if kind == kinds.IDENTICAL and diff.names_only else kind
            parts.append(f"{count:,} {word}" if parts else f"{_number(count, 'tensor')} {word}")
    for kind in (kinds.CHANGED, kinds.ADDED, kinds.REMOVED):
        count = sum(value.kind == kind for value in diff.values)
        if count:
            parts.append(f"{_number(count, 'value')} {kind}")
    text = ", ".join(parts) or (
        f"{_number(diff.equal_values, 'value')} identical" if diff.equal_values else "nothing in either"
    )
    if diff.moved:
        text += ", names moved"
    if diff.same:
        text = f"same: {text}"
    return text + (" (names, dtypes, shapes and values only; no tensor was read)" if diff.names_only else "")


def _group(title: str, rows: list[tuple[str, ...]], limit: int | None) -> list[str]:
    if not rows:
        return []
    shown = rows if limit is None else rows[:limit]
    width = max(len(row[0]) for row in shown)
    found = [title, *(f"  {row[0].ljust(width)}  {row[1]}".rstrip() for row in shown)]
    if len(shown) < len(rows):
        found.append(f"  … and {len(rows) - len(shown):,} more")
    return found


def tensor(tensor: TensorDiff) -> tuple[str, str]:
    """Its name, and what became of it."""
    if tensor.kind == kinds.RENAMED:
        return str(tensor.before), f"→ {tensor.after}"
    name = tensor.path
    if tensor.before is not None and tensor.after is not None and tensor.before != tensor.after:
        name = f"{tensor.before} → {tensor.after}"
    if tensor.kind in (kinds.ADDED, kinds.REMOVED):
        side = 0 if tensor.after is None else 1
        text = f"{tensor.dtypes[side]}  {_shape(tensor.shapes[side])}"
        return name, text + (f"  same bytes as {tensor.same_as}" if tensor.same_as else "")
    parts = []
    if tensor.dtypes[0] != tensor.dtypes[1]:
        parts.append(f"{tensor.dtypes[0]} → {tensor.dtypes[1]}")
    if tensor.shapes[0] != tensor.shapes[1]:
        parts.append(f"{_shape(tensor.shapes[0])} → {_shape(tensor.shapes[1])}")
    if tensor.equal:
        parts.append("equal values" if tensor.kind == kinds.RETYPED else "equal elements")
    if tensor.measures is not None:
        parts.append(_measured(tensor))
    elif tensor.kind == kinds.CHANGED:
        parts.append("other bytes")
    return name, "  ".join(parts)


def _measured(tensor: TensorDiff) -> str:
    found = tensor.measures
    assert found is not None
    cosine = "" if found.cosine is None else f"  cos {found.cosine:.6f}"
    apart = "rel –  max –" if found.beyond else f"rel {found.relative:.2e}  max {found.max_abs:.3g}"
    text = f"{apart}{cosine}  {_percent(found.share)} of {found.elements:,}"
    return text + (f"  {found.nonfinite:,} not finite" if found.nonfinite else "")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def value(value: ValueDiff) -> tuple[str, str]:
    """Its path, and what became of it."""
    if value.kind != kinds.CHANGED:
        return value.path, _short(value.before if value.kind == kinds.REMOVED else value.after)
    one, other = value.before, value.after
    if type(one) is type(other) and type(one) in (list, tuple) and max(len(repr(one)), len(repr(other))) > _LONGEST:
        return value.path, _listed(one, other)
    if type(one) is not type(other):
        return value.path, f"{_short(one)} ({type(one).__name__}) → {_short(other)} ({type(other).__name__})"
    return value.path, f"{_short(one)} → {_short(other)}"


def _listed(one: Any, other: Any) -> str:
    from statedict.ops.diff.differ import same_value

    differ = [at for at, (x, y) in enumerate(zip(one, other, strict=False)) if not same_value(x, y)]
    sizes = f"{len(one):,} items" if len(one) == len(other) else f"{len(one):,} → {len(other):,} items"
    if not differ:
        return sizes
    at = differ[0]
    if type(one[at]) is type(other[at]) and type(one[at]) in (list, tuple) and len(repr(one[at])) > _LONGEST:
        return f"{sizes}, {len(differ):,} differ, the first at {at:,}, of {_listed(one[at], other[at])}"
    return f"{sizes}, {len(differ):,} differ, the first at {at:,}: {_short(one[at])} → {_short(other[at])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 15]} … {text[-12:]}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape or ())) or "scalar"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
