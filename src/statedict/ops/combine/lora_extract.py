"""An adapter made of the difference between two models, which peft loads.

    tuned - base ─▶ of each matrix its largest singular directions ─▶ lora_A, lora_B with scale 1
                 ─▶ other parameters that changed: whole, as biases or `modules_to_save`

D ≈ U·(Uᵀ·D), with U the left singular vectors of D: no product of that rank is closer (Eckart and Young 1936). Both
factors get the root of each singular value. Embeddings are told by their names, and weights stored as in × out by the
biases beside them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy

from statedict.errors import CombineError
from statedict.io.pipeline import Meter
from statedict.ops.alter.follow import with_own_storage
from statedict.ops.combine.align import only_model
from statedict.ops.combine.elements import has_mean
from statedict.ops.combine.lora_keys import CONFIG
from statedict.ops.combine.lora_ties import EMBEDDINGS, HEAD, lacks_head
from statedict.ops.diff.change import Change
from statedict.ops.diff.compare import Rule, Tally, compare
from statedict.ops.diff.singular import find_directions
from statedict.reports.lora import LoraExtracted
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import count_bytes
from statedict.tree.roles import unwrap_names
from statedict.tree.state_dict import StateDict
from statedict.values import abbreviate

_PREFIX = "base_model.model."
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared|word_embeddings)")

_LINEAR = re.compile(r"proj|attn|fc|linear|dense|query")


def extract(
    names: tuple[str, str],
    base: StateDict,
    tuned: StateDict,
    rank: int | None,
    energy: float | None,
    about: Mapping[str, Any] | None = None,
) -> tuple[StateDict, dict[str, Any], LoraExtracted]:
    """The adapter as peft stores it, its adapter_config.json, and what was done.

    Args:
        names: what messages call the base and the tuned model.
        base: the model before.
        tuned: the model afterwards, with the same names and shapes.
        rank: of each matrix's change; or
        energy: the share of the sum of its squares that it keeps, up to 1.
        about: config.json of the base.

    Raises:
        CombineError: the models differ in names or shapes, or do not differ at all, or an argument is not valid.
    """
    _check_arguments(rank, energy)
    (before, ties), (after, _) = (_read_model(name, tree) for name, tree in zip(names, (base, tuned), strict=True))
    _add_head(before, after, ties, about or {})
    _check_alike(names, before, after)
    changed = _find_changed(before, after)
    if not changed:
        raise CombineError(f"{names[1]}: has the values of {names[0]}; there is nothing to extract")
    orders = _find_orders(before)
    made, ranks, totals = StateDict(), {}, numpy.zeros(2)
    modules: list[tuple[str, int, float]] = []
    for path, tally in changed.items():
        name, _, leaf = path.rpartition(".")
        if leaf != "weight" or before[path].ndim < 2 or path in ties:
            continue
        squares, total, left, right = _split(path, before[path], after[path], float(tally.max_abs), rank, energy)
        totals += squares.sum(), total
        modules.append((name, len(squares), float(squares.sum()) / total))
        ranks[name] = len(squares)
        made |= _name_factors(name, before[path].shape, left, right, orders.get(name, False))
    notes = [] if ranks else _add_spare(made, ranks, before, {*changed, *ties}, orders)
    whole, saved, biases, lost = _place_rest(changed, before, after, ranks, ties)
    made |= {_PREFIX + key: value for key, value in whole.items()}
    config = _configure(names[0], ranks, saved, biases, any(map(orders.get, ranks)), any(map(ties.get, changed)), rank)
    notes += [f"{abbreviate(lost)}: no module of peft's holds them, so they are not in the adapter"] * bool(lost)
    made.metadata = {CONFIG: json.dumps(config)}
    tensors = [as_lazy(value) for value in made.values()]
    report = LoraExtracted(
        base=names[0],
        tuned=names[1],
        modules=tuple(modules),
        whole=tuple(whole),
        left_out=tuple(lost),
        equal=len(before) - len(changed),
        energy=float(totals[0] / totals[1]) if totals[1] else 1.0,
        nbytes=count_bytes(tensors),
        notes=tuple(notes),
        written=False,
    )
    return made, config, report


def _check_arguments(rank: Any, energy: Any) -> None:
    if (rank is None) == (energy is None):
        raise CombineError("give either rank=… or energy=…")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise CombineError(f"rank: expected a whole number above 0, got {rank!r:.40}")
    if energy is not None and not (isinstance(energy, int | float) and 0 < energy <= 1):
        raise CombineError(f"energy: expected a share above 0 and up to 1, such as 0.99, got {energy!r:.40}")


def _read_model(name: str, tree: StateDict) -> tuple[dict[str, LazyTensor], dict[str, list[str]]]:
    """The tensors of a model by name, without second names of one; and those that have some → the second names."""
    _, state = only_model(name, tree)
    tensors = {key: as_lazy(value) for key, value in state.items() if is_array(value)}
    found: dict[str, LazyTensor] = {}
    seen: dict[object, str] = {}
    ties: dict[str, list[str]] = {}
    for short, key in unwrap_names(list(tensors)).items():
        first = seen.setdefault(tensors[key].region, short)
        if first == short:
            found[short] = tensors[key]
        else:
            ties.setdefault(first, []).append(short)
    if not found:
        raise CombineError(f"{name}: its model is nested; strip it by edit first")
    return found, ties


def _add_head(
    before: Mapping[str, LazyTensor],
    after: dict[str, LazyTensor],
    ties: dict[str, list[str]],
    about: Mapping[str, Any],
) -> None:
    """Add the head that a tied model has though no file has it, and second names of tensors that are not tied anymore.

    peft adapts modules one by one: what is added to an embedding is not added to the head that shares its weight.
    """
    if lacks_head([*before], about):
        first = next((name for name in before if name.endswith(EMBEDDINGS)), None)
        if first is not None and not ties.get(first):
            ties[first] = [HEAD]
    for first, names in ties.items():
        for second in names:
            own = after.pop(second, None)
            if own is not None and first in after and compare([(after[first], own)], Rule())[0] is not None:
                raise CombineError(
                    f"{second}: is tied to {first} in the base, and not afterwards; untie it by edit first"
                )


def _check_alike(names: tuple[str, str], before: Mapping[str, LazyTensor], after: Mapping[str, LazyTensor]) -> None:
    missing, more = [key for key in before if key not in after], [key for key in after if key not in before]
    if missing or more:
        what = f"lacks {abbreviate(missing)}" if missing else f"has {abbreviate(more)}, which {names[0]} lacks"
        raise CombineError(f"{names[1]}: {what}; rename or drop them by edit first")
    for key, one in before.items():
        if one.shape != after[key].shape:
            raise CombineError(f"{key}: has the shape {after[key].shape} in {names[1]}, {one.shape} in {names[0]}")


def _find_changed(before: Mapping[str, LazyTensor], after: Mapping[str, LazyTensor]) -> dict[str, Tally]:
    tallies = compare([(before[key], after[key]) for key in before], Rule(numeric=True))
    changed = {key: tally for key, tally in zip(before, tallies, strict=True) if tally is not None and tally.changed}
    for key in changed:
        kinds = before[key].dtype, after[key].dtype
        if not all(map(has_mean, kinds)) or "complex" in (kinds[0].kind, kinds[1].kind):
            raise CombineError(f"{key}: is {kinds[0]}, and of that an adapter cannot be made; drop it by edit first")
    return changed


def _find_orders(before: Mapping[str, LazyTensor]) -> dict[str, bool]:
    """Module → whether its matrix is stored as in × out, as its bias tells; of square ones, as the others are."""
    orders: dict[str, bool | None] = {}
    for path, tensor in before.items():
        name, _, leaf = path.rpartition(".")
        bias = before.get(f"{name}.bias" if name else "bias")
        if leaf == "weight" and tensor.ndim == 2 and bias is not None and not _EMBEDDING.fullmatch(name):
            rows, columns = tensor.shape
            orders[name] = None if rows == columns else bias.shape == (columns,)
    told = {order for order in orders.values() if order is not None}
    return {name: told == {True} if order is None else order for name, order in orders.items()}


def _add_spare(
    made: StateDict,
    ranks: dict[str, int],
    before: Mapping[str, LazyTensor],
    taken: Collection[str],
    orders: Mapping[str, bool],
) -> list[str]:
    """Give factors of zero to a module that did not change, and say so: peft loads no adapter without factors.

    It is a small one, if possible one that is surely a linear layer's.
    """
    fits = {
        path.removesuffix(".weight"): tensor.shape
        for path, tensor in before.items()
        if path.endswith(".weight") and tensor.ndim == 2 and path not in taken
    }
    free = [name for name in fits if not _EMBEDDING.fullmatch(name)]
    spare = min(free, key=lambda name: (not _LINEAR.search(name), math.prod(fits[name])), default=None)
    if spare is None:
        return ["it has no factors, and peft loads no adapter without"]
    rows, columns = fits[spare]
    zeros = numpy.zeros((rows, 1), "f4"), numpy.zeros((1, columns), "f4")
    made |= _name_factors(spare, (rows, columns), *zeros, orders.get(spare, False))
    ranks[spare] = 1
    return [f"{spare}: did not change, and has factors of zero, for peft loads no adapter without factors"]


def _split(
    path: str, one: LazyTensor, other: LazyTensor, largest: float, rank: int | None, energy: float | None
) -> tuple[Any, float, Any, Any]:
    """The squares of the singular values that are kept, the sum of all, and the factors: rows × r and r × columns."""
    with Meter() as meter:
        change = Change(one, other, largest, meter, rounding=False)
        squares, left, right = find_directions(change, rank, energy)
        if change.nonfinite:
            raise CombineError(f"{path}: {change.nonfinite:,} differences are NaN or infinite")
    roots = numpy.sqrt(numpy.sqrt(squares))
    scale = numpy.sqrt(change.scale)
    return squares, change.energy, left * roots * scale, (right / roots).T * scale


def _name_factors(name: str, shape: tuple[int, ...], left: Any, right: Any, turned: bool) -> dict[str, Any]:
    """The factors under the names that peft gives them."""
    above = f"{_PREFIX}{name}"
    left, right = (numpy.ascontiguousarray(factor, "f4") for factor in (left, right))
    if _EMBEDDING.fullmatch(name) and len(shape) == 2:
        return {f"{above}.lora_embedding_A": left.T.copy(), f"{above}.lora_embedding_B": right.T.copy()}
    if turned:
        left, right = right.T.copy(), left.T.copy()
    if len(shape) > 2:
        left, right = left.reshape(*left.shape, *[1] * (len(shape) - 2)), right.reshape(len(right), *shape[1:])
    return {f"{above}.lora_A.weight": right, f"{above}.lora_B.weight": left}


def _place_rest(
    changed: Mapping[str, Any],
    before: Mapping[str, LazyTensor],
    after: Mapping[str, LazyTensor],
    ranks: Mapping[str, int],
    ties: Mapping[str, list[str]],
) -> tuple[dict[str, LazyTensor], list[str], str, list[str]]:
    """What is whole in the adapter, the modules to save, which biases peft trains, and what it cannot hold."""
    whole: dict[str, LazyTensor] = {}
    saved: list[str] = []
    lost: list[str] = []
    biases = "none"
    for path in changed:
        name, _, leaf = path.rpartition(".")
        if leaf == "weight" and name in ranks:
            continue
        for second in ties.get(path, ()):
            whole[second] = with_own_storage(after[path])
            saved.append(second.rpartition(".")[0])
        if leaf == "bias" and name in ranks:
            whole[f"{name}.base_layer.bias"] = after[path]
            biases = "lora_only" if biases == "none" else biases
        elif leaf == "bias" and f"{name}.weight" not in changed:
            whole[path], biases = after[path], "all"
        elif leaf in ("weight", "bias") and name:
            if name not in saved:
                saved.append(name)
                inside = [key for key in before if key.rpartition(".")[0] == name]
                whole |= {key: after[key] for key in inside}
        else:
            lost.append(path)
    return whole, saved, biases, lost


def _configure(
    base: str, ranks: Mapping[str, int], saved: list[str], biases: str, turned: bool, tied: bool, rank: int | None
) -> dict[str, Any]:
    """adapter_config.json: alpha is the rank everywhere, so that the scale is 1."""
    most = rank or max(ranks.values(), default=1)
    others = {name: one for name, one in ranks.items() if one != most}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks) or [],
        "modules_to_save": saved or None,
        "bias": biases,
        "ensure_weight_tying": tied,
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
