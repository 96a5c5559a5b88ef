"""A diff as lines for people: totals first, then a screenful of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from statedict.render.text import limit_lines, shape, table
from statedict.reports import diff as kinds
from statedict.reports.diff import Diff, LowRank, Measures, TensorDiff, ValueDiff
from statedict.tree.walk import sort_by_module
from statedict.values import count, same_value, shorten

LIMIT = 20
_LONGEST = 60
_RANKS = ("", "rows×columns", "effective rank", "top 1", "top 8", "adapter", "method")
_NO_ADAPTER = {kinds.ROUNDING: "rounding?", kinds.SMALL: "small"}


def lines(diff: Diff, limit: int | None = LIMIT) -> Iterator[str]:
    """The report, with at most `limit` lines of a kind."""
    yield summary(diff)
    yield from (f"moved {rule}: {count(rule.count, 'tensor')}" for rule in diff.moved)
    for kind, tensors in tensor_groups(diff):
        yield from _group(kind, [tensor(one) for one in tensors], limit)
    for kind, values in value_groups(diff):
        yield from _group(kind, [value(one) for one in values], limit)
    if diff.deep:
        yield from _ranks(diff, limit)
    yield from (f"note: {note}" for note in diff.notes)
    if diff.unread:
        yield f"not compared: {', '.join(diff.unread)}"


def tensor_groups(diff: Diff) -> Iterator[tuple[str, Sequence[TensorDiff]]]:
    """The tensors of each kind; measured by their changes, others as a tree lists them."""
    for kind in (kinds.CHANGED, kinds.CLOSE, kinds.RETYPED, kinds.RESHAPED, kinds.RENAMED, kinds.ADDED, kinds.REMOVED):
        part = diff.filter(kind)
        is_measured = kind in (kinds.CHANGED, kinds.CLOSE)
        yield kind, part.sort().tensors if is_measured else sort_by_module(part.tensors, attrgetter("path"))


def value_groups(diff: Diff) -> Iterator[tuple[str, list[ValueDiff]]]:
    """The values of each kind."""
    for kind in (kinds.CHANGED, kinds.ADDED, kinds.REMOVED):
        yield f"values {kind}", [value for value in diff.values if value.kind == kind]


def summary(diff: Diff) -> str:
    """One line: how many there are of each kind."""
    parts: list[str] = []
    counts = {kind: sum(tensor.kind == kind for tensor in diff.tensors) for kind in kinds.KINDS_OF_CHANGE}
    for kind, number in counts.items():
        if number:
            word = "alike" if kind == kinds.IDENTICAL and diff.names_only else kind
            parts.append(f"{number:,} {word}" if parts else f"{count(number, 'tensor')} {word}")
    for kind, values in value_groups(diff):
        if values:
            parts.append(f"{count(len(values), 'value')} {kind.removeprefix('values ')}")
    text = ", ".join(parts) or (
        f"{count(diff.equal_values, 'value')} identical" if diff.equal_values else "nothing in either"
    )
    if diff.moved:
        text += ", names moved"
    if diff.same:
        text = f"same{' as far as compared' if diff.unread else ''}: {text}"
    return text + (" (names, dtypes, shapes and values only; no tensor was read)" if diff.names_only else "")


def _group(title: str, rows: list[tuple[str, str]], limit: int | None) -> Iterator[str]:
    if rows:
        yield title
        elide = (0,) if title in (kinds.CHANGED, kinds.CLOSE) else (0, 1)
        yield from limit_lines(table(rows[:limit], elide=elide, indent=2), len(rows), limit, 2)


def tensor(tensor: TensorDiff) -> tuple[str, str]:
    """Its name and how it changed."""
    if tensor.kind == kinds.RENAMED:
        return str(tensor.before), f"→ {tensor.after}" + "  (same bytes, proves little)" * tensor.weak
    name = tensor.path
    if tensor.before is not None and tensor.after is not None and tensor.before != tensor.after:
        name = f"{tensor.before} → {tensor.after}"
    if tensor.kind in (kinds.ADDED, kinds.REMOVED):
        side = 0 if tensor.after is None else 1
        text = f"{tensor.dtypes[side]}  {shape(tensor.shapes[side])}"
        return name, text + (f"  same bytes as {tensor.same_as}" if tensor.same_as else "")
    parts = []
    if tensor.dtypes[0] != tensor.dtypes[1]:
        parts.append(f"{tensor.dtypes[0]} → {tensor.dtypes[1]}")
    if tensor.shapes[0] != tensor.shapes[1]:
        parts.append(f"{shape(tensor.shapes[0])} → {shape(tensor.shapes[1])}")
    if tensor.equal:
        parts.append("equal values" if tensor.kind == kinds.RETYPED else "equal elements")
    if tensor.measures is not None:
        parts.append(measures(tensor.measures))
    elif tensor.kind == kinds.CHANGED:
        parts.append("other bytes")
    return name, "  ".join(parts)


def measures(found: Measures, cosine: bool = True) -> str:
    """The distance of two tensors, in one line."""
    apart = "rel –  max –" if found.beyond else f"rel {found.relative:.2e}  max {found.max_abs:.3g}"
    angle = f"  cos {found.cosine:.6f}" if cosine and found.cosine is not None else ""
    share = f"{found.share:.1%}" if found.share >= 0.001 else "< 0.1%"
    text = f"{apart}{angle}  {share} of {found.elements:,}"
    return text + (f"  {found.nonfinite:,} not finite" if found.nonfinite else "")


def value(value: ValueDiff) -> tuple[str, str]:
    """Its path and how it changed."""
    if value.kind != kinds.CHANGED:
        return value.path, _short(value.before if value.kind == kinds.REMOVED else value.after)
    one, other = value.before, value.after
    if type(one) is type(other) and type(one) in (list, tuple) and max(len(repr(one)), len(repr(other))) > _LONGEST:
        return value.path, _differing_items(one, other)
    if type(one) is not type(other):
        return value.path, f"{_short(one)} ({type(one).__name__}) → {_short(other)} ({type(other).__name__})"
    return value.path, f"{_short(one)} → {_short(other)}"


def _differing_items(one: Any, other: Any) -> str:
    differ = [at for at, (x, y) in enumerate(zip(one, other, strict=False)) if not same_value(x, y)]
    sizes = f"{len(one):,} items" if len(one) == len(other) else f"{len(one):,} → {len(other):,} items"
    if not differ:
        return sizes
    at = differ[0]
    if type(one[at]) is type(other[at]) and type(one[at]) in (list, tuple) and len(repr(one[at])) > _LONGEST:
        return f"{sizes}, {len(differ):,} differ, the first at {at:,}, of {_differing_items(one[at], other[at])}"
    return f"{sizes}, {len(differ):,} differ, the first at {at:,}: {_short(one[at])} → {_short(other[at])}"


def _short(value: Any) -> str:
    return shorten(repr(value), _LONGEST)


def _ranks(diff: Diff, limit: int | None) -> Iterator[str]:
    """The ranks of changes: full ones first, then adapters from the largest rank down."""

    def order(item: tuple[str, LowRank]) -> tuple[int, int, float]:
        change = item[1]
        return kinds.VERDICTS.index(change.verdict), -(change.adapter or 0), -change.effective_rank

    changes = sorted(((one.path, one.change) for one in diff.tensors if one.change is not None), key=order)
    if not changes:
        yield "no changed matrix"
        return
    yield rank_summary([change for _, change in changes])
    yield "rank of the change"
    rows = [_RANKS, *((path, *_rank_cells(change)) for path, change in changes[:limit])]
    yield from limit_lines(table(rows, range(1, 6), optional=(6, 3, 4), indent=2), len(changes), limit, 2)


def rank_summary(changes: list[LowRank]) -> str:
    """One line: how many changed matrices an adapter explains, and how the others changed."""
    ranks = [change.adapter for change in changes if change.adapter is not None]
    matrices = count(len(changes), "changed matrix", "changed matrices")
    verb = "is" if len(ranks) == 1 else "are"
    if len(set(ranks)) > 1:
        adapter = f"adapters of rank {min(ranks)} to {max(ranks)}"
    else:
        adapter = f"an adapter of rank {ranks[0]}" if ranks else "a low-rank adapter"
    parts = [f"{len(ranks):,} of {matrices} {verb} explained by {adapter}"]
    full = [change for change in changes if change.verdict == kinds.FULL]
    bounded = sum(change.bounded for change in full)
    for number, text in (
        (len(full) - bounded, "changed fully"),
        (bounded, "changed in more directions than were looked for"),
        (sum(change.verdict == kinds.ROUNDING for change in changes), "changed hardly more than rounding does"),
        (sum(change.verdict == kinds.SMALL for change in changes), "too small to tell"),
    ):
        if number:
            parts.append(f"{number:,} {text}")
    return "; ".join(parts)


def _rank_cells(change: LowRank) -> tuple[str, ...]:
    bound = "≤ " if change.bounded else ""
    none = f"> {change.rank}" if change.bounded else "—"
    adapter = str(change.adapter) if change.adapter is not None else _NO_ADAPTER.get(change.verdict, none)
    method = change.method + (f"  {change.nonfinite:,} not finite" if change.nonfinite else "")
    top = [f"{change.share(directions):.1%}" for directions in (1, 8)]
    return shape((change.rows, change.columns)), f"{bound}{change.effective_rank:.1f}", *top, adapter, method
