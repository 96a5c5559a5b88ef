"""The command line: a command parses, calls one library function, renders its report.

Exit status: 0 done, 1 a finding (differences, damage), 2 could not do it. Errors are one line on standard error;
`--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback

import click

from statedict import __version__
from statedict.cli.commands import Commands, error_line
from statedict.cli.terminal import prepare, wants_colours, write
from statedict.errors import StateDictError

COMMANDS = {
    "show": "statedict.cli.look:show",
    "stats": "statedict.cli.look:stats",
    "report": "statedict.cli.look:report",
    "check": "statedict.cli.files:check",
    "convert": "statedict.cli.files:convert",
    "edit": "statedict.cli.edit:edit",
    "average": "statedict.cli.combine:average",
    "merge": "statedict.cli.combine:merge",
    "lora": "statedict.cli.lora:lora",
    "delta": "statedict.cli.delta:delta",
    "diff": "statedict.cli.look:diff",
    "scan": "statedict.cli.files:scan",
    "verify": "statedict.cli.files:verify",
    "runs": "statedict.cli.runs:runs",
    "demo": "statedict.cli.demo:demo",
}


@click.group(cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="statedict")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Save, open, show, compare, alter and restore checkpoints, without PyTorch and without running code from them."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    prepare()
    words = [word for word in arguments if word != "--debug"]
    try:
        status = cli.main(words, prog_name="statedict", standalone_mode=False, color=wants_colours())
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:  # the reader has seen enough; as if SIGPIPE had ended us
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (click.ClickException, StateDictError, OSError, RecursionError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        else:
            write(error_line(error), err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
