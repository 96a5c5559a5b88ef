"""`statedict runs pin`."""

from __future__ import annotations

import click

from statedict.cli import echo_json
from statedict.runs.prune import pin


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("steps", metavar="STEP...", nargs=-1, required=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, steps: tuple[int, ...], as_json: bool) -> None:
    """Pin checkpoints: they are never pruned, whatever a policy says. Training may go on meanwhile."""
    tell(pin(directory, steps), as_json)


def tell(pinned: set[int], as_json: bool) -> None:
    """Print what is pinned now."""
    if as_json:
        echo_json({"pinned": sorted(pinned)})
    else:
        click.echo(f"pinned: {', '.join(map(str, sorted(pinned))) or 'none'}")
