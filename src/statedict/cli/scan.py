"""`statedict scan`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby

import click

from statedict.api.look import scan
from statedict.errors import StateDictError
from statedict.io.urls import shown
from statedict.render.text import printable
from statedict.reports.scan import Finding, ScanReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_COLOURS = {"dangerous": "red", "opaque": "yellow", "unreadable": "yellow", "data": "green"}
_STATUS = {"dangerous": 1, "opaque": 1, "unreadable": 2, "data": 0}
_LONGEST = 80
_MEANING = {
    "dangerous": "opening it with pickle.load or torch.load(weights_only=False) can run code",
    "opaque": "it names what is no data; statedict keeps that inert, pickle.load would import and use it",
    "unreadable": "a part could not be read to its end; what was found until there is data",
    "data": "no pickle in it names what runs code",
}


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(files: tuple[str, ...], as_json: bool) -> int:
    """List every global that the pickles in a file name, with a verdict. Nothing is unpickled.

    A FILE may also be a folder. Data: statedict's list of what builds data has it. Opaque: the list lacks it.
    Dangerous: it is known to run code, or hides its name. Unreadable: a part breaks off, and what was found until
    there is data.

    Exit status: 0 only data (or no pickle at all), 1 something opaque or dangerous in any file, damaged or not,
    2 otherwise something unreadable in any file, or no such file.
    """
    reports = [_scan(file) for file in files]
    if as_json:
        click.echo(json.dumps({"files": [report.to_json() for report in reports]}))
    else:
        for number, report in enumerate(reports):
            click.echo(("\n" if number else "") + "\n".join(_lines(report)))
    found = {_STATUS[report.verdict] for report in reports}
    return 1 if 1 in found else max(found)


def _scan(file: str) -> ScanReport:
    try:
        report = scan(file)
        return replace(report, file=shown(report.file))
    except StateDictError as error:
        return ScanReport(shown(file), 0, (), (), (str(error),))


def _lines(report: ScanReport) -> Iterator[str]:
    """One line a global, the worst first, then damage and notes, then the verdict."""
    rows: list[tuple[str, str, str, str, str]] = []
    for (verdict, name, why), group in groupby(sorted(report.globals, key=_order), key=_same):
        found = list(group)
        calls = sum(one.called for one in found)
        where = found[0].member + (" " if found[0].member else "") + f"at {found[0].offset:,}"
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        used = f"called {calls:,}×" if calls else "named"
        rows.append((verdict, _short(name), used, printable(why), printable(where) + more))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        cells[0] = click.style(cells[0], fg=_COLOURS[row[0]], bold=row[0] == "dangerous")
        yield "  ".join([*cells, row[4]])
    for text in report.damage:
        yield click.style("damaged", fg="yellow") + f"  {printable(text)}"
    for text in report.notes:
        yield f"note  {printable(text)}"
    count = f"{report.pickles:,} pickle{'s' * (report.pickles != 1)}"
    verdict = click.style(report.verdict, fg=_COLOURS[report.verdict], bold=True)
    yield f"{printable(report.file)}: {verdict}, {count}: {_MEANING[report.verdict]}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _order(found: Finding) -> tuple[int, str, str, str, int]:
    rank = list(_COLOURS).index(found.verdict)
    return rank, found.qualified, found.why, found.member, found.offset


def _same(found: Finding) -> tuple[str, str, str]:
    return found.verdict, found.qualified, found.why
