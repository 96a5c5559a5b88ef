"""`statedict runs pin` and `statedict runs unpin`."""

from __future__ import annotations

import click

from statedict.cli.output import echo_json
from statedict.runs.prune import pin


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("steps", metavar="STEP...", nargs=-1, required=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, steps: tuple[int, ...], as_json: bool, *, pinned: bool = True) -> None:
    """Pin checkpoints: they are never pruned, whatever a policy says. Training may go on meanwhile."""
    now = sorted(pin(directory, steps, pinned=pinned))
    if as_json:
        echo_json({"pinned": now})
    else:
        click.echo(f"pinned: {', '.join(map(str, now)) or 'none'}")


def _unpin(directory: str, steps: tuple[int, ...], as_json: bool) -> None:
    """Take pins back, so that these checkpoints may be pruned again."""
    assert command.callback is not None
    command.callback(directory, steps, as_json, pinned=False)


unpin = click.Command("unpin", callback=_unpin, help=_unpin.__doc__, params=command.params)
