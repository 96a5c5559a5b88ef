"""MLX: arrays, modules as `save_weights` names their parameters, and optimizers by their `state`.

Restoring puts a new array where the old one is held: in a module, in the `state` of an optimizer, in a dict or a list.
What an optimizer keeps beside its `state`, such as its betas, is not saved, as by MLX itself; its learning rate is.
Source: mlx 0.32, `python/mlx/nn/layers/base.py`, `python/mlx/optimizers/optimizers.py`.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from statedict.adapters import Capture, join
from statedict.adapters.objects import fill
from statedict.adapters.plan import Plan
from statedict.dtypes import DType, dtype
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.state_dict import StateDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from statedict.adapters.shapes import Fit
    from statedict.tensor.lazy import LazyTensor

STAGE = 0
REPLACES = True
_FRESH = {"step", "learning_rate"}  # of an optimizer that has seen no parameters


def accepts(value: Any) -> bool:
    """Whether it is an array, a module or an optimizer."""
    return _is_array(value) or _is_module(value) or _is_optimizer(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, sys.modules["mlx.core"].array)


def _is_module(value: Any) -> bool:
    nn: Any = sys.modules.get("mlx.nn")
    return nn is not None and isinstance(value, nn.Module)


def _is_optimizer(value: Any) -> bool:
    optimizers: Any = sys.modules.get("mlx.optimizers")
    return optimizers is not None and isinstance(value, optimizers.Optimizer)


def capture(value: Any, context: Capture, path: str) -> Any:
    """The elements of an array as one of NumPy; the parameters of a module by name; the state of an optimizer."""
    if _is_array(value):
        return context.value(_to_numpy(value), path)
    if _is_optimizer(value):
        return context.value(value.state, path)
    return StateDict({name: context.value(array, join(path, name)) for name, array in _parameters(value).items()})


def plan(value: Any, state: Any, plan: Plan, path: str, assign: Callable[[Any], None] | None = None) -> None:
    """Compare names, shapes and dtypes; then hold new arrays."""
    if _is_array(value):
        _plan_array(value, state, plan, path, assign)
    elif not isinstance(state, dict):
        plan.mismatch(path, {}, state)
    elif _is_optimizer(value):
        _plan_optimizer(value, state, plan, path)
    else:
        own = _parameters(value)
        for name in plan.common_keys(own, state, path):
            plan.value(own[name], state[name], join(path, name), partial(own.__setitem__, name))
        plan.actions.append((path, lambda: value.update(_unflatten(own))))


def _plan_optimizer(value: Any, state: dict[Any, Any], plan: Plan, path: str) -> None:
    own = _copy(value.state)
    if set(own) <= _FRESH < set(state):
        remedy = "call optimizer.init(model.trainable_parameters()) first"
        plan.problem("target", path, f"the optimizer has no state of parameters yet, the state has one; {remedy}")
        return
    plan.value(own, state, path)
    plan.actions.append((path, lambda: setattr(value, "state", own)))


def _copy(tree: Any) -> Any:
    from mlx.utils import tree_map

    return tree_map(lambda leaf: leaf, tree)


def _parameters(module: Any) -> dict[str, Any]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(module.parameters()))


def _unflatten(arrays: dict[str, Any]) -> Any:
    from mlx.utils import tree_unflatten

    return tree_unflatten([*arrays.items()])


def _plan_array(value: Any, state: Any, plan: Plan, path: str, assign: Callable[[Any], None] | None) -> None:
    if not is_array(state):
        plan.problem("kind", path, f"the target is an array of MLX, the state has a {type(state).__name__}")
        return
    if assign is None:
        plan.immutable(path, "an array of MLX")
        return
    tensor = as_lazy(state)
    fit = plan.tensor(tuple(value.shape), _kind(value), tensor, path)
    if fit is True or (fit and fit.policy != "skip"):
        plan.actions.append((path, lambda: assign(_make(value, tensor, fit))))


def _kind(value: Any) -> DType:
    return dtype(str(value.dtype).rpartition(".")[2].rstrip("_"))


def _make(value: Any, tensor: LazyTensor, fit: Fit | bool) -> Any:
    import numpy

    core: Any = sys.modules["mlx.core"]
    array = numpy.empty(value.shape, _kind(value).numpy) if fit is True else _to_numpy(value)
    fill(array, tensor, fit)
    if array.dtype.name == "bfloat16":  # which MLX does not take from NumPy
        return core.array(array.view("u2")).view(core.bfloat16)
    return core.array(array)


def _to_numpy(value: Any) -> Any:
    import numpy

    core: Any = sys.modules["mlx.core"]
    if value.dtype == core.bfloat16:
        return numpy.array(value.view(core.uint16)).view(dtype("bfloat16").numpy)
    return numpy.array(value)
