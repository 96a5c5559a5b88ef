"""What commands print: lines, JSON documents, errors, with remedies as one types them in a shell.

The library's errors give remedies in Python, such as `allow_missing=['x']`; on the command line that is
`--allow-missing x`, by one table of arguments and options.
"""

from __future__ import annotations

import json
import re
import shlex
from ast import literal_eval
from collections.abc import Iterable, Mapping
from typing import Any

import click

from statedict.io.urls import redact
from statedict.render.text import printable

SCHEMA = 1

# argument → option, and the placeholder for a value that the message leaves open
OPTIONS = {
    "allow_missing": ("--allow-missing", "GLOB"),
    "allow_unexpected": ("--allow-unexpected", "GLOB"),
    "shapes": ("--shapes", "[GLOB=]POLICY"),
    "rename": ("--rename", "OLD=NEW"),
    "cast": ("--cast", "GLOB"),
    "prefix": ("--prefix", "PREFIX"),
    "only": ("--only", "GLOB"),
    "max_shard_size": ("--max-shard-size", "SIZE"),
    "overwrite": ("--overwrite", ""),
    "dry_run": ("--dry-run", ""),
}
_PHRASES = (
    (re.compile(r"restore from load\(path\)((?:\['[^']*'\])+)"), lambda found: f"name it by --at {_path(found[1])}"),
    (re.compile(r"allow overwriting"), lambda found: "add --overwrite"),
    (
        re.compile(r'load it with (format="\w+")'),
        lambda found: f"open it in Python by statedict.load(path, {found[1]})",
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


def _path(keys: str) -> str:
    return shlex.quote(".".join(re.findall(r"\['([^']*)'\]", keys)))


def shell_json(node: Any, key: str = "") -> Any:
    """A report as JSON, with its remedies as one types them in a shell."""
    if isinstance(node, dict):
        return {name: shell_json(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [shell_json(item, key) for item in node]
    return shell(node) if isinstance(node, str) and key in _REMEDIES else node


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines; a name from a file can neither begin a line nor steer the terminal."""
    click.echo("\n".join(map(printable, lines)))


def echo_json(record: Mapping[str, Any]) -> None:
    """Print one JSON document. Its keys keep their meaning as long as its schema keeps its number."""
    click.echo(json.dumps({"schema": SCHEMA, **record}, allow_nan=False))


def echo_report(report: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print a report as JSON or as lines."""
    if as_json:
        echo_json(report.to_json())
    else:
        echo_lines(lines)


def echo_title(file: str, text: str) -> None:
    """Print the name of a file and its totals, and an empty line."""
    click.echo(click.style(f"{printable(redact(file))}  {text}", bold=True) + "\n")


def error_line(error: Exception) -> str:
    """An error in one line."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return printable(f"statedict: {shell(' '.join(text.split())) or type(error).__name__}")
