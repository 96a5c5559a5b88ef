"""The groups of an optimizer as lines of text."""

from __future__ import annotations

from statedict.reports.summary import Optimizer

_LONGEST = 24


def table(optimizer: Optimizer) -> list[str]:
    """A row for each group, without what is off in all of them; the head first."""
    keys = list(dict.fromkeys(key for _, group in optimizer.groups for key in group))
    shown = [key for key in keys if not all(_off(group.get(key)) for _, group in optimizer.groups)]
    rows = [("group", "parameters", *map(_short, shown))]
    for number, (count, group) in enumerate(optimizer.groups):
        rows.append((str(number), f"{count:,}", *(_short(group.get(key, "")) for key in shown)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    name = optimizer.title
    cells = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [f"{name if number == 0 else ' ' * len(name)}  {line}".rstrip() for number, line in enumerate(cells)]


def _off(value: object) -> bool:
    return value is None or (type(value) in (bool, int, float) and not value)


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
