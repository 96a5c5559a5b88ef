"""`statedict delta`."""

from __future__ import annotations

from typing import Any

import click

from statedict.api import delta as api
from statedict.cli.commands import JSON, NO_VERIFY, Commands, echo_report, progress
from statedict.cli.writing import MAX_SHARD_SIZE, format_option

BASE = click.argument("base", type=click.Path())
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
OUT = click.option("-o", "--output", "dst", metavar="OUT", type=click.Path(), help="The file to write.")


@click.group(cls=Commands, table={"make": "statedict.cli.delta:make", "apply": "statedict.cli.delta:apply"})
def delta() -> None:
    """Store what a checkpoint changes of another one, without loss, and put it together again."""


@click.command()
@BASE
@click.argument("tuned", type=click.Path())
@OUT
@MAX_SHARD_SIZE
@NO_VERIFY
@OVERWRITE
@DRY_RUN
@JSON
def make(base: str, tuned: str, dst: str | None, dry_run: bool, as_json: bool, **how: Any) -> None:
    """Write what TUNED changes of BASE, bit for bit; both may be files, folders or URLs of any format."""
    _check_output(dst, dry_run)
    with progress("making the delta"):
        report = api.make(base, tuned, dst, dry_run=dry_run, **how)
    echo_report(report, as_json)


@click.command()
@BASE
@click.argument("delta", type=click.Path())
@OUT
@format_option("OUT")
@MAX_SHARD_SIZE
@OVERWRITE
@DRY_RUN
@JSON
def apply(base: str, delta: str, dst: str | None, as_json: bool, **how: Any) -> None:
    """Write the checkpoint that DELTA was made of; all of BASE is compared first with what it was made from."""
    _check_output(dst, how["dry_run"])
    with progress("applying the delta"):
        report = api.apply_file(base, delta, dst, **how)
    echo_report(report, as_json)


def _check_output(dst: str | None, dry_run: bool) -> None:
    if dst is None and not dry_run:
        raise click.UsageError("name a file by -o OUT, or use --dry-run")
