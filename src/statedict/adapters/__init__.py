"""Adapters: live objects ↔ state_dicts; here the protocol, the table and the recursion.

To add one: a module with `accepts`, `capture` and `plan`; a row in `ADAPTERS`, before the general ones; an entry in
`tests/adapters/conftest.py`, whose conformance suite it then runs.

Capturing yields a tree whose arrays are still the live ones; api.capture copies them, api.save writes them.
Restoring plans first: `plan` compares and reports, and only if nothing in the whole tree is wrong do its actions run.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from statedict.dtypes import dtype
from statedict.errors import TreeError, UnsupportedError
from statedict.tensor.arrays import is_numpy
from statedict.tensor.lazy import is_array
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import MAX_DEPTH
from statedict.values import KINDS, PLAIN, Device, Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.adapters.plan import Plan


class Adapter(Protocol):
    """What an adapter's module offers."""

    STAGE: int
    """When it plans: 0 as the tree is walked, 1 once all modules have planned, 2 once all optimizers have."""

    def accepts(self, value: Any) -> bool:
        """Whether it is the one for this object; it may not import the framework."""

    def capture(self, value: Any, context: Capture, path: str) -> Any:
        """The object's state as a tree of live arrays and plain values."""

    def plan(self, value: Any, state: Any, plan: Plan, path: str) -> None:
        """Add to the plan what restoring the object from `state` takes."""


# module that must be loaded for the adapter to matter, adapter
ADAPTERS: tuple[tuple[str, str], ...] = (
    ("torch", "statedict.adapters.torch_module"),
    ("torch", "statedict.adapters.torch_optimizer"),
    ("torch", "statedict.adapters.torch_scheduler"),
    ("sys", "statedict.adapters.generators"),
    ("sys", "statedict.adapters.stateful"),
    ("sys", "statedict.adapters.objects"),
)


def find(value: Any, path: str) -> Adapter:
    """The adapter for an object.

    Raises:
        UnsupportedError: none takes it.
    """
    for framework, name in ADAPTERS:
        if sys.modules.get(framework) is not None:
            adapter: Any = importlib.import_module(name)
            if adapter.accepts(value):
                return adapter  # type: ignore[no-any-return]
    raise UnsupportedError(
        f"{path or 'the root'}: cannot capture a {type(value).__module__}.{type(value).__qualname__}; "
        f"{_advice(value)}, or leave it out"
    )


_INSIDE = "keep what it holds as tensors, numbers, texts, lists and dicts"


def _advice(value: Any, otherwise: str = "") -> str:
    if isinstance(value, os.PathLike):
        return "store str(path)"
    if isinstance(value, Enum):
        return "store its name or value"
    if is_array(value):
        return "store its data and what it adds to them as plain arrays"
    if otherwise:
        return otherwise
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        return "it has state_dict() but no load_state_dict(); give it both"
    return "give it state_dict() and load_state_dict()"


def leaf(value: Any) -> Any:
    """A value that is a leaf, in our terms, or `Ellipsis` if it is none."""
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
    if is_special_plain(value):
        value = value.value if isinstance(value, Enum) else value
        for kind in (bool, int, float, complex, str, bytes):
            if isinstance(value, kind):
                return kind(value)  # type: ignore[arg-type]  # of its own subclass
    return ...


def is_special_plain(value: Any) -> bool:
    """Whether it is of a subclass of a plain kind, like an enumeration."""
    return type(value) not in PLAIN and isinstance(value, (int, float, complex, str, bytes))


def to_framework(value: Any) -> Any:
    """A value of a state with arrays, sizes, dtypes and devices as the framework that is loaded has them."""
    if type(value) in PLAIN:
        return value
    whole = StateDict({"": value})
    return (whole.torch(copy=True) if "torch" in sys.modules else whole.numpy(copy=True))[""]


@dataclass
class Capture:
    """One capture of a whole tree: what its parts need to know of one another."""

    names: dict[int, str] = field(default_factory=dict)
    """id of a live parameter → its name, so that optimizers can name theirs."""
    active: set[int] = field(default_factory=set)
    owner: str = ""
    """The class of the object whose state is captured: it gets that back as it is, so objects in it would be lost."""

    def data(self, value: Any, path: str, owner: Any) -> Any:
        """The state that an object gives of itself, which may hold data only.

        Raises:
            UnsupportedError: it holds something else, or contains itself.
        """
        before, self.owner = self.owner, type(owner).__name__
        try:
            return self.value(value, path)
        finally:
            self.owner = before

    def value(self, value: Any, path: str) -> Any:
        """The state of any value in the tree.

        Raises:
            UnsupportedError: it is no data and no adapter takes it, or it contains itself.
            TreeError: it is nested deeper than 200.
        """
        plain = leaf(value)
        if plain is not ...:
            if is_numpy(value) and type(value) is not sys.modules["numpy"].ndarray:
                find(value, path)  # which refuses one with more than elements, such as a mask
            return plain
        if self.owner and not isinstance(value, dict | list | tuple):
            raise UnsupportedError(
                f"{path}: cannot capture a {type(value).__module__}.{type(value).__qualname__} in the state of "
                f"{self.owner}, which would not get it back; {_advice(value, _INSIDE)}, or leave it out"
            )
        if id(value) in self.active:
            raise UnsupportedError(f"{path}: contains itself; leave the back reference out")
        if len(self.active) > MAX_DEPTH:
            raise too_deep(path)
        self.active.add(id(value))
        try:
            return find(value, path).capture(value, self, path)
        finally:
            self.active.discard(id(value))


def join(path: str, key: object) -> str:
    """The path of a child."""
    return f"{path}.{key}" if path else str(key)


def too_deep(path: str) -> TreeError:
    """The error for a tree that nests deeper than any file may."""
    return TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")
