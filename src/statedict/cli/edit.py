"""`statedict edit`."""

from __future__ import annotations

from typing import Any

import click

from statedict.api.files import edit
from statedict.cli.output import echo_report
from statedict.cli.progress import progress
from statedict.cli.steps import InOrder, step_options, steps_of
from statedict.formats import WRITABLE
from statedict.render import report_text


# --keep is the old name of --only
@click.command(cls=InOrder, context_settings={"token_normalize_func": lambda name: "only" if name == "keep" else name})
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path(), required=False)
@step_options
@click.option("--format", "format_", type=click.Choice(WRITABLE), help="Write this format, whatever DST's suffix.")
@click.option("--max-shard-size", metavar="SIZE", help="Write a folder of files of at most SIZE, such as 5GB.")
@click.option("--in-place", is_flag=True, help="Alter SRC itself; if only names change, its index alone.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    src: str,
    dst: str | None,
    format_: str | None,
    max_shard_size: str | None,
    in_place: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write SRC as DST, altered by the steps that the options give, in their order.

    Tensors go through in blocks, whatever their size. What is done to a parameter is done to its optimizer's moments.
    """
    if (dst is None) is not in_place and not dry_run:
        raise click.UsageError("name DST, or use --in-place or --dry-run" if dst is None else "--in-place takes no DST")
    steps = steps_of(ctx.meta["order"], options)
    if not steps:
        raise click.UsageError("name a step, such as --drop 'head.*', or --plan FILE")
    with progress("editing"):
        report = edit(
            src, dst, steps, format=format_, max_shard_size=max_shard_size, dry_run=dry_run, overwrite=overwrite
        )
    echo_report(report, report_text.edit(report), as_json)
