"""Checkpoints as aligned text: the tree with its totals, the figures, and what PyTorch's recipe prints."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import click

from statedict.errors import FormatError
from statedict.render.text import number, printable, shape, table
from statedict.reports.quantization import sums as sum_weights
from statedict.reports.stats import GroupStats, StatsReport, TensorStats
from statedict.reports.summary import Node, Optimizer, Summary, Total, mark_inferred
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.layout import is_optimizer
from statedict.tree.roles import find_roles, is_model
from statedict.tree.state_dict import StateDict, transform
from statedict.values import abbreviate, count, human_bytes, shorten

# name, dtype, shape, elements, bytes, note
Row = tuple[str, str, str, str, str, str]
_RIGHT = (3, 4)
_HEAD: Row = ("name", "dtype", "shape", "elements", "bytes", "")
_LONGEST = 24  # characters of a hyperparameter
_STATS_HEAD = ("name", "dtype", "shape", "min", "max", "mean", "std", "l2", "zeros", "histogram")
_ROLES = {
    "parameter": "parameters",
    "buffer": "buffers",
    "quantization": "quantization",
    "optimizer": "optimizer state",
    "generator": "generator state",
    "tensor": "other tensors",
}


def summary_lines(summary: Summary, depth: int | None) -> Iterator[str]:
    """The tree, then totals by dtype and role, optimizers, and what deserves a look."""
    if depth is not None and [key for key, _ in summary.root.children] == [""]:
        depth += 1  # the whole file is a list or an object
    yield from table([_HEAD, *_rows("", summary.root, "", "", depth, 0)], _RIGHT, _style, (0, 5), (3, 2))
    if summary.tensors:
        yield ""
        rows: list[Row] = [("dtype", "tensors", "", "elements", "bytes", "")]
        rows += [(name, f"{total.tensors:,}", "", *_numbers(total), "") for name, total in summary.dtypes.items()]
        if len(summary.dtypes) > 1:
            rows.append(("total", f"{summary.total.tensors:,}", "", *_numbers(summary.total), ""))
        yield from table(rows, _RIGHT, _style)
    if roles := summary.roles:
        yield ""
        parts = (f"{_ROLES[role]} {sums.elements:,} ({human_bytes(sums.nbytes)})" for role, sums in roles.items())
        yield ", ".join(parts)
    yield from quantization_lines(summary)
    for optimizer in summary.optimizers:
        yield ""
        for at, line in enumerate(groups(optimizer)):
            yield click.style(line, dim=at == 0)
        for trouble in optimizer.troubles.values():
            yield click.style(printable(f"{optimizer.title}: {trouble}"), fg="yellow")
    if summary.wasted:
        yield f"wasted {human_bytes(summary.wasted)}: storages hold more than their views; saving it again drops that"
    if summary.opaque:
        kinds = ", ".join(printable(name) for name in summary.opaque)
        yield f"opaque {sum(summary.opaque.values()):,}: objects that are not data, kept inert ({kinds})"


def quantization_lines(summary: Summary) -> Iterator[str]:
    """A line for each kind of quantized weights and for all parameters, and what is wrong."""
    found = summary.quantization
    if found.weights:
        yield ""
    for kind, weights in found.kinds.items():
        sizes = sorted({weight.group for weight in weights if weight.group is not None and weight.group > 0})
        by = f" in groups of {', '.join(map(str, sizes))}" if sizes else ""
        about = sum_weights(weights)
        size, each = human_bytes(about["nbytes"]), about["bits_per_weight"]
        per = f", {each:.2f} bits each" if each is not None else ""
        yield f"{kind}{by}: {count(len(weights), 'weight')}, {about['parameters']:,} parameters in {size}{per}"
    if found.weights and summary.bits_per_parameter is not None:
        yield f"all: {summary.parameters:,} parameters, {summary.bits_per_parameter:.2f} bits each"
    for note in found.notes:
        yield click.style(note, fg="yellow")
    troubles: dict[tuple[str, str], list[str]] = {}
    for trouble in found.troubles:
        troubles.setdefault((trouble.kind, trouble.what), []).append(trouble.name)
    for (kind, what), names in troubles.items():
        yield click.style(f"{kind}: {printable(abbreviate(names))}: {what}", fg="yellow")


def groups(optimizer: Optimizer) -> list[str]:
    """A head and a row for each group, without settings that are off in all groups."""
    keys = list(dict.fromkeys(key for _, group in optimizer.groups for key in group))
    shown = [key for key in keys if not all(_is_off(group.get(key)) for _, group in optimizer.groups)]
    rows = [(optimizer.title, "group", "parameters", *map(_format_setting, shown))]
    for at, (size, group) in enumerate(optimizer.groups):
        rows.append(("", str(at), f"{size:,}", *(_format_setting(group.get(key, "")) for key in shown)))
    return list(table(rows, range(1, len(rows[0])), optional=range(len(rows[0]) - 1, 2, -1)))


def _is_off(value: object) -> bool:
    return value is None or (type(value) in (bool, int, float) and not value)


def _format_setting(value: Any) -> str:
    return shorten(value if type(value) is str and value.isprintable() else repr(value), _LONGEST)


def totals(summary: Summary) -> Iterator[str]:
    """How many tensors, elements and bytes."""
    total = summary.total
    yield f"{count(total.tensors, 'tensor')}, {total.elements:,} elements, {human_bytes(total.nbytes)}"


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


def stats_lines(report: StatsReport, depth: int | None = None, log: bool = False) -> Iterator[str]:
    """A table of tensors (or of modules, `depth` levels deep), dtypes and totals, optimizers' groups, then flags.

    Histograms are linear, or by powers of two.
    """
    rows = [_STATS_HEAD, *_stats_rows(report, depth, log)]
    sums = [*(report.dtypes if len(report.dtypes) > 1 else ()), report.total]
    rows += [("",) * len(_STATS_HEAD), *(_group_row(one, one.name or "total", one.name, log) for one in sums)]
    yield from table(rows, range(3, 9), None, (0, 9), (2, 7, 8, 1, 5))
    for optimizer in report.optimizers:
        yield ""
        yield from groups(optimizer)
    kinds = report.quantization.kinds.items()
    packed = {path: kind for kind, some in kinds for weight in some for path in (weight.stored, *weight.parts)}
    known = {weight.name for weight in report.weights}
    some = [weight for weight in report.quantization.weights if weight.name in known]
    inside = {path for weight in some for path in (weight.stored, *weight.parts)}
    left_out = [tensor for tensor in report.tensors if not tensor.computed and tensor.name not in inside]
    words: dict[str, list[str]] = {}
    for tensor in left_out:
        if tensor.name in packed:
            words.setdefault(packed[tensor.name], []).append(tensor.name)
    if report.flags or left_out:
        yield ""
    for flag in report.flags:
        yield f"{flag.kind}: {printable(flag.name)}: {flag.what}"
    for kind, names in words.items():
        yield f"not computed: {printable(abbreviate(names))}: packed numbers, {kind}"
    for tensor in left_out:
        if tensor.name not in packed:
            yield f"not computed: {printable(tensor.name)}: the numbers in a {tensor.dtype} are packed, or not known"


def _stats_rows(report: StatsReport, depth: int | None, log: bool) -> Iterator[tuple[str, ...]]:
    modules = {module.name: module for module in report.modules}
    seen: set[str] = set()
    for tensor in report.by_module:
        above = ".".join(tensor.name.split(".")[:-1][:depth]) if depth is not None else ""
        if depth is None or above not in modules or above.count(".") + 1 < depth:
            yield _tensor_row(tensor, log)
        elif above not in seen:
            seen.add(above)
            yield _group_row(modules[above], above, "", log)


def _tensor_row(tensor: TensorStats, log: bool) -> tuple[str, ...]:
    figures = _figures(tensor, log) if tensor.computed else ("",) * 7
    notes = [f"= {printable(tensor.tied)}"] if tensor.tied else []
    notes += [printable(mark_inferred(tensor.parameter, tensor.inferred))] if tensor.parameter else []
    return tensor.name, tensor.kind, shape(tensor.shape), *figures[:-1], "  ".join([figures[-1], *notes])


def _group_row(group: GroupStats, name: str, kind: str, log: bool) -> tuple[str, ...]:
    return name, kind, count(group.tensors, "tensor"), *_figures(group, log)


def _figures(of: Any, log: bool) -> tuple[str, ...]:
    numbers = [number(getattr(of, name)) for name in ("min", "max", "mean", "std", "l2")]
    counts = of.bins(log)
    most = max(counts, default=0) or 1
    return *numbers, f"{of.zeros:,}", "".join(" ▁▂▃▄▅▆▇"[-(-7 * count // most)] for count in counts)


def recipe_lines(state: StateDict) -> Iterator[str]:
    """What the loops of "What is a state_dict in PyTorch" print for each model and optimizer in a checkpoint.

    Raises:
        FormatError: it has neither.
    """
    nodes = [node for _, _, node in find_roles(state) if is_optimizer(node) or is_model(node)]
    for at, node in enumerate(nodes):
        if at:
            yield ""
        if is_optimizer(node):
            yield "Optimizer's state_dict:"
            for key, value in _to_printable(node).items():
                yield f"{printable(str(key))} \t {_escape(value)}"
        else:
            yield "Model's state_dict:"
            for name, value in node.items():
                yield f"{printable(str(name))} \t {as_lazy(value).size() if is_array(value) else _escape(value)}"
    if not nodes:
        raise FormatError("there is no state_dict of a model or an optimizer in it; look at it without --recipe")


def _escape(value: Any) -> str:
    """A value as Python prints it, line by line because tensors take several."""
    return printable(value) if isinstance(value, str) else "\n".join(map(printable, str(value).split("\n")))


class _Text(str):
    """Prints without quotes inside a dict."""

    __slots__ = ()
    __repr__ = str.__str__


def _to_printable(node: Any) -> dict[Any, Any]:
    """An optimizer's state_dict as plain Python, its tensors as PyTorch prints them, or as dtype and shape."""
    if find_spec("torch") is not None:
        return StateDict(node).torch()

    def leaf(value: Any) -> Any:
        return _Text(f"{value.dtype}{list(value.shape)}") if is_array(value) else value

    return dict(transform(node, leaf, lambda entries, _: entries))
