"""`torch.optim.Optimizer`: its own layout, with the names of the parameters.

    {"state": {0: {"exp_avg": …}, …}, "param_groups": [{"lr": …, "params": [0, …], "param_names": ["conv1.weight", …]}]}

`param_names` is PyTorch's key for optimizers made from `named_parameters()`; where the model is captured beside the
optimizer we add it ourselves. Restoring goes by name; where the state has no names they are inferred from the model
beside it (param_match.py), and without one the order must be the same. The report says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from statedict.adapters import Capture, join, lbfgs, state_checks
from statedict.adapters.param_groups import merge
from statedict.adapters.param_match import Match, live_names, match, report
from statedict.adapters.plan import Plan
from statedict.adapters.shapes import Fit
from statedict.adapters.shards import refuse_states_of_parts
from statedict.adapters.state_checks import Fault
from statedict.tensor.arrays import part_of
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.optimizer import Shape, find_strays, is_global, leaves, map_leaves, number_keys, parameter_size
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label
from statedict.values import Opaque

STAGE = 1
_BEGIN = {"step_size": "lr", "sum": "initial_accumulator_value"}
"""What they begin with where that is not zero: a hyperparameter (torch/optim/rprop.py, adagrad.py)."""
Follow = Callable[[Any], Any]
"""What makes of a parameter's state that of the live parameter."""


def accepts(value: Any) -> bool:
    """Whether it is an optimizer with PyTorch's layout; one with another is an object like others with a state."""
    import torch

    usual = torch.optim.Optimizer.state_dict
    if not isinstance(value, torch.optim.Optimizer):
        return False
    if type(value).state_dict is usual and "state_dict" not in vars(value):
        return True
    own = value.state_dict()
    return isinstance(own, dict) and {"state", "param_groups"} <= own.keys()


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live, with `param_names` where they are known."""
    refuse_states_of_parts(value, path)
    own = value.state_dict()
    state = StateDict()
    for key, entry in own.items():
        state[key] = context.data(entry, join(path, key), value)
    for group, live in zip(state["param_groups"], value.param_groups, strict=True):
        found = live_names(live, context.names)
        if found is not None:
            group["param_names"] = found
    return state


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
    entries = number_keys(state["state"], saved)
    found = match(value.param_groups, saved, entries, plan, path)
    if found is None:
        return
    report(value.param_groups, saved, entries, found, plan, path)
    groups = _groups(value, saved, found, plan, path)
    states, follow, fresh = _states(value, saved, groups, entries, found, plan, path)
    plan.rates[id(value)] = [group.get("lr") for group in groups]
    keys = {identifier for group in saved for identifier in group["params"]}
    for key in entries:
        if key not in keys and is_global(key, keys):
            plan.keep(states, key, plan.settle(entries[key], value.state.get(key), join(path, f"state.{key}")))
    own = value.state_dict()
    chosen = StateDict()
    for key in own:
        if key in state:
            ours = {"state": states, "param_groups": groups}
            plan.keep(chosen, key, ours[key] if key in ours else plan.settle(state[key], own[key], join(path, key)))
        else:
            plan.missing(join(path, key))
    for key in state:
        if key not in own:
            plan.unexpected(join(path, key))
    plan.act(path, lambda: _load(value, chosen, follow, fresh))


def _states(
    value: Any, saved: list[Any], groups: list[dict[str, Any]], entries: Any, found: Match, plan: Plan, path: str
) -> tuple[dict[Any, Any], dict[int, Follow], list[Any]]:
    """What is kept for the live parameters by number, how some of it follows, and the parameters that begin afresh."""
    states: dict[Any, Any] = {}
    follow: dict[int, Follow] = {}
    fresh: list[Any] = []
    held: list[tuple[int, Any, Any, str]] = []
    index = 0
    for group, merged_group in zip(value.param_groups, groups, strict=True):
        names = live_names(group, plan.names) or [""] * len(group["params"])
        merged_group["params"] = list(range(index, index + len(names)))
        for parameter, name in zip(group["params"], names, strict=True):
            key = found.found.get(id(parameter))
            if key is None:
                fresh.append(parameter)
            elif key[1] in entries:
                held.append((index, parameter, key[1], name))
            index += 1
    entries = _settle(value, held, entries, plan, path)
    if lbfgs.accepts(value):
        return _plan_shared(value, saved, found, entries, follow, plan, path), follow, fresh
    sure = {owner for owner, _ in plan.shapes.values()} if found.names else set()
    pairs = {n: (tuple(p.shape), entries[key]) for n, p, key, _ in held if id(p) not in sure and key in entries}
    sizes = dict(zip(pairs, find_strays([*pairs.values()]), strict=True))
    before = {identifier: group for group in saved for identifier in group["params"]}
    after = {number: group for group in groups for number in group["params"]}
    kind = state_checks.class_of(value)
    for number, parameter, key, name in held:
        at = join(path, f"state.{key}")
        if key not in entries:
            fresh.append(parameter)
            continue
        fit = _moments(parameter, entries[key], sizes.get(number), plan, at, name)
        if fit is not None and fit.policy == "skip":
            fresh.append(parameter)  # with what its constructor made for it: Adagrad of PyTorch 2.9 needs that
            continue
        states[number] = entries[key]
        if isinstance(entries[key], dict) and (fit is not None or sizes.get(number) is None):
            shape = tuple(parameter.shape) if fit is None else fit.old
            _tell(
                state_checks.faults(value, kind, parameter, shape, entries[key], after[number], before[key]), plan, at
            )
        if fit is not None:
            follow[number] = partial(_follow, fit, after[number])
    return states, follow, fresh


def _settle(
    value: Any, held: list[tuple[int, Any, Any, str]], entries: Mapping[Any, Any], plan: Plan, path: str
) -> dict[Any, Any]:
    """What is kept, without labels of objects."""
    result = dict(entries)
    for _, parameter, key, _ in held:
        fit = plan.fates.get(id(parameter))
        if fit is None or fit.policy != "skip":
            plan.keep(result, key, plan.settle(entries[key], value.state.get(parameter), join(path, f"state.{key}")))
    return result


def _tell(found: Iterable[Fault], plan: Plan, path: str) -> None:
    """Report what is wrong with what the state keeps for a parameter."""
    for action, keys, detail in found:
        at = ".".join([path, *map(label, keys)])
        if action in ("missing", "unexpected"):
            (plan.missing if action == "missing" else plan.unexpected)(at, detail)
        else:
            plan.problem(action, at, detail)


def _groups(value: Any, saved: list[Any], found: Match, plan: Plan, path: str) -> list[dict[str, Any]]:
    """The hyperparameters of each live group: of the saved one that most of its parameters were in."""
    groups = []
    for number, group in enumerate(value.param_groups):
        where = join(path, f"param_groups.{number}")
        taken = (found.found.get(id(parameter)) for parameter in group["params"])
        sources = Counter(key[0] for key in taken if key is not None)
        source = saved[sources.most_common(1)[0][0]] if sources else group
        groups.append(merge(group, source, value.defaults, plan, where))
        hyper = [key for key in source if key not in ("params", "param_names")]
        for other in sources:
            unlike = [key for key in hyper if _differ(source[key], saved[other].get(key))]
            if unlike:
                detail = f"of its parameters some were in group {other} of the state, whose {', '.join(unlike)} differ"
                plan.note("differs", where, detail)
    return groups


def _differ(one: Any, other: Any) -> bool:
    return not is_array(one) and not is_array(other) and bool(one != other)


def _plan_shared(
    optimizer: Any,
    saved: list[Any],
    found: Match,
    entries: Mapping[Any, Any],
    follow: dict[int, Follow],
    plan: Plan,
    path: str,
) -> dict[Any, Any]:
    """The one state that all parameters share, and how it follows their order."""
    before = [(number, identifier) for number, group in enumerate(saved) for identifier in group["params"]]
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    after = [found.found.get(id(parameter)) for parameter in live]
    if before and before[0][1] not in entries:
        return {}
    if set(before) != set(after) or any(id(parameter) in plan.fates for parameter in live):
        detail = "LBFGS keeps one state for all parameters, which are others in the state; leave the optimizer out"
        plan.problem("groups", join(path, "param_groups"), detail)
        return {}
    sizes = {key: p.numel() * (1 + p.is_complex()) for key, p in zip(after, live, strict=True)}
    at, held = join(path, f"state.{before[0][1]}"), entries[before[0][1]]
    if not isinstance(held, dict):
        plan.mismatch(at, {}, held)
        return {}
    _tell(lbfgs.faults(held, sum(sizes.values())), plan, at)
    if before != after:
        follow[0] = partial(lbfgs.reorder, before, after, sizes)
    return {0: held}


def _moments(parameter: Any, entries: Any, size: Shape | None, plan: Plan, path: str, name: str) -> Fit | None:
    """How what is kept for a parameter follows where its shape changes; `size` is what it was kept for, if another."""
    if not isinstance(entries, dict):
        plan.mismatch(path, {}, entries)
        return None
    shape, fit, part = tuple(parameter.shape), plan.fates.get(id(parameter)), part_of(parameter)
    if part is not None and parameter_size(entries) is not None:
        plan.problem("target", path, f"the parameter is a part ({part}); restore it with torch.distributed.checkpoint")
        return None
    if fit is None and size is not None:
        full = join(path.rpartition(".")[0], name)
        fit = Fit(next((p for at in (full, name) if at and (p := plan.policy(at)) != "error"), "error"), size, shape)
        reason = fit.reason()
        if fit.policy == "error" or reason:
            why = reason or "their orders differ, or the parameter's shape has changed, for which there is shapes=…"
            alike = [keys for keys, value in leaves(entries) if is_array(value) and tuple(value.shape) == size]
            for keys in alike or [()]:
                at = ".".join([path, *map(label, keys)])
                plan.problem("shape", at, f"the state has {size}, the parameter {shape}; {why}")
            return None
    if fit is None:
        return None
    if fit.policy == "skip":
        plan.note("fresh", path, "its parameter is not restored either")
        return fit
    for keys, value in leaves(entries):
        opaque = isinstance(value, Opaque)
        if opaque or (is_array(value) and as_lazy(value).numel() > 1 and fit.follows(tuple(value.shape)) is None):
            what = f"an object of {value.name}" if opaque else f"{tuple(value.shape)}"
            plan.problem("shape", ".".join([path, *map(label, keys)]), f"{what} cannot follow the parameter, {fit}")
    plan.note("reshaped", path, f"as its parameter, {fit}")
    return fit


def _follow(fit: Fit, group: dict[str, Any], entries: Any) -> Any:
    """What is kept for a parameter, as its new shape wants it."""

    def follow(keys: tuple[Any, ...], value: Any) -> Any:
        tensor = as_lazy(value) if is_array(value) else None
        if tensor is None or fit.follows(tensor.shape) is None:
            return value
        return fit.apply(tensor, fill=float(group.get(_BEGIN.get(keys[-1], ""), 0)))

    return map_leaves(entries, follow)


def _load(optimizer: Any, state: StateDict, follow: dict[int, Follow], fresh: list[Any]) -> None:

    entries = {index: follow[index](held) if index in follow else held for index, held in state["state"].items()}
    made = StateDict(state | {"state": entries}).torch(copy=True)
    before = {parameter: optimizer.state[parameter] for parameter in fresh if parameter in optimizer.state}
    optimizer.load_state_dict(made)
    optimizer.state.update(before)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = ((index, held) for index, held in made["state"].items() if type(index) is int)
    for index, held in numbered:  # PyTorch casts floating state to the parameter's dtype; undo that
        optimizer.state[parameters[index]] = _exact(optimizer.state[parameters[index]], held)


def _exact(loaded: Any, held: Any) -> Any:
    """What PyTorch has loaded, with the dtypes that the state has."""
    import torch

    if isinstance(held, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return loaded if loaded.dtype == held.dtype else held.to(loaded.device)
    if isinstance(held, dict) and isinstance(loaded, dict):
        for key in held.keys() & loaded.keys():
            loaded[key] = _exact(loaded[key], held[key])
    elif isinstance(held, list | tuple) and type(held) is type(loaded) and len(held) == len(loaded):
        return type(held)(_exact(one, other) for one, other in zip(loaded, held, strict=True))
    return held if isinstance(held, str) else loaded  # of a text PyTorch makes that of a generator
