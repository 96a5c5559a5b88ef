"""`torch.optim.Optimizer`: its own layout, with the names of the parameters.

    {"state": {0: {"exp_avg": …}, …}, "param_groups": [{"lr": …, "params": [0, …], "param_names": ["conv1.weight", …]}]}

`param_names` is PyTorch's key for optimizers made from `named_parameters()`; where the model is captured beside the
optimizer we add it ourselves. Restoring goes by name; where the state has no names they are inferred from the model
beside it (param_groups.py), and without one the order must be the same. The report says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any

from statedict.adapters import Capture, adapt, join, to_framework
from statedict.adapters.param_groups import (
    UNKNOWN,
    WHOSE,
    Match,
    differ,
    find_owner,
    keys_of,
    live_names,
    match,
    merge,
    parameters_of,
    sizes_of,
)
from statedict.adapters.plan import UNEXPECTED, Plan
from statedict.adapters.shapes import Fit, refuse_states_of_parts
from statedict.adapters.state_checks import class_of, dtype_of, faults, has_elements, lbfgs_faults, reorder, role_of
from statedict.dtypes import DType, dtype
from statedict.tensor.arrays import part_of
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.layout import is_optimizer
from statedict.tree.optimizer import (
    Shape,
    find_bad_key,
    find_strays,
    is_global,
    leaves,
    map_leaves,
    number_keys,
    parameter_size,
)
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import label, matches
from statedict.values import Opaque

STAGE = 1
Cast = tuple[DType, DType]
_NEW = "the state has no such parameter; what the target has for it stays"
_BEGIN = {"step_size": "lr", "sum": "initial_accumulator_value"}
"""What they begin with where that is not zero: a hyperparameter (torch/optim/rprop.py, adagrad.py)."""


def accepts(value: Any) -> bool:
    """Whether it is an optimizer with PyTorch's layout; one with another is an object like others with a state."""
    import torch

    usual = torch.optim.Optimizer.state_dict
    if not isinstance(value, torch.optim.Optimizer):
        return False
    if type(value).state_dict is usual and "state_dict" not in vars(value):
        return True
    own = value.state_dict()
    return is_optimizer(own) and sizes_of(own["param_groups"]) == sizes_of(value.param_groups)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live, with `param_names` where they are known."""
    refuse_states_of_parts(value, path)
    state = context.data(value.state_dict(), path, value)
    for group, live in zip(state["param_groups"], value.param_groups, strict=True):
        names = live_names(live, context.names)
        if names is not None:
            group["param_names"] = names
    return state


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Match the parameters; then `load_state_dict`, in the live order."""
    saved = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(saved, list) or not isinstance(state.get("state"), dict):
        plan.problem("kind", path, "an optimizer is restored from a dict with 'state' and 'param_groups'")
        return
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in saved):
        plan.problem("kind", join(path, "param_groups"), "is not a list of groups with 'params'")
        return
    if fault := find_bad_key(saved):
        plan.problem("kind", join(path, fault[0]), fault[1])
        return
    entries = number_keys(state["state"], saved)
    matched = match(value.param_groups, saved, entries, plan, path)
    if matched is None:
        return
    task = _Task(value, saved, entries, matched, plan, path)
    task.report()
    task.plan_groups()
    task.plan_states()
    own = value.state_dict()
    chosen = StateDict((key, state[key]) for key in own if key in state)
    chosen |= {"state": task.states, "param_groups": task.groups}
    for key in plan.common_keys(own, state, path):
        if key not in ("state", "param_groups"):
            plan.settle_entry(chosen, key, own[key], join(path, key))
    plan.actions.append((path, lambda: _load(value, chosen, own, task.follow, task.fresh)))


@dataclass(slots=True)
class _Slot:
    """A live parameter, and the saved one that it takes."""

    number: int  # its place in the optimizer
    parameter: Any
    name: str  # empty if it is not known
    source: int  # the group of the saved parameter
    key: Any  # what identifies that in the state, or `UNKNOWN`


class _Task:
    """One optimizer, the state's groups and entries, and which saved parameter is which live one."""

    def __init__(self, optimizer: Any, saved: list[Any], entries: Any, match: Match, plan: Plan, path: str) -> None:
        self.optimizer, self.saved, self.entries = optimizer, saved, entries
        self.match, self.plan, self.path = match, plan, path
        self.slots: list[list[_Slot]] = []  # by live group
        self.groups: list[dict[str, Any]] = []
        self.states: dict[Any, Any] = {}  # number of a live parameter → what it takes
        self.follow: dict[int, Callable[[Any], Any]] = {}  # number → what converts that for its shape
        self.fresh: list[Any] = []  # parameters that take nothing
        numbers = count()
        for group in optimizer.param_groups:
            names = live_names(group, plan.names) or [""] * len(group["params"])
            self.slots.append([
                _Slot(next(numbers), parameter, name, *match.keys.get(id(parameter), (-1, UNKNOWN)))
                for parameter, name in zip(group["params"], names, strict=True)
            ])  # fmt: skip

    def report(self) -> None:
        """Say of each parameter what becomes of what is kept for it."""
        plan, allow_missing, detail = self.plan, self.plan.options.allow_missing, self.match.detail
        for slot in chain.from_iterable(self.slots):
            name = slot.name or str(slot.number if slot.key is UNKNOWN else slot.key)
            full = join(self.path, f"state.{name}")
            if slot.key is not UNKNOWN:
                entry = self.entries.get(slot.key, {})
                none_yet = len(self.entries) > 1 and isinstance(entry, dict) and not entry
                plan.note("restored", full, "it had no state yet, so it starts fresh" if none_yet else detail)
            elif id(slot.parameter) in plan.absent or matches(name, allow_missing) or matches(full, allow_missing):
                plan.note("fresh", full, _NEW)
            else:
                plan.problem("missing", full, _NEW)
        taken, homes = {*self.match.keys.values()}, dict.fromkeys(plan.homes.values())
        for key in keys_of(self.saved):
            if key not in taken:
                name = self.match.names.get(key, str(key[1]))
                full = join(self.path, f"state.{name}")
                gone = find_owner(name, homes, plan) is None
                if gone or matches(name, plan.options.allow_unexpected):
                    plan.note("unexpected", full, "its parameter is not restored either" if gone else "")
                else:
                    plan.problem("unexpected", full, UNEXPECTED)

    def plan_groups(self) -> None:
        """The hyperparameters of each live group: of the saved one that most of its parameters were in."""
        for number, (group, slots) in enumerate(zip(self.optimizer.param_groups, self.slots, strict=True)):
            where = join(self.path, f"param_groups.{number}")
            sources = Counter(slot.source for slot in slots if slot.key is not UNKNOWN)
            source = self.saved[sources.most_common(1)[0][0]] if sources else group
            merged = merge(group, source, self.optimizer.defaults, self.plan, where)
            self.groups.append(merged | {"params": [slot.number for slot in slots]})
            plain = {key: value for key, value in source.items() if key not in WHOSE}
            for other in sources:
                theirs = {key: self.saved[other].get(key) for key in plain}
                unlike = ", ".join(key for key in plain if differ(plain[key], theirs[key]))
                if unlike:
                    detail = f"of its parameters some were in group {other} of the state, whose {unlike} differ"
                    self.plan.note("differs", where, detail)
        self.plan.rates[id(self.optimizer)] = [group.get("lr") for group in self.groups]

    def plan_states(self) -> None:
        """What is kept for each live parameter, and how it follows a new shape."""
        import torch

        entries = dict(self.entries)
        for slot in chain.from_iterable(self.slots):
            fit, known = self.plan.fates.get(id(slot.parameter)), slot.key in entries
            if known and (fit is None or fit.policy != "skip"):
                self._settle(entries, slot.key, slot.parameter)
            if slot.key is UNKNOWN or (known and slot.key not in entries):
                self.fresh.append(slot.parameter)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self._plan_shared(entries)
        else:
            self._plan_each(entries)
        keys = {identifier for _, identifier in keys_of(self.saved)}
        for key in [key for key in self.entries if key not in keys]:
            full = join(self.path, f"state.{key}")
            if is_global(key, keys):
                self.plan.note("restored", full)
                self.states[key] = self.entries[key]
                self._settle(self.states, key, key)
            else:
                self.plan.problem("unexpected", full, "the state keeps something for a parameter in no group")

    def _settle(self, entries: dict[Any, Any], key: Any, owner: Any) -> None:
        self.plan.settle_entry(entries, key, self.optimizer.state.get(owner), join(self.path, f"state.{key}"))

    def _plan_each(self, entries: dict[Any, Any]) -> None:
        """What each parameter has for itself, of the entries that the caller does not let go."""
        sure = {owner for owner, _ in self.plan.shapes.values()} if self.match.names else set()
        unsure = [s for s in chain.from_iterable(self.slots) if s.key in entries and id(s.parameter) not in sure]
        strays = find_strays([(tuple(slot.parameter.shape), entries[slot.key]) for slot in unsure])
        sizes = {slot.number: size for slot, size in zip(unsure, strays, strict=True)}
        kind = class_of(self.optimizer)
        for group, slots in zip(self.groups, self.slots, strict=True):
            for slot in slots:
                if slot.key not in entries:
                    continue
                at, size, kept = join(self.path, f"state.{slot.key}"), sizes.get(slot.number), entries[slot.key]
                fit, cast = _fit_state(slot, kept, kind, size, self.plan, at), self._plan_cast(slot, kept, kind, at)
                if fit is not None and fit.policy == "skip":
                    # with what its constructor made for it: Adagrad of PyTorch 2.9 needs that
                    self.fresh.append(slot.parameter)
                    continue
                self.states[slot.number] = kept
                if isinstance(kept, dict) and (fit is not None or size is None):
                    shape = tuple(slot.parameter.shape) if fit is None else fit.old
                    is_of = dtype(slot.parameter.dtype).kind if cast is None else cast[0].kind
                    hyper = group, self.saved[slot.source]
                    for fault in faults(self.optimizer, kind, slot.parameter, shape, is_of, kept, *hyper, at):
                        self.plan.problem(*fault)
                    if cast is not None:
                        self.plan.note("cast", at, f"as its parameter, {cast[0]} → {cast[1]}")
                    if fit is not None or cast is not None:
                        self.follow[slot.number] = partial(_follow, kind, shape, fit, cast, group)

    def _plan_cast(self, slot: _Slot, entries: Any, kind: str, path: str) -> Cast | None:
        """The dtype that a parameter had and the one that it has, where they differ."""
        old, new = self.plan.dtypes.get(id(slot.parameter)), dtype(slot.parameter.dtype)
        if old is None and isinstance(entries, dict):  # its model is not restored
            old = dtype_of(kind, entries)
            if old is None or old.kind != new.kind:  # which `faults` tells
                return None
            if old is not new and not matches(path, self.plan.options.cast):
                detail = f"the state has {old}, the parameter {new}; pass cast=True to convert"
                self.plan.problem("dtype", path, detail)
        return None if old is None or old is new else (old, new)

    def _plan_shared(self, entries: dict[Any, Any]) -> None:
        """The one state that all parameters of an LBFGS share, and how it follows their order."""
        before, live = keys_of(self.saved), parameters_of(self.optimizer.param_groups)
        after = [self.match.keys.get(id(parameter)) for parameter in live]
        if before and before[0][1] not in entries:
            return
        if set(before) != set(after) or any(id(parameter) in self.plan.fates for parameter in live):
            detail = "LBFGS keeps one state for all parameters, which are others in the state; leave the optimizer out"
            self.plan.problem("groups", join(self.path, "param_groups"), detail)
            return
        sizes = {key: p.numel() * (1 + p.is_complex()) for key, p in zip(after, live, strict=True)}
        at, held = join(self.path, f"state.{before[0][1]}"), entries[before[0][1]]
        if not isinstance(held, dict):
            self.plan.mismatch(at, {}, held)
            return
        for fault in lbfgs_faults(held, sum(sizes.values()), at):
            self.plan.problem(*fault)
        self.states[0] = held
        casts = {self._plan_cast(slot, held, "", at) for slot in chain.from_iterable(self.slots)}
        if len(casts) > 1:
            detail = (
                "LBFGS keeps one state for all parameters, whose dtypes change differently; leave the optimizer out"
            )
            self.plan.problem("dtype", join(self.path, "param_groups"), detail)
            return
        (cast,) = casts

        def follow(entries: Any) -> Any:
            entries = entries if before == after else reorder(before, after, sizes, entries)
            return entries if cast is None else _follow("", (sum(sizes.values()),), None, cast, {}, entries)

        self.follow[0] = follow


def _at(path: str, keys: tuple[Any, ...]) -> str:
    return ".".join([path, *map(label, keys)])


def _fit_state(slot: _Slot, entries: Any, kind: str, size: Shape | None, plan: Plan, path: str) -> Fit | None:
    """How what is kept for a parameter follows where its shape changes; `size` is what it was kept for, if another."""
    if not isinstance(entries, dict):
        plan.mismatch(path, {}, entries)
        return None
    shape, fit, part = tuple(slot.parameter.shape), plan.fates.get(id(slot.parameter)), part_of(slot.parameter)
    if part is not None and parameter_size(entries) is not None:
        plan.problem("target", path, f"the parameter is a part ({part}); restore it with torch.distributed.checkpoint")
        return None
    if fit is None and size is not None:
        full = join(path.rpartition(".")[0], slot.name)
        policies = (plan.policy(at) for at in (full, slot.name) if at)
        fit = Fit(next((policy for policy in policies if policy != "error"), "error"), size, shape)
        reason = fit.reason()
        if fit.policy == "error" or reason:
            why = reason or "their orders differ, or the parameter's shape has changed, for which there is shapes=…"
            alike = [keys for keys, value in leaves(entries) if is_array(value) and tuple(value.shape) == size]
            for keys in alike or [()]:
                plan.problem("shape", _at(path, keys), f"the state has {size}, the parameter {shape}; {why}")
            return None
    if fit is None:
        return None
    if fit.policy == "skip":
        plan.note("fresh", path, "its parameter is not restored either")
        return fit
    for keys, value in leaves(entries):
        opaque = isinstance(value, Opaque)
        if opaque or (is_array(value) and fit.follow(tuple(value.shape), role_of(kind, keys[-1])) is None):
            what = f"an object of {value.name}" if opaque else f"{tuple(value.shape)}"
            plan.problem("shape", _at(path, keys), f"{what} cannot follow the parameter, {fit}")
    plan.note("reshaped", path, f"as its parameter, {fit}")
    return fit


def _follow(kind: str, shape: Shape, fit: Fit | None, cast: Cast | None, group: dict[str, Any], entries: Any) -> Any:
    """What is kept for a parameter, which had this shape, as its new shape and dtype want it."""

    def follow(keys: tuple[Any, ...], value: Any) -> Any:
        if not is_array(value):
            return value
        tensor, role = as_lazy(value), role_of(kind, keys[-1])
        new = tensor.shape if fit is None else fit.follow(tensor.shape, role)
        if fit is not None and new is not None and new != tensor.shape:
            part = Fit(fit.policy, tensor.shape, new)
            value = part.apply(tensor, fill=float(group.get(_BEGIN.get(keys[-1], ""), 0)))
        if cast is None or tensor.dtype is not cast[0] or not has_elements(tensor.shape, shape, role):
            return value
        return as_lazy(value).torch().to(cast[1].torch)

    return map_leaves(entries, follow)


def _load(
    optimizer: Any, state: StateDict, own: Any, follow: dict[int, Callable[[Any], Any]], fresh: list[Any]
) -> None:
    entries = {index: follow[index](held) if index in follow else held for index, held in state["state"].items()}
    made = to_framework(StateDict(state | {"state": entries}))
    before = {parameter: optimizer.state[parameter] for parameter in fresh if parameter in optimizer.state}
    whole = adapt(made, own)
    for key, held in made["state"].items():
        if type(key) is int:
            whole["state"][key] = map_leaves(held, lambda _, value: None if _is_remade(value) else value)
    optimizer.load_state_dict(StateDict(whole))
    optimizer.state.update(before)
    parameters = parameters_of(optimizer.param_groups)
    for index, held in made["state"].items():  # PyTorch casts floating state to the parameter's dtype; undo that
        if type(index) is int:
            loaded = _undo_casts(optimizer.state[parameters[index]], held)
            optimizer.state[parameters[index]] = adapt(loaded, own["state"].get(index))


def _is_remade(value: Any) -> bool:
    """Whether PyTorch makes it anew from a generator of its entries, which many kinds refuse and no text survives."""
    import torch

    return isinstance(value, Iterable) and not isinstance(value, torch.Tensor)


def _undo_casts(loaded: Any, held: Any) -> Any:
    """What PyTorch has loaded, with the dtypes that the state has, and with what PyTorch was not given."""
    import torch

    if isinstance(held, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return loaded if loaded.dtype == held.dtype else held.to(loaded.device)
    if isinstance(held, dict) and isinstance(loaded, dict):
        for key in held.keys() & loaded.keys():
            loaded[key] = _undo_casts(loaded[key], held[key])
        return loaded
    if isinstance(held, list | tuple) and type(held) is type(loaded) and len(held) == len(loaded):
        return type(held)(_undo_casts(one, other) for one, other in zip(loaded, held, strict=True))
    return held if _is_remade(held) else loaded
