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

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from numbers import Integral, Number
from typing import Any, NamedTuple

from statedict.errors import AlterError, PatternError, RenameError
from statedict.ops.alter import maps, quantize, tensors, verbs
from statedict.ops.alter.outline import drop_hashes
from statedict.ops.quantization.find import find_paths
from statedict.reports.outcomes import Change, EditReport
from statedict.tensor.blocks import as_stored
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tensor.segments import count_bytes
from statedict.tree.layout import Layout
from statedict.tree.state_dict import StateDict
from statedict.values import abbreviate

Step = Mapping[str, Any]


class Kind(NamedTuple):
    """What an argument may be."""

    expected: str  # in an error
    holds: Callable[[Any], bool]


class Verb(NamedTuple):
    """An operation in a plan."""

    operation: Any  # of `statedict.alter`
    kind: Kind  # of the value of the operation's own key
    required: Mapping[str, Kind] = {}
    optional: Mapping[str, Kind] = {}


def _list_of(kind: Kind, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) >= least and all(map(kind.holds, value))


def _dict_of(key: Kind) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping) and bool(value) and all(map(key.holds, value)) and _TEXTS(list(value.values()))
    )


_ANYTHING = Kind("a value", lambda value: True)
_TRUE = Kind("true", lambda value: value is True)
_TEXT = Kind("a text", lambda value: isinstance(value, str))
_TEXTS = _list_of(_TEXT, 1)
_NAME = Kind("a name", lambda value: isinstance(value, str) and value.rpartition(".")[2] != "")
_NAMES = Kind("a list of names", _list_of(_NAME, 1))
_PATHS = Kind("a list of names", _TEXTS)
_PATTERNS = Kind("a pattern or a list of one or more", lambda value: isinstance(value, str) or _TEXTS(value))
_RULES = Kind("a table of old = new", _dict_of(_TEXT))
_TIES = Kind("a table of new = old", _dict_of(_NAME))
_DTYPE = Kind("a dtype such as 'bf16'", lambda value: not isinstance(value, Number | list | tuple | Mapping))
_INDEX = Kind("an index such as '0:5,:'", _TEXT.holds)
_WHOLE = Kind("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool))
_WHOLES = Kind("a list of whole numbers", _list_of(_WHOLE))
_SIZE = Kind("a whole number, not below 0", lambda value: _WHOLE.holds(value) and value >= 0)
_SIZES = Kind("a list of whole numbers, none below 0", _list_of(_SIZE, 1))
_LENGTH = Kind("a whole number or -1", lambda value: _WHOLE.holds(value) and value >= -1)
_SHAPE = Kind("a list of whole numbers, where -1 is the only one below 0", _list_of(_LENGTH))
_NUMBER = Kind("a number", lambda value: isinstance(value, Number))
_HEADS = Kind("a list of one or two sizes", lambda value: _SIZES.holds(value) and min(value) > 0 and len(value) < 3)
_CONFIG = Kind("a table, as quantization_config in config.json", lambda value: isinstance(value, Mapping))

VERBS: dict[str, Verb] = {
    "keep": Verb(verbs.select, _PATTERNS),
    "drop": Verb(verbs.drop, _PATTERNS),
    "strip": Verb(verbs.strip, _TRUE),
    "rename": Verb(verbs.rename, _RULES),
    "prefix": Verb(verbs.prefix, _TEXT, {}, {"only": _PATTERNS}),
    "cast": Verb(tensors.cast, _DTYPE, {}, {"only": _PATTERNS}),
    "quantize": Verb(quantize.quantize, _TEXT, {}, {"only": _PATTERNS}),
    "dequantize": Verb(quantize.dequantize, _DTYPE, {}, {"only": _PATTERNS, "config": _CONFIG}),
    "map": Verb(maps.map_names, _TEXT, {}, {"heads": _HEADS}),
    "transpose": Verb(tensors.transpose, _PATTERNS, {}, {"dims": _WHOLES}),
    "reshape": Verb(tensors.reshape, _PATTERNS, {"shape": _SHAPE}),
    "slice": Verb(tensors.slice, _PATTERNS, {"index": _INDEX}),
    "pad": Verb(tensors.pad, _PATTERNS, {"shape": _SHAPE}, {"value": _NUMBER}),
    "split": Verb(tensors.split, _TEXT, {"into": _NAMES}, {"dim": _WHOLE, "sizes": _SIZES}),
    "fuse": Verb(tensors.fuse, _PATHS, {"into": _NAME}, {"dim": _WHOLE}),
    "tie": Verb(verbs.tie, _TIES),
    "untie": Verb(verbs.untie, _PATTERNS),
    "set": Verb(verbs.set, _TEXT, {"value": _ANYTHING}),
}


_COPY = {"keep", "drop", "strip", "rename", "prefix", "tie", "untie", "set"}


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
    names = [key for key in step if key in VERBS]
    if len(names) != 1:
        raise AlterError(
            f"step {dict(step)!r}: names {' and '.join(names) or 'no operation'}; name one of {', '.join(VERBS)}"
        )
    (name,) = names
    verb = VERBS[name]
    kinds = {name: verb.kind, **verb.required, **verb.optional}
    missing = [key for key in verb.required if key not in step]
    unknown = [key for key in step if key not in kinds]
    if missing or unknown:
        raise AlterError(
            f"{describe(step)}: " + (f"needs {missing[0]!r}" if missing else f"has no argument {unknown[0]!r}")
        )
    for key, value in step.items():
        if not kinds[key].holds(value):
            kind = PatternError if kinds[key] is _PATTERNS else AlterError
            raise kind(f"{describe(step)}: {key!r}: expected {kinds[key].expected}, got {value!r}")
    try:
        first = [] if verb.kind is _TRUE else [step[name]]
        arguments = {"patterns" if key == "only" else key: value for key, value in step.items() if key != name}
        new: Layout = verb.operation.on_layout(layout, *first, **arguments)
        for path in new.leaves if name in ("rename", "prefix") else ():
            if (not path or path[-1] == ".") and path not in layout.leaves:
                raise AlterError(f"{path!r}: not a name for an entry; its last part is empty")
    except (AlterError, RenameError) as error:
        raise type(error)(f"{describe(step)}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise AlterError(f"{describe(step)}: {error}") from error
    return new


def until_computed(steps: Iterable[Step]) -> list[Step]:
    """The steps before the first one that computes tensors; the later ones read what is there then."""
    return [*takewhile(lambda step: not _COPY.isdisjoint(step), steps)]


def describe(step: Step) -> str:
    """A step in one line.

    >>> describe({"cast": "bf16", "only": "model.*"})
    "cast 'bf16', only 'model.*'"
    """
    return ", ".join(f"{key} {value!r}" for key, value in step.items() if key != "config")


def apply_steps(state: StateDict, steps: Iterable[Step], written: bool) -> tuple[StateDict, EditReport]:
    """The state after all steps, and what each of them did.

    Raises:
        AlterError: a step cannot be done.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.
    """
    layout = Layout(state)
    before = now = layout.entries()
    changes, notes = [], list[str]()
    for step in steps:
        before_step, layout = layout, apply(layout, step)
        notes += _note(before_step, step)
        old, now = now, layout.entries()
        altered = (path for path, leaf in now.items() if path in old and not _is_same(old[path], leaf))
        added, removed = (tuple(p for p in one if p not in other) for one, other in ((now, old), (old, now)))
        changes.append(Change(describe(step), added, removed, tuple(altered)))
    old_tensors, new_tensors = (
        [as_lazy(leaf) for leaf in entries.values() if is_array(leaf)] for entries in (before, now)
    )
    nbytes = count_bytes([*map(as_stored, old_tensors)])
    same = [*map(id, old_tensors)] == [*map(id, new_tensors)]
    sizes = nbytes, nbytes if same else count_bytes([*map(as_stored, new_tensors)])
    touched = any(one.added or one.removed or one.altered for one in changes)
    stale = drop_hashes(layout.tree) if touched else []
    notes += [f"dropped from the metadata: {', '.join(stale)}, of the bytes before"] if stale else []
    counts = len(old_tensors), len(new_tensors)
    return layout.tree, EditReport(tuple(changes), counts, sizes, written, notes=tuple(notes))


def _note(layout: Layout, step: Step) -> Iterable[str]:
    """What a step leaves as it is: a cast without patterns, a map, a dequantization, which also says what it did."""
    if isinstance(step, Mapping) and "map" in step and (left := maps.list_unmapped(layout, step["map"])):
        yield f"map {step['map']}: has no name for {abbreviate(left)}"
    if isinstance(step, Mapping) and "dequantize" in step:
        yield from quantize.describe_dequantized(layout, step.get("only", "*"), step.get("config"))
    if isinstance(step, Mapping) and "cast" in step and step.get("only", "*") == "*":
        quantized, leaves = find_paths(layout.tensors()), layout.leaves.items()
        if left := [path for path, leaf in leaves if path in quantized and as_lazy(leaf).dtype.kind == "float"]:
            yield (
                f"{describe(step)}: what belongs to quantized weights stays as it is ({abbreviate(left)}); a pattern "
                "that names it converts it all the same"
            )


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if is_array(one) and is_array(other):
        one, other = as_lazy(one), as_lazy(other)
        alike = one.dtype is other.dtype and one.shape == other.shape
        return alike and (not one.nbytes or bool(one.region == other.region))
    return type(one) is type(other) and bool(one == other)
