"""The layers of a model, found from its names, and models with some layers of others.

    model.layers.12.mlp.up_proj.weight
    the stack    12 the layer

The first number in a name counts the layers of a stack, if numbers run from 0 without a gap. What lies outside goes in
front (embeddings) or behind (norm and head).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from statedict.errors import CombineError
from statedict.ops.combine.methods import METHODS, REQUIRED
from statedict.ops.combine.modules import split_modules
from statedict.ops.combine.recipe import Module, Recipe, Slice
from statedict.ops.combine.settings import resolve
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.state_dict import StateDict

_FRONT = re.compile(r"emb|wte|wpe|patch|(^|\.)conv\d|(^|[._])pre_(ln|norm|lay)|(ln|norm)_pre")  # of texts and images
_BEHIND = re.compile(r"embed_out")  # the head of GPT-NeoX


def find_stacks(names: Iterable[str], counts: Collection[int] = ()) -> dict[str, int]:
    """The stacks of layers in a model: what their names begin with → how many layers.

    Args:
        names: of the tensors.
        counts: the numbers of layers that the configuration names; if no stack has one, the one with most tensors.

    >>> find_stacks(["embed", "layers.0.w", "layers.0.experts.0.w", "layers.1.w", "head.0.w"])
    {'layers': 2}
    """
    found: dict[str, dict[int, int]] = {}
    for name in names:
        keys = name.split(".")
        at = next((place for place, key in enumerate(keys) if key.isdecimal()), 0)
        if at:
            layers = found.setdefault(".".join(keys[:at]), {})
            layers[int(keys[at])] = layers.get(int(keys[at]), 0) + 1
    whole = {stack: layers for stack, layers in found.items() if {*layers} == {*range(len(layers))}}
    named = {stack: len(layers) for stack, layers in whole.items() if len(layers) in counts}
    if named:
        return named
    most = max(whole, key=lambda stack: sum(whole[stack].values()), default=None)
    return {} if most is None else {most: len(whole[most])}


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a recipe: its tensors by name, and its stacks of layers."""

    tensors: StateDict
    stacks: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Part:
    """What is merged together: a state of each source, the base first if there is one, and the parameters of a name."""

    names: tuple[str, ...]
    states: tuple[StateDict, ...]
    based: bool
    parameters: Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the result comes from: its name in each source, and t."""

    names: tuple[str, ...]
    t: float


def cut(recipe: Recipe, models: Mapping[str, Model]) -> tuple[list[Part], list[str]]:
    """The parts of a merge, and the tensors that belong to no module; those of several slices have new numbers.

    Raises:
        CombineError: a model has no such layers or modules.
    """
    if not recipe.modules[0].name:
        return _cut_module(recipe.method, recipe.modules[0], models), []
    parts: list[Part] = []
    taken: set[str] = set()
    for module in recipe.modules:
        some = {name: select_module(recipe, module, model) for name, model in models.items()}
        taken |= {*some[recipe.donor()].tensors}
        parts += _cut_module(recipe.method, module, some)
    return parts, [name for name in models[recipe.donor()].tensors if name not in taken]


def select_module(recipe: Recipe, module: Module, model: Model) -> Model:
    """The part of a model that a module of a recipe is."""
    titles = [one.name for one in recipe.modules]
    return _select(model, split_modules(titles, model.tensors)[module.name]) if module.name else model


def _select(model: Model, names: Sequence[str]) -> Model:
    """The part of a model that has these tensors."""
    tensors = StateDict({name: model.tensors[name] for name in names})
    stacks = {
        stack: count for stack, count in model.stacks.items() if any(name.startswith(f"{stack}.") for name in names)
    }
    return Model(tensors, stacks or find_stacks(names))


def _cut_module(method: str, module: Module, models: Mapping[str, Model]) -> list[Part]:
    alone = len(module.slices) == 1 and all(source.layers is None for source in module.slices[0].sources)
    if alone:
        (whole,) = module.slices
        states = [dict(models[source.model].tensors) for source in whole.sources]
        places = {
            name: _Place((name,) * len(states), _find_t(name, models[whole.sources[0].model])) for name in states[0]
        }
        return [_make_part(method, whole, states, places)]
    parts, offset = [], 0
    stack = _find_stack(module, models)
    for number, one in enumerate(module.slices):
        begin, end = one.sources[0].layers or (0, 0)
        states, places = _take(one, models, stack, offset, (number == 0, number == len(module.slices) - 1))
        parts.append(_make_part(method, one, states, places))
        offset += end - begin
    return parts


def _find_t(name: str, model: Model) -> float:
    for stack, count in model.stacks.items():
        if name.startswith(f"{stack}.") and name[len(stack) + 1 :].partition(".")[0].isdecimal():
            return _share(int(name[len(stack) + 1 :].partition(".")[0]), count)
    return 0.0


def _share(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 1.0


def _find_stack(module: Module, models: Mapping[str, Model]) -> str:
    """The stack that slices are cut from."""
    stacks = set()
    for source in (source for one in module.slices for source in one.sources):
        found = models[source.model].stacks
        if len(found) != 1:
            which = ", ".join(f"{stack} ({count:,})" for stack, count in found.items()) or "none"
            raise CombineError(f"{source.model}: slices need one stack of layers, and it has {which}")
        stack, count = next(iter(found.items()))
        if source.layers and source.layers[1] > count:
            raise CombineError(f"{source.model}: layer_range {[*source.layers]}: {stack} has {count:,} layers")
        stacks.add(stack)
    if len(stacks) > 1:
        raise CombineError(
            f"slices take layers of one name, got {', '.join(sorted(stacks))}; rename them by edit first"
        )
    return stacks.pop()


def _take(
    one: Slice, models: Mapping[str, Model], stack: str, offset: int, ends: tuple[bool, bool]
) -> tuple[list[dict[str, Any]], dict[str, _Place]]:
    """The tensors that each source gives to a slice by their new names, and where they come from."""
    states, origins = [], []
    for source in one.sources:
        tensors = models[source.model].tensors
        begin, end = source.layers or (0, 0)
        front = {name for name in tensors if _FRONT.search(name) and not _BEHIND.search(name)}
        shared = {as_lazy(tensors[name]).region for name in front if is_array(tensors[name])}
        origin: dict[str, str] = {}
        for name, tensor in tensors.items():
            number, _, rest = name[len(stack) + 1 :].partition(".")
            if name.startswith(f"{stack}.") and number.isdecimal():
                if begin <= int(number) < end:
                    origin[f"{stack}.{int(number) - begin + offset}.{rest}"] = name
            elif ends[name not in front and not (is_array(tensor) and as_lazy(tensor).region in shared)]:
                origin[name] = name
        states.append({new: tensors[name] for new, name in origin.items()})
        origins.append(origin)
    begin, end = one.sources[0].layers or (0, 0)
    places = {}
    for name in origins[0]:
        number = name[len(stack) + 1 :].partition(".")[0]
        inside = name.startswith(f"{stack}.") and number.isdecimal()
        t = _share(int(number) - offset, end - begin) if inside else 0.0
        places[name] = _Place(tuple(origin.get(name, name) for origin in origins), t)
    return states, places


def _make_part(method: str, one: Slice, states: Sequence[Mapping[str, Any]], places: dict[str, _Place]) -> Part:
    order = [number for number in range(len(states)) if number != one.base]
    order = order if one.base is None else [one.base, *order]
    based = one.base is not None
    return Part(
        tuple(one.sources[number].model for number in order),
        tuple(StateDict(states[number]) for number in order),
        based,
        partial(_resolve, method, one, order[based:], places),
    )


def _resolve(method: str, one: Slice, order: Sequence[int], places: Mapping[str, _Place], path: str) -> dict[str, Any]:
    """The parameters of a tensor."""
    place, chosen = places[path], METHODS[method]
    found: dict[str, Any] = {}
    for key, default in chosen.each.items():
        values = []
        for number in order:
            source = one.sources[number]
            value = resolve((source.parameters, *one.scopes), key, place.names[number], place.t)
            if value is None and (key == "weight" or default is REQUIRED):
                raise CombineError(f"{method}: needs the parameter {key!r} of {source.model} for {path}")
            values.append(default if value is None else value)
        found[key] = values
    for key in chosen.whole:
        value = resolve(one.scopes, key, path, place.t)
        if value is not None:
            found[key] = _convert(value, chosen.whole[key])
    return found


def _convert(value: Any, default: Any) -> Any:
    """A value as its parameter wants it, as far as YAML does not tell: 1 is true, and 10.0 a whole number."""
    if type(default) is bool:
        return {0: False, 1: True, "false": False, "true": True}.get(
            value.lower() if type(value) is str else value, value
        )
    return int(value) if type(default) is int and type(value) is float and value.is_integer() else value
