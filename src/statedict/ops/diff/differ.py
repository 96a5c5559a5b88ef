"""What differs between two trees: entries are paired, tensors compared, values held against one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from statedict.ops.diff.compare import compare
from statedict.ops.diff.entries import Entries, match_optimizers
from statedict.ops.diff.match import by_content, contents, moves
from statedict.ops.diff.measure import Rule, Tally, comparable
from statedict.reports import diff as kinds
from statedict.reports.diff import Diff, TensorDiff, ValueDiff
from statedict.tensor.lazy import LazyTensor
from statedict.tree.rename import modules
from statedict.tree.walk import filter_paths
from statedict.values import same_value

_TIES = 10


def compare_trees(
    one: Any,
    other: Any,
    names: tuple[str, str],
    only: Sequence[str] | None = None,
    names_only: bool = False,
    rule: Rule | None = None,
    executor: Executor | None = None,
    deep: bool = False,
    rank: int | None = None,
) -> Diff:
    """Compare two trees; see `statedict.diff`.

    Raises:
        PatternError: a pattern matches nothing in either.
    """
    rule = rule or Rule()
    a, b = Entries(one), Entries(other)
    said = match_optimizers(a, b)
    if only is not None:
        _keep(a, b, only)
    left = [path for side in (a, b) for table in (side.tensors, side.values) for path in table]
    notes = [note for at, note in said if any(path.startswith(f"{at}." if at else "") for path in left)]
    work = _Work(a, b, rule, executor, names_only)
    tensors = work.tensors()
    values, equal = _values(a, b, work.translated(), rule.numeric)
    notes += _ties(a.tensors, b.tensors, work.pairs)
    if deep:
        from statedict.ops.diff.rank import looked_into

        tensors = looked_into(tensors, a.tensors, b.tensors, rank, executor)
    return Diff(*names, tuple(tensors), tuple(values), equal, tuple(work.moved), tuple(notes), names_only, deep)


def _keep(a: Entries, b: Entries, only: Sequence[str]) -> None:
    tables: list[dict[str, Any]] = [a.tensors, a.values, b.tensors, b.values]
    keep = filter_paths((path for table in tables for path in table), only, "entry")
    for table in tables:
        for path in [path for path in table if path not in keep]:
            del table[path]
    for side in (a, b):
        side.extra.clear()


class _Work:
    """The tensors of two states, paired and compared.

    Attributes:
        pairs: path in the first state → path in the second one.
        moved: prefixes in the place of others.
    """

    def __init__(self, a: Entries, b: Entries, rule: Rule, executor: Executor | None, names_only: bool) -> None:
        self.a, self.b = a.tensors, b.tensors
        self.rule, self.executor, self.names_only = rule, executor, names_only
        self.pairs = {path: path for path in self.a if path in self.b}
        left = {path: tensor for path, tensor in self.a.items() if path not in self.b}
        right = {path: tensor for path, tensor in self.b.items() if path not in self.a}
        self.moved = moves(left, right)
        for path in left:
            for found in self.moved:
                new = found(path)
                if new is not None and new in right:
                    self.pairs[path] = new
                    del right[new]
                    break
        self.renamed: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.found: dict[str, TensorDiff] = {}

    def tensors(self) -> list[TensorDiff]:
        """What became of each."""
        self._compare()
        if not self.names_only:
            self._look_for_content()
        by_new = {new: self.found[old] for old, new in self.pairs.items()}
        by_new |= {new: self._entry(kinds.RENAMED, old, new) for old, new in self.renamed.items()}
        gone = [path for path in self.a if path not in self.pairs and path not in self.renamed]
        return [
            by_new[path]
            if path in by_new
            else replace(self._entry(kinds.ADDED, None, path), same_as=self.same.get(path))
            for path in self.b
        ] + [self._entry(kinds.REMOVED, path, None) for path in gone]

    def translated(self) -> Callable[[str], str | None]:
        """What the path of a value of the first state is in the second one, as far as tensors tell."""
        names = modules(self.renamed.items())

        def new(path: str) -> str | None:
            for rule in self.moved:
                found = rule(path)
                if found is not None:
                    return found
            head = path
            while "." in head:
                head = head.rpartition(".")[0]
                if len(names.get(head, ())) == 1:
                    return names[head][0] + path[len(head) :]
            return None

        return new

    def _compare(self) -> None:
        todo: list[str] = []
        for old, new in self.pairs.items():
            one, other = self.a[old], self.b[new]
            if tuple(one.shape) != tuple(other.shape):
                self.found[old] = self._entry(kinds.RESHAPED, old, new)
                if one.dtype is other.dtype and one.numel() == other.numel():
                    todo.append(old)
            elif one.dtype is not other.dtype:
                self.found[old] = self._entry(kinds.RETYPED, old, new)
                if comparable(one.dtype, other.dtype):
                    todo.append(old)
            else:
                self.found[old] = self._entry(kinds.IDENTICAL, old, new)
                todo.append(old)
        if self.names_only:
            return
        pairs = [(self.a[old], self.b[self.pairs[old]]) for old in todo]
        for old, tally in zip(todo, compare(pairs, self.rule, self.executor), strict=True):
            self.found[old] = self._judged(self.found[old], tally, self.a[old], self.b[self.pairs[old]])

    def _judged(self, entry: TensorDiff, tally: Tally | None, one: LazyTensor, other: LazyTensor) -> TensorDiff:
        tolerant = bool(self.rule.rtol or self.rule.atol)
        near = tally is None or (tolerant and comparable(one.dtype, other.dtype) and not tally.outside)
        measures = tally.measures() if tally is not None and comparable(one.dtype, other.dtype) else None
        if entry.kind == kinds.RETYPED:
            return replace(entry, measures=measures, equal=tally is None, passed=self.rule.numeric and near)
        if entry.kind == kinds.RESHAPED:
            return replace(entry, measures=measures, equal=tally is None)
        if tally is None:
            return entry
        return replace(entry, kind=kinds.CLOSE if near else kinds.CHANGED, measures=measures, passed=near)

    def _look_for_content(self) -> None:
        """Find what is under another name, and take pairs apart that a chain of such names explains."""
        changed = [old for old in self.pairs if self.found[old].kind == kinds.CHANGED]
        taken = set(self.pairs.values())
        lone = {path for path in self.a if path not in self.pairs}
        fresh = {path for path in self.b if path not in taken}
        pools = (
            {path: self.a[path] for path in [*lone, *changed]},
            {path: self.b[path] for path in [*fresh, *(self.pairs[old] for old in changed)]},
        )
        ours, theirs = contents(*pools, self.executor)
        for old in changed:  # the same bytes, but as numbers a NaN is nothing
            new = self.pairs[old]
            if old in ours and new in theirs and ours[old].key == theirs[new].key:
                del ours[old], theirs[new]
        if not ours or not theirs:
            return
        order = ({path: n for n, path in enumerate(self.a)}, {path: n for n, path in enumerate(self.b)})
        ours, theirs = (
            {path: side[path] for path in sorted(side, key=place.__getitem__)}
            for side, place in zip((ours, theirs), order, strict=True)
        )
        found, self.same = by_content(ours, theirs)
        back = {new: old for old, new in self.pairs.items()}
        into = set(found.values())
        for old, new in found.items():
            alone = old in lone and new in fresh
            explained = old not in lone and self.pairs[old] in into
            if alone or explained or (new not in fresh and back[new] in found):
                self.renamed[old] = new
            elif new in fresh:
                self.same[new] = old
        targets = set(self.renamed.values())
        self.pairs = {old: new for old, new in self.pairs.items() if old not in self.renamed and new not in targets}
        self.same = {new: old for new, old in self.same.items() if new not in targets and new in fresh}

    def _entry(self, kind: str, old: str | None, new: str | None) -> TensorDiff:
        one, other = (None if old is None else self.a[old]), (None if new is None else self.b[new])
        dtypes = (None if one is None else one.dtype.name, None if other is None else other.dtype.name)
        shapes = (None if one is None else tuple(one.shape), None if other is None else tuple(other.shape))
        return TensorDiff(kind, old, new, dtypes, shapes, passed=kind == kinds.IDENTICAL)


def _values(
    a: Entries, b: Entries, translated: Callable[[str], str | None], numeric: bool
) -> tuple[list[ValueDiff], int]:
    """The values that differ, and how many do not."""
    ours, theirs = dict(a.values), dict(b.values)
    for path in [*ours]:
        if path not in theirs:
            new = translated(path)
            if new is not None and new in theirs and new not in ours:
                ours[new] = ours.pop(path)
    for name in a.extra.keys() & b.extra.keys():  # what one format has no room for is no difference
        one, other = a.extra[name], b.extra[name]
        for key in {**one, **other}:
            if name == "metadata" or (key in one and key in other):  # what modules there are the tensors tell
                path = f"{name}.{key}" if key else name
                for side, held in ((ours, one), (theirs, other)):
                    if key in held:
                        side.setdefault(path, held[key])
    found, equal = [], 0
    for path, value in ours.items():
        if path not in theirs:
            found.append(ValueDiff(kinds.REMOVED, path, before=value))
        elif same_value(value, theirs[path], numeric):
            equal += 1
        else:
            found.append(ValueDiff(kinds.CHANGED, path, value, theirs[path]))
    found += [ValueDiff(kinds.ADDED, path, after=value) for path, value in theirs.items() if path not in ours]
    found += _keys(a, b)
    return found, equal


def _keys(a: Entries, b: Entries) -> list[ValueDiff]:
    """Keys that print alike and are of two types, 1 and "1", and containers of two types."""
    other_type = {path for path, kind in a.containers.items() if b.containers.get(path, kind) != kind}
    around = {path[:at] for path in [*a.tensors, *a.values] for at in _dots(path)} if other_type else set()
    found = [
        ValueDiff(kinds.CHANGED, f"{path} (the container)".lstrip(), a.containers[path], b.containers[path])
        for path in a.containers
        if path in other_type and path in around
    ]
    for path in {**a.keys, **b.keys}:
        if path.rpartition(".")[0] in other_type or not (_is_at(a, path) and _is_at(b, path)):
            continue
        text = path.rpartition(".")[2]
        one, other = a.keys.get(path, text), b.keys.get(path, text)
        if type(one) is not type(other):
            found.append(ValueDiff(kinds.CHANGED, f"{path} (the key)", one, other))
    return found


def _dots(path: str) -> list[int]:
    """Where the paths end that a path lies below, the root's among them."""
    return [0, *(at for at, character in enumerate(path) if character == ".")]


def _is_at(side: Entries, path: str) -> bool:
    return path in side.keys or path in side.tensors or path in side.values


def _ties(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor], pairs: Mapping[str, str]) -> list[str]:
    """Tensors that share their bytes in one state only."""
    first, second = _find_ties(a), _find_ties(b)
    back = {new: old for old, new in pairs.items()}
    notes = []
    for old, tied in first.items():
        new = pairs.get(old)
        if new is not None and tied in pairs and second.get(new, new) != second.get(pairs[tied], pairs[tied]):
            notes.append(f"tied in A, not in B: {old} = {tied}")
    for new, tied in second.items():
        before = back.get(new)
        if before is not None and tied in back and first.get(before, before) != first.get(back[tied], back[tied]):
            notes.append(f"tied in B, not in A: {new} = {tied}")
    return notes if len(notes) <= _TIES else [*notes[:_TIES], f"{len(notes) - _TIES:,} more that are tied on one side"]


def _find_ties(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Each tensor that has the bytes of an earlier one → that."""
    firsts: dict[object, str] = {}
    found = {}
    for path, tensor in tensors.items():
        first = firsts.setdefault(tensor.region, path)
        if first != path:
            found[path] = first
    return found
