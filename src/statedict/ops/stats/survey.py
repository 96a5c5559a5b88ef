"""Figures of every tensor, of every module and of all, from one pass over the bytes; what deserves a look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import fields
from typing import Any, NamedTuple

from statedict.errors import LimitError
from statedict.io.progress import Meter
from statedict.ops.jobs import element_blocks, run_jobs
from statedict.ops.optimizers import optimizers, owners
from statedict.ops.stats.flags import count_dead, flags, roles, row_size
from statedict.reports.stats import Figures, Flag, GroupStats, StatsReport, TensorStats
from statedict.reports.summary import Optimizer
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import find_ties, storage_bytes
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import filter_paths

_JOB = 32 << 20  # bytes that a thread takes at a time
_NAMES = tuple(field.name for field in fields(Figures))
_NOBODY = Optimizer(""), None
_LEVELS = 32  # of modules; what is nested deeper counts for the module above


def survey(state: StateDict, only: Sequence[str] | str | None = None, executor: Executor | None = None) -> StatsReport:
    """The figures of the tensors of a state; see `statedict.stats`."""
    from statedict.ops.stats.figures import combine, is_computable  # with numpy, which start-up does not need

    tensors = state.tensors()
    if only is not None:
        tensors = {name: tensors[name] for name in filter_paths(tensors, only, "tensor")}
    tied = find_ties(tensors)
    firsts = {name: tensor for name, tensor in tensors.items() if name not in tied}
    _check_bound(list(firsts.values()))
    pending = {name: tensor.contiguous() for name, tensor in firsts.items() if is_computable(tensor.dtype)}
    sizes = {name: tensor.dtype.itemsize for name, tensor in pending.items()}
    figures = {name: combine(parts) for name, parts in _run(_measure, pending, sizes, executor).items()}
    dead = _count_dead_rows(pending, figures, executor)
    by_region = {tensor.region: name for name, tensor in firsts.items()}

    def value_of(step: LazyTensor) -> float | None:
        """The value of a tensor of one element."""
        found = figures.get(by_region.get(step.region, ""))
        return None if found is None else found.min

    seen = optimizers(state, value_of)
    owned = owners(seen, tensors)
    if only is not None:
        touched = {id(one) for one, _ in owned.values()}
        seen = [one for one in seen if id(one) in touched]
    records = []
    for name, tensor in tensors.items():
        owner, key = owned.get(name, _NOBODY)
        parameter = owner.names.get(key)
        first = tied.get(name, name)
        found = figures.get(first)
        record = TensorStats(
            name=name,
            dtype=tensor.dtype.name,
            shape=tuple(tensor.shape),
            tied=tied.get(name),
            dead_rows=None if tensor.ndim < 2 or found is None else dead.get(first, 0),
            computed=found is not None,
            parameter=parameter,
            inferred=owner.inferred and parameter is not None,
            **_fields(found or Figures(elements=tensor.numel())),
        )
        records.append(record)
    by_dtype: dict[str, list[Figures]] = {}
    for name, found in figures.items():
        by_dtype.setdefault(tensors[name].dtype.name, []).append(found)
    troubles = [Flag(one.title, kind, what) for one in seen for kind, what in one.troubles.items()]
    return StatsReport(
        tuple(records),
        tuple(_modules(figures.items())),
        tuple(_group(kind, len(parts), parts) for kind, parts in by_dtype.items()),
        _group("", len(figures), figures.values()),
        (*troubles, *flags(records, roles(tensors, owned))),
        tuple(seen),
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


class _Part(NamedTuple):
    """A part of a tensor: `size` bytes from `start`, whole units of `unit` bytes."""

    name: str
    tensor: LazyTensor
    unit: int
    start: int
    size: int

    def blocks(self, counter: Meter) -> Iterator[Any]:
        for block in element_blocks(self.tensor, self.start, self.size):
            yield block
            counter.advance(len(block))


def _cut(name: str, tensor: LazyTensor, unit: int, whole: bool = False) -> Iterator[_Part]:
    """The parts of a tensor; one if it is to stay `whole`, or is unpacked as a stream."""
    source = tensor.storage.source
    panel = getattr(source, "panel", 0)  # what is made at a time should not be made twice
    step = max(_JOB // (panel or 1), 1) * panel if panel else _JOB
    step = max(step // unit, 1) * unit
    if whole or hasattr(source, "stream"):
        step = max(tensor.nbytes, 1)
    for start in range(0, tensor.nbytes, step):
        yield _Part(name, tensor, unit, start, min(step, tensor.nbytes - start))


def _run(
    work: Any, tensors: dict[str, LazyTensor], units: dict[str, int], executor: Executor | None
) -> dict[str, list[Any]]:
    """For each tensor the results of its parts."""
    parts: list[_Part] = []
    for name, unit in units.items():
        tensor = tensors[name]
        # in memory its bytes go to the workers, where a part would take all of them along
        parts += _cut(name, tensor, unit, whole=executor is not None and tensor.storage.source.in_memory)
    remote = any(part.tensor.storage.source.remote for part in parts[:64])
    found: dict[str, list[Any]] = {name: [] for name in units}
    for part, result in run_jobs(work, parts, executor, _JOB, remote=remote):
        found[part.name].append(result)
    return found


def _measure(part: _Part, counter: Meter) -> Figures:
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


def _count_dead(part: _Part, counter: Meter) -> int:
    return count_dead(part.tensor.dtype, part.unit, part.blocks(counter))
