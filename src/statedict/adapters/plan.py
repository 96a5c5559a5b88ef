"""Plan: what a restore will do, complete before any of it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any

from statedict.adapters import Find, join, leaf, to_framework
from statedict.adapters.labels import DROPPED, find_member, settle
from statedict.adapters.names import Reading, align, suggest_rules
from statedict.adapters.shapes import POLICIES, Fit
from statedict.dtypes import DType
from statedict.errors import RestoreError
from statedict.reports.outcomes import Entry
from statedict.tensor.arrays import format_boxes
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tree.optimizer import Shape
from statedict.tree.rename import Rules, modules
from statedict.tree.roles import plain
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import matches

MISSING = "the target has it, the state does not"
UNEXPECTED = "the state has it, the target does not"
_LEFT = ("missing", "fresh", "unexpected")


@dataclass(frozen=True)
class Options:
    """What the caller of `restore` asks for and allows; see there."""

    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    shapes: Mapping[str, str] = field(default_factory=dict)
    cast: Sequence[str] = ()
    prefix: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    override: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pattern, policy in self.shapes.items():
            if policy not in POLICIES:
                raise RestoreError(f"shapes: {pattern!r}: expected one of {', '.join(POLICIES)}, got {policy!r}")
        for pattern, wanted in self.override.items():
            settle(wanted, None, pattern, _refuse_label)


@dataclass
class Plan:
    """What a restore will do, complete before any of it is done.

    Adapters add entries (what will happen), problems (what forbids it) and actions (what does it). A later stage relies
    on what an earlier one has found: a module says what becomes of its parameters, its optimizer follows, and then the
    optimizer's scheduler.
    """

    find: Find
    options: Options = field(default_factory=Options)
    names: dict[int, str] = field(default_factory=dict)  # id of a live parameter → its name, as optimizers call it
    homes: dict[int, str] = field(default_factory=dict)  # id of a live parameter → the path of its module
    notes: list[str] = field(default_factory=list)  # how names were read
    hints: list[str] = field(default_factory=list)  # what the caller can do about problems
    renames: dict[str, str] = field(default_factory=dict)  # rules that may make missing entries of unexpected ones
    entries: list[Entry] = field(default_factory=list)
    problems: list[Entry] = field(default_factory=list)
    actions: list[tuple[str, Callable[[], None]]] = field(default_factory=list)  # path → what restores something there
    origins: dict[str, str] = field(default_factory=dict)  # path in the state → what it was called before `rename`
    fates: dict[int, Fit] = field(default_factory=dict)  # id of a live parameter → how its shape changes
    dtypes: dict[int, DType] = field(default_factory=dict)  # id of a live parameter → its dtype in the state
    first_values: dict[int, tuple[str, LazyTensor]] = field(default_factory=dict)  # id of a tensor → module, value
    absent: set[int] = field(default_factory=set)  # ids of parameters that the caller lets the state lack
    rates: dict[int, list[Any]] = field(default_factory=dict)  # id of an optimizer → learning rates of its groups
    shapes: dict[str, tuple[int | None, Shape]] = field(default_factory=dict)
    """Path of what is or may have been a parameter in the state → who takes it, and its shape, in the state's order."""
    owners: dict[str, int | None] = field(default_factory=dict)
    """Path of a module's entry in the state → id of the parameter that takes it; None for what the caller lets go."""

    def __post_init__(self) -> None:
        self.rules = Rules(self.options.rename) if self.options.rename else None
        self._used: set[str] = set()
        self._later: list[tuple[int, Callable[[], None]]] = []

    def tree(self, target: Any, state: Any) -> None:
        """Plan for the whole tree."""
        self.value(target, state, "")
        while self._later:
            self._later.sort(key=lambda item: item[0])
            self._later.pop(0)[1]()
        for rule in self.rules.idle() if self.rules else ():
            self.problem("idle rule", rule, "matches no entry of the state; fix or remove it")
        for pattern in self.options.override.keys() - self._used:
            self.problem("idle override", pattern, "matches no value of the target")
        counts = self.rules.matched.items() if self.rules else ()
        self.notes += [f"renamed {count:,} by {rule}" for rule, count in counts if count]
        refused = {one.path for one in self.problems if one.action == "object"}  # which says enough
        self.entries = [entry for entry in self.entries if entry.path not in refused]
        self.problems = [one for one in self.problems if one.action != "kind" or one.path not in refused]
        if not self.problems and self.entries and all(e.action in _LEFT for e in self.entries):
            self.problem("nothing matched", "", "no entry of the state has the name of an entry of the target")

    def value(self, target: Any, state: Any, path: str, assign: Callable[[Any], None] | None = None) -> None:
        """Plan for any value in the tree; `assign` replaces it in its parent where that is how it is restored."""
        own = leaf(target)
        if own is ... or is_array(target):
            adapter = self.find(target, path)
            held: dict[str, Any] = {"assign": assign} if getattr(adapter, "REPLACES", False) else {}
            work = partial(adapter.plan, target, self.rename(state, path), self, path, **held)
            if adapter.STAGE:
                self._later.append((adapter.STAGE, work))
            else:
                work()
            return
        wanted = self.override(path, state)
        action = "restored" if wanted is state else "overridden"
        problems = len(self.problems)
        if wanted is state:
            wanted = self.settle(state, target, path)
        if wanted is DROPPED or len(self.problems) > problems:
            return
        if assign is None:
            self.problem("cannot be set", path, "is a plain value that its parent cannot replace")
        elif own is not None and (is_array(wanted) or leaf(wanted) is ...):
            self.mismatch(path, target, wanted)
        else:
            plain = leaf(wanted)
            same = type(own) is type(plain) and bool(own == plain)
            self.note(action, path, "" if same else f"{own!r:.40} → {wanted!r:.40}")
            self.actions.append((path, lambda: assign(_to_member(target, to_framework(wanted, target)))))

    @cached_property
    def plain_owners(self) -> dict[str, int | None]:
        """`owners` without the keys of wrappers, for optimizers whose names have others than their model."""
        return {plain(path): owner for path, owner in self.owners.items()}

    # what the caller asked for

    def rename(self, state: Any, path: str) -> Any:
        """A dict of the state with its keys as the caller's rules make them."""
        if self.rules is None or not isinstance(state, dict):
            return state
        above = join(path, "") if path else ""
        result = like(state, StateDict())
        pairs: list[tuple[str, str]] = []
        for key, value in state.items():
            new = self.rules(above + key) if type(key) is str else key
            if type(key) is str:
                if not new.startswith(above):
                    self.problem("moved", above + key, f"a rule makes it {new!r}, out of the dict that holds it")
                if new != above + key:
                    self.origins[new] = key
                new = new.removeprefix(above)
                if new != key:
                    pairs.append((key, new))
            if new in result:
                self.problem("collision", above + key, f"becomes {above}{new}, which another entry is or becomes")
            result[new] = value
        if isinstance(result._metadata, dict):
            names = modules(pairs)
            result._metadata = {names.get(name, [name])[0]: entry for name, entry in result._metadata.items()}
        return result

    def override(self, path: str, value: Any, name: str = "") -> Any:
        """The value that the caller wants at a path, or the one given; `name` is what else it goes by."""
        for pattern, wanted in self.options.override.items():
            if pattern == name or fnmatchcase(path, pattern):
                self._used.add(pattern)
                return wanted
        return value

    def settle(self, value: Any, live: Any, path: str) -> Any:
        """What a live object takes of a value, without labels of objects; `DROPPED` if the caller lets it go.

        `live` is what the object has there, None if that is not known.
        """
        dropped = False

        def decide(at: str, label: Any, why: str = "") -> Any:
            nonlocal dropped
            wanted = self.override(at, label)
            if wanted is not label:
                self.note("overridden", at, f"{label!r:.40} of the state by {wanted!r:.40}")
            elif why and matches(at, self.options.allow_unexpected):
                dropped = True
                self.note("unexpected", at, f"{why}; it is left out")
                return DROPPED
            elif why:
                remedy = f"pass override={{{at!r}: …}} with a value for it, or allow_unexpected={at!r} to leave it out"
                self.problem("object", at, f"{why}; {remedy}")
            return wanted

        wanted = decide(path, value)
        if wanted is not value:
            return wanted
        result = settle(value, live, path, decide)
        return DROPPED if dropped and matches(path, self.options.allow_unexpected) else result

    def settle_entry(self, entries: Any, key: Any, live: Any, path: str) -> None:
        """Replace an entry of a dict by what a live object takes of it, or remove it; see `settle`."""
        entries[key] = self.settle(entries[key], live, path)
        if entries[key] is DROPPED:
            del entries[key]

    def policy(self, path: str) -> str:
        """What the caller wants where shapes differ."""
        return next((policy for glob, policy in self.options.shapes.items() if matches(path, (glob,))), "error")

    def align(self, target: Iterable[str], state: Iterable[str], path: str) -> Reading | None:
        """How names of the state are read as those of the target; None where that is ambiguous."""
        target, state = list(target), list(state)
        reading = align(target, state, self.options.prefix)
        if reading.other:
            detail = f"two readings are possible: {reading.other}; pass prefix=… to choose"
            self.problem("ambiguous", path or "the names", detail)
            return None
        if self.options.prefix is not None and len(reading.pairs) < len(target):
            better = align(target, state)
            if len(better.pairs) > len(reading.pairs) and not better.other:
                count = f"{'all ' if len(better.pairs) == len(target) else ''}{len(better.pairs):,}"
                how = f"differ by {better.by}" if better.by else "have the names of the target as they are"
                self.hints.append(f"{count} keys {how}; leave prefix at 'auto' to read them so")
        if reading.note:
            self.notes.append(f"{path}: {reading.note}" if path else reading.note)
        return reading

    def look_for_renames(self, missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> None:
        """Look for entries that are there under another name; both by path, with what must agree."""
        if missing and unexpected and not all(matches(path, self.options.allow_missing) for path in missing):
            self.renames |= suggest_rules(missing, unexpected)

    # what was found

    def note(self, action: str, path: str, detail: str = "") -> None:
        """Report what will happen to an entry."""
        self.entries.append(Entry(path, action, detail))

    def problem(self, action: str, path: str, detail: str) -> bool:
        """Report what forbids the restore; True if it is missing or unexpected, and the caller allows that."""
        allow = {"missing": self.options.allow_missing, "unexpected": self.options.allow_unexpected}
        allowed = matches(path, allow.get(action, ()))
        (self.entries if allowed else self.problems).append(Entry(path, action, detail))
        return allowed

    def immutable(self, path: str, what: str) -> None:
        """Report a target that does not change, and that nothing holds which could hold another one."""
        advice = "restore into {'state': it}, and take the new one from there"
        self.problem("target", path, f"{what} is immutable, and no dict, list or attribute holds it; {advice}")

    def mismatch(self, path: str, target: Any, state: Any) -> None:
        """Report a state of another kind than its target."""
        kind = "tensor" if is_array(target) else type(target).__name__
        self.problem("kind", path, f"the target is a {kind}, the state has a {type(state).__name__}")

    def common_keys(self, own: Mapping[Any, Any], state: Mapping[Any, Any], path: str) -> Iterator[Any]:
        """The keys that the target and the state have; keys that only one has are reported."""
        for key in own:
            if key in state:
                yield key
            else:
                self.problem("missing", join(path, key), MISSING)
        for key in state:
            if key not in own:
                self.problem("unexpected", join(path, key), UNEXPECTED)

    def tensor(self, shape: Shape, kind: Any, value: LazyTensor, path: str, origin: str = "") -> Fit | bool:
        """Whether a tensor of the state fits a target of this shape and dtype, or how it is made to.

        `origin` is what it is called in the state, if that is worth telling.
        """
        if value.present_boxes is not None:
            there = format_boxes(value.present_boxes)
            self.problem("incomplete", path, f"of {value.shape} the checkpoint has {there} only")
            return False
        fit: Fit | bool = True
        details = [f"{origin} of the state"] if origin else []
        if shape != value.shape:
            fit = Fit(self.policy(path), value.shape, shape)
            reason = fit.reason()
            if fit.policy == "error" or reason:
                reason = f"; {fit.policy!r} cannot be, it {reason}" if reason else ""
                self.problem("shape", path, f"the state has {value.shape}, the target {shape}{reason}")
                return False
            if fit.policy == "skip":
                self.note("skipped", path, f"the state has {value.shape}, the target {shape}")
                return fit
            details.append(str(fit))
        same = kind is value.dtype or _fills(value, shape, kind)
        if not same:
            unknown = "raw" in (kind.kind, value.dtype.kind)
            if unknown or not matches(path, self.options.cast):
                remedy = "a dtype that is not known cannot be converted" if unknown else "pass cast=True to convert"
                self.problem("dtype", path, f"the state has {value.dtype}, the target {kind}; {remedy}")
                return False
            details.append(f"{value.dtype} → {kind}")
        action = "reshaped" if fit is not True else "cast" if not same else "renamed" if origin else "restored"
        self.note(action, path, ", ".join(details))
        return fit


def _refuse_label(path: str, label: Any, why: str) -> Any:
    if why:
        raise RestoreError(f"override: {path}: {label!r} is a label of an object; give the object itself")


def _fills(value: LazyTensor, shape: Shape, kind: Any) -> bool:
    """Whether bytes whose elements have no known size are those of the target, which knows."""
    return (
        isinstance(value, Labelled)
        and (value.dtype.name, value.shape) == (kind.name, shape)
        and (value.is_view or value.nbytes == kind.nbytes(value.numel()))
    )


def _to_member(target: Any, value: Any) -> Any:
    """What the caller gives for a member of an enumeration, as one."""
    if not isinstance(target, Enum) or isinstance(value, Enum):
        return value
    member = find_member(type(target), value)
    return type(target)(value) if member is None else member
