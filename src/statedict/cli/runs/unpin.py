"""`statedict runs unpin`."""

from __future__ import annotations

import click

from statedict.cli.runs.pin import tell
from statedict.runs.prune import pin


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("steps", metavar="STEP...", nargs=-1, required=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, steps: tuple[int, ...], as_json: bool) -> None:
    """Take pins back, so that these checkpoints may be pruned again."""
    tell(pin(directory, steps, pinned=False), as_json)
