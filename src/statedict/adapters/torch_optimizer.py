"""`torch.optim.Optimizer`: its own layout, with the names of the parameters.

    {"state": {0: {"exp_avg": …}, …}, "param_groups": [{"lr": …, "params": [0, …], "param_names": ["conv1.weight", …]}]}

`param_names` is PyTorch's key for optimizers made from `named_parameters()`; where the model is captured beside the
optimizer we add it ourselves. Restoring goes by name where both sides have names, otherwise by position, and the
report says which.
"""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, Plan, join
from statedict.tree import StateDict


def accepts(value: Any) -> bool:
    """Whether it is an optimizer."""
    import torch

    return isinstance(value, torch.optim.Optimizer)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live, with `param_names` where they are known."""
    own = value.state_dict()
    state = StateDict()
    for key, entry in own.items():
        state[key] = context.value(entry, join(path, key))
    for group, live in zip(state["param_groups"], value.param_groups, strict=True):
        found = _names(live, context.names)
        if found is not None:
            group["param_names"] = found
    return state


def _names(group: Any, known: dict[int, str]) -> list[str] | None:
    """The names of a live group's parameters, None unless all are known."""
    if "param_names" in group:
        return list(group["param_names"])
    found = [known.get(id(parameter)) for parameter in group["params"]]
    return None if None in found else found  # type: ignore[return-value]


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Match the parameters by name or position; then `load_state_dict`, in the live order."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict) or not isinstance(state.get("param_groups"), list):
        plan.problem("kind", path, "an optimizer is restored from a dict with 'state' and 'param_groups'")
        return
    live, saved = value.param_groups, state["param_groups"]
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in saved):
        plan.problem("kind", join(path, "param_groups"), "is not a list of groups with 'params'")
        return
    live_names = [_names(group, plan.names) for group in live]
    saved_names = [group.get("param_names") for group in saved]
    if all(live_names) and all(saved_names):
        matched = _by_name(live_names, saved, saved_names, plan, path)
    else:
        matched = _by_position(live, saved, plan, path)
    if matched is None:
        return
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    index = 0
    for number, (group, (source, identifiers)) in enumerate(zip(live, matched, strict=True)):
        hyper = {key: v for key, v in saved[source].items() if key not in ("params", "param_names")}
        where = join(path, f"param_groups.{number}")
        for key in group:
            if key not in hyper and key not in ("params", "param_names"):
                plan.missing(join(where, key))
                hyper[key] = group[key]
        for key in hyper:
            if key not in group:
                plan.unexpected(join(where, key))
            else:
                before, after = group[key], hyper[key]
                changed = not isinstance(before, type(group["params"][0])) and before != after if group["params"] else False
                plan.note("restored", join(where, key), f"{before!r:.40} → {after!r:.40}" if changed else "")
        if "param_names" in group:
            hyper["param_names"] = group["param_names"]
        hyper["params"] = list(range(index, index + len(identifiers)))
        groups.append(hyper)
        for offset, identifier in enumerate(identifiers):
            if identifier is not None and identifier in state["state"]:
                states[index + offset] = state["state"][identifier]
        index += len(identifiers)
    plan.actions.append(lambda: _load(value, states, groups))


def _by_name(
    live: list[Any], saved: list[Any], saved_names: list[Any], plan: Plan, path: str
) -> list[tuple[int, list[Any]]] | None:
    known: dict[str, tuple[int, Any]] = {}
    for number, (group, group_names) in enumerate(zip(saved, saved_names, strict=True)):
        for name, identifier in zip(group_names, group["params"], strict=False):
            known[name] = (number, identifier)
    matched = []
    seen = set()
    for number, group_names in enumerate(live):
        identifiers = []
        for name in group_names:
            full = join(path, f"state.{name}")
            if name in known:
                seen.add(name)
                identifiers.append(known[name][1])
                plan.note("restored", full)
            else:
                identifiers.append(None)
                plan.missing(full, "the state has no such parameter, it starts fresh")
        sources = [known[name][0] for name in group_names if name in known]
        matched.append((max(sources, key=sources.count) if sources else min(number, len(saved) - 1), identifiers))
    for name in known:
        if name not in seen:
            plan.unexpected(join(path, f"state.{name}"))
    return matched


def _by_position(live: list[Any], saved: list[Any], plan: Plan, path: str) -> list[tuple[int, list[Any]]] | None:
    sizes = [len(group["params"]) for group in live], [len(group["params"]) for group in saved]
    if sizes[0] != sizes[1]:
        plan.problem(
            "groups", join(path, "param_groups"),
            f"the state has groups of {sizes[1]} parameters and no names, the target has {sizes[0]}; "
            "restore it together with its model from a checkpoint that statedict saved, or build the optimizer alike",
        )  # fmt: skip
        return None
    for group in saved:
        for identifier in group["params"]:
            plan.note("restored", join(path, f"state.{identifier}"), "by position, for names are missing")
    return [(number, list(group["params"])) for number, group in enumerate(saved)]


def _load(optimizer: Any, states: dict[int, Any], groups: list[dict[str, Any]]) -> None:
    import torch

    made = StateDict({"state": states, "param_groups": groups}).torch(copy=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(made)
    for index, entries in made["state"].items():  # PyTorch casts floating state to the parameter's dtype; undo that
        loaded = optimizer.state[parameters[index]]
        for key, tensor in entries.items():
            if isinstance(tensor, torch.Tensor) and loaded[key].dtype != tensor.dtype:
                loaded[key] = tensor.to(loaded[key].device)
