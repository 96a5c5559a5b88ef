"""Parameters of a merge as mergekit's configurations give them: by name of a tensor, by layer, by how near they stand.

    VALUE                                     for all
    [VALUE, VALUE, …]                         a gradient from the first layer of a slice to the last
    [{filter: TEXT, value: …}, {value: …}]    the first whose text is in the tensor's name, or that has none

A source in a slice comes before the slice, that before the module, that before the whole. Where no filter fits, the
next one decides. Source: mergekit 0.1.5, config.py and parameter_resolver.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from statedict.errors import CombineError

Settings = Mapping[str, Any]
_SCALARS = (bool, int, float, str)


def read_settings(node: Any, where: str) -> Settings:
    """The mapping of parameters at a place of a configuration, checked; empty if there is none.

    Raises:
        CombineError: it, or a value in it, has another form.
    """
    if node is None:
        return {}
    if not isinstance(node, Mapping) or not all(type(key) is str for key in node):
        raise CombineError(f"{where}: expected names and values of parameters, got {node!r:.60}")
    for key, value in node.items():
        _check(value, f"{where}: {key}")
    return node


def _check(value: Any, where: str) -> None:
    if value == []:
        raise CombineError(f"{where}: expected a value, a list of values, or filters, got an empty list")
    conditions = [value] if isinstance(value, Mapping) else value
    if isinstance(value, _SCALARS) or (isinstance(value, list) and all(isinstance(one, _SCALARS) for one in value)):
        return
    if not isinstance(conditions, list):
        raise CombineError(f"{where}: expected a value, a list of values, or filters, got {value!r:.60}")
    for one in conditions:
        if not isinstance(one, Mapping) or "value" not in one or {*one} - {"value", "filter"}:
            raise CombineError(f"{where}: expected {{filter: TEXT, value: VALUE}}, got {one!r:.60}")
        if not isinstance(one.get("filter"), str | None):
            raise CombineError(f"{where}: expected a text as filter, got {one['filter']!r:.40}")
        if isinstance(one["value"], Mapping):
            raise CombineError(f"{where}: expected a value or a list of values, got {one['value']!r:.60}")
        _check(one["value"], where)


def resolve(scopes: Iterable[Settings], key: str, name: str, t: float) -> Any:
    """The value of a parameter for a tensor; None if nothing gives one.

    Args:
        scopes: where to look, the nearest first.
        key: the parameter.
        name: the tensor's, as its model calls it.
        t: where its layer lies in its slice, from 0 to 1; 0 outside of layers.

    >>> resolve([{"t": [{"filter": "mlp", "value": [0, 1]}]}, {"t": 0.5}], "t", "layers.1.mlp.up", 0.25)
    0.25
    >>> resolve([{"t": [{"filter": "mlp", "value": [0, 1]}]}, {"t": 0.5}], "t", "norm", 0)
    0.5
    """
    return next((value for scope in scopes if (value := _evaluate(scope.get(key), name, t)) is not None), None)


def _evaluate(setting: Any, name: str, t: float) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _number(setting)
    if setting and isinstance(setting[0], Mapping):
        fitting = (one for one in setting if one.get("filter") in (None, "*") or one["filter"] in name)
        return next((_evaluate(one["value"], name, t) for one in fitting), None)
    values = [*map(_number, setting)]
    if not values:
        return None
    if any(type(value) not in (int, float) for value in values):
        return values[int(t * (len(values) - 1))]
    place = t * (len(values) - 1)
    low = int(place)
    share = place - low
    return (1 - share) * values[low] + share * values[min(len(values) - 1, low + 1)]


def _number(value: Any) -> Any:
    """A text that is a number as that: YAML takes 1e-5 for a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
