"""Python attributes of a tensor (`weight.lr_scale = 0.5`): which of them are data, and so stay with it in a file."""

from __future__ import annotations

from copy import deepcopy

from statedict.dtypes import dtype
from statedict.tensor.operators import Unread
from statedict.values import KINDS, Device, Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_MAX_ENTRIES = 10_000  # of one attribute
_MAX_DEPTH = 100
_OF_COMPILER = "_dynamo_"  # what torch.compile notes on tensors for itself


def live_attributes(tensor: Any) -> dict[str, Any] | None:
    """A copy of the attributes that someone set on a live torch tensor; None where there are none.

    What is no data becomes an `Opaque`, a label: a function, an object, another live tensor.
    """
    held = vars(tensor)
    if not held:
        return None
    return named({name: _captured(value) for name, value in held.items()})


def named(held: Mapping[Any, Any]) -> dict[Any, Any] | None:
    """Attributes without those of PyTorch's compiler; None where nothing is left."""
    return {name: value for name, value in held.items() if not str(name).startswith(_OF_COMPILER)} or None


def data_of(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Those of the attributes that are data: plain values, tensors, and containers of them that are not too large."""
    return {name: value for name, value in attributes.items() if type(name) is str and is_data(value)}


def is_data(value: Any) -> bool:
    """Whether a value is data that a file can hold beside a tensor.

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
        elif type(node) not in KINDS and not isinstance(node, Unread):
            return False
        pending += [(child, depth + 1) for child in inner]
    return True


def left_out(names: list[str]) -> str:
    """What to say about attributes that stay out of a file."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"attributes of tensors that the file cannot hold are left out: {', '.join(names[:3])}{more}"


def _captured(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ == "Size":
        return Size(value)
    if kind.__module__ == "torch" and kind.__name__ == "dtype":
        return dtype(value)
    if kind.__module__ == "torch" and kind.__name__ == "device":
        return Device(str(value))
    if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
        value = value.item()  # of a scalar
    return deepcopy(value) if is_data(value) else Opaque(f"{kind.__module__}.{kind.__qualname__}")
