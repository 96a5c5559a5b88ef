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
from dataclasses import dataclass, field
from numbers import Integral, Number
from typing import Any

from statedict.errors import AlterError, RenameError
from statedict.ops.alter import tensors
from statedict.ops.alter import verbs as alter
from statedict.tree.layout import Layout

Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What an argument may be.

    Attributes:
        expected: what an error says of it.
        holds: whether a value is of this kind.
    """

    expected: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Verb:
    """An operation in a plan.

    Attributes:
        apply: takes the layout, the value of the operation's own key, and the other arguments.
        own: the kind of the value of the operation's own key.
        required: arguments that it needs.
        optional: those that it may have.
    """

    apply: Callable[..., Layout]
    own: Kind
    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.rpartition(".")[2] != ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _list_of(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) >= least and all(map(holds, value))


def _dict_of(left: Callable[[Any], bool], right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping) and bool(value) and all(map(left, value)) and all(map(right, value.values()))
    )


_ANYTHING = Kind("a value", lambda value: True)
_TRUE = Kind("true", lambda value: value is True)
_TEXT = Kind("a text", _is_text)
_NAME = Kind("a name", _is_name)
_NAMES = Kind("a list of names", _list_of(_is_name, 1))
_PATHS = Kind("a list of names", _list_of(_is_text, 1))
_PATTERNS = Kind("a pattern or a list of one or more", lambda value: _is_text(value) or _list_of(_is_text, 1)(value))
_RULES = Kind("a table of old = new", _dict_of(_is_text, _is_text))
_TIES = Kind("a table of new = old", _dict_of(_is_name, _is_text))
_DTYPE = Kind("a dtype such as 'bf16'", lambda value: not isinstance(value, Number | list | tuple | Mapping))
_INDEX = Kind("an index such as '0:5,:'", _is_text)
_WHOLE = Kind("a whole number", _is_whole)
_WHOLES = Kind("a list of whole numbers", _list_of(_is_whole))
_SIZES = Kind("a list of whole numbers, none below 0", _list_of(lambda value: _is_whole(value) and value >= 0, 1))
_SHAPE = Kind(
    "a list of whole numbers, where -1 is the only one below 0",
    _list_of(lambda value: _is_whole(value) and value >= -1),
)
_NUMBER = Kind("a number", lambda value: isinstance(value, Number))


def _check_names(before: Layout, after: Layout) -> Layout:
    for path in after.leaves:
        if (not path or path[-1] == ".") and path not in before.leaves:
            raise AlterError(f"{path!r}: is no name for an entry; its last part is empty")
    return after


def _rename(layout: Layout, renames: Mapping[str, str]) -> Layout:
    return _check_names(layout, alter.rename.on_layout(layout, renames))


def _prefix(layout: Layout, text: str, only: Any = "*") -> Layout:
    return _check_names(layout, alter.prefix.on_layout(layout, text, only))


def _cast(layout: Layout, kind: str, only: Any = "*") -> Layout:
    return tensors.cast.on_layout(layout, kind, only)


def _slice(layout: Layout, patterns: Any, index: str) -> Layout:
    return tensors.slice.on_layout(layout, patterns, parsed_index(index))


def _strip(layout: Layout, _: bool) -> Layout:
    return alter.strip.on_layout(layout)


VERBS: dict[str, Verb] = {
    "keep": Verb(alter.select.on_layout, _PATTERNS),
    "drop": Verb(alter.drop.on_layout, _PATTERNS),
    "strip": Verb(_strip, _TRUE),
    "rename": Verb(_rename, _RULES),
    "prefix": Verb(_prefix, _TEXT, {}, {"only": _PATTERNS}),
    "cast": Verb(_cast, _DTYPE, {}, {"only": _PATTERNS}),
    "transpose": Verb(tensors.transpose.on_layout, _PATTERNS, {}, {"dims": _WHOLES}),
    "reshape": Verb(tensors.reshape.on_layout, _PATTERNS, {"shape": _SHAPE}),
    "slice": Verb(_slice, _PATTERNS, {"index": _INDEX}),
    "pad": Verb(tensors.pad.on_layout, _PATTERNS, {"shape": _SHAPE}, {"value": _NUMBER}),
    "split": Verb(tensors.split.on_layout, _TEXT, {"into": _NAMES}, {"dim": _WHOLE, "sizes": _SIZES}),
    "fuse": Verb(tensors.fuse.on_layout, _PATHS, {"into": _NAME}, {"dim": _WHOLE}),
    "tie": Verb(alter.tie.on_layout, _TIES),
    "untie": Verb(alter.untie.on_layout, _PATTERNS),
    "set": Verb(alter.set.on_layout, _TEXT, {"value": _ANYTHING}),
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


def apply(layout: Layout, step: Step) -> Layout:
    """The layout after one step.

    Raises:
        AlterError: the step names no operation, or not what it needs, or it cannot be done; the message names it.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.

    >>> import statedict
    >>> layout = Layout(statedict.load("examples/checkpoint.pth"))
    >>> list(apply(apply(layout, {"strip": True}), {"keep": "fc3"}).leaves)
    ['fc3.weight', 'fc3.bias']
    """
    if not isinstance(step, Mapping):
        raise AlterError(f"step {step!r:.80}: expected a dict such as {{'drop': 'head.*'}}")
    verbs = [key for key in step if key in VERBS]
    if len(verbs) != 1:
        raise AlterError(
            f"step {dict(step)!r}: names {' and '.join(verbs) or 'no operation'}; name one of {', '.join(VERBS)}"
        )
    verb = VERBS[verbs[0]]
    arguments = {key: value for key, value in step.items() if key != verbs[0]}
    kinds = {verbs[0]: verb.own, **verb.required, **verb.optional}
    missing = [key for key in verb.required if key not in arguments]
    unknown = [key for key in arguments if key not in kinds]
    if missing or unknown:
        raise AlterError(
            f"{describe(step)}: " + (f"needs {missing[0]!r}" if missing else f"has no argument {unknown[0]!r}")
        )
    for key, value in step.items():
        if not kinds[key].holds(value):
            raise AlterError(f"{describe(step)}: {key!r}: expected {kinds[key].expected}, got {value!r}")
    try:
        return verb.apply(layout, step[verbs[0]], **arguments)
    except (AlterError, RenameError) as error:
        raise type(error)(f"{describe(step)}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise AlterError(f"{describe(step)}: {error}") from error


def describe(step: Step) -> str:
    """A step in one line.

    >>> describe({"cast": "bf16", "only": "model.*"})
    "cast 'bf16', only 'model.*'"
    """
    return ", ".join(f"{key} {value!r}" for key, value in step.items())
