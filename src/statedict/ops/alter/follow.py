"""What the optimizers of a tree keep for its parameters, after the parameters were renamed, reshaped or dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from statedict.errors import AlterError
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy, is_array
from statedict.tree.layout import Layout
from statedict.tree.optimizer import Linked, Shape, fits, leaves, map_leaves, number_keys
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import label
from statedict.values import Opaque

Make = Callable[..., LazyTensor]


class Build(NamedTuple):
    """How to make an entry."""

    sources: tuple[str, ...] = ()  # paths of the old tensors; none for a new entry
    make: Make = as_lazy  # makes the new tensor from the old ones
    value: Any = None  # a new entry

    def run(self, *tensors: LazyTensor) -> LazyTensor:
        """The new tensor from the old ones."""
        try:
            return self.make(*tensors)
        except AlterError as error:
            raise AlterError(f"{self.sources[0]}: {error}") from error


Outline = Mapping[str, str | Build]
"""New path → the old path of an entry that stays as it is, or how to make the entry; all but optimizers."""


@dataclass(frozen=True, slots=True)
class Use:
    """A new entry that an old tensor goes into."""

    path: str  # of the new entry
    sources: tuple[str, ...]  # the old tensors that it is made of
    make: Make | None  # None where it stays as it is
    rank: int  # its place among the new entries


Uses = Mapping[str, list[Use]]


def uses(outline: Outline) -> Uses:
    """First source → the entries made of it. A second name for a tensor is a tie, and no use."""
    found: dict[str, list[Use]] = {}
    for rank, (new, origin) in enumerate(outline.items()):
        if isinstance(origin, str):
            if origin not in found:
                found[origin] = [Use(new, (origin,), None, rank)]
        elif origin.sources:
            found.setdefault(origin.sources[0], []).append(Use(new, origin.sources, origin.run, rank))
    return found


def follow(path: str, state: Any, layout: Layout, used: Uses) -> StateDict:
    """An optimizer's state for the parameters of the new tree; as it is if its whole model is gone."""
    model = _find_model(path, state, layout, used)
    if model is None:
        return like(state, StateDict(state))
    base, owners = model
    below = base + "." if base else ""
    held: dict[Any, Any] = number_keys(state["state"], state["param_groups"])
    by_path = {owner: identifier for identifier, owner in owners.items()}
    order = {old: place for place, old in enumerate(layout.leaves)}
    same = all(len(used.get(p, ())) == 1 and len(used[p][0].sources) == 1 for p in by_path)
    states: dict[Any, Any] = StateDict()
    groups: list[Any] = []
    number = 0
    for group in state["param_groups"]:
        new_group = like(group, StateDict(group))
        identifiers, names = [], []
        members = [use for identifier in group["params"] for use in used.get(owners[identifier], ())]
        before = [order[use.sources[0]] for use in members]
        if before == sorted(before):  # in the model's order, and so they stay
            members.sort(key=lambda use: use.rank)
        for use in members:
            if any(source not in by_path for source in use.sources):
                raise AlterError(f"{path}: has moments of only some of {', '.join(use.sources)}; drop the optimizer")
            name = use.path.removeprefix(below)
            if type(group["params"][0]) is str:  # torch.distributed's state_dicts have names in the place of numbers
                key: Any = name
            else:
                key = by_path[use.sources[0]] if same else number
            number += 1
            identifiers.append(key)
            names.append(name)
            found = [held[by_path[source]] for source in use.sources if by_path[source] in held]
            if len(found) == len(use.sources):
                shapes = [as_lazy(layout.leaves[source]).shape for source in use.sources]
                at = f"{path}.state.{by_path[use.sources[0]]}"
                states[key] = _make_moments(found, shapes, use.make, at) if use.make else found[0]
        new_group["params"] = identifiers
        if isinstance(group.get("param_names"), list):
            new_group["param_names"] = names
        groups.append(new_group)
    rest = {identifier: entry for identifier, entry in held.items() if same and identifier not in owners}
    return like(state, StateDict(state | {"state": StateDict(states | rest), "param_groups": groups}))


def _find_model(path: str, state: Any, layout: Layout, used: Uses) -> Linked | None:
    """The model that an optimizer follows; None if nothing is done to any that it fits."""
    fitting = fits(state, layout)
    if not fitting:
        for touched in layout.tensors():
            if [use.make for use in used.get(touched, ())] != [None]:
                raise AlterError(
                    f"{path}: has no names of parameters, and neither their order nor their shapes tell which moments "
                    f"follow {touched!r}; drop the optimizer, or save it beside its model by statedict first"
                )
        return None
    alive = [model for model in fitting if any(used.get(owner) for owner in model[1].values())]
    if not alive:
        return None
    if any(_changes(model, used) != _changes(alive[0], used) for model in alive[1:]):
        models = " and ".join(repr(base) for base, _ in alive)
        raise AlterError(
            f"{path}: may belong to {models}, and they change differently; do the same to both, or drop one of them "
            "or the optimizer"
        )
    return alive[0]


def _changes(model: Linked, used: Uses) -> list[list[tuple[str, bool, int]]]:
    """What becomes of each parameter of a model, comparable with those of another model."""
    below = model[0] + "." if model[0] else ""
    return [
        [(use.path.removeprefix(below), use.make is None, len(use.sources)) for use in used.get(owner, ())]
        for owner in model[1].values()
    ]


def _make_moments(found: list[Any], shapes: list[Shape], make: Make, path: str) -> Any:
    """What is kept for a parameter, made as the parameter is, at any depth."""
    alike = [dict(leaves(entries)) for entries in found]

    def make_moment(keys: tuple[Any, ...], value: Any) -> Any:
        tensors = [as_lazy(entries[keys]) for entries in alike if is_array(entries.get(keys))]
        if keys[-1:] != ("step",) and [tensor.shape for tensor in tensors] == shapes:
            return make(*tensors)
        if isinstance(value, Opaque) or (is_array(value) and as_lazy(value).numel() > 1):
            at = ".".join([path, *map(label, keys)])
            what = f"an object of {value.name}" if isinstance(value, Opaque) else as_lazy(value).shape
            raise AlterError(f"{at}: {what} cannot follow its parameter; drop the optimizer")
        return with_own_storage(as_lazy(value)) if is_array(value) else value  # each counts its own steps

    return map_leaves(found[0], make_moment)


def with_own_storage(tensor: LazyTensor) -> LazyTensor:
    """A tensor that shares its bytes with no other: it is stored, and changes, by itself."""
    old = tensor.storage
    return tensor.replace(storage=Storage(old.source, old.offset, old.nbytes, old.device))
