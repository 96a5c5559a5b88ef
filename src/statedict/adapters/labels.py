"""What no live object may get: labels of objects that were not built.

A pickle names objects of any class, which are read as `Opaque`, and our files have a `Member` for one of an
enumeration. What a live object is about to take is looked through before anything is written. A member is made of the
class that the live object has at that place. Every other label is an error, unless the caller gives a value for it or
leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from typing import Any

from statedict.adapters import DATA, adapt, depth_error, entries_beside, join, leaf, qualified_name
from statedict.tensor.arrays import is_numpy, is_torch
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import MAX_DEPTH, label
from statedict.values import Member, Opaque

Decide = Callable[[str, Any, str], Any]
"""Path, value and what is wrong with it → the caller's value instead, `DROPPED`, or the same value."""
DROPPED: Any = object()


def settle(value: Any, live: Any, path: str, decide: Decide, depth: int = 0) -> Any:
    """A value of a state as a live object can take it; the same object where nothing changes.

    `live` is what the object has there, None if that is not known. `decide` asks the caller.

    Raises:
        TreeError: it is nested deeper than 200.
    """
    if depth > MAX_DEPTH:
        raise depth_error(path)
    if isinstance(live, Enum) and type(value) is not type(live):
        member = find_member(type(live), value)
        return decide(path, value, f"is not a member of {qualified_name(type(live))}") if member is None else member
    if isinstance(value, Opaque) and (held := _contents(value, live)) is not None:
        value = held
    if isinstance(value, Opaque):
        return decide(path, value, f"is an object of {value.name}, which is not built")
    if isinstance(value, Member):
        return decide(path, value, f"is {value!r}, and the target has no member of that class there")
    if why := _why_not(value, live):
        return decide(path, value, why)
    if isinstance(value, dict) and type(value) is not Counter:
        if live is not None and not isinstance(live, dict) and leaf(live) is ... and type(live) not in (list, tuple):
            return decide(path, value, f"is a dict, where the target has a {qualified_name(type(live))}")
        children: Iterable[tuple[Any, Any]] = value.items()
        beside: Callable[[Any], Any] = live.get if isinstance(live, dict) else _know_nothing
    elif type(value) in (list, tuple):
        children, beside = enumerate(value), entries_beside(value, live)
    elif is_array(value):
        wanted = is_numpy(live)
        if not (wanted or is_torch(live)) or wanted is (
            value.ndarray if isinstance(value, LazyTensor) else is_numpy(value)
        ):
            return value
        return as_lazy(value).replace(ndarray=wanted)
    else:
        held = isinstance(value, set | frozenset | Counter) and any(map(_is_label, value))
        return decide(path, value, "holds objects that are not built") if held else value
    changed: dict[Any, Any] = {}
    for key, child in children:
        at = join(path, label(key))
        if _is_label(key):
            now = decide(at, child, "has a key that is an object, which is not built")
        else:
            now = settle(child, beside(key), at, decide, depth + 1)
        if now is not child:
            changed[key] = now
    if not changed:
        return value
    if isinstance(value, dict):
        whole = ((key, changed.get(key, child)) for key, child in value.items())
        return like(value, StateDict((key, child) for key, child in whole if child is not DROPPED))
    if any(item is DROPPED for item in changed.values()):  # the others would move up
        return DROPPED
    return type(value)(changed.get(index, child) for index, child in enumerate(value))


def _why_not(value: Any, live: Any) -> str:
    """Why a container cannot become one of the live class, whose methods do that; empty if it can."""
    if type(live) in (dict, list, tuple, StateDict) or not isinstance(live, dict | list | tuple):
        return ""
    try:
        adapt(value, live)
    except Exception as error:
        return f"cannot become a {qualified_name(type(live))}: {error}"
    return ""


def _contents(value: Opaque, live: Any) -> Any:
    """The entries of a dict, a list or a named tuple of the live class, which a pickle has as an object; else None."""
    if value.name != qualified_name(type(live)) or value.state is not None:
        return None
    if isinstance(live, tuple) and hasattr(live, "_fields"):
        return value.args if isinstance(value.args, tuple) else None
    if value.args:
        return None
    if isinstance(live, dict) and value.items is None:
        return StateDict(value.entries or {})
    return [*(value.items or ())] if isinstance(live, list) and value.entries is None else None


def _know_nothing(_: Any) -> None:
    """What the live object has where that is not known."""


def _is_label(value: Any) -> bool:
    return isinstance(value, Opaque | Member) or (isinstance(value, tuple | frozenset) and any(map(_is_label, value)))


def find_member(kind: type[Enum], value: Any) -> Enum | None:
    """The member of an enumeration that a state means; None if there is none.

    A pickle has the class and the value. Our files have the value if it is a number or a text, else a `Member`; files
    of older versions have the name alone, or the number of flags.
    """
    named = not issubclass(kind, (*DATA, Flag))
    if isinstance(value, Member):
        if value.kind != qualified_name(kind):
            return None
        value, named = value.plain, isinstance(value, str)
    elif isinstance(value, Opaque):
        if value.name != qualified_name(kind) or not isinstance(value.args, tuple) or len(value.args) != 1:
            return None
        value, named = value.args[0], False
    try:
        return kind[value] if named else kind(value)
    except (KeyError, ValueError, TypeError):
        return None
