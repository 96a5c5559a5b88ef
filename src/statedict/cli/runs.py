"""`statedict runs`: the checkpoints in the directory of a run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import click

from statedict.cli import look
from statedict.cli.commands import DIRECTORY, JSON, Commands, echo_json, echo_report, progress
from statedict.cli.terminal import ALL, all_option, echo, write
from statedict.errors import RunError
from statedict.io.location import location
from statedict.io.urls import join, redact, to_name
from statedict.render.text import number, printable, screen, shape, table
from statedict.reports.runs import DAMAGED, UNFINISHED, About, Checkpoint, Pruned, Tried
from statedict.runs.directory import Directory
from statedict.runs.look.listing import find, listing, verify_run
from statedict.values import count, human_bytes

_NAMES = ("ls", "show", "best", "verify", "prune", "pin", "unpin", "diff", "blame", "bisect")
_COLOURS = {DAMAGED: "red", UNFINISHED: "yellow"}
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_FOLDERS = ("checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "models")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@click.group(cls=Commands, table={name: f"{__name__}:{name}" for name in _NAMES})
def runs() -> None:
    """List, check, prune and search the checkpoints of a training run.

    DIR is a directory or a URL of checkpoints, whoever wrote them; only those of statedict are ever changed. STEP is a
    step, a name as `ls` shows it, `latest`, `best:METRIC` or `best:METRIC:max`.
    """


@click.command()
@DIRECTORY
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="Show only this metric; may be repeated.")
@click.option("--sort", metavar="METRIC", help="Sort by this metric, the least first, instead of by step.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@ALL
@JSON
def ls(directory: str, metrics: tuple[str, ...], sort: str | None, reverse: bool, as_json: bool) -> None:
    """List checkpoints with step, age, size, state and metrics, and draw each metric over the steps.

    No tensor is read: `damaged` is what can be seen from manifests and sizes; see `runs verify` for the rest.
    """
    found, name = listing(directory), redact(to_name(directory))
    known = list(dict.fromkeys(metric for one in found for metric in one.metrics))
    for metric in (*metrics, *([sort] if sort else [])):
        if metric not in known:
            raise click.UsageError(f"no checkpoint has the metric {metric!r}; there are {', '.join(known) or 'none'}")
    rows = list(found)
    if sort:  # those without the metric last
        rows.sort(key=lambda one: (math.isnan(score := one.metrics.get(sort, math.nan)), score))
    if reverse:
        rows.reverse()
    if as_json:
        echo_json({"directory": name, "checkpoints": [one.to_json() for one in rows]})
    elif not found:
        write(f"{printable(name)}: no checkpoints{_hint(to_name(directory))}")
    else:
        echo([*_table_rows(rows, metrics or known[:4]), *_charts(found, metrics or known)])


@click.command()
@DIRECTORY
@click.argument("step", default="latest")
@click.option("--biggest", metavar="N", type=click.IntRange(min=0), default=10, help="How many of the biggest tensors.")
@JSON
def show(directory: str, step: str, biggest: int, as_json: bool) -> None:
    """Show one checkpoint: its files, metrics, libraries, what it has not captured, its biggest tensors."""
    from statedict.runs.look.listing import about

    found = about(directory, step, biggest=biggest)
    if as_json:
        echo_json(found.to_json())
    else:
        head, *rest = map(printable, _describe(found))
        echo([click.style(head, bold=True), *rest])


@click.command()
@DIRECTORY
@click.argument("metric")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", help="Whether less or more is better.")
@click.option("--path", "only_path", is_flag=True, help="Print the path alone.")
@JSON
def best(directory: str, metric: str, mode: str, only_path: bool, as_json: bool) -> None:
    """Print step and path of the checkpoint with the best value of a metric, with a tab between them."""
    one = find(listing(directory), f"best:{metric}:{mode}", redact(to_name(directory)))
    if as_json:
        echo_json(one.to_json())
    else:
        path = printable(one.path) if sys.stdout.isatty() else one.path
        click.echo(path if only_path else f"{printable(one.name) if one.step is None else one.step}\t{path}")


@click.command()
@DIRECTORY
@click.argument("steps", metavar="[STEP]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Manifests, headers and sizes only; no tensor is read.")
@JSON
def verify(directory: str, steps: tuple[str, ...], quick: bool, as_json: bool) -> int:
    """Check the checkpoints of a run for damage, all of them by default. The exit status is 1 if one is damaged."""
    with progress("checking"):
        report = verify_run(directory, steps, quick=quick)
    echo_report(report, as_json)
    return int(not report.ok)


@click.command()
@DIRECTORY
@click.option(
    "--keep", "words", metavar="POLICY", multiple=True, required=True,
    help="What stays: N, latest:N, best:METRIC[:N][:min|:max], every:N, seconds:N, steps:A,B; may be repeated.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes or --dry-run.")
def prune(directory: str, words: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove the checkpoints that no policy keeps, after asking.

    The newest sound one, pinned ones and those that cannot be read stay in any case. Nothing happens while a training
    process writes there, or if the answer is no (status 1), and nothing to the checkpoints of other libraries.
    """
    from statedict.runs.keep import parse_policy
    from statedict.runs.prune import prune

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json does not ask; add --yes or --dry-run")
    answer = True

    def confirm(found: Pruned) -> bool:
        nonlocal answer
        if not yes:
            write(_format_pruned(found, "would remove"))
            answer = click.confirm("Remove them?")
        return answer

    found = prune(directory, [parse_policy(word) for word in words], dry_run=dry_run, agreed=confirm)
    if as_json:
        echo_json(found.to_json() | {"dry_run": dry_run})
    elif not answer:
        write("nothing was removed")
    else:
        write(_format_pruned(found, "would remove" if dry_run else "removed"))
    return int(not answer)


def _format_pruned(found: Pruned, verb: str) -> str:
    removed = ", ".join(map(str, found.removed)) or "nothing"
    lines = [f"{verb} {removed}" + (f" ({human_bytes(found.nbytes)})" if found.removed else "")]
    lines += [f"  {step} stays: {printable(why)}" for step, why in found.kept.items()]
    return "\n".join(lines)


def _pin_command(name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @DIRECTORY
    @click.argument("steps", metavar="STEP...", nargs=-1, required=True, type=click.IntRange(min=0))
    @JSON
    def command(directory: str, steps: tuple[int, ...], as_json: bool) -> None:
        from statedict.runs.prune import pin

        pinned = sorted(pin(directory, steps, pinned=name == "pin"))
        echo_report({"pinned": pinned}, as_json, [f"pinned: {', '.join(map(str, pinned)) or 'none'}"])

    return command


pin = _pin_command(
    "pin", "Pin checkpoints: they are never pruned, whatever a policy says. Training may go on meanwhile."
)
unpin = _pin_command("unpin", "Take pins back, so that these checkpoints may be pruned again.")


@click.command(params=[option for option in look.diff.params if option.name not in ("files", "git")])
@DIRECTORY
@click.argument("step")
@click.argument("other", metavar="STEP")
def diff(directory: str, step: str, other: str, **options: Any) -> Any:
    """Show how two checkpoints of a run differ; the options are those of `statedict diff`.

    STEP::PATH is what stands at that path in a checkpoint, such as 300::model and 300::ema.

    Exit status: 0 they are the same, 1 they differ, 2 one cannot be opened.
    """
    checkpoints, where = listing(directory), redact(to_name(directory))
    names = [name.partition("::") for name in (step, other)]
    sides = [find(checkpoints, name, where) for name, _, _ in names]
    for one in sides:
        if not one.usable:  # its files may be others, or lie elsewhere
            raise RunError(f"{where}: {one.name} is {one.state}: {one.damage}; name the files to compare them even so")
    assert look.diff.callback is not None
    return look.diff.callback(
        files=tuple(f"{one.path}{mark}{at}" for one, (_, mark, at) in zip(sides, names, strict=True)),
        git=False,
        **options,
    )


@click.command()
@DIRECTORY
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@all_option("Every line, not a screenful of each kind.")
@JSON
def blame(directory: str, patterns: tuple[str, ...], all: bool, as_json: bool) -> None:
    """Tell at which steps tensors changed, by how much, and when they got their first NaN or infinity.

    PATTERN is a glob over paths, such as 'layers.3.*'. Of the checkpoints that statedict wrote only what changed is
    read. Tensors with the same history stand together.
    """
    from statedict.render import report_text
    from statedict.runs.look.history import blame

    with progress("comparing"):
        report = blame(directory, patterns)
    echo_report(report, as_json, report_text.blame(report, None) if all else None)


@click.command()
@DIRECTORY
@click.option("--test", metavar="COMMAND", required=True, help="For the shell, with {checkpoint}, {step} or {name}.")
@click.option("--good", metavar="STEP", help="One that is good; the first one by default.")
@click.option("--bad", metavar="STEP", help="A later one that is bad; the last one by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; the tests print on standard error then.")
def bisect(directory: str, test: str, good: str | None, bad: str | None, as_json: bool) -> int:
    """Find the first checkpoint for which a command fails, by halving, as `git bisect run` does.

    The command ends with 0 if the checkpoint is good, 125 if that cannot be told, anything else up to 127 if it is bad,
    and more to stop. {checkpoint} is the path of its file, or of its folder if another library wrote that; do not worry
    about quotes. Exit status: 0 found, 1 it is one of several, for some were skipped, 2 it stopped.
    """
    from statedict.runs.look.bisection import bisect

    def tell(tried: Tried, left: int) -> None:
        if not as_json:
            write(printable(f"{tried.name}: {tried.verdict} ({tried.seconds:.1f} s), {left:,} left"))

    report = bisect(directory, test, good=good, bad=bad, tell=tell, stdout=sys.stderr if as_json else None)
    echo_report(report, as_json)
    return int(not report.found)


def _hint(directory: str) -> str:
    """Where a folder without checkpoints may have them."""
    inside = location(directory).contents() or {}
    folders = [name for name in _FOLDERS if name in inside and inside[name].folder]
    below = [name for name in folders if Directory(directory).names_of(name) and listing(join(directory, name))]
    return f"; {below[0]!r} in it has some" if below else ""


def _table_rows(rows: Sequence[Checkpoint], metrics: Sequence[str]) -> Iterator[str]:
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

    right = [at for at in range(len(titles)) if at not in left]
    optional = [titles.index(title) for title in (*reversed(metrics), "age", "size")]
    yield from table(cells, right, style, left, optional)
    for one in rows:
        if one.state == DAMAGED:
            yield click.style(printable(f"{one.name}: {one.damage}"), fg="red")


def _charts(found: Iterable[Checkpoint], metrics: Iterable[str]) -> Iterator[str]:
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
        rows.append((name, [score for score, _ in scores], span))
    width = screen.get().width or 1000
    taken = max((len(name) + len(span) for name, _, span in rows), default=0)
    bars = max(min(_WIDTH, width - taken - 4), _WIDTH // 6)
    yield from table([(name, sparkline(scores, bars), span) for name, scores, span in rows])


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Bars from the least to the most, a dot for NaN and infinity; many values become means of neighbours.

    >>> sparkline([1, 2, float("nan"), 8])
    '▁▂·█'
    """
    if len(values) > width:
        cuts = [round(at * len(values) / width) for at in range(width + 1)]
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


def _describe(found: About) -> Iterator[str]:
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
    if found.base is not None:
        yield f"delta to      step {found.base}"
    for name, size in found.files.items():
        yield f"file          {name}  {human_bytes(size)}"
    if found.libraries:
        yield f"libraries     {', '.join(f'{name} {version}' for name, version in found.libraries.items())}"
    for what in found.not_captured:
        yield f"not captured  {what}"
    if one.usable:
        yield f"holds         {count(found.tensors, 'tensor')}, {found.elements:,} elements"
    rows = [(tensor.path, tensor.dtype, shape(tensor.shape), human_bytes(tensor.nbytes)) for tensor in found.biggest]
    yield from table(rows, indent=2)
