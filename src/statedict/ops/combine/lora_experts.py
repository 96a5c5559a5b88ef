"""Experts that a base stores one by one, where an adapter has factors of all of them in one parameter.

transformers 5 stacks the experts of a layer when it loads them, and peft's `target_parameters` adapt the stack:

| in memory | in a file, for each expert |
|---|---|
| `mlp.experts.gate_up_proj`: experts × 2·out × in | `mlp.experts.0.gate_proj.weight` above `up_proj`, or `w1`, `w3` |
| `mlp.experts.down_proj`: experts × out × in | `mlp.experts.0.down_proj.weight`, or `w2` |

Factors of all are (experts · r) × in and out × (r · experts). Source: transformers 5.18, conversion_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from statedict.errors import CombineError
from statedict.ops.combine.lora_factors import Factors
from statedict.ops.combine.lora_keys import Module
from statedict.tensor.lazy import LazyTensor

_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.\w+\.weight")
_STACKS = {  # a parameter in memory → what files may have in its place for an expert, one below the other
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
_RENAMED = (".block_sparse_moe.", ".mlp.")  # part of the names in files of Mixtral and others, and in memory


def to_factors(one: Module, turned: bool = False, experts: int = 1, weight: float = 1.0) -> Factors:
    """The factors of a module."""
    parts = one.parts
    times = (parts["down2"], parts["up2"]) if {"down2", "up2"} <= parts.keys() else None
    some = parts["down"], parts["up"], one.scale, turned, experts
    return Factors(*some, parts.get("mid"), weight, parts.get("gains"), times)


def with_names_in_memory(names: Mapping[str, str]) -> dict[str, str]:
    """The names of a base and their paths, with the names that transformers gives some modules when it loads them."""
    return {short.replace(*_RENAMED): path for short, path in names.items()} | dict(names)


def count_experts(names: Iterable[str]) -> dict[str, int]:
    """The modules whose experts are stored one by one → how many there are."""
    found: dict[str, set[int]] = {}
    for name in names:
        match = _EXPERT.fullmatch(name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    return {home: len(numbers) for home, numbers in found.items() if numbers == {*range(len(numbers))}}


def split(
    where: str, one: Module, home: str, experts: int, names: Mapping[str, str], tensors: Mapping[str, LazyTensor]
) -> Iterator[tuple[str, Factors]]:
    """The path of the weight of each expert that factors change, and its own part of them.

    Args:
        where: what messages call the module.
        one: the module of the adapter.
        home: its name in the base.
        experts: how many there are.
        names: of the base → paths.
        tensors: of the base, by path.

    Raises:
        CombineError: they fit no stack of the weights.
    """
    more = one.parts.keys() - {"down", "up"}
    if more:
        raise CombineError(f"{where}: has {', '.join(more)}, which experts that are stored one by one do not take")
    sizes = one.parts["up"].shape[0], one.parts["down"].shape[-1]
    for options in _STACKS.values():
        for leaves in options:
            paths = [names.get(f"{home}.0.{leaf}.weight", "") for leaf in leaves]
            shapes = [tensors[path].shape for path in paths if path]
            heights = [shape[0] for shape in shapes]
            fits = {shape[1:] for shape in shapes} == {sizes[1:]} and sum(heights) == sizes[0]
            if fits and len(shapes) == len(leaves):
                return _cut(where, one, home, experts, [*zip(leaves, heights, strict=True)], names)
    raise CombineError(f"{where}: no weights of the experts of the base stack up to {sizes}, for which it has factors")


def _cut(
    where: str, one: Module, home: str, experts: int, leaves: list[tuple[str, int]], names: Mapping[str, str]
) -> Iterator[tuple[str, Factors]]:
    down, up = one.parts["down"], one.parts["up"]
    rank = one.rank // experts
    if one.rank % experts or up.shape[1:] != (one.rank,) or (one.said and rank != one.said):
        raise CombineError(
            f"{where}: has tensors of rank {one.rank:,} for {experts:,} experts, and adapter_config.json says "
            f"{one.said:,} for each; fetch both again"
        )
    for expert in range(experts):
        first = 0
        for leaf, height in leaves:
            path = names.get(f"{home}.{expert}.{leaf}.weight")
            if path is None:
                raise CombineError(f"{where}: the base has no {home}.{expert}.{leaf}.weight")
            some = down[expert * rank : (expert + 1) * rank], up[first : first + height, expert::experts]
            yield path, Factors(*some, one.scale)
            first += height
