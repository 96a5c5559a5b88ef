"""What callers pass, checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from statedict.errors import RunError
from statedict.runs.manifest import WHOLE


def one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse an argument that is none of the words that are known."""
    if given not in allowed:
        raise RunError(f"{name}={given!r}: is none of {', '.join(map(repr, allowed))}")


def whole_step(given: Any) -> int:
    """A step as an int, numpy's too; anything but a whole number from 0 to 2⁶³-1 is refused."""
    try:
        step = operator.index(given)
    except TypeError:
        step = -1
    if not 0 <= step < WHOLE or isinstance(given, bool):
        said = repr(given) if abs(step) < WHOLE else f"{step:#x}"  # Python writes no number of 5,000 digits in decimals
        raise RunError(f"step={said:.40}: expected a whole number of 0 or more, below 2**63")
    return step


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats; arrays of one element too, anything else is refused."""
    if not isinstance(metrics, Mapping):
        raise RunError(f"metrics={metrics!r:.40}: expected a dict of numbers by name")
    found = {}
    for name, value in metrics.items():
        try:
            str(name).encode()
        except UnicodeEncodeError:
            raise RunError(f"metrics: the name {name!r:.80} has half of a surrogate pair, which is no text") from None
        try:
            found[str(name)] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise RunError(f"metrics[{name!r}]={value!r:.40}: expected a number") from None
    return found
