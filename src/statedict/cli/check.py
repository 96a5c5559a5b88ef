"""`statedict check`."""

from __future__ import annotations

from typing import Any

import click

from statedict.api.files import load
from statedict.api.live import fit
from statedict.cli.hints import shell
from statedict.cli.objects import make
from statedict.cli.output import echo_json, echo_lines
from statedict.cli.steps import pair
from statedict.render import report_text
from statedict.render.text import printable


@click.command()
@click.argument("file", type=click.Path())
@click.option("--model", required=True, metavar="MODULE:NAME", help="A class or function that makes the model.")
@click.option("--optimizer", metavar="MODULE:NAME", help="A function of the model, or a class of torch.optim.")
@click.option("--at", metavar="PATH", help="Where the model's state is in the file; found by default.")
@click.option("--optimizer-at", metavar="PATH", help="Where the optimizer's state is; found by default.")
@click.option("--allow-missing", metavar="GLOB", multiple=True, help="What the file may lack.")
@click.option("--allow-unexpected", metavar="GLOB", multiple=True, help="What the model may lack.")
@click.option("--shapes", metavar="[GLOB=]POLICY", multiple=True, help="Where shapes differ.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="A rule for names of the file.")
@click.option("--cast", metavar="GLOB", multiple=True, help="Where dtypes may differ.")
@click.option("--prefix", default="auto", metavar="PREFIX", help="What stands before the model's names in the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as one JSON object.")
def command(
    file: str,
    model: str,
    optimizer: str | None,
    at: str | None,
    optimizer_at: str | None,
    shapes: tuple[str, ...],
    rename: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Check whether a file fits a model and an optimizer: the plan that restoring would follow. Nothing is written.

    MODULE:NAME is imported, also from the current directory, and called; an optimizer's with the model. The exit
    status is 0 if the file fits, 1 if not, 2 if the file or the model cannot be had.
    """
    state, live = load(file), make(model)
    wanted = [(at, live)] + ([(optimizer_at, make(optimizer, live))] if optimizer is not None else [])
    rules = dict(pair("rename", text) for text in rename)
    policies = {glob or "*": policy for glob, _, policy in (text.rpartition("=") for text in shapes)}
    found = fit(state, wanted, shapes=policies, rename=rules, **options)
    if found is None:
        click.echo(f"{printable(file)}: has no optimizer's state; if it has, name it by --optimizer-at")
        return 1
    places, report = found
    if as_json:
        echo_json(report.to_json() | {"hints": list(map(shell, report.hints))})
    else:
        where = " and ".join(filter(None, places))
        head, *rest = map(shell, report_text.restore(report))
        echo_lines([f"{file}{where and ' at ' + where}: {head}", *rest])
    return int(bool(report.problems))
