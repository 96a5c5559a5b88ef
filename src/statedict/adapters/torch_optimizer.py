"""`torch.optim.Optimizer`: its own layout, with the names of the parameters.

    {"state": {0: {"exp_avg": …}, …}, "param_groups": [{"lr": …, "params": [0, …], "param_names": ["conv1.weight", …]}]}

`param_names` is PyTorch's key for optimizers made from `named_parameters()`; where the model is captured beside the
optimizer we add it ourselves. Restoring goes by name; where the state has no names they are inferred from the model
beside it (param_names.py), and without one the order must be the same. The report says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from statedict.adapters import Capture, join, lbfgs
from statedict.adapters.param_groups import merged
from statedict.adapters.plan import Plan
from statedict.adapters.shapes import Fit, Shape
from statedict.param_names import inferred
from statedict.paths import matches
from statedict.tensor import as_lazy, is_array
from statedict.tree import StateDict

STAGE = 1
_MISSING = object()
_ELEMENTWISE = frozenset((
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "sum", "ax", "prev", "step_size",
))  # fmt: skip
"""What the optimizers of torch.optim keep for each element of a parameter."""
_BEGIN = {"step_size": "lr", "sum": "initial_accumulator_value"}
"""What they begin with where that is not zero: a hyperparameter (torch/optim/rprop.py, adagrad.py)."""
_FOREIGN = {"Adamax": "exp_avg_sq", "RAdam": "exp_inf"}
"""What these two, whose hyperparameters are the same but for added ones, have of each other only."""


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


Follow = Callable[[Any], Any]
"""What makes of a parameter's state that of the live parameter."""
Matched = list[tuple[int, list[Any]]]
"""For each live group the saved one that most of its parameters were in (-1: none), and their saved keys."""


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Match the parameters; then `load_state_dict`, in the live order."""
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
    matched = _match(value.param_groups, saved, state["state"], plan, path)
    if matched is None:
        return
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    follow: dict[int, Follow] = {}
    fresh: list[Any] = []
    foreign = _FOREIGN.get(type(value).__name__, "")
    first = 0
    for number, (group, (source, identifiers)) in enumerate(zip(value.param_groups, matched, strict=True)):
        where = join(path, f"param_groups.{number}")
        groups.append(merged(group, saved[source] if source >= 0 else group, value.defaults, plan, where))
        groups[-1]["params"] = list(range(first, first + len(identifiers)))
        names = _names(group, plan.names) or [""] * len(identifiers)
        for index, (parameter, identifier, name) in enumerate(
            zip(group["params"], identifiers, names, strict=True), first
        ):
            if identifier is _MISSING:
                fresh.append(parameter)
            elif identifier in state["state"]:
                entries = state["state"][identifier]
                full = join(path, f"state.{identifier}")
                fit = _moments(parameter, entries, plan, full, name) if isinstance(entries, dict) else None
                if isinstance(entries, dict) and foreign in entries:
                    plan.unexpected(join(full, foreign), "the state is another optimizer's")
                if fit is None or fit.policy != "skip":
                    states[index] = entries
                if fit is not None:
                    follow[index] = partial(_follow, fit, groups[-1])
        first += len(identifiers)
    if lbfgs.accepts(value):
        states = _whole(value, saved, matched, state["state"], follow, plan, path)
    plan.rates[id(value)] = [group.get("lr") for group in groups]
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
    plan.act(path, lambda: _load(value, chosen, follow, fresh))


def _whole(
    optimizer: Any, saved: list[Any], matched: Matched, entries: Any, follow: dict[int, Follow], plan: Plan, path: str
) -> dict[int, Any]:
    """The one state that all parameters share, and how it follows their order."""
    before = [identifier for group in saved for identifier in group["params"]]
    after = [identifier for _, identifiers in matched for identifier in identifiers]
    if before and before[0] not in entries:
        return {}
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if set(map(str, before)) != set(map(str, after)) or any(id(parameter) in plan.fates for parameter in live):
        detail = "LBFGS keeps one state for all parameters, which are others in the state; leave the optimizer out"
        plan.problem("groups", join(path, "param_groups"), detail)
        return {}
    sizes = {
        identifier: parameter.numel() * (1 + parameter.is_complex())
        for identifier, parameter in zip(after, live, strict=True)
    }
    if before != after:
        follow[0] = partial(lbfgs.moved, before, after, sizes)
    return {0: entries[before[0]]}


def _match(live: list[Any], saved: list[Any], entries: Any, plan: Plan, path: str) -> Matched | None:
    """Which saved parameter is which live one; None where that cannot be told."""
    live_names: list[Any] = [_names(group, plan.names) for group in live]
    saved_names: list[Any] = [group.get("param_names") for group in saved]
    if not _name_them_all(live_names, live):
        return _by_position(live, saved, plan, path)
    if _name_them_all(saved_names, saved):
        found = [[_current(plan.parameter(name), plan) for name in names] for names in saved_names]
        return _by_name(live_names, saved, found, entries, "", plan, path)
    shapes = {
        name: tuple(p.shape)
        for n, g in zip(live_names, live, strict=True)
        for name, p in zip(n, g["params"], strict=True)
    }
    sizes = [[_size(entries.get(identifier)) for identifier in group["params"]] for group in saved]
    now = [name for name in plan.names.values() if name in shapes] or list(shapes)
    guess = inferred(sizes, live_names, plan.shapes_in_state or shapes, now)
    if guess is not None:
        return _by_name(live_names, saved, guess, entries, "its name is inferred from order and shapes", plan, path)
    if not plan.shapes_in_state and [len(group) for group in live_names] == [len(group) for group in sizes]:
        return _by_position(live, saved, plan, path)  # the shapes that do not agree are named one by one
    counts = [len(group["params"]) for group in live]
    plan.problem(
        "groups",
        join(path, "param_groups"),
        f"the state has groups of {[len(group) for group in sizes]} parameters without names, the target of {counts}, "
        "and neither their order nor their shapes tell which is which; restore from a checkpoint that has param_names, "
        "or build it alike",
    )
    return None


def _name_them_all(names: list[Any], groups: list[Any]) -> bool:
    """Whether each parameter of each group has a name of its own."""
    if not all(
        isinstance(some, list) and len(some) == len(group["params"]) for some, group in zip(names, groups, strict=True)
    ):
        return False
    flat = [name for some in names for name in some]
    return all(type(name) is str for name in flat) and len(set(flat)) == len(flat) > 0


def _current(name: str, plan: Plan) -> str:
    """What a parameter of the state is called in the target, as its module has read it."""
    for above in plan.modules if len(plan.modules) == 1 else ("",):
        new = plan.read_as.get(join(above, name))
        if new is not None:
            return new[len(above) :].removeprefix(".")
    return name


def _dropped(name: str, plan: Plan) -> bool:
    """Whether the caller lets go of the parameter itself."""
    return any(plan.read_as.get(join(above, name), "") is None for above in ("", *plan.modules))


def _by_name(
    live: Sequence[Any],
    saved: list[Any],
    saved_names: Sequence[Sequence[str]],
    entries: Any,
    detail: str,
    plan: Plan,
    path: str,
) -> Matched | None:
    known = {
        name: (number, identifier)
        for number, (group, names) in enumerate(zip(saved, saved_names, strict=True))
        for name, identifier in zip(names, group["params"], strict=True)
    }
    reading = plan.align([name for names in live for name in names], known, join(path, "param_names"))
    if reading is None:
        return None
    pairs = reading.pairs
    absent = plan.absent_parameters
    matched = []
    for names in live:
        identifiers = []
        for name in names:
            full = join(path, f"state.{name}")
            identifiers.append(known[pairs[name]][1] if name in pairs else _MISSING)
            if name in pairs:
                none_yet = entries and identifiers[-1] not in entries and len(entries) > 1
                plan.note("restored", full, "it had no state yet, so it starts fresh" if none_yet else detail)
            elif (
                name in absent or matches(full, plan.options.allow_missing) or matches(name, plan.options.allow_missing)
            ):
                plan.note("fresh", full, "the state has no such parameter; what the target has for it stays")
            else:
                plan.missing(full, "the state has no such parameter; what the target has for it stays")
        sources = [known[pairs[name]][0] for name in names if name in pairs]
        matched.append((max(sources, key=sources.count) if sources else -1, identifiers))
    wanted = set(pairs.values())
    for name in known:
        if name not in wanted:
            full = join(path, f"state.{name}")
            if _dropped(name, plan) or matches(name, plan.options.allow_unexpected):
                plan.note("unexpected", full, "its parameter is not restored either")
            else:
                plan.unexpected(full)
    return matched


def _by_position(live: list[Any], saved: list[Any], plan: Plan, path: str) -> Matched | None:
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
            plan.note("restored", join(path, f"state.{identifier}"), "inferred by position, for names are missing")
    return [(number, list(group["params"])) for number, group in enumerate(saved)]


def _size(entries: Any) -> Shape | None:
    """The shape of the parameter that something is kept for, None where that does not tell."""
    for key, value in entries.items() if isinstance(entries, dict) else ():
        if key in _ELEMENTWISE and is_array(value):
            return tuple(value.shape)
    return None


def _moments(parameter: Any, entries: dict[Any, Any], plan: Plan, path: str, name: str) -> Fit | None:
    """Whether what is kept for a parameter fits it; how it follows where its shape changes."""
    shape = tuple(parameter.shape)
    fit = plan.fates.get(id(parameter))
    if fit is None and (size := _size(entries)) not in (None, shape):
        path_of_parameter = join(path.rpartition(".")[0], name)
        policy = next((p for at in (path_of_parameter, name) if at and (p := plan.policy(at)) != "error"), "error")
        fit = Fit(policy, size, shape)
        reason = fit.reason()
        if policy == "error" or reason:
            for key, value in entries.items():
                if key in _ELEMENTWISE and is_array(value):
                    detail = (
                        f"the state has {tuple(value.shape)}, the parameter {shape}; {reason or 'their orders differ'}"
                    )
                    plan.problem("shape", join(path, key), detail)
            return None
    if fit is None:
        return None
    if fit.policy == "skip":
        plan.note("fresh", path, "its parameter is not restored either")
        return fit
    for key, value in entries.items():
        if is_array(value) and as_lazy(value).numel() > 1 and fit.follows(tuple(value.shape)) is None:
            plan.problem("shape", join(path, key), f"{tuple(value.shape)} cannot follow the parameter, {fit}")
    plan.note("reshaped", path, f"as its parameter, {fit}")
    return fit


def _follow(fit: Fit, group: dict[str, Any], entries: Any) -> Any:
    """What is kept for a parameter, as its new shape wants it."""
    result = StateDict()
    for key, value in entries.items():
        tensor = as_lazy(value) if is_array(value) else None
        if tensor is None or fit.follows(tensor.shape) is None:
            result[key] = value
        else:
            result[key] = fit.apply(tensor, fill=float(group.get(_BEGIN.get(key, ""), 0)))
    return result


def _load(optimizer: Any, state: StateDict, follow: dict[int, Follow], fresh: list[Any]) -> None:
    import torch

    entries = {index: follow[index](held) if index in follow else held for index, held in state["state"].items()}
    made = StateDict(state | {"state": entries}).torch(copy=True)
    kept = {parameter: optimizer.state[parameter] for parameter in fresh if parameter in optimizer.state}
    optimizer.load_state_dict(made)
    optimizer.state.update(kept)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in made["state"].items():  # PyTorch casts floating state to the parameter's dtype; undo that
        loaded = optimizer.state[parameters[index]]
        for key, tensor in entries.items():
            if isinstance(tensor, torch.Tensor) and key in loaded and loaded[key].dtype != tensor.dtype:
                loaded[key] = tensor.to(loaded[key].device)
