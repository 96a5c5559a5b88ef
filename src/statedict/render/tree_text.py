"""A tree with its totals, and the groups of optimizers, as aligned text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from statedict.render.text import printable, shape, table
from statedict.reports.summary import Node, Optimizer, Summary, Total
from statedict.values import count, human_bytes, shorten

# name, dtype, shape, elements, bytes, note
Row = tuple[str, str, str, str, str, str]
_RIGHT = (3, 4)
_HEAD: Row = ("name", "dtype", "shape", "elements", "bytes", "")
_LONGEST = 24  # characters of a hyperparameter


def summary_lines(summary: Summary, depth: int | None) -> Iterator[str]:
    """The tree, then totals by dtype, then what deserves a look."""
    yield from table([_HEAD, *_rows("", summary.root, "", "", depth, 0)], _RIGHT, _style)
    if summary.tensors:
        yield ""
        rows: list[Row] = [("dtype", "tensors", "", "elements", "bytes", "")]
        rows += [(name, f"{total.tensors:,}", "", *_numbers(total), "") for name, total in summary.dtypes.items()]
        if len(summary.dtypes) > 1:
            rows.append(("total", f"{summary.total.tensors:,}", "", *_numbers(summary.total), ""))
        yield from table(rows, _RIGHT, _style)
    roles: dict[str, Total] = {}
    for tensor in summary.tensors:
        one = Total(1, tensor.elements, tensor.nbytes) if tensor.tied is None else Total(1)
        roles[tensor.role] = roles.get(tensor.role, Total()) + one
    if roles:
        yield ""
        names = {
            "parameter": "parameters",
            "buffer": "buffers",
            "optimizer": "optimizer state",
            "tensor": "other tensors",
        }
        yield ", ".join(
            f"{names[role]} {total.elements:,} ({human_bytes(total.nbytes)})" for role, total in roles.items()
        )
    for optimizer in summary.optimizers:
        yield ""
        yield from _optimizer(optimizer)
    if summary.wasted:
        yield f"wasted {human_bytes(summary.wasted)}: storages hold more than their views; saving it again drops that"
    if summary.opaque:
        kinds = ", ".join(printable(name) for name in summary.opaque)
        yield f"opaque {sum(summary.opaque.values()):,}: objects that are no data, kept inert ({kinds})"


def _optimizer(optimizer: Optimizer) -> Iterator[str]:
    """The groups of an optimizer as a table; then what deserves a look."""
    for number, line in enumerate(groups(optimizer)):
        yield click.style(line, dim=number == 0)
    for trouble in optimizer.troubles.values():
        yield click.style(printable(f"{optimizer.title}: {trouble}"), fg="yellow")


def groups(optimizer: Optimizer) -> list[str]:
    """A row for each group, without what is off in all of them; the head first."""
    keys = list(dict.fromkeys(key for _, group in optimizer.groups for key in group))
    shown = [key for key in keys if not all(_is_off(group.get(key)) for _, group in optimizer.groups)]
    rows = [(optimizer.title, "group", "parameters", *map(_setting, shown))]
    for number, (size, group) in enumerate(optimizer.groups):
        rows.append(("", str(number), f"{size:,}", *(_setting(group.get(key, "")) for key in shown)))
    return list(table(rows, range(1, len(rows[0]))))


def _is_off(value: object) -> bool:
    return value is None or (type(value) in (bool, int, float) and not value)


def _setting(value: Any) -> str:
    return shorten(value if isinstance(value, str) and value.isprintable() else repr(value), _LONGEST)


def total_line(summary: Summary) -> str:
    """How many tensors, elements and bytes."""
    total = summary.total
    return f"{count(total.tensors, 'tensor')}, {total.elements:,} elements, {human_bytes(total.nbytes)}"


def _numbers(total: Total) -> tuple[str, str]:
    return f"{total.elements:,}", human_bytes(total.nbytes)


def _rows(key: str, node: Node, first: str, rest: str, depth: int | None, level: int) -> Iterator[Row]:
    name, note = first + printable(key), node.note
    if node.tensor is not None:
        tensor = node.tensor
        note = " ".join(part for part in (note, "buffer" if tensor.role == "buffer" else "") if part)
        yield name, tensor.dtype, shape(tensor.shape), f"{tensor.elements:,}", human_bytes(tensor.nbytes), note
    elif node.value is not None:
        yield name, "", "", "", "", node.value
    else:
        if level:
            tensors = node.total.tensors
            sums = (count(tensors, "tensor"), *_numbers(node.total)) if tensors else ("", "", "")
            yield name, "", *sums, note
        if depth is not None and level >= depth:
            return
        for index, (child_key, child) in enumerate(node.children):
            last = index == len(node.children) - 1
            branch = "" if level == 0 else "└─ " if last else "├─ "
            trunk = "" if level == 0 else "   " if last else "│  "
            yield from _rows(child_key, child, rest + branch, rest + trunk, depth, level + 1)


def _style(number: int, cells: list[str]) -> list[str]:
    """The head dim, notes in colour."""
    if number == 0:
        return [click.style(cell, dim=True) for cell in cells]
    return cells[:5] + [click.style(note, fg="cyan") for note in cells[5:]]
