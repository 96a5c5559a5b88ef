"""Layers, models and optimizers of Keras 3, with any backend: their variables, by the names of their layers.

The tree is that of Keras's files (formats/hdf5/keras.py): `encoder.kernel`, `optimizer.momentum.encoder.kernel`; a
compiled model has its optimizer. Beside them, there are the states of seed generators, which Keras does not save.

A layer is found by its name. Of one that Keras named, `dense_3`, the number is how many there were in that process, so
if the state says which group of a file each layer was, such a layer is found by that. Where a file only numbers
variables, they are taken in their order. The report says so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from statedict.adapters import Capture, join
from statedict.adapters.plan import MISSING, UNEXPECTED, Plan
from statedict.adapters.shapes import Fit
from statedict.dtypes import dtype
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.keras import OPTIMIZER, SEED, label_layers, read_rows, split_number, walk_keys, write_rows
from statedict.tree.state_dict import StateDict
from statedict.values import abbreviate

if TYPE_CHECKING:
    from statedict.tree.keras import Row

STAGE = 0
_FIRST = 2  # variables of an optimizer that took no step: how many it took, and the learning rate


class Entry(NamedTuple):
    """A variable: the path of its layer, its own in that, its path in the state by name and by number, its group."""

    home: tuple[str, ...]
    name: tuple[str, ...]
    wanted: tuple[str, ...]
    numbered: tuple[str, ...]
    group: str
    variable: Any

    @property
    def keys(self) -> tuple[str, ...]:
        """Its path."""
        return self.home + self.name


class Place(NamedTuple):
    """Where a layer is: its group in a file, its path in the tree, and in the state."""

    group: str
    labels: tuple[str, ...]
    wanted: tuple[str, ...]


def accepts(value: Any) -> bool:
    """Whether it is a layer, a model or an optimizer."""
    keras: Any = sys.modules["keras"]
    return hasattr(keras, "KerasTensor") and isinstance(value, keras.layers.Layer | keras.optimizers.Optimizer)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its variables, live."""
    tree = StateDict()
    entries = list_entries(value, {})
    for entry in entries:
        inner: Any = tree
        for key in entry.keys[:-1]:
            inner = inner.setdefault(key, StateDict())
        inner[entry.keys[-1]] = context.convert(_array(entry.variable), join(path, ".".join(entry.keys)))
    if not isinstance(value, _optimizers()):
        tree.metadata = write_rows(_list_rows(value, entries))
    return tree


def _list_rows(value: Any, entries: list[Entry]) -> Iterator[Row]:
    """The groups of a file that Keras would write, as the metadata of a tree tell them."""
    names: dict[str, dict[str, str]] = {}
    for entry in entries:
        if not entry.name[-1].startswith(SEED):
            names.setdefault(entry.group, {})["/".join(entry.name)] = entry.numbered[-1]
    for layer, place in _list_places(value, Place("", (), ()), {}, set()):
        yield [*place.labels], place.group, layer.name, names.get(place.group, {})
    home = next((entry.home for entry in entries if entry.group == OPTIMIZER), None)
    if home is not None:
        yield [*home], OPTIMIZER, value.optimizer.name, names[OPTIMIZER]


def _optimizers() -> Any:
    return sys.modules["keras"].optimizers.Optimizer


def _array(variable: Any) -> Any:
    """What a variable holds, as a tensor of PyTorch or an array of NumPy."""
    value = variable.value
    if hasattr(value, "detach"):
        return value.detach()
    import numpy

    return numpy.asarray(value)


def list_entries(value: Any, groups: dict[str, tuple[str, ...]], build: bool = False) -> list[Entry]:
    """The variables of an object.

    `groups` are the paths of layers in the state, by their groups in a file. `build` lets an optimizer that has taken
    no step make its variables, which are zeros.
    """
    if isinstance(value, _optimizers()):
        return [*_list_optimizer(value, {}, (), ())]
    places = [*_list_places(value, Place("", (), ()), groups, set())]
    entries = [entry for layer, place in places for entry in _list_layer(layer, place)]
    optimizer = getattr(value, "optimizer", None)
    if isinstance(optimizer, _optimizers()):
        if build and not optimizer.built:
            optimizer.build(value.trainable_variables)
        label = OPTIMIZER if all(entry.keys[0] != OPTIMIZER for entry in entries) else f"{OPTIMIZER}/vars"
        owners = {id(entry.variable): entry for entry in entries}
        entries += _list_optimizer(optimizer, owners, (label,), groups.get(OPTIMIZER, (label,)))
    return entries


def _list_layer(layer: Any, place: Place) -> Iterator[Entry]:
    """The variables of a layer itself, in the order in which Keras saves them."""
    variables = [*layer._trainable_variables, *layer._non_trainable_variables]
    names = zip(_name(variables), map(str, range(len(variables))), variables, strict=True)
    seeds = [generator.state for generator in getattr(layer, "_seed_generators", ())]
    called = [f"{SEED}_{index}" if index else SEED for index in range(len(seeds))]
    for name, number, variable in (*names, *zip(called, called, seeds, strict=True)):
        yield Entry(place.labels, (name,), (*place.wanted, name), (*place.wanted, number), place.group, variable)


def _list_places(
    layer: Any, place: Place, groups: dict[str, tuple[str, ...]], seen: set[int]
) -> Iterator[tuple[Any, Place]]:
    """A layer and those in it, and where each is, in the order in which Keras saves them."""
    seen.add(id(layer))
    yield layer, place
    below = [*_list_layers(layer, place.group, seen)]
    own = [variable.name for variable in (*layer._trainable_variables, *layer._non_trainable_variables)]
    names = label_layers(place.group, [(child.name, group) for child, group in below], own)
    for (child, group), name in zip(below, names, strict=True):
        wanted, base = groups.get(group, ()), split_number(name)[0]
        if not wanted or base != _snake_case(child) or split_number(wanted[-1])[0] != base:
            wanted = (*place.wanted, name)  # the user named it
        yield from _list_places(child, Place(group, (*place.labels, name), wanted), groups, seen)


def _name(variables: list[Any]) -> list[str]:
    counts = Counter(variable.name for variable in variables)
    return [v.name if counts[v.name] == 1 else str(index) for index, v in enumerate(variables)]


def _snake_case(layer: Any) -> str:
    from keras.src.utils.naming import to_snake_case

    return str(to_snake_case(type(layer).__name__))


def _list_layers(layer: Any, group: str, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """The layers in a layer, and the groups in which Keras saves them."""
    from keras.src.saving.saving_lib import _walk_saveable

    for attribute, child in _walk_saveable(layer):
        yield from _list_children(child, f"{group}/{attribute}" if group else attribute, seen, {})


def _list_children(child: Any, group: str, seen: set[int], lists: dict[int, Any]) -> Iterator[tuple[Any, str]]:
    """A layer, or the layers in a list, unless it was seen before."""
    keras: Any = sys.modules["keras"]
    if isinstance(child, keras.layers.Layer):
        if id(child) not in seen:
            seen.add(id(child))
            yield child, group
    elif isinstance(child, list | tuple | dict) and id(child) not in lists:
        lists[id(child)] = child
        used: Counter[str] = Counter()
        for item in [*child.values()] if isinstance(child, dict) else child:
            is_list = isinstance(item, list | tuple | dict)
            if is_list or hasattr(item, "_obj_type"):
                base = "container" if is_list else _snake_case(item)
                name = f"{base}_{used[base]}" if used[base] else base
                used[base] += 1
                yield from _list_children(item, f"{group}/{name}", seen, lists)


def _list_optimizer(
    optimizer: Any, owners: dict[int, Entry], labels: tuple[str, ...], wanted: tuple[str, ...]
) -> Iterator[Entry]:
    """The variables of an optimizer; those of a parameter are called as that is."""
    parameters: dict[str, list[Any]] = {}
    for parameter in getattr(optimizer, "_trainable_variables", ()):
        parameters.setdefault(parameter.path.replace("/", "_"), []).append(parameter)
    used: Counter[tuple[str, str]] = Counter()
    known: set[tuple[str, ...]] = set()
    for index, variable in enumerate(optimizer.variables):
        numbered, name = (*wanted, str(index)), variable.name
        base = max((one for one in parameters if name.startswith(f"{one}_")), key=len, default="")
        keys = theirs = (name,)
        if base:
            slot = name[len(base) + 1 :]
            parameter = parameters[base][min(used[base, slot], len(parameters[base]) - 1)]
            used[base, slot] += 1
            owner = owners.get(id(parameter))
            path = tuple(parameter.path.split("/"))
            keys, theirs = (slot, *(owner.keys if owner else path)), (slot, *(owner.wanted if owner else path))
        if keys in known:
            keys = theirs = (str(index),)
        known.add(keys)
        yield Entry(labels, keys, (*wanted, *theirs), numbered, OPTIMIZER, variable)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare names, shapes and dtypes; then fill the variables."""
    if not isinstance(state, dict):
        plan.problem("kind", path, f"a {type(value).__name__} is restored from a dict, not a {type(state).__name__}")
        return
    groups = {group: tuple(labels) for labels, group, _, _ in read_rows(state)}
    entries = list_entries(value, groups, build=len(state.get(OPTIMIZER, ())) > _FIRST)
    given = {tuple(map(str, keys)): leaf for keys, leaf in walk_keys(state)}
    seeds = any(keys[-1].startswith(SEED) for keys in given)
    pairs: list[tuple[Any, Any, Fit | None]] = []
    placed, numbered = list[str](), list[str]()
    for entry in entries:
        full = join(path, ".".join(entry.keys))
        key = next((one for one in (entry.wanted, entry.numbered) if one in given), None)
        if key is None:
            if entry.name[-1].startswith(SEED) and not seeds:
                plan.note("missing", full, "Keras's files do not have it; it stays as it is")
            else:
                plan.problem("missing", full, MISSING)
            continue
        numbered += [full] if key != entry.wanted else []
        placed += [full] if entry.wanted != entry.keys else []
        leaf = given.pop(key)
        wanted = plan.override(full, leaf, entry.name[-1])
        if wanted is not leaf:
            plan.note("overridden", full, f"by {wanted!r:.40}")
            pairs.append((entry.variable, wanted, None))
        elif not is_array(leaf):
            plan.mismatch(full, _array(entry.variable), leaf)
        else:
            pairs += _compare(entry.variable, as_lazy(leaf), plan, full)
    for keys in given:
        plan.problem("unexpected", join(path, ".".join(keys)), UNEXPECTED)
    if numbered:
        plan.notes.append(
            f"{len(numbered):,} variables that the state numbers are taken in order: {abbreviate(numbered)}"
        )
    if placed:
        what = "variables of layers that Keras named are found by their place in the model, not by its number"
        plan.notes.append(f"{len(placed):,} {what}: {abbreviate(placed)}")
    plan.actions.append((path, lambda: _fill(pairs)))


def _compare(variable: Any, tensor: LazyTensor, plan: Plan, path: str) -> list[tuple[Any, Any, Fit | None]]:
    """What to put into a variable: nothing if it does not fit."""
    fit = plan.tensor(tuple(variable.shape), dtype(variable.dtype), tensor, path)
    if fit is False or (fit is not True and fit.policy == "skip"):
        return []
    return [(variable, tensor, None if fit is True else fit)]


def _fill(pairs: list[tuple[Any, Any, Fit | None]]) -> None:
    """Fill variables: those of PyTorch in place, others by their own `assign`."""
    direct: list[tuple[LazyTensor, Any]] = []
    for variable, value, fit in pairs:
        live = _array(variable)
        if fit is not None:
            import torch

            base = torch.as_tensor(live) if fit.policy == "overlap" else None
            value = as_lazy(fit.apply(value, base=base))
        if not isinstance(value, LazyTensor):
            variable.assign(value)
        elif hasattr(live, "detach"):
            direct.append((value, live))
        else:
            variable.assign(value.numpy(copy=True))
    if direct:
        from statedict.adapters.torch_transfer import transfer

        transfer(direct)
