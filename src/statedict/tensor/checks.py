"""What a file should hold, part by part, and what is wrong with it: formats yield this, `verify` reports it."""

from __future__ import annotations

from collections import Counter, namedtuple

from statedict.tensor.lazy import LazyTensor
from statedict.values import Opaque, abbreviate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    from statedict.io.source import ByteSource
    from statedict.tensor.lazy import Storage

    K = TypeVar("K")

_LONGEST = 1000  # characters of a path: paths in a chain of dicts would grow with the square of its length


class Problem(namedtuple("Problem", "part what expected got remedy tensors", defaults=("", "", "", ()))):
    """One thing that is wrong with a file.

    Attributes:
        part: which part of the file, as `data/3`; empty for the whole.
        what: the fault.
        expected, got: values, if the fault is a wrong one.
        remedy: what to do.
        tensors: the paths of the tensors that it concerns.
    """

    __slots__ = ()

    part: str
    what: str
    expected: str
    got: str
    remedy: str
    tensors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return self._asdict()

    def __str__(self) -> str:
        where = self.part
        if self.tensors and self.tensors != (self.part,):
            paths = abbreviate(self.tensors)
            where = f"{where} ({paths})" if where else paths
        values = f": expected {self.expected}, got {self.got}" if self.expected else ""
        return f"{where}{': ' * bool(where)}{self.what}{values}{'; ' * bool(self.remedy)}{self.remedy}"


class Check:
    """A part of a file: a range of a source, the tensors that lie in it, and its sums.

    `crc`, `crc32c` and `digest` (XXH3-128 in hexadecimal) are None if the file has none. `coded` says that it holds the
    coded bytes of a tensor, which is a part of its own; `base` is what a decoded one is a difference from.
    """

    __slots__ = ("base", "coded", "crc", "crc32c", "digest", "part", "size", "source", "start", "tensors")

    def __init__(
        self,
        part: str,
        source: ByteSource,
        start: int,
        size: int,
        tensors: tuple[tuple[str, LazyTensor], ...] = (),
        crc: int | None = None,
        digest: str | None = None,
        coded: bool = False,
        base: str | None = None,
        crc32c: int | None = None,
    ) -> None:
        self.part, self.source, self.start, self.size, self.tensors = part, source, start, size, tensors
        self.crc, self.digest, self.coded, self.base = crc, digest, coded, base
        self.crc32c = crc32c

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of its tensors."""
        return tuple(path for path, _ in self.tensors)


class Unread(str):
    """The name of a file that belongs to a folder and is not looked at."""

    __slots__ = ()


# what a format's `checks` yields: parts, problems of the structure, files that are not looked at, and notes
Found = Check | Problem | Unread | str


def refusal(error: Exception, file: str, part: str = "", tensors: Iterable[str] = ()) -> Problem:
    """The problem that an error's message describes."""
    text = str(error)
    while text.startswith(f"{file}: "):
        text = text.removeprefix(f"{file}: ")
    what, _, remedy = text.rpartition("; ")
    return Problem(part, what or remedy, remedy=remedy if what else "", tensors=tuple(tensors))


def within(found: Iterator[Found], part: str, above: str = "") -> Iterator[Found]:
    """The findings in a file that is part of another, where its tensors are below the path `above`."""

    def path(below: str) -> str:
        return f"{above}.{below}" if above and below else above or below

    for item in found:
        if isinstance(item, Check):
            item.part = ": ".join(filter(None, (part, item.part)))
            item.tensors = tuple((path(below), tensor) for below, tensor in item.tensors)
            yield item
        elif isinstance(item, Problem):
            tensors = tuple(map(path, item.tensors))
            yield item._replace(part=": ".join(filter(None, (part, item.part))), tensors=tensors)
        else:
            yield type(item)(f"{part}: {item}" if part else item)


def tensors_of(tree: Any) -> list[tuple[str, LazyTensor]]:
    """(path, tensor) of every tensor in a tree, also in containers of any kind and in attributes of tensors.

    A container that occurs twice is visited once.
    """
    found: list[tuple[str, LazyTensor]] = []
    pending: list[tuple[str, Any]] = [("", tree)]
    seen: set[int] = set()
    while pending:
        path, node = pending.pop()
        if isinstance(node, LazyTensor):
            found.append((path, node))
            if not node.attributes:
                continue
            node = node.attributes
        items: list[tuple[Any, Any]] = []
        if id(node) in seen:
            continue
        if isinstance(node, dict):
            items = list(node.items())
        elif isinstance(node, list | tuple):
            items = list(enumerate(node))
        elif isinstance(node, Opaque):
            items = list(node.children())
        if items:
            seen.add(id(node))
            dot = path[-_LONGEST:] + "." if path else ""
            pending += [(f"{dot}{key}", child) for key, child in reversed(items)]
    return found


def count_floats(tree: Any) -> list[str]:
    """The floating-point dtypes of a tree, that of most elements first."""
    sizes = Counter[str]()
    for _, tensor in tensors_of(tree):
        if tensor.dtype.kind == "float":
            sizes[tensor.dtype.name] += tensor.numel()
    return [name for name, _ in sizes.most_common()]


def group_tensors(tree: Any, key: Callable[[Storage], K]) -> dict[K, list[tuple[str, LazyTensor]]]:
    """(path, tensor) of every tensor in a tree, by a key of its storage."""
    groups: dict[K, list[tuple[str, LazyTensor]]] = {}
    for path, tensor in tensors_of(tree):
        groups.setdefault(key(tensor.storage), []).append((path, tensor))
    return groups


def by_storage(tree: Any, names: Mapping[Storage, str] | None = None) -> Iterator[Check]:
    """A Check for each storage of a tree whose file has no sums."""
    for storage, tensors in group_tensors(tree, lambda storage: storage).items():
        part = (names or {}).get(storage, tensors[0][0])
        yield Check(part, storage.source, storage.offset, storage.nbytes, tuple(tensors))
