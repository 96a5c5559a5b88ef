"""`torch.optim.lr_scheduler.LRScheduler`: as other objects with a state, held against its optimizer."""

from __future__ import annotations

import math
from typing import Any

from statedict.adapters import Capture, join, stateful
from statedict.adapters.plan import Plan
from statedict.tensor.lazy import is_array

STAGE = 2
_ANNEALS = {"_cosine_anneal": "cos", "_linear_anneal": "linear"}


class _Annealed:
    """`SWALR` before PyTorch 2.10, whose state has a function: as later releases, which write its name."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        state = dict(self.scheduler.state_dict())
        return state | {"_anneal_strategy": _ANNEALS[state.pop("anneal_func").__name__]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = {strategy: name for name, strategy in _ANNEALS.items()}
        state = dict(state)
        self.scheduler.anneal_func = getattr(self.scheduler, names[state.pop("_anneal_strategy")])
        self.scheduler.load_state_dict(state)


def _stateful(value: Any) -> Any:
    function = getattr(value, "anneal_func", None)
    named = getattr(function, "__name__", None) in _ANNEALS and not hasattr(value, "_anneal_strategy")
    return _Annealed(value) if named else value


def accepts(value: Any) -> bool:
    """Whether it is a scheduler."""
    import torch

    return isinstance(value, torch.optim.lr_scheduler.LRScheduler)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    return stateful.capture(_stateful(value), context, path)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """As any object's, held against the groups and the learning rates that its optimizer will have."""
    groups = value.optimizer.param_groups
    rates = plan.rates.get(id(value.optimizer), [group.get("lr") for group in groups])
    for key in ("base_lrs", "_last_lr") if isinstance(state, dict) else ():
        full = join(path, key)
        saved = plan.override(full, state.get(key))
        if not isinstance(saved, list):
            continue
        if len(saved) != len(rates):
            plan.problem("groups", full, f"the state has {len(saved)}, the optimizer has {len(rates)} groups")
            continue
        pairs = zip(map(_number, saved), map(_number, rates), strict=True)
        if key == "_last_lr" and not all(math.isclose(one, other, rel_tol=1e-6) for one, other in pairs):
            said, has = (", ".join(f"{_number(rate):g}" for rate in some) for some in (saved, rates))
            plan.note("differs", full, f"the scheduler's last learning rate is {said}, its optimizer's will be {has}")
    stateful.plan(_stateful(value), state, plan, path)


def _number(rate: Any) -> float:
    """A learning rate as a number, NaN where it is none, which is unlike any other."""
    try:
        return float(rate.item() if is_array(rate) else rate)
    except (TypeError, ValueError, RuntimeError):
        return math.nan
