"""Names of one framework for those of another, by the rules of tree/name_maps.py. Public as those of verbs.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from statedict.dtypes import BY_NAME
from statedict.errors import AlterError
from statedict.ops.alter.follow import Build
from statedict.ops.alter.outline import on_trees, rebuild
from statedict.ops.alter.tensors import join, piece
from statedict.tensor.assembled import assemble, map_elements
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.words import turn
from statedict.tree.layout import Layout
from statedict.tree.name_maps import FAMILIES, MAPS, Rule
from statedict.tree.rename import Rules
from statedict.tree.state_dict import StateDict

Tensors = Sequence[LazyTensor]
Change = Callable[..., Sequence[LazyTensor]]
_LAYER = re.compile(r"(model\.layers|transformer\.h|blk)\.")
_EMBEDDING = re.compile(r"emb|wte|wpe|tok", re.IGNORECASE)


@on_trees
def map_names(state: Layout, name: str, heads: Sequence[int] = ()) -> Layout:
    """Give the entries of a model the names, shapes and orders that another framework has, or those of PyTorch back.

    Tensors are transposed, permuted, split and joined as `tree/name_maps.py` says, and moments of optimizers follow.
    What no rule names stays.

    Args:
        state: PyTorch's state_dict, or Hugging Face's, or one with the names of the other side, which becomes that.
        name: `"keras"`, `"flax"`, `"nnx"`, `"consolidated"` or `"gguf"`; `"gguf:qwen"` where the metadata and the
            names do not tell the family.
        heads: how many heads attention has, and how many of keys, where rows are reordered; by default what the
            metadata of a GGUF file says.

    Raises:
        AlterError: there is no such map, no entry has a name of it, heads are not known, or two entries get one path.

    >>> import statedict, numpy
    >>> state = statedict.StateDict({"fc.weight": numpy.ones((2, 3)), "fc.bias": numpy.ones(2)})
    >>> map_names(state, "keras")
    {'fc.kernel': LazyTensor(float64, (3, 2), 48 B, 'memory'), 'fc.bias': array([1., 1.])}
    """
    rules = choose(state, name)
    return _map(state, rules, name, is_theirs(state, rules), tuple(heads) or _find_heads(state))


def _map(state: Layout, rules: Sequence[Rule], name: str, back: bool, heads: Sequence[int]) -> Layout:
    matches = _match(state, rules, back)
    if all(match.sources == match.targets for match in matches):
        raise AlterError(f"no entry has a name of PyTorch or of {name} that the map has; fix or remove this step")
    _check_heads(state, matches, heads)
    found = {match.sources[0]: match for match in matches}
    others = {path for match in matches for path in match.sources[1:]}
    outline: dict[str, str | Build] = {}
    for path in (path for path in state.leaves if path not in others):
        for new, origin in _build(found[path], back, heads) if path in found else [(path, path)]:
            if new in outline:
                raise AlterError(f"two entries become {new!r}; rename one of them first")
            outline[new] = origin
    return rebuild(state, outline)


def _check_heads(state: Layout, matches: Sequence[_Match], heads: Sequence[int]) -> None:
    """Refuse numbers of heads with which those of keys would have another size."""
    counts = {"heads": heads[:1], "key heads": heads[-1:]}
    sizes: set[float] = set()
    for match in matches:
        tensor = as_lazy(state.leaves[match.sources[0]])
        sizes.update(tensor.shape[0] / count for count in counts.get(match.rule.change, ()) if tensor.ndim)
    if len(sizes) > 1:
        said, found = ", ".join(map(str, heads)), " and ".join(f"{size:g}" for size in sorted(sizes))
        raise AlterError(f"with {said} heads they have {found} rows, not one number; give heads, as in --map NAME=32,8")


def list_unmapped(state: Layout, name: str) -> list[str]:
    """The tensors for which a map has no rule."""
    rules = choose(state, name)
    matched = {path for match in _match(state, rules, is_theirs(state, rules)) for path in match.sources}
    return [path for path, leaf in state.leaves.items() if is_array(leaf) and path not in matched]


def map_pair(one: StateDict, other: StateDict, name: str, heads: Sequence[int] = ()) -> tuple[StateDict, StateDict]:
    """Two states with PyTorch's names, as far as both can be: one of them, or both, has those of a map.

    Raises:
        AlterError: neither has names of the map; else as `map_names`.
    """
    layouts = Layout(one), Layout(other)
    told = next((side for side in layouts if "metadata.general.architecture" in side.leaves), layouts[0])
    rules = choose(told, name)
    theirs = [is_theirs(side, rules) for side in layouts]
    if not any(theirs):
        raise AlterError(f"neither has names of {name}; compare them without a map")
    trees = []
    for side, back in zip(layouts, theirs, strict=True):
        if back:
            side = _map(side, rules, name, True, tuple(heads) or _find_heads(side))
            kept = {path: path for path in side.leaves if not path.startswith("metadata.")}  # of GGUF
            trees.append(rebuild(side, kept).tree)
        else:
            trees.append(_settle(side, rules).tree)
    return trees[0], trees[1]


def choose(state: Layout, name: str) -> tuple[Rule, ...]:
    """The rules of a map; of GGUF those of the family that the metadata or the names tell."""
    if name != "gguf":
        if name not in MAPS:
            raise AlterError(f"{name}: is not a map of names; take one of gguf, {', '.join(MAPS)}")
        return MAPS[name]
    kind = state.leaves.get("metadata.general.architecture")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None and kind is None:  # only names tell
        marks = {"attn.c_attn": "gpt2", "qkv_proj": "phi3", "attn_qkv": "phi3", "pre_feedforward_layernorm": "gemma2"}
        marks |= {"position_embd": "gpt2", "post_ffw_norm": "gemma2", "q_norm": "qwen", "q_proj.bias": "qwen"}
        family = next((some for mark, some in marks.items() for path in state.leaves if mark in path), None)
        if family is not None and any(_LAYER.match(path) for path in list_unmapped(state, f"gguf:{family}")):
            family = None
    if family is None:
        families = ", ".join(key for key in MAPS if key.startswith("gguf:"))
        raise AlterError(f"gguf: {kind or 'the names do not tell which architecture this is'}; take one of {families}")
    return MAPS[f"gguf:{family}"]


def is_theirs(state: Layout, rules: Iterable[Rule]) -> bool:
    """Whether more entries have the names of the other side than PyTorch's."""
    sides = [Rules({path: path for rule in rules for path in rule.sides(back)[0]}) for back in (False, True)]
    votes = [[side.matches(path) for side in sides] for path, leaf in state.leaves.items() if is_array(leaf)]
    return votes.count([False, True]) > votes.count([True, False])


class _Match(NamedTuple):
    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def _match(state: Layout, rules: Iterable[Rule], back: bool) -> list[_Match]:
    found: list[_Match] = []
    taken: set[str] = set()
    for rule in rules:
        before, after = rule.sides(back)
        if not before:
            continue
        first, others = before[0], before[1:]
        test, steps = Rules({first: first}), [Rules({first: other}) for other in (*others, *after)]
        for path, leaf in state.leaves.items():
            if path in taken or not is_array(leaf) or not test.matches(path):
                continue
            paths = [step(path) for step in steps]
            sources, targets = (path, *paths[: len(others)]), tuple(paths[len(others) :])
            if all(is_array(state.leaves.get(one)) for one in sources) and (back or _holds(rule.when, state, path)):
                taken.update(sources)
                found.append(_Match(rule, sources, targets))
    return found


def _holds(when: str, state: Layout, path: str) -> bool:
    """Whether an entry of PyTorch is what a rule is for."""
    tensor, module = as_lazy(state.leaves[path]), path.rpartition(".")[0]
    if when == "bias of a norm":
        weight = state.leaves.get(f"{module}.weight")
        return is_array(weight) and as_lazy(weight).ndim == 1
    if when in ("lstm", "gru"):
        hidden = state.leaves.get(f"{module}.weight_hh_l0")
        return is_array(hidden) and as_lazy(hidden).shape[0] == {"lstm": 4, "gru": 3}[when] * as_lazy(hidden).shape[-1]
    return {
        "": True,
        "vector": tensor.ndim == 1,
        "matrix": tensor.ndim > 1,
        "embedding": tensor.ndim == 2 and bool(_EMBEDDING.search(module.rpartition(".")[2])),
    }[when]


def _build(match: _Match, back: bool, heads: Sequence[int]) -> Iterable[tuple[str, str | Build]]:
    rule, sources, targets = match
    if not rule.change:
        yield from zip(targets, sources, strict=False)
        return
    change = _CHANGES[rule.change][back]
    if "heads" in rule.change:
        if not heads:
            raise AlterError(f"{sources[0]}: its rows are in the order of heads, and how many there are is not known; "
                             "give heads, as in --map NAME=32,8")  # fmt: skip
        change = partial(change, heads[-1] if rule.change == "key heads" else heads[0])
    for number, target in enumerate(targets):
        yield target, Build(sources, partial(_run, change, number))


def _run(change: Change, number: int, *tensors: LazyTensor) -> LazyTensor:
    return change(*tensors)[number]


def _find_heads(state: Layout) -> tuple[int, ...]:
    """How many heads a GGUF file says that there are, and how many of keys."""
    kind = state.leaves.get("metadata.general.architecture")
    found = [state.leaves.get(f"metadata.{kind}.attention.{key}") for key in ("head_count", "head_count_kv")]
    known = [n for n in found if n is not None]
    return tuple(known) if all(type(n) is int and n > 0 for n in known) else ()


def _turn_kernel(tensor: LazyTensor) -> Tensors:
    """[out, in, *window] as [*window, in, out]."""
    return [turn(tensor, *range(2, tensor.ndim), 1, 0)] if tensor.ndim > 1 else [tensor]


def _turn_back(tensor: LazyTensor) -> Tensors:
    """[*window, in, out] as [out, in, *window]."""
    last = tensor.ndim - 1
    return [turn(tensor, last, last - 1, *range(last - 1))] if tensor.ndim > 1 else [tensor]


def _part_heads(heads: int, tensor: LazyTensor, back: bool) -> Tensors:
    """Rows of each head: the two halves of Hugging Face's one by one, and back."""
    rows = tensor.shape[0] if tensor.ndim else 0
    if not rows or rows % (2 * heads):
        raise AlterError(f"{rows:,} rows are not those of {heads} heads of two halves; give other heads")
    plain, rest = tensor.contiguous(), tensor.shape[1:]
    sizes = (heads, rows // heads // 2, 2) if back else (heads, 2, rows // heads // 2)
    split = plain.replace(shape=(*sizes, *rest))
    return [turn(split, 0, 2, 1, *range(3, split.ndim)).replace(shape=tuple(tensor.shape))]


def _add(more: int, tensor: LazyTensor) -> Tensors:
    """One more or less, in float32, as llama.cpp has the norms of Gemma."""
    return [map_elements(tensor, BY_NAME["float32"], partial(_sum, more=more))]


def _sum(*values: Any, out: Any, more: int = 0) -> None:
    import numpy

    with numpy.errstate(all="ignore"):
        total: Any = values[0].astype(out.dtype)
        for one in values[1:]:
            total = total + one.astype(out.dtype)
        out[...] = total + out.dtype.type(more) if more else total


def _sum_biases(one: LazyTensor, other: LazyTensor) -> Tensors:
    return [map_elements(one, one.dtype, _sum, other)]


def _with_zeros(bias: LazyTensor) -> Tensors:
    return [bias, assemble(bias.dtype, tuple(bias.shape), [], bias.storage.source.name)]


def _swap_gates(tensor: LazyTensor) -> LazyTensor:
    """The first two of three gates exchanged: PyTorch begins with reset, Keras with update."""
    reset, update, new = (piece(number, 3, 0, None, tensor) for number in range(3))
    return join(0, update, reset, new)


def _swap_biases(*tensors: LazyTensor) -> Tensors:
    return [join(0, *(_swap_gates(one).replace(shape=(1, one.shape[0])) for one in tensors))]


def _part_biases(tensor: LazyTensor) -> Tensors:
    return [_swap_gates(tensor[number].contiguous()) for number in range(2)]


def _split_gates(count: int, tensor: LazyTensor) -> Tensors:
    return [_turn_kernel(piece(number, count, 0, None, tensor))[0] for number in range(count)]


def _join_gates(*tensors: LazyTensor) -> Tensors:
    return [join(0, *(_turn_back(tensor)[0] for tensor in tensors))]


def _sum_gates(one: LazyTensor, other: LazyTensor) -> Tensors:
    """Of reset and update the sum of the biases, of the new state both."""
    pairs = [[piece(number, 3, 0, None, bias) for bias in (one, other)] for number in range(3)]
    return [*(_sum_biases(*pair)[0] for pair in pairs[:2]), *pairs[2]]


def _part_sums(reset: LazyTensor, update: LazyTensor, new: LazyTensor, hidden: LazyTensor) -> Tensors:
    nothing = _with_zeros(reset)[1]
    return [join(0, reset, update, new), join(0, nothing, nothing, hidden)]


_CHANGES: dict[str, tuple[Change, Change]] = {  # there, and back
    "kernel": (_turn_kernel, _turn_back),
    "matrix": (_turn_kernel, _turn_back),
    "heads": (partial(_part_heads, back=False), partial(_part_heads, back=True)),
    "key heads": (partial(_part_heads, back=False), partial(_part_heads, back=True)),
    "one more": (partial(_add, 1), partial(_add, -1)),
    "lstm": (_turn_kernel, _turn_back),
    "sum": (_sum_biases, _with_zeros),
    "gru": (lambda one: _turn_kernel(_swap_gates(one)), lambda one: [_swap_gates(_turn_back(one)[0])]),
    "gru biases": (_swap_biases, _part_biases),
    "four kernels": (partial(_split_gates, 4), _join_gates),
    "three kernels": (partial(_split_gates, 3), _join_gates),
    "sum of four": (
        lambda one, other: _split_gates(4, _sum_biases(one, other)[0]),
        lambda *parts: _with_zeros(_join_gates(*parts)[0]),
    ),
    "sum of two": (_sum_gates, _part_sums),
}


def _settle(state: Layout, rules: Sequence[Rule]) -> Layout:
    """A state with PyTorch's names as it would come back from the other side: what that does not keep is gone.

    Of the two biases of an LSTM there is the sum, and counts of batches are dropped.
    """
    outline: dict[str, str | Build] = {path: path for path in state.leaves}
    for match in _match(state, rules, False):
        if not match.targets:
            del outline[match.sources[0]]
        elif match.rule.change.startswith("sum"):
            for number, path in enumerate(match.sources):
                outline[path] = Build(match.sources, partial(_there_and_back, match.rule.change, number))
    return rebuild(state, outline)


def _there_and_back(name: str, number: int, *tensors: LazyTensor) -> LazyTensor:
    there, back = _CHANGES[name]
    return back(*there(*tensors))[number]
