"""`statedict show`."""

from __future__ import annotations

import json

import click

from statedict.api import load
from statedict.cli import printable
from statedict.errors import PathError
from statedict.io.files import size_of
from statedict.io.urls import named, shown
from statedict.tree import StateDict
from statedict.values import human_bytes


@click.command()
@click.argument("file", type=click.Path())
@click.option("--at", metavar="PATH", help="Show only this entry, such as model.layers.0.")
@click.option("--depth", type=click.IntRange(min=1), help="Fold the tree below this many levels.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--recipe", is_flag=True, help="Print as the loops of PyTorch's state_dict recipe do.")
def command(file: str, at: str | None, depth: int | None, as_json: bool, recipe: bool) -> None:
    """Show what is in a checkpoint: its tree, dtypes, shapes, sizes and values. No tensor is read."""
    if recipe and as_json:
        raise click.UsageError("--recipe and --json exclude each other")
    state = load(file)
    try:
        found = state.at(at) if at else state
    except PathError as error:
        raise PathError(f"{shown(file)}: {error}") from error
    above, key = "", ""
    if not isinstance(found, StateDict):
        above, _, key = (at or "").rpartition(".")
        found = StateDict({key: found})
    if recipe:
        from statedict.cli.recipe import recipe_lines

        click.echo("\n".join(recipe_lines(found)))
        return
    from statedict.ops.inspect import inspect

    summary = inspect(found, above if key else at or "")
    if as_json:
        click.echo(json.dumps({"file": shown(file), "size": size_of(named(file)), **summary.to_json()}))
        return
    from statedict.cli.render import count_tensors, summary_lines

    total = summary.total
    size = human_bytes(size_of(named(file)))
    title = f"{printable(shown(file))}  {size}  {count_tensors(total.tensors)}, {total.elements:,} elements"
    click.echo(click.style(title, bold=True) + "\n")
    click.echo("\n".join(summary_lines(summary, depth)))
