"""`statedict runs verify`."""

from __future__ import annotations

import click

from statedict.cli.output import echo_report
from statedict.cli.progress import progress
from statedict.runs.look.listing import verify_run


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("steps", metavar="[STEP]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Manifests, headers and sizes only; no tensor is read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, steps: tuple[str, ...], quick: bool, as_json: bool) -> int:
    """Check the checkpoints of a run for damage, all of them by default. The exit status is 1 if one is damaged."""
    with progress("checking"):
        report = verify_run(directory, steps, quick=quick)
    echo_report(report, report.lines(), as_json)
    return int(not report.ok)
