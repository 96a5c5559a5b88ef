"""`statedict scan`."""

from __future__ import annotations

from dataclasses import replace

import click

from statedict.api.look import scan
from statedict.cli.output import echo_json
from statedict.errors import StateDictError
from statedict.io.urls import redact
from statedict.render.report_text import scan_table
from statedict.reports.scan import ScanReport

_STATUS = {"dangerous": 1, "opaque": 1, "unreadable": 2, "data": 0}


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
        echo_json({"files": [report.to_json() for report in reports]})
    else:
        for number, report in enumerate(reports):
            click.echo(("\n" if number else "") + "\n".join(scan_table(report)))
    found = {_STATUS[report.verdict] for report in reports}
    return 1 if 1 in found else max(found)


def _scan(file: str) -> ScanReport:
    try:
        report = scan(file)
        return replace(report, file=redact(report.file))
    except StateDictError as error:
        return ScanReport(redact(file), 0, (), (), (str(error),))
