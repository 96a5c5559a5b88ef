"""What differs between two trees: their entries are paired, then tensors and values compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from statedict.ops.diff.compare import Rule, Tally, comparable, compare
from statedict.ops.diff.entries import Entries, match_optimizers
from statedict.ops.diff.match import contents, find_moves, match_contents
from statedict.ops.diff.quantized import Config, Quantized
from statedict.reports import diff as kinds
from statedict.reports.diff import Diff, TensorDiff, ValueDiff
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import find_ties
from statedict.tree.rename import modules
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import Patterns, filter_paths, to_patterns
from statedict.values import same_value

_TIES = 10


def compare_trees(
    one: Any,
    other: Any,
    names: tuple[str, str],
    only: Patterns | None = None,
    names_only: bool = False,
    rule: Rule | None = None,
    executor: Executor | None = None,
    deep: bool = False,
    rank: int | None = None,
    configs: tuple[Config, Config] = (None, None),
) -> Diff:
    """Compare two trees; see `statedict.diff`. `configs` say how they are quantized.

    Raises:
        PatternError: a pattern matches nothing in either.
    """
    rule = rule or Rule()
    a, b = Entries(one), Entries(other)
    said = match_optimizers(a, b)
    quantized = Quantized((a, b), (one, other), configs)
    quantized.match()
    if only is not None:
        _select(a, b, only)
        said += [("", note) for note in _suggest_parts((a, b), (one, other), names, only)]
    left = [path for side in (a, b) for table in (side.tensors, side.values) for path in table]
    notes = [note for at, note in said if any(path.startswith(f"{at}." if at else "") for path in left)]
    work = _Work(a.tensors, b.tensors, rule, executor)
    tensors = work.compare(names_only)
    tensors = tensors if names_only else quantized.measure(tensors, rule, executor)
    notes += quantized.notes
    values, equal = _compare_values(a, b, work.translator(), rule.numeric)
    notes += _compare_ties(a.tensors, b.tensors, work.pairs)
    if deep:
        from statedict.ops.diff.rank import find_ranks

        tensors = find_ranks(tensors, a.tensors, b.tensors, rank, executor)
    return Diff(*names, tuple(tensors), tuple(values), equal, tuple(work.moved), tuple(notes), names_only, deep)


def _select(a: Entries, b: Entries, only: Patterns) -> None:
    tables: list[dict[str, Any]] = [a.tensors, a.values, b.tensors, b.values]
    keep = filter_paths((path for table in tables for path in table), only, "entry")
    for table in tables:
        for path in [path for path in table if path not in keep]:
            del table[path]
    for side in (a, b):
        side.extra.clear()


def _suggest_parts(
    sides: tuple[Entries, Entries], trees: tuple[Any, Any], names: tuple[str, str], only: Patterns
) -> Iterator[str]:
    """How to compare what only one state has below a path with the whole of the other."""
    there = [bool(side.tensors) for side in sides]
    if there[0] is not there[1]:
        at = there.index(True)
        for path in to_patterns(only):
            if isinstance(trees[at], StateDict) and isinstance(trees[at].get(path), dict):
                one, other = "AB"[at], "BA"[at]
                yield f"only {one} has {path!r}; to compare it with the whole of {other}, name it {names[at]}::{path}"


class _Work:
    """The tensors of two states, paired and compared."""

    def __init__(
        self, a: dict[str, LazyTensor], b: dict[str, LazyTensor], rule: Rule, executor: Executor | None
    ) -> None:
        self.a, self.b, self.rule, self.executor = a, b, rule, executor
        self.pairs = {path: path for path in a if path in b}  # path in the first state → in the second one
        left = {path: tensor for path, tensor in a.items() if path not in b}
        right = {path: tensor for path, tensor in b.items() if path not in a}
        self.moved, moved = find_moves(left, right)
        self.pairs |= moved
        self.renamed: dict[str, str] = {}  # likewise, found by content
        self.weak: set[str] = set()  # those of them whose content is that of many tensors
        self.same: dict[str, str] = {}  # path in the second state → in the first, of the same content by chance

    def compare(self, names_only: bool) -> list[TensorDiff]:
        """What became of each tensor."""
        found: dict[str, TensorDiff] = {}
        todo: dict[str, tuple[LazyTensor, LazyTensor]] = {}
        for old, new in self.pairs.items():
            one, other = self.a[old], self.b[new]
            alike = one.dtype is other.dtype
            if tuple(one.shape) != tuple(other.shape):
                kind, readable = kinds.RESHAPED, alike and one.numel() == other.numel()
            elif alike:
                kind, readable = kinds.IDENTICAL, True
            else:
                kind, readable = kinds.RETYPED, comparable(one.dtype, other.dtype)
            found[old] = self._entry(kind, old, new)
            if readable:
                todo[old] = one, other
        if not names_only:
            tallies = compare([*todo.values()], self.rule, self.executor)
            for (old, (one, other)), tally in zip(todo.items(), tallies, strict=True):
                found[old] = self._judge(found[old], tally, comparable(one.dtype, other.dtype))
            self._match_contents({old for old, entry in found.items() if entry.kind == kinds.CHANGED})
        by_new = {new: found[old] for old, new in self.pairs.items()}
        for old, new in self.renamed.items():
            by_new[new] = replace(self._entry(kinds.RENAMED, old, new), weak=old in self.weak)
        for path in self.b:
            if path not in by_new:
                by_new[path] = replace(self._entry(kinds.ADDED, None, path), same_as=self.same.get(path))
        gone = [path for path in self.a if path not in self.pairs and path not in self.renamed]
        return [by_new[path] for path in self.b] + [self._entry(kinds.REMOVED, path, None) for path in gone]

    def translator(self) -> Callable[[str], str | None]:
        """A function from the path of a value in the first state to that in the second one, as far as tensors tell."""
        names = modules((old, new) for old, new in self.renamed.items() if old not in self.weak)

        def translate(path: str) -> str | None:
            for move in self.moved:
                new = move(path)
                if new is not None:
                    return new
            head = path
            while "." in head:
                head = head.rpartition(".")[0]
                if len(names.get(head, ())) == 1:
                    return names[head][0] + path[len(head) :]
            return None

        return translate

    def _entry(self, kind: str, old: str | None, new: str | None) -> TensorDiff:
        one, other = (None if old is None else self.a[old]), (None if new is None else self.b[new])
        dtypes = (None if one is None else one.dtype.name, None if other is None else other.dtype.name)
        shapes = (None if one is None else tuple(one.shape), None if other is None else tuple(other.shape))
        return TensorDiff(kind, old, new, dtypes, shapes, passed=kind == kinds.IDENTICAL)

    def _judge(self, entry: TensorDiff, tally: Tally | None, measured: bool) -> TensorDiff:
        tolerant = measured and bool(self.rule.rtol or self.rule.atol)
        near = tally is None or (tolerant and not tally.outside)
        measures = tally.measures() if tally is not None and measured else None
        if entry.kind == kinds.RETYPED:
            return replace(entry, measures=measures, equal=tally is None, passed=self.rule.numeric and near)
        if entry.kind == kinds.RESHAPED:
            return replace(entry, measures=measures, equal=tally is None)
        if tally is None:
            return entry
        return replace(entry, kind=kinds.CLOSE if near else kinds.CHANGED, measures=measures, passed=near)

    def _match_contents(self, changed: set[str]) -> None:
        """Find renamed tensors by content, and separate pairs that a chain of such names explains."""
        back = {new: old for old, new in self.pairs.items()}
        lone = self.a.keys() - self.pairs.keys()
        fresh = self.b.keys() - back.keys()
        ours, theirs = contents(
            {path: tensor for path, tensor in self.a.items() if path in lone or path in changed},
            {path: tensor for path, tensor in self.b.items() if path in fresh or back[path] in changed},
            self.executor,
        )
        for old in changed:  # the same bytes, but as numbers a NaN is nothing
            new = self.pairs[old]
            if old in ours and new in theirs and ours[old].key == theirs[new].key:
                del ours[old], theirs[new]
        if not ours or not theirs:
            return
        matched, self.same, self.weak = match_contents(ours, theirs)
        into = set(matched.values())
        for old, new in matched.items():
            alone = old in lone and new in fresh
            explained = old not in lone and self.pairs[old] in into
            if alone or explained or (new not in fresh and back[new] in matched):
                self.renamed[old] = new
            elif new in fresh:
                self.same[new] = old
        held: dict[Any, tuple[list[str], list[str]]] = {}  # constants, by content
        for at, side in enumerate((ours, theirs)):
            for path, content in side.items():
                if content.plain:
                    held.setdefault(content.key, ([], []))[at].append(path)
        pairs = [(olds[0], news[0]) for olds, news in held.values() if len(olds) == len(news) == 1]
        only = {old: new for old, new in pairs if old in lone and new in fresh}
        self.renamed |= only
        self.weak |= only.keys()
        targets = set(self.renamed.values())
        self.pairs = {old: new for old, new in self.pairs.items() if old not in self.renamed and new not in targets}
        self.same = {new: old for new, old in self.same.items() if new not in targets and new in fresh}


def _compare_values(
    a: Entries, b: Entries, translate: Callable[[str], str | None], numeric: bool
) -> tuple[list[ValueDiff], int]:
    """The values that differ, and how many do not."""
    ours, theirs = dict(a.values), dict(b.values)
    for path in [*ours]:
        if path not in theirs:
            new = translate(path)
            if new is not None and new in theirs and new not in ours:
                ours[new] = ours.pop(path)
    for name in a.extra.keys() & b.extra.keys():  # what one format cannot hold is not a difference
        one, other = a.extra[name], b.extra[name]
        for key in {**one, **other}:
            if name == "metadata" or (key in one and key in other):  # what modules there are the tensors tell
                path = f"{name}.{key}" if key else name
                for side, entries in ((ours, one), (theirs, other)):
                    if key in entries:
                        side.setdefault(path, entries[key])
    differences, equal = [], 0
    for path, value in ours.items():
        if path not in theirs:
            differences.append(ValueDiff(kinds.REMOVED, path, before=value))
        elif same_value(value, theirs[path], numeric):
            equal += 1
        else:
            differences.append(ValueDiff(kinds.CHANGED, path, value, theirs[path]))
    differences += [ValueDiff(kinds.ADDED, path, after=value) for path, value in theirs.items() if path not in ours]
    return [*differences, *_compare_types(a, b)], equal


def _compare_types(a: Entries, b: Entries) -> Iterator[ValueDiff]:
    """Containers of two types, and keys that print alike and are of two types, 1 and "1"."""
    other_type = {path for path, kind in a.containers.items() if b.containers.get(path, kind) != kind}
    if other_type:
        entries = [*a.tensors, *a.values]
        around = {""} | {path[:at] for path in entries for at, character in enumerate(path) if character == "."}
        for path, kind in a.containers.items():
            if path in other_type and entries and path in around:
                yield ValueDiff(kinds.CHANGED, f"{path} (the container)".lstrip(), kind, b.containers[path])
    for path in {**a.keys, **b.keys}:
        parent, _, text = path.rpartition(".")
        if parent not in other_type and all(_has(side, path) for side in (a, b)):
            one, other = a.keys.get(path, text), b.keys.get(path, text)
            if type(one) is not type(other):
                yield ValueDiff(kinds.CHANGED, f"{path} (the key)", one, other)


def _has(side: Entries, path: str) -> bool:
    return path in side.keys or path in side.tensors or path in side.values


def _compare_ties(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor], pairs: Mapping[str, str]) -> list[str]:
    """Notes on tensors that share their bytes in one state only."""
    notes: list[str] = []
    ties = find_ties(a), find_ties(b)
    back = {new: old for old, new in pairs.items()}
    for ours, theirs, to_other, where in ((*ties, pairs, "A, not in B"), (*ties[::-1], back, "B, not in A")):
        for path, first in ours.items():
            one, other = to_other.get(path), to_other.get(first)
            if one is not None and other is not None and theirs.get(one, one) != theirs.get(other, other):
                notes.append(f"tied in {where}: {path} = {first}")
    more = len(notes) - _TIES
    return [*notes[:_TIES], f"{more:,} more that are tied on one side"] if more > 0 else notes
