"""`statedict runs blame`."""

from __future__ import annotations

import click

from statedict.cli.output import echo_report
from statedict.cli.progress import progress
from statedict.runs.look.history import blame


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Every line, not a screenful of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, patterns: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Tell at which steps tensors changed, by how much, and when they got their first NaN or infinity.

    PATTERN is a glob over paths, such as 'layers.3.*'. Of the checkpoints that statedict wrote only what changed is
    read. Tensors with the same history stand together.
    """
    with progress("comparing"):
        report = blame(directory, patterns)
    echo_report(report, report.lines(None) if everything else report.lines(), as_json)
