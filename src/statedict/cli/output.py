"""What commands print: lines, JSON documents, errors."""

from __future__ import annotations

import json

import click

from statedict.cli.hints import shell
from statedict.render.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

SCHEMA = 1


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
