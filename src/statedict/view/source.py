"""A checkpoint as a page needs it: what it is, a row for each tensor, its values as a tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from statedict import formats
from statedict.api.files import is_path, name_of, split, tree_of
from statedict.api.look import inspect
from statedict.formats import places
from statedict.io.location import location
from statedict.ops.optimizers import owners
from statedict.ops.stats.flags import roles
from statedict.ops.stats.survey import survey
from statedict.reports.stats import StatsReport, TensorStats
from statedict.reports.summary import Node, Optimizer, TensorInfo
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label, matches, unmatched
from statedict.view.depth import place

COLUMNS = (
    "name", "at", "dtype", "shape", "elements", "bytes", "role", "inferred", "tied", "computed",
    "min", "max", "mean", "std", "l2", "rms", "zeros", "nan", "inf", "denormal", "edge", "dead", "histogram",
    "series", "depth",
)  # fmt: skip
_VALUES = 4_000  # rows
_LONGEST = 400  # characters


class Opened:
    """A checkpoint, opened.

    Attributes:
        name: what it is called.
        state: its tree.
        format: the format of the file, or `memory`.
        size: bytes of the file.
        summary: what `inspect` found.
        owned: path of a tensor that an optimizer keeps → that, and the key of the parameter.
        moments: its path → where its parameter stands, and the rest; None where that cannot be told.
        at: its path → the path that is shown, with the name of the parameter in the place of its number.
    """

    def __init__(self, name: str, state: StateDict, format: str, size: int) -> None:
        self.name, self.state, self.format, self.size = name, state, format, size
        self.summary = inspect(state)
        self.owned = owners(self.summary.optimizers, [tensor.path for tensor in self.summary.tensors])
        self.moments = {path: _moment(path, *owner) for path, owner in self.owned.items()}
        self.at = {path: "".join(moment) for path, moment in self.moments.items() if moment is not None}

    def head(self, found: StatsReport) -> dict[str, Any]:
        """What the page says of the file: sizes, dtypes, what deserves a look."""
        sums: dict[str, list[int]] = {}
        for tensor in self.summary.tensors:
            one = sums.setdefault(tensor.role, [0, 0, 0])
            one[0] += 1
            if tensor.tied is None:
                one[1] += tensor.elements
                one[2] += tensor.nbytes
        total = self.summary.total
        return {
            "name": self.name,
            "format": self.format,
            "size": self.size,
            "total": [total.tensors, total.elements, total.nbytes],
            "roles": sums,
            "dtypes": {name: [one.tensors, one.elements, one.nbytes] for name, one in self.summary.dtypes.items()},
            "wasted": self.summary.wasted,
            "opaque": self.summary.opaque,
            "flags": [[flag.name, flag.kind, flag.what] for flag in found.flags],
            "optimizers": [one.to_json() for one in found.optimizers],
        }

    def tensors(self, found: StatsReport) -> dict[str, Any]:
        """A row for each tensor, in the order of `COLUMNS`; dtypes, roles and series by number."""
        tables: dict[str, dict[str, int]] = {"dtypes": {}, "roles": {}, "series": {}}
        infos = {tensor.path: tensor for tensor in self.summary.tensors}
        siblings = roles([tensor.name for tensor in found.tensors], self.owned)
        rows = []
        for tensor in found.tensors:
            at = self.at.get(tensor.name, tensor.name)
            series, depth = "", tuple[int, ...]()
            moment = self.moments.get(tensor.name)
            if moment is not None:  # it stands where its parameter does
                series, depth = place(moment[0])
                series = series and series + moment[1]
            elif siblings.get(tensor.name):
                series, depth = place(at)
            rows.append(_row(tensor, infos.get(tensor.name), at, series, depth, tables))
        return {"columns": COLUMNS, "tensors": rows} | {name: list(table) for name, table in tables.items()}

    def values(self) -> list[Any]:
        """The values that are no tensors, as nested rows of key, text, note, rows below."""
        left = [_VALUES]
        rows = _values(self.summary.root, left)
        return [*rows, ["…", "", f"more than {_VALUES:,} values", []]] if left[0] <= 0 else rows


def open_source(source: Any) -> Opened:
    """A file as for `load`, or a tree."""
    state, name = tree_of(source), name_of(source)
    if not is_path(source):
        one = Opened(name, state, name, 0)
        one.size = one.summary.total.nbytes
        return one
    file = split(source)[0]
    return Opened(name, state, formats.detect(places.open_checkpoint(file)), location(file).size())


class Patterns:
    """Which tensors are taken: those that match one of some patterns, each of which matches somewhere."""

    def __init__(self, globs: Sequence[str] | None) -> None:
        self.globs = globs
        self.unmatched = set(globs or ())
        self.names = set[str]()  # of the tensors of all checkpoints

    def stats(self, one: Opened, executor: Executor | None) -> StatsReport:
        """The figures of what matches in a checkpoint."""
        if self.globs is None:
            return survey(one.state, None, executor)
        names = list(one.state.tensors())
        self.names.update(names)
        here = [glob for glob in self.globs if any(matches(name, (glob,)) for name in names)]
        self.unmatched -= set(here)
        return survey(one.state if here else StateDict(), here or None, executor)

    def check(self) -> None:
        """An error for a pattern that matched nothing in any checkpoint."""
        if self.unmatched:
            glob = min(self.unmatched)
            raise unmatched(glob, len(self.names), "tensor")


def _moment(path: str, optimizer: Optimizer, key: Any) -> tuple[str, str] | None:
    name, state = optimizer.names.get(key), f"{optimizer.path}.state.".removeprefix(".")
    return None if name is None else (state + name, path[len(state + label(key)) :])


def _row(
    tensor: TensorStats,
    info: TensorInfo | None,
    at: str,
    series: str,
    depth: tuple[int, ...],
    tables: dict[str, dict[str, int]],
) -> list[Any]:
    bins = tensor.histogram
    found = [number(getattr(tensor, name)) for name in ("min", "max", "mean", "std", "l2", "rms")]
    counts = [tensor.zeros, tensor.nan, tensor.inf, tensor.denormal, tensor.edge, tensor.dead_rows]
    return [
        tensor.name,
        None if at == tensor.name else at,
        _lookup(tables["dtypes"], tensor.dtype),
        tensor.shape,
        tensor.elements,
        info.nbytes if info is not None else 0,
        _lookup(tables["roles"], info.role if info is not None else "tensor"),
        int(info is not None and info.inferred),
        tensor.tied,
        int(tensor.computed),
        *found,
        *counts,
        [bins.exponent, bins.negative, bins.positive] if tensor.computed else None,
        _lookup(tables["series"], series) if series else -1,
        depth or None,
    ]


def _lookup(table: dict[str, int], name: str) -> int:
    return table.setdefault(name, len(table))


def number(value: Any) -> Any:
    """A figure to seven digits as JSON has it; what is not finite as its name, what is complex as a text."""
    if isinstance(value, complex):
        return f"{value:.6g}"
    if not isinstance(value, float):
        return value if value is None or abs(value) < 1 << 53 else float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)


def text(value: Any) -> str:
    """A value as a text of bounded length."""
    full = value if isinstance(value, str) else repr(value)
    return full if len(full) <= _LONGEST else f"{full[: _LONGEST - 40]} … {full[-30:]}"


def _values(node: Node, left: list[int]) -> list[Any]:
    rows: list[Any] = []
    for key, child in node.children:
        if left[0] <= 0:
            break
        if child.tensor is not None:
            continue
        below = _values(child, left)
        if child.value is not None or below or not child.children:
            left[0] -= 1
            rows.append([text(key), None if child.value is None else text(child.value), text(child.note), below])
    return rows
