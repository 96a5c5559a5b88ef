"""Entries by path, and the skeleton that a tree leaves when its entries are taken out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from statedict.errors import PatternError, TreeError
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.values import Opaque, is_plain_list, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")

MAX_DEPTH = 200
MAX_ENTRIES = 20_000_000
MAX_SHARED = 100_000
MAX_CHARACTERS = 1 << 28
_SHORT = 100


Patterns = str | Sequence[str]
"""A glob over paths, or several. One that matches a path takes all below it."""


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a glob matches the path or a parent of it.

    >>> matches("model.head.weight", ["*.head"]), matches("model.header", ["*.head"])
    (True, False)
    """
    return any(_compile(pattern)(path) for pattern in patterns)


@lru_cache(1024)
def _compile(pattern: str) -> Callable[[str], object]:
    import re
    from fnmatch import translate

    glob = translate(pattern)
    return re.compile(glob[: glob.rindex(")") + 1] + r"(?s:\..*)?").fullmatch


def filter_paths(paths: Iterable[str], patterns: Patterns, kind: str) -> dict[str, None]:
    """The paths that match any of some patterns, in order.

    Args:
        paths: of tensors or entries.
        patterns: each must match something.
        kind: what the error calls the paths: "tensor" or "entry".

    Raises:
        PatternError: a pattern matches nothing, or there is none, or it is not a text.

    >>> list(filter_paths(["model.w", "model.b", "epoch"], "model", "entry"))
    ['model.w', 'model.b']
    """
    every = dict.fromkeys(paths)
    hits: set[str] = set()
    for pattern in to_patterns(patterns):
        match = _compile(pattern)
        found = [path for path in every if match(path)]
        if not found:
            raise no_match_error(pattern, len(every), kind)
        hits.update(found)
    return every if len(hits) == len(every) else {path: None for path in every if path in hits}


def to_patterns(given: Any) -> tuple[str, ...]:
    """One or more patterns as a tuple.

    Raises:
        PatternError: there is none, or it is not a text.
    """
    patterns = () if not isinstance(given, Iterable) else (given,) if isinstance(given, str) else tuple(given)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise PatternError(f"expected a pattern or a list of one or more, got {given!r:.40}")
    return patterns


def no_match_error(pattern: str, count: int, kind: str) -> PatternError:
    """The error for a pattern that matches none of `count` paths."""
    return PatternError(f"no {kind} of {count:,} matches {pattern!r}; fix or remove the pattern")


def free_name(path: str, taken: Mapping[str, Any]) -> str:
    """The path, or the path with `~2`, `~3` … if it is taken."""
    if path not in taken:
        return path
    used, free = 1, 2
    while f"{path}~{free}" in taken:  # doubling, then halving: a file may have one path a million times
        used, free = free, 2 * free
    while free - used > 1:
        middle = (used + free) // 2
        used, free = (middle, free) if f"{path}~{middle}" in taken else (used, middle)
    return f"{path}~{free}"


def label(key: Any) -> str:
    """What a key is called in a path: a foreign object by its name and what it was made from, a tensor by its shape.

    >>> label(0), label(Opaque("lab.Color", ("red",)))
    ('0', "lab.Color('red')")
    """
    if isinstance(key, LazyTensor):
        return f"{key.dtype}[{','.join(map(str, key.shape))}]"
    if isinstance(key, Opaque):
        (arg,) = key.args if type(key.args) is tuple and len(key.args) == 1 else (None,)
        short = (type(arg) is str and len(arg) <= _SHORT) or (type(arg) is int and abs(arg) < 1 << 63)
        return f"{key.name}({arg!r})" if short else key.name
    return str(key)


def nest(rows: list[tuple[str, Any]], group: Callable[[list[tuple[str, Any]]], Any], depth: int = 0) -> list[Any]:
    """Rows whose keys have dots, nested by module, wherever the members of a module stand.

    A module stands where its first member does. Siblings that differ only in numbers are in the order of these.

    Args:
        rows: keys, and anything.
        group: makes what stands for the rows of a module.
        depth: of the modules around.

    >>> nest([("a.10", 1), ("b", 2), ("a.9", 3)], dict)
    [('a', {'9': 3, '10': 1}), ('b', 2)]
    """
    modules: dict[str, list[tuple[str, Any]]] = {}
    for row in rows:
        modules.setdefault(row[0].partition(".")[0], []).append(row)
    found: list[tuple[str, Any]] = []
    for head, module in sort_numbers([*modules.items()]):
        if depth < MAX_DEPTH and all("." in key for key, _ in module):
            inner = nest([(key.partition(".")[2], row) for key, row in module], group, depth + 1)
            found.append((head, group(inner)))
        else:
            found += sort_numbers(module)
    return found


def sort_numbers(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Rows whose keys differ only in numbers, sorted by these among themselves; the others stay.

    >>> sort_numbers([("conv10", 0), ("bn10", 0), ("conv9", 0), ("bn9", 0), ("head", 0)])
    [('conv9', 0), ('bn9', 0), ('conv10', 0), ('bn10', 0), ('head', 0)]
    """
    import re

    alike: dict[str, list[tuple[list[tuple[int, str]], int]]] = {}
    for at, (key, _) in enumerate(rows):
        if numbers := re.findall("[0-9]+", key):
            size = [(len(digits := text.lstrip("0")), digits) for text in numbers]  # of any length
            alike.setdefault(re.sub("[0-9]+", "0", key), []).append((size, at))
    found = list(rows)
    for places in alike.values():
        for (_, to), (_, at) in zip(places, sorted(places), strict=True):
            found[to] = rows[at]
    return found


def sort_by_module(items: Iterable[T], path: Callable[[T], str]) -> list[T]:
    """Items by their paths, in the order in which a tree lists them; see `nest`.

    >>> sort_by_module(["0.w", "10.w", "9.w", "0.b"], str)
    ['0.w', '0.b', '9.w', '10.w']
    """

    def join(rows: list[tuple[str, list[T]]]) -> list[T]:
        return [item for _, some in rows for item in some]

    return join(nest([(path(item), [item]) for item in items], join))


def visit(
    tree: Any,
    leaf: Callable[[str, Any], Any],
    build: Callable[[Any, Any], Any],
    path: str = "",
    once: bool = False,
    plain: bool = True,
) -> Any:
    """What `build` makes of the root, bottom-up: the one recursion over trees.

    Args:
        tree: any nesting of dicts, lists, tuples and Opaques. Everything else, Counters included, is a leaf.
        leaf: makes the result for a leaf, from its path and value.
        build: makes the result for a container, from it and the results below it: a dict by its keys, or a list. An
            Opaque comes with an empty dict, which is filled afterwards: slot → result. Where an Opaque refers to one
            around it, as omegaconf's nodes do to their parents, the dict stays empty.
        path: the root's.
        once: visit each object once; what stands in several places has one result.
        plain: enter lists of nothing but plain values, such as vocabularies of half a million words.

    Raises:
        TreeError: a container contains itself, is nested deeper than 200, or has over 20 million entries, or over
            100,000 if that is because it holds few containers many times, or its paths have over 2²⁸ characters.
    """
    return _Visitor(leaf, build, once, plain).enter(tree, path)


class _Visitor:
    def __init__(
        self, leaf: Callable[[str, Any], Any], build: Callable[[Any, Any], Any], once: bool, plain: bool
    ) -> None:
        self.leaf, self.build, self.once, self.plain = leaf, build, once, plain
        self.count = self.characters = self.depth = 0
        self.fresh = MAX_SHARED  # entries that a tree of so many different containers may have
        self.seen: set[int] = set()
        self.active: set[int] = set()  # the containers around, up to the nearest Opaque: only an Opaque cuts a loop
        self.objects: set[int] = set()  # the Opaques around
        self.known: dict[int, tuple[Any, Any]] = {}  # with the object, whose id is only its own while it lives

    def enter(self, node: Any, path: str) -> Any:
        if self.once and id(node) in self.known:
            return self.known[id(node)][1]
        kind = type(node)
        if kind is list or kind is tuple or (isinstance(node, dict) and kind is not Counter):
            size, enter = len(node), self.enter
            prefix = path + "." if path else ""
            is_dict = isinstance(node, dict)
            plain = is_dict and {*map(type, node)} <= {str}
            names = node if plain else map(label, node) if is_dict else map(str, range(size))
            self.check(node, path, size, len(prefix) * size + sum(map(len, names)))
            self.depth += 1
            self.active.add(id(node))
            below: Any
            if plain:
                below = {key: enter(child, prefix + key) for key, child in node.items()}
            elif is_dict:
                below = {key: enter(child, prefix + label(key)) for key, child in node.items()}
            elif not self.once and is_plain_list(node):
                below = self.plain and [self.leaf(f"{prefix}{index}", child) for index, child in enumerate(node)]
            else:
                below = [enter(child, f"{prefix}{index}") for index, child in enumerate(node)]
            result = self.build(node, below)
            self.active.discard(id(node))
            self.depth -= 1
        elif isinstance(node, Opaque):
            return self.enter_object(node, path)
        else:
            result = self.leaf(path, node)
        if self.once:
            self.known[id(node)] = node, result
        return result

    def enter_object(self, node: Opaque, path: str) -> Any:
        parts: dict[str, Any] = {}
        result = self.build(node, parts)
        if id(node) in self.objects:
            return result
        self.check(node, path, 4, 4 * len(path))
        self.known[id(node)] = node, result
        around = self.active
        if not self.once:
            self.active = set()
        self.objects.add(id(node))
        self.depth += 1
        for slot in ("args", "state", "items", "entries"):
            if (value := getattr(node, slot)) is not None:  # the entries of a dict read as the object's own
                below = path if isinstance(value, dict) else f"{path}.{slot}" if path else slot
                parts[slot] = self.enter(value, below)
        self.depth -= 1
        self.objects.discard(id(node))
        self.active = around
        return result

    def check(self, node: Any, path: str, entries: int, characters: int) -> None:
        """Count what is in a container, and raise the error for one beyond the bounds."""
        if id(node) not in self.seen:
            self.seen.add(id(node))
            self.fresh += 100 * entries
        self.count += entries
        self.characters += characters
        if self.characters > MAX_CHARACTERS:
            what = f"the paths have more than {MAX_CHARACTERS:,} characters"
        elif self.depth > MAX_DEPTH:
            what = f"nested deeper than {MAX_DEPTH}"
        elif id(node) in self.active:
            what = "the tree contains itself here"
        elif self.count > min(self.fresh, MAX_ENTRIES):
            what = f"more than {min(self.fresh, MAX_ENTRIES):,} entries; containers that are shared multiply"
        else:
            return
        raise TreeError(f"{path[:80]!r}: {what}")


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) in order, below a path; paths repeat where two entries have one path.

    Raises:
        TreeError: as `visit`.
    """
    found: list[tuple[str, Any]] = []
    visit(tree, lambda path, leaf: found.append((path, leaf)), lambda node, below: None, path)
    return iter(found)


def walk_tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """As `walk`, of tensors and arrays only."""
    found: list[tuple[str, Any]] = []

    def leaf(path: str, value: Any) -> None:
        if is_array(value):
            found.append((path, value))

    visit(tree, leaf, lambda node, below: None, path, plain=False)
    return iter(found)


def check_bounds(tree: Any) -> None:
    """Raise the error of `visit` for a tree beyond its bounds."""
    visit(tree, lambda path, leaf: None, lambda node, below: None, plain=False)


def encode(tree: Any, put: Callable[[str, Any], Any], plain: Callable[[Any], Any] = to_json) -> Any:
    """A JSON-ready skeleton of the tree, with `put(path, leaf)` in the place of each leaf.

    A dict whose keys are strings that do not begin with `$` is a JSON object, a list an array; every other container
    is an object with a key that begins with `$`. docs/format.md specifies them.

    Args:
        tree: any nesting of dicts, lists, tuples and Opaques.
        put: makes what stands for a leaf.
        plain: makes the JSON of a key and of a value in `_metadata`.

    Raises:
        TreeError: as `visit`.
    """

    def build(node: Any, below: Any) -> Any:
        if isinstance(node, Opaque):
            below["$opaque"] = node.name
            return below
        if not isinstance(node, dict):
            return below if type(node) is list else {"$tuple": below}
        metadata = getattr(node, "_metadata", None)
        if metadata is None and all(type(key) is str and key[:1] != "$" for key in node):
            return below
        result: dict[str, Any] = {"$dict": [[plain(key), child] for key, child in below.items()]}
        if metadata is not None:
            result["metadata"] = encode(metadata, lambda _, leaf: plain(leaf), plain)
        return result

    return visit(tree, put, build)
