"""The operations between numbers and quantized weights. Public as those of verbs.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import Any, NamedTuple

from statedict.dtypes import DType, dtype
from statedict.errors import AlterError, UnsupportedError
from statedict.ops.alter.outline import filter_tensors, map_tensors, on_trees, rebuild
from statedict.ops.alter.tensors import converter
from statedict.ops.quantization.described import add_settings, drop_settings
from statedict.ops.quantization.find import find, find_paths
from statedict.reports.quantization import QuantizedWeight
from statedict.tensor.blocks import find_blocks
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.tree.layout import Layout
from statedict.tree.walk import Patterns, walk_tensors
from statedict.values import Opaque, abbreviate, count


@on_trees
def dequantize(
    state: Layout, kind: DType | str = "float32", patterns: Patterns = "*", config: Mapping[str, Any] | None = None
) -> Layout:
    """Convert quantized weights to a dtype, bit by bit as their libraries do; other tensors stay as they are.

    These are the blocks of GGUF and the weights of GPTQ, AWQ, bitsandbytes, compressed-tensors, MLX and others, under
    the names that they had before they were quantized. Their scales and the like go. What cannot be dequantized stays.

    Args:
        state: any state_dict or checkpoint.
        kind: `"bfloat16"`, `"bf16"`, a `DType` or `torch.bfloat16`.
        patterns: which weights, by their names or those of their tensors.
        config: how the model is quantized, as `quantization_config` in `config.json` says; else the tensors tell.

    Raises:
        AlterError: none of those that match is quantized and can be dequantized, or `kind` is not a dtype to convert
            to.

    >>> import statedict, numpy
    >>> state = quantize(statedict.StateDict(w=numpy.ones((2, 32), "float32")), "Q8_0")
    >>> dequantize(state, "bf16")["w"]
    LazyTensor(bfloat16, (2, 32), 128 B, 'memory')
    """
    convert, wanted = converter(kind), dtype(kind)
    if wanted.kind != "float":
        raise AlterError(f"{wanted}: dequantized numbers are no integers; take a float dtype such as bf16")
    plan = plan_dequantizing(state, patterns, config)
    blocks = {path for path in plan.chosen if find_blocks(state.leaves.get(path)) is not None}
    if not blocks and not plan.made:
        why = next(iter(plan.left.items()), None)
        what = f"{why[0]}: {why[1]}" if why else f"none of {len(plan.chosen):,} tensors is quantized"
        raise AlterError(f"{what}; fix or remove this step")
    changed = copy(map_tensors(state, [*blocks], convert, casts=True)) if blocks else copy(state)
    changed.leaves = changed.leaves | {path: convert(plan.made[name]) for path, name in plan.places.items()}
    found = rebuild(changed, {plan.places.get(p, p): p for p in changed.leaves if p not in plan.gone})
    if plan.made:
        drop_settings(found.tree)
    return found


class Plan(NamedTuple):
    """What is dequantized: the weights by name, and which entries they take the place of."""

    chosen: Collection[str]  # what matches: paths of tensors, and names of weights
    weights: Mapping[str, QuantizedWeight]  # those that match, without blocks of GGUF
    made: dict[str, LazyTensor]
    left: dict[str, str]  # name → why it stays
    places: dict[str, str]  # path of an entry → the weight that takes its place
    gone: set[str]  # paths of the other entries that belong to them


def plan_dequantizing(state: Layout, patterns: Patterns, config: Mapping[str, Any] | None) -> Plan:
    """Plan which weights of a layout are dequantized."""
    tensors, inside = state.tensors(), dict[str, str]()  # path of a tensor in an object → that of the object
    for path, leaf in state.leaves.items():
        if isinstance(leaf, Opaque):
            parts = {at: as_lazy(part) for at, part in walk_tensors(leaf, path)}
            tensors |= parts
            inside |= dict.fromkeys(parts, path)
    found = find(tensors, add_settings(state.tree, tensors, config), ask=True)
    weights = [one for one in found.report.weights if one.stored is None or find_blocks(tensors[one.stored]) is None]
    chosen = filter_tensors(state, patterns, others=[one.name for one in weights] + [*inside])
    plan = Plan(chosen, {}, {}, {}, {}, set())
    named = {one.name: one for one in weights if not chosen.keys().isdisjoint((one.name, one.stored, *one.parts))}
    for name, weight in named.items():
        try:
            made = found.decode(weight)
        except UnsupportedError as error:
            plan.left[name] = str(error)
            continue
        places = dict.fromkeys(inside.get(path, path) for path in (weight.stored, *weight.parts) if path is not None)
        if name in state.leaves and name not in places:
            plan.left[name] = "there is another entry of that name; rename it first"
            continue
        if not plan.places.keys().isdisjoint(places):
            plan.left[name] = "it is one of several in an object"
            continue
        plan.made[name] = made
        first, *rest = places
        plan.places[first] = name
        plan.gone.update(rest)
    if plan.made and len(plan.made) == len(weights):
        plan.gone.update(path for path in found.report.others if path in state.leaves)
    return plan._replace(weights=named)


def describe_dequantized(state: Layout, patterns: Patterns, config: Mapping[str, Any] | None) -> Iterable[str]:
    """What a dequantization of a layout does, and what it leaves as it is and why."""
    plan = plan_dequantizing(state, patterns, config)
    kinds: dict[str, list[QuantizedWeight]] = {}
    for name in plan.made:
        kinds.setdefault(plan.weights[name].kind, []).append(plan.weights[name])
    for kind, some in kinds.items():
        yield f"dequantized: {count(len(some), 'weight')} of {sum(one.elements for one in some):,} parameters, {kind}"
    reasons: dict[str, list[str]] = {}
    for name, why in plan.left.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"not dequantized: {abbreviate(names)}: {why}"


@on_trees
def quantize(state: Layout, kind: str, patterns: Patterns = "*") -> Layout:
    """Store tensors as quantized blocks, as GGUF files hold them; other formats get the rounded numbers.

    Without patterns matrices of floating point are, whose rows are whole blocks, unless they are quantized already by
    another scheme; with patterns all that match.

    Args:
        state: any state_dict or checkpoint.
        kind: `"Q8_0"` or `"Q4_0"`, made bit by bit as the package gguf does.
        patterns: which tensors.

    Raises:
        AlterError: nothing matches, or a tensor that matches cannot be stored so.

    >>> import statedict, numpy
    >>> quantize(statedict.StateDict(w=numpy.ones((2, 32), "float32")), "Q8_0")["w"]
    LazyTensor(float32, (2, 32), 68 B as Q8_0, 'memory')
    """
    from statedict.tensor.ggml.quantize import MADE
    from statedict.tensor.ggml.quantize import quantize as make_blocks

    name = {one.lower(): one for one in MADE}.get(str(kind).lower())
    if name is None:
        raise AlterError(f"{kind}: is not a type of blocks that is made; take {' or '.join(MADE)}")
    every = patterns == "*"
    made = 0

    def make(tensor: LazyTensor) -> LazyTensor:
        nonlocal made
        if every and (tensor.ndim < 2 or tensor.dtype.kind != "float" or tensor.shape[-1] % 32):
            return tensor
        made += 1
        try:
            return make_blocks(as_lazy(tensor), name, repr(tensor))
        except UnsupportedError as error:
            raise AlterError(str(error)) from error

    but = find_paths(state.tensors()) if every else ()  # numbers and scales of another scheme
    found = map_tensors(state, patterns, make, casts=True, but=but)
    if not made:
        raise AlterError(
            f"no tensor is a matrix of floats with rows of a multiple of 32, as {name} takes; give patterns"
        )
    return found
