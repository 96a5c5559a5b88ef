"""Which model an optimizer's state belongs to, and which of its parameters each entry is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from statedict.param_names import Shape, inferred
from statedict.tensor import LazyTensor, as_lazy, is_array

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
        region = (tensor.storage.key, tensor.offset, tensor.shape)
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
