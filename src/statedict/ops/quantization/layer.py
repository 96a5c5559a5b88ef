"""The tensors of one quantized weight, and the shape that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from statedict.reports.quantization import Trouble
from statedict.tensor.lazy import LazyTensor

_TINY = 4096  # bytes of a tensor that is read for the shape in it


class Layout(NamedTuple):
    """What a weight is without quantization."""

    shape: tuple[int, ...] | None
    bits: float | None
    group: int | None = None  # how many numbers in a row share a scale
    format: str = ""
    elements: int | None = None  # where the shape is not known
    guessed: bool = False  # whether other bits would fit as well


@dataclass(slots=True)
class Layer:
    """The tensors of one weight by the endings of their names, and what its configuration says."""

    stem: str  # what their paths have in common
    stored: str  # the ending of the tensor with the numbers
    paths: dict[str, str]  # ending → path, of those that are there
    tensors: dict[str, LazyTensor]  # the same by tensor
    bits: int | None = None  # by the configuration
    group: int | None = None  # by the configuration; -1 for whole rows
    config: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[Fraction, tuple[int, int]] = field(default_factory=dict)  # of MLX: bits times group → both
    ask: bool = False  # whether servers are asked for tiny tensors
    troubles: list[Trouble] = field(default_factory=list)

    def __getitem__(self, ending: str) -> LazyTensor | None:
        return self.tensors.get(ending)

    @property
    def numbers(self) -> LazyTensor:
        """The tensor with the numbers, which must be there."""
        return self.tensors[self.stored]

    def first(self, *endings: str) -> LazyTensor | None:
        """The first of some tensors that is there."""
        return next((self.tensors[ending] for ending in endings if ending in self.tensors), None)

    def shape(self, ending: str, ndim: int | None = None) -> tuple[int, ...] | None:
        """The shape of a tensor; None without it, or if it has other dimensions or none of any size."""
        tensor = self.tensors.get(ending)
        if tensor is None or (ndim is not None and tensor.ndim != ndim) or 0 in tensor.shape:
            return None
        return tuple(tensor.shape)

    def trouble(self, ending: str, kind: str, what: str) -> None:
        """Note what is wrong with a tensor, or that it is missing."""
        self.troubles.append(Trouble(self.paths.get(ending) or self.stem + ending, kind, what))

    def expect(self, ending: str, *shapes: tuple[int, ...], why: str) -> None:
        """Note a tensor that has none of some shapes."""
        tensor = self.tensors.get(ending)
        if tensor is not None and tuple(tensor.shape) not in shapes:
            found, expected = format_shape(tensor.shape), " or ".join(dict.fromkeys(map(format_shape, shapes)))
            self.trouble(ending, "shape", f"is {found}, expected {expected}: {why}")

    def vote(self, *votes: Fraction | float | None) -> int | None:
        """The bits that most tensors have, at a tie those of the configuration; it is noted where that disagrees."""
        sound = [int(vote) for vote in votes if vote is not None and vote == int(vote) and 1 <= vote <= 16]
        ballots = ([self.bits] if self.bits is not None else []) + sound
        bits = max(ballots, key=ballots.count, default=None)
        if bits is not None and self.bits not in (None, bits):
            self.trouble(self.stored, "shape", f"fits {bits} bits, and the configuration says {self.bits}")
        return bits

    def count_groups(self, length: int, groups: int | None) -> tuple[int | None, int]:
        """How many numbers of a row share a scale, and the groups of a row, by the configuration if it says."""
        size = length if self.group is not None and self.group <= 0 else self.group
        if size is None and groups:
            size = ceil(length, groups)
        if size is None or size <= 0:
            return None, groups or 1
        return (size if size < length else None), ceil(length, size)

    def numbers_in(self, ending: str) -> tuple[int, ...] | None:
        """The numbers in a tiny tensor of integers; None without it, or if it is large or remote."""
        data = self.read(ending)
        if data is None or self.tensors[ending].dtype.kind != "int":
            return None
        size = self.tensors[ending].dtype.itemsize
        return tuple(int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size))

    def read(self, ending: str) -> bytes | None:
        """The bytes of a tiny tensor; on this machine, unless servers are asked too."""
        tensor = self.tensors.get(ending)
        if tensor is None or (tensor.storage.source.remote and not self.ask) or not 0 < tensor.nbytes <= _TINY:
            return None
        return bytes(tensor.contiguous().raw())


def ratio(a: int | None, b: int | None) -> Fraction | None:
    """Divide a by b; None if either is unknown or 0."""
    return Fraction(a, b) if a and b else None


def blocks_fit(shape: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Whether scales can be those of a weight: of all, of rows or columns, or of equal blocks of it."""
    if math.prod(scale) == 1 or scale in [(size,) for size in (*shape[:1], *shape[-2:-1])]:
        return True
    return len(scale) == len(shape) and all(map(_divides, shape, scale))


def _divides(length: int, parts: int) -> bool:
    return 0 < parts <= length and any(ceil(length, size) == parts for size in _sizes(length, parts))


def _sizes(length: int, parts: int) -> Iterable[int]:
    """The block sizes that may cut a length into parts: the smallest that does, and the powers of two above it."""
    least = ceil(length, parts)
    return least, 1 << (least - 1).bit_length()


def ceil(a: int, b: int) -> int:
    """Divide a by b, rounded up."""
    return -(-a // b)


def format_shape(shape: Iterable[int]) -> str:
    """A shape as reports have it: `3×4`."""
    return "×".join(map(str, shape)) or "scalar"
