"""Which saved parameter of an optimizer is which live one.

By names, where the state has them, or by names that are inferred. A name means what the model beside the optimizer has
read it as, with its prefixes, renames, histories and ties; without a model names are compared, and without names the
order counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.adapters import join
from statedict.adapters.names import plain
from statedict.adapters.plan import Plan
from statedict.tree.optimizer import infer, is_global, names_of
from statedict.tree.walk import matches

Key = tuple[int, Any]
"""A saved parameter: the number of its group, and what identifies it there."""
_UNKNOWN = object()


@dataclass(slots=True)
class Match:
    """What goes together.

    Attributes:
        found: id of a live parameter → the saved one that it takes.
        detail: what to say of each.
        names: saved parameter → its name, for those that have one.
    """

    found: dict[int, Key]
    detail: str
    names: dict[Key, str]


def match(live: Sequence[Any], saved: Sequence[Any], entries: Any, plan: Plan, path: str) -> Match | None:
    """Match parameters by name or position; None where that cannot be told, which is then a problem of the plan.

    Args:
        live: the groups of the live optimizer.
        saved: those of the state.
        entries: what the state keeps for each parameter.
        plan: the plan, in which the modules have been.
        path: the optimizer's.
    """
    keys = [(number, identifier) for number, group in enumerate(saved) for identifier in group["params"]]
    mine = [parameter for group in live for parameter in group["params"]]
    grouped = names_of(saved)
    homes = [*dict.fromkeys(plan.homes[id(parameter)] for parameter in mine if id(parameter) in plan.homes)]
    if grouped is not None:
        labels = [name for names in grouped for name in names]
        by_name = dict(zip(keys, labels, strict=True))
        own = [name for group in live for name in group.get("param_names", [])]
        if len(own) == len(mine) and {*own} == {*labels} and not _are_the_model_s(own, mine, plan):
            keyed = {name: key for key, name in by_name.items()}
            return Match({id(p): keyed[name] for name, p in zip(own, mine, strict=True)}, "", by_name)
        owners = {key: _owner(name, homes, plan) for key, name in by_name.items()}
        if any(owner is not _UNKNOWN for owner in owners.values()):
            ids = {id(parameter) for parameter in mine}
            return Match({owner: key for key, owner in owners.items() if owner in ids}, "", by_name)
        return _by_alignment(live, saved, by_name, plan, path)
    if not homes or any(id(parameter) not in plan.homes for parameter in mine):
        return _by_position(live, saved, plan, path)
    at = {owner: place for place, owner in reversed(plan.owners.items()) if owner is not None}
    above = tuple(home + "." if home else "" for home in homes)
    then = {place: shape for place, (_, shape) in plan.shapes.items() if place.startswith(above)}
    names = [[at.get(id(p), f"new {n}") for n, p in enumerate(group["params"])] for group in live]
    now = [at.get(identity, f"new {identity}") for identity, home in plan.homes.items() if home in homes]
    guess = infer(saved, entries, names, then, now) if then else None
    if guess is None:
        if not then:
            return _by_position(live, saved, plan, path)
        counts = [[len(group["params"]) for group in groups] for groups in (saved, live)]
        plan.problem(
            "groups",
            join(path, "param_groups"),
            f"the state has groups of {counts[0]} parameters without names, the target of {counts[1]}, and neither "
            "their order nor their shapes tell which is which; restore from a checkpoint that has param_names, or the "
            "optimizer alone, which goes by position",
        )
        return None
    by_name = dict(zip(keys, (name for group in guess for name in group), strict=True))
    ids = {id(parameter) for parameter in mine}
    found = {owner: key for key, name in by_name.items() if (owner := plan.owners.get(name)) in ids}
    short = {key: _inside(name, homes) for key, name in by_name.items()}
    return Match(found, "its name is inferred from order and shapes", short)


def _are_the_model_s(names: Sequence[str], parameters: Sequence[Any], plan: Plan) -> bool:
    """Whether a live optimizer calls its parameters what their model does; else the names are the caller's own."""
    return all(
        plan.names.get(id(parameter)) in (name, join(plan.homes.get(id(parameter), ""), name))
        for name, parameter in zip(names, parameters, strict=True)
    )


def _inside(path: str, homes: Sequence[str]) -> str:
    """The name of a parameter in its model."""
    return next((path.removeprefix(home + ".") for home in homes if path.startswith(home + ".")), path)


def live_names(group: Any, plan_names: dict[int, str]) -> list[str] | None:
    """The names of a live group's parameters, None unless all are known."""
    if "param_names" in group:
        return list(group["param_names"])
    found = [plan_names[id(parameter)] for parameter in group["params"] if id(parameter) in plan_names]
    return found if len(found) == len(group["params"]) else None


def _owner(name: str, homes: Sequence[str], plan: Plan) -> Any:
    """The id of the live parameter that a name of the state means, None if the caller lets it go."""
    for owners, short in ((plan.owners, name), (plan.plain_owners, plain(name))):
        for above in ("", *homes):
            owner = owners.get(join(above, short) if above else short, _UNKNOWN)
            if owner is not _UNKNOWN:
                return owner
    return _UNKNOWN


def _by_alignment(
    live: Sequence[Any], saved: Sequence[Any], by_name: dict[Key, str], plan: Plan, path: str
) -> Match | None:
    ours: dict[str, int] = {}
    for group in live:
        names = live_names(group, plan.names)
        if names is None:
            return _by_position(live, saved, plan, path)
        ours |= {name: id(parameter) for name, parameter in zip(names, group["params"], strict=True)}
    turned = {plan.rules(name) if plan.rules else name: key for key, name in by_name.items()}
    reading = plan.align(ours, turned, join(path, "param_names"))
    if reading is None:
        return None
    return Match({ours[name]: turned[there] for name, there in reading.pairs.items()}, "", by_name)


def _by_position(live: Sequence[Any], saved: Sequence[Any], plan: Plan, path: str) -> Match | None:
    counts = [len(group["params"]) for group in saved]
    if [len(group["params"]) for group in live] != counts:
        plan.problem("groups", join(path, "param_groups"), _sizes(live, counts))
        return None
    keys = [(number, identifier) for number, group in enumerate(saved) for identifier in group["params"]]
    return _positions(live, keys, plan, path)


def _positions(live: Sequence[Any], keys: list[Key], plan: Plan, path: str) -> Match:
    mine = [id(parameter) for group in live for parameter in group["params"]]
    return Match(dict(zip(mine, keys, strict=True)), "inferred by position, for names are missing", {})


def _sizes(live: Sequence[Any], counts: list[int]) -> str:
    return (
        f"the state has groups of {counts} parameters, the target of {[len(group['params']) for group in live]}, and "
        "not both have names to go by; restore it together with its model, from a checkpoint that has param_names, or "
        "build it alike"
    )


def report(live: Sequence[Any], saved: Sequence[Any], entries: Any, found: Match, plan: Plan, path: str) -> None:
    """Say of each parameter what becomes of what is kept for it."""
    for group in live:
        names = live_names(group, plan.names)
        for index, parameter in enumerate(group["params"]):
            key = found.found.get(id(parameter))
            name = names[index] if names else str(key[1] if key else index)
            full = join(path, f"state.{name}")
            if key is not None:
                none_yet = len(entries) > 1 and not (key[1] in entries and _is_some(entries[key[1]]))
                plan.note("restored", full, "it had no state yet, so it starts fresh" if none_yet else found.detail)
            elif id(parameter) in plan.absent or any(matches(at, plan.options.allow_missing) for at in (name, full)):
                plan.note("fresh", full, _NEW)
            else:
                plan.missing(full, _NEW)
    taken = {*found.found.values()}
    keys = {identifier for group in saved for identifier in group["params"]}
    for key, name in _saved(saved, found):
        if key not in taken:
            full = join(path, f"state.{name}")
            home = next((h for h in ("", *dict.fromkeys(plan.homes.values())) if join(h, name) in plan.owners), "")
            gone = plan.owners.get(join(home, name), _UNKNOWN) is None
            if gone or matches(name, plan.options.allow_unexpected):
                plan.note("unexpected", full, "its parameter is not restored either" if gone else "")
            else:
                plan.unexpected(full)
    for identifier in entries:
        if identifier not in keys and not is_global(identifier, keys):
            plan.unexpected(join(path, f"state.{identifier}"), "the state keeps something for a parameter in no group")
        elif identifier not in keys:
            plan.note("restored", join(path, f"state.{identifier}"))


def _is_some(entry: Any) -> bool:
    return not isinstance(entry, dict) or bool(entry)


_NEW = "the state has no such parameter; what the target has for it stays"


def _saved(saved: Sequence[Any], found: Match) -> Iterator[tuple[Key, str]]:
    for number, group in enumerate(saved):
        for identifier in group["params"]:
            yield (number, identifier), found.names.get((number, identifier), str(identifier))
