"""Which tensor of one state is which of another: by name, by a common prefix, by content.

A name decides first. Names that are left over are tried with one prefix in the place of another. What is left then, and
what differs under its own name, is looked for by content: tensors of one dtype and shape by a digest of their first
bytes, then of all. Tensors of the same content (zeros, ones, counters) are paired only where the names of others, or of
their neighbours, say how, or where one is left on either side; such a pair proves little, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from statedict.errors import LimitError
from statedict.io.pipeline import Meter
from statedict.ops.jobs import Part, run_jobs
from statedict.reports.diff import Moved
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import origin
from statedict.tree.rename import modules

Tensors = Mapping[str, LazyTensor]

_HEAD = 64 << 10
_SAMPLE = 64
_DEEP = 6  # keys that a prefix may have
_POPULAR = 8
_MOVES = 8  # each explains at least such a part of what is left


def find_moves(one: Tensors, other: Tensors) -> tuple[list[Moved], dict[str, str]]:
    """The prefixes that explain most of the names that only one side has, and first path → second path by them.

    Each side's tensors are those that it has alone.
    """
    moves: list[Moved] = []
    pairs: dict[str, str] = {}
    left, right = dict(one), dict(other)
    while left and right and len(moves) < _MOVES and (move := _find_move(left, right)):
        moves.append(move)
        for path in list(left):
            new = move(path)
            if new is not None and new in right:
                pairs[path] = new
                del left[path], right[new]
    return moves, pairs


def _find_move(one: Tensors, other: Tensors) -> Moved | None:
    ends: dict[str, list[str]] = {}
    for path in other:
        for before, rest in _cuts(path):
            known = ends.setdefault(rest, [])
            if len(known) < _POPULAR:
                known.append(before)
    votes: Counter[tuple[str, str]] = Counter()
    paths = list(one)
    for path in paths[:: -(-len(paths) // _SAMPLE)]:
        for before, rest in _cuts(path):
            known = ends.get(rest, [])
            if len(known) < _POPULAR:
                votes.update((before, after) for after in known)
    for (before, after), _ in sorted(votes.items(), key=lambda item: (-item[1], len(item[0][0]), item[0]))[:8]:
        rule = Moved(before, after, 0)
        pairs = [(path, new) for path in one if (new := rule(path)) is not None and new in other]
        alike = sum(_kind(one[path]) == _kind(other[new]) for path, new in pairs)
        theirs = sum(not after or path.startswith(after + ".") for path in other)
        ours = sum(rule(path) is not None for path in one)
        fewer = min(len(one), len(other))
        few = len(pairs) < min(2, fewer) or len(pairs) * _MOVES < fewer
        if few or 2 * len(pairs) <= max(ours, theirs) or 2 * alike <= len(pairs):
            continue
        if not _is_insertion(before, after) and (len(pairs) < 3 or alike < len(pairs) or 5 * len(pairs) < 4 * ours):
            continue
        return Moved(before, after, len(pairs))
    return None


def _cuts(path: str) -> Iterable[tuple[str, str]]:
    """The path cut in two at each of its first dots."""
    yield "", path
    at = -1
    for _ in range(_DEEP):
        at = path.find(".", at + 1)
        if at < 0:
            return
        yield path[:at], path[at + 1 :]


def _is_insertion(before: str, after: str) -> bool:
    """Whether one prefix is the other with keys inserted, none of them a number."""
    short, long = sorted((before.split(".") if before else [], after.split(".") if after else []), key=len)
    more = len(long) - len(short)
    for at in range(len(short) + 1):
        if long[:at] + long[at + more :] == short:
            return more > 0 and not any(key.isdigit() for key in long[at : at + more])
    return False


def _kind(tensor: LazyTensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype.name, tuple(tensor.shape)


class Content(NamedTuple):
    """What a tensor holds: two are equal if dtype, shape and digest are."""

    key: tuple[Any, ...]  # dtype, shape and digest
    plain: bool  # whether all elements are equal, or there are so few that it says nothing


def contents(one: Tensors, other: Tensors, executor: Executor | None = None) -> list[dict[str, Content]]:
    """The contents of those tensors on either side that the other side may have too."""
    shapes = {_kind(t) for t in one.values()} & {_kind(t) for t in other.values()}
    sides = [{path: t for path, t in side.items() if _kind(t) in shapes and _is_readable(t)} for side in (one, other)]
    heads = [_digest_all(side, _HEAD, executor) for side in sides]
    both = {c.key for c in heads[0].values()} & {c.key for c in heads[1].values()}
    for side, head in zip(sides, heads, strict=True):
        for path in [path for path, content in head.items() if content.key not in both]:
            del head[path]
        head |= _digest_all({path: side[path] for path in head if side[path].nbytes > _HEAD}, None, executor)
    return heads


def digests(tensors: Tensors) -> dict[str, str]:
    """Path → XXH3-128, in hexadecimal, of the elements in their order; each range of bytes is read once."""
    firsts: dict[object, str] = {}
    same = {path: firsts.setdefault(origin(tensor), path) for path, tensor in tensors.items()}
    digested = _digest_all({path: tensors[path] for path in firsts.values()})
    return {path: digested[first].key[-1].hex() for path, first in same.items()}


def _is_readable(tensor: LazyTensor) -> bool:
    """Whether its elements can be read one after the other; too many repetitions of a few cannot."""
    try:
        tensor.contiguous()
    except LimitError:
        return False
    return True


def _digest_all(tensors: Tensors, most: int | None = None, executor: Executor | None = None) -> dict[str, Content]:
    """Path → content, of the first `most` bytes or of all."""
    jobs = []
    for path, tensor in tensors.items():
        width = tensor.dtype.itemsize or 1
        size = tensor.nbytes if most is None else min(tensor.nbytes, most)
        jobs.append(Part(path, tensor.contiguous(), width, 0, size // width * width))
    return {job.name: content for job, content in run_jobs(_digest, jobs, executor)}


def _digest(job: Part, counter: Meter) -> Content:
    from xxhash import xxh3_128

    width = job.unit
    hasher, plain, first = xxh3_128(), True, b""
    for block in job.blocks(counter):
        hasher.update(block)
        first = first or bytes(block[:width])
        plain = plain and bytes(block[-width:]) == first and bytes(block[width:]) == bytes(block[:-width])
    return Content((*_kind(job.tensor), hasher.digest()), plain or job.size <= 2 * width)


def match_contents(
    one: Mapping[str, Content], other: Mapping[str, Content]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """First path → second path of the same content, and second → first where the same content proves nothing.

    The last are those of the first paths whose content proves little: the names of others say how they go on.
    """
    buckets: dict[tuple[Any, ...], tuple[list[str], list[str]]] = {}
    for side, some in enumerate((one, other)):
        for path, content in some.items():
            buckets.setdefault(content.key, ([], []))[side].append(path)
    plain = {content.key for content in one.values() if content.plain}
    pairs: dict[str, str] = {}
    unsure = []
    for key, (ours, theirs) in buckets.items():
        if len(ours) == len(theirs) == 1 and key not in plain:
            pairs[ours[0]] = theirs[0]
        elif ours and theirs:
            unsure.append((key, ours, theirs))
    pattern = _Pattern([*pairs.items()])
    same: dict[str, str] = {}
    weak: set[str] = set()
    for key, ours, theirs in unsure:
        free = dict.fromkeys(theirs)
        rest = []
        for path in ours:
            new = next((name for name in pattern(path) if name in free and name != path), None)
            if new is None:
                rest.append(path)
            else:
                pairs[path] = new
                del free[new]
        if key not in plain:  # copies of one another: in their order
            pairs |= dict(zip(rest, free, strict=False))
        else:
            same |= dict.fromkeys(free, ours[0])
        if key in plain:
            weak.update(path for path in ours if path in pairs)
    return pairs, same, weak


class _Pattern:
    """What names become, as far as others show: the modules around them, with numbers counted on."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.exact = modules(pairs)
        self.words: dict[tuple[int, str], set[str]] = {}  # place and key → what it becomes there
        self.shifts: dict[int, set[int]] = {}  # place → what is added to a number there
        for old, new in pairs:
            keys, others = old.split("."), new.split(".")
            for place, (one, other) in enumerate(zip(keys, others, strict=False)) if len(keys) == len(others) else ():
                if one.isdecimal() and other.isdecimal():
                    self.shifts.setdefault(place, set()).add(int(other) - int(one))
                else:
                    self.words.setdefault((place, one), set()).add(other)
        self.general: dict[str, dict[tuple[str, tuple[int, ...]], None]] = {}
        for old, news in self.exact.items():
            for new in news:
                (text, ours), (after, theirs) = _numbers(old), _numbers(new)
                if len(ours) == len(theirs):
                    shift = tuple(b - a for a, b in zip(ours, theirs, strict=True))
                    self.general.setdefault(text, {})[after, shift] = None

    def __call__(self, path: str) -> Iterable[str]:
        head, rest = path, ""
        while "." in head:
            head, _, key = head.rpartition(".")
            rest = f".{key}{rest}"
            for new in self.exact.get(head, ()):
                yield new + rest
            text, numbers = _numbers(head)
            for after, shift in self.general.get(text, ()):
                yield after.format(*(n + s for n, s in zip(numbers, shift, strict=True))) + rest
        keys = path.split(".")
        yield ".".join(self._key(place, key) for place, key in enumerate(keys))

    def _key(self, place: int, key: str) -> str:
        """What a key becomes at its place, if that is always the same."""
        if key.isdecimal():
            shifts = self.shifts.get(place, ())
            return str(int(key) + next(iter(shifts))) if len(shifts) == 1 else key
        words = self.words.get((place, key), ())
        return next(iter(words)) if len(words) == 1 else key


def _numbers(path: str) -> tuple[str, list[int]]:
    """A path with `{}` in the place of each number, and the numbers."""
    keys = path.replace("{", "{{").replace("}", "}}").split(".")
    numbers = [int(key) for key in keys if key.isdecimal() and key.isascii()]
    return ".".join("{}" if key.isdecimal() and key.isascii() else key for key in keys), numbers
