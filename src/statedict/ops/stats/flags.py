"""What deserves a look in the figures of tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from statedict.dtypes import dtype
from statedict.ops.stats.figures import whole_elements
from statedict.reports.figures import Figures
from statedict.reports.stats import Flag
from statedict.reports.summary import BUFFERS, Optimizer
from statedict.tensor.lazy import LazyTensor
from statedict.tree.walk import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.reports.stats import TensorStats

EXPLODED = 10.0  # times the median of the siblings' root mean squares
SIBLINGS = 3  # with less there is no telling which one is out of line
DENORMAL = 0.01  # of the elements
EDGE = 0.01  # of the elements of 8 bits, which are often scaled until the largest one is at the edge


class Rows:
    """Where the rows of a tensor are: what has one index along its first dimension."""

    __slots__ = ("nbytes", "tensor")

    def __init__(self, tensor: LazyTensor, nbytes: int) -> None:
        self.tensor, self.nbytes = tensor, nbytes


def rows_of(tensor: LazyTensor, figures: Figures) -> Rows | None:
    """The rows of a tensor, if it has enough zeros for one of them to be dead."""
    if tensor.ndim < 2 or tensor.dtype.kind == "bool" or not figures.zeros:
        return None
    length = figures.elements // tensor.shape[0]
    return Rows(tensor, length * tensor.dtype.itemsize) if figures.zeros >= length > 1 else None


def count_dead(rows: Rows, blocks: Iterable[Any]) -> int:
    """How many rows are all 0, of a range of whole rows."""
    import numpy

    kind = rows.tensor.dtype
    length = rows.nbytes // kind.itemsize
    halves = kind.kind == "complex" and kind.itemsize == 4  # two of 16 bits
    numbers = "u4" if halves else f"u{kind.itemsize}" if kind.itemsize <= 2 else kind.numpy
    # of a float of 16 bits or less all bits but the sign's, for numpy compares those of ml_dtypes one by one
    bits = kind.kind == "float" and kind.itemsize <= 2 and kind.name != "float8_e8m0fnu"
    mask = 0x7FFF7FFF if halves else (1 << kind.bits - 1) - 1 if bits else None
    if kind.name.endswith("fnuz"):
        mask = None  # the sign of 0 is NaN
    dead = behind = 0  # behind: elements of a row that the blocks before began
    alive = False
    for block in whole_elements(blocks, kind.itemsize):
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

    Buffers differ from layer to layer by nature. State of an optimizer goes by the name of its parameter; where
    that cannot be told, layers cannot be told from one another.

    Args:
        names: the paths of the tensors.
        owned: those that optimizers keep, and for which parameter.
    """
    found: dict[str, str | None] = {}
    for name in names:
        if name.rpartition(".")[2] in BUFFERS:
            found[name] = None
        elif name in owned:
            optimizer, key = owned[name]
            owner = optimizer.names.get(key)
            entry = f"{optimizer.path}.state.{label(key)}".removeprefix(".")
            rest = name[len(entry) :]
            found[name] = None if owner is None else _numberless(f"{optimizer.path}.state.{owner}{rest}")
        else:
            found[name] = _numberless(name)
    return found


def faults(found: Iterable[Optimizer]) -> Iterator[Flag]:
    """What deserves a look in the optimizers."""
    for optimizer in found:
        for kind, what in optimizer.troubles.items():
            yield Flag(optimizer.title, kind, what)


def _numberless(path: str) -> str:
    return re.sub(r"\d+", "{n}", path)


def flags(tensors: Sequence[TensorStats], siblings: dict[str, str | None]) -> Iterator[Flag]:
    """What deserves a look, tensor by tensor; a tied one counts once."""
    own = [tensor for tensor in tensors if tensor.computed and tensor.tied is None]
    middles = _medians(own, siblings)
    for tensor in own:
        yield from _values(tensor)
        yield from _precision(tensor)
        role, rms = siblings.get(tensor.name), tensor.rms
        among = middles.get(role or "")
        if among is not None and rms is not None and rms > EXPLODED * among[0]:
            what = f"its root mean square, {rms:.3g}, is {rms / among[0]:,.0f} times the median of {among[1]} like it"
            yield Flag(tensor.name, "exploded", f"{what} ({role})")


def _medians(tensors: Sequence[TensorStats], siblings: dict[str, str | None]) -> dict[str, tuple[float, int]]:
    """Role → median of the root mean squares, and of how many; where there are enough and not most are 0."""
    groups: dict[str, list[float]] = {}
    for tensor in tensors:
        role, rms = siblings.get(tensor.name), tensor.rms
        if role and rms is not None and math.isfinite(rms) and dtype(tensor.dtype).kind in ("float", "complex"):
            groups.setdefault(role, []).append(rms)
    middles = {role: (median(values), len(values)) for role, values in groups.items() if len(values) >= SIBLINGS}
    return {role: found for role, found in middles.items() if found[0] > 0}


def _values(tensor: TensorStats) -> Iterator[Flag]:
    if tensor.nan:
        yield Flag(tensor.name, "nan", f"{tensor.nan:,} of {tensor.elements:,} elements are NaN")
    if tensor.inf:
        yield Flag(tensor.name, "inf", f"{tensor.inf:,} of {tensor.elements:,} elements are infinite")
    several = tensor.elements > 1 and tensor.finite == tensor.elements and tensor.dtype != "bool"
    if several and tensor.zeros == tensor.elements:
        yield Flag(tensor.name, "zeros", f"all {tensor.elements:,} elements are 0")
    elif several and tensor.deviation == 0 and tensor.min == tensor.max:  # a tiny deviation may be rounded to 0
        value = tensor.mean if isinstance(tensor.mean, complex) else tensor.min
        yield Flag(tensor.name, "constant", f"all {tensor.elements:,} elements are {value:g}")
    elif tensor.dead_rows:
        yield Flag(tensor.name, "dead rows", f"{tensor.dead_rows:,} of {tensor.shape[0]:,} rows are all 0")


def _precision(tensor: TensorStats) -> Iterator[Flag]:
    kind = dtype(tensor.dtype)
    if kind.kind in ("bool", "uint", "quantized"):
        return
    if kind.itemsize > 1 and tensor.denormal > DENORMAL * tensor.elements:
        what = f"{tensor.denormal:,} of {tensor.elements:,} elements are denormal: too small for {kind.name}"
        yield Flag(tensor.name, "denormal", f"{what}'s full precision")
    if tensor.edge and (kind.itemsize > 1 or tensor.edge > EDGE * tensor.elements):
        what = f"{tensor.edge:,} of {tensor.elements:,} elements are at the edge of {kind.name}"
        yield Flag(tensor.name, "edge", f"{what}: they may have been clipped")
