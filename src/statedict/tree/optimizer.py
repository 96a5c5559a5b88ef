"""Which model an optimizer's state belongs to, and which of its parameters each entry is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from statedict.tensor.lazy import LazyTensor, as_lazy, is_array

Linked = tuple[str, dict[Any, str]]
"""The path of the dict that holds the parameters, and key of an entry → path of its parameter."""

_FACTORED = (("row_var", "col_var", 1), ("exp_avg_sq_row", "exp_avg_sq_col", 0))
"""What Adafactor keeps of rows and of columns, and whether an averaged dimension stays: PyTorch, transformers."""


class Placed(Protocol):
    """What a `Layout` knows."""

    home: dict[str, str]
    dicts: dict[str, Any]

    def tensors(self) -> dict[str, LazyTensor]:
        """Path → tensor."""


def linked(state: Any, layout: Placed) -> Linked | None:
    """The first model that an optimizer fits."""
    return next(iter(fits(state, layout)), None)


def fits(state: Any, layout: Placed) -> list[Linked]:
    """The models whose parameters an optimizer's state may be for: by names if it has some, or by order and shapes.

    Of several those whose shapes are the same, if there are such.
    """
    groups, tensors = state["param_groups"], layout.tensors()
    sizes = [[parameter_size(state["state"].get(key)) for key in group["params"]] for group in groups]
    names = _names(groups)
    found: list[Linked] = []
    exact: list[Linked] = []
    for base in layout.dicts:
        below = base + "." if base else ""
        if names is not None:
            some: Any = [[below + name for name in group] for group in names]
            if not any(some) or not all(path in tensors for group in some for path in group):
                continue
        else:
            then = dict(_parameters(tensors, base, layout))
            some = inferred(sizes, [list(then)], then, list(then)) if then else None
            if some is None:
                continue
        owners = {
            key: path
            for group, paths in zip(groups, some, strict=True)
            for key, path in zip(group["params"], paths, strict=True)
        }
        found.append((base, owners))
        shapes = ((size, tensors[path].shape) for one, paths in zip(sizes, some, strict=True)
                  for size, path in zip(one, paths, strict=True))  # fmt: skip
        if all(size in (None, shape) for size, shape in shapes):
            exact.append(found[-1])
    return exact or found


def _names(groups: list[Any]) -> list[list[str]] | None:
    """The names of the parameters, group by group; None where there are none."""
    found = []
    for group in groups:
        names = group.get("param_names", group["params"])
        whole = isinstance(names, list) and len(names) == len(group["params"])
        if not whole or not all(type(name) is str for name in names):
            return None
        found.append(names)
    return found


def _parameters(tensors: Mapping[str, LazyTensor], base: str, layout: Placed) -> Iterator[tuple[str, Shape]]:
    """What may be the parameters among the tensors of a dict: each once, without the buffers of batch norms."""
    seen = set()
    for path, tensor in tensors.items():
        region = tensor.region
        buffer = tensor.dtype.kind not in ("float", "complex") or path.endswith(("running_mean", "running_var"))
        if layout.home[path] == base and not buffer and region not in seen:
            seen.add(region)
            yield path, tensor.shape


def parameter_size(entries: Any) -> Shape | None:
    """The shape of the parameter that something is kept for: that of what has most elements, or of Adafactor's two."""
    if not isinstance(entries, dict):
        return None
    tensors = {key: as_lazy(value) for key, value in entries.items() if is_array(value)}
    for rows, columns, kept in _FACTORED:
        if rows in tensors and columns in tensors and min(tensors[rows].ndim, tensors[columns].ndim) > kept:
            left = tensors[rows].shape
            return (*left[: len(left) - kept], tensors[columns].shape[-1])
    largest = max(tensors.values(), key=LazyTensor.numel, default=None)
    return None if largest is None or (len(tensors) > 1 and largest.numel() <= 1) else largest.shape


Shape = tuple[int, ...]


Sizes = Sequence[Sequence[Shape | None]]
"""For each saved group, for each of its parameters the shape of what is kept for it, None where nothing is."""


def inferred(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """The names of the parameters of saved groups.

    Args:
        sizes: what is known of the saved parameters.
        live: the names of the parameters of the live groups.
        then: the model's parameters when it was saved: name → shape, in their order.
        now: the names of the live model's parameters, in their order.

    Returns:
        Names group by group, None where they cannot be told.

    >>> inferred([[(3,), (2, 3)]], [["w", "b"]], {"b": (3,), "w": (2, 3)}, ["w", "b"])
    [['b', 'w']]
    """
    if all(size is None for group in sizes for size in group):  # nothing is kept, so nothing can go astray
        return [[*names] for names in live] if [*map(len, sizes)] == [*map(len, live)] else None
    places = {name: place for place, name in enumerate(now)}
    by_model = all([*names] == sorted(names, key=lambda name: places.get(name, -1)) for names in live)
    found = _by_shape(sizes, then, by_model)
    if found is None and [*then] == [*now]:
        found = _by_place(sizes, live, then)
    return found or (_in_order(sizes, then) if by_model else None)


def _by_place(sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape]) -> list[list[str]] | None:
    """The model is as it was, and so are the sizes of the groups and all shapes: then so are the groups."""
    if [*map(len, sizes)] != [*map(len, live)]:
        return None
    pairs = (pair for group, names in zip(sizes, live, strict=True) for pair in zip(group, names, strict=True))
    return [[*names] for names in live] if all(size in (None, then[name]) for size, name in pairs) else None


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
    first = _embedded(sizes[0], list(then.items()))
    last = _embedded(sizes[0][::-1], list(then.items())[::-1])
    return [first] if first is not None and last is not None and first == last[::-1] else None


def _embedded(shapes: Sequence[Shape | None], parameters: Sequence[tuple[str, Shape]]) -> list[str] | None:
    """The earliest parameters in order that have these shapes."""
    found: list[str] = []
    for name, shape in parameters:
        if len(found) < len(shapes) and shapes[len(found)] in (None, shape):
            found.append(name)
    return found if len(found) == len(shapes) else None


def is_optimizer(node: Any) -> bool:
    """Whether a dict is what an optimizer's `state_dict()` gives."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in node["param_groups"])
    )
