"""The figures of a checkpoint as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statedict.render.optimizers_text import table
from statedict.reports.stats import GroupStats, StatsReport, TensorStats
from statedict.reports.summary import marked

_NAME = 48  # characters; a longer name loses its middle
_HEAD = ("name", "dtype", "shape", "min", "max", "mean", "std", "l2", "zeros", "histogram")
_LEFT = (0, 1, 2, 9)


def lines(report: StatsReport, depth: int | None = None) -> Iterator[str]:
    """A table of the tensors, of the dtypes and of all, the groups of optimizers, then the flags.

    Args:
        report: what `stats` found.
        depth: a row for each module of so many levels, instead of rows for the tensors in it.
    """
    rows = [_HEAD, *_rows(report, depth)]
    groups = [*(report.dtypes if len(report.dtypes) > 1 else ()), report.total]
    rows += [("",) * len(_HEAD), *(_group(one, one.name or "total", one.name) for one in groups)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = (
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    for optimizer in report.optimizers:
        yield ""
        yield from table(optimizer)
    left_out = [tensor for tensor in report.tensors if not tensor.computed]
    if report.flags or left_out:
        yield ""
    for flag in report.flags:
        yield f"{flag.kind}: {_plain(flag.name)}: {flag.what}"
    for tensor in left_out:
        yield f"not computed: {_plain(tensor.name)}: the numbers in a {tensor.dtype} are packed, or not known"


def _rows(report: StatsReport, depth: int | None) -> Iterator[tuple[str, ...]]:
    modules = {module.name: module for module in report.modules}
    seen: set[str] = set()
    for tensor in report.tensors:
        above = ".".join(tensor.name.split(".")[:-1][:depth]) if depth is not None else ""
        if depth is None or above not in modules or above.count(".") + 1 < depth:
            yield _tensor(tensor)
        elif above not in seen:
            seen.add(above)
            yield _group(modules[above], above, "")


def _tensor(tensor: TensorStats) -> tuple[str, ...]:
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    figures = _figures(tensor) if tensor.computed else ("",) * 7
    notes = [f"= {_plain(tensor.tied)}"] if tensor.tied else []
    notes += [_plain(marked(tensor.parameter, tensor.inferred))] if tensor.parameter else []
    return _folded(tensor.name), tensor.dtype, shape, *figures[:-1], "  ".join([figures[-1], *notes])


def _group(group: GroupStats, name: str, kind: str) -> tuple[str, ...]:
    count = f"{group.tensors:,} tensor{'s' * (group.tensors != 1)}"
    return _folded(name), kind, count, *_figures(group)


def _figures(of: Any) -> tuple[str, ...]:
    numbers = [_number(getattr(of, name)) for name in ("min", "max", "mean", "std", "l2")]
    return *numbers, f"{of.zeros:,}", of.histogram.bars(of.zeros)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) and abs(value) < 1_000_000 else f"{value:.4g}"


def _plain(text: str) -> str:
    """A text in which a name cannot begin another line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _folded(name: str) -> str:
    name = _plain(name)
    if len(name) <= _NAME:
        return name
    end = _NAME * 2 // 3
    return f"{name[: _NAME - end - 1]}…{name[-end:]}"
