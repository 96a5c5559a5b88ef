"""average, merge: one state of several. Dispatch only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def merge(
    method: str,
    states: Sequence[Any],
    base: Any = None,
    *,
    integers: Mapping[str, str] | None = None,
    seed: int = 0,
    **parameters: Any,
) -> StateDict:
    """Merge models by a method: a lazy tree, computed in float32 when it is read or saved, rounded once.

    Without optimizers and what else `average` leaves out. docs/combining.md lists the methods and their parameters.

    Args:
        method: `"ties"`, `"slerp"`, `"task_arithmetic"` …
        states: paths, URLs or trees, whose models have the names and shapes of the first.
        base: what the models were fine-tuned from, for methods that use it.
        integers: as for `average`.
        seed: of the random choices of `dare_*` and `della*`. The same seed gives the same bytes.
        parameters: of the method, such as `weight=0.5`, `density=[0.3, 0.5]` (one for each model), `t=0.5`.

    Raises:
        CombineError: the method, a parameter or a model does not fit.
        StateDictError: what `load` raises.

    >>> import statedict, numpy
    >>> base, one, other = ({"w": numpy.array(value, "float32")} for value in ([0, 0], [2, 1], [2, -3]))
    >>> statedict.merge("task_arithmetic", [one, other], base)["w"].tolist()
    [4.0, -2.0]
    >>> statedict.merge("ties", [one, other], base)["w"].tolist()
    [2.0, -3.0]
    """
    return _merge(method, states, base, integers, seed, parameters)[0]


def average_files(
    sources: Sequence[Any],
    dst: Path | None,
    weights: Sequence[float] | None = None,
    *,
    ema: float | None = None,
    integers: Mapping[str, str] | None = None,
    precision: str = "float32",
    optimizer: bool = False,
    **how: Any,
) -> CombineReport:
    """Write the average of sources, as `average` and `save` do; see `_write`."""
    return _write(
        lambda: _average(sources, weights, ema, integers, precision, optimizer), dst, next(iter(sources), None), **how
    )


def merge_files(
    method: str,
    states: Sequence[Any],
    dst: Path | None,
    base: Any = None,
    *,
    integers: Mapping[str, str] | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any],
    **how: Any,
) -> CombineReport:
    """Write what `merge` makes, as `save` does; see `_write`."""
    first = next(iter(states), None) if base is None else base
    return _write(lambda: _merge(method, states, base, integers, seed, parameters), dst, first, **how)


def _write(
    make: Callable[[], tuple[StateDict, CombineReport]],
    dst: Path | None,
    first: Any,
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    dry_run: bool = False,
) -> CombineReport:
    """Make a state and write it, unless it is a dry run, which may have no `dst`; the target is checked first."""
    place = None if dst is None else Target(dst, format, max_shard_size, first, overwrite=overwrite)
    tree, report = make()
    if place is None or dry_run:
        return report
    place.write(tree)
    return replace(report, written=True)


def _average(
    sources: Any, weights: Any, ema: float | None, integers: Any, precision: str, optimizer: bool
) -> tuple[StateDict, CombineReport]:
    from statedict.ops.combine.align import align
    from statedict.ops.combine.average import average, read_weights

    _check_list("average", sources, 2)
    shares = read_weights(weights, ema, len(sources))
    with Paused():
        return average(align(_name(sources), optimizer), shares, _rules(integers), precision)


def _merge(
    method: str, states: Any, base: Any, integers: Any, seed: Any, parameters: Mapping[str, Any]
) -> tuple[StateDict, CombineReport]:
    from statedict.ops.combine.align import align
    from statedict.ops.combine.methods import merge, read_parameters

    _check_list("merge", states, 1)
    if type(seed) is not int:
        raise CombineError(f"seed: expected a whole number, got {seed!r:.40}")
    based = base is not None
    read_parameters(method, len(states), based, parameters)  # an error before anything is opened
    with Paused():
        return merge(align(_name([base] * based + [*states])), method, based, parameters, seed, _rules(integers))


def _check_list(verb: str, sources: Any, least: int) -> None:
    if is_path(sources) or isinstance(sources, Mapping) or not isinstance(sources, Sequence) or len(sources) < least:
        wanted = "two or more" if least > 1 else "one or more"
        raise CombineError(f"{verb} takes a list of {wanted} sources, not {sources!r:.60}")


def _rules(integers: Any) -> Mapping[str, str]:
    if integers is not None and not isinstance(integers, Mapping):
        raise CombineError(f"integers: expected a dict by pattern, got {integers!r:.40}")
    return integers or {}


def _name(sources: Sequence[Any]) -> list[tuple[str, StateDict]]:
    return [
        (name_of(source) if is_path(source) else f"source {number}", tree_of(source))
        for number, source in enumerate(sources, 1)
    ]
