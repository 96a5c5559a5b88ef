"""average: one state of several. Dispatch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from statedict.api.files import Target, is_path, name_of, tree_of
from statedict.collector import Paused
from statedict.errors import CombineError
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.api.files import Path
    from statedict.reports.combine import CombineReport


def average(
    sources: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    ema: float | None = None,
    integers: Mapping[str, str] | None = None,
    precision: str = "float32",
    optimizer: bool = False,
) -> StateDict:
    """The average of states, name by name: a lazy tree, computed when it is read or saved.

    Each tensor is Σ w·x / Σ w, summed in float32 (float64 and complex in their own width) and rounded once to the dtype
    of the sources, the widest if they differ. Tied tensors stay tied. Without optimizers, schedulers, tensors beside
    the models, and values that differ; `statedict average --dry-run` lists what is left out.

    Args:
        sources: two or more paths, URLs or trees, whose models have the same names and shapes.
        weights: one for each source; they need not sum to 1. Equal ones by default.
        ema: the decay of an exponential moving average over the sources, oldest first, instead of weights.
        integers: pattern → `"max"`, `"min"`, `"first"` or `"last"`, for integer and boolean tensors that differ. Those
            that are equal are kept, and of counters such as `num_batches_tracked` the largest.
        precision: `"float64"` sums in float64.
        optimizer: average the moments of optimizers too; other settings are those of the first source.

    Raises:
        CombineError: names, shapes or integers differ, or a weight or a rule is not valid.
        StateDictError: what `load` raises.

    >>> import statedict, numpy
    >>> one, other = ({"w": numpy.array([value], "float32")} for value in (1, 3))
    >>> statedict.average([one, other])["w"].tolist(), statedict.average([one, other], [3, 1])["w"].tolist()
    ([2.0], [1.5])
    """
    return _average(sources, weights, ema, integers, precision, optimizer)[0]


def average_files(
    sources: Sequence[Any],
    dst: Path | None,
    weights: Sequence[float] | None = None,
    *,
    ema: float | None = None,
    integers: Mapping[str, str] | None = None,
    precision: str = "float32",
    optimizer: bool = False,
    dry_run: bool = False,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
) -> CombineReport:
    """Write the average of sources, as `average` and `save` do; a dry run may have no `dst`.

    Raises:
        StateDictError: what `average` and `save` raise.
    """
    place = (
        None
        if dst is None
        else Target(dst, format, max_shard_size, sources[0] if sources else None, overwrite=overwrite)
    )
    tree, report = _average(sources, weights, ema, integers, precision, optimizer)
    if place is None or dry_run:
        return report
    place.write(tree)
    return replace(report, written=True)


def _average(
    sources: Any, weights: Any, ema: float | None, integers: Any, precision: str, optimizer: bool
) -> tuple[StateDict, CombineReport]:
    from statedict.ops.combine.align import align
    from statedict.ops.combine.average import average, read_weights

    if is_path(sources) or isinstance(sources, Mapping) or not isinstance(sources, Sequence) or len(sources) < 2:
        raise CombineError(f"average takes a list of two or more sources, not {sources!r:.60}")
    if not isinstance(integers or {}, Mapping):
        raise CombineError(f"integers: expected a dict by pattern, got {integers!r:.40}")
    shares = read_weights(weights, ema, len(sources))
    with Paused():
        named = [
            (name_of(source) if is_path(source) else f"source {number}", tree_of(source))
            for number, source in enumerate(sources, 1)
        ]
        return average(align(named, optimizer), shares, integers or {}, precision)
