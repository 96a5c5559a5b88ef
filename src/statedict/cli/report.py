"""`statedict report`."""

from __future__ import annotations

import click

from statedict.cli.output import echo_json
from statedict.cli.progress import progress
from statedict.io.location import location
from statedict.io.urls import redact, to_name
from statedict.render.text import printable
from statedict.values import human_bytes


@click.command()
@click.argument("files", metavar="FILE [FILE2]...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", metavar="PAGE", required=True, type=click.Path(), help="Write the page here.")
@click.option("--only", metavar="GLOB", multiple=True, help="Only what matches, such as 'model.*'.")
@click.option("--title", help="The title of the page, by default the names of the files.")
@click.option("--overwrite", is_flag=True, help="Replace PAGE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    files: tuple[str, ...], output: str, only: tuple[str, ...], title: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write one web page that shows a checkpoint, a pair and what changed, or the checkpoints of a run.

    The page is one file that asks no network. Three files and more, or the directory of a run, are its
    steps.
    """
    from statedict.view.report import report

    with progress("reading"):
        page = report(*files, only=only or None, title=title)
    page.save(output, overwrite=overwrite)
    size = location(to_name(output)).size()
    if as_json:
        echo_json({"page": redact(output), "title": page.title, "bytes": size})
    else:
        click.echo(f"{printable(page.title)} → {printable(redact(output))} ({human_bytes(size)})")
