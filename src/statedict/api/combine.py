"""average, merge: one state of several. Dispatch only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from statedict.api.companions import plan_companions
from statedict.api.files import Target, name_of, tree_of
from statedict.api.names import is_path, split
from statedict.collector import Paused
from statedict.errors import CombineError
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.api.names import Path
    from statedict.dtypes import DType
    from statedict.ops.combine.align import Aligned
    from statedict.reports.combine import CombineReport


def average(
    sources: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    ema: float | None = None,
    integers: Mapping[str, str] | None = None,
    precision: str = "float32",
    optimizer: bool = False,
    vocabulary: str | None = None,
) -> StateDict:
    """The average of states, name by name: a lazy tree, computed when it is read or saved.

    Each tensor is Σ w·x / Σ w, summed in float32 (float64 and complex in their own width) and rounded once to the dtype
    of the sources, the widest if they differ. Elements that are the same in all sources stay so. Tied tensors stay
    tied. Without optimizers, schedulers, tensors beside the models, and values that differ; `statedict average
    --dry-run` lists what is left out.

    Args:
        sources: two or more paths, URLs or trees, whose models have the same names and shapes.
        weights: one for each source; they need not sum to 1. Equal ones by default.
        ema: the decay of an exponential moving average over the sources, oldest first, instead of weights.
        integers: pattern → `"max"`, `"min"`, `"first"` or `"last"`, for integer and boolean tensors that differ. Those
            that are equal are kept, and of counters such as `num_batches_tracked` the largest.
        precision: `"float64"` sums in float64.
        optimizer: average the moments of optimizers too; other settings are those of the first source.
        vocabulary: what to do if embeddings have different numbers of rows: `"truncate"` takes the rows that all have,
            `"pad"` those of the largest, where the others get them from the first source that has them.

    Raises:
        CombineError: names, shapes or integers differ, or a weight or a rule is not valid.
        StateDictError: what `load` raises.

    >>> import statedict, numpy
    >>> one, other = ({"w": numpy.array([value], "float32")} for value in (1, 3))
    >>> statedict.average([one, other])["w"].tolist(), statedict.average([one, other], [3, 1])["w"].tolist()
    ([2.0], [1.5])
    """
    return _average(sources, weights, ema, integers, precision, optimizer, vocabulary).tree


def merge(
    method: str,
    states: Sequence[Any],
    base: Any = None,
    *,
    integers: Mapping[str, str] | None = None,
    seed: int = 0,
    dtype: DType | str | None = None,
    vocabulary: str | None = None,
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
        dtype: of the result, such as `"bfloat16"`, instead of that of the sources.
        vocabulary: as for `average`; the base comes first.
        parameters: of the method, such as `weight=0.5`, `density=[0.3, 0.5]` (one for each model), `t=0.5`; or by
            pattern, `density={"*.mlp.*": 0.3, "*": 0.5}`, of which the first that matches counts.

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
    return _merge(method, states, base, integers, seed, dtype, vocabulary, parameters).tree


class Made(NamedTuple):
    """A state of several, and how it was made."""

    tree: StateDict
    report: CombineReport
    changes: Mapping[str, Any] = {}  # in the configuration of the first source: path of keys → value
    recipe: str = ""  # the text of a configuration that it was made by
    tokenizer: tuple[str, Mapping[str, bytes]] | None = None  # of which source, and its files, if not of the first one


def average_files(
    sources: Sequence[Any],
    dst: Path | None,
    weights: Sequence[float] | None = None,
    *,
    ema: float | None = None,
    integers: Mapping[str, str] | None = None,
    precision: str = "float32",
    optimizer: bool = False,
    vocabulary: str | None = None,
    **how: Any,
) -> CombineReport:
    """Write the average of sources, as `average` and `save` do; see `_write`."""
    return _write(
        lambda: _average(sources, weights, ema, integers, precision, optimizer, vocabulary), dst, sources, **how
    )


def merge_files(
    method: str,
    states: Sequence[Any],
    dst: Path | None,
    base: Any = None,
    *,
    integers: Mapping[str, str] | None = None,
    seed: int = 0,
    dtype: DType | str | None = None,
    vocabulary: str | None = None,
    parameters: Mapping[str, Any],
    **how: Any,
) -> CombineReport:
    """Write what `merge` makes, as `save` does; see `_write`."""
    sources = [*states] if base is None else [base, *states]
    return _write(
        lambda: _merge(method, states, base, integers, seed, dtype, vocabulary, parameters), dst, sources, **how
    )


def _write(
    make: Callable[[], Made],
    dst: Path | None,
    sources: Sequence[Any],
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    dry_run: bool = False,
) -> CombineReport:
    """Make a state and write it, unless it is a dry run, which may have no `dst`; the target is checked first.

    The metadata get the provenance: method, parameters and the digests of `sources`, which are those of the report. A
    folder gets the files beside the first one, and a card.
    """
    first = next(iter(sources), None)
    place = None if dst is None else Target(dst, format, max_shard_size, first, overwrite=overwrite)
    folder = "" if place is None else place.model_folder
    _check_folder(folder)
    made = make()
    if place is None:
        return made.report
    if made.tokenizer is not None and not folder:
        lost = f"the tokenizer is that of {made.tokenizer[0]}; it is not written beside a file, only into a folder"
        made = made._replace(report=replace(made.report, notes=(*made.report.notes, lost)))
    before = tree_of(first) if folder and is_path(first) else None
    side, companions = plan_companions(first, folder, before, made.tree, made.changes)
    companions.pop(_CARD, None)  # that of a source
    notes = side.notes
    if folder and made.tokenizer is not None:
        from statedict.formats.tokenizer import is_of_tokenizer

        name, files = made.tokenizer
        companions = {file: data for file, data in companions.items() if not is_of_tokenizer(file)} | {**files}
        notes = (*notes, f"the tokenizer is that of {name}")
    report = replace(made.report, files=replace(side, copied=tuple(companions), notes=notes))
    if dry_run:
        return report
    record = _describe(report, sources)
    made.tree.metadata |= {_KEY: json.dumps(record | ({"recipe": made.recipe} if made.recipe else {}))}
    if folder:
        from statedict.formats.beside import read_config
        from statedict.ops.combine.card import write_card

        opens = is_path(first) and bool(read_config(split(first)[0]))
        companions[_CARD] = write_card(record, made.recipe, opens)
    place.write(made.tree, companions)
    return replace(report, written=True)


def _check_folder(folder: str) -> None:
    """Check that a folder for a model has no adapter, which libraries would load instead.

    Raises:
        CombineError: it has.
    """
    from statedict.io.location import location

    if folder and "adapter_config.json" in (location(folder).names_with(["adapter_config.json"]) or ()):
        raise CombineError(
            f"{folder}: has an adapter (adapter_config.json), which libraries load instead of a model beside it; write "
            "to another folder"
        )


_KEY = "provenance"
_CARD = "README.md"


def _describe(report: CombineReport, sources: Sequence[Any]) -> dict[str, Any]:
    """Where a state comes from, without times and absolute paths: the same sources give the same bytes."""
    from statedict.formats.provenance import describe_files
    from statedict.io.hub_cache import name_repository
    from statedict.io.parallel import parallel
    from statedict.shown import to_record

    paths = list(dict.fromkeys(split(source)[0] for source in sources if is_path(source)))
    files = dict(zip(paths, parallel(describe_files, paths), strict=True))
    rows = []
    for (name, share), source in zip(report.sources, sources, strict=True):
        row = {"name": name} | ({} if share is None else {"share": share})
        hub = name_repository(split(source)[0]) if is_path(source) else ""
        row |= {"hub": hub} if hub else {}
        rows.append(row | ({"files": files[split(source)[0]]} if is_path(source) else {}))
    return {"method": report.method, "parameters": to_record(report)["parameters"], "sources": rows}


def _average(
    sources: Any,
    weights: Any,
    ema: float | None,
    integers: Any,
    precision: str,
    optimizer: bool,
    vocabulary: str | None,
) -> Made:
    from statedict.ops.combine.average import average, read_weights

    _check_list("average", sources, 2)
    shares = read_weights(weights, ema, len(sources))
    given = {"ema": ema, "precision": precision, "optimizer": optimizer or None}
    with Paused():
        made = _combine(
            sources, vocabulary, lambda aligned: average(aligned, shares, _rules(integers), precision), optimizer
        )
    return _with_parameters(made, given | {"integers": integers, "vocabulary": vocabulary})


def _with_parameters(made: Made, given: Mapping[str, Any]) -> Made:
    stated = {key: value for key, value in given.items() if value is not None and value != {}}
    return made._replace(report=replace(made.report, parameters=stated))


def _merge(
    method: str,
    states: Any,
    base: Any,
    integers: Any,
    seed: Any,
    dtype: Any,
    vocabulary: str | None,
    parameters: Mapping[str, Any],
) -> Made:
    from statedict.ops.combine.methods import check_parameters, merge
    from statedict.ops.combine.recipe import read_dtype

    _check_list("merge", states, 1)
    _check_seed(seed)
    kind, based = read_dtype(dtype), base is not None
    check_parameters(method, len(states), based, parameters)  # an error before anything is opened
    given = {**parameters, "seed": seed, "dtype": kind and str(kind), "integers": integers, "vocabulary": vocabulary}
    with Paused():
        made = _combine(
            [base] * based + [*states],
            vocabulary,
            lambda aligned: merge(aligned, method, based, parameters, seed, _rules(integers), kind),
        )
    return _with_parameters(made, given)


def _combine(
    sources: Sequence[Any],
    vocabulary: str | None,
    make: Callable[[Aligned], tuple[StateDict, CombineReport]],
    optimizer: bool = False,
) -> Made:
    """Align sources, with heads and vocabularies that fit, and make one state of them."""
    from statedict.formats.beside import read_config
    from statedict.ops.combine.align import align
    from statedict.ops.combine.model_config import resize, set_ties
    from statedict.ops.combine.vocabulary import add_heads, check_policy, fit, is_head_tied

    check_policy(vocabulary)
    configs = [read_config(split(source)[0]) if is_path(source) else {} for source in sources]
    named, notes = add_heads(_name(sources), configs)
    aligned, rows = fit(align(named, optimizer), vocabulary)
    tree, report = make(aligned)
    changes = set_ties(configs[0], is_head_tied(tree), bool(notes))
    if rows:
        after = max(rows) if vocabulary == "pad" else min(rows)
        changes |= resize(configs[0], rows[0], after)
        notes.append(f"the vocabulary has {after:,} rows, of {', '.join(f'{size:,}' for size in rows)}")
    return Made(tree, replace(report, notes=(*report.notes, *notes)), changes)


def _check_list(verb: str, sources: Any, least: int) -> None:
    if is_path(sources) or isinstance(sources, Mapping) or not isinstance(sources, Sequence) or len(sources) < least:
        wanted = "two or more" if least > 1 else "one or more"
        raise CombineError(f"{verb} takes a list of {wanted} sources, not {sources!r:.60}")


def _check_seed(seed: Any) -> None:
    if type(seed) is not int:
        raise CombineError(f"seed: expected a whole number, got {seed!r:.40}")


def _rules(integers: Any) -> Mapping[str, str]:
    if integers is not None and not isinstance(integers, Mapping):
        raise CombineError(f"integers: expected a dict by pattern, got {integers!r:.40}")
    return integers or {}


def _name(sources: Sequence[Any]) -> list[tuple[str, StateDict]]:
    return [
        (name_of(source) if is_path(source) else f"source {number}", tree_of(source))
        for number, source in enumerate(sources, 1)
    ]
