"""Diff: how two checkpoints differ, tensor by tensor and value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from statedict.reports.summary import value_to_json
from statedict.shown import Shown, Viewed, to_record
from statedict.tree.walk import matches


@dataclass(frozen=True, slots=True)
class Measures:
    """How far two tensors are apart. Numbers that are not finite are counted and excluded from everything else."""

    elements: int
    changed: int  # how many of them differ
    nonfinite: int  # how many of those that differ are NaN or infinite on either side
    max_abs: float | int  # the largest difference
    relative: float  # the norm of the difference, divided by the norm of the first tensor
    cosine: float | None  # of the angle between the two; None if one of them is zero

    @property
    def share(self) -> float:
        """The part of the elements that differs, from 0 to 1."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def beyond(self) -> bool:
        """Whether every difference involves NaN or infinity, so that no distance can be measured."""
        return 0 < self.changed == self.nonfinite

    def to_json(self) -> dict[str, Any]:
        """All fields, and the share, ready for `json.dumps`."""
        return to_record(self) | {"share": self.share}


@dataclass(frozen=True, slots=True)
class Moved:
    """A prefix that replaces another one: `before` in the first state, `after` in the second, for `count` tensors."""

    before: str
    after: str
    count: int

    def __str__(self) -> str:
        return " → ".join(f"{prefix}.*" if prefix else "*" for prefix in (self.before, self.after))

    def __call__(self, path: str) -> str | None:
        """The path in the second state of a path in the first; None if it has another prefix."""
        if self.before and not path.startswith(self.before + "."):
            return None
        rest = path[len(self.before) + 1 :] if self.before else path
        return f"{self.after}.{rest}" if self.after else rest


@dataclass(frozen=True, slots=True)
class LowRank:
    """The rank of the change of one matrix."""

    rows: int  # the first dimension
    columns: int  # all others together
    # `low-rank`: an adapter of rank `adapter` and rounding explain the change; `full`: no adapter that was tried
    # does; `rounding`: most of it may be rounding, so that its rank is unknown; `small`: the matrix has no room for
    # an adapter
    verdict: str
    adapter: int | None  # the smallest rank of an adapter that explains it; None for other verdicts
    rank: int  # how many singular values stand out of the rounding; at least so many if `bounded`
    # of those, exp(H(σ / Σσ)), H Shannon's entropy (Roy and Vetterli, EUSIPCO 2007); at most this if `bounded`
    effective_rank: float
    stable_rank: float  # the energy divided by that of the first direction
    top: tuple[tuple[int, float], ...]  # shares of the energy in the first 1, 4, 8, … directions
    # the share of the energy that rounding is expected to make; above 1 if the change is less than that
    rounding: float
    method: str  # `svd`, `gram` or `randomized, 64 directions`
    bounded: bool = False  # whether more directions stand out than were computed
    nonfinite: int = 0  # how many numbers of the change are not finite, and excluded

    def share(self, directions: int) -> float:
        """The share of the energy in the first directions, as far as they were computed."""
        return max((share for count, share in self.top if count <= directions), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`."""
        record = to_record(self)
        matrix = {"matrix": [record.pop("rows"), record.pop("columns")]}
        return matrix | record | {"top": {str(count): share for count, share in self.top}}


IDENTICAL, CLOSE, CHANGED, RETYPED, RESHAPED, RENAMED, ADDED, REMOVED = KINDS_OF_CHANGE = (
    "identical", "close", "changed", "retyped", "reshaped", "renamed", "added", "removed",
)  # fmt: skip
FULL, LOW_RANK, ROUNDING, SMALL = VERDICTS = "full", "low-rank", "rounding", "small"  # of changes
_KEYS = ("relative", "max_abs", "share", "cosine", "path")


@dataclass(frozen=True, slots=True)
class TensorDiff(Viewed):
    """What became of one tensor."""

    # `identical`, `close` (within the tolerance), `changed`, `retyped`, `reshaped`, `renamed`, `added` or `removed`
    kind: str
    before: str | None  # its path in the first state; None if it was added
    after: str | None  # its path in the second one; None if it was removed
    dtypes: tuple[str | None, str | None]  # in the first and in the second state
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    measures: Measures | None = None  # how far the two are apart, if measured
    # for a retyped or reshaped tensor whether the values are equal; None if they were not compared
    equal: bool | None = None
    # for an added one, a tensor of the first state with the same bytes, if that does not prove a renaming
    same_as: str | None = None
    passed: bool = False  # whether it counts as no difference
    weak: bool = False  # of a renamed one: all its elements are equal, so that the same bytes prove little
    change: LowRank | None = None  # the rank of the change, for a changed matrix, on request

    @property
    def path(self) -> str:
        """Its path in the second state; in the first one if it was removed."""
        return str(self.before if self.after is None else self.after)

    @property
    def relative(self) -> float:
        """The norm of the difference, divided by the norm of the first tensor; 0.0 if not measured."""
        return 0.0 if self.measures is None else self.measures.relative

    def to_json(self) -> dict[str, Any]:
        """All fields that are known, ready for `json.dumps`."""
        record: dict[str, Any] = {"name": self.path}
        if self.before != self.after and None not in (self.before, self.after):
            record["before"] = self.before
        for name, (one, other) in (("dtype", self.dtypes), ("shape", self.shapes)):
            record[name] = [one, other] if one != other and None not in (one, other) else other if one is None else one
        if self.measures is not None:
            record |= self.measures.to_json()
        record |= {k: v for k, v in (("equal", self.equal), ("same_as", self.same_as)) if v is not None}
        record |= {"weak": True} if self.weak else {}
        return record if self.change is None else record | {"change": self.change.to_json()}


@dataclass(frozen=True, slots=True)
class ValueDiff:
    """What became of one value that is not a tensor."""

    kind: str  # `changed`, `added` or `removed`
    path: str
    before: Any = None  # the value in the first state; None if it was added
    after: Any = None  # the value in the second one; None if it was removed

    def to_json(self) -> dict[str, Any]:
        """The path and the values that exist, ready for `json.dumps`."""
        before = {} if self.kind == ADDED else {"before": value_to_json(self.before)}
        after = {} if self.kind == REMOVED else {"after": value_to_json(self.after)}
        return {"path": self.path} | before | after


class _OfKind:
    """The tensors of one kind, as a property of a Diff."""

    def __init__(self, kind: str, doc: str) -> None:
        self.kind, self.__doc__ = kind, doc

    def __get__(self, report: Diff, _: type) -> tuple[TensorDiff, ...]:
        return tuple(tensor for tensor in report.tensors if tensor.kind == self.kind)


@dataclass(frozen=True, slots=True)
class Diff(Shown):
    """How two states differ.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> found = statedict.diff(state, {**state, "fc4.bias": state["fc3.bias"]})
    >>> found.same, found.identical, found.added[0].same_as
    (False, 10, None)
    >>> print(found)
    10 tensors identical, 1 added
    added
      fc4.bias  float32  10
    """

    a: str  # the name of the first one
    b: str  # the name of the second one
    # every tensor of either, in the order of the second state, then those that were removed
    tensors: tuple[TensorDiff, ...]
    values: tuple[ValueDiff, ...] = ()  # every value that differs
    equal_values: int = 0  # how many values are equal
    moved: tuple[Moved, ...] = ()  # prefixes that replace others; the tensors themselves may be identical
    notes: tuple[str, ...] = ()  # remarks, not differences
    # whether only names, dtypes, shapes and values were compared; `identical` means no more than that
    names_only: bool = False
    deep: bool = False  # whether the ranks of changes were computed
    unread: tuple[str, ...] = ()  # checkpoints in a folder that were not compared, and why

    close = _OfKind(CLOSE, "Tensors that differ within the tolerance.")
    changed = _OfKind(CHANGED, "Tensors of the same dtype and shape with other values.")
    retyped = _OfKind(RETYPED, "Tensors of another dtype.")
    reshaped = _OfKind(RESHAPED, "Tensors of another shape.")
    renamed = _OfKind(RENAMED, "Tensors whose bytes are under another name.")
    added = _OfKind(ADDED, "Tensors that only the second state has.")
    removed = _OfKind(REMOVED, "Tensors that only the first state has.")

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.moved and not self.values and all(tensor.passed for tensor in self.tensors)

    @property
    def identical(self) -> int:
        """How many tensors are identical, those that moved with a prefix included."""
        return sum(tensor.kind == IDENTICAL for tensor in self.tensors)

    def __iter__(self) -> Iterator[TensorDiff]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def filter(
        self,
        *kinds: str,
        only: str | Iterable[str] | None = None,
        where: Callable[[TensorDiff], bool] | None = None,
    ) -> Diff:
        """A diff of some of the tensors.

        Args:
            kinds: `"changed"`, `"renamed"`, …; all by default.
            only: globs over paths, for values too.
            where: a predicate of a tensor.

        Raises:
            ValueError: an unknown kind.
        """
        for kind in kinds:
            _check_word(kind, KINDS_OF_CHANGE)
        globs = None if only is None else (only,) if isinstance(only, str) else tuple(only)
        tensors = tuple(
            tensor
            for tensor in self.tensors
            if (not kinds or tensor.kind in kinds)
            and (globs is None or matches(tensor.path, globs))
            and (where is None or where(tensor))
        )
        values = tuple(value for value in self.values if globs is None or matches(value.path, globs))
        pairs = [(tensor.before, tensor.after) for tensor in tensors if tensor.before and tensor.after]
        moved = tuple(rule for rule in self.moved if any(rule(before) == after for before, after in pairs))
        return replace(self, tensors=tensors, values=values, moved=moved)

    def sort(self, key: str | Callable[[TensorDiff], Any] = "relative", reverse: bool = True) -> Diff:
        """The diff with its tensors in another order, by default those that changed most first.

        Args:
            key: `"relative"`, `"max_abs"`, `"share"`, `"cosine"`, `"path"`, or a function of a tensor.
            reverse: the largest first.

        Raises:
            ValueError: an unknown key.
        """
        if isinstance(key, str):
            _check_word(key, _KEYS)
            key = partial(_sort_value, key)
        return replace(self, tensors=tuple(sorted(self.tensors, key=key, reverse=reverse)))

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`; a number that is not finite is null or a string."""

        def of_kinds(items: Iterable[TensorDiff | ValueDiff], *kinds: str) -> dict[str, Any]:
            return {kind: [item.to_json() for item in items if item.kind == kind] for kind in kinds}

        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "names_only": self.names_only,
            "deep": self.deep,
            "identical": self.identical,
            **of_kinds(self.tensors, CLOSE, CHANGED, RETYPED, RESHAPED),
            "renamed": [[tensor.before, tensor.after] for tensor in self.renamed],
            "weak": [tensor.after for tensor in self.renamed if tensor.weak],
            "moved": [to_record(rule) for rule in self.moved],
            **of_kinds(self.tensors, ADDED, REMOVED),
            "values": {"identical": self.equal_values, **of_kinds(self.values, CHANGED, ADDED, REMOVED)},
            "notes": list(self.notes),
            "unread": list(self.unread),
        }


def _check_word(word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise ValueError(f"unknown {word!r}; expected one of {', '.join(allowed)}")


def _sort_value(name: str, tensor: TensorDiff) -> Any:
    if name == "path":
        return tensor.path
    if tensor.measures is None:
        return -math.inf
    if tensor.measures.nonfinite and name in ("relative", "max_abs"):
        return math.inf  # a tensor that became NaN, or was, changed most
    value = getattr(tensor.measures, name)
    return -math.inf if value is None else value
