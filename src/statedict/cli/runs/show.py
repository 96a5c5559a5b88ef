"""`statedict runs show`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from statedict.cli.output import echo_json
from statedict.render.text import number, printable, shape, table
from statedict.runs.look.description import About, about
from statedict.values import count, human_bytes


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("step", default="latest")
@click.option("--biggest", metavar="N", type=click.IntRange(min=0), default=10, help="How many of the biggest tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, step: str, biggest: int, as_json: bool) -> None:
    """Show one checkpoint: its files, metrics, libraries, what it has not captured, its biggest tensors."""
    found = about(directory, step, biggest=biggest)
    if as_json:
        echo_json(found.to_json())
    else:
        head, *rest = map(printable, lines(found))
        click.echo("\n".join([click.style(head, bold=True), *rest]))


def lines(found: About) -> Iterator[str]:
    """As text."""
    one, record = found.checkpoint, found.checkpoint.to_json()
    pinned = ", pinned" if one.pinned else ""
    yield f"{record['path']}  {human_bytes(one.nbytes)}  {one.state}{pinned} ({one.kind})"
    if one.damage:
        yield f"damage        {one.damage}"
    yield f"step          {'–' if one.step is None else one.step}"
    if record["time"]:
        yield f"saved         {record['time']}"
    for name, value in one.metrics.items():
        yield f"metric        {name} {number(value)}"
    for name, size in found.files.items():
        yield f"file          {name}  {human_bytes(size)}"
    if found.libraries:
        yield f"libraries     {', '.join(f'{name} {version}' for name, version in found.libraries.items())}"
    for what in found.not_captured:
        yield f"not captured  {what}"
    if one.usable:
        yield f"holds         {count(found.tensors, 'tensor')}, {found.elements:,} elements"
    rows = [(one.path, one.dtype, shape(one.shape), human_bytes(one.nbytes)) for one in found.biggest]
    yield from (f"  {line}" for line in table(rows))
