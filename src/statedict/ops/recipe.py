"""A list of operations as data: the steps of a plan file, and of the command line.

    [[step]]
    drop = "head.*"                     # a pattern or a list of them

    [[step]]
    rename = {"layers.{n}" = "blocks.{n}"}

    [[step]]
    cast = "bf16"
    only = "model.*"

Each step names one operation; its other keys are that operation's arguments.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from statedict.errors import AlterError, RenameError
from statedict.ops import alter
from statedict.tree import StateDict

Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """An operation in a plan.

    Attributes:
        apply: takes the state, the value of the operation's own key, and the other arguments.
        required: arguments that it needs.
        optional: those that it may have.
    """

    apply: Callable[..., StateDict]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def _prefix(state: StateDict, text: str, only: Any = "*") -> StateDict:
    return alter.prefix(state, text, only)


def _cast(state: StateDict, kind: str, only: Any = "*") -> StateDict:
    return alter.cast(state, kind, only)


def _slice(state: StateDict, patterns: Any, index: str) -> StateDict:
    return alter.slice(state, patterns, parsed_index(index))


def _strip(state: StateDict, wanted: bool) -> StateDict:
    return alter.strip(state) if wanted else state


VERBS: dict[str, Verb] = {
    "keep": Verb(alter.select),
    "drop": Verb(alter.drop),
    "strip": Verb(_strip),
    "rename": Verb(alter.rename),
    "prefix": Verb(_prefix, (), ("only",)),
    "cast": Verb(_cast, (), ("only",)),
    "transpose": Verb(alter.transpose, (), ("dims",)),
    "reshape": Verb(alter.reshape, ("shape",)),
    "slice": Verb(_slice, ("index",)),
    "pad": Verb(alter.pad, ("shape",), ("value",)),
    "split": Verb(alter.split, ("into",), ("dim", "sizes")),
    "fuse": Verb(alter.fuse, ("into",), ("dim",)),
    "tie": Verb(alter.tie),
    "untie": Verb(alter.untie),
    "set": Verb(alter.set, ("value",)),
}


def parsed_index(text: str) -> tuple[Any, ...]:
    """`"0:5,:,-1,..."` as numpy has it.

    >>> parsed_index("0:5, :, ...")
    (slice(0, 5, None), slice(None, None, None), Ellipsis)
    """
    items: list[Any] = []
    for part in text.split(","):
        part = part.strip()
        try:
            bounds = [int(number) if number.strip() else None for number in part.split(":")] if part != "..." else []
        except ValueError:
            raise AlterError(f"{text!r}: is no index; write it as 0:5,:,-1") from None
        if len(bounds) > 3 or (len(bounds) == 1 and bounds[0] is None):
            raise AlterError(f"{text!r}: is no index; write it as 0:5,:,-1")
        items.append(... if not bounds else bounds[0] if len(bounds) == 1 else builtins.slice(*bounds))
    return tuple(items)


def read_plan(text: str, name: str) -> list[Step]:
    """The steps of a plan file.

    Raises:
        AlterError: it is no TOML, or something other than steps.
    """
    import tomllib

    try:
        plan = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AlterError(f"{name}: is no TOML: {error}") from error
    steps = plan.get("step")
    if list(plan) != ["step"] or not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise AlterError(f"{name}: expected [[step]] tables, such as [[step]] with drop = 'head.*' below it")
    return steps


def apply(state: StateDict, step: Step) -> StateDict:
    """The state after one step.

    Raises:
        AlterError: the step names no operation, or not what it needs, or it cannot be done; the message names it.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> list(apply(apply(state, {"strip": True}), {"keep": "fc3"}))
    ['fc3.weight', 'fc3.bias']
    """
    verbs = [key for key in step if key in VERBS]
    if len(verbs) != 1:
        raise AlterError(
            f"step {dict(step)!r}: names {' and '.join(verbs) or 'no operation'}; name one of {', '.join(VERBS)}"
        )
    verb = VERBS[verbs[0]]
    arguments = {key: value for key, value in step.items() if key != verbs[0]}
    missing = [key for key in verb.required if key not in arguments]
    unknown = [key for key in arguments if key not in verb.required + verb.optional]
    if missing or unknown:
        raise AlterError(
            f"{describe(step)}: " + (f"needs {missing[0]!r}" if missing else f"has no argument {unknown[0]!r}")
        )
    try:
        return verb.apply(state, step[verbs[0]], **arguments)
    except (AlterError, RenameError) as error:
        raise type(error)(f"{describe(step)}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:  # an argument of another kind
        raise AlterError(f"{describe(step)}: {error}") from error


def describe(step: Step) -> str:
    """A step in one line.

    >>> describe({"cast": "bf16", "only": "model.*"})
    "cast 'bf16', only 'model.*'"
    """
    return ", ".join(f"{key} {value!r}" for key, value in step.items())
