"""`statedict convert`."""

from __future__ import annotations

import click

from statedict.api.files import convert, split
from statedict.cli.output import echo_json
from statedict.cli.progress import progress
from statedict.formats import WRITABLE
from statedict.io.location import location
from statedict.io.urls import redact
from statedict.render.text import printable
from statedict.values import human_bytes


@click.command()
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option("--format", "format_", type=click.Choice(WRITABLE), help="Write this format, whatever DST's suffix.")
@click.option("--only", metavar="GLOB", multiple=True, help="Keep what matches.")
@click.option("--max-shard-size", metavar="SIZE", help="Write a folder of files of at most SIZE, such as 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    src: str,
    dst: str,
    format_: str | None,
    only: tuple[str, ...],
    max_shard_size: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the checkpoint SRC as DST, in the format of its suffix. Bytes are copied, whole or not at all."""
    with progress("converting"):
        convert(src, dst, format=format_, only=only or None, max_shard_size=max_shard_size, overwrite=overwrite)
    sizes = [(redact(name), location(split(name)[0]).size()) for name in (src, dst)]
    if as_json:
        (one, before), (other, after) = sizes
        echo_json({"src": one, "src_bytes": before, "dst": other, "dst_bytes": after})
    else:
        click.echo(" → ".join(f"{printable(name)} ({human_bytes(size)})" for name, size in sizes))
