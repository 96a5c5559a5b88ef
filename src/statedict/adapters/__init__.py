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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from statedict.adapters import suggest
from statedict.adapters.names import align
from statedict.adapters.report import Entry, allowed
from statedict.arrays import is_numpy
from statedict.dtypes import dtype
from statedict.errors import TreeError, UnsupportedError
from statedict.paths import MAX_DEPTH
from statedict.rename import Rules
from statedict.tensor import LazyTensor, is_array
from statedict.tree import StateDict, like
from statedict.values import KINDS, PLAIN, Device, Opaque, Size


class Adapter(Protocol):
    """What an adapter's module offers."""

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


def _advice(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return "store str(path)"
    if is_array(value):
        return "store its data and what it adds to them as plain arrays"
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
    if _is_special_plain(value):
        for kind in (bool, int, float, complex, str, bytes):
            if isinstance(value, kind):
                return kind(value)  # type: ignore[arg-type]  # of its own subclass
    return ...


def _is_special_plain(value: Any) -> bool:
    """Whether it is of a subclass of a plain kind, like an enumeration."""
    return type(value) not in PLAIN and isinstance(value, (int, float, complex, str, bytes))


def realized(value: Any) -> Any:
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
        if id(value) in self.active:
            raise UnsupportedError(f"{path}: contains itself; leave the back reference out")
        if len(self.active) > MAX_DEPTH:
            raise too_deep(path)
        self.active.add(id(value))
        try:
            return find(value, path).capture(value, self, path)
        finally:
            self.active.discard(id(value))


@dataclass
class Plan:
    """What a restore will do, complete before any of it is done."""

    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    cast: bool = False
    prefix: str | None = None
    rules: Rules | None = None
    modules: Sequence[str] = ()
    """The paths of the modules in the tree, below which the names of an optimizer's parameters may stand."""
    names: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """How names were read."""
    renames: dict[str, str] = field(default_factory=dict)
    """Rules that would give missing entries what unexpected ones have."""
    renamed_count: int = 0
    entries: list[Entry] = field(default_factory=list)
    problems: list[Entry] = field(default_factory=list)
    actions: list[Callable[[], None]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """For each action the path of what it restores."""

    def value(self, target: Any, state: Any, path: str, assign: Callable[[Any], None] | None = None) -> None:
        """Plan for any value in the tree; `assign` replaces it in its parent where that is how it is restored."""
        plain = leaf(target)
        if plain is not ... and not is_array(target):
            if assign is None:
                self.problem("cannot be set", path, "is a plain value that its parent cannot replace")
            elif plain is not None and (is_array(state) or leaf(state) is ...):
                self.mismatch(path, target, state)
            else:
                self.note("restored", path, "" if _same(plain, leaf(state)) else f"{plain!r:.40} → {state!r:.40}")
                self.actions.append(lambda: assign(_alike(target, realized(state))))
        else:
            find(target, path).plan(target, self.renamed(state, path), self, path)
        self.paths += [path] * (len(self.actions) - len(self.paths))

    def renamed(self, state: Any, path: str) -> Any:
        """A dict of the state with its keys as the caller's rules make them."""
        if self.rules is None or not isinstance(state, dict):
            return state
        above = join(path, "") if path else ""
        result, modules = like(state, StateDict()), {}
        for key, value in state.items():
            new = self.rules(above + key) if type(key) is str else key
            if type(key) is str:
                if not new.startswith(above):
                    self.problem("moved", above + key, f"a rule makes it {new!r}, out of the dict that holds it")
                new = new.removeprefix(above)
                modules[key.rpartition(".")[0]] = new.rpartition(".")[0]
            if new in result:
                self.problem("collision", above + key, f"becomes {above}{new}, which another entry is or becomes")
            result[new] = value
        if isinstance(result._metadata, dict):
            result._metadata = {modules.get(name, name): entry for name, entry in result._metadata.items()}
        return result

    def parameter(self, name: Any) -> Any:
        """A parameter's name in the state of an optimizer, as the caller's rules make it."""
        for above in ("", *self.modules) if self.rules is not None and type(name) is str else ():
            full = join(above, name)
            new = self.rules(full)  # type: ignore[misc]  # not None, as the line above says
            if new != full and new.startswith(above):
                return new[len(above) :].removeprefix(".")
        return name

    def align(self, target: Iterable[str], state: Iterable[str], path: str) -> dict[str, str] | None:
        """Name in the target → name in the state, wrappers and prefixes set aside; None where that is ambiguous."""
        reading = align(target, state, self.prefix)
        if reading.other:
            detail = f"two readings are possible: {reading.other}; pass prefix=… to choose"
            self.problem("ambiguous", path or "the names", detail)
            return None
        if reading.note:
            self.notes.append(f"{path}: {reading.note}" if path else reading.note)
        return reading.pairs

    def suggest(self, missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> None:
        """Look for entries that are there under another name; both by path, with what must agree."""
        if missing and unexpected and not all(allowed(path, self.allow_missing) for path in missing):
            found = suggest.rules(missing, unexpected)
            self.renames |= found
            self.renamed_count += sum(Rules(found)(path) in missing for path in unexpected) if found else 0

    def note(self, action: str, path: str, detail: str = "") -> None:
        """Report what will happen to an entry."""
        self.entries.append(Entry(path, action, detail))

    def problem(self, action: str, path: str, detail: str) -> None:
        """Report what forbids the restore."""
        self.problems.append(Entry(path, action, detail))

    def mismatch(self, path: str, target: Any, state: Any) -> None:
        """Report a state of another kind than its target."""
        self.problem("kind", path, f"the target is a {type(target).__name__}, the state has a {type(state).__name__}")

    def missing(self, path: str, detail: str = "the target has it, the state does not") -> None:
        """An entry of the target that the state lacks."""
        (self.note if allowed(path, self.allow_missing) else self.problem)("missing", path, detail)

    def unexpected(self, path: str, detail: str = "the state has it, the target does not") -> None:
        """An entry of the state that the target lacks."""
        (self.note if allowed(path, self.allow_unexpected) else self.problem)("unexpected", path, detail)

    def tensor(self, shape: tuple[int, ...], kind: Any, value: LazyTensor, path: str) -> bool:
        """Check a tensor of the state against its target's shape and dtype; False if it does not fit."""
        if tuple(shape) != value.shape:
            self.problem("shape", path, f"the state has {value.shape}, the target {tuple(shape)}")
        elif kind is not value.dtype and not self.cast:
            self.problem("dtype", path, f"the state has {value.dtype}, the target {kind}; pass cast=True to convert")
        else:
            same = kind is value.dtype
            self.note("restored" if same else "cast", path, "" if same else f"{value.dtype} → {kind}")
            return True
        return False


def join(path: str, key: object) -> str:
    """The path of a child."""
    return f"{path}.{key}" if path else str(key)


def too_deep(path: str) -> TreeError:
    """The error for a tree that nests deeper than any file may."""
    return TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")


def _alike(target: Any, value: Any) -> Any:
    """The value as what the target was: a member of its enumeration, a numpy scalar."""
    numpy = sys.modules.get("numpy")
    if _is_special_plain(target) or (numpy is not None and isinstance(target, numpy.generic)):
        return type(target)(value)
    return value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
