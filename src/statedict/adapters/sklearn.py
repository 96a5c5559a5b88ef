"""Estimators of scikit-learn: their parameters and what they have learnt, by attribute.

What `fit` learns stands in attributes whose names end in `_` or begin with it; an estimator that is not fitted has
none, and gets those of the state. They must be data: an estimator with others in it that it has learnt, or with trees,
cannot be built from its arrays, and is refused. Estimators that are parameters, such as the steps of a pipeline, are
restored in place.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from statedict.adapters import Capture, adapt, join, leaf, qualified_name
from statedict.adapters.labels import DROPPED
from statedict.errors import UnsupportedError
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk

if TYPE_CHECKING:
    from statedict.adapters.plan import Plan

STAGE = 0


def accepts(value: Any) -> bool:
    """Whether it is an estimator."""
    base: Any = sys.modules["sklearn.base"]
    return isinstance(value, base.BaseEstimator) and not isinstance(value, type)


def _is_learnt(name: Any) -> bool:
    return isinstance(name, str) and (name.endswith("_") or name.startswith("_"))


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its attributes; of what it has learnt only data."""
    state = StateDict()
    for name, item in vars(value).items():
        where = join(path, name)
        for place, part in walk(item, where) if _is_learnt(name) else ():
            if leaf(part) is ...:
                what = f"{qualified_name(type(value))} has learnt a {qualified_name(type(part))}, which is no data"
                raise UnsupportedError(f"{place}: {what}; keep the estimator by joblib or skops, or leave it out")
        state[name] = context.value(item, where)
    return state


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Plan for its parameters, and take what the state has learnt."""
    if not isinstance(state, dict):
        plan.mismatch(path, value, state)
        return
    own = vars(value)
    learnt = {name: item for name, item in state.items() if _is_learnt(name)}
    rest = {name: item for name, item in own.items() if not _is_learnt(name)}
    for name in plan.common_keys(rest, {name: item for name, item in state.items() if name not in learnt}, path):
        plan.value(rest[name], state[name], join(path, name), partial(setattr, value, name))
    for name in own:
        if _is_learnt(name) and name not in learnt:
            plan.problem("missing", join(path, name), "the target is fitted and has it, the state does not")
    for name, item in learnt.items():
        where, live = join(path, name), own.get(name)
        settled = plan.settle(item, live, where)
        if settled is not DROPPED:
            plan.note("restored", where, "" if name in own else "learnt by the state's estimator")
            plan.actions.append((where, partial(_learn, value, name, settled, live)))


def _learn(value: Any, name: str, item: Any, live: Any) -> None:
    arrays = StateDict({"": item}).numpy(copy=True)[""]
    setattr(value, name, adapt(arrays, live))
