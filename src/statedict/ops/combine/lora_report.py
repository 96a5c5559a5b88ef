"""What there is to say of adapters, of the changes that they make, and of the file that was written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from statedict.dtypes import DType
from statedict.ops.alter.tensors import round_to
from statedict.ops.combine.elements import read_pieces
from statedict.ops.combine.lora import Plan
from statedict.ops.combine.lora_experts import to_factors
from statedict.ops.combine.lora_factors import Low, column_norms
from statedict.ops.combine.lora_keys import Adapter, Module
from statedict.ops.combine.lora_target import Target
from statedict.ops.diff.compare import Rule, compare
from statedict.ops.products import dot
from statedict.reports.lora import HIDDEN, PROVED, WRONG, LoraApplied, LoraModule, LoraReport, LoraTarget
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import count_bytes
from statedict.tree.layout import Layout
from statedict.tree.state_dict import StateDict
from statedict.values import same_value

_EPS = 2.0**-24
_SETTINGS = (
    "r", "lora_alpha", "use_rslora", "use_dora", "bias", "lora_bias", "fan_in_fan_out", "modules_to_save",
    "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices", "layer_replication",
    "init_lora_weights", "peft_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
)  # fmt: skip
_BASES = ("base_model_name_or_path", "ss_sd_model_name", "ss_base_model_version", "modelspec.architecture")


def describe(adapter: Adapter, metadata: Mapping[str, Any]) -> LoraReport:
    """What an adapter is."""
    about = {**metadata, **adapter.config}
    modules = [_describe_module(one) for one in adapter.modules.values()]
    modules += [LoraModule(name, ("whole",), (one.shape,), None, None, None) for name, one in adapter.whole.items()]
    tensors = [*adapter.whole.values(), *(one for module in adapter.modules.values() for one in module.parts.values())]
    return LoraReport(
        source=adapter.name,
        kind=adapter.kind,
        dialect=adapter.dialect,
        base=next((str(about[key]) for key in _BASES if about.get(key)), ""),
        tensors=len(tensors),
        nbytes=count_bytes(tensors),
        modules=tuple(modules),
        settings=tuple((key, str(about[key])) for key in _SETTINGS if about.get(key) not in (None, False, "", [], {})),
        fault=adapter.fault,
        notes=tuple(adapter.notes),
    )


def _describe_module(one: Module) -> LoraModule:
    known = {"down", "up"} <= one.parts.keys()
    norm = None
    if known and one.parts["down"].shape[0] == one.parts["up"].numel() // one.parts["up"].shape[0]:
        factors = to_factors(one, experts=one.rank // one.said if one.said else 1)
        norm = Low(factors.down, (factors,)).norm()
    return LoraModule(
        name=one.name,
        parts=tuple(one.parts),
        shapes=tuple(part.shape for part in one.parts.values()),
        rank=one.rank or None,
        scale=one.scale if known else None,
        norm=norm,
    )


def report(
    plan: Plan, tree: StateDict, sources: Sequence[tuple[str, float | None]], method: str, measure: bool
) -> LoraApplied:
    """How adapters change a base; the norms of the changes only if asked for, since they may read tensors."""
    inverse = any(weight is not None and weight < 0 for _, weight in sources)
    targets = [_measure(one, inverse) if measure else _outline(one) for one in plan.targets.values()]
    lost = [one for one in targets if one.inexact]
    notes = list(dict.fromkeys(plan.notes))
    if lost:
        total = sum(one.inexact or 0 for one in lost)
        notes.append(
            f"{total:,} elements of {len(lost):,} tensors may differ by a rounding from what they were before the "
            "adapter was added, for its sum was rounded"
        )
    leaves = [as_lazy(leaf) for leaf in plan.layout.leaves.values() if is_array(leaf)]
    return LoraApplied(
        method=method,
        sources=tuple(sources),
        tensors=len(targets),
        nbytes=count_bytes(leaves),
        rules=(),
        left_out=tuple(plan.left_out.items()),
        notes=tuple(notes),
        written=False,
        targets=tuple(targets),
        wrong=(),
    )


def _outline(one: Target) -> LoraTarget:
    return LoraTarget(one.path, one.how, one.rank, None, None, "")


def _measure(one: Target, inverse: bool) -> LoraTarget:
    norm: float | None = None
    if one.base is not None:
        if one.whole is None and one.rows is None and one.magnitude is None:
            norm = one.low().norm()
        elif one.base.shape == one.start().shape:
            norm = _distance(one.base, one.make())
    inexact = _count_inexact(one) if inverse and one.factors else None
    return LoraTarget(one.path, one.how, one.rank, norm, inexact, "")


def _distance(one: LazyTensor, other: LazyTensor) -> float:
    total = 0.0
    for x, y in read_pieces([one, other]):
        y -= x
        total += dot(y, y)
    return math.sqrt(total)


def _count_inexact(one: Target) -> int:
    """Elements of which several values could have been the one before an adapter was added.

    What is written, y = R(x + delta) with the adapter's negative delta, was x = R(y - delta) before only if neither
    neighbour of y gives x, too, and y does.
    """
    import numpy

    low, kind, count = one.low(), one.low().base.dtype, 0
    with numpy.errstate(all="ignore"):
        for start, (values,) in low.blocks():
            work = numpy.promote_types("f4", values.dtype) if values.dtype.kind == "f" else numpy.dtype("f4")
            x = values.astype(work)
            delta = low.delta(work, start, start + len(values))
            y = round_to(kind, x + delta)
            sure = round_to(kind, y.astype(work) - delta).astype(work) == x
            for way in (-numpy.inf, numpy.inf):
                near = numpy.nextafter(y, numpy.asarray(way, y.dtype))
                sure &= round_to(kind, near.astype(work) - delta).astype(work) != x
            count += int(sure.size - numpy.count_nonzero(sure | ~numpy.isfinite(x)))
    return count


def prove(plan: Plan, tree: StateDict, written: StateDict) -> tuple[dict[str, str], list[str]]:
    """Check a written file against base + delta, computed anew in float64.

    Returns:
        The verdict on each target, and the paths of all else that is not as it should be.
    """
    there = Layout(written).leaves
    expected = Layout(tree).leaves
    verdicts: dict[str, str] = {}
    wrong = sorted((there.keys() ^ expected.keys()) - plan.targets.keys())
    pairs: list[tuple[str, LazyTensor, LazyTensor]] = []
    for path in expected.keys() & there.keys():
        one, other = plan.layout.leaves.get(path, expected[path]), there[path]
        if not is_array(one) or not is_array(other):
            wrong += [path] if is_array(one) or is_array(other) or not same_value(one, other) else []
        elif _kind(expected[path]) != _kind(other):
            wrong.append(path)
        elif path not in plan.targets and path not in plan.tied:
            pairs.append((path, as_lazy(one), as_lazy(other)))
    tallies = compare([(one, other) for _, one, other in pairs], Rule())
    wrong += [path for (path, *_), tally in zip(pairs, tallies, strict=True) if tally is not None]
    for path, one in plan.targets.items():
        found = there.get(path)
        verdicts[path] = WRONG if path in wrong or not is_array(found) else _judge(one, as_lazy(found))
    for path, other in plan.tied.items():
        if path in there and _judge(plan.targets[other], as_lazy(there[path])) == WRONG:
            wrong.append(path)
    return verdicts, [path for path in wrong if path not in verdicts]


def _kind(leaf: Any) -> tuple[Any, Any]:
    tensor = as_lazy(leaf)
    return tensor.dtype, tensor.shape


def _judge(one: Target, found: LazyTensor) -> str:
    if not one.factors:
        new = one.start()
        if compare([(new, found)], Rule())[0] is not None:
            return WRONG
        base, new = one.base, one.whole[0] if one.whole else new
        same = base is not None and base.shape == new.shape and compare([(base, found)], Rule())[0] is None
        return HIDDEN if same and base is not None and _distance(base, new) else PROVED
    low = one.low()
    fits, base_fits = True, True
    for good, hidden in _compare_bounds(low, found):
        fits &= good
        base_fits &= hidden
    if not fits:
        return WRONG
    return HIDDEN if base_fits and low.norm() else PROVED


def _compare_bounds(low: Low, found: LazyTensor) -> Iterator[tuple[bool, bool]]:
    """By blocks: whether what is found lies between the roundings of both ends of base + delta, and the base does.

    The ends are as far apart as sums and products in float32 may be off, so a delta that float32 loses is hidden.
    """
    import numpy

    kind = low.base.dtype
    eps = 2.0**-53 if kind.component.bits > 32 else _EPS
    norms: Any = column_norms(low, numpy.dtype("f8")) if low.magnitude is not None and low.factors[0].turned else None
    rank = sum(one.rank // one.experts for one in low.factors)
    for start, (before, now) in low.blocks(found):
        with numpy.errstate(all="ignore"):
            stop = start + len(before)
            x = before.astype("f8")
            exact = x + low.delta("f8", start, stop)
            error = eps * (4 * abs(x) + (rank + 8) * low.delta("f8", start, stop, sizes=True))
            if low.magnitude is not None:
                scale = _dora(low, exact, start, norms)
                exact, error = exact * scale, (error + 64 * eps * abs(exact)) * abs(scale)
            bounds = _round(kind, exact - error), _round(kind, exact + error)
            yield _lies(now, bounds), _lies(before, bounds)


def _dora(low: Low, rows: Any, start: int, norms: Any) -> Any:
    import numpy

    assert low.magnitude is not None
    magnitude = low.magnitude.contiguous().numpy().reshape(-1).astype("f8")
    if norms is not None:
        return magnitude / norms
    return (magnitude[start : start + len(rows)] / numpy.sqrt((rows * rows).sum(1)))[:, None]


def _round(kind: DType, values: Any) -> Any:
    return round_to(kind, values).astype("f8")


def _lies(values: Any, bounds: tuple[Any, Any]) -> bool:
    import numpy

    values = values.astype("f8")
    inside = (bounds[0] <= values) & (values <= bounds[1])
    return bool((inside | (numpy.isnan(values) & numpy.isnan(bounds[0]))).all())
