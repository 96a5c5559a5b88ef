"""`statedict runs best`."""

from __future__ import annotations

import sys

import click

from statedict.cli.output import echo_json
from statedict.io.urls import redact, to_name
from statedict.render.text import printable
from statedict.runs.look.listing import find, listing


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("metric")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", help="Whether less or more is better.")
@click.option("--path", "only_path", is_flag=True, help="Print the path alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, metric: str, mode: str, only_path: bool, as_json: bool) -> None:
    """Print step and path of the checkpoint with the best value of a metric, with a tab between them."""
    one = find(listing(directory), f"best:{metric}:{mode}", redact(to_name(directory)))
    if as_json:
        echo_json(one.to_json())
    else:
        path = printable(one.path) if sys.stdout.isatty() else one.path
        click.echo(path if only_path else f"{printable(one.name) if one.step is None else one.step}\t{path}")
