"""What the optimizers of a tree keep for its parameters, after the parameters were renamed, reshaped or dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from statedict.errors import AlterError
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy, is_array
from statedict.tree.layout import Layout
from statedict.tree.optimizer import (
    FACTORED,
    Linked,
    find_bad_key,
    fits,
    is_count,
    is_global,
    leaves,
    map_leaves,
    number_keys,
)
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import label
from statedict.values import Opaque

Make = Callable[..., LazyTensor]

_FACTORED = frozenset(key for *keys, _ in FACTORED for key in keys)  # whatever shape they have


class Build(NamedTuple):
    """How to make an entry."""

    sources: tuple[str, ...] = ()  # paths of the old tensors; none for a new entry
    make: Make = as_lazy  # makes the new tensor from the old ones
    value: Any = None  # a new entry
    casts: bool = False  # only the dtype changes

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
    casts: bool = False


Uses = Mapping[str, list[Use]]


def uses(outline: Outline, layout: Layout) -> Uses:
    """Old tensor → the entries made of it. A second name for a tensor is a tie, and no use.

    A name that goes while another name of the same tensor in its dict stays goes on as that one.
    """
    found: dict[str, list[Use]] = {}
    for rank, (new, origin) in enumerate(outline.items()):
        if isinstance(origin, str):
            if origin not in found:
                found[origin] = [Use(new, (origin,), None, rank)]
        else:
            for source in dict.fromkeys(origin.sources):
                found.setdefault(source, []).append(Use(new, origin.sources, origin.run, rank, origin.casts))
    lost = [path for path, leaf in layout.leaves.items() if path not in found and is_array(leaf)]
    tensors = layout.tensors() if lost else {}
    heirs: dict[Any, list[Use]] = {}
    for path in (path for path in tensors if path in found):
        heirs.setdefault((layout.home[path], tensors[path].region), found[path])
    for path in lost:
        inherited = heirs.get((layout.home[path], tensors[path].region), ())
        found[path] = [replace(use, sources=(path,)) for use in inherited if len(use.sources) == 1]
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
    _check_joint(path, held, [used.get(owner, []) for owner in by_path], order)
    states: dict[Any, Any] = StateDict()
    groups: list[Any] = []
    number = 0
    for group in state["param_groups"]:
        new_group = like(group, StateDict(group))
        identifiers, names = [], []
        uses_of = [(owners[identifier], used.get(owners[identifier], ())) for identifier in group["params"]]
        for use in (use for _, some in uses_of for use in some if len(use.sources) > 1):
            _check_fused(path, use, {owner for owner, _ in uses_of}, by_path, held)
        members = [use for owner, some in uses_of for use in some if use.sources[0] == owner]
        before = [order[use.sources[0]] for use in members]
        if before == sorted(before):  # in the model's order, and so they stay
            members.sort(key=lambda use: use.rank)
        for use in members:
            name = use.path.removeprefix(below)
            if type(group["params"][0]) is str:  # torch.distributed's state_dicts have names in the place of numbers
                key: Any = name
            else:
                key = by_path[use.sources[0]] if same else number
            number += 1
            identifiers.append(key)
            names.append(name)
            found = [held[by_path[source]] for source in use.sources if by_path[source] in held]
            if found:
                at = f"{path}.state.{by_path[use.sources[0]]}"
                parameters = [as_lazy(layout.leaves[source]) for source in use.sources]
                apart = len(used[use.sources[0]]) > 1
                states[key] = _make_moments(found, parameters, use, apart, at) if use.make else found[0]
        new_group["params"] = identifiers
        if isinstance(group.get("param_names"), list):
            new_group["param_names"] = names
        groups.append(new_group)
    rest = {key: entry for key, entry in held.items() if key not in owners and (same or is_global(key, owners))}
    return like(state, StateDict(state | {"state": StateDict(states | rest), "param_groups": groups}))


def _check_joint(path: str, held: Mapping[Any, Any], changes: list[list[Use]], order: Mapping[str, int]) -> None:
    """Refuse changes to some parameters of `torch.optim.LBFGS`, which keeps vectors over all of them together."""
    if not any(isinstance(entries, dict) and {"func_evals", "n_iter"} <= entries.keys() for entries in held.values()):
        return
    members = [use for some in changes for use in some]
    before, after = [order[use.sources[0]] for use in members], [use.rank for use in members]
    stays = all(len(some) == 1 for some in changes) and (before != sorted(before) or after == sorted(after))
    if not stays or not (all(use.casts for use in members) or not any(use.make for use in members)):
        raise AlterError(f"{path}: keeps one state for all its parameters, and some of them change; drop the optimizer")


def _check_fused(path: str, use: Use, group: set[str], by_path: Mapping[str, Any], held: Mapping[Any, Any]) -> None:
    """Refuse to fuse parameters that an optimizer does not treat alike."""
    parts = ", ".join(use.sources)
    there = [source in by_path and by_path[source] in held for source in use.sources]
    if any(source not in by_path for source in use.sources) or len({*there}) > 1:
        raise AlterError(f"{path}: has moments of only some of {parts}; drop the optimizer")
    if not group.issuperset(use.sources):
        raise AlterError(f"{path}: {parts} are in different groups; drop the optimizer")


def _find_model(path: str, state: Any, layout: Layout, used: Uses) -> Linked | None:
    """The model that an optimizer follows; None if nothing is done to any that it fits."""
    fitting = fits(state, layout)
    if not fitting:
        for touched in layout.tensors():
            if [use.make for use in used.get(touched, ())] != [None]:
                if fault := find_bad_key(state["param_groups"]):
                    raise AlterError(f"{path}.{fault[0]}: {fault[1]}; fix it or drop the optimizer")
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


def _make_moments(found: list[Any], parameters: list[LazyTensor], use: Use, apart: bool, path: str) -> Any:
    """What is kept for a parameter, made as the parameter is, at any depth; `apart` if it goes to several."""
    assert use.make is not None
    make, new = use.make, use.make(*parameters).shape
    alike = [dict(leaves(entries)) for entries in found]
    grown = any(
        len(old.shape) != len(new) or any(one == 1 != size for one, size in zip(old.shape, new, strict=True))
        for old in parameters
    )

    def refuse(keys: tuple[Any, ...], why: str) -> AlterError:
        return AlterError(f"{'.'.join([path, *map(label, keys)])}: {why}; drop the optimizer")

    def make_moment(keys: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, Opaque):
            raise refuse(keys, f"an object of {value.name} cannot follow its parameter")
        values = [entries[keys] for entries in alike]
        if all(map(is_array, values)):
            tensors = [*map(as_lazy, values)]
            first, name = tensors[0], keys[-1] if keys else ""
            count = is_count(name, first)
            full = [tensor.shape for tensor in tensors] == [parameter.shape for parameter in parameters]
            if use.casts:
                fitting = full or first.numel() > 1 or name in _FACTORED
                if fitting and not count and first.dtype.kind in ("float", "complex"):
                    return make(first)
            elif full and not count and name not in _FACTORED:
                return make(*tensors)
            elif first.numel() > 1 or name in _FACTORED or (grown and first.ndim and not count):
                raise refuse(keys, f"{first.shape} cannot follow its parameter")
        if not all(is_same(value, other) for other in values[1:]):
            raise refuse(keys, f"differs between {', '.join(use.sources)}")
        return with_own_storage(as_lazy(value)) if apart and is_array(value) else value  # each counts its own steps

    for other in alike[1:]:
        for keys in alike[0].keys() ^ other.keys():
            raise refuse(keys, f"only some of {', '.join(use.sources)} have it")
    return map_leaves(found[0], make_moment)


def is_same(one: Any, other: Any) -> bool:
    """Whether two plain values, or the bytes of two small tensors, are the same."""
    if one is other:
        return True
    if is_array(one) and is_array(other):
        one, other = as_lazy(one), as_lazy(other)
        return one.dtype is other.dtype and one.shape == other.shape and bool(one.raw() == other.raw())
    return type(one) is type(other) and bool(one == other)


def with_own_storage(tensor: LazyTensor) -> LazyTensor:
    """A tensor that shares its bytes with no other: it is stored, and changes, by itself."""
    old = tensor.storage
    return tensor.replace(storage=Storage(old.source, old.offset, old.nbytes, old.device))
