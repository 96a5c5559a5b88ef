"""`statedict lora`: show an adapter, apply some to a model, extract one from two models."""

from __future__ import annotations

from typing import Any

import click

from statedict.api import lora as api
from statedict.cli.combine import one_or_more, output_options
from statedict.cli.commands import JSON, Commands, echo_report, only_option, progress
from statedict.cli.terminal import all_option
from statedict.render import lora_text

_NAMES = ("show", "apply", "extract")


@click.group(cls=Commands, table={name: f"{__name__}:{name}" for name in _NAMES})
def lora() -> None:
    """Show low-rank adapters (LoRA), add them to a model, or extract one."""


@click.command()
@click.argument("adapter", type=click.Path())
@all_option("Show all modules.")
@JSON
def show(adapter: str, all: bool, as_json: bool) -> None:
    """Print the kind of an adapter, and the rank, scale and norm of each module.

    ADAPTER is a folder of PEFT, or a file of PEFT, diffusers or kohya.
    """
    report = api.show(adapter)
    echo_report(report, as_json, lora_text.adapter(report, None if all else lora_text.ROWS))


@click.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True, type=click.Path())
@click.option("--weight", metavar="W[,W...]", default="1", help="Times each change, or all; -1 takes one away.")
@only_option("Apply only these modules of the adapters; may be repeated.")
@click.option("--combination", metavar="NAME", default="cat", help="Of several: cat (their sum), svd, ties, ...")
@click.option("--density", metavar="SHARE", type=float, help="Of the numbers that ties and others keep.")
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="That svd, ties_svd, ... cut down to.")
@click.option("--seed", type=int, default=0, help="Of the random choices of dare_linear and dare_ties.")
@click.option("--prove", is_flag=True, help="Check from the written file that base + delta is what is in it.")
@all_option("Print every tensor that changes.")
@output_options
def apply(
    base: str, adapters: tuple[str, ...], dst: str | None, weight: str, only: tuple[str, ...] | None, prove: bool,
    all: bool, as_json: bool, **how: Any,
) -> int:  # fmt: skip
    """Add adapters to a model: W + weight · scale · up · down, in float32, rounded once.

    The report lists the tensors that change and the norm of each change. With --prove the exit status is 1 if a change
    is not in the written file, or too small to be seen there.
    """
    if dst is None and (prove or not how["dry_run"]):
        raise click.UsageError("name a file by -o OUT, or use --dry-run")
    with progress("applying"):
        report = api.apply_files(base, adapters, dst, one_or_more("weight", weight), only=only, prove=prove, **how)
    echo_report(report, as_json, lora_text.applied(report, None if all else lora_text.ROWS))
    return int(prove and report.written and not report.proved)


@click.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="The rank of each change.")
@click.option("--energy", metavar="SHARE", type=float, help="Instead: keep this share of each change, such as 0.99.")
@click.option("-o", "--output", "dst", metavar="OUT", type=click.Path(), help="The folder to write.")
@click.option("--max-shard-size", metavar="SIZE", help="Refuse an adapter of more than SIZE: peft loads one file.")
@click.option("--overwrite", is_flag=True, help="Replace files in OUT.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@all_option("Print every module.")
@JSON
def extract(
    base: str, tuned: str, rank: int | None, dst: str | None, dry_run: bool, all: bool, as_json: bool, **how: Any
) -> None:  # fmt: skip
    """Make an adapter of the difference between two models, as a folder that peft loads.

    Matrices get their largest singular directions. Other parameters that changed are in it whole.
    """
    if dst is None and not dry_run:
        raise click.UsageError("name a folder by -o OUT, or use --dry-run")
    with progress("extracting"):
        report = api.extract_files(base, tuned, dst, rank, dry_run=dry_run, **how)
    echo_report(report, as_json, lora_text.extracted(report, None if all else lora_text.ROWS))
