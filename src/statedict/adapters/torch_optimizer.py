"""`torch.optim.Optimizer`: its own layout, with the names of the parameters.

    {"state": {0: {"exp_avg": …}, …}, "param_groups": [{"lr": …, "params": [0, …], "param_names": ["conv1.weight", …]}]}

`param_names` is PyTorch's key for optimizers made from `named_parameters()`; where the model is captured beside the
optimizer we add it ourselves. Restoring goes by name where both sides have names, otherwise by position, and the
report says which.
"""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, Plan, join
from statedict.tensor import is_array
from statedict.tree import StateDict

_MISSING = object()
_WHOSE = ("params", "param_names")
_ELEMENTWISE = frozenset((
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "sum", "ax", "prev", "step_size",
))  # fmt: skip
"""What the optimizers of torch.optim keep for each element of a parameter."""
_ADDED = frozenset((
    "foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay",
    "amsgrad", "nesterov", "momentum", "centered",
))  # fmt: skip
"""The hyperparameters that came with releases of PyTorch, which fill them in where a state is older."""
_FOREIGN = {"Adamax": "exp_avg_sq", "RAdam": "exp_inf"}
"""What these two, whose hyperparameters are the same but for added ones, have of each other only."""
_OF_A_SCHEDULER = frozenset((
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr",
))  # fmt: skip


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
    found = [known[id(parameter)] for parameter in group["params"] if id(parameter) in known]
    return found if len(found) == len(group["params"]) else None


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Match the parameters by name or position; then `load_state_dict`, in the live order."""
    saved = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(saved, list) or not isinstance(state.get("state"), dict):
        plan.problem("kind", path, "an optimizer is restored from a dict with 'state' and 'param_groups'")
        return
    if not all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(type(identifier) in (int, str) for identifier in group["params"])
        for group in saved
    ):
        plan.problem("kind", join(path, "param_groups"), "is not a list of groups with 'params'")
        return
    live = value.param_groups
    live_names = [_names(group, plan.names) for group in live]
    saved_names = [group.get("param_names") for group in saved]
    saved_names = [[*map(plan.parameter, names)] if isinstance(names, list) else names for names in saved_names]
    named = _name_them_all(live_names, live) and _name_them_all(saved_names, saved)
    matched = _by_name(live_names, saved, saved_names, plan, path) if named else _by_position(live, saved, plan, path)
    if matched is None:
        return
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    fresh: list[Any] = []
    for number, (group, (source, identifiers)) in enumerate(zip(live, matched, strict=True)):
        where = join(path, f"param_groups.{number}")
        groups.append(_hyperparameters(group, saved[source] if source >= 0 else group, value.defaults, plan, where))
        first = sum(len(before["params"]) for before in groups[:-1])
        groups[-1]["params"] = list(range(first, first + len(identifiers)))
        for offset, (parameter, identifier) in enumerate(zip(group["params"], identifiers, strict=True)):
            if identifier is _MISSING:
                fresh.append(parameter)
            elif identifier in state["state"]:
                states[first + offset] = state["state"][identifier]
                full = join(path, f"state.{identifier}")
                _check_shapes(parameter, states[first + offset], plan, full)
                foreign = _FOREIGN.get(type(value).__name__, "")
                if isinstance(states[first + offset], dict) and foreign in states[first + offset]:
                    plan.unexpected(join(full, foreign), "the state is another optimizer's")
    own = value.state_dict()
    chosen = StateDict()
    for key in own:
        if key in state:
            chosen[key] = {"state": states, "param_groups": groups}.get(key, state[key])
        else:
            plan.missing(join(path, key))
    for key in state:
        if key not in own:
            plan.unexpected(join(path, key))
    plan.actions.append(lambda: _load(value, chosen, fresh))


def _name_them_all(names: list[Any], groups: list[Any]) -> bool:
    """Whether each parameter of each group has a name of its own."""
    if not all(
        isinstance(some, list) and len(some) == len(group["params"]) for some, group in zip(names, groups, strict=True)
    ):
        return False
    flat = [name for some in names for name in some]
    return all(type(name) is str for name in flat) and len(set(flat)) == len(flat) > 0


def _by_name(
    live: list[Any], saved: list[Any], saved_names: list[Any], plan: Plan, path: str
) -> list[tuple[int, list[Any]]] | None:
    """For each live group the saved one that most of its parameters were in (-1: none), and their saved keys."""
    known = {
        name: (number, identifier)
        for number, (group, names) in enumerate(zip(saved, saved_names, strict=True))
        for name, identifier in zip(names, group["params"], strict=True)
    }
    pairs = plan.align([name for names in live for name in names], known, join(path, "param_names"))
    if pairs is None:
        return None
    matched = []
    for names in live:
        identifiers = []
        for name in names:
            full = join(path, f"state.{name}")
            identifiers.append(known[pairs[name]][1] if name in pairs else _MISSING)
            if name in pairs:
                plan.note("restored", full)
            else:
                plan.missing(full, "the state has no such parameter; what the target has for it stays")
        sources = [known[pairs[name]][0] for name in names if name in pairs]
        matched.append((max(sources, key=sources.count) if sources else -1, identifiers))
    wanted = set(pairs.values())
    for name in known:
        if name not in wanted:
            plan.unexpected(join(path, f"state.{name}"))
    return matched


def _by_position(live: list[Any], saved: list[Any], plan: Plan, path: str) -> list[tuple[int, list[Any]]] | None:
    sizes = [len(group["params"]) for group in live], [len(group["params"]) for group in saved]
    if sizes[0] != sizes[1]:
        plan.problem(
            "groups",
            join(path, "param_groups"),
            f"the state has groups of {sizes[1]} parameters, the target of {sizes[0]}, and not both have names to go "
            "by; restore it together with its model, from a checkpoint that has param_names, or build it alike",
        )
        return None
    for group in saved:
        for identifier in group["params"]:
            plan.note("restored", join(path, f"state.{identifier}"), "by position, for names are missing")
    return [(number, list(group["params"])) for number, group in enumerate(saved)]


def _hyperparameters(live: Any, saved: Any, defaults: Any, plan: Plan, path: str) -> dict[str, Any]:
    """The saved hyperparameters of a group, reported one by one, under the live group's names.

    Their set differs between releases of PyTorch and with a scheduler, which is reported and no error; any other
    difference means an optimizer of another class.
    """
    hyper = {key: value for key, value in saved.items() if key not in _WHOSE}
    # Adam has amsgrad for longer than any optimizer has maximize: a state with maximize alone is another's
    added = _ADDED - {"amsgrad"} if "maximize" in hyper else _ADDED
    for key, before in live.items():
        if key in _WHOSE:
            continue
        if key not in saved:
            if key in defaults and key not in added:
                plan.missing(join(path, key), "the state is another optimizer's, it has no such hyperparameter")
            else:
                plan.note("missing", join(path, key), "the state has none, the target's stays")
            hyper[key] = before
            continue
        changed = not is_array(before) and not is_array(hyper[key]) and before != hyper[key]
        plan.note("restored", join(path, key), f"{before!r:.40} → {hyper[key]!r:.40}" if changed else "")
    for key in hyper:
        if key in live:
            continue
        if key in _OF_A_SCHEDULER or key in added:
            plan.note(
                "unexpected", join(path, key), "the target had none, as with what a scheduler adds; it is taken over"
            )
        else:
            plan.unexpected(join(path, key), "the state is another optimizer's, the target has no such hyperparameter")
    if "param_names" in live:
        hyper["param_names"] = live["param_names"]
    return hyper


def _check_shapes(parameter: Any, entries: Any, plan: Plan, path: str) -> None:
    """What is kept element by element must have as many elements as the parameter."""
    for key, value in entries.items() if isinstance(entries, dict) else ():
        if key in _ELEMENTWISE and is_array(value) and tuple(value.shape) != tuple(parameter.shape):
            plan.problem(
                "shape",
                join(path, key),
                f"the state has {tuple(value.shape)}, the parameter {tuple(parameter.shape)}; their orders differ",
            )


def _load(optimizer: Any, state: StateDict, fresh: list[Any]) -> None:
    import torch

    made = state.torch(copy=True)
    kept = {parameter: optimizer.state[parameter] for parameter in fresh if parameter in optimizer.state}
    optimizer.load_state_dict(made)
    optimizer.state.update(kept)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in made["state"].items():  # PyTorch casts floating state to the parameter's dtype; undo that
        loaded = optimizer.state[parameters[index]]
        for key, tensor in entries.items():
            if isinstance(tensor, torch.Tensor) and key in loaded and loaded[key].dtype != tensor.dtype:
                loaded[key] = tensor.to(loaded[key].device)
