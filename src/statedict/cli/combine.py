"""`statedict average`."""

from __future__ import annotations

from typing import Any

import click

from statedict.api import combine as api
from statedict.cli.commands import JSON, echo_report, progress, split_pair
from statedict.formats import WRITABLE


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "dst", metavar="OUT", type=click.Path(), help="The file or folder to write.")
@click.option("--weights", metavar="W,W,...", help="One for each source; equal ones by default.")
@click.option("--ema", metavar="DECAY", type=float, help="An exponential moving average, oldest first.")
@click.option("--last", metavar="N", type=click.IntRange(min=2), help="Of a run: the last N checkpoints.")
@click.option("--best", metavar="N METRIC", type=(click.IntRange(min=2), str), help="Of a run: the best N by a metric.")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", help="Whether less or more of it is better.")
@click.option("--steps", metavar="FIRST:LAST[:BY]", help="Of a run: these steps, both ends included.")
@click.option("--integers", metavar="GLOB=RULE", multiple=True, help="max, min, first or last, where integers differ.")
@click.option("--precision", type=click.Choice(["float32", "float64"]), default="float32", help="The dtype of sums.")
@click.option("--optimizer", is_flag=True, help="Average the moments of optimizers too.")
@click.option("--format", type=click.Choice(WRITABLE), help="Write this format, whatever OUT's suffix.")
@click.option("--max-shard-size", metavar="SIZE", help="Write a folder of files of at most SIZE, such as 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@JSON
def average(
    sources: tuple[str, ...], dst: str | None, weights: str | None, as_json: bool, last: int | None,
    best: tuple[int, str] | None, mode: str, steps: str | None, integers: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Average the models of files, folders or URLs, or of the checkpoints of one run.

    Tensors are summed in float32 and rounded once. Optimizers, schedulers, and values that differ are left out, and
    the report lists them.
    """
    if dst is None and not options["dry_run"]:
        raise click.UsageError("name a file by -o OUT, or use --dry-run")
    chosen = list(sources)
    if last is not None or best is not None or steps is not None:
        if len(sources) > 1 or (last is not None) + (best is not None) + (steps is not None) > 1:
            raise click.UsageError("--last, --best and --steps choose of one run; give one of them")
        chosen = _choose(sources[0], last=last, best=best, mode=mode, steps=steps)
    elif len(sources) < 2:
        raise click.UsageError("name two or more sources, or a run and --last, --best or --steps")
    options["weights"] = None if weights is None else _numbers(weights)
    options["integers"] = dict(split_pair("integers", "GLOB=RULE", text) for text in integers)
    with progress("averaging"):
        report = api.average_files(chosen, dst, **options)
    echo_report(report, as_json)


def _choose(run: str, steps: str | None, **how: Any) -> list[str]:
    from statedict.io.urls import redact
    from statedict.runs.look.listing import choose, listing

    return [
        one.path for one in choose(listing(run), redact(run), steps=None if steps is None else _range(steps), **how)
    ]


def _range(text: str) -> range:
    try:
        first, last, *by = (int(part) for part in text.split(":"))
        return range(first, last + 1, *by)
    except ValueError:
        raise click.UsageError(f"--steps: {text!r} is not FIRST:LAST or FIRST:LAST:BY, such as 100:500:100") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--weights: {text!r} is not a list of numbers such as 0.5,0.3,0.2") from None
