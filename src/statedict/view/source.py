"""A checkpoint as a page needs it: what it is, a row for each tensor, its values as a tree."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import astuple
from typing import Any

from statedict import formats
from statedict.api.companions import find_config
from statedict.api.files import name_of, tree_of
from statedict.api.look import inspect
from statedict.api.names import is_path, split
from statedict.formats import places
from statedict.io.location import location
from statedict.ops.inspect import owners
from statedict.ops.stats.survey import roles, survey
from statedict.reports.stats import StatsReport
from statedict.reports.summary import Node, Optimizer
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label, matches, no_match_error, sort_by_module

COLUMNS = (
    "name", "at", "dtype", "shape", "elements", "bytes", "role", "inferred", "tied", "computed",
    "min", "max", "mean", "std", "l2", "rms", "zeros", "nan", "inf", "denormal", "edge", "dead", "histogram", "linear",
    "series", "depth",
)  # fmt: skip
_VALUES = 4_000  # rows
_LONGEST = 400  # characters
_NUMBER = re.compile(r"\d+")


class Opened:
    """An open checkpoint.

    Attributes:
        name, state, summary: its name, tree and summary.
        config: how it is quantized, as a file beside it says.
        format, size: of the file; `memory` and the bytes of its tensors for a tree.
        owned: path of a tensor of an optimizer → the optimizer, and the key of the parameter.
        moments: its path → where its parameter is, and the rest; None if that is unknown.
        at: its path → the path to show, which has the name of the parameter instead of its number.
    """

    def __init__(self, source: Any, format: str | None = None) -> None:
        self.name, self.state, self.config = name_of(source), tree_of(source, format=format), find_config(source)
        self.summary = inspect(self.state, config=self.config)
        self.format, self.size = self.name, self.summary.total.nbytes
        if is_path(source):
            file = split(source)[0]
            self.format = formats.resolve_name(format or formats.detect(places.open_checkpoint(file)))
            self.size = location(file).size()
        self.owned = owners(self.summary.optimizers, [tensor.path for tensor in self.summary.tensors])
        self.moments = {path: _find_moment(path, *owner) for path, owner in self.owned.items()}
        self.at = {path: "".join(moment) for path, moment in self.moments.items() if moment is not None}

    def head(self, found: StatsReport) -> dict[str, Any]:
        """The file on the page: sizes, dtypes, what deserves a look."""
        return {
            "name": self.name,
            "format": self.format,
            "size": self.size,
            "total": [*astuple(self.summary.total)],
            "roles": {role: [*astuple(sums)] for role, sums in self.summary.roles.items()},
            "dtypes": {name: [*astuple(sums)] for name, sums in self.summary.dtypes.items()},
            "wasted": self.summary.wasted,
            "opaque": self.summary.opaque,
            "flags": [[flag.name, flag.kind, flag.what] for flag in found.flags],
            "optimizers": [one.to_json() for one in found.optimizers],
        }

    def tensors(self, found: StatsReport) -> dict[str, Any]:
        """A row for each tensor, in the order of `COLUMNS`; dtypes, roles and series by number."""
        tables: dict[str, dict[str, int]] = {"dtypes": {}, "roles": {}, "series": {}}

        def lookup(table: str, name: str) -> int:
            return tables[table].setdefault(name, len(tables[table]))

        infos = {tensor.path: tensor for tensor in self.summary.tensors}
        siblings = roles([tensor.name for tensor in found.tensors], self.owned)
        rows = []
        for tensor in sort_by_module(found.tensors, lambda tensor: self.at.get(tensor.name, tensor.name)):
            at = self.at.get(tensor.name, tensor.name)
            series, depth = "", tuple[int, ...]()
            moment = self.moments.get(tensor.name)
            if moment is not None:  # it belongs where its parameter is
                series, depth = place(moment[0])
                series = series and series + moment[1]
            elif siblings.get(tensor.name):
                series, depth = place(at)
            info, bins = infos.get(tensor.name), tensor.histogram
            row: list[Any] = [
                tensor.name,
                None if at == tensor.name else at,
                lookup("dtypes", tensor.dtype),
                tensor.shape,
                tensor.elements,
                info.nbytes if info is not None else 0,
                lookup("roles", info.role if info is not None else "tensor"),
                int(info is not None and info.inferred),
                tensor.tied,
                int(tensor.computed),
            ]
            row += [number(getattr(tensor, name)) for name in ("min", "max", "mean", "std", "l2", "rms")]
            row += [tensor.zeros, tensor.nan, tensor.inf, tensor.denormal, tensor.edge, tensor.dead_rows]
            row.append([bins.exponent, bins.negative, bins.positive] if tensor.computed else None)
            bars = tensor.linear  # of width 0 if all elements are equal
            edges = [bars.first, bars.width] if bars.counts else [number(tensor.min), 0]
            row.append([*edges, tensor.bins()] if tensor.computed and tensor.finite else None)
            rows.append([*row, lookup("series", series) if series else -1, depth or None])
        return {"columns": COLUMNS, "tensors": rows} | {name: list(table) for name, table in tables.items()}

    def values(self) -> list[Any]:
        """The values that are not tensors, as nested rows of key, text, note, rows below."""
        left = [_VALUES]
        rows = _values(self.summary.root, left)
        return [*rows, ["…", "", f"more than {_VALUES:,} values", []]] if left[0] <= 0 else rows


class Patterns:
    """Selects the tensors that match one of some patterns, each of which must match in some checkpoint."""

    def __init__(self, globs: Sequence[str] | None) -> None:
        self.globs = globs
        self.unseen = set(globs or ())
        self.names = set[str]()  # of tensors in all checkpoints

    def stats(self, one: Opened, executor: Executor | None) -> StatsReport:
        """The figures of the matches in a checkpoint."""
        if self.globs is None:
            return survey(one.state, None, executor, one.config)
        names = list(one.state.tensors())
        self.names.update(names)
        here = [glob for glob in self.globs if any(matches(name, (glob,)) for name in names)]
        self.unseen -= set(here)
        return survey(one.state if here else StateDict(), here or None, executor, one.config)

    def check(self) -> None:
        """Raise an error for a pattern without a match in any checkpoint."""
        if self.unseen:
            raise no_match_error(min(self.unseen), len(self.names), "tensor")


def _find_moment(path: str, optimizer: Optimizer, key: Any) -> tuple[str, str] | None:
    name, state = optimizer.names.get(key), f"{optimizer.path}.state.".removeprefix(".")
    return None if name is None else (state + name, path[len(state + label(key)) :])


def number(value: Any) -> Any:
    """A figure to seven digits for JSON; texts for complex numbers, NaN and infinities."""
    if isinstance(value, complex):
        return f"{value:.6g}"
    if not isinstance(value, float):
        return value if value is None or abs(value) < 1 << 53 else float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)


def text(value: Any) -> str:
    """A value as a short text."""
    full = value if type(value) is str else repr(value)
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


def place(path: str) -> tuple[str, tuple[int, ...]]:
    """The series of tensors like it, as a pattern, and its depth there; ("", ()) for a path without numbers.

    Depth is keys that are numbers, and numbers in names of modules that hold modules; if there are none, the numbers in
    the name of the module itself.

    >>> place("model.layers.11.attn.q.weight"), place("layer3.0.conv2.weight"), place("conv2.weight")
    (('model.layers.*.attn.q.weight', (11,)), ('layer*.*.conv2.weight', (3, 0)), ('conv*.weight', (2,)))
    """
    keys = path.split(".")
    deep = [key.isdecimal() or (at < len(keys) - 2 and bool(_NUMBER.search(key))) for at, key in enumerate(keys)]
    if deep.count(True) > 1 and len(keys) > 1:
        deep[-2] = False  # a part of a layer, such as `mlp.0` and `mlp.2`
    if not any(deep):
        deep = [at == len(keys) - 2 for at in range(len(keys))]
    numbers = [int(found) for key, is_deep in zip(keys, deep, strict=True) if is_deep for found in _NUMBER.findall(key)]
    if not numbers or max(numbers) > 1 << 31:
        return "", ()
    series = ".".join(_NUMBER.sub("*", key) if is_deep else key for key, is_deep in zip(keys, deep, strict=True))
    return series, tuple(numbers)
