"""Tied tensors of a base to which adapters are added: they stay tied, unless they change in different ways.

A head that is the embedding is in memory alone: files of Hugging Face's libraries have one of the two. peft has modules
for both, and stores both under `ensure_weight_tying`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy

from statedict.ops.combine.lora_keys import Adapter
from statedict.ops.combine.lora_target import Target
from statedict.ops.combine.model_config import is_tied
from statedict.ops.diff.compare import Rule, compare
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict, like

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HEAD = "lm_head.weight"


def lacks_head(names: Sequence[str], config: Mapping[str, Any]) -> bool:
    """Whether a model of these names has a head in memory that is its embedding, and none of its own."""
    models = config.get("architectures") or ()
    heads = any(name.endswith(HEAD) for name in names)
    return not heads and is_tied(config) and any("LMHead" in one or "CausalLM" in one for one in models)


def add_head(tree: StateDict, adapters: Sequence[Adapter], config: Mapping[str, Any]) -> tuple[StateDict, str]:
    """The base with the head that it lacks, if adapters have something for it, and the embedding that it is; or ""."""
    names = [name for name in tree if type(name) is str]
    embedding = next((name for name in names if name.endswith(EMBEDDINGS)), "")
    parts = [f".{name}.weight" for one in adapters for name, _ in one.modules]
    parts += [f".{name}" for one in adapters for name in one.whole]
    if not embedding or not any(part.endswith(f".{HEAD}") for part in parts) or not lacks_head(names, config):
        return tree, ""
    return like(tree, StateDict({**tree, HEAD: tree[embedding]})), embedding


def follow(targets: dict[str, Target], tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Path → the target that it is tied to and changes with: what is no target itself, or changes in the same way.

    What is replaced is not tied anymore to what is not.
    """
    _share_rows(targets)
    tied: dict[str, str] = {}
    regions: dict[object, str] = {}
    for path, one in [*targets.items()]:
        if one.base is None:
            continue
        first = regions.setdefault(one.base.region, path)
        if first != path and _is_same(one, targets[first]):
            tied[path] = first
            del targets[path]
    for path, tensor in tensors.items():
        other = regions.get(tensor.region)
        if other is None or path in targets or path in tied:
            continue
        if targets[other].whole is None or targets[other].copied:
            tied[path] = other
    return tied


def _share_rows(targets: Mapping[str, Target]) -> None:
    """Replace the rows of trained tokens in tied tensors that change otherwise, too: peft trains one set for both."""
    rows = {one.base.region: one.rows for one in targets.values() if one.base is not None and one.rows is not None}
    for one in targets.values():
        if one.base is not None and one.whole is None and one.rows is None:
            one.rows = rows.get(one.base.region)


def settle_head(embedding: str, targets: dict[str, Target], tied: dict[str, str]) -> bool:
    """Whether a head that was added is one of its own in the result; if not, the embedding is the target.

    Args:
        embedding: its path.
        targets: those of the plan, changed in place.
        tied: as `follow` says, changed in place.
    """
    if tied.get(embedding) == HEAD:
        targets[embedding] = replace(targets.pop(HEAD), path=embedding)
        del tied[embedding]
        tied[HEAD] = embedding
    return HEAD not in tied and bool({HEAD, embedding} & targets.keys())


def is_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    return one.shape == other.shape and compare([(one, other)], Rule()) == [None]


def _is_same(one: Target, other: Target) -> bool:
    """Whether two targets with the same base change in the same way."""
    if one.magnitude is not None or other.magnitude is not None or len(one.factors) != len(other.factors):
        return False
    if (one.whole and one.whole[1]) != (other.whole and other.whole[1]):
        return False
    if (one.rows and one.rows[0]) != (other.rows and other.rows[0]):
        return False
    pairs = [(one.whole[0], other.whole[0])] if one.whole and other.whole else []
    pairs += [(one.rows[1], other.rows[1])] if one.rows and other.rows else []
    return all(is_equal(a, b) for a, b in pairs) and all(
        a.factor == b.factor and all(map(numpy.array_equal, a.make("f4"), b.make("f4")))
        for a, b in zip(one.factors, other.factors, strict=True)
    )
