"""Checkpoints of a run as text: a table, a bar chart for each metric, the description of one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import click

from statedict.io.location import location
from statedict.io.urls import join
from statedict.render.text import number, printable, shape, table
from statedict.reports.runs import DAMAGED, UNFINISHED, About, Checkpoint
from statedict.runs.directory import Directory
from statedict.runs.look.listing import listing
from statedict.values import count, human_bytes

_COLOURS = {DAMAGED: "red", UNFINISHED: "yellow"}
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_FOLDERS = ("checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "models")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def hint(directory: str) -> str:
    """Where a folder without checkpoints may have them."""
    inside = location(directory).contents() or {}
    folders = [name for name in _FOLDERS if name in inside and inside[name].folder]
    below = [name for name in folders if Directory(directory).names_of(name) and listing(join(directory, name))]
    return f"; {below[0]!r} in it has some" if below else ""


def sort_key(checkpoint: Checkpoint, metric: str) -> tuple[bool, float]:
    """By the metric, those without one last."""
    score = checkpoint.metrics.get(metric, math.nan)
    return math.isnan(score), score


def checkpoints(rows: Sequence[Checkpoint], metrics: Iterable[str]) -> Iterator[str]:
    """A table of checkpoints, then what is wrong with them."""
    now = time.time()
    columns = {
        "step": ["–" if one.step is None else f"{one.step}" for one in rows],
        "name": [one.name for one in rows],
        "kind": [one.kind for one in rows],
        "age": [_age(now - one.time) if one.time else "–" for one in rows],
        "size": [human_bytes(one.nbytes) for one in rows],
        "state": [f"{one.state}, pinned" if one.pinned else one.state for one in rows],
    }
    if columns["name"] == [str(one.step) for one in rows]:
        del columns["name"]
    if set(columns["kind"]) == {"statedict"}:
        del columns["kind"]
    left = [at for at, title in enumerate(columns) if title in ("name", "kind", "state")]
    titles = [*columns, *metrics]
    scores = [[number(one.metrics[name]) if name in one.metrics else "" for one in rows] for name in metrics]
    cells = [titles, *zip(*columns.values(), *scores, strict=True)]

    def style(at: int, row: list[str]) -> list[str]:
        colour = _COLOURS.get(rows[at - 1].state) if at else None
        return [click.style(cell, dim=at == 0, fg=colour) for cell in row]

    yield from table(cells, [at for at in range(len(titles)) if at not in left], style)
    for one in rows:
        if one.state == DAMAGED:
            yield click.style(printable(f"{one.name}: {one.damage}"), fg="red")


def charts(found: Iterable[Checkpoint], metrics: Iterable[str]) -> Iterator[str]:
    """A line for each metric: bars over the steps, the least and the most."""
    stepped = [one for one in found if one.step is not None and one.state != UNFINISHED]
    rows = []
    for name in metrics:
        scores = [(one.metrics.get(name, math.nan), one.name) for one in stepped]
        known = [(score, where) for score, where in scores if math.isfinite(score)]
        if not known:
            continue
        least, most = min(known), max(known)
        span = f"{number(least[0])} at {least[1]}"
        if most[0] != least[0]:
            span += f" … {number(most[0])} at {most[1]}"
        rows.append((name, sparkline([score for score, _ in scores]), span))
    yield from table(rows)


def sparkline(values: list[float]) -> str:
    """Bars from the least to the most, a dot for NaN and infinity; many values become means of neighbours.

    >>> sparkline([1, 2, float("nan"), 8])
    '▁▂·█'
    """
    if len(values) > _WIDTH:
        cuts = [round(at * len(values) / _WIDTH) for at in range(_WIDTH + 1)]
        parts = [[v for v in values[a:b] if math.isfinite(v)] for a, b in pairwise(cuts)]
        values = [math.fsum(v / len(part) for v in part) if part else math.nan for part in parts]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "·" * len(values)
    least = min(known) / 2  # halves, because a difference may be too large for a float
    span = max(known) / 2 - least
    scale = (len(_BARS) - 1) / span if span else 0.0
    return "".join(_BARS[round((value / 2 - least) * scale)] if math.isfinite(value) else "·" for value in values)


def _age(seconds: float) -> str:
    return next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), "now")


def description(found: About) -> Iterator[str]:
    """One checkpoint, line by line."""
    one, record = found.checkpoint, found.checkpoint.to_json()
    pinned = ", pinned" if one.pinned else ""
    yield f"{record['path']}  {human_bytes(one.nbytes)}  {one.state}{pinned} ({one.kind})"
    if one.damage:
        yield f"damage        {one.damage}"
    yield f"step          {'–' if one.step is None else one.step}"
    if record["time"]:
        yield f"saved         {record['time']}"
    for name, value in one.metrics.items():
        yield f"metric        {name} {number(value)}"
    for name, size in found.files.items():
        yield f"file          {name}  {human_bytes(size)}"
    if found.libraries:
        yield f"libraries     {', '.join(f'{name} {version}' for name, version in found.libraries.items())}"
    for what in found.not_captured:
        yield f"not captured  {what}"
    if one.usable:
        yield f"holds         {count(found.tensors, 'tensor')}, {found.elements:,} elements"
    rows = [(tensor.path, tensor.dtype, shape(tensor.shape), human_bytes(tensor.nbytes)) for tensor in found.biggest]
    yield from (f"  {line}" for line in table(rows))
