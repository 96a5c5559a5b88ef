"""`statedict show`."""

from __future__ import annotations

import click

from statedict.api.files import load, split
from statedict.cli.output import echo_json
from statedict.errors import PathError, StateDictError
from statedict.io.location import location
from statedict.io.urls import redact, to_name
from statedict.render.text import printable
from statedict.tree.state_dict import StateDict
from statedict.values import count, human_bytes


@click.command()
@click.argument("file", type=click.Path())
@click.option("--at", metavar="PATH", help="Show only this entry, such as model.layers.0.")
@click.option("--depth", type=click.IntRange(min=1), help="Fold the tree below this many levels.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--recipe", is_flag=True, help="Print as the loops of PyTorch's state_dict recipe do.")
@click.option("--textconv", is_flag=True, help="Be git's diff.*.textconv: a line for each entry, with digests.")
def command(file: str, at: str | None, depth: int | None, as_json: bool, recipe: bool, textconv: bool) -> None:
    """Show what is in a checkpoint: its tree, dtypes, shapes, sizes and values. No tensor is read.

    With --textconv every tensor is read, for its digest, and a file that is no checkpoint is one line and no error.
    """
    if recipe + as_json + textconv > 1:
        raise click.UsageError("--recipe, --json and --textconv exclude one another")
    if textconv:
        if at or depth:
            raise click.UsageError("--textconv shows the whole file, without --at and --depth")
        click.echo("".join(f"{printable(line)}\n" for line in _lines(file)), nl=False)
        return
    state = load(file)
    try:
        found = state.at(at) if at else state
    except PathError as error:
        raise PathError(f"{redact(file)}: {error}") from error
    above, key = "", ""
    if not isinstance(found, StateDict):
        above, _, key = (at or "").rpartition(".")
        found = StateDict({key: found})
    if recipe:
        from statedict.render.recipe_text import recipe_lines

        click.echo("\n".join(recipe_lines(found)))
        return
    from statedict.api.look import inspect

    summary = inspect(found, above if key else at or "")
    if as_json:
        echo_json({"file": redact(file), "size": location(split(file)[0]).size(), **summary.to_json()})
        return
    from statedict.render.tree_text import summary_lines

    total = summary.total
    size = human_bytes(location(split(file)[0]).size())
    title = f"{printable(redact(file))}  {size}  {count(total.tensors, 'tensor')}, {total.elements:,} elements"
    click.echo(click.style(title, bold=True) + "\n")
    click.echo("\n".join(summary_lines(summary, depth)))


def _lines(file: str) -> list[str]:
    """What git compares: of a file that is no checkpoint what it is, for git would give up on all files."""
    from statedict.formats import places
    from statedict.io.blocks import compute_sums
    from statedict.render.textconv import lines

    source = places.open_checkpoint(to_name(file))
    try:
        return lines(load(file))
    except (StateDictError, RecursionError, MemoryError) as error:
        what = " ".join(str(error).removeprefix(f"{redact(file)}: ").split()) or type(error).__name__
        digest = compute_sums(source, 0, source.size, crc=False).digest
        return [f"statedict: {what} ({source.size} bytes, xxh3_128 {digest})"]
