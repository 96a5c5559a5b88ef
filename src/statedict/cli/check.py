"""`statedict check`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import click

from statedict.api.files import load
from statedict.api.live import restore
from statedict.cli import echo_lines
from statedict.render import report_text
from statedict.render.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    _Type = click.ParamType[tuple[str, str]]
else:
    _Type = click.ParamType  # generic only in the newest releases of click


class _Pairs(_Type):
    """`LEFT=RIGHT`; without the sign, the right side alone."""

    name = "pair"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        left, sign, right = value.partition("=")
        return (left, right) if sign else ("", left)


@click.command()
@click.argument("file", type=click.Path())
@click.option("--model", required=True, metavar="MODULE:NAME", help="A class or function that makes the model.")
@click.option("--optimizer", metavar="MODULE:NAME", help="A function of the model, or a class of torch.optim.")
@click.option("--at", metavar="PATH", help="Where the model's state is in the file; found by default.")
@click.option("--optimizer-at", metavar="PATH", help="Where the optimizer's state is; found by default.")
@click.option("--allow-missing", metavar="GLOB", multiple=True, help="What the file may lack.")
@click.option("--allow-unexpected", metavar="GLOB", multiple=True, help="What the model may lack.")
@click.option("--shapes", metavar="[GLOB=]POLICY", type=_Pairs(), multiple=True, help="Where shapes differ.")
@click.option("--rename", metavar="OLD=NEW", type=_Pairs(), multiple=True, help="A rule for names of the file.")
@click.option("--cast", metavar="GLOB", multiple=True, help="Where dtypes may differ.")
@click.option("--prefix", default="auto", metavar="PREFIX", help="What stands before the model's names in the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as one JSON object.")
def command(
    file: str,
    model: str,
    optimizer: str | None,
    at: str | None,
    optimizer_at: str | None,
    shapes: tuple[tuple[str, str], ...],
    rename: tuple[tuple[str, str], ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Check whether a file fits a model and an optimizer: the plan that restoring would follow. Nothing is written.

    MODULE:NAME is imported, also from the current directory, and called; an optimizer's with the model. The exit
    status is 0 if the file fits, 1 if not, 2 if the file or the model cannot be had.
    """
    from statedict.adapters.locate import locate

    if not all(old for old, _ in rename):
        raise click.UsageError("--rename: expected OLD=NEW")
    state = load(file)
    live = _made(model)
    found = [(at, live)]
    if optimizer is not None:
        found.append((optimizer_at, _made(optimizer, live)))
    targets, sources = {}, {}
    for where, value in found:
        place = locate(value, state) if where is None else (where, state.at(where) if where else state)
        if place is None:
            click.echo(f"{printable(file)}: has no optimizer's state; if it has, name it by --optimizer-at")
            return 1
        targets[place[0]], sources[place[0]] = value, place[1]
    path = next(iter(targets))
    alone = len(targets) == 1  # paths are the model's own then
    report = restore(
        live if alone else targets,
        sources[path] if alone else sources,
        shapes={glob or "*": policy for glob, policy in shapes},
        rename=dict(rename),
        dry_run=True,
        **options,
    )
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        places = " and ".join(filter(None, targets))
        head, *rest = report_text.restore(report)
        echo_lines([f"{file}{places and ' at ' + places}: {head}", *rest])
    return int(bool(report.problems))


def _made(name: str, *arguments: Any) -> Any:
    """What the class or function of a name makes."""
    where, sign, attribute = name.partition(":")
    if not sign:
        raise click.UsageError(f"{name!r}: expected MODULE:NAME, such as package.module:make_model")
    sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(where)
        for part in attribute.split("."):
            made = getattr(made, part)
        return _called(made, arguments)
    except (Exception, SystemExit) as error:
        raise click.ClickException(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _called(made: Any, arguments: tuple[Any, ...]) -> Any:
    import torch

    kind = torch.optim.Optimizer if arguments else torch.nn.Module
    if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
        made = made(*(model.parameters() for model in arguments))
    elif not isinstance(made, torch.nn.Module | torch.optim.Optimizer):
        made = made(*arguments)
    if not isinstance(made, kind):
        raise TypeError(f"makes a {type(made).__name__}, not a {kind.__module__}.{kind.__name__}")
    return made
