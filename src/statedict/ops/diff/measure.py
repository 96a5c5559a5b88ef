"""How far two runs of numbers are apart: sums over blocks, which add up to those of a tensor.

Elements go through float32 where that holds them exactly and through float64 otherwise, in chunks that stay in the
processor's cache. Every chunk's sums are added up in float64. A chunk whose squares leave the range of float32 is
summed again in float64, and one whose squares leave that of float64 with all its numbers scaled by a power of two.
"""

from __future__ import annotations

import math
from threading import local
from typing import Any

import numpy

from statedict.dtypes import DType
from statedict.ops.products import dot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.ops.diff.compare import Rule, Tally

CHUNK = 1 << 17
_EXACT = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "bool": 8}
_FOUR = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_LEAST, _MOST = 1e-27, 1e37  # between these no square of a chunk that matters was lost in float32
_TINY, _HUGE = 1e-250, 1e290  # likewise in float64
_OWN = local()


def add(tally: Tally, one: memoryview, other: memoryview, kinds: tuple[DType, DType], rule: Rule) -> None:
    """Add two blocks of as many elements to a tally."""
    a, b = numpy.frombuffer(one, kinds[0].numpy), numpy.frombuffer(other, kinds[1].numpy)
    with numpy.errstate(all="ignore"):
        for at in range(0, len(a), CHUNK):
            _add(tally, a[at : at + CHUNK], b[at : at + CHUNK], kinds, rule)


def _add(tally: Tally, a: Any, b: Any, kinds: tuple[DType, DType], rule: Rule) -> None:
    same = kinds[0] is kinds[1]
    kind, four = working_dtype(kinds), kinds[0].name == "float4_e2m1fn_x2"
    x, y = (_unpack(a), _unpack(b)) if four else (convert(a, kind, 0), convert(b, kind, 1))
    if same and not rule.numeric:
        differs = _find_different(a, b, four)
    elif {kinds[0].kind, kinds[1].kind} <= {"int", "uint", "bool"}:
        differs = a != b
    else:
        differs = (x != y) | _find_rounded(a, x) | _find_rounded(b, y)
        if not rule.numeric:  # other dtypes: a NaN is a NaN
            differs &= ~(numpy.isnan(x) & numpy.isnan(y))
    difference = numpy.subtract(x, y, out=_room(kind, 2)[: len(x)])
    if kinds[0].bits == 64 and same and kinds[0].kind in ("int", "uint"):
        gap = (numpy.maximum(a, b) - numpy.minimum(a, b)).view(numpy.uint64)
        largest: float | int = int(gap.max())
        difference = gap.astype(numpy.float64)
    else:
        largest = _largest(difference)
    count = int(numpy.count_nonzero(differs))
    if not math.isfinite(largest):
        if kind == numpy.float32:  # a difference may be beyond float32
            x, y = x.astype(numpy.float64), y.astype(numpy.float64)
        finite = numpy.isfinite(x) & numpy.isfinite(y)
        tally.nonfinite += int(numpy.count_nonzero(differs & ~finite))
        if rule.rtol or rule.atol:
            tally.outside += int(numpy.count_nonzero(differs & ~finite & ~(x == y)))
        x, y, differs = x[finite], y[finite], differs[finite]
        difference = x - y
        largest = _largest(difference) if len(difference) else 0.0
    tally.elements += 2 * len(a) if four else len(a)
    tally.changed += count
    if kinds[0].kind in ("int", "uint", "bool", "bits", "quantized") and same:
        largest = int(largest)
    tally.max_abs = max(tally.max_abs, largest)
    if (rule.rtol or rule.atol) and count:
        far = differs & ~(numpy.abs(difference) <= rule.atol + rule.rtol * numpy.abs(y))
        tally.outside += int(numpy.count_nonzero(far))
    tally.put(*_products(x, y, difference))


def _products(x: Any, y: Any, difference: Any) -> tuple[tuple[float, float, float, float], int]:
    """The sums of a chunk, and by what power of two its numbers are scaled for them."""
    sums = _dot(x, x), _dot(y, y), _dot(x, y), _dot(difference, difference)
    if len(x) and not _TINY < max(sums) < _HUGE:
        x, y = x.view(x.real.dtype), y.view(y.real.dtype)
        most = max(float(numpy.abs(x).max()), float(numpy.abs(y).max()))
        scale = math.frexp(most)[1] if most else 0
        if scale:
            x, y = (numpy.ldexp(some.astype(numpy.float64), -scale) for some in (x, y))
            return (_dot(x, x), _dot(y, y), _dot(x, y), _dot(x - y, x - y)), scale
    return sums, 0


def working_dtype(kinds: tuple[DType, DType]) -> Any:
    """The numpy dtype in which two dtypes are subtracted."""
    if "complex" in (kinds[0].kind, kinds[1].kind):
        return numpy.dtype(numpy.complex128)
    small = all(kind.name in _EXACT or (kind.kind == "float" and kind.bits <= 8) for kind in kinds)
    return numpy.dtype(numpy.float32 if small else numpy.float64)


def _room(kind: Any, number: int) -> Any:
    rooms = _OWN.__dict__.setdefault("rooms", {})
    if (kind, number) not in rooms:
        rooms[kind, number] = numpy.empty(2 * CHUNK, kind)
    return rooms[kind, number]


def convert(values: Any, kind: Any, number: int) -> Any:
    """Up to `CHUNK` numbers in another dtype, in one of this thread's rooms."""
    if values.dtype == kind:
        return values
    room = _room(kind, number)[: len(values)]
    numpy.copyto(room, values, casting="unsafe")
    return room


def _find_rounded(values: Any, floats: Any) -> Any:
    """Which integers are not what they became as floats, so that no float is equal to them."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return False
    real = floats.real
    return (real >= 2.0 ** (63 if values.dtype.kind == "i" else 64)) | (real.astype(values.dtype) != values)


def _unpack(values: Any) -> Any:
    """The two numbers in each byte; the first is in its lower half."""
    table = numpy.array([(_FOUR[byte & 15], _FOUR[byte >> 4]) for byte in range(256)], numpy.float32)
    return table[values].reshape(-1)


def _find_different(a: Any, b: Any, four: bool) -> Any:
    """Where the bytes of elements differ; of four bits, of which each byte has two."""
    if four:
        bits = a ^ b
        return numpy.stack([bits & 15, bits >> 4], 1).reshape(-1) != 0
    item = a.dtype.itemsize
    if item == 16:
        pairs = a.view(numpy.uint64) != b.view(numpy.uint64)
        return pairs.reshape(-1, 2).any(1)
    return a.view(f"u{item}") != b.view(f"u{item}")


def _largest(difference: Any) -> float:
    if difference.dtype.kind == "c":
        return float(numpy.abs(difference).max())
    # a NaN is the largest and the least of what it is among
    return max(float(difference.max()), -float(difference.min())) if len(difference) else 0.0


def _dot(x: Any, y: Any) -> float:
    product = dot(x, y)
    if x.dtype == numpy.float32 and not _LEAST < abs(product) < _MOST and x.any() and y.any():
        return dot(x.astype(numpy.float64), y.astype(numpy.float64))
    return product
