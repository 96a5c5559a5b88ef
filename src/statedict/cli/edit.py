"""`statedict edit`: its options are steps, which it takes in their order."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import click

from statedict.api import files as api
from statedict.cli.commands import JSON, NO_VERIFY, READ_SOURCE_AS, echo_report, progress, split_pair
from statedict.cli.writing import MAX_SHARD_SIZE, format_option
from statedict.errors import AlterError, file_error
from statedict.ops.alter.steps import Step, read_plan

# option → metavar, help
_STEPS = {
    "only": ("GLOB", "Keep what matches."),
    "drop": ("GLOB", "Drop what matches."),
    "rename": ("OLD=NEW", "Rename by a rule."),
    "prefix": ("TEXT", "Put TEXT before the names; -TEXT takes it away."),
    "cast": ("[GLOB=]DTYPE", "Convert floating point, or what matches."),
    "quantize": ("[GLOB=]TYPE", "Store matrices, or what matches, as Q8_0 or Q4_0 of GGUF."),
    "dequantize": ("[GLOB=]DTYPE", "Convert what is stored as quantized blocks."),
    "map": ("NAME[=HEADS]", "Take the names of keras, flax, nnx, consolidated or gguf, or back."),
    "transpose": ("GLOB[=DIMS]", "Exchange the last two dimensions, or all."),
    "reshape": ("GLOB=SHAPE", "Give another shape."),
    "slice": ("GLOB=INDEX", "Take a part, such as 0:5,:."),
    "pad": ("GLOB=SHAPE", "Enlarge by zeros; -1 leaves a dimension."),
    "split": ("OLD=NEW[:SIZE],NEW[:SIZE][@DIM]", "Make several tensors of one, by default alike."),
    "fuse": ("NEW=OLD,OLD[@DIM]", "Make one tensor of several."),
    "tie": ("NEW=OLD", "Share the bytes of another tensor."),
    "untie": ("GLOB", "Give tied tensors their own bytes."),
    "set": ("PATH=VALUE", "Set a plain value, as JSON or text."),
}
_MERGEABLE = ("keep", "drop", "rename", "tie")  # neighbours with one of these verbs are one step


class _InOrder(click.Command):
    """Keeps the order in which options were given, repetitions included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["order"] = [param.name for param in self.make_parser(ctx).parse_args(list(args))[2]]
        return super().parse_args(ctx, args)


def _step_options(command: Any) -> Any:
    command = click.option("--plan", type=click.Path(), multiple=True, help="Take steps from a TOML file.")(command)
    command = click.option("--strip", is_flag=True, help="Keep the model only.")(command)
    for name, (metavar, text) in reversed(_STEPS.items()):
        command = click.option(f"--{name}", metavar=metavar, multiple=True, help=text)(command)
    return command


# --keep is the old name of --only
@click.command(cls=_InOrder, context_settings={"token_normalize_func": lambda name: "only" if name == "keep" else name})
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path(), required=False)
@_step_options
@format_option("DST")
@READ_SOURCE_AS
@MAX_SHARD_SIZE
@click.option("--in-place", is_flag=True, help="Alter SRC itself; if only names change, its index alone.")
@NO_VERIFY
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@JSON
@click.pass_context
def edit(ctx: click.Context, /, src: str, dst: str | None, in_place: bool, as_json: bool, **options: Any) -> None:
    """Write SRC as DST, altered by the steps that the options give, in their order.

    Tensors go through in blocks, whatever their size. What is done to a parameter is done to its optimizer's moments.
    """
    if (dst is None) is not in_place and not options["dry_run"]:
        raise click.UsageError("name DST, or use --in-place or --dry-run" if dst is None else "--in-place takes no DST")
    texts = {name: deque(options.pop(name)) for name in (*_STEPS, "plan")}
    del options["strip"]
    steps = _steps(ctx.meta["order"], texts)
    if not steps:
        raise click.UsageError("name a step, such as --drop 'head.*', or --plan FILE")
    with progress("editing"):
        report = api.edit(src, dst, steps, **options)
    echo_report(report, as_json)


def _steps(order: list[str], texts: dict[str, deque[str]]) -> list[Step]:
    """The steps that options give: `order` has their names, `texts` their values by name."""
    steps: list[Any] = []
    before = ""  # the verb of the neighbour
    for name in order:
        verb = ""
        if name in _STEPS:
            step = _parse_step(name, texts[name].popleft())
            verb = next(iter(step))
            if verb == before and verb in _MERGEABLE:
                step = {verb: _merge(name, steps.pop()[verb], step[verb])}
            steps.append(step)
        elif name == "plan":
            steps += _read_plan(texts[name].popleft())
        elif name == "strip":
            steps.append({"strip": True})
        before = verb
    return steps


def _parse_step(option: str, text: str) -> dict[str, Any]:
    match option:
        case "only" | "drop":
            return {"keep" if option == "only" else "drop": [text]}
        case "prefix" | "untie":
            return {option: text}
        case "cast" | "quantize" | "dequantize":
            glob, sign, kind = text.rpartition("=")
            return {option: kind, "only": glob} if sign else {option: text}
        case "map":
            name, sign, heads = text.partition("=")
            return {"map": name} | ({"heads": _numbers(option, heads)} if sign else {})
        case "transpose":
            glob, sign, dims = text.partition("=")
            return {"transpose": glob} | ({"dims": _numbers(option, dims)} if sign else {})
    dim = {}
    if option in ("split", "fuse") and "@" in text:
        text, _, number = text.rpartition("@")
        dim = {"dim": _numbers(option, number)[0]}
    left, right = split_pair(option, _STEPS[option][0], text)
    match option:
        case "reshape" | "pad":
            return {option: left, "shape": _numbers(option, right)}
        case "slice":
            return {"slice": left, "index": right}
        case "split":
            names, sizes = _parse_parts(right)
            return {"split": left, "into": names, **sizes, **dim}
        case "fuse":
            return {"fuse": right.split(","), "into": left, **dim}
        case "set":
            try:
                return {"set": left, "value": json.loads(right)}
            except ValueError:
                return {"set": left, "value": right}
    return {option: {left: right}}


def _parse_parts(text: str) -> tuple[list[str], dict[str, list[int]]]:
    """The names in `q:32,k:8,v:8`, and their sizes if they have any."""
    parts = [part.rpartition(":") for part in text.split(",")]
    if not any(sign and size.isdecimal() for _, sign, size in parts):
        return text.split(","), {}
    if not all(name and size.isdecimal() for name, _, size in parts):
        raise click.UsageError(f"--split: {text!r}: give a size to each part or to none, as in q:32,k:8,v:8")
    return [name for name, _, _ in parts], {"sizes": [int(size) for _, _, size in parts]}


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--{option}: {text!r} is not a list of numbers such as 10,-1") from None


def _merge(option: str, old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return [*old, *new]
    for key in new:
        if key in old:
            raise click.UsageError(f"--{option}: {key!r} is given twice, as {old[key]!r} and as {new[key]!r}")
    return old | new


def _read_plan(path: str) -> list[Step]:
    try:
        with open(path, encoding="utf-8") as file:
            return read_plan(file.read(), path)
    except OSError as error:
        raise file_error(path, "cannot open", error) from error
    except UnicodeDecodeError as error:
        raise AlterError(f"{path}: is not text: {error}") from error
