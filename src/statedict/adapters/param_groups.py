"""The groups of an optimizer: which saved parameter is which live one, and what becomes of the hyperparameters.

Parameters go by names, where the state has them, or by names that are inferred. A name means what the model beside the
optimizer has read it as, with its prefixes, renames, histories and ties; without a model names are compared, and
without names the order counts. Hyperparameters are the state's or what the caller wants instead, reported one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from statedict.adapters import join
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import Plan
from statedict.tensor.lazy import is_array
from statedict.tree.optimizer import infer, names_of
from statedict.tree.roles import plain

Key = tuple[int, Any]
"""A saved parameter: the number of its group, and what identifies it there."""
UNKNOWN = object()
WHOSE = ("params", "param_names")
_ADDED = frozenset((
    "foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay",
    "amsgrad", "nesterov", "momentum", "centered",
))  # fmt: skip
"""The hyperparameters that came with releases of PyTorch, which fill them in where a state is older."""
_OF_A_SCHEDULER = frozenset((
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr",
))  # fmt: skip


@dataclass(slots=True)
class Match:
    """Which live parameter takes which saved one."""

    keys: dict[int, Key]  # by the id of the live one
    detail: str  # for the entry of each in the report
    names: dict[Key, str]  # of the saved parameters that have one


def live_names(group: Any, names: dict[int, str]) -> list[str] | None:
    """The names of a live group's parameters, None unless all are known."""
    if "param_names" in group:
        return list(group["param_names"])
    known = [names[id(parameter)] for parameter in group["params"] if id(parameter) in names]
    return known if len(known) == len(group["params"]) else None


def match(live: Sequence[Any], saved: Sequence[Any], entries: Any, plan: Plan, path: str) -> Match | None:
    """Match the parameters of live and saved groups; None where that cannot be told, which is then a problem.

    `entries` is what the state keeps for each parameter. All modules have planned before.
    """
    mine = parameters_of(live)
    homes = [*dict.fromkeys(plan.homes[id(parameter)] for parameter in mine if id(parameter) in plan.homes)]
    grouped = names_of(saved)
    if grouped is not None:
        return _match_names(live, saved, _name_keys(saved, grouped), homes, plan, path)
    then = {}
    if homes and all(id(parameter) in plan.homes for parameter in mine):
        above = tuple(home + "." if home else "" for home in homes)
        then = {place: shape for place, (_, shape) in plan.shapes.items() if place.startswith(above)}
    if not then:
        return _match_positions(live, saved, plan, path)
    at = {owner: place for place, owner in reversed(plan.owners.items()) if owner is not None}
    places = [[at.get(id(p), f"new {n}") for n, p in enumerate(group["params"])] for group in live]
    now = [at.get(identity, f"new {identity}") for identity, home in plan.homes.items() if home in homes]
    guess = infer(saved, entries, places, then, now)
    if guess is None:
        plan.problem(
            "groups",
            join(path, "param_groups"),
            f"the state has groups of {sizes_of(saved)} parameters without names, the target of {sizes_of(live)}, and "
            "neither their order nor their shapes tell which is which; restore from a checkpoint that has param_names, "
            "or the optimizer alone, which goes by position",
        )
        return None
    by_name = _name_keys(saved, guess)
    ids = {id(parameter) for parameter in mine}
    found = {owner: key for key, name in by_name.items() if (owner := plan.owners.get(name)) in ids}
    short = {
        key: next((name.removeprefix(home + ".") for home in homes if name.startswith(home + ".")), name)
        for key, name in by_name.items()
    }
    return Match(found, "its name is inferred from order and shapes", short)


def parameters_of(groups: Sequence[Any]) -> list[Any]:
    """The parameters of live groups, or what identifies those of saved ones."""
    return [parameter for group in groups for parameter in group["params"]]


def keys_of(saved: Sequence[Any]) -> list[Key]:
    """The saved parameters."""
    return [(number, identifier) for number, group in enumerate(saved) for identifier in group["params"]]


def _name_keys(saved: Sequence[Any], names: Sequence[Sequence[str]]) -> dict[Key, str]:
    return dict(zip(keys_of(saved), chain.from_iterable(names), strict=True))


def sizes_of(groups: Sequence[Any]) -> list[int]:
    """How many parameters each group has."""
    return [len(group["params"]) for group in groups]


def _match_names(
    live: Sequence[Any], saved: Sequence[Any], by_name: dict[Key, str], homes: Sequence[str], plan: Plan, path: str
) -> Match | None:
    """By the names in the state: those that the caller gave, those that the models know, or those most alike."""
    mine = parameters_of(live)
    own = [name for group in live for name in group.get("param_names", [])]
    from_model = all(
        plan.names.get(id(parameter)) in (name, join(plan.homes.get(id(parameter), ""), name))
        for name, parameter in zip(own, mine, strict=False)
    )
    if len(own) == len(mine) and {*own} == {*by_name.values()} and not from_model:
        keyed = {name: key for key, name in by_name.items()}
        return Match({id(p): keyed[name] for name, p in zip(own, mine, strict=True)}, "", by_name)
    owners = {key: find_owner(name, homes, plan) for key, name in by_name.items()}
    if any(owner is not UNKNOWN for owner in owners.values()):
        ids = {id(parameter) for parameter in mine}
        return Match({owner: key for key, owner in owners.items() if owner in ids}, "", by_name)
    grouped = [live_names(group, plan.names) for group in live]
    if None in grouped:
        return _match_positions(live, saved, plan, path)
    names = (name for group in grouped for name in group or ())
    ours = {name: id(parameter) for name, parameter in zip(names, mine, strict=True)}
    theirs = {plan.rules(name) if plan.rules else name: key for key, name in by_name.items()}
    reading = plan.align(ours, theirs, join(path, "param_names"))
    if reading is None:
        return None
    return Match({ours[name]: theirs[there] for name, there in reading.pairs.items()}, "", by_name)


def find_owner(name: str, homes: Iterable[str], plan: Plan) -> Any:
    """The id of the live parameter that a name of the state means, None if the caller lets it go, or `UNKNOWN`."""
    for owners, short in ((plan.owners, name), (plan.plain_owners, plain(name))):
        for above in ("", *homes):
            owner = owners.get(join(above, short), UNKNOWN)
            if owner is not UNKNOWN:
                return owner
    return UNKNOWN


def _match_positions(live: Sequence[Any], saved: Sequence[Any], plan: Plan, path: str) -> Match | None:
    if sizes_of(live) != sizes_of(saved):
        plan.problem(
            "groups",
            join(path, "param_groups"),
            f"the state has groups of {sizes_of(saved)} parameters, the target of {sizes_of(live)}, and not both have "
            "names to go by; restore it together with its model, from a checkpoint that has param_names, or build it "
            "alike",
        )
        return None
    found = dict(zip(map(id, parameters_of(live)), keys_of(saved), strict=True))
    return Match(found, "inferred by position, for names are missing", {})


# hyperparameters


def merge(live: Mapping[str, Any], saved: Mapping[str, Any], defaults: Any, plan: Plan, path: str) -> dict[str, Any]:
    """The saved hyperparameters of a group, under the live group's names.

    Their set differs between releases of PyTorch and with a scheduler, which is reported and no error; any other
    difference means an optimizer of another class.
    """
    hyper = {key: value for key, value in saved.items() if key not in WHOSE}
    # Adam has amsgrad for longer than any optimizer has maximize: a state with maximize alone is another's
    added = _ADDED - {"amsgrad"} if "maximize" in hyper else _ADDED
    for key, before in live.items():
        full = join(path, key)
        if key in WHOSE:
            continue
        if key in saved:
            hyper[key] = _merge_one(before, hyper[key], key, plan, full)
            continue
        if key in defaults and key not in added:
            plan.problem("missing", full, "the state is another optimizer's, it has no such hyperparameter")
        else:
            plan.note("missing", full, "the state has none, the target's stays")
        hyper[key] = plan.override(full, before, key)
    for key in [key for key in hyper if key not in live]:
        full = join(path, key)
        plan.settle_entry(hyper, key, None, full)
        if key not in hyper:
            continue
        known = key in _hyperparameters()
        if known and key not in _OF_A_SCHEDULER | added:
            plan.problem("unexpected", full, "the state is another optimizer's, the target has no such hyperparameter")
            continue
        hyper[key] = plan.override(full, hyper[key], key)
        whose = "the target had none, as with what a scheduler adds" if known else "of the caller's own"
        plan.note("unexpected", full, f"{whose}; it is taken over")
    if "param_names" in live:
        hyper["param_names"] = live["param_names"]
    return hyper


def _merge_one(before: Any, saved: Any, key: str, plan: Plan, path: str) -> Any:
    """A hyperparameter that both sides have, reported."""
    wanted = plan.override(path, saved, key)
    if wanted is not saved:
        plan.note("overridden", path, f"{_short(saved)} of the state by {_short(wanted)}")
        return _convert_like(saved, wanted)
    wanted = plan.settle(saved, before, path)
    if wanted is DROPPED:
        return before
    if type(before) in (bool, int, float) and isinstance(wanted, str):  # it may name a member of an enumeration
        remedy = f"pass override={{{path!r}: …}} with a value for it"
        plan.problem("kind", path, f"the target has {_short(before)}, the state {_short(wanted)}; {remedy}")
    changed = differ(before, wanted)
    plan.note("restored", path, f"{_short(before)} → {_short(wanted)}" if changed else "")
    return wanted


def differ(one: Any, other: Any) -> bool:
    """Whether two hyperparameters differ; tensors are not compared, in containers either."""
    try:
        return not (is_array(one) or is_array(other)) and bool(one != other)
    except (RuntimeError, ValueError):  # of several elements
        return False


@cache
def _hyperparameters() -> frozenset[str]:
    """What optimizers and schedulers of PyTorch put into groups; anything else is the caller's."""
    import torch

    kinds = (kind for kind in vars(torch.optim).values() if isinstance(kind, type))
    found = (inspect.signature(kind).parameters for kind in kinds if issubclass(kind, torch.optim.Optimizer))
    return _OF_A_SCHEDULER.union(*found)


def _short(value: Any) -> str:
    return f"{value!r:.40}"


def _convert_like(value: Any, wanted: Any) -> Any:
    """What the caller wants, of the kind that the state has: a tensor, such as a learning rate may be, or a tuple."""
    if isinstance(value, tuple) and isinstance(wanted, list):
        return tuple(wanted)
    if not is_array(value) or is_array(wanted):
        return wanted
    import torch

    return torch.full(value.shape, wanted, dtype=getattr(value.dtype, "torch", value.dtype))
