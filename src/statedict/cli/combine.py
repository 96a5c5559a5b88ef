"""`statedict average` and `merge`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import click

from statedict.api import combine as api
from statedict.cli.commands import JSON, echo_report, progress, split_pair
from statedict.cli.writing import MAX_SHARD_SIZE, format_option
from statedict.ops.combine.vocabulary import POLICIES
from statedict.reports.combine import CombineReport


def _output(command: Any) -> Any:
    """The arguments and options of commands that write one state of several."""
    lengths = "What to do if embeddings differ in length."
    command = click.option("--vocabulary", type=click.Choice(POLICIES), help=lengths)(output_options(command))
    integers = "max, min, first or last, if they differ."
    command = click.option("--integers", metavar="GLOB=RULE", multiple=True, help=integers)(command)
    return click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())(command)


def output_options(command: Any) -> Any:
    """The options of commands that write one state."""
    options = (
        click.option("-o", "--output", "dst", metavar="OUT", type=click.Path(), help="The file or folder to write."),
        format_option("OUT"),
        MAX_SHARD_SIZE,
        click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."),
        click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing."),
        JSON,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _run(
    doing: str, write: Callable[..., CombineReport], as_json: bool, dst: str | None, integers: Any, how: Any
) -> None:
    if dst is None and not how["dry_run"]:
        raise click.UsageError("name a file by -o OUT, or use --dry-run")
    rules = dict(split_pair("integers", "GLOB=RULE", text) for text in integers)
    with progress(doing):
        report = write(dst=dst, integers=rules, **how)
    echo_report(report, as_json)


@click.command()
@click.option("--weights", metavar="W,W,...", help="One for each source; equal ones by default.")
@click.option("--ema", metavar="DECAY", type=float, help="An exponential moving average, oldest first.")
@click.option("--last", metavar="N", type=click.IntRange(min=2), help="Of a run: the last N checkpoints.")
@click.option("--best", metavar="N METRIC", type=(click.IntRange(min=2), str), help="Of a run: the best N by a metric.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Whether less (default) or more is better.")
@click.option("--steps", metavar="FIRST:LAST[:BY]", help="Of a run: these steps, both ends included.")
@click.option("--precision", type=click.Choice(["float32", "float64"]), default="float32", help="The dtype of sums.")
@click.option("--optimizer", is_flag=True, help="Average the moments of optimizers too.")
@_output
def average(
    sources: tuple[str, ...], dst: str | None, weights: str | None, as_json: bool, last: int | None,
    best: tuple[int, str] | None, mode: str | None, steps: str | None, integers: tuple[str, ...], **how: Any,
) -> None:  # fmt: skip
    """Average the models of files, folders or URLs, or of the checkpoints of one run.

    Tensors are summed in float32 and rounded once. Optimizers, schedulers, and values that differ are left out, and
    the report lists them.
    """
    chosen = list(sources)
    ways = (last is not None) + (best is not None) + (steps is not None)
    if ways > 1 or (ways and len(sources) > 1):
        raise click.UsageError("--last, --best and --steps choose of one run; give one of them")
    if mode is not None and best is None:
        raise click.UsageError("--mode goes with --best")
    if not ways and len(sources) < 2:
        raise click.UsageError("name two or more sources, or a run and --last, --best or --steps")
    if ways:
        chosen = _choose(sources[0], last=last, best=best, mode=mode or "min", steps=steps)
    how["weights"] = None if weights is None else _numbers("weights", weights)
    _run("averaging", partial(api.average_files, chosen), as_json, dst, integers, how)


@click.command()
@click.option("--method", metavar="NAME", help="Such as ties, slerp, task_arithmetic.")
@click.option("--base", metavar="SOURCE", type=click.Path(), help="What the models were fine-tuned from.")
@click.option("--weight", metavar="[GLOB=]W[,W...]", multiple=True, help="Of all models or of each, for what matches.")
@click.option("--density", metavar="[GLOB=]D[,D...]", multiple=True, help="The share of task vectors that is kept.")
@click.option("--set", "others", metavar="NAME=[GLOB=]VALUE", multiple=True, help="Another parameter.")
@click.option("--dtype", metavar="DTYPE", help="Of the result, instead of the sources' dtype.")
@click.option("--seed", type=int, default=0, help="Of random choices.")
@click.option("--download", is_flag=True, help="Read models named ORG/NAME from the hub if they are not on this disk.")
@_output
def merge(
    sources: tuple[str, ...], dst: str | None, as_json: bool, integers: tuple[str, ...], method: str | None,
    weight: tuple[str, ...], density: tuple[str, ...], others: tuple[str, ...], **how: Any,
) -> None:  # fmt: skip
    """Merge models by a method of mergekit, with its formulas, in float32.

    Instead of --method and models, SOURCE may be one YAML file as mergekit takes it. Optimizers, schedulers, and values
    that differ are left out, and the report lists them.
    """
    if method is None:
        if len(sources) > 1 or not sources[0].endswith((".yml", ".yaml")):
            raise click.UsageError("name a method by --method, or one CONFIG.yml")
        given = {
            "weight": weight,
            "density": density,
            "set": others,
            "base": how.pop("base"),
            "dtype": how.pop("dtype"),
        }
        for name, value in given.items():
            if value:
                raise click.UsageError(f"--{name} goes with --method; {sources[0]} has its own")
        from statedict.api.recipes import merge_recipe_files

        _run("merging", partial(merge_recipe_files, sources[0]), as_json, dst, integers, how)
        return
    if how.pop("download"):
        raise click.UsageError("--download goes with a CONFIG.yml; name a model of the hub hf://ORG/NAME")
    pairs = [*(("weight", text) for text in weight), *(("density", text) for text in density)]
    pairs += [split_pair("set", "NAME=VALUE", text) for text in others]
    parameters = _gather(pairs)
    _run("merging", partial(api.merge_files, method, sources, parameters=parameters), as_json, dst, integers, how)


def _gather(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parameters by name, those of some tensors by pattern, with what goes for the rest last."""
    found: dict[str, dict[str, Any]] = {}
    for name, text in pairs:
        glob, sign, value = text.rpartition("=")
        known = found.setdefault(name, {})
        if (glob if sign else "*") in known:
            raise click.UsageError(f"{name!r} is given twice" + (f" for {glob!r}" if sign else ""))
        word = value.lower()
        known[glob if sign else "*"] = word == "true" if word in ("true", "false") else one_or_more(name, value)
    for values in found.values():
        if "*" in values:
            values["*"] = values.pop("*")
    return {name: values["*"] if [*values] == ["*"] else values for name, values in found.items()}


def _choose(run: str, steps: str | None, **how: Any) -> list[str]:
    from statedict.io.urls import redact
    from statedict.runs.look.listing import choose, listing

    return [
        one.path for one in choose(listing(run), redact(run), steps=None if steps is None else _range(steps), **how)
    ]


def _range(text: str) -> range:
    try:
        first, last, by = [*(int(part) for part in text.split(":")), 1][:3]
        if by < 1 or text.count(":") > 2:
            raise ValueError
        return range(first, last + 1, by)
    except ValueError:
        raise click.UsageError(f"--steps: {text!r} is not FIRST:LAST or FIRST:LAST:BY, such as 100:500:100") from None


def one_or_more(name: str, text: str) -> float | list[float]:
    """The number, or the list of numbers, that an option has."""
    values = _numbers(name, text)
    return values[0] if len(values) == 1 else values


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [int(part) if part.strip().isdecimal() else float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--{name}: {text!r} is not a list of numbers such as 0.5,0.3,0.2") from None
