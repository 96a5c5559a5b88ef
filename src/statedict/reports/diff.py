"""Diff: how two checkpoints differ, tensor by tensor and value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from statedict.errors import UnsupportedError
from statedict.shown import Shown, Viewed
from statedict.tree.walk import matches
from statedict.values import to_json


@dataclass(frozen=True, slots=True)
class Measures:
    """How far two tensors are apart. Numbers that are not finite are counted, and left out of all other measures.

    Attributes:
        elements: how many there are.
        changed: how many of them differ.
        nonfinite: how many of those that differ are NaN or infinite on either side.
        max_abs: the largest difference.
        relative: the norm of the difference, divided by the norm of the first tensor.
        cosine: of the angle between the two; None where one of them is zero.
    """

    elements: int
    changed: int
    nonfinite: int
    max_abs: float | int
    relative: float
    cosine: float | None

    @property
    def share(self) -> float:
        """How large a part of the elements differs, from 0 to 1."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def beyond(self) -> bool:
        """Whether nothing finite stands against anything finite and differs, so that there is nothing to measure."""
        return 0 < self.changed == self.nonfinite

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; what is infinite is null."""
        found = asdict(self) | {"share": self.share}
        return {key: None if type(v) is float and not math.isfinite(v) else v for key, v in found.items()}


@dataclass(frozen=True, slots=True)
class Moved:
    """A prefix in the place of another.

    Attributes:
        before: in the first state, empty for none.
        after: in the second one.
        count: how many tensors it moves.
    """

    before: str
    after: str
    count: int

    def __str__(self) -> str:
        return " → ".join(f"{prefix}.*" if prefix else "*" for prefix in (self.before, self.after))

    def __call__(self, path: str) -> str | None:
        """The path that one of the first state has in the second; None where the prefix is another."""
        if self.before and not path.startswith(self.before + "."):
            return None
        rest = path[len(self.before) + 1 :] if self.before else path
        return f"{self.after}.{rest}" if self.after else rest


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one matrix.

    Attributes:
        rows: the first dimension.
        columns: all others together.
        verdict: `low-rank`: an adapter of rank `adapter` and rounding explain it; `full`: none does that was looked
            for; `rounding`: most of it may be rounding, so that its rank cannot be told; `small`: the matrix has no
            room for an adapter.
        adapter: the smallest rank of an adapter that explains it; None where the verdict is another.
        rank: how many singular values stand out of what rounding makes; at least so many where `bounded`.
        effective_rank: of those, exp(H(σ / Σσ)), H Shannon's entropy (Roy and Vetterli, EUSIPCO 2007); at most this
            where `bounded`.
        stable_rank: the energy divided by that of the first direction.
        top: shares of the energy in the first 1, 4, 8, … directions.
        rounding: the share of the energy that rounding is expected to make; above 1 where the change is less than that.
        method: `svd`, `gram` or `randomized, 64 directions`.
        bounded: whether more directions stand out than were looked for.
        nonfinite: numbers that are not finite in the change, and left out.
    """

    rows: int
    columns: int
    verdict: str
    adapter: int | None
    rank: int
    effective_rank: float
    stable_rank: float
    top: tuple[tuple[int, float], ...]
    rounding: float
    method: str
    bounded: bool = False
    nonfinite: int = 0

    def share(self, directions: int) -> float:
        """The share of the energy in the first directions; of fewer ones where these were not looked for."""
        return max((share for count, share in self.top if count <= directions), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; what is infinite is null."""
        record = asdict(self)
        return (
            {"matrix": [record.pop("rows"), record.pop("columns")]}
            | record
            | {
                "top": {str(count): share for count, share in self.top},
                "rounding": self.rounding if math.isfinite(self.rounding) else None,
            }
        )


IDENTICAL, CLOSE, CHANGED, RETYPED, RESHAPED, RENAMED, ADDED, REMOVED = KINDS_OF_CHANGE = (
    "identical", "close", "changed", "retyped", "reshaped", "renamed", "added", "removed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorDiff(Viewed):
    """What became of one tensor.

    Attributes:
        kind: `identical`, `close` (within the tolerance), `changed`, `retyped`, `reshaped`, `renamed`, `added` or
            `removed`.
        before: its path in the first state; None if it was added.
        after: its path in the second one; None if it was removed. A moved tensor has another one than `before`.
        dtypes: in the first and in the second state.
        shapes: likewise.
        measures: how far they are apart, where that was looked at.
        equal: whether the values are equal, for one that is retyped or reshaped; None where it was not looked at.
        same_as: for an added one, a tensor of the first state that has the same bytes, where that proves nothing.
        passed: whether it counts as no difference.
        change: the rank of the change, for a changed matrix, where that was asked for.
    """

    kind: str
    before: str | None
    after: str | None
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    measures: Measures | None = None
    equal: bool | None = None
    same_as: str | None = None
    passed: bool = False
    change: LowRank | None = None

    @property
    def path(self) -> str:
        """Where it is now, or was if it is no more."""
        return str(self.before if self.after is None else self.after)

    @property
    def relative(self) -> float:
        """The norm of the difference by that of the first one; 0.0 where it was not measured."""
        return 0.0 if self.measures is None else self.measures.relative

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        found: dict[str, Any] = {"name": self.path}
        if self.before != self.after and None not in (self.before, self.after):
            found["before"] = self.before
        for name, (one, other) in (("dtype", self.dtypes), ("shape", self.shapes)):
            found[name] = [one, other] if one != other and None not in (one, other) else other if one is None else one
        if self.measures is not None:
            found |= self.measures.to_json()
        found |= {k: v for k, v in (("equal", self.equal), ("same_as", self.same_as)) if v is not None}
        if self.change is not None:
            found["change"] = self.change.to_json()
        return found


@dataclass(frozen=True, slots=True)
class ValueDiff:
    """What became of one value that is no tensor.

    Attributes:
        kind: `changed`, `added` or `removed`.
        path: its path.
        before: the value in the first state; None if it was added.
        after: the value in the second one; None if it was removed.
    """

    kind: str
    path: str
    before: Any = None
    after: Any = None

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        found: dict[str, Any] = {"path": self.path}
        if self.kind != ADDED:
            found["before"] = _json(self.before)
        if self.kind != REMOVED:
            found["after"] = _json(self.after)
        return found


@dataclass(frozen=True, slots=True)
class Diff(Shown):
    """How two states differ.

    Attributes:
        a: what the first one is called.
        b: what the second one is called.
        tensors: every tensor of either, in the order of the second state, then those that were removed.
        values: every value that differs.
        equal_values: how many values are equal.
        moved: prefixes that stand in the place of others; the tensors themselves may be identical.
        notes: what deserves a word and is no difference.
        names_only: whether only names, dtypes, shapes and values were compared; `identical` means no more than that.
        deep: whether the rank of each change was looked at.

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

    a: str
    b: str
    tensors: tuple[TensorDiff, ...]
    values: tuple[ValueDiff, ...] = ()
    equal_values: int = 0
    moved: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = ()
    names_only: bool = False
    deep: bool = False

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.moved and not self.values and all(tensor.passed for tensor in self.tensors)

    @property
    def identical(self) -> int:
        """How many tensors are identical, those that moved with a prefix included."""
        return sum(tensor.kind == IDENTICAL for tensor in self.tensors)

    @property
    def close(self) -> tuple[TensorDiff, ...]:
        """Tensors that differ within the tolerance."""
        return self._of(CLOSE)

    @property
    def changed(self) -> tuple[TensorDiff, ...]:
        """Tensors of the same dtype and shape with other values."""
        return self._of(CHANGED)

    @property
    def retyped(self) -> tuple[TensorDiff, ...]:
        """Tensors of another dtype."""
        return self._of(RETYPED)

    @property
    def reshaped(self) -> tuple[TensorDiff, ...]:
        """Tensors of another shape."""
        return self._of(RESHAPED)

    @property
    def renamed(self) -> tuple[TensorDiff, ...]:
        """Tensors whose bytes are under another name."""
        return self._of(RENAMED)

    @property
    def added(self) -> tuple[TensorDiff, ...]:
        """Tensors that the second state alone has."""
        return self._of(ADDED)

    @property
    def removed(self) -> tuple[TensorDiff, ...]:
        """Tensors that the first state alone has."""
        return self._of(REMOVED)

    def _of(self, kind: str) -> tuple[TensorDiff, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.kind == kind)

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
            where: says of a tensor whether it stays.

        Raises:
            ValueError: there is no such kind.
        """
        for kind in kinds:
            if kind not in KINDS_OF_CHANGE:
                raise ValueError(f"{kind!r}: is none of {', '.join(KINDS_OF_CHANGE)}")
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
            ValueError: there is no such key.
        """
        if isinstance(key, str):
            if key not in ("relative", "max_abs", "share", "cosine", "path"):
                raise ValueError(f"{key!r}: is none of relative, max_abs, share, cosine, path")
            key = _by(key)
        return replace(self, tensors=tuple(sorted(self.tensors, key=key, reverse=reverse)))

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; a number that is not finite is null or a string."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "names_only": self.names_only,
            "deep": self.deep,
            "identical": self.identical,
            **{kind: [t.to_json() for t in self._of(kind)] for kind in (CLOSE, CHANGED, RETYPED, RESHAPED)},
            "renamed": [[tensor.before, tensor.after] for tensor in self.renamed],
            "moved": [{"before": rule.before, "after": rule.after, "count": rule.count} for rule in self.moved],
            **{kind: [t.to_json() for t in self._of(kind)] for kind in (ADDED, REMOVED)},
            "values": {
                "identical": self.equal_values,
                **{kind: [v.to_json() for v in self.values if v.kind == kind] for kind in (CHANGED, ADDED, REMOVED)},
            },
            "notes": list(self.notes),
        }


def _by(name: str) -> Callable[[TensorDiff], Any]:
    def key(tensor: TensorDiff) -> Any:
        if name == "path":
            return tensor.path
        if tensor.measures is None:
            return -math.inf
        if tensor.measures.nonfinite and name in ("relative", "max_abs"):
            return math.inf  # what became NaN, or was, changed most
        found = getattr(tensor.measures, name)
        return -math.inf if found is None else found

    return key


def _json(value: Any) -> Any:
    """A value as JSON; one that has none, such as an Opaque, as its text."""
    if type(value) in (list, tuple):
        items = [_json(item) for item in value]
        return items if type(value) is list else {"$tuple": items}
    if type(value) is dict:
        return {str(key): _json(item) for key, item in value.items()}
    try:
        return to_json(value)
    except UnsupportedError:
        return repr(value)
