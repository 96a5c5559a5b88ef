"""lora: apply adapters to a model, extract one from two models, show one. Dispatch only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from statedict.api.combine import Made, _write
from statedict.api.files import load, name_of, to_writable, tree_of
from statedict.api.names import is_path, split
from statedict.collector import Paused
from statedict.errors import CombineError, MissingFileError, UnsupportedError
from statedict.io.urls import folder_of, join, to_name
from statedict.tree.state_dict import StateDict, like
from statedict.values import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.api.names import Path
    from statedict.ops.combine.lora import Plan
    from statedict.ops.combine.lora_keys import Adapter
    from statedict.reports.lora import LoraApplied, LoraExtracted, LoraReport

_FILE, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FILES = (_WEIGHTS, "adapter_model.bin")


def apply(
    base: Any,
    adapter: Any,
    weight: float | Sequence[float] = 1.0,
    *,
    config: Mapping[str, Any] | None = None,
    only: Sequence[str] | str | None = None,
    combination: str = "cat",
    density: float | None = None,
    seed: int = 0,
    rank: int | None = None,
) -> StateDict:
    """A model with low-rank adapters added to it: a lazy tree, computed when it is read or saved.

    Each tensor is W + Σ weight · scale · up · down, computed in float32 and rounded once to the dtype of W. Optimizers
    and what else `average` leaves out stay out.

    Args:
        base: the model; a path, URL or tree.
        adapter: a path, URL or tree, or a list of them: folders of PEFT, files of kohya or diffusers.
        weight: what the change is multiplied by, one number or one for each adapter; -1 takes it away again.
        config: the adapter_config.json of PEFT, for adapters that have none beside them.
        only: patterns of the adapter's modules to apply, as `show` lists them; all by default.
        combination: how several adapters are combined: `"cat"` adds up their changes; `"linear"`, `"ties"`,
            `"dare_linear"`, `"dare_ties"` and `"magnitude_prune"` mix their factors, as peft does; `"svd"`,
            `"ties_svd"`, … mix their changes, and cut the mix down to a rank.
        density: the share of the numbers that is kept, for all but `"cat"`, `"linear"` and `"svd"`.
        seed: of the random choices of `dare_*`.
        rank: that `"svd"` and its kind cut down to; the largest of the adapters by default.

    Raises:
        CombineError: an adapter is of a kind that cannot be applied, or not for this base, or a tensor of it is not
            used.
        StateDictError: what `load` raises.

    >>> import numpy
    >>> from statedict import lora
    >>> base = {"fc.weight": numpy.zeros((2, 2), "float32")}
    >>> adapter = {"fc.lora_down.weight": numpy.ones((1, 2)), "fc.lora_up.weight": numpy.ones((2, 1))}
    >>> lora.apply(base, adapter, 0.5)["fc.weight"].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return _apply(base, adapter, weight, config, only, False, (combination, density, seed, rank))[1]


def show(adapter: Any, config: Mapping[str, Any] | None = None) -> LoraReport:
    """What an adapter is: its kind, its modules with their ranks, scales and norms, and whether it can be applied.

    Args:
        adapter: a path, URL or tree.
        config: its adapter_config.json, if there is none beside it.

    Raises:
        CombineError: it holds no tensor of an adapter.
        StateDictError: what `load` raises.

    >>> import numpy
    >>> from statedict import lora
    >>> report = lora.show({"fc.lora_down.weight": numpy.ones((1, 2)), "fc.lora_up.weight": numpy.ones((2, 1))})
    >>> report.dialect, report.modules[0].rank, report.modules[0].norm
    ('kohya', 1, 2.0)
    """
    from statedict.ops.combine.lora_report import describe

    with Paused():
        found, tree = _open(adapter, config)
        return describe(found, getattr(tree, "metadata", None) or {})


def extract(base: Any, tuned: Any, rank: int | None = None, *, energy: float | None = None) -> StateDict:
    """The adapter that makes one model of another, as far as its rank allows; docs/lora.md says what peft does with it.

    Each matrix that changed gets the largest singular directions of its change, with scale 1; other parameters that
    changed are in it whole. The metadata have its adapter_config.json under `adapter_config`.

    Args:
        base: the model before; a path, URL or tree.
        tuned: the model afterwards, with the same names and shapes.
        rank: of each change.
        energy: instead, the share of the sum of squares of each change that is kept, such as 0.99.

    Raises:
        CombineError: the models differ in names or shapes, or not at all.
        StateDictError: what `load` raises.

    >>> import numpy
    >>> from statedict import lora
    >>> base, tuned = ({"fc.weight": numpy.full((2, 3), value, "float32")} for value in (0, 2))
    >>> adapter = lora.extract(base, tuned, 1)
    >>> {name: tuple(tensor.shape) for name, tensor in adapter.items()}
    {'base_model.model.fc.lora_A.weight': (1, 3), 'base_model.model.fc.lora_B.weight': (2, 1)}
    >>> lora.apply(base, adapter)["fc.weight"].numpy().round(3).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    return _extract(base, tuned, rank, energy)[0]


def extract_files(
    base: Any,
    tuned: Any,
    dst: Path | None,
    rank: int | None = None,
    *,
    energy: float | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    dry_run: bool = False,
) -> LoraExtracted:
    """Write what `extract` makes as a folder that peft loads; an adapter of more than `max_shard_size` is an error."""
    from statedict.formats import safetensors
    from statedict.io.location import location
    from statedict.io.pipeline import put_bytes

    if dst is not None:
        _check_folder(dst, [base, tuned])
    made, config, report = _extract(base, tuned, rank, energy)
    if max_shard_size is not None and report.nbytes > parse_bytes(max_shard_size):
        raise UnsupportedError(
            f"{name_of(tuned)}: the adapter takes {report.nbytes:,} bytes, more than {max_shard_size}, and peft loads "
            "adapters of one file; take a lower rank or energy, or a larger max_shard_size"
        )
    if dry_run or dst is None:
        return report
    text = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    files = {_WEIGHTS: partial(safetensors.write, to_writable(made)), _FILE: partial(put_bytes, text)}
    location(to_name(dst)).publish_folder(files, nbytes=report.nbytes, overwrite=overwrite)
    return replace(report, written=True)


def _check_folder(dst: Path, models: Sequence[Any]) -> None:
    """Check that a folder is not that of a model, which libraries would not find beside an adapter.

    Raises:
        CombineError: it is.
    """
    from statedict.io.location import location

    folder = to_name(dst)
    own = any(is_path(one) and _is_same(split(one)[0], folder) for one in models)
    if own or "config.json" in (location(folder).names() or ()):
        raise CombineError(
            f"{folder}: is the folder of a model, and libraries load the adapter of a folder that has one, not its "
            "model; write to another folder"
        )


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _extract(
    base: Any, tuned: Any, rank: int | None, energy: float | None
) -> tuple[StateDict, dict[str, Any], LoraExtracted]:
    from statedict.formats.beside import read_config
    from statedict.ops.combine.lora_extract import extract

    names = [name_of(one) if is_path(one) else other for one, other in ((base, "base"), (tuned, "tuned"))]
    with Paused():
        about = read_config(split(base)[0]) if is_path(base) else {}
        return extract((names[0], names[1]), tree_of(base), tree_of(tuned), rank, energy, about)


def apply_files(
    base: Any,
    adapters: Sequence[Any],
    dst: Path | None,
    weight: float | Sequence[float] = 1.0,
    *,
    config: Mapping[str, Any] | None = None,
    only: Sequence[str] | str | None = None,
    combination: str = "cat",
    density: float | None = None,
    seed: int = 0,
    rank: int | None = None,
    prove: bool = False,
    **how: Any,
) -> LoraApplied:
    """Write what `apply` makes, as `save` does; see `_write`. `prove` reads the written file and checks it."""
    for one in adapters if dst is not None else ():
        if is_path(one) and _is_same(split(_find_file(one))[0], to_name(dst or "")):
            raise CombineError(f"{name_of(one)}: would be replaced by the model; write to another file")
    plans: list[tuple[Plan, StateDict]] = []

    def make() -> Made:
        mix = combination, density, seed, rank
        plan, tree, report = _apply(base, adapters, weight, config, only, True, mix)
        plans.append((plan, tree))
        assert report is not None
        return Made(tree, report, plan.changes)

    report: Any = _write(make, dst, [base, *adapters], **how)
    if not prove or not report.written or dst is None:
        return report  # type: ignore[no-any-return]
    from statedict.ops.combine.lora_report import prove as check

    with Paused():
        verdicts, wrong = check(*plans[0], load(dst))
    targets = tuple(replace(one, proof=verdicts[one.path]) for one in report.targets)
    return replace(report, targets=targets, wrong=tuple(wrong))  # type: ignore[no-any-return]


def _apply(
    base: Any, adapter: Any, weight: Any, config: Any, only: Any, measure: bool, mix: tuple[Any, ...]
) -> tuple[Plan, StateDict, LoraApplied | None]:
    from statedict.formats.beside import read_config
    from statedict.ops.combine.average import is_number
    from statedict.ops.combine.lora import plan
    from statedict.ops.combine.lora_mix import Mix
    from statedict.ops.combine.lora_report import report

    Mix(*mix).check()
    one = is_path(adapter) or isinstance(adapter, Mapping) or not isinstance(adapter, Sequence)
    sources = [adapter] if one else list(adapter)
    weights = list(weight) if isinstance(weight, list | tuple) else [weight] * len(sources)
    if len(weights) != len(sources) or not sources or not all(map(is_number, weights)):
        raise CombineError(
            f"weight: expected a number, or one for each of {len(sources):,} adapters, got {weight!r:.60}"
        )
    with Paused():
        adapters = [_open(source, config)[0] for source in sources]
        name = name_of(base) if is_path(base) else "base"
        about = read_config(split(base)[0]) if is_path(base) else {}
        made = plan(name, tree_of(base), adapters, weights, only, about, Mix(*mix))
        tree = made.build()
        if not measure:
            return made, tree, None
        shares = [(name, None), *zip([found.name for found in adapters], weights, strict=True)]
        return made, tree, report(made, tree, shares, "lora", measure)


def _open(source: Any, config: Mapping[str, Any] | None) -> tuple[Adapter, StateDict]:
    """An adapter, and its tree."""
    from statedict.ops.combine.align import only_model
    from statedict.ops.combine.lora_keys import CONFIG, read_adapter

    name = name_of(source) if is_path(source) else "adapter"
    tree = tree_of(_find_file(source) if is_path(source) else source)
    path, state = only_model(name, tree)
    node = tree.at(path) if path else tree
    alphas = (
        {key: value for key, value in node.items() if str(key).endswith(".alpha")} if isinstance(node, dict) else {}
    )
    if not alphas.keys() <= state.keys():  # numbers, which are no tensors
        state = like(state, StateDict(state | alphas))
    if config is None and is_path(source):
        config = _read_config(split(source)[0])
    if config is None:
        config = _parse(name, (getattr(tree, "metadata", None) or {}).get(CONFIG))
    if config is not None and not isinstance(config, Mapping):
        raise CombineError(f"config: expected a dict, got {config!r:.40}")
    if state is not tree and getattr(tree, "metadata", None):
        state.metadata = tree.metadata
    return read_adapter(name, state, config), state


def _find_file(source: Path) -> Path:
    """The file of an adapter in a folder that has one, which may hold a model too; else what was given."""
    from statedict.io.location import location

    path, inside = split(source)
    place = location(path)
    if inside or not place.is_folder():
        return source
    names = place.names_with([_FILE, *_FILES]) or ()
    return next((join(path, file) for file in _FILES if file in names and _FILE in names), source)


def _read_config(path: str) -> Any:
    from statedict.formats import places
    from statedict.io.json import read_document
    from statedict.io.location import location

    folder = path if location(path).is_folder() else folder_of(path)
    file = join(folder, _FILE) if folder else _FILE
    try:
        source = places.open_file(file)
    except MissingFileError:
        return None
    return _parse(file, read_document(source))


def _parse(where: str, text: str | bytes | None) -> Any:
    from statedict.io.json import parse

    return None if text is None else parse(text, where)
