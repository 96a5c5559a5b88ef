"""Options of the commands that write checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from statedict.formats import WRITABLE, is_writable

MAX_SHARD_SIZE = click.option(
    "--max-shard-size", metavar="SIZE", help="Write a folder of files of at most SIZE, such as 5GB."
)


class _Writable(click.Choice[str]):
    """A format that is written, ours or another package's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; whether other packages have it is asked only of one that is not ours."""
        if value not in WRITABLE and is_writable(value):
            return str(value)
        return super().convert(value, param, ctx)


def format_option(target: str) -> Callable[[Any], Any]:
    """The option for the format of what is written."""
    return click.option("--format", type=_Writable(WRITABLE), help=f"Write this format, whatever {target}'s suffix.")
