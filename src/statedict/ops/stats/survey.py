"""Figures of every tensor, of every module and of all, from one pass over the bytes; what deserves a look."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from operator import itemgetter
from statistics import median
from typing import Any

from statedict.dtypes import DType, dtype
from statedict.errors import LimitError
from statedict.io.pipeline import Meter
from statedict.ops.inspect import is_generator_state, optimizers, owners
from statedict.ops.jobs import Part, run_jobs
from statedict.ops.quantization.described import add_settings
from statedict.ops.quantization.faults import list_faults
from statedict.ops.quantization.find import Decoded, Found, decode_weights, find
from statedict.reports.stats import Figures, Flag, GroupStats, StatsReport, TensorStats
from statedict.reports.summary import BUFFERS, Optimizer
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import find_ties, storage_bytes
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import filter_paths, label, sort_by_module

_JOB = 32 << 20  # bytes that a thread takes at a time
_NAMES = tuple(field.name for field in fields(Figures))
_NOBODY = Optimizer(""), None
_LEVELS = 32  # of modules; what is nested deeper counts for the module above
EXPLODED = 10.0  # times the median of the siblings' root mean squares
SIBLINGS = 3  # among fewer, no tensor is out of line
DENORMAL = 0.01  # of the elements
EDGE = 0.01  # of the elements of 8 bits, which are often scaled until the largest one is at the edge


def survey(
    state: StateDict,
    only: Sequence[str] | str | None = None,
    executor: Executor | None = None,
    config: Mapping[str, Any] | None = None,
) -> StatsReport:
    """The figures of the tensors of a state; see `statedict.stats`."""
    from statedict.ops.stats.figures import combine, is_computable  # with numpy, which start-up does not need

    tensors = state.tensors()
    quantized = find(tensors, add_settings(state, tensors, config))
    weights = decode_weights(quantized)
    if only is not None:
        chosen = filter_paths([*tensors, *weights], only, "tensor")
        tensors = {name: tensor for name, tensor in tensors.items() if name in chosen}
        weights = {name: some for name, some in weights.items() if not chosen.keys().isdisjoint((name, *some.paths))}
    tied = find_ties(tensors)
    firsts = {name: tensor for name, tensor in tensors.items() if name not in tied}
    _check_bound(list(firsts.values()))
    pending = {
        name: tensor.contiguous()
        for name, tensor in firsts.items()
        if is_computable(tensor.dtype) and not quantized.is_packed(name)
    }
    sizes = {name: tensor.dtype.itemsize for name, tensor in pending.items()}
    figures = {name: combine(parts) for name, parts in _run(_measure, pending, sizes, executor).items()}
    dead = _count_dead_rows(pending, figures, executor)
    by_region = {tensor.region: name for name, tensor in firsts.items()}

    def value_of(step: LazyTensor) -> float | None:
        """The value of a tensor of one element."""
        known = figures.get(by_region.get(step.region, ""))
        return None if known is None else known.min

    seen = optimizers(state, value_of)
    owned = owners(seen, tensors)
    if only is not None:
        touched = {id(one) for one, _ in owned.values()}
        seen = [one for one in seen if id(one) in touched]
    records = [
        _record(name, tensor, figures.get(tied.get(name, name)), tied.get(name), dead, owned.get(name, _NOBODY))
        for name, tensor in tensors.items()
    ]
    kept = {name for name in figures if not is_generator_state(name, tensors[name]) and not quantized.is_code(name)}
    figures = {name: found for name, found in figures.items() if name in kept}
    return _sum_up(records, figures, weights, quantized, seen, owned, executor)


def _sum_up(
    records: list[TensorStats],
    figures: Mapping[str, Figures],
    weights: Mapping[str, Decoded],
    quantized: Found,
    seen: list[Optimizer],
    owned: Mapping[str, tuple[Optimizer, Any]],
    executor: Executor | None,
) -> StatsReport:
    """The report of the records of tensors; quantized weights count in the place of what they are stored in."""
    faults = list(list_faults(quantized, {record.name: record for record in records}))
    faulty = {path: fault for fault in faults for path in quantized.around(fault.name)}
    lost = {path for path, fault in faulty.items() if fault.kind == "range"}  # an index that leads nowhere
    logical = _measure_weights({name: one for name, one in weights.items() if name not in lost}, executor)
    inside = {path for some in weights.values() for path in some.paths}
    summed = {name: found for name, found in figures.items() if name not in inside}
    by_dtype: dict[str, list[Figures]] = {}
    for record in records:
        if record.name in summed:
            by_dtype.setdefault(record.dtype, []).append(summed[record.name])
    for one in logical:
        by_dtype.setdefault(one.quantized or "", []).append(one)
    pairs = [*summed.items(), *((one.name, one) for one in logical)]
    troubles = [Flag(one.title, kind, what) for one in seen for kind, what in one.troubles.items()]
    troubles += [Flag(one.name, one.kind, one.what) for one in faults]
    looked_at = [one for one in records if one.name in summed] + [one for one in logical if one.name not in faulty]
    return StatsReport(
        tuple(records),
        tuple(_modules(sort_by_module(pairs, itemgetter(0)))),
        tuple(_group(kind, len(parts), parts) for kind, parts in by_dtype.items()),
        _group("", len(pairs), [found for _, found in pairs]),
        (*troubles, *flags(looked_at, roles([*(one.name for one in records), *weights], owned), quantized)),
        tuple(seen),
        quantized.report,
        tuple(logical),
    )


def _measure_weights(weights: Mapping[str, Decoded], executor: Executor | None) -> list[TensorStats]:
    """The figures of the numbers of quantized weights."""
    from statedict.ops.stats.figures import combine

    tensors = {name: one.tensor.contiguous() for name, one in weights.items()}
    sizes = {name: tensor.dtype.itemsize for name, tensor in tensors.items()}
    figures = {name: combine(parts) for name, parts in _run(_measure, tensors, sizes, executor).items()}
    dead = _count_dead_rows(tensors, figures, executor)
    return [
        replace(_record(name, tensors[name], figures[name], None, dead, _NOBODY), quantized=one.weight.kind)
        for name, one in weights.items()
    ]


def _record(
    name: str,
    tensor: LazyTensor,
    found: Figures | None,
    tied: str | None,
    dead: Mapping[str, int],
    owner: tuple[Optimizer, Any],
) -> TensorStats:
    optimizer, key = owner
    parameter = optimizer.names.get(key)
    return TensorStats(
        name=name,
        dtype=tensor.dtype.name,
        shape=tuple(tensor.shape),
        tied=tied,
        dead_rows=None if tensor.ndim < 2 or found is None else dead.get(tied or name, 0),
        computed=found is not None,
        parameter=parameter,
        inferred=optimizer.inferred and parameter is not None,
        **_fields(found or Figures(elements=tensor.numel())),
    )


def _check_bound(tensors: list[LazyTensor]) -> None:
    """An error where few bytes are to be read very often."""
    if sum(tensor.nbytes for tensor in tensors) > 64 * storage_bytes(tensors) + (1 << 30):
        raise LimitError(
            f"its {len(tensors):,} tensors overlap too often for their figures to be computed; choose some by only"
        )


def _fields(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in _NAMES}


def _group(name: str, tensors: int, parts: Iterable[Figures]) -> GroupStats:
    from statedict.ops.stats.figures import combine

    return GroupStats(name=name, tensors=tensors, **_fields(combine(parts)))


def _modules(tensors: Iterable[tuple[str, Figures]]) -> Iterator[GroupStats]:
    """Each module from its own tensors and the modules right below it."""
    order: dict[str, None] = {}
    parts: dict[str, list[tuple[int, Figures]]] = {}
    for name, figures in tensors:
        keys = name.split(".")[:-1][:_LEVELS]
        order |= {".".join(keys[: level + 1]): None for level in range(len(keys))}
        parts.setdefault(".".join(keys), []).append((1, figures))
    groups: dict[str, GroupStats] = {}
    for name in sorted(order, key=lambda name: -name.count(".")):
        counts, some = zip(*parts[name], strict=True)
        groups[name] = _group(name, sum(counts), some)
        parts.setdefault(name.rpartition(".")[0], []).append((groups[name].tensors, groups[name]))
    yield from (groups[name] for name in order)


def _cut(name: str, tensor: LazyTensor, unit: int, whole: bool = False) -> Iterator[Part]:
    """The parts of a tensor; one if it is to stay `whole`, or is unpacked as a stream."""
    source = tensor.storage.source
    panel = getattr(source, "panel", 0)  # what is made at a time should not be made twice
    step = max(_JOB // (panel or 1), 1) * panel if panel else _JOB
    step = max(step // unit, 1) * unit
    if whole or hasattr(source, "stream"):
        step = max(tensor.nbytes, 1)
    for start in range(0, tensor.nbytes, step):
        yield Part(name, tensor, unit, start, min(step, tensor.nbytes - start))


def _run(
    work: Any, tensors: dict[str, LazyTensor], units: dict[str, int], executor: Executor | None
) -> dict[str, list[Any]]:
    """For each tensor the results of its parts."""
    parts: list[Part] = []
    for name, unit in units.items():
        tensor = tensors[name]
        # in memory its bytes go to the workers, where a part would take all of them along
        parts += _cut(name, tensor, unit, whole=executor is not None and tensor.storage.source.in_memory)
    results: dict[str, list[Any]] = {name: [] for name in units}
    for part, result in run_jobs(work, parts, executor, _JOB):
        results[part.name].append(result)
    return results


def _measure(part: Part, counter: Meter) -> Figures:
    from statedict.ops.stats.figures import combine, compute_figures

    # a whole tensor as by jobs for its parts, so that the last digit is the same
    parts = [part] if part.size < part.tensor.nbytes else _cut(part.name, part.tensor, part.unit)
    return combine(compute_figures(part.tensor.dtype, one.blocks(counter)) for one in parts)


def _count_dead_rows(
    tensors: dict[str, LazyTensor], figures: dict[str, Figures], executor: Executor | None
) -> dict[str, int]:
    """The tensors that may have dead rows are read a second time, unless all is 0."""
    rows = {name: size for name, tensor in tensors.items() if (size := row_size(tensor, figures[name]))}
    dead = {name: tensors[name].shape[0] for name in rows if figures[name].zeros == figures[name].elements}
    rest = {name: size for name, size in rows.items() if name not in dead}
    return dead | {name: sum(counts) for name, counts in _run(_count_dead, tensors, rest, executor).items()}


def _count_dead(part: Part, counter: Meter) -> int:
    return count_dead(part.tensor.dtype, part.unit, part.blocks(counter))


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
    siblings: dict[str, str | None] = {}
    for name in names:
        path: str | None = name
        if name.rpartition(".")[2] in BUFFERS:
            path = None
        elif name in owned:
            optimizer, key = owned[name]
            owner = optimizer.names.get(key)
            rest = name[len(f"{optimizer.path}.state.{label(key)}".removeprefix(".")) :]
            path = None if owner is None else f"{optimizer.path}.state.{owner}{rest}"
        siblings[name] = path and re.sub(r"\d+", "{n}", path)
    return siblings


def flags(tensors: Sequence[TensorStats], siblings: dict[str, str | None], quantized: Found) -> Iterator[Flag]:
    """What deserves a look, tensor by tensor; a tied one counts once."""
    counted = [tensor for tensor in tensors if tensor.computed and tensor.tied is None]
    groups: dict[str, list[float]] = {}  # role → root mean squares
    for tensor in counted:
        role, rms = siblings.get(tensor.name), tensor.rms
        if role and rms is not None and math.isfinite(rms) and dtype(tensor.dtype).kind in ("float", "complex"):
            groups.setdefault(role, []).append(rms)
    middles = {role: (median(values), len(values)) for role, values in groups.items() if len(values) >= SIBLINGS}
    for tensor in counted:
        if tensor.name in quantized.parts and tensor.quantized is None:
            continue
        odd = _odd_values(tensor, tensor.quantized is not None or tensor.name in quantized.stored)
        yield from (Flag(tensor.name, kind, what) for kind, what in odd)
        role, rms = siblings.get(tensor.name), tensor.rms
        middle, count = middles.get(role or "", (0.0, 0))
        if middle > 0 and rms is not None and rms > EXPLODED * middle:
            what = f"its root mean square, {rms:.3g}, is {rms / middle:,.0f} times the median of {count} like it"
            yield Flag(tensor.name, "exploded", f"{what} ({role})")


def _odd_values(tensor: TensorStats, scaled: bool) -> Iterator[tuple[str, str]]:
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
    if scaled or kind.kind in ("bool", "uint", "quantized"):
        return
    if kind.itemsize > 1 and tensor.denormal > DENORMAL * tensor.elements:
        yield "denormal", f"{part(tensor.denormal)} denormal: too small for {kind.name}'s full precision"
    if tensor.edge and (kind.itemsize > 1 or tensor.edge > EDGE * tensor.elements):
        yield "edge", f"{part(tensor.edge)} at the edge of {kind.name}: they may have been clipped"
