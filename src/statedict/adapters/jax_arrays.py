"""`jax.Array` and keys of `jax.random`. They are immutable, so restoring puts a new one where the old one is held.

A key is the dict of its `key_impl` and `key_data`; any other array is an array of NumPy. The new array has the target's
sharding, its weak type, and is committed to a device only if the target was.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from statedict.adapters import Capture, join
from statedict.adapters.objects import fill
from statedict.adapters.plan import Plan
from statedict.adapters.shapes import Fit
from statedict.dtypes import BY_NAME, dtype
from statedict.errors import UnsupportedError
from statedict.tensor.lazy import as_lazy, is_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from statedict.tensor.lazy import LazyTensor

STAGE = 0
REPLACES = True
NUMBERS = (bool, int, float, complex)
"""What is a leaf in a tree of JAX, as an array without dimensions is."""
_IMPL, _DATA = "key_impl", "key_data"


def accepts(value: Any) -> bool:
    """Whether it is an array of JAX, or stands for one."""
    jax: Any = sys.modules["jax"]
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct)


def is_key(value: Any) -> bool:
    """Whether it is an array of keys, which have a type of their own."""
    jax: Any = sys.modules["jax"]
    return bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its elements as an array of NumPy, gathered from all devices of this process."""
    jax: Any = sys.modules["jax"]
    _check(value, path)
    if is_key(value):
        return context.value({_IMPL: str(jax.random.key_impl(value)), _DATA: jax.random.key_data(value)}, path)
    return context.value(_to_numpy(value), path)


def _check(value: Any, path: str) -> None:
    """Raise UnsupportedError if it has no elements to read here."""
    jax: Any = sys.modules["jax"]
    why = ""
    if isinstance(value, jax.core.Tracer):
        why = "is traced; call statedict outside of jax.jit, jax.grad and the like"
    elif isinstance(value, jax.ShapeDtypeStruct):
        why = "has a shape and no elements; it can only be restored into"
    elif value.is_deleted():
        why = "was given up, as jax.jit does with donated arguments; take what the function returned"
    elif not value.is_fully_addressable:
        why = "has parts in other processes; gather it by jax.experimental.multihost_utils.process_allgather"
    elif not is_key(value) and value.dtype.name not in BY_NAME:
        why = f"has the dtype {value.dtype}, which is not written; convert it, to int8 for example"
    if why:
        raise UnsupportedError(f"{path or 'the root'}: an array of JAX that {why}")


def _to_numpy(value: Any) -> Any:
    import numpy

    return numpy.asarray(value)


def plan(value: Any, state: Any, plan: Plan, path: str, assign: Callable[[Any], None] | None = None) -> None:
    """Compare shapes and dtypes; then hold a new array instead."""
    jax: Any = sys.modules["jax"]
    if isinstance(value, jax.core.Tracer):
        plan.problem("target", path, "the target is traced; restore outside of jax.jit, jax.grad and the like")
        return
    if is_key(value) and _is_hollow(value):
        plan.problem("target", path, "the target is a key without data; make one by jax.random.key")
        return
    if is_key(value):
        _plan_key(value, state, plan, path, assign)
        return
    if type(state) in NUMBERS and not value.shape:
        state = _to_array(state, value.dtype)
    if not is_array(state):
        plan.problem("kind", path, f"the target is an array of JAX, the state has a {type(state).__name__}")
        return
    if assign is None:
        plan.immutable(path, "an array of JAX")
        return
    tensor = as_lazy(state)
    try:
        kind = dtype(value.dtype)
    except ValueError:
        plan.problem("target", path, f"the target has the dtype {value.dtype}, which is not written")
        return
    fit = plan.tensor(tuple(value.shape), kind, tensor, path)
    if isinstance(fit, Fit) and fit.policy == "overlap" and _is_hollow(value):
        plan.problem("shape", path, "'overlap' leaves the rest as it is, and the target has no values")
    elif fit is True or (fit and fit.policy != "skip"):
        plan.actions.append((path, lambda: assign(_make(value, tensor, fit))))


def _is_hollow(value: Any) -> bool:
    """Whether it has a shape and no elements: it is abstract, or was given up."""
    jax: Any = sys.modules["jax"]
    return isinstance(value, jax.ShapeDtypeStruct) or bool(value.is_deleted())


def _to_array(number: Any, kind: Any) -> Any:
    """A number as an array of a dtype, if it stays the same; else the number."""
    import numpy

    with numpy.errstate(all="ignore"):
        array = numpy.array(number).astype(kind)
    return array if array.item() == number and (array.dtype.kind == "b") is (type(number) is bool) else number


def _plan_key(value: Any, state: Any, plan: Plan, path: str, assign: Callable[[Any], None] | None) -> None:
    jax: Any = sys.modules["jax"]
    own = {_IMPL: str(jax.random.key_impl(value)), _DATA: jax.random.key_data(value)}
    if not isinstance(state, dict):
        found = "an array, as of a raw key: " if is_array(state) else "a " + type(state).__name__ + ": "
        plan.problem("kind", path, f"the target is a key of jax.random, the state has {found}it needs {[*own]}")
        return
    if assign is None:
        plan.immutable(path, "an array of JAX")
        return
    keys = [*plan.common_keys(own, state, path)]
    if _IMPL in keys and state[_IMPL] != own[_IMPL]:
        what = f"the target's keys are of {own[_IMPL]!r}, the state's of {state[_IMPL]!r:.40}"
        plan.problem("kind", join(path, _IMPL), what)
    elif len(keys) == len(own):
        plan.note("restored", join(path, _IMPL))
        made: list[Any] = []
        plan.value(own[_DATA], state[_DATA], join(path, _DATA), made.append)
        wrap = partial(jax.random.wrap_key_data, impl=own[_IMPL])
        plan.actions.append((path, lambda: assign(_place(value, wrap(made[0]))) if made else None))


def _make(value: Any, tensor: LazyTensor, fit: Fit | bool) -> Any:
    """A new array with the elements of a tensor, and everything else as the old one has it."""
    import numpy

    whole = fit is True or _is_hollow(value)
    array = numpy.empty(value.shape, value.dtype) if whole else numpy.array(value)
    fill(array, tensor, fit)
    return _place(value, array)


def _place(value: Any, array: Any) -> Any:
    jax: Any = sys.modules["jax"]
    sharding = getattr(value, "sharding", None)
    if sharding is not None and getattr(value, "committed", True):
        made = jax.device_put(array, sharding)
    else:
        made = jax.numpy.asarray(array)
    if getattr(value, "weak_type", False):
        from jax.extend.core.primitives import convert_element_type_p

        made = convert_element_type_p.bind(made, new_dtype=made.dtype, weak_type=True, sharding=None)
    return made
