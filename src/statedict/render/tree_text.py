"""Rows of a tree as aligned text."""

from __future__ import annotations

from collections.abc import Iterator

import click

from statedict.render.optimizers_text import table as groups
from statedict.render.text import printable
from statedict.reports.summary import Node, Optimizer, Summary, Total
from statedict.values import human_bytes

# name, dtype, shape, elements, bytes, note
Row = tuple[str, str, str, str, str, str]
_RIGHT = (False, False, False, True, True, False)
_HEAD: Row = ("name", "dtype", "shape", "elements", "bytes", "")


def summary_lines(summary: Summary, depth: int | None) -> Iterator[str]:
    """The tree, then totals by dtype, then what deserves a look."""
    yield from table([_HEAD, *_rows("", summary.root, "", "", depth, 0)])
    if summary.tensors:
        yield ""
        rows: list[Row] = [("dtype", "tensors", "", "elements", "bytes", "")]
        rows += [(name, f"{total.tensors:,}", "", *_numbers(total), "") for name, total in summary.dtypes.items()]
        if len(summary.dtypes) > 1:
            rows.append(("total", f"{summary.total.tensors:,}", "", *_numbers(summary.total), ""))
        yield from table(rows)
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
    for number, line in enumerate(map(printable, groups(optimizer))):
        yield click.style(line, dim=number == 0)
    for trouble in optimizer.troubles.values():
        yield click.style(printable(f"{optimizer.title}: {trouble}"), fg="yellow")


def count_tensors(tensors: int) -> str:
    """`1 tensor`, `20 tensors`."""
    return f"{tensors:,} tensor{'s' * (tensors != 1)}"


def _numbers(total: Total) -> tuple[str, str]:
    return f"{total.elements:,}", human_bytes(total.nbytes)


def _rows(key: str, node: Node, first: str, rest: str, depth: int | None, level: int) -> Iterator[Row]:
    name, note = first + printable(key), printable(node.note)
    if node.tensor is not None:
        tensor = node.tensor
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        note = " ".join(part for part in (note, "buffer" if tensor.role == "buffer" else "") if part)
        yield name, tensor.dtype, shape, f"{tensor.elements:,}", human_bytes(tensor.nbytes), note
    elif node.value is not None:
        yield name, "", "", "", "", printable(node.value)
    else:
        if level:
            count = count_tensors(node.total.tensors) if node.total.tensors else ""
            numbers = _numbers(node.total) if node.total.tensors else ("", "")
            yield name, "", count, *numbers, note
        if depth is not None and level >= depth:
            return
        for index, (child_key, child) in enumerate(node.children):
            last = index == len(node.children) - 1
            branch = "" if level == 0 else "└─ " if last else "├─ "
            trunk = "" if level == 0 else "   " if last else "│  "
            yield from _rows(child_key, child, rest + branch, rest + trunk, depth, level + 1)


def table(rows: list[Row]) -> Iterator[str]:
    """Columns as wide as they need, the first row dim, nothing wrapped."""
    notes = len(rows[0]) - 1
    widths = [max(len(row[column]) for row in rows) for column in range(notes)]
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row[:notes], widths, _RIGHT, strict=False)
        ]
        if number == 0:
            yield click.style("  ".join([*cells, row[notes]]).rstrip(), dim=True)
            continue
        plain = "  ".join([*cells, row[notes]]).rstrip()
        note = row[notes]
        yield plain if not note else plain.removesuffix(note) + click.style(note, fg="cyan")
