"""`statedict runs bisect`."""

from __future__ import annotations

import sys

import click

from statedict.cli.output import echo_report
from statedict.render.text import printable
from statedict.runs.look.bisection import Tried, bisect


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--test", metavar="COMMAND", required=True, help="For the shell, with {checkpoint}, {step} or {name}.")
@click.option("--good", metavar="STEP", help="One that is good; the first one by default.")
@click.option("--bad", metavar="STEP", help="A later one that is bad; the last one by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; the tests print on standard error then.")
def command(directory: str, test: str, good: str | None, bad: str | None, as_json: bool) -> int:
    """Find the first checkpoint for which a command fails, by halving, as `git bisect run` does.

    The command ends with 0 if the checkpoint is good, 125 if that cannot be told, anything else up to 127 if it is bad,
    and more to stop. {checkpoint} is the path of its file, or of its folder if another library wrote that; do not worry
    about quotes. Exit status: 0 found, 1 it is one of several, for some were skipped, 2 it stopped.
    """

    def tell(tried: Tried, left: int) -> None:
        if not as_json:
            click.echo(printable(f"{tried.name}: {tried.verdict} ({tried.seconds:.1f} s), {left:,} left"))

    report = bisect(directory, test, good=good, bad=bad, tell=tell, stdout=sys.stderr if as_json else None)
    echo_report(report, [str(report)], as_json)
    return int(not report.found)
