"""The options of `statedict edit` as steps, in the order in which they were given."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import click

from statedict.errors import AlterError, file_error
from statedict.ops.alter.steps import Step, read_plan


class InOrder(click.Command):
    """Keeps the order in which options were given, repetitions included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, and note the order."""
        ctx.meta["order"] = [param.name for param in self.make_parser(ctx).parse_args(list(args))[2]]
        return super().parse_args(ctx, args)


def pair(option: str, text: str) -> tuple[str, str]:
    """`LEFT=RIGHT`.

    Raises:
        click.UsageError: a side or the sign is missing.
    """
    left, sign, right = text.partition("=")
    if not sign or not left:
        raise click.UsageError(f"--{option} {text!r}: expected {STEPS[option][0]}")
    return left, right


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--{option}: {text!r} is no list of numbers such as 10,-1") from None


def _table(verb: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {verb: dict([pair(verb, text)])}


def _shape(verb: str) -> Callable[[str], dict[str, Any]]:
    def step(text: str) -> dict[str, Any]:
        glob, shape = pair(verb, text)
        return {verb: glob, "shape": _numbers(verb, shape)}

    return step


def _cast(text: str) -> dict[str, Any]:
    glob, sign, kind = text.rpartition("=")
    return {"cast": kind, "only": glob} if sign else {"cast": text}


def _transpose(text: str) -> dict[str, Any]:
    glob, sign, dims = text.partition("=")
    return {"transpose": glob, "dims": _numbers("transpose", dims)} if sign else {"transpose": text}


def _slice(text: str) -> dict[str, Any]:
    glob, index = pair("slice", text)
    return {"slice": glob, "index": index}


def _dim(option: str, text: str) -> tuple[str, dict[str, int]]:
    """`...@DIM`."""
    head, sign, dim = text.rpartition("@")
    return (head, {"dim": _numbers(option, dim)[0]}) if sign else (text, {})


def _split(text: str) -> dict[str, Any]:
    text, dim = _dim("split", text)
    path, into = pair("split", text)
    return {"split": path, "into": into.split(","), **dim}


def _fuse(text: str) -> dict[str, Any]:
    text, dim = _dim("fuse", text)
    into, parts = pair("fuse", text)
    return {"fuse": parts.split(","), "into": into, **dim}


def _set(text: str) -> dict[str, Any]:
    path, value = pair("set", text)
    try:
        return {"set": path, "value": json.loads(value)}
    except ValueError:
        return {"set": path, "value": value}


# option → metavar, help, what makes a step of its text
STEPS: dict[str, tuple[str, str, Callable[[str], dict[str, Any]]]] = {
    "only": ("GLOB", "Keep what matches.", lambda text: {"keep": [text]}),
    "drop": ("GLOB", "Drop what matches.", lambda text: {"drop": [text]}),
    "rename": ("OLD=NEW", "Rename by a rule.", _table("rename")),
    "prefix": ("TEXT", "Put TEXT before the names; -TEXT takes it away.", lambda text: {"prefix": text}),
    "cast": ("[GLOB=]DTYPE", "Convert floating point, or what matches.", _cast),
    "transpose": ("GLOB[=DIMS]", "Exchange the last two dimensions, or all.", _transpose),
    "reshape": ("GLOB=SHAPE", "Give another shape.", _shape("reshape")),
    "slice": ("GLOB=INDEX", "Take a part, such as 0:5,:.", _slice),
    "pad": ("GLOB=SHAPE", "Enlarge by zeros; -1 leaves a dimension.", _shape("pad")),
    "split": ("OLD=NEW,NEW[@DIM]", "Make several tensors of one.", _split),
    "fuse": ("NEW=OLD,OLD[@DIM]", "Make one tensor of several.", _fuse),
    "tie": ("NEW=OLD", "Share the bytes of another tensor.", _table("tie")),
    "untie": ("GLOB", "Give tied tensors their own bytes.", lambda text: {"untie": text}),
    "set": ("PATH=VALUE", "Set a plain value, as JSON or text.", _set),
}
_TOGETHER = ("keep", "drop", "rename", "tie")  # neighbours of one verb are one step


def step_options(command: Any) -> Any:
    """Give a command the options of `STEPS`, `--strip` and `--plan`."""
    command = click.option("--plan", type=click.Path(), multiple=True, help="Take steps from a TOML file.")(command)
    command = click.option("--strip", is_flag=True, help="Keep the model only.")(command)
    for name, (metavar, text, _) in reversed(STEPS.items()):
        command = click.option(f"--{name}", metavar=metavar, multiple=True, help=text)(command)
    return command


def steps_of(order: list[str], options: Mapping[str, Any]) -> list[Step]:
    """The steps that options give.

    Args:
        order: the names of all options, as often and in the order as they were given.
        options: name → its texts.

    Raises:
        click.UsageError: an option has another form, or contradicts its neighbour.
    """
    left = {name: deque(options[name]) for name in (*STEPS, "plan")}
    steps: list[Any] = []
    before = ""  # the verb of the neighbour
    for name in order:
        verb = ""
        if name in STEPS:
            step = STEPS[name][2](left[name].popleft())
            verb = next(iter(step))
            if verb == before and verb in _TOGETHER:
                step = {verb: _merge(name, steps.pop()[verb], step[verb])}
            steps.append(step)
        elif name == "plan":
            steps += _read_plan(left[name].popleft())
        elif name == "strip":
            steps.append({"strip": True})
        before = verb
    return steps


def _merge(option: str, old: Any, new: Any) -> Any:
    """What neighbours of one verb are together."""
    if not isinstance(new, dict):
        return [*old, *new]
    for key in new:
        if key in old:
            raise click.UsageError(f"--{option}: {key!r} is given twice, as {old[key]!r} and as {new[key]!r}")
    return old | new


def _read_plan(path: str) -> list[Step]:
    """The steps of a plan file."""
    try:
        with open(path, encoding="utf-8") as file:
            return read_plan(file.read(), path)
    except OSError as error:
        raise file_error(path, "cannot open", error) from error
    except UnicodeDecodeError as error:
        raise AlterError(f"{path}: is no text: {error}") from error
