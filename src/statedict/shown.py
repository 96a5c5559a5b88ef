"""How an object shows itself in a notebook and at a prompt, and what it is as JSON.

The views are in `statedict.render`, above the objects; `statedict/__init__.py` connects them by `use`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LINES = 20
_load: Callable[[], Any]


def use(load: Callable[[], Any]) -> None:
    """Set what imports `statedict.render.views`."""
    global _load
    _load = load


def to_record(value: Any, **names: str) -> dict[str, Any]:
    """The JSON of a dataclass and all that it holds, some fields under other names; NaN and infinities are null."""
    from dataclasses import fields

    return {names.get(field.name, field.name): _to_json(getattr(value, field.name)) for field in fields(value)}


def _to_json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if hasattr(value, "__dataclass_fields__"):
        return to_record(value)
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float):
        from math import isfinite

        return value if isfinite(value) else None
    return value


class Viewed:
    """An object with an HTML view in notebooks."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(_load().html(self))


class Shown(Viewed):
    """A report: its HTML view in notebooks, and at a prompt the first lines of its text."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`."""
        return to_record(self)

    def __str__(self) -> str:
        return str(_load().text(self))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        lines = str(self).split("\n")
        more = [f"… {len(lines) - _LINES:,} more lines; print() shows all"] if len(lines) > _LINES else []
        return {"text/plain": "\n".join(lines[:_LINES] + more), "text/html": self._repr_html_()}
