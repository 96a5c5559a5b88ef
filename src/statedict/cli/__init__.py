"""The command line: a command parses, calls one library function, renders its report.

Exit status: 0 done, 1 a finding (differences, damage), 2 could not do it. Errors are one line on standard error;
`--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
import importlib
import io
import json
import os
import sys
import traceback

import click

from statedict import __version__
from statedict.cli.hints import shell
from statedict.errors import StateDictError
from statedict.render.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

SCHEMA = 1
# name → the module whose `command` it is, or MODULE:NAME, imported when it is called
COMMANDS = {
    "show": "statedict.cli.show",
    "stats": "statedict.cli.stats",
    "report": "statedict.cli.report",
    "check": "statedict.cli.check",
    "convert": "statedict.cli.convert",
    "edit": "statedict.cli.edit",
    "diff": "statedict.cli.diff",
    "scan": "statedict.cli.scan",
    "verify": "statedict.cli.verify",
    "runs": "statedict.cli.runs",
    "demo": "statedict.cli.demo",
}


class Commands(click.Group):
    """A group whose commands are imported when they are called, by a table like `COMMANDS`."""

    def __init__(self, *args: Any, table: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in self._table:
            return None
        module, _, name = self._table[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name or "command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without arguments, print the help."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that suggests the nearest one."""
        near = difflib.get_close_matches(args[0], self._table, 1)
        if near and near[0] != args[0]:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="statedict")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Save, open, see, alter and restore checkpoints, without PyTorch and without running code from them."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets its escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main([a for a in arguments if a != "--debug"], prog_name="statedict", standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:  # the reader has seen enough; as if SIGPIPE had ended us
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (click.ClickException, StateDictError, OSError, RecursionError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(error_line(error), err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines with names from files in them, which begin no other lines and steer no terminal."""
    click.echo("\n".join(map(printable, lines)))


def echo_json(record: Mapping[str, Any]) -> None:
    """Print one JSON document, with the number of its schema; what it says keeps its meaning while that stays."""
    click.echo(json.dumps({"schema": SCHEMA, **record}, allow_nan=False))


def echo_report(report: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print a report as JSON or as lines."""
    if as_json:
        echo_json(report.to_json())
    else:
        echo_lines(lines)


def error_line(error: Exception) -> str:
    """An error in one line, with its remedy as one types it."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return printable(f"statedict: {shell(' '.join(text.split())) or type(error).__name__}")
