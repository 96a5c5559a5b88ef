"""Which saved parameter of an optimizer is which live one.

By names, where the state has them, or by names that are inferred. A name means what the model beside the optimizer has
read it as, with its prefixes, renames, histories and ties; without a model names are compared, and without names the
order counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from statedict.adapters import join
from statedict.adapters.names import plain
from statedict.adapters.plan import Plan
from statedict.tree.optimizer import infer, names_of

Key = tuple[int, Any]
"""A saved parameter: the number of its group, and what identifies it there."""
UNKNOWN = object()


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
            f"the state has groups of {_sizes(saved)} parameters without names, the target of {_sizes(live)}, and "
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


def _sizes(groups: Sequence[Any]) -> list[int]:
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
    if _sizes(live) != _sizes(saved):
        plan.problem(
            "groups",
            join(path, "param_groups"),
            f"the state has groups of {_sizes(saved)} parameters, the target of {_sizes(live)}, and not both have "
            "names to go by; restore it together with its model, from a checkpoint that has param_names, or build it "
            "alike",
        )
        return None
    found = dict(zip(map(id, parameters_of(live)), keys_of(saved), strict=True))
    return Match(found, "inferred by position, for names are missing", {})
