"""Adapters: live objects ↔ state_dicts. Here is what they share; the table of them is in `collect.py`.

An adapter is a module with the functions of `Adapter`. Capturing yields a tree of the live arrays; api.capture copies
them, api.save writes them. Restoring plans first: the actions run only if nothing in the whole tree is wrong.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, Flag
from typing import Any, Protocol

from statedict.dtypes import dtype
from statedict.errors import TreeError, UnsupportedError
from statedict.tensor.arrays import is_numpy
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tensor.segments import numpy_arrays, torch_tensors
from statedict.tree.state_dict import StateDict, realize, torch_value, transform
from statedict.tree.walk import MAX_DEPTH
from statedict.values import KINDS, PLAIN, Device, Opaque, Size, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.adapters.plan import Plan


class Adapter(Protocol):
    """The functions of an adapter's module."""

    STAGE: int
    """When it plans: 0 as the tree is walked, 1 once all modules have planned, 2 once all optimizers have."""

    # REPLACES, if it is true: what it takes does not change, so `plan` gets what replaces it where it is held, or None

    def accepts(self, value: Any) -> bool:
        """Whether it takes this object; it may not import the framework."""

    def capture(self, value: Any, context: Capture, path: str) -> Any:
        """The object's state as a tree of live arrays and plain values."""

    def plan(self, value: Any, state: Any, plan: Plan, path: str) -> None:
        """Add to the plan what restores the object from `state`."""


Find = Callable[[Any, str], Adapter]
"""Object and path → its adapter, or an `UnsupportedError`."""
DATA = (bool, int, float, complex, str, bytes)


def leaf(value: Any) -> Any:
    """A leaf as plain data, or `Ellipsis` if the value is not a leaf.

    A member of an enumeration becomes its value if it is a number or a text; any other becomes a `Member`.
    """
    if type(value) in KINDS or is_array(value) or isinstance(value, Opaque):
        return value
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if torch is not None:
        if isinstance(value, torch.Size):
            return Size(value)
        if isinstance(value, torch.device):
            return Device(str(value))
        if isinstance(value, torch.dtype):
            return dtype(value)
    if isinstance(value, Enum):
        if not isinstance(value, DATA):
            return member(qualified_name(type(value)), value.value if isinstance(value, Flag) else value.name)
        value = value.value
    return next((kind(value) for kind in DATA if isinstance(value, kind)), ...)  # type: ignore[arg-type]


def fields(value: Any) -> dict[str, Any] | None:
    """The fields of a structured array of numpy, as views of it; None of anything else."""
    names = value.dtype.names if is_numpy(value) else None
    return {name: value[name] for name in names} if names else None


def to_framework(value: Any, live: Any = None) -> Any:
    """A value of a state with arrays, sizes, dtypes and devices as the framework that is loaded has them.

    `live` is what the object has there, None if that is not known; see `adapt`.
    """
    if type(value) not in PLAIN:
        whole, torch = StateDict({"": value}), sys.modules.get("torch") is not None
        value = (realize(whole, _make_arrays, torch_value) if torch else whole.numpy(copy=True))[""]
    return adapt(value, live)


def _make_arrays(tensors: list[LazyTensor]) -> list[Any]:
    """The tensors as torch has them, or as numpy arrays where they were."""
    made = {
        True: iter(numpy_arrays([tensor for tensor in tensors if tensor.ndarray], True)),
        False: iter(torch_tensors([tensor for tensor in tensors if not tensor.ndarray], True)),
    }
    return [next(made[tensor.ndarray]) for tensor in tensors]


def adapt(value: Any, live: Any) -> Any:
    """A plain value as what the live object has there: another container, a subclass of a plain kind, numpy's scalar.

    A container is a copy of the live one, so that it keeps its `default_factory`, with the entries of the value. A
    scalar is converted only if it stays equal.
    """
    kind = type(live)
    if isinstance(value, dict) and isinstance(live, dict):
        items = {key: adapt(item, live.get(key)) for key, item in value.items()}
        plain = type(value) in (dict, StateDict)
        if plain and kind in (dict, StateDict):
            return items
        made: Any = copy.copy(live if plain else value)  # that may be a Counter, or have versions
        made.clear()
        for key, item in items.items():
            made[key] = item
        return made
    if type(value) in (list, tuple):
        beside = entries_beside(value, live)
        entries = [adapt(item, beside(index)) for index, item in enumerate(value)]
        if not isinstance(live, type(value)) or kind is type(value):
            return type(value)(entries)
        if type(value) is tuple:
            return getattr(kind, "_make", kind)(entries)
        made = copy.copy(live)
        made[:] = entries
        return made
    numpy = sys.modules.get("numpy")
    if is_numpy(value) and is_numpy(live) and value.dtype == live.dtype.newbyteorder("="):
        return value.astype(live.dtype, copy=False)
    scalar = numpy is not None and isinstance(live, numpy.generic) and type(value) is type(live.item())
    if kind in PLAIN or not (scalar or (type(value) in DATA and isinstance(live, type(value)))):
        return value
    try:
        if scalar and numpy is not None and isinstance(live, numpy.number):  # of the type itself numpy 1 would warn
            with numpy.errstate(all="ignore"):
                same: Any = numpy.array(value).astype(kind)[()]
        else:
            same = kind(value)
    except (TypeError, ValueError, OverflowError):
        return value
    exact = same.item() if scalar else same  # numpy compares after rounding
    return same if exact == value or value != value else value


def entries_beside(value: Any, live: Any) -> Callable[[int], Any]:
    """What a live list or tuple has beside each entry of another one; of a longer history what all its entries are."""
    if isinstance(live, list | tuple) and len(live) == len(value):
        return live.__getitem__
    alike = isinstance(live, list) and len({*map(type, live)}) == 1
    return lambda index: live[0] if alike else None


@dataclass
class Capture:
    """One capture of a whole tree: what its parts need to know of one another."""

    find: Find
    names: dict[int, str]
    """id of a live parameter → its name, so that optimizers can name theirs."""
    make: Callable[[Any], Any]
    """Makes what stands for an array, once for each."""
    made: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    owner: str = ""
    """The class of the object whose state is captured: it gets that back as it is, so objects in it would be lost."""

    def data(self, value: Any, path: str, owner: Any) -> Any:
        """The state that an object gives of itself, which may hold data only."""
        return replace(self, owner=type(owner).__name__).value(value, path)

    def value(self, value: Any, path: str) -> Any:
        """The state of any value in the tree, which may not contain itself."""
        if type(value) in KINDS:
            return value
        if is_array(value):
            if (columns := fields(value)) is not None:
                return self.value(columns, path)
            if is_numpy(value) and type(value) is not sys.modules["numpy"].ndarray:
                self.find(value, path)  # which refuses one with more than elements, such as a mask
            made = self.convert(value, path)
            if self.owner and is_numpy(value) and isinstance(made, LazyTensor):
                made.ndarray = True
            return made
        plain = leaf(value)
        if isinstance(plain, Opaque):
            return transform(plain, lambda leaf: self.convert(leaf, path) if is_array(leaf) else leaf)
        if plain is not ...:
            return plain
        if self.owner and not isinstance(value, dict | list | tuple):
            raise unsupported_error(value, path, self.owner)
        if id(value) in self.active:
            raise UnsupportedError(f"{path}: contains itself; leave the back reference out")
        if len(self.active) > MAX_DEPTH:
            raise depth_error(path)
        self.active.add(id(value))
        try:
            return self.find(value, path).capture(value, self, path)
        finally:
            self.active.discard(id(value))

    def convert(self, array: Any, path: str) -> Any:
        """What `make` makes of an array."""
        if id(array) not in self.made:
            try:
                self.made[id(array)] = array, self.make(array)
            except UnsupportedError as error:
                raise UnsupportedError(f"{path or 'the root'}: {error}") from None
        return self.made[id(array)][1]


def join(path: str, key: object) -> str:
    """The path of a child."""
    return f"{path}.{key}" if path else str(key)


def qualified_name(kind: type) -> str:
    """A class with its module, as pickles name it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def depth_error(path: str) -> TreeError:
    """The error for a tree that nests deeper than any file may."""
    return TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")


def unsupported_error(value: Any, path: str, owner: str = "") -> UnsupportedError:
    """The error for an object without an adapter, or in the state of another object of the class `owner`."""
    inside = f" in the state of {owner}, which would not get it back" if owner else ""
    if isinstance(value, os.PathLike):
        advice = "store str(path)"
    elif is_array(value):
        advice = "store its data and what it adds to them as plain arrays"
    elif owner:
        advice = "keep what it holds as tensors, numbers, texts, lists and dicts"
    elif callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        advice = "it has state_dict() but no load_state_dict(); give it both"
    else:
        advice = "give it state_dict() and load_state_dict()"
    what = f"cannot capture a {qualified_name(type(value))}{inside}"
    return UnsupportedError(f"{path or 'the root'}: {what}; {advice}, or leave it out")
