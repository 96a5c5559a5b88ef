"""The hyperparameters of an optimizer's groups: the state's or what the caller wants instead, reported one by one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from statedict.adapters import join
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import Plan
from statedict.tensor.lazy import is_array

WHOSE = ("params", "param_names")
_ADDED = frozenset((
    "foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay",
    "amsgrad", "nesterov", "momentum", "centered",
))  # fmt: skip
"""The hyperparameters that came with releases of PyTorch, which fill them in where a state is older."""
_OF_A_SCHEDULER = frozenset((
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr",
))  # fmt: skip


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
            plan.missing(full, "the state is another optimizer's, it has no such hyperparameter")
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
            plan.unexpected(full, "the state is another optimizer's, the target has no such hyperparameter")
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
    changed = not is_array(before) and not is_array(wanted) and before != wanted
    plan.note("restored", path, f"{_short(before)} → {_short(wanted)}" if changed else "")
    return wanted


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
