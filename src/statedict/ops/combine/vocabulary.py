"""Models whose vocabularies or heads differ, made alike by an explicit policy.

A vocabulary is the number of rows of embeddings and heads: the one size that may differ between models, the same in all
such tensors of a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from statedict.errors import CombineError
from statedict.ops.combine.align import Aligned
from statedict.ops.combine.model_config import is_said_tied, is_tied
from statedict.ops.diff.compare import Rule, compare
from statedict.tensor.assembled import assemble
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.state_dict import StateDict, like
from statedict.values import abbreviate

_HEAD = re.compile(r"head|out|logits|predict")
_OTHER = re.compile(r"pos|type")  # embeddings of something else than tokens
POLICIES = ("truncate", "pad")


def check_policy(policy: Any) -> None:
    """Check that it is a policy.

    Raises:
        CombineError: it is not.
    """
    if policy is not None and policy not in POLICIES:
        raise CombineError(f"vocabulary: expected one of {', '.join(POLICIES)}, got {policy!r:.40}")


def fit(aligned: Aligned, policy: str | None) -> tuple[Aligned, tuple[int, ...]]:
    """The sources with vocabularies of one size, and the sizes that they had; none if they are alike.

    Args:
        aligned: the sources, the base first if there is one.
        policy: `"truncate"`: the first rows, as many as the shortest has; `"pad"`: the rows that one lacks are those of
            the first source that has them; None: they are not changed.

    Raises:
        CombineError: vocabularies differ and there is no policy, or a tensor has another number of rows.
    """
    differing = {path: [as_lazy(leaf) for leaf in leaves] for path, leaves in aligned.values.items() if _differ(leaves)}
    if not differing or (policy is None and all(len(tensors[0].shape) == 1 for tensors in differing.values())):
        return aligned, ()
    first, tensors = next(iter(differing.items()))
    sizes = tuple(tensor.shape[0] for tensor in tensors)
    for path, others in differing.items():
        if tuple(tensor.shape[0] for tensor in others) != sizes:
            raise CombineError(
                f"{path}: has {abbreviate([str(tensor.shape[0]) for tensor in others])} rows in the sources, and "
                f"{first} {abbreviate([*map(str, sizes)])}; make them alike by edit first"
            )
    if policy is None:
        rows = ", ".join(f"{size:,} rows in {name}" for name, size in zip(aligned.names, sizes, strict=True))
        raise CombineError(
            f"{first}: has {rows}; if that is the vocabulary, pass vocabulary='truncate' for the rows that all "
            "have, or vocabulary='pad' for the rows of the largest"
        )
    known: dict[tuple[object, ...], LazyTensor] = {}
    values = dict(aligned.values)
    for path, tensors in differing.items():
        values[path] = [_fit(tensors, number, policy, known) for number in range(len(tensors))]
    return replace(aligned, values=values), sizes


def _differ(leaves: Sequence[Any]) -> bool:
    """Whether tensors of one name differ in the number of rows, and in nothing else."""
    if not all(is_array(leaf) and len(leaf.shape) for leaf in leaves):
        return False
    shapes = [tuple(leaf.shape) for leaf in leaves]
    return len({*shapes}) > 1 and len({shape[1:] for shape in shapes}) == 1


def _fit(tensors: Sequence[LazyTensor], number: int, policy: str, known: dict[tuple[object, ...], LazyTensor]) -> Any:
    """The tensor of one source with the rows of all; what was tied is tied."""
    tensor, sizes = tensors[number], [one.shape[0] for one in tensors]
    parts = [tensor]
    if policy == "truncate":
        parts = [tensor[: min(sizes)]]
    for other in tensors if policy == "pad" else ():
        begin = sum(part.shape[0] for part in parts)
        if other.shape[0] > begin:
            parts.append(other[begin:])
    key = tuple(part.region for part in parts)
    if key not in known:
        known[key] = parts[0] if len(parts) == 1 else _join(parts)
    return known[key]


def _join(parts: Sequence[LazyTensor]) -> LazyTensor:
    first, begin, chunks = parts[0], 0, []
    for part in parts:
        if part.dtype is not first.dtype:
            raise CombineError(f"rows of {part.dtype} cannot go below rows of {first.dtype}; cast one by edit first")
        chunks.append(((begin, *[0] * (part.ndim - 1)), part))
        begin += part.shape[0]
    remote = any(part.storage.source.remote for part in parts)
    made = assemble(first.dtype, (begin, *first.shape[1:]), chunks, first.storage.source.name, remote=remote)
    return made.replace(requires_grad=first.requires_grad, parameter=first.parameter)


def add_heads(
    sources: Sequence[tuple[str, StateDict]], configs: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[str, StateDict]], list[str]]:
    """The sources with the heads that their configurations tie: stored once, and there if another source has one.

    A head whose bytes are those of the embedding is tied to it; one that is missing is the embedding.

    Args:
        sources: names and trees.
        configs: for each its configuration, or nothing.

    Returns:
        The sources, and notes on heads that were missing.
    """
    found = [
        (name, _tie(tree) if is_said_tied(config) else tree)
        for (name, tree), config in zip(sources, configs, strict=True)
    ]
    trees = [tree for _, tree in found]
    names = [name for name in dict.fromkeys(name for tree in trees for name in tree) if not _is_in_layer(name)]
    notes = []
    for number, ((source, tree), config) in enumerate(zip(found, configs, strict=True)):
        missing = [name for name in names if name not in tree] if is_tied(config) else []
        embedding = _find_embedding(tree, missing[0], trees) if len(missing) == 1 else None
        if embedding is not None:
            found[number] = source, like(tree, StateDict({**tree, missing[0]: tree[embedding]}))
            notes.append(f"{missing[0]}: in {source} the tied embedding takes its place")
    return found, notes


def measure_vocabulary(name: str, tree: StateDict) -> int:
    """The rows of a model's embedding of tokens, the longest one.

    Raises:
        CombineError: it has none.
    """
    rows = [leaf.shape[0] for path, leaf in _matrices(tree).items() if not _is_in_layer(path) and _is_of_tokens(path)]
    if not rows:
        raise CombineError(f"{name}: has no embedding of tokens; leave out tokenizer")
    return int(max(rows))


def is_of_vocabulary(path: Any, leaf: Any, rows: int) -> bool:
    """Whether a tensor has a row for each token: an embedding, a head or a head's bias."""
    if not is_array(leaf) or not leaf.shape or leaf.shape[0] != rows or _is_in_layer(path) or _OTHER.search(str(path)):
        return False
    return _HEAD.search(str(path)) is not None or (len(leaf.shape) == 2 and _is_of_tokens(str(path)))


def _is_of_tokens(path: str) -> bool:
    return (_is_embedding(path) or path.endswith("shared.weight")) and not _OTHER.search(path)  # of T5


def is_head_tied(tree: StateDict) -> bool | None:
    """Whether the head of a model shares the bytes of its embedding; None if it has no head."""
    pair = _find_pair(tree)
    return None if pair is None else as_lazy(tree[pair[0]]).region == as_lazy(tree[pair[1]]).region


def _tie(tree: StateDict) -> StateDict:
    pair = _find_pair(tree)
    if pair is None:
        return tree
    embedding, head = (as_lazy(tree[name]) for name in pair)
    if embedding.region == head.region or embedding.dtype is not head.dtype:
        return tree
    if compare([(embedding, head)], Rule()) != [None]:
        return tree
    return like(tree, StateDict({**tree, pair[1]: tree[pair[0]]}))


def _find_pair(tree: StateDict) -> tuple[str, str] | None:
    """The names of a model's embedding and its head, the only other matrix of that shape outside of layers."""
    matrices = {name: tuple(leaf.shape) for name, leaf in _matrices(tree).items() if not _is_in_layer(name)}
    embeddings = [name for name in matrices if _is_embedding(name)]
    if len(embeddings) != 1:
        return None
    shape = matrices[embeddings[0]]
    heads = [name for name in matrices if name not in embeddings and _HEAD.search(name) and matrices[name] == shape]
    return (embeddings[0], heads[0]) if len(heads) == 1 else None


def _is_in_layer(name: Any) -> bool:
    return any(key.isdecimal() for key in str(name).split("."))


def _is_embedding(name: str) -> bool:
    return ("emb" in name and "embed_out" not in name) or name.endswith("wte.weight")


def _matrices(tree: StateDict) -> dict[str, Any]:
    return {name: leaf for name, leaf in tree.items() if type(name) is str and is_array(leaf) and len(leaf.shape) == 2}


def _find_embedding(tree: StateDict, head: str, trees: Sequence[StateDict]) -> str | None:
    """The tensor of a tied model that is its head too: the only embedding of that width."""
    wanted = next(one[head] for one in trees if head in one)
    if not is_array(wanted) or len(wanted.shape) != 2:
        return None
    wide = [name for name, leaf in _matrices(tree).items() if leaf.shape[1] == wanted.shape[1] and _is_embedding(name)]
    return wide[0] if len(wide) == 1 else None
