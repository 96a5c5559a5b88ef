"""Compare what is copied out of a checkpoint with the sums that it carries, while it is copied.

A writer reads each tensor once and hashes it anyway, so this costs no further reading. What is computed from tensors is
read in pieces, of which a file has no sums: those tensors are the `rest`.
"""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from operator import itemgetter

from statedict.errors import CorruptFileError, FileError, FormatError, TreeError
from statedict.io.pipeline import Sums
from statedict.io.source import find_base
from statedict.tensor.checks import Check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from statedict.io.pipeline import Part
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found
    from statedict.tensor.lazy import LazyTensor

    Place = tuple[object, int, int]
    Write = Callable[[Any], object]

REMEDY = "fetch the file again; if another program rewrote it, pass verify=False"
_Known = namedtuple("_Known", "crc digest file path base")


class Guard:
    """What a checkpoint's file says of its parts; `found` are its checks."""

    def __init__(self, found: Iterable[Found]) -> None:
        self._checks: dict[Place, Check] = {}
        try:
            for item in found:
                if isinstance(item, Check) and (item.digest is not None or item.crc is not None):
                    place = _locate(item.source, item.start, item.size)
                    if place is not None and (item.tensors or item.coded):
                        self._checks[place] = item
        except (FormatError, FileError, TreeError):  # whoever reads that part is told
            pass

        self._known = {
            place: _Known(check.crc, check.digest, check.source.name, check.tensors[0][0], check.base)
            for place, check in self._checks.items()
            if check.tensors
        }
        self.with_crc = any(one.digest is None for one in self._known.values())

    def watch(self, write: Write) -> Write:
        """The function that writes a file, with a CorruptFileError for what differs from its sums."""
        return partial(_write, write, self) if self._known else write

    def compare(self, parts: Iterable[tuple[ByteSource, int, int]], sums: Iterable[Sums], with_crc: bool) -> None:
        """Compare the sums of parts (source, start, size) with what the file says of them.

        Raises:
            CorruptFileError: one differs.
        """
        for part, got in zip(parts, sums, strict=True):
            known = self._known.get(_locate(*part))  # type: ignore[arg-type]
            if known is None or (known.digest is None and not with_crc):
                continue
            kind, expected, found = "digest", known.digest, got.digest
            if expected is None:
                kind, expected, found = "CRC-32", f"{known.crc:08x}", f"{got.crc:08x}"
            if found != expected:
                where = f"{known.file.removesuffix(tensor := f': tensor {known.path!r}')}{tensor}"
                which = "its bytes" if known.base is None else f"its bytes or {known.base}"
                raise CorruptFileError(
                    f"{where}: its {kind} differs, so {which} are damaged: expected {expected}, got {found}; {REMEDY}"
                )

    def compare_digests(self, tensors: Iterable[LazyTensor], digests: Iterable[str]) -> None:
        """As `compare`, of the digests of tensors that lie in one piece."""
        self.compare(map(_part_of, tensors), [Sums(0, digest) for digest in digests], False)

    def parts(self, source: ByteSource) -> list[tuple[int, Check]]:
        """The parts of one file, and where they begin, in order."""
        here = _locate(source, 0, 0)
        found = [(start, check) for (file, start, _), check in self._checks.items() if here and file == here[0]]
        return sorted(found, key=itemgetter(0))

    def rest(self, tensors: Iterable[LazyTensor], copied: Iterable[LazyTensor]) -> Iterator[Check]:
        """The parts that tensors lie in, but those that are copied whole."""
        whole = {_locate(*_part_of(one)) for one in copied}
        for one in tensors:
            place = _locate(one.storage.source, one.storage.offset, one.storage.nbytes)
            if place is not None and place not in whole and place in self._checks:
                whole.add(place)
                yield self._checks[place]


def _locate(source: ByteSource, start: int, size: int) -> Place | None:
    """Where bytes lie, comparable between two sources of one file; None if that cannot be told."""
    base, ahead = find_base(source)
    place = getattr(base, "identity", None) or getattr(base, "place", None)
    return None if place is None else (place, ahead + start, size)


def _write(write: Write, guard: Guard, sink: Any) -> None:
    write(_Sink(sink, guard))


def watch_too(sink: Any, inner: Any) -> Any:
    """A sink in memory whose bytes will go into another one, watched if that is."""
    return _Sink(inner, sink.guard) if isinstance(sink, _Sink) else inner


def compare_coded(sink: Any, tensors: Iterable[LazyTensor], digests: Iterable[str]) -> None:
    """Compare the digests that tensors had before they were coded into a sink, if that is watched."""
    if isinstance(sink, _Sink):
        sink.guard.compare_digests(tensors, digests)


def _part_of(tensor: LazyTensor) -> tuple[ByteSource, int, int]:
    return tensor.storage.source, tensor.storage.offset + tensor.offset, tensor.nbytes


class _Sink:
    """A sink that compares what goes through it."""

    def __init__(self, sink: Any, guard: Guard) -> None:
        self._sink, self.guard = sink, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write parts and return their sums."""
        crc = crc or self.guard.with_crc
        return self._compare(parts, self._sink.put(parts, crc), crc or self._sink.in_order)

    def put_headed(self, parts: list[Part], head: Callable[[list[Sums]], bytes]) -> None:
        """Write the parts, and a head made from their sums before them."""
        if self._sink.in_order:
            self._sink.put_headed(parts, lambda sums: head(self._compare(parts, sums, False)))
        else:
            self._sink.write(0, head(self.put(parts)))

    def _compare(self, parts: list[Part], sums: list[Sums], with_crc: bool) -> list[Sums]:
        self.guard.compare(((part.source, part.start, part.size) for part in parts), sums, with_crc)
        return sums
