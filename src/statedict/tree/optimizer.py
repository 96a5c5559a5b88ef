"""Which model an optimizer's state belongs to, and which of its parameters each entry is for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from statedict.errors import TreeError
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import MAX_DEPTH

Linked = tuple[str, dict[Any, str]]
"""The path of the dict that holds the parameters, and key of an entry → path of its parameter."""
Shape = tuple[int, ...]
Sizes = Sequence[Sequence[Shape | None]]
"""For each saved group, for each of its parameters the shape of what is kept for it, None where nothing is."""


class Hint(tuple[int, ...]):
    """A shape that is the parameter's own only if its optimizer keeps something for each element."""


ONE, SAME, ROWS, COLUMNS = "one", "same", "rows", "columns"
"""A number or a tensor of one element; the parameter's shape; with 1 for the last dimension, for the one before."""
_ADAM = {"step": ONE, "exp_avg": SAME, "exp_avg_sq": SAME}
_AMSGRAD = _ADAM | {"max_exp_avg_sq": SAME}
KEPT: dict[str, dict[str, str]] = {
    "ASGD": {"step": ONE, "eta": ONE, "mu": ONE, "ax": SAME},
    "Adadelta": {"step": ONE, "square_avg": SAME, "acc_delta": SAME},
    "Adafactor": {"step": ONE, "row_var": ROWS, "col_var": COLUMNS, "variance": SAME},
    "Adagrad": {"step": ONE, "sum": SAME},
    "Adam": _AMSGRAD,
    "AdamW": _AMSGRAD,
    "Adamax": {"step": ONE, "exp_avg": SAME, "exp_inf": SAME},
    "Muon": {"momentum_buffer": SAME},
    "NAdam": _ADAM | {"mu_product": ONE},
    "RAdam": _ADAM,
    "RMSprop": {"step": ONE, "square_avg": SAME, "momentum_buffer": SAME, "grad_avg": SAME},
    "Rprop": {"step": ONE, "prev": SAME, "step_size": SAME},
    "SGD": {"momentum_buffer": SAME},
    "SparseAdam": _ADAM,
}
"""What each optimizer of torch.optim keeps for a parameter (torch/optim/adam.py and so on)."""
_COUNTS = frozenset(key for kept in KEPT.values() for key, kind in kept.items() if kind == ONE)
_MOMENTS = frozenset(key for kept in KEPT.values() for key, kind in kept.items() if kind != ONE)
ELEMENTWISE = frozenset(key for kept in KEPT.values() for key, kind in kept.items() if kind == SAME)
FACTORED = (("row_var", "col_var", 1), ("exp_avg_sq_row", "exp_avg_sq_col", 0))
"""What Adafactor keeps of rows and of columns, and whether an averaged dimension stays: PyTorch, transformers."""


def find_model(state: Any, layout: Layout) -> Linked | None:
    """The first model that an optimizer fits."""
    return next(iter(fits(state, layout)), None)


def fits(state: Any, layout: Layout) -> list[Linked]:
    """The models whose parameters an optimizer's state may be for: by its names, or else by order and shapes.

    If the shapes of some are the same as those of the state, only these.
    """
    groups, tensors = state["param_groups"], layout.tensors()
    keys = _flatten([group["params"] for group in groups])
    if not all(type(key) in (int, str) for key in keys):
        return []
    names, (sizes, kept) = names_of(groups), _sizes(groups, state["state"])
    parameters = {} if names is not None else _group_parameters(tensors, layout)
    flat = _flatten(sizes)
    found: list[Linked] = []
    for base in layout.dicts:
        below = base + "." if base else ""
        if names is not None:
            paths = [below + name for name in _flatten(names)]
            if not all(path in tensors for path in paths):
                continue
        else:
            then = parameters.get(base, {})
            some = infer_names(sizes, [list(then)], then, list(then), kept) if then else None
            paths = _flatten(some or ())
            if some is None or not _is_plausible(flat, paths, then):
                continue
        found.append((base, dict(zip(keys, paths, strict=True))))
    exact = [
        (base, owners)
        for base, owners in found
        if all(size in (None, tensors[path].shape) for size, path in zip(flat, owners.values(), strict=False))
    ]
    return exact or found


def _group_parameters(tensors: Mapping[str, LazyTensor], layout: Layout) -> dict[str, dict[str, Shape]]:
    """Path of a dict → what may be the parameters in it: each tensor once, without the buffers of batch norms."""
    found: dict[str, dict[str, Shape]] = {}
    seen = set()
    for path, tensor in tensors.items():
        home, region = layout.home[path], tensor.region
        buffer = tensor.dtype.kind not in ("float", "complex") or path.endswith(("running_mean", "running_var"))
        if not buffer and (home, region) not in seen:
            seen.add((home, region))
            found.setdefault(home, {})[path] = tensor.shape
    return found


def _is_plausible(sizes: Sequence[Shape | None], names: Sequence[str], then: Mapping[str, Shape]) -> bool:
    """Whether what is kept may be of these parameters: of their shapes, or of less."""
    pairs = zip(sizes, names, strict=True)
    return all(size is None or size == then[name] or _is_less(size, then[name]) for size, name in pairs)


def _is_less(size: Shape, shape: Shape) -> bool:
    """Whether an optimizer may reduce a parameter of a shape to something of this size."""
    if math.prod(size) <= 1 or len(size) < len(shape):
        return math.prod(size) <= math.prod(shape)
    return len(size) == len(shape) and all(one in (1, other) for one, other in zip(size, shape, strict=True))


def _flatten(groups: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for group in groups for item in group]


def number_keys(entries: Any, groups: Sequence[Any]) -> Any:
    """What is kept for each parameter, by numbers where JSON has made texts of them."""
    numbers = {str(n): n for group in groups for n in group["params"] if type(n) is int}
    if not numbers or not all(type(key) is str for key in entries):
        return entries
    return like(entries, StateDict((numbers.get(key, key), value) for key, value in entries.items()))


def find_bad_key(groups: Sequence[Any]) -> tuple[str, str] | None:
    """Which of the `params` of groups is no number and no name, and why; None if all are."""
    for number, group in enumerate(groups):
        for index, key in enumerate(group["params"]):
            if type(key) not in (int, str):
                return f"param_groups.{number}.params.{index}", f"expected a number or a name, got {key!r:.40}"
    return None


def is_count(key: Any, value: Any) -> bool:
    """Whether what an optimizer keeps under a key counts steps, or is a number of torch.optim that belongs to them."""
    return bool(key == "step" or (key in _COUNTS and not getattr(value, "ndim", 0)))


def step_counts(layout: Layout) -> set[str]:
    """The paths of step counts in a tree that is an optimizer's state or a part of one.

    Such a part has a number for its key, or a count beside something of a parameter's shape, or below that.
    """
    numbered = {path for rows in layout.inner.values() for _, key, path in rows if type(key) is int}
    kept = tuple(
        path and f"{path}."
        for path, node in layout.dicts.items()
        if path in numbered or ("step" in node and not _MOMENTS.isdisjoint(node)) or is_optimizer(node)
    )
    found = {path: leaf for path, leaf in layout.leaves.items() if is_array(leaf) and path.startswith(kept)}
    return {path for path, leaf in found.items() if is_count(path.rpartition(".")[2], leaf)}


def is_global(key: Any, parameters: Collection[Any]) -> bool:
    """Whether what is kept under a key is of the optimizer as a whole, as PyTorch allows it, and of no parameter."""
    return type(key) is str and not any(type(parameter) is str for parameter in parameters)


def names_of(groups: Sequence[Any]) -> list[list[str]] | None:
    """The names of the parameters, group by group; None unless each has one of its own.

    `torch.distributed.checkpoint.state_dict` has them in the place of numbers, which JSON makes texts.
    """
    found: list[list[str]] = []
    for group in groups:
        names = group.get("param_names")
        given = isinstance(names, list)
        names = names if given else group["params"]
        whole = len(names) == len(group["params"])
        if not whole or not all(type(name) is str and (given or not name.isdecimal()) for name in names):
            return None
        found.append(names)
    flat = _flatten(found)
    return found if 0 < len(set(flat)) == len(flat) else None


def leaves(kept: Any, keys: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """(keys, value) of everything that is kept for a parameter, at any depth."""
    if len(keys) > MAX_DEPTH:
        raise TreeError(f"the state of an optimizer is nested deeper than {MAX_DEPTH}")
    if isinstance(kept, dict) and type(kept) is not Counter:
        return [pair for key, value in kept.items() for pair in leaves(value, (*keys, key))]
    if type(kept) in (list, tuple):
        return [pair for index, value in enumerate(kept) for pair in leaves(value, (*keys, index))]
    return [(keys, kept)]


def map_leaves(kept: Any, make: Callable[[tuple[Any, ...], Any], Any], keys: tuple[Any, ...] = ()) -> Any:
    """The same nesting with `make(keys, value)` in the place of each of `leaves`, not deeper than 200."""
    if len(keys) > MAX_DEPTH:
        raise TreeError(f"the state of an optimizer is nested deeper than {MAX_DEPTH}")
    if isinstance(kept, dict) and type(kept) is not Counter:
        return like(kept, StateDict({key: map_leaves(value, make, (*keys, key)) for key, value in kept.items()}))
    if type(kept) in (list, tuple):
        return type(kept)([map_leaves(value, make, (*keys, index)) for index, value in enumerate(kept)])
    return make(keys, kept)


def parameter_size(entries: Any) -> Shape | None:
    """The shape of the parameter that something is kept for, None where that does not tell.

    That of an entry which PyTorch keeps for each element, or of Adafactor's two; or, as a hint, of what has most
    elements.
    """
    found = _find_largest(entries)
    return None if found is None else found[1]


def _find_largest(entries: Any) -> tuple[Any, Shape] | None:
    """The key and the shape of what seems to have an element for each of a parameter."""
    if not isinstance(entries, dict):
        return None
    tensors = [(keys, tuple(value.shape)) for keys, value in leaves(entries) if is_array(value) and keys[-1] != "step"]
    tensors.sort(key=lambda item: len(item[0]))
    for keys, shape in tensors:
        if keys[-1] in ELEMENTWISE:
            return keys, shape
    shapes = dict(tensors)
    for rows, columns, kept in FACTORED:
        left, right = shapes.get((rows,), ()), shapes.get((columns,), ())
        if min(len(left), len(right)) > kept:
            return (rows,), (*left[: len(left) - kept], right[-1])
    several = [item for item in tensors if math.prod(item[1]) > 1] or tensors[: len(tensors) == 1]
    shallow = [item for item in several if len(item[0]) == len(several[0][0])]
    if not shallow:
        return None
    keys, shape = max(shallow, key=lambda item: math.prod(item[1]))
    return keys, Hint(shape)


def find_strays(parameters: Sequence[tuple[Shape, Any]]) -> list[Shape | None]:
    """Where what is kept for a parameter was kept for one of another shape, that shape; else None.

    Optimizers may keep anything, so only this counts: a shape that another of the parameters has, and that not more
    entries have than parameters; or another number of rows where the same entry of others, or PyTorch's entries of
    that name, have the parameter's own shape. A hint that may be of less than its parameter counts only where all
    shapes are those of the parameters in another order.

    Args:
        parameters: the shape of each, and what is kept for it.

    >>> import numpy
    >>> m = [{"m": numpy.ones(3)}, {"m": numpy.ones((2, 3))}]
    >>> find_strays([((2, 3), m[0]), ((3,), m[1])]), find_strays([((2, 3), m[0]), ((3,), m[0])])
    ([(3,), (2, 3)], [None, None])
    """
    claims = [_find_largest(entries) for _, entries in parameters]
    told = Counter(claim[1] for claim in claims if claim is not None)
    there = Counter(shape for shape, _ in parameters)
    rearranged = told == there
    usual = {
        claim[0]
        for (shape, _), claim in zip(parameters, claims, strict=True)
        if claim is not None and claim[1] == shape
    }
    found: list[Shape | None] = []
    for (shape, entries), claim in zip(parameters, claims, strict=True):
        found.append(None)
        if claim is None or any(is_array(value) and tuple(value.shape) == shape for _, value in leaves(entries)):
            continue
        keys, size = claim
        full = len(size) == len(shape) and math.prod(size) > 1
        named = keys in usual or keys[-1] in ELEMENTWISE
        less = _is_less(size, shape)
        other = told[size] <= there[size] and (rearranged or not (less and isinstance(size, Hint)))
        if size != shape and (other or (named and full and not less)):
            found[-1] = size
    return found


def infer(
    groups: Sequence[Any], entries: Any, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """The names of the parameters of saved groups, by what is kept for them; see `infer_names`."""
    sizes, kept = _sizes(groups, entries)
    return infer_names(sizes, live, then, now, kept)


def _sizes(groups: Sequence[Any], entries: Any) -> tuple[Sizes, bool]:
    """The shapes of the parameters by what is kept for them, and whether anything is that could go astray."""
    entries = number_keys(entries, groups)
    held = (item for entry in entries.values() for item in leaves(entry))
    kept = any(value is not None and keys[-1:] != ("step",) for keys, value in held)
    return [[parameter_size(entries.get(key)) for key in group["params"]] for group in groups], kept


def _drop_unsure(sizes: Sizes, then: Mapping[str, Shape]) -> Sizes:
    """The sizes without those that more entries have than parameters.

    Optimizers may keep anything, so that its shape may be another parameter's. A hint does not make others unsure.
    """
    flat = _flatten(sizes)
    there: Counter[Shape | None] = Counter(then.values())
    told, sure = Counter(flat), Counter(size for size in flat if not isinstance(size, Hint))
    return [
        [size if (told if isinstance(size, Hint) else sure)[size] <= there[size] else None for size in group]
        for group in sizes
    ]


def infer_names(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str], kept: bool = False
) -> list[list[str]] | None:
    """The names of the parameters of saved groups.

    Args:
        sizes: what is known of the saved parameters. Hints tell names only if they are the shapes of all parameters.
        live: the names of the parameters of the live groups.
        then: the model's parameters when it was saved: name → shape, in their order.
        now: the names of the live model's parameters, in their order.
        kept: whether something is kept that could go to another parameter, be its shape known or not.

    Returns:
        Names group by group, None where they cannot be told.

    >>> infer_names([[(3,), (2, 3)]], [["w", "b"]], {"b": (3,), "w": (2, 3)}, ["w", "b"])
    [['b', 'w']]
    """
    if not kept and all(size is None for group in sizes for size in group):  # nothing is kept, so nothing can go astray
        return [[*names] for names in live] if [*map(len, sizes)] == [*map(len, live)] else None
    sizes = _drop_unsure(sizes, then)
    if [*then] == [*now] and (found := _by_place(sizes, live, then)):
        return found
    places = {name: place for place, name in enumerate(now)}
    by_model = all([*names] == sorted(names, key=lambda name: places.get(name, -1)) for names in live)
    flat = _flatten(sizes)
    proven = Counter(flat) == Counter(then.values())  # less than a parameter anywhere is then more elsewhere
    sure = sizes if proven else [[None if isinstance(size, Hint) else size for size in group] for group in sizes]
    found = _by_shape(sure, then, by_model) or (_in_order(sure, then) if by_model else None)
    exact = found and all(size in (None, then[name]) for size, name in zip(flat, _flatten(found), strict=True))
    return found if exact else None


def _by_place(sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape]) -> list[list[str]] | None:
    """The model and the sizes of its groups are as they were, and no shape contradicts: then so are the groups."""
    if [*map(len, sizes)] != [*map(len, live)]:
        return None
    for size, name in zip(_flatten(sizes), _flatten(live), strict=True):
        if size not in (None, then[name]) and not (isinstance(size, Hint) and _is_less(size, then[name])):
            return None
    return [[*names] for names in live]


def _by_shape(sizes: Sizes, then: Mapping[str, Shape], by_model: bool) -> list[list[str]] | None:
    """Each shape belongs to one parameter, or to several that were all in one group; there they have their order."""
    names: dict[Shape | None, list[str]] = {}
    for name, shape in then.items():
        names.setdefault(shape, []).append(name)
    groups: dict[Shape | None, list[int]] = {}  # shape → the group of each parameter that has it
    for number, group in enumerate(sizes):
        for size in group:
            groups.setdefault(size, []).append(number)
    for size, where in groups.items():
        alike = len(names.get(size, ()))
        if size is None or alike != len(where) or (alike > 1 and (len(set(where)) > 1 or not by_model)):
            return None
    left = {shape: iter(some) for shape, some in names.items()}
    found = [[next(left[size]) for size in group] for group in sizes]
    before = {name: place for place, name in enumerate(then)}
    for chosen, shapes in zip(found, sizes, strict=True):
        several = any(count > 1 for count in Counter(shapes).values())
        if several and chosen != sorted(chosen, key=before.__getitem__):
            return None  # the group was not built in the model's order
    return found


def _in_order(sizes: Sizes, then: Mapping[str, Shape]) -> list[list[str]] | None:
    """One group with all or some of the model's parameters, if they can be only those."""
    if len(sizes) != 1 or not sizes[0]:
        return None
    first = _embed(sizes[0], list(then.items()))
    last = _embed(sizes[0][::-1], list(then.items())[::-1])
    return [first] if first is not None and last is not None and first == last[::-1] else None


def _embed(shapes: Sequence[Shape | None], parameters: Sequence[tuple[str, Shape]]) -> list[str] | None:
    """The earliest parameters in order that have these shapes."""
    found: list[str] = []
    for name, shape in parameters:
        if len(found) < len(shapes) and shapes[len(found)] in (None, shape):
            found.append(name)
    return found if len(found) == len(shapes) else None
