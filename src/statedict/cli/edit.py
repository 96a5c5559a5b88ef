"""`statedict edit`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import click

from statedict.api.files import edit
from statedict.cli import echo_lines
from statedict.cli.progress import progress
from statedict.errors import AlterError, file_error
from statedict.formats import WRITABLE
from statedict.render import report_text


class _InOrder(click.Command):
    """Keeps the order in which options were given, repetitions included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["order"] = [param.name for param in self.make_parser(ctx).parse_args(list(args))[2]]
        return super().parse_args(ctx, args)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, sign, right = text.partition("=")
    if not sign or not left:
        raise click.UsageError(f"--{option} {text!r}: expected {form}")
    return left, right


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--{option}: {text!r} is no list of numbers such as 10,-1") from None


def _dimmed(text: str, option: str) -> tuple[str, dict[str, int]]:
    """`...@DIM`."""
    head, sign, dim = text.rpartition("@")
    return (head, {"dim": _numbers(dim, option)[0]}) if sign else (text, {})


def _cast(text: str) -> dict[str, Any]:
    glob, sign, kind = text.rpartition("=")
    return {"cast": kind, "only": glob} if sign else {"cast": text}


def _split(text: str) -> dict[str, Any]:
    text, dim = _dimmed(text, "split")
    path, into = _pair(text, "split", "OLD=NEW,NEW[@DIM]")
    return {"split": path, "into": into.split(","), **dim}


def _fuse(text: str) -> dict[str, Any]:
    text, dim = _dimmed(text, "fuse")
    into, parts = _pair(text, "fuse", "NEW=OLD,OLD[@DIM]")
    return {"fuse": parts.split(","), "into": into, **dim}


def _set(text: str) -> dict[str, Any]:
    path, value = _pair(text, "set", "PATH=VALUE")
    try:
        return {"set": path, "value": json.loads(value)}
    except ValueError:
        return {"set": path, "value": value}


def _shape(option: str, text: str) -> dict[str, Any]:
    glob, shape = _pair(text, option, "GLOB=N,N")
    return {option: glob, "shape": _numbers(shape, option)}


def _transpose(text: str) -> dict[str, Any]:
    glob, sign, dims = text.partition("=")
    return {"transpose": glob, "dims": _numbers(dims, "transpose")} if sign else {"transpose": text}


def _slice(text: str) -> dict[str, Any]:
    glob, index = _pair(text, "slice", "GLOB=0:5,:")
    return {"slice": glob, "index": index}


# option → metavar, help, what makes a step of its text
STEPS: dict[str, tuple[str, str, Any]] = {
    "keep": ("GLOB", "Keep what matches.", lambda text: {"keep": [text]}),
    "drop": ("GLOB", "Drop what matches.", lambda text: {"drop": [text]}),
    "rename": ("OLD=NEW", "Rename by a rule.", lambda text: {"rename": dict([_pair(text, "rename", "OLD=NEW")])}),
    "prefix": ("TEXT", "Put TEXT before the names; -TEXT takes it away.", lambda text: {"prefix": text}),
    "cast": ("[GLOB=]DTYPE", "Convert floating point, or what matches.", _cast),
    "transpose": ("GLOB[=DIMS]", "Exchange the last two dimensions, or all.", _transpose),
    "reshape": ("GLOB=SHAPE", "Give another shape.", lambda text: _shape("reshape", text)),
    "slice": ("GLOB=INDEX", "Take a part, such as 0:5,:.", _slice),
    "pad": ("GLOB=SHAPE", "Enlarge by zeros; -1 leaves a dimension.", lambda text: _shape("pad", text)),
    "split": ("OLD=NEW,NEW[@DIM]", "Make several tensors of one.", _split),
    "fuse": ("NEW=OLD,OLD[@DIM]", "Make one tensor of several.", _fuse),
    "tie": (
        "NEW=OLD",
        "Share the bytes of another tensor.",
        lambda text: {"tie": dict([_pair(text, "tie", "NEW=OLD")])},
    ),
    "untie": ("GLOB", "Give tied tensors their own bytes.", lambda text: {"untie": text}),
    "set": ("PATH=VALUE", "Set a plain value, as JSON or text.", _set),
}
_TOGETHER = ("keep", "drop", "rename", "tie")  # neighbours of one kind are one step


def _options(command: Any) -> Any:
    for name, (metavar, text, _) in reversed(STEPS.items()):
        command = click.option(f"--{name}", metavar=metavar, multiple=True, help=text)(command)
    return command


@click.command(cls=_InOrder)
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path(), required=False)
@_options
@click.option("--strip", is_flag=True, help="Keep the model only.")
@click.option("--plan", type=click.Path(), multiple=True, help="Take steps from a TOML file.")
@click.option("--format", "format_", type=click.Choice(WRITABLE), help="Write this format, whatever DST's suffix.")
@click.option("--in-place", is_flag=True, help="Alter SRC itself; if only names change, its index alone.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    src: str,
    dst: str | None,
    format_: str | None,
    in_place: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write SRC as DST, altered by the steps that the options give, in their order.

    Tensors go through in blocks, whatever their size. What is done to a parameter is done to its optimizer's moments.
    """
    if (dst is None) is not in_place and not dry_run:
        raise click.UsageError("name DST, or use --in-place or --dry-run" if dst is None else "--in-place takes no DST")
    steps = list(_steps(ctx.meta["order"], options))
    if not steps:
        raise click.UsageError("name a step, such as --drop 'head.*', or --plan FILE")
    with progress("editing"):
        report = edit(src, dst, steps, format=format_, dry_run=dry_run, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        echo_lines(report_text.edit(report))


def _merged(option: str, old: Any, new: Any) -> Any:
    """What neighbours of one kind are together."""
    if not isinstance(new, dict):
        return [*old, *new]
    for key in new:
        if key in old:
            raise click.UsageError(f"--{option}: {key!r} is given twice, as {old[key]!r} and as {new[key]!r}")
    return old | new


def _planned(path: str) -> list[Mapping[str, Any]]:
    """The steps of a plan file."""
    from statedict.ops.alter.steps import read_plan

    try:
        with open(path, encoding="utf-8") as file:
            return read_plan(file.read(), path)
    except OSError as error:
        raise file_error(path, "cannot open", error) from error
    except UnicodeDecodeError as error:
        raise AlterError(f"{path}: is no text: {error}") from error


def _steps(order: list[str], options: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    left = {name: deque(options[name]) for name in (*STEPS, "plan")}
    last: dict[str, Any] | None = None
    for name in order:
        step: dict[str, Any] | None = None
        if name in STEPS:
            step = STEPS[name][2](left[name].popleft())
            if last is not None and name in _TOGETHER and name in last:
                last[name] = _merged(name, last[name], step[name])
                continue
        elif name == "strip":
            step = {"strip": True}
        if last is not None:
            yield last
        last = step
        if name == "plan":
            yield from _planned(left[name].popleft())
    if last is not None:
        yield last
