"""What deserves a look in the figures of tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from statedict.dtypes import DType, dtype
from statedict.reports.stats import Figures, Flag, TensorStats
from statedict.reports.summary import BUFFERS, Optimizer
from statedict.tensor.lazy import LazyTensor
from statedict.tree.walk import label

EXPLODED = 10.0  # times the median of the siblings' root mean squares
SIBLINGS = 3  # among fewer, no tensor is out of line
DENORMAL = 0.01  # of the elements
EDGE = 0.01  # of the elements of 8 bits, which are often scaled until the largest one is at the edge


def row_size(tensor: LazyTensor, figures: Figures) -> int:
    """The bytes of a row, which is one index along the first dimension; 0 if too few elements are 0 for a dead row."""
    if tensor.ndim < 2 or tensor.dtype.kind == "bool" or not figures.zeros:
        return 0
    length = figures.elements // tensor.shape[0]
    return length * tensor.dtype.itemsize if figures.zeros >= length > 1 else 0


def count_dead(kind: DType, row: int, blocks: Iterable[Any]) -> int:
    """How many rows, of `row` bytes each, are all 0, in blocks that together are whole rows."""
    import numpy

    length = row // kind.itemsize
    halves = kind.kind == "complex" and kind.itemsize == 4  # two of 16 bits
    numbers = "u4" if halves else f"u{kind.itemsize}" if kind.itemsize <= 2 else kind.numpy
    # of a float of 16 bits or less all bits but the sign's, for numpy compares those of ml_dtypes one by one
    bits = kind.kind == "float" and kind.itemsize <= 2 and kind.name != "float8_e8m0fnu"
    mask = 0x7FFF7FFF if halves else (1 << kind.bits - 1) - 1 if bits else None
    if kind.name.endswith("fnuz"):
        mask = None  # the sign of 0 is NaN
    dead = behind = 0  # behind: elements of a row that the blocks before began
    alive = False
    for block in blocks:
        array = numpy.frombuffer(block, numbers)
        some = array & array.dtype.type(mask) if mask is not None else array
        with numpy.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            some = some != 0
        at = 0
        if behind:
            at = min(length - behind, len(some))
            alive, behind = alive or bool(some[:at].any()), behind + at
            if behind == length:
                dead, behind, alive = dead + (not alive), 0, False
        whole = (len(some) - at) // length * length
        dead += whole // length - int(numpy.count_nonzero(some[at : at + whole].reshape(-1, length).any(1)))
        if at + whole < len(some):
            behind, alive = len(some) - at - whole, bool(some[at + whole :].any())
    return dead


def roles(names: Iterable[str], owned: Mapping[str, tuple[Optimizer, Any]]) -> dict[str, str | None]:
    """For each tensor what it has in common with its siblings: its path without numbers; None if it has none.

    Buffers differ from layer to layer by nature. State of an optimizer goes by the name of its parameter; if that is
    unknown, layers cannot be told from one another.
    """
    found: dict[str, str | None] = {}
    for name in names:
        path: str | None = name
        if name.rpartition(".")[2] in BUFFERS:
            path = None
        elif name in owned:
            optimizer, key = owned[name]
            owner = optimizer.names.get(key)
            rest = name[len(f"{optimizer.path}.state.{label(key)}".removeprefix(".")) :]
            path = None if owner is None else f"{optimizer.path}.state.{owner}{rest}"
        found[name] = path and re.sub(r"\d+", "{n}", path)
    return found


def flags(tensors: Sequence[TensorStats], siblings: dict[str, str | None]) -> Iterator[Flag]:
    """What deserves a look, tensor by tensor; a tied one counts once."""
    counted = [tensor for tensor in tensors if tensor.computed and tensor.tied is None]
    groups: dict[str, list[float]] = {}  # role → root mean squares
    for tensor in counted:
        role, rms = siblings.get(tensor.name), tensor.rms
        if role and rms is not None and math.isfinite(rms) and dtype(tensor.dtype).kind in ("float", "complex"):
            groups.setdefault(role, []).append(rms)
    middles = {role: (median(values), len(values)) for role, values in groups.items() if len(values) >= SIBLINGS}
    for tensor in counted:
        yield from (Flag(tensor.name, kind, what) for kind, what in _odd_values(tensor))
        role, rms = siblings.get(tensor.name), tensor.rms
        middle, count = middles.get(role or "", (0.0, 0))
        if middle > 0 and rms is not None and rms > EXPLODED * middle:
            what = f"its root mean square, {rms:.3g}, is {rms / middle:,.0f} times the median of {count} like it"
            yield Flag(tensor.name, "exploded", f"{what} ({role})")


def _odd_values(tensor: TensorStats) -> Iterator[tuple[str, str]]:
    def part(count: int) -> str:
        return f"{count:,} of {tensor.elements:,} elements are"

    kind = dtype(tensor.dtype)
    if tensor.nan:
        yield "nan", f"{part(tensor.nan)} NaN"
    if tensor.inf:
        yield "inf", f"{part(tensor.inf)} infinite"
    several = tensor.elements > 1 and tensor.finite == tensor.elements and tensor.dtype != "bool"
    if several and tensor.zeros == tensor.elements:
        yield "zeros", f"all {tensor.elements:,} elements are 0"
    elif several and tensor.deviation == 0 and tensor.min == tensor.max:  # a tiny deviation may be rounded to 0
        value = tensor.mean if isinstance(tensor.mean, complex) else tensor.min
        yield "constant", f"all {tensor.elements:,} elements are {value:g}"
    elif tensor.dead_rows:
        yield "dead rows", f"{tensor.dead_rows:,} of {tensor.shape[0]:,} rows are all 0"
    if kind.kind in ("bool", "uint", "quantized"):
        return
    if kind.itemsize > 1 and tensor.denormal > DENORMAL * tensor.elements:
        yield "denormal", f"{part(tensor.denormal)} denormal: too small for {kind.name}'s full precision"
    if tensor.edge and (kind.itemsize > 1 or tensor.edge > EDGE * tensor.elements):
        yield "edge", f"{part(tensor.edge)} at the edge of {kind.name}: they may have been clipped"
