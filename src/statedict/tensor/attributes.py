"""Python attributes of a tensor (`weight.lr_scale = 0.5`). Those that are data stay with it in a file."""

from __future__ import annotations

from copy import deepcopy

from statedict.dtypes import dtype
from statedict.tensor.operators import OperatorErrors
from statedict.values import KINDS, Device, Opaque, Size, abbreviate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_MAX_ENTRIES = 10_000  # of one attribute
_MAX_DEPTH = 100
_COMPILER_PREFIX = "_dynamo_"  # torch.compile sets these for itself
_FROM_TORCH: dict[str, Callable[[Any], Any]] = {
    "Size": Size,
    "dtype": dtype,
    "device": lambda device: Device(str(device)),
}


def live_attributes(tensor: Any) -> dict[str, Any] | None:
    """A copy of the attributes of a live torch tensor, or None; an `Opaque` stands for what is not data."""
    attributes = vars(tensor)
    return drop_compiler({name: _capture(value) for name, value in attributes.items()}) if attributes else None


def drop_compiler(attributes: Mapping[Any, Any]) -> dict[Any, Any] | None:
    """Attributes without those of torch.compile; None if nothing is left."""
    return {name: value for name, value in attributes.items() if not str(name).startswith(_COMPILER_PREFIX)} or None


def data_of(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """The attributes that are data: plain values, tensors, and containers of them that are not too large."""
    return {name: value for name, value in attributes.items() if type(name) is str and is_data(value)}


def is_data(value: Any) -> bool:
    """Whether a file can hold a value beside a tensor.

    >>> is_data({"a": [1, 2.5]}), is_data([print])
    (True, False)
    """
    pending, count = [(value, 0)], 0
    while pending:
        node, depth = pending.pop()
        count += 1
        if count > _MAX_ENTRIES or depth > _MAX_DEPTH:
            return False
        inner: Iterable[Any] = ()
        if isinstance(node, dict):
            inner = [*node.keys(), *node.values()]
        elif type(node) in (list, tuple, set, frozenset):
            inner = node
        elif type(node) not in KINDS and not isinstance(node, OperatorErrors):
            return False
        pending += [(child, depth + 1) for child in inner]
    return True


def left_out_note(names: list[str]) -> str:
    """The note about attributes that a file cannot hold."""
    return f"attributes of tensors that the file cannot hold are left out: {abbreviate(names)}"


def _capture(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in _FROM_TORCH:
        return _FROM_TORCH[kind.__name__](value)
    if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
        value = value.item()
    return deepcopy(value) if is_data(value) else Opaque(f"{kind.__module__}.{kind.__qualname__}")
