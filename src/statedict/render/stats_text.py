"""The figures of a checkpoint as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statedict.render.text import number, printable, shape, table
from statedict.render.tree_text import groups
from statedict.reports.stats import GroupStats, StatsReport, TensorStats
from statedict.reports.summary import marked
from statedict.values import count, shorten

_NAME = 48  # characters; a longer name loses its middle
_HEAD = ("name", "dtype", "shape", "min", "max", "mean", "std", "l2", "zeros", "histogram")
_RIGHT = range(3, 9)


def lines(report: StatsReport, depth: int | None = None) -> Iterator[str]:
    """A table of the tensors, of the dtypes and of all, the groups of optimizers, then the flags.

    Args:
        report: what `stats` found.
        depth: a row for each module of so many levels, instead of rows for the tensors in it.
    """
    rows = [_HEAD, *_rows(report, depth)]
    sums = [*(report.dtypes if len(report.dtypes) > 1 else ()), report.total]
    rows += [("",) * len(_HEAD), *(_group(one, one.name or "total", one.name) for one in sums)]
    yield from table(rows, _RIGHT)
    for optimizer in report.optimizers:
        yield ""
        yield from groups(optimizer)
    left_out = [tensor for tensor in report.tensors if not tensor.computed]
    if report.flags or left_out:
        yield ""
    for flag in report.flags:
        yield f"{flag.kind}: {printable(flag.name)}: {flag.what}"
    for tensor in left_out:
        yield f"not computed: {printable(tensor.name)}: the numbers in a {tensor.dtype} are packed, or not known"


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
    figures = _figures(tensor) if tensor.computed else ("",) * 7
    notes = [f"= {printable(tensor.tied)}"] if tensor.tied else []
    notes += [printable(marked(tensor.parameter, tensor.inferred))] if tensor.parameter else []
    name = shorten(printable(tensor.name), _NAME)
    return name, tensor.dtype, shape(tensor.shape), *figures[:-1], "  ".join([figures[-1], *notes])


def _group(group: GroupStats, name: str, kind: str) -> tuple[str, ...]:
    return shorten(printable(name), _NAME), kind, count(group.tensors, "tensor"), *_figures(group)


def _figures(of: Any) -> tuple[str, ...]:
    numbers = [number(getattr(of, name)) for name in ("min", "max", "mean", "std", "l2")]
    return *numbers, f"{of.zeros:,}", _bars(of.histogram.counts(of.zeros))


def _bars(counts: list[int]) -> str:
    most = max(counts)
    return "".join(" ▁▂▃▄▅▆▇"[-(-7 * count // most) if most else 0] for count in counts)
