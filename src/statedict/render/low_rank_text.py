"""What a fine-tune did, as lines for people: one that sums it up, then a matrix a line."""

from __future__ import annotations

from statedict.ops.diff.rank import FULL, LOW_RANK, ROUNDING, SMALL
from statedict.reports.diff import Diff, LowRank

_ORDER = (FULL, LOW_RANK, ROUNDING, SMALL)
_HEAD = ("rows×columns", "effective rank", "top 1", "top 8", "adapter", "method")
_SAID = {ROUNDING: "rounding?", SMALL: "small"}


def lines(diff: Diff, limit: int | None) -> list[str]:
    """The section on the ranks of changes: what is full first, then adapters from the largest rank down.

    Args:
        diff: what was found.
        limit: how many matrices there may be; None for all.
    """
    found = [(tensor.path, tensor.change) for tensor in diff.tensors if tensor.change is not None]
    if not found:
        return ["no changed matrix"]
    found.sort(key=lambda item: (_ORDER.index(item[1].verdict), -(item[1].adapter or 0), -item[1].effective_rank))
    shown = found if limit is None else found[:limit]
    rows = [("", *_HEAD), *((path, *_cells(change)) for path, change in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [summary([change for _, change in found]), "rank of the change"]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        text.append(f"  {'  '.join(cells)}".rstrip())
    if len(shown) < len(found):
        text.append(f"  … and {len(found) - len(shown):,} more")
    return text


def summary(changes: list[LowRank]) -> str:
    """One line: how many changed matrices an adapter explains, and what became of the others."""
    ranks = [change.adapter for change in changes if change.adapter is not None]
    count = f"{len(ranks):,} of {len(changes):,} changed matri{'x' if len(changes) == 1 else 'ces'}"
    verb = "is" if len(ranks) == 1 else "are"
    if len(set(ranks)) > 1:
        adapter = f"adapters of rank {min(ranks)} to {max(ranks)}"
    else:
        adapter = f"an adapter of rank {ranks[0]}" if ranks else "a low-rank adapter"
    parts = [f"{count} {verb} explained by {adapter}"]
    full = [change for change in changes if change.verdict == FULL]
    bounded = sum(change.bounded for change in full)
    for number, said in (
        (len(full) - bounded, "changed fully"),
        (bounded, "changed in more directions than were looked for"),
        (sum(change.verdict == ROUNDING for change in changes), "changed hardly more than rounding does"),
        (sum(change.verdict == SMALL for change in changes), "too small to tell"),
    ):
        if number:
            parts.append(f"{number:,} {said}")
    return "; ".join(parts)


def _cells(change: LowRank) -> tuple[str, ...]:
    bound = "≤ " if change.bounded else ""
    none = f"> {change.rank}" if change.bounded else "—"
    adapter = str(change.adapter) if change.adapter is not None else _SAID.get(change.verdict, none)
    method = change.method + (f"  {change.nonfinite:,} not finite" if change.nonfinite else "")
    top = [f"{change.share(count):.1%}" for count in (1, 8)]
    return f"{change.rows}×{change.columns}", f"{bound}{change.effective_rank:.1f}", *top, adapter, method
