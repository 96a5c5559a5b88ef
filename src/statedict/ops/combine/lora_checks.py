"""What an adapter says of itself, checked before anything is computed of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from statedict.errors import CombineError
from statedict.ops.combine.elements import has_mean
from statedict.tensor.lazy import LazyTensor

_MOST_LAYERS = 100_000  # that `layer_replication` may make


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_replication(value: Any) -> bool:
    pairs = isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and all(type(n) is int for n in one) for one in value
    )
    return pairs and all(0 <= a < b for a, b in value) and sum(b - a for a, b in value) <= _MOST_LAYERS


# setting → what it may be, and whether a value is that
_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rank_pattern": ("an object", lambda value: isinstance(value, dict)),
    "alpha_pattern": ("an object", lambda value: isinstance(value, dict)),
    "modules_to_save": ("a list of names", _is_texts),
    "target_parameters": ("a list of names", _is_texts),
    "layer_replication": ("a list of pairs of layers, the first below the second", _is_replication),
}


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Check the settings that adapters are read by.

    Raises:
        CombineError: one has another type.
    """
    for setting, (wanted, fits) in _SETTINGS.items():
        value = config.get(setting)
        if value is not None and not fits(value):
            raise CombineError(f"{name}: adapter_config.json: {setting}: expected {wanted}, got {value!r:.60}")


def check_parts(where: str, parts: Mapping[str, LazyTensor]) -> None:
    """Check the tensors of one module: their dtypes, and that each has the dimensions that it needs.

    Raises:
        CombineError: one cannot be a factor.
    """
    for role, tensor in parts.items():
        least = {"down": 2, "up": 2, "down2": 2, "up2": 2, "mid": 3, "tokens": 2}.get(role, 0)
        real = has_mean(tensor.dtype) and tensor.dtype.kind == "float"
        if not real or tensor.ndim < least or 0 in tensor.shape or (role == "alpha" and tensor.numel() != 1):
            raise CombineError(
                f"{where}: its tensor {role!r} is {tensor.dtype} of shape {tensor.shape}; fetch it again"
            )
    kinds = [role for role in ("mid", "gains", "up2") if role in parts]
    if len(kinds) > 1:
        raise CombineError(f"{where}: has {' and '.join(kinds)}, of different kinds of adapters; fetch it again")
    for role, like in (("down2", "down"), ("up2", "up"), ("gains", "down")):
        if {role, like} <= parts.keys():
            shape = (parts[like].shape[0], 1) if role == "gains" else parts[like].shape
            if parts[role].shape != shape:
                raise CombineError(
                    f"{where}: its tensor {role!r} has the shape {parts[role].shape}, not {shape}; fetch it again"
                )
    if {"mid", "down"} <= parts.keys() and {*parts["mid"].shape[:2]} != {parts["down"].shape[0]}:
        raise CombineError(f"{where}: its tensor 'mid' has the shape {parts['mid'].shape}; fetch it again")
