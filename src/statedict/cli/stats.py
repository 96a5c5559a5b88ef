"""`statedict stats`."""

from __future__ import annotations

import csv
import io

import click

from statedict.api.look import stats
from statedict.cli.output import echo_json, echo_lines
from statedict.cli.progress import progress
from statedict.io.urls import redact
from statedict.render.stats_text import lines
from statedict.render.text import printable, shape
from statedict.reports.stats import StatsReport
from statedict.values import count


@click.command()
@click.argument("file", type=click.Path())
@click.option("--only", metavar="GLOB", multiple=True, help="Only what matches, such as '*.attn.*'.")
@click.option("--depth", type=click.IntRange(min=1), help="Fold modules below this many levels to one row.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print one line for each tensor.")
def command(file: str, only: tuple[str, ...], depth: int | None, as_json: bool, as_csv: bool) -> None:
    """Compute min, max, mean, std, norm, zeros, NaN, Inf and a histogram of every tensor, and flag what is odd.

    Every tensor is read once, in blocks. The exit status is 0 whatever is flagged: to fail on it, look at the JSON.
    """
    if as_json + as_csv + (depth is not None) > 1:
        raise click.UsageError("--json, --csv and --depth exclude one another")
    with progress("reading"):
        report = stats(file, only=only or None)
    if as_json:
        echo_json({"file": redact(file), **report.to_json()})
    elif as_csv:
        click.echo(_csv(report), nl=False)
    else:
        total = report.total
        tensors = count(len(report.tensors), "tensor")
        click.echo(click.style(f"{printable(redact(file))}  {tensors}, {total.elements:,} elements", bold=True) + "\n")
        echo_lines(lines(report, depth))


def _csv(report: StatsReport) -> str:
    text = io.StringIO()
    names = ("name", "dtype", "shape", "elements", "min", "max", "mean", "std", "l2", "zeros", "nan", "inf")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*names, "denormal", "edge", "dead_rows", "tied", "parameter", "inferred"))
    for tensor in report.tensors:
        record = tensor.to_json()
        del record["histogram"]
        record["shape"] = shape(tensor.shape) if tensor.shape else ""
        if isinstance(record["mean"], list):
            record["mean"] = str(tensor.mean).strip("()")
        writer.writerow(printable(value) if isinstance(value, str) else value for value in record.values())
    return text.getvalue()
