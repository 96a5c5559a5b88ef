"""What callers pass, checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from statedict.errors import RunError


def one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse an argument that is none of the words that are known."""
    if given not in allowed:
        raise RunError(f"{name}={given!r}: is none of {', '.join(map(repr, allowed))}")


def whole_step(given: Any) -> int:
    """A step as an int, numpy's too; anything but a whole number of 0 or more is refused."""
    try:
        step = operator.index(given)
    except TypeError:
        step = -1
    if step < 0 or isinstance(given, bool):
        raise RunError(f"step={given!r}: expected a whole number of 0 or more")
    return step


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats; arrays of one element too, anything else is refused."""
    if not isinstance(metrics, Mapping):
        raise RunError(f"metrics={metrics!r:.40}: expected a dict of numbers by name")
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise RunError(f"metrics[{name!r}]={value!r:.40}: expected a number") from None
    return found
