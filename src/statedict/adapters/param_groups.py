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

_WHOSE = ("params", "param_names")
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
    hyper = {key: value for key, value in saved.items() if key not in _WHOSE}
    # Adam has amsgrad for longer than any optimizer has maximize: a state with maximize alone is another's
    added = _ADDED - {"amsgrad"} if "maximize" in hyper else _ADDED
    for key, before in live.items():
        if key in _WHOSE:
            continue
        full = join(path, key)
        if key not in saved:
            if key in defaults and key not in added:
                plan.missing(full, "the state is another optimizer's, it has no such hyperparameter")
            else:
                plan.note("missing", full, "the state has none, the target's stays")
            hyper[key] = plan.overridden(full, before, key)
            continue
        wanted = plan.overridden(full, hyper[key], key)
        if wanted is not hyper[key]:
            plan.note("overridden", full, f"{_short(hyper[key])} of the state by {_short(wanted)}")
            hyper[key] = _as_it_was(hyper[key], wanted)
            continue
        wanted = plan.settle(wanted, before, full)
        hyper[key] = before if wanted is DROPPED else wanted
        if wanted is DROPPED:
            continue
        changed = not is_array(before) and not is_array(wanted) and before != wanted
        plan.note("restored", full, f"{_short(before)} → {_short(wanted)}" if changed else "")
    for key in [key for key in hyper if key not in live]:
        full = join(path, key)
        plan.keep(hyper, key, plan.settle(hyper[key], None, full))
        if key not in hyper:
            continue
        if key not in _hyperparameters():
            hyper[key] = plan.overridden(full, hyper[key], key)
            plan.note("unexpected", full, "of the caller's own; it is taken over")
        elif key in _OF_A_SCHEDULER or key in added:
            hyper[key] = plan.overridden(full, hyper[key], key)
            plan.note("unexpected", full, "the target had none, as with what a scheduler adds; it is taken over")
        else:
            plan.unexpected(full, "the state is another optimizer's, the target has no such hyperparameter")
    if "param_names" in live:
        hyper["param_names"] = live["param_names"]
    return hyper


@cache
def _hyperparameters() -> frozenset[str]:
    """What optimizers and schedulers of PyTorch put into groups; anything else is the caller's."""
    import torch

    kinds = (kind for kind in vars(torch.optim).values() if isinstance(kind, type))
    found = (inspect.signature(kind).parameters for kind in kinds if issubclass(kind, torch.optim.Optimizer))
    return _OF_A_SCHEDULER.union(*found)


def _short(value: Any) -> str:
    return f"{value!r:.40}"


def _as_it_was(value: Any, wanted: Any) -> Any:
    """What the caller wants, of the kind that the state has: a tensor, such as a learning rate may be, or a tuple."""
    if isinstance(value, tuple) and isinstance(wanted, list):
        return tuple(wanted)
    if not is_array(value) or is_array(wanted):
        return wanted
    import torch

    return torch.full(value.shape, wanted, dtype=getattr(value.dtype, "torch", value.dtype))
