"""Groups of commands that are imported when they are called, and the options that commands share."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
FILE = click.argument("file", type=click.Path())
FILES = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path())


def only_option(text: str) -> Callable[[Any], Any]:
    """`--only GLOB`, which may be repeated; its value is None if it is not given."""
    return click.option("--only", metavar="GLOB", multiple=True, callback=lambda *given: given[-1] or None, help=text)


def split_pair(option: str, metavar: str, text: str) -> tuple[str, str]:
    """The two sides of `LEFT=RIGHT`.

    Raises:
        click.UsageError: a side or the sign is missing.
    """
    left, sign, right = text.partition("=")
    if not sign or not left:
        raise click.UsageError(f"--{option} {text!r}: expected {metavar}")
    return left, right


class Commands(click.Group):
    """A group whose commands are imported when they are called; `table` maps names to MODULE:NAME."""

    def __init__(self, *args: Any, table: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of a name."""
        if cmd_name not in self._table:
            return None
        module, _, name = self._table[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without arguments, print the help."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, suggest the nearest."""
        near = difflib.get_close_matches(args[0], self._table, 1)
        if near and near[0] != args[0]:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)
