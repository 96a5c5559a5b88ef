"""`statedict verify`."""

from __future__ import annotations

from typing import Any

import click

from statedict.api.look import verify
from statedict.cli.output import echo_json, echo_lines, error_line
from statedict.cli.progress import progress
from statedict.errors import StateDictError
from statedict.io.urls import redact
from statedict.render import report_text


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--values", is_flag=True, help="Count NaN and infinities in each tensor, too.")
@click.option("--quick", is_flag=True, help="Headers, ranges and sizes only; no tensor is read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(files: tuple[str, ...], values: bool, quick: bool, as_json: bool) -> int:
    """Check files for damage: structure, CRC-32, digests, shards against their index.

    Every byte is read, except with --quick. The exit status is 0 if all files are fine, 1 if one is damaged, 2 if
    one cannot be opened or is no checkpoint. NaN and infinities are no damage.
    """
    if values and quick:
        raise click.UsageError("--values reads every tensor, --quick none; give one of them")
    status, found = 0, list[dict[str, Any]]()
    for file in files:
        try:
            with progress("checking"):
                report = verify(file, values=values, quick=quick)
        except StateDictError as error:
            status = 2
            found.append({"file": redact(file), "ok": False, "error": str(error)})
            if not as_json:
                click.echo(error_line(error), err=True)
            continue
        status = max(status, int(not report.ok))
        found.append(report.to_json())
        if not as_json:
            echo_lines(report_text.verify(report))
    if as_json:
        echo_json({"files": found})
    return status
