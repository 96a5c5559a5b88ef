"""What no live object may get: labels of objects that were not built.

A pickle names objects of any class, which are read as `Opaque`. What a live object is about to take is looked through
before anything is written. A member of an enumeration is made of the class that the live object has at that place.
Every other label is an error, unless the caller gives a value for it or leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

from statedict.adapters import leaf, too_deep
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import MAX_DEPTH, label
from statedict.values import Opaque

Decide = Callable[[str, Any, str], Any]
"""Path, value and what is wrong with it → the caller's value instead, `DROPPED`, or the same value."""
DROPPED: Any = object()


def settle(value: Any, live: Any, path: str, decide: Decide, depth: int = 0) -> Any:
    """A value of a state as a live object can take it; the same object where nothing changes.

    Args:
        value: the value, of any depth.
        live: what the live object has there; None if that is not known.
        path: where it stands.
        decide: asks the caller.
        depth: how many containers are around.

    Raises:
        TreeError: it is nested deeper than 200.
    """
    if depth > MAX_DEPTH:
        raise too_deep(path)
    if isinstance(live, Enum):
        if isinstance(value, Enum):
            return value
        found = find_member(type(live), value)
        return decide(path, value, f"is no member of {_name(type(live))}") if found is None else found
    if isinstance(value, Opaque):
        return decide(path, value, f"is an object of {value.name}, which is not built")
    if isinstance(value, dict) and type(value) is not Counter:
        if live is not None and not isinstance(live, dict) and leaf(live) is ... and type(live) not in (list, tuple):
            return decide(path, value, f"is a dict, where the target has a {_name(type(live))}")
        return _settle_dict(value, live, path, decide, depth + 1)
    if type(value) in (list, tuple):
        return _settle_list(value, live, path, decide, depth + 1)
    if isinstance(value, set | frozenset | Counter) and any(map(_is_label, value)):
        return decide(path, value, "holds objects that are not built")
    return value


def _settle_dict(value: Any, live: Any, path: str, decide: Decide, depth: int) -> Any:
    changed: dict[Any, Any] = {}
    for key, child in value.items():
        at = f"{path}.{label(key)}" if path else label(key)
        there = live.get(key) if isinstance(live, dict) else None
        if _is_label(key):
            now = decide(at, child, "has a key that is an object, which is not built")
        else:
            now = settle(child, there, at, decide, depth)
        if now is not child:
            changed[key] = now
    if not changed:
        return value
    whole = {key: changed.get(key, child) for key, child in value.items()}
    return like(value, StateDict((key, child) for key, child in whole.items() if child is not DROPPED))


def _settle_list(value: Any, live: Any, path: str, decide: Decide, depth: int) -> Any:
    alike = isinstance(live, list | tuple) and len(live) == len(value)
    found = [
        settle(child, live[index] if alike else None, f"{path}.{index}" if path else str(index), decide, depth)
        for index, child in enumerate(value)
    ]
    if any(item is DROPPED for item in found):  # the others would move up
        return DROPPED
    return value if all(one is other for one, other in zip(found, value, strict=True)) else type(value)(found)


def _is_label(value: Any) -> bool:
    return isinstance(value, Opaque) or (isinstance(value, tuple | frozenset) and any(map(_is_label, value)))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def find_member(kind: type[Enum], value: Any) -> Enum | None:
    """The member of an enumeration that a state means; None if there is none.

    A pickle has the class and the value; a text is a name, or the value of an enumeration of texts.
    """
    named = not issubclass(kind, int | float | complex | str | bytes)
    if isinstance(value, Opaque):
        if value.name != _name(kind) or not isinstance(value.args, tuple) or len(value.args) != 1:
            return None
        value, named = value.args[0], False
    try:
        return kind[value] if named else kind(value)
    except (KeyError, ValueError, TypeError):
        return None
