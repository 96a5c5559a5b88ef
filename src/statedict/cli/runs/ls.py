"""`statedict runs ls`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import click

from statedict.cli.output import echo_json
from statedict.io.location import location
from statedict.io.urls import join, redact, to_name
from statedict.render.text import number, printable, table
from statedict.runs.directory import Directory
from statedict.runs.look.listing import DAMAGED, UNFINISHED, Checkpoint, listing
from statedict.values import human_bytes

_COLOURS = {DAMAGED: "red", UNFINISHED: "yellow"}
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_COLUMNS = 4
_BELOW = ("checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "models")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="Show only this metric; may be repeated.")
@click.option("--sort", metavar="METRIC", help="Sort by this metric, the least first, instead of by step.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, metrics: tuple[str, ...], sort: str | None, reverse: bool, as_json: bool) -> None:
    """List checkpoints with step, age, size, state and metrics, and draw each metric over the steps.

    No tensor is read: `damaged` is what can be seen from manifests and sizes; see `runs verify` for the rest.
    """
    found = listing(directory)
    known = list(dict.fromkeys(name for one in found for name in one.metrics))
    for name in (*metrics, *([sort] if sort else [])):
        if name not in known:
            raise click.UsageError(f"no checkpoint has the metric {name!r}; there are {', '.join(known) or 'none'}")
    rows = sorted(found, key=lambda one: _score(one, sort)) if sort else list(found)
    if reverse:
        rows.reverse()
    if as_json:
        echo_json({"directory": redact(to_name(directory)), "checkpoints": [one.to_json() for one in rows]})
    elif not found:
        click.echo(f"{printable(redact(to_name(directory)))}: no checkpoints{_hint(to_name(directory))}")
    else:
        table_of = lines(rows, metrics or known[:_COLUMNS], time.time())
        click.echo("\n".join([*table_of, *drawn(found, metrics or known)]))


def _hint(directory: str) -> str:
    """Where else they may be."""
    inside = location(directory).contents() or {}
    folders = [name for name in _BELOW if name in inside and inside[name].folder]
    below = [name for name in folders if Directory(directory).names_of(name) and listing(join(directory, name))]
    return f"; {below[0]!r} in it has some" if below else ""


def _score(one: Checkpoint, metric: str) -> tuple[bool, float]:
    score = one.metrics.get(metric, math.nan)
    return math.isnan(score), score


def lines(rows: Iterable[Checkpoint], metrics: Iterable[str], now: float) -> Iterator[str]:
    """The table, then what is wrong."""
    rows, metrics = list(rows), list(metrics)
    named_so = any(one.name != str(one.step) for one in rows)
    kinds = any(one.kind != "statedict" for one in rows)
    head = ["step", *(["name"] if named_so else []), *(["kind"] if kinds else []), "age", "size", "state", *metrics]
    cells = [head]
    for one in rows:
        state = f"{one.state}, pinned" if one.pinned else one.state
        row = ["–" if one.step is None else f"{one.step}"]
        row += ([one.name] if named_so else []) + ([one.kind] if kinds else [])
        row += [age(now - one.time) if one.time else "–", human_bytes(one.nbytes), state]
        cells.append([*row, *(number(one.metrics[name]) if name in one.metrics else "" for name in metrics)])

    def style(at: int, row: list[str]) -> list[str]:
        colour = _COLOURS.get(rows[at - 1].state) if at else None
        return [click.style(cell, dim=at == 0, fg=colour) for cell in row]

    yield from table(cells, [at for at, title in enumerate(head) if title not in ("name", "kind", "state")], style)
    for one in rows:
        if one.state == DAMAGED:
            yield click.style(printable(f"{one.name}: {one.damage}"), fg="red")


def drawn(found: Iterable[Checkpoint], metrics: Iterable[str]) -> Iterator[str]:
    """One line a metric: its bars over the steps, its range, the least and the most."""
    stepped = [one for one in found if one.step is not None and one.state != UNFINISHED]
    names = list(metrics)
    rows = []
    for name in names:
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
    """Bars from the least to the most; a dot where there is no finite number; of many values the mean of neighbours.

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
    least = min(known) / 2  # halves, for a difference may be beyond what a float holds
    span = max(known) / 2 - least
    scale = (len(_BARS) - 1) / span if span else 0.0
    return "".join(_BARS[round((value / 2 - least) * scale)] if math.isfinite(value) else "·" for value in values)


def age(seconds: float) -> str:
    """How long ago, in one unit.

    >>> age(5), age(7300), age(200000)
    ('5 s', '2 h', '2 d')
    """
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"
