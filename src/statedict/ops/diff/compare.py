"""Pairs of tensors, compared by their bytes and measured where these differ.

Both sides are read block by block into two buffers a thread, or looked at in memory. Large tensors are cut into
slices, so that all threads have work; a slice is measured from its beginning once a block of it differs.
docs/decisions/0016-comparing.md has what the sizes are worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from statedict.dtypes import DType
from statedict.io.parallel import BATCH
from statedict.io.pipeline import PIECE, Meter
from statedict.ops.jobs import BLOCK, Elements, run_jobs
from statedict.reports.diff import Measures
from statedict.tensor.arrays import is_dense
from statedict.tensor.blocks import as_stored, find_blocks
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import origin

_SLICE = 16 << 20
_REMOTE_SLICE = 4 << 20
_EXECUTOR_BATCH = 16 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """When two elements are equal."""

    numeric: bool = False  # as numbers compare, so that 0.0 is -0.0 and NaN is nothing; otherwise by their bytes
    rtol: float = 0.0  # within this share of the second one's size they are close
    atol: float = 0.0  # within this distance they are close


_SUMS = ("elements", "changed", "nonfinite", "outside")


@dataclass(slots=True)
class Tally:
    """Sums over a part of two tensors; those of products are of numbers times 2 ** -scale."""

    elements: int = 0
    changed: int = 0
    nonfinite: int = 0
    outside: int = 0
    max_abs: float | int = 0
    scale: int = 0
    products: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # a·a, b·b, a·b, (a - b)·(a - b)

    def __iadd__(self, other: Tally) -> Tally:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs = max(self.max_abs, other.max_abs)
        self.put(other.products, other.scale)
        return self

    def repeat(self, times: int) -> None:
        """Count each element several times, which alters no ratio."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) * times)

    def put(self, products: tuple[float, ...], scale: int) -> None:
        """Add sums of products of numbers times 2 ** -scale."""
        before = self.products
        if scale != self.scale:
            scales = [at for at, some in ((self.scale, before), (scale, products)) if any(some)]
            most = max(scales, default=0)
            before = tuple(math.ldexp(value, 2 * min(self.scale - most, 0)) for value in before)
            products = tuple(math.ldexp(value, 2 * min(scale - most, 0)) for value in products)
            self.scale = most
        self.products = tuple(x + y for x, y in zip(before, products, strict=True))

    def measures(self) -> Measures:
        """The measures that follow from the sums."""
        aa, bb, ab, dd = self.products
        relative = math.sqrt(dd) / math.sqrt(aa) if aa else math.inf if dd else 0.0
        size = math.sqrt(aa) * math.sqrt(bb)
        cosine = max(-1.0, min(1.0, ab / size)) if size else None
        return Measures(self.elements, self.changed, self.nonfinite, self.max_abs, relative, cosine)


def comparable(one: DType, other: DType) -> bool:
    """Whether the elements of two dtypes can be measured against one another."""
    kinds = {one.kind, other.kind}
    if not (one.itemsize and other.itemsize) or "raw" in kinds:
        return False
    numbers = kinds <= {"float", "int", "uint", "bool", "complex"}
    return one is other or (numbers and "float4_e2m1fn_x2" not in (one.name, other.name))


@dataclass(frozen=True, slots=True)
class _Slice:
    """`count` elements of a pair from `first`, or bytes where an element is not a whole number of them."""

    number: int
    one: Elements
    other: Elements
    first: int
    count: int
    measure: bool = False  # though it may be equal

    @property
    def size(self) -> int:
        """Bytes of both sides."""
        return self.count * (self.one.item + self.other.item)

    @property
    def remote(self) -> bool:
        return self.one.source.remote or self.other.source.remote


def compare(
    pairs: Sequence[tuple[LazyTensor, LazyTensor]], rule: Rule, executor: Executor | None = None
) -> list[Tally | None]:
    """The differences of each pair of tensors of as many elements, of comparable dtypes; None for an equal pair.

    Of tensors that are stored as blocks of one type these are compared first: equal ones need not be decoded.
    """
    blocks = {n: pair for n, pair in enumerate(pairs) if not rule.numeric and _have_same_blocks(*pair)}
    stored = [(as_stored(one), as_stored(other)) for one, other in blocks.values()]
    equal = {n for n, tally in zip(blocks, _compare_all(stored, Rule(), executor), strict=True) if tally is None}
    rest = [n for n in range(len(pairs)) if n not in equal]
    found = dict(zip(rest, _compare_all([pairs[n] for n in rest], rule, executor), strict=True))
    return [found.get(n) for n in range(len(pairs))]


def _have_same_blocks(one: LazyTensor, other: LazyTensor) -> bool:
    first, second = find_blocks(one), find_blocks(other)
    return first is not None and second is not None and first.quantization == second.quantization


def _compare_all(
    pairs: Sequence[tuple[LazyTensor, LazyTensor]], rule: Rule, executor: Executor | None
) -> list[Tally | None]:
    tallies: list[Tally | None] = [None] * len(pairs)
    by_origin: dict[tuple[object, object], list[int]] = {}
    for number, (one, other) in enumerate(pairs):
        by_origin.setdefault((origin(one), origin(other)), []).append(number)
    slices: list[_Slice] = []
    repeated: dict[int, int] = {}
    for origins, (number, *_) in by_origin.items():
        one, other = pairs[number]
        exact = not (rule.numeric and one.dtype.kind in ("float", "complex"))  # a NaN is not equal to itself
        if _have_other_labels(one, other):
            tallies[number] = Tally(changed=1)
        elif one.nbytes and not (origins[0] == origins[1] and exact):
            first, second, count = _align(one, other)
            repeated[number] = max(one.numel() // count, 1) if one.dtype.itemsize else 1
            slices += _cut(_Slice(number, first, second, 0, count))
    results = list(_run(slices, rule, executor))
    differ = {part.number for part, tally in results if tally is not None}
    again = [
        replace(part, measure=True)
        for part, tally in results
        if tally is None and part.number in differ and comparable(part.one.kind, part.other.kind)
    ]
    for part, tally in (*results, *_run(again, rule, executor)):
        before = tallies[part.number]
        if before is None:
            tallies[part.number] = tally
        elif tally is not None:
            before += tally
    for number, tally in enumerate(tallies):
        if tally is not None and not tally.changed and tally.elements:  # by numbers equal after all
            tallies[number] = None
        elif tally is not None:
            tally.repeat(repeated.get(number, 1))
    for number, *same in by_origin.values():
        for twin in same:
            tallies[twin] = tallies[number]
    return tallies


def _have_other_labels(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether tensors whose elements have no known size differ before a byte is read."""
    if not isinstance(one, Labelled) or not isinstance(other, Labelled):
        return False
    return (one.nbytes, one.first, one.steps) != (other.nbytes, other.first, other.steps)


def _align(one: LazyTensor, other: LazyTensor) -> tuple[Elements, Elements, int]:
    """The elements of both sides, in one order, and how many.

    Where they lie alike, in the order of the bytes, and each once though it is repeated.
    """
    alike = one.strides is not None and one.strides == other.strides and one.shape == other.shape
    if alike and one.dtype is other.dtype:
        one, other = _without_repeats(one), _without_repeats(other)
        if one.strides is not None and is_dense(one.shape, one.strides):
            one, other = (t.replace(shape=(t.span // t.dtype.itemsize,), strides=None) for t in (one, other))
    return Elements(one), Elements(other), one.numel() if one.dtype.itemsize else one.nbytes


def _without_repeats(tensor: LazyTensor) -> LazyTensor:
    strides = tensor.strides or ()
    return tensor[tuple(slice(None) if stride else 0 for stride in strides)] if 0 in strides else tensor


def _cut(whole: _Slice) -> list[_Slice]:
    step = (_REMOTE_SLICE if whole.remote else _SLICE) // max(whole.one.item, whole.other.item)
    starts = range(0, whole.count, step)
    return [replace(whole, first=first, count=min(step, whole.count - first)) for first in starts]


def _run(slices: list[_Slice], rule: Rule, executor: Executor | None) -> Iterator[tuple[_Slice, Tally | None]]:
    return run_jobs(partial(_compare, rule), slices, executor, BATCH if executor is None else _EXECUTOR_BATCH)


def _compare(rule: Rule, job: _Slice, counter: Meter) -> Tally | None:
    one, other = job.one, job.other
    kinds = (one.kind, other.kind)
    step = (PIECE if job.remote else BLOCK) // max(one.item, other.item)
    end = job.first + job.count
    ranges = [(first, min(step, end - first)) for first in range(job.first, end, step)]
    numeric = rule.numeric and one.kind.kind in ("float", "complex")
    equal = kinds[0] is kinds[1] and not numeric and not job.measure
    tally: Tally | None = None
    if not equal or not all(_is_equal(one.read(*part, 0), other.read(*part, 1)) for part in ranges):
        from statedict.ops.diff.measure import add  # with numpy, which equal tensors do not need

        tally = Tally(changed=int(not comparable(*kinds)))
        for part in ranges if not tally.changed else ():
            add(tally, one.read(*part, 0), other.read(*part, 1), kinds, rule)
    counter.advance(job.size)
    return tally


def _is_equal(one: memoryview, other: memoryview) -> bool:
    compared = _memcmp()
    if compared is not None and not one.readonly and not other.readonly:
        return bool(compared(_address(one), _address(other), len(one)) == 0)
    import numpy

    wide = len(one) & ~7
    head = numpy.array_equal(numpy.frombuffer(one[:wide], "u8"), numpy.frombuffer(other[:wide], "u8"))
    return head and one[wide:] == other[wide:]


def _address(memory: memoryview) -> int:
    import ctypes

    return ctypes.addressof((ctypes.c_char * 1).from_buffer(memory)) if len(memory) else 0


@cache
def _memcmp() -> Any:
    """C's memcmp, which lets other threads run; None where it is not found."""
    import ctypes

    try:
        compare_memory = ctypes.CDLL(None).memcmp
        compare_memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    except (OSError, TypeError, AttributeError):
        return None
    return compare_memory
