"""What commands share: options, groups that import a command when it is called, output, progress.

The library's errors give remedies in Python, such as `allow_missing=['x']`; on the command line that is
`--allow-missing x`, by one table of arguments and options.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import shlex
import sys
import time
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import click

from statedict.cli.terminal import echo
from statedict.io.pipeline import Meter
from statedict.io.urls import redact
from statedict.render.text import printable
from statedict.values import human_bytes

SCHEMA = 1
_PROGRESS_AFTER, _PROGRESS_EVERY = 1.0, 0.1  # seconds

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
FILE = click.argument("file", type=click.Path())
FILES = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
_READ_AS = "Read as this format, such as pickle, whatever it begins with."
READ_AS = click.option("--format", metavar="FORMAT", help=_READ_AS)
READ_SOURCE_AS = click.option("--read-as", metavar="FORMAT", help=_READ_AS)  # where --format is that of the output
NO_VERIFY = click.option(
    "--no-verify", "verify", flag_value=False, default=True, help="Do not compare with the digests in the source."
)
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


# argument → option, and the placeholder for a value that the message leaves open
OPTIONS = {
    "at": ("--at", "PATH"),
    "optimizer_at": ("--optimizer-at", "PATH"),
    "allow_missing": ("--allow-missing", "GLOB"),
    "allow_unexpected": ("--allow-unexpected", "GLOB"),
    "shapes": ("--shapes", "[GLOB=]POLICY"),
    "rename": ("--rename", "OLD=NEW"),
    "cast": ("--cast", "GLOB"),
    "prefix": ("--prefix", "PREFIX"),
    "base": ("--base", "SOURCE"),
    "integers": ("--integers", "GLOB=RULE"),
    "vocabulary": ("--vocabulary", "POLICY"),
    "only": ("--only", "GLOB"),
    "rank": ("--rank", "R"),
    "energy": ("--energy", "SHARE"),
    "max_shard_size": ("--max-shard-size", "SIZE"),
    "overwrite": ("--overwrite", ""),
    "dry_run": ("--dry-run", ""),
    "download": ("--download", ""),
}
_PHRASES = (
    (re.compile(r"restore from load\(path\)((?:\['[^']*'\])+)"), lambda found: f"name it by --at {_path(found[1])}"),
    (
        re.compile(r"by select\(state, ('.*?')\) or a step \{'keep': \1\}"),
        lambda found: f"by --keep {_path(f'[{found[1]}]')}",
    ),
    (re.compile(r"leave prefix at 'auto'"), lambda found: "leave out --prefix"),
    (re.compile(r"override=\{.*?: …\} with a value for it, or (?=allow_)"), lambda found: ""),
    (
        re.compile(r"delta\.(apply|make)\(base, (?:tuned, path|('.*?'))\)"),
        lambda found: f"statedict delta {found[1]} BASE {_quote(found[2]) if found[2] else 'TUNED'} -o OUT",
    ),
    (re.compile(r"pass verify=False"), lambda found: "add --no-verify"),
    (re.compile(r"allow overwriting"), lambda found: "add --overwrite"),
    (
        re.compile(r'load it with format="(\w+)"'),
        lambda found: f"use --format {found[1]}, or --read-as {found[1]} of convert and edit",
    ),
)
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PAIR = rf"{_TEXT}(?:: {_TEXT})?"
_VALUE = rf"(?:…|True|{_TEXT}|\[{_TEXT}(?:, {_TEXT})*\]|\{{{_PAIR}(?:, {_PAIR})*\}})"
_ARGUMENT = rf"(?:{'|'.join(OPTIONS)})={_VALUE}"
_ARGUMENTS = re.compile(rf"\b{_ARGUMENT}(?:, {_ARGUMENT})*")
_REMEDIES = ("detail", "error", "hints", "notes", "remedy", "what")  # keys of reports whose texts may contain remedies


def shell(text: str) -> str:
    """A message with its remedies as one types them in a shell.

    >>> print(shell("pass allow_missing=['head.*', 'b'], rename={'a': 'b c'} to accept it"))
    pass --allow-missing 'head.*' --allow-missing b --rename 'a=b c' to accept it
    """
    for phrase, replace in _PHRASES:
        text = phrase.sub(replace, text)
    pair = rf"(\w+)=({_VALUE})"
    return _ARGUMENTS.sub(lambda found: " ".join(_option(*one.groups()) for one in re.finditer(pair, found[0])), text)


def _option(name: str, value: str) -> str:
    option, metavar = OPTIONS[name]
    if value == "…":
        return f"{option} {metavar}".rstrip()
    given: Any = literal_eval(value)
    if given is True:
        return f"{option} '*'" if metavar else option
    if isinstance(given, dict):
        given = [f"{old}={new}" for old, new in given.items()]
    return " ".join(f"{option} {shlex.quote(item)}" for item in ([given] if isinstance(given, str) else given))


def _quote(text: str) -> str:
    return shlex.quote(literal_eval(text))


def _path(keys: str) -> str:
    return shlex.quote(".".join(re.findall(r"\['([^']*)'\]", keys)))


def shell_json(node: Any, key: str = "") -> Any:
    """A report as JSON, with its remedies as one types them in a shell."""
    if isinstance(node, dict):
        return {name: shell_json(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [shell_json(item, key) for item in node]
    return shell(node) if isinstance(node, str) and key in _REMEDIES else node


def echo_lines(lines: Iterable[str], title: Iterable[str] = (), paged: bool = True) -> None:
    """Print lines, below those of a title; a name from a file can neither begin a line nor steer the terminal."""
    echo([*title, *map(printable, lines)], paged)


def echo_json(record: Mapping[str, Any]) -> None:
    """Print one JSON document. Its keys keep their meaning as long as its schema keeps its number."""
    click.echo(json.dumps({"schema": SCHEMA, **record}, allow_nan=False))


def echo_report(report: Any, as_json: bool, lines: Iterable[str] | None = None) -> None:
    """Print a report, or its JSON, as JSON or as lines; by default those of its text view."""
    if as_json:
        echo_json(report if isinstance(report, Mapping) else report.to_json())
    elif lines is not None:
        echo_lines(lines)
    else:
        from statedict.render import views

        echo_lines(views.lines(report))


def title(file: str, text: str) -> list[str]:
    """The name of a file and its totals, and an empty line."""
    return [click.style(f"{printable(redact(file))}  {text}", bold=True), ""]


def error_line(error: Exception) -> str:
    """An error in one line."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return printable(f"statedict: {shell(' '.join(text.split())) or type(error).__name__}")


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """Show the progress of the work within, if standard error is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    over = Event()
    with Meter() as meter:
        thread = Thread(target=_show, args=(meter, doing, over), name="statedict-progress", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no more threads: show nothing
            pass
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()


def _show(meter: Meter, doing: str, over: Event) -> None:
    began = time.monotonic()
    if over.wait(_PROGRESS_AFTER):
        return

    def describe(_: object) -> str:
        rate = meter.done / (time.monotonic() - began)
        ahead = max(meter.total - meter.done, 0)
        left = f"{ahead / rate:,.0f} s left" if ahead and rate else "waiting for the disk"
        return f"{human_bytes(meter.done)} of {human_bytes(meter.total)}, {human_bytes(int(rate))}/s, {left}"

    with click.progressbar(length=1, label=doing, file=sys.stderr, show_eta=False, item_show_func=describe) as bar:
        while True:
            finished = over.wait(_PROGRESS_EVERY)
            bar.length = max(meter.total, 1)
            bar.update(min(meter.done, bar.length) - bar.pos, meter)
            if finished:
                return
