"""Figures of every tensor, of every module and of all, from one pass over the bytes; what deserves a look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import fields
from functools import partial
from typing import Any

from statedict.errors import LimitError
from statedict.io.parallel import REMOTE_WORKERS, batches, parallel
from statedict.io.pipeline import blocks
from statedict.io.progress import Meter, meter
from statedict.ops.optimizers import optimizers, owners
from statedict.ops.stats.figures import computable, of_blocks
from statedict.ops.stats.flags import Rows, count_dead, faults, flags, roles, rows_of
from statedict.reports.figures import Figures, combine
from statedict.reports.stats import GroupStats, StatsReport, TensorStats
from statedict.reports.summary import Optimizer
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import storage_bytes
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import filter_paths

_JOB = 32 << 20  # bytes that a thread takes at a time
_AHEAD = 64
_NAMES = tuple(field.name for field in fields(Figures))
_NOBODY = Optimizer(""), None
_LEVELS = 32  # of modules; what is nested deeper counts for the module above


def survey(state: StateDict, only: Sequence[str] | str | None = None, executor: Executor | None = None) -> StatsReport:
    """The figures of the tensors of a state; see `statedict.stats`."""
    tensors = _choose(state, only)
    names = list(tensors)
    found: dict[object, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = found.setdefault(tensor.region, name)
        if first != name:
            tied[name] = first
    _check_bound([tensors[name] for name in names if name not in tied])
    pending = {
        name: tensors[name].contiguous() for name in names if name not in tied and computable(tensors[name].dtype)
    }
    here = meter()
    figures = _describe_measures(pending, executor, here)
    suspects = {name: rows for name, tensor in pending.items() if (rows := rows_of(tensor, figures[name]))}
    dead = {name: rows.tensor.shape[0] for name, rows in suspects.items() if figures[name].zeros == rows.tensor.numel()}
    dead |= _dead({name: rows for name, rows in suspects.items() if name not in dead}, executor, here)
    seen = optimizers(state, lambda step: _only_value(figures.get(found.get(step.region, ""))))
    owned = owners(seen, names)
    if only is not None:
        touched = {id(one) for one, _ in owned.values()}
        seen = [one for one in seen if id(one) in touched]
    records = []
    for name, tensor in tensors.items():
        owner, key = owned.get(name, _NOBODY)
        parameter = owner.names.get(key)
        first = tied.get(name, name)
        own = figures.get(first)
        lines = tensor.ndim > 1 and own is not None
        records.append(
            TensorStats(
                name=name,
                dtype=tensor.dtype.name,
                shape=tuple(tensor.shape),
                tied=tied.get(name),
                dead_rows=dead.get(first, 0) if lines else None,
                computed=own is not None,
                parameter=parameter,
                inferred=owner.inferred and parameter is not None,
                **_fields(Figures(elements=tensor.numel()) if own is None else own),
            )
        )
    counted = [(record.name, figures[record.name]) for record in records if record.computed and not record.tied]
    kinds: dict[str, list[Figures]] = {}
    for name, own in counted:
        kinds.setdefault(tensors[name].dtype.name, []).append(own)
    return StatsReport(
        tuple(records),
        tuple(_modules(counted)),
        tuple(_group(kind, len(parts), parts) for kind, parts in kinds.items()),
        _group("", len(counted), [own for _, own in counted]),
        (*faults(seen), *flags(records, roles(names, owned))),
        tuple(seen),
    )


def _only_value(figures: Figures | None) -> float | None:
    """What a tensor of one element holds."""
    return figures.min if figures is not None else None


def _choose(state: StateDict, only: Sequence[str] | str | None) -> dict[str, LazyTensor]:
    tensors = state.tensors()
    if only is None:
        return tensors
    return {name: tensors[name] for name in filter_paths(tensors, only, "tensor")}


def _check_bound(tensors: list[LazyTensor]) -> None:
    """An error where few bytes are to be read very often."""
    if sum(tensor.nbytes for tensor in tensors) > 64 * storage_bytes(tensors) + (1 << 30):
        raise LimitError(
            f"its {len(tensors):,} tensors overlap too often for their figures to be computed; choose some by only"
        )


def _fields(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in _NAMES}


def _group(name: str, tensors: int, parts: Iterable[Figures]) -> GroupStats:
    return GroupStats(name=name, tensors=tensors, **_fields(combine(parts)))


def _modules(tensors: Iterable[tuple[str, Figures]]) -> Iterator[GroupStats]:
    """Each module from its own tensors and the modules right below it."""
    order: dict[str, None] = {}
    parts: dict[str, list[tuple[int, Figures]]] = {}
    for name, own in tensors:
        keys = name.split(".")[:-1][:_LEVELS]
        order |= {".".join(keys[: level + 1]): None for level in range(len(keys))}
        parts.setdefault(".".join(keys), []).append((1, own))
    groups: dict[str, GroupStats] = {}
    for name in sorted(order, key=lambda name: -name.count(".")):
        groups[name] = _group(name, sum(count for count, _ in parts[name]), [own for _, own in parts[name]])
        above = name.rpartition(".")[0]
        parts.setdefault(above, []).append((groups[name].tensors, groups[name]))
    yield from (groups[name] for name in order)


# jobs


class _Range:
    """A part of a tensor."""

    __slots__ = ("name", "rows", "size", "start", "tensor")

    def __init__(self, name: str, tensor: LazyTensor, start: int, size: int, rows: Rows | None = None) -> None:
        self.name, self.tensor, self.start, self.size, self.rows = name, tensor, start, size, rows

    def blocks(self, here: Meter | None) -> Iterator[Any]:
        """Its bytes."""
        storage = self.tensor.storage
        for _, block in blocks(storage.source, storage.offset + self.tensor.offset + self.start, self.size):
            yield block
            if here is not None:
                here.advance(len(block))


def _ranges(tensor: LazyTensor, unit: int, whole: bool = False) -> Iterator[tuple[int, int]]:
    """Start and size of the parts of a tensor, each of whole units of bytes."""
    source = tensor.storage.source
    panel = getattr(source, "panel", 0)  # what is made at a time should not be made twice
    step = max(_JOB // (panel or 1), 1) * panel if panel else _JOB
    step = max(step // unit, 1) * unit
    if whole or hasattr(source, "stream"):
        step = max(tensor.nbytes, 1)
    for start in range(0, tensor.nbytes, step):
        yield start, min(step, tensor.nbytes - start)


def _carry(tensor: LazyTensor, executor: Executor | None) -> bool:
    """Whether its bytes go to the workers, where a part would take all of them along."""
    return executor is not None and tensor.storage.source.in_memory


def _run(work: Any, jobs: Iterable[_Range], executor: Executor | None, here: Meter) -> Iterator[tuple[_Range, Any]]:
    """Each part with what the work makes of it."""
    every = list(jobs)
    here.expect(sum(job.size for job in every))
    remote = any(job.tensor.storage.source.remote for job in every[:64])
    whole = list(batches(every, _JOB))
    call = partial(_batch, work, None if executor is not None else here)
    results = parallel(call, whole, executor, REMOTE_WORKERS if remote else None, _AHEAD)
    for batch, made in zip(whole, results, strict=True):
        if executor is not None:
            here.advance(sum(job.size for job in batch))
        yield from zip(batch, made, strict=True)


def _batch(work: Any, here: Meter | None, batch: list[_Range]) -> list[Any]:
    return [work(job, here) for job in batch]


def _measure(job: _Range, here: Meter | None) -> Figures:
    kind = job.tensor.dtype
    if job.size < job.tensor.nbytes:
        return of_blocks(kind, job.blocks(here))
    # a whole tensor as by jobs for its parts, so that the last digit is the same
    parts = (_Range(job.name, job.tensor, *part) for part in _ranges(job.tensor, kind.itemsize))
    return combine(of_blocks(kind, part.blocks(here)) for part in parts)


def _count(job: _Range, here: Meter | None) -> int:
    assert job.rows is not None
    return count_dead(job.rows, job.blocks(here))


def _describe_measures(tensors: dict[str, LazyTensor], executor: Executor | None, here: Meter) -> dict[str, Figures]:
    jobs = (
        _Range(name, tensor, *part)
        for name, tensor in tensors.items()
        for part in _ranges(tensor, tensor.dtype.itemsize, _carry(tensor, executor))
    )
    found: dict[str, Any] = {}
    for job, made in _run(_measure, jobs, executor, here):
        if job.size == job.tensor.nbytes:
            found[job.name] = made
        else:
            found.setdefault(job.name, []).append(made)
    return {name: combine(made) if isinstance(made := found.get(name, []), list) else made for name in tensors}


def _dead(suspects: dict[str, Rows], executor: Executor | None, here: Meter) -> dict[str, int]:
    """How many rows are dead; the tensors are read a second time, those alone that can have such rows."""
    jobs = (
        _Range(name, rows.tensor, *part, rows)
        for name, rows in suspects.items()
        for part in _ranges(rows.tensor, rows.nbytes, _carry(rows.tensor, executor))
    )
    dead: dict[str, int] = {}
    for job, count in _run(_count, jobs, executor, here):
        dead[job.name] = dead.get(job.name, 0) + count
    return dead
