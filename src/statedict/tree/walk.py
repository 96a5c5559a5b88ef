"""Entries by path, and the skeleton that a tree leaves when its entries are taken out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from statedict.errors import PatternError, TreeError
from statedict.tensor.lazy import LazyTensor
from statedict.values import Opaque, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

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
        PatternError: a pattern matches nothing.

    >>> list(filter_paths(["model.w", "model.b", "epoch"], "model", "entry"))
    ['model.w', 'model.b']
    """
    every = dict.fromkeys(paths)
    hits: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        match = _compile(pattern)
        found = [path for path in every if match(path)]
        if not found:
            raise no_match_error(pattern, len(every), kind)
        hits.update(found)
    return every if len(hits) == len(every) else {path: None for path in every if path in hits}


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
    """Rows whose keys have dots, nested by module; only neighbours share a module, so the order stays.

    Args:
        rows: keys, and anything.
        group: makes what stands for the rows of a module.
        depth: of the modules around.

    >>> nest([("a.w", 1), ("a.b", 2), ("c", 3)], dict)
    [('a', {'w': 1, 'b': 2}), ('c', 3)]
    """
    found: list[tuple[str, Any]] = []
    for head, members in groupby(rows, key=lambda row: row[0].partition(".")[0]):
        module = list(members)
        if depth < MAX_DEPTH and all("." in key for key, _ in module):
            inner = nest([(key.partition(".")[2], row) for key, row in module], group, depth + 1)
            found.append((head, group(inner)))
        else:
            found += module
    return found


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) in order, below a path; paths repeat where two entries have one path.

    Raises:
        TreeError: as `encode`.
    """
    found: list[tuple[str, Any]] = []
    encode(tree, lambda path, leaf: found.append((path, leaf)), lambda value: None, path)
    return iter(found)


def encode(tree: Any, put: Callable[[str, Any], Any], plain: Callable[[Any], Any] = to_json, path: str = "") -> Any:
    """A JSON-ready skeleton of the tree, with `put(path, leaf)` in the place of each leaf.

    A dict whose keys are strings that do not begin with `$` is a JSON object, a list an array; every other container
    is an object with a key that begins with `$`. docs/format.md specifies them.

    Args:
        tree: any nesting of dicts, lists, tuples and Opaques.
        put: makes what stands for a leaf.
        plain: makes the JSON of a key and of a value in `_metadata`.
        path: the tree's own.

    An object that an Opaque of it refers to again, as omegaconf's nodes do to their parents, is only named there.

    Raises:
        TreeError: a container contains itself, is nested deeper than 200, or has over 20 million entries, or over
            100,000 if that is because it holds few containers many times, or its paths have over 2²⁸ characters.
    """
    count = characters = depth = 0
    fresh = MAX_SHARED  # entries that a tree of so many different containers may have
    seen: set[int] = set()
    active: set[int] = set()  # the containers around, up to the nearest Opaque: without one a loop cannot be cut
    objects: set[int] = set()  # the Opaques around

    def visit(node: Any, prefix: str) -> Any:
        nonlocal count, characters, fresh, depth
        count += 1
        characters += len(prefix)
        if characters > MAX_CHARACTERS:
            raise TreeError(f"{prefix[:80]!r}: the paths have more than {MAX_CHARACTERS:,} characters")
        kind = type(node)
        if isinstance(node, dict) and kind is not Counter:
            make = dict_node
        elif kind is list or kind is tuple:
            make = sequence_node
        elif isinstance(node, Opaque):
            make = opaque_node
        else:
            return put(prefix, node)
        if id(node) in objects:
            return {"$opaque": node.name}
        if id(node) not in seen:
            seen.add(id(node))
            fresh += 100 * (4 if make is opaque_node else len(node))
        if count > min(fresh, MAX_ENTRIES):
            raise TreeError(f"{prefix[:80]!r}: more than {count - 1:,} entries; containers that are shared multiply")
        if depth > MAX_DEPTH:
            raise TreeError(f"{prefix[:80]!r}: nested deeper than {MAX_DEPTH}")
        if id(node) in active:
            raise TreeError(f"{prefix[:80]!r}: the tree contains itself here")
        depth += 1
        active.add(id(node))
        result = make(node, prefix + "." if prefix else "")
        active.discard(id(node))
        depth -= 1
        return result

    def dict_node(node: Any, prefix: str) -> Any:
        metadata = getattr(node, "_metadata", None)
        if metadata is None and all(type(key) is str and key[:1] != "$" for key in node):
            return {key: visit(value, prefix + key) for key, value in node.items()}
        result: dict[str, Any] = {
            "$dict": [[plain(key), visit(value, prefix + label(key))] for key, value in node.items()]
        }
        if metadata is not None:
            result["metadata"] = encode(metadata, lambda _, leaf: plain(leaf), plain)
        return result

    def sequence_node(node: Any, prefix: str) -> Any:
        children = [visit(value, f"{prefix}{index}") for index, value in enumerate(node)]
        return children if type(node) is list else {"$tuple": children}

    def opaque_node(node: Any, prefix: str) -> Any:
        nonlocal active
        around, active = active, set()
        objects.add(id(node))
        result = {"$opaque": node.name}
        for slot in ("args", "state", "items", "entries"):
            value = getattr(node, slot)
            if value is not None:
                inline = isinstance(value, dict)  # its entries read as the object's own
                result[slot] = visit(value, prefix.removesuffix(".") if inline else prefix + slot)
        objects.discard(id(node))
        active = around
        return result

    return visit(tree, path)
