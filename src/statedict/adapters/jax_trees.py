"""Nodes of JAX's trees: tuples, named tuples such as the states of Optax, and classes registered with `jax.tree_util`.

A node is a dict of its children by name, as `jax.tree_util.tree_flatten_with_path` names them, so that the state of
`optax.adam` is `0.mu.dense.kernel`; a tuple stays one. Data beside the children, such as the `apply_fn` of a
`TrainState`, is not in the state, and stays. Since such nodes do not change, restoring puts a new node where the old
one is held, in a dict, a list or an attribute. The old node stays as it is, with the dicts in it.
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from statedict.adapters import Capture, join
from statedict.adapters.jax_arrays import NUMBERS
from statedict.adapters.plan import Plan
from statedict.tensor.lazy import is_array
from statedict.tree.state_dict import StateDict

if TYPE_CHECKING:
    from collections.abc import Callable

STAGE = 0
REPLACES = True


def accepts(value: Any) -> bool:
    """Whether it is a node that is registered, a tuple that holds arrays of JAX, or one like `optax.EmptyState()`."""
    jax: Any = sys.modules["jax"]
    if isinstance(value, dict | list) or value is None or isinstance(value, type):
        return False
    if not isinstance(value, tuple):
        return type(value).__module__ != "builtins" and not jax.tree_util.all_leaves([value])
    return getattr(value, "_fields", None) == () or _holds_arrays(value)


def _holds_arrays(value: Any) -> bool:
    jax: Any = sys.modules["jax"]
    try:
        leaves = jax.tree_util.tree_leaves(value)
    except ValueError:  # the keys of a dict in it cannot be sorted, so it is not a tree of JAX
        return False
    return any(isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) for leaf in leaves)


def _open(value: Any) -> tuple[dict[Any, Any], Any]:
    """The children of a node by name, and what builds another one of new children."""
    jax: Any = sys.modules["jax"]
    children, node = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda one: one is not value)
    return {_name(path[0]): child for path, child in children}, node.unflatten


def _name(key: Any) -> Any:
    return next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name))


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its children, captured."""
    children, _ = _open(value)
    made = {name: context.value(child, join(path, name)) for name, child in children.items()}
    return tuple(made.values()) if _is_tuple(value) else StateDict(made)


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and not hasattr(value, "_fields")


def plan(value: Any, state: Any, plan: Plan, path: str, assign: Callable[[Any], None] | None = None) -> None:
    """Plan for the children; then hold a node of the new ones."""
    children, build = _open(value)
    entries = _name_entries(state, [*children])
    if entries is None:
        what = "tuple" if _is_tuple(value) else type(value).__name__
        found = f"a {type(state).__name__}" + (f" of {len(state)}" if isinstance(state, list | tuple) else "")
        plan.problem("kind", path, f"the target is a {what} of {len(children)}, the state has {found}")
        return
    if assign is not None:
        children = {name: _copy_containers(child) for name, child in children.items()}
    before = len(plan.actions)
    for name in plan.common_keys(children, entries, path):
        holds = None if assign is None else partial(children.__setitem__, name)
        child, entry = children[name], entries[name]
        if type(child) in NUMBERS and is_array(entry):  # such as `TrainState.step`, until jax.jit returns it
            jax: Any = sys.modules["jax"]
            child = jax.numpy.asarray(child)
        plan.value(child, entry, join(path, name), holds)
    if assign is not None and len(plan.actions) > before:
        plan.actions.append((path, lambda: assign(build([*children.values()]))))


def _copy_containers(value: Any) -> Any:
    """Dicts and lists anew, down to the first node that is neither: the old node keeps what it has."""
    if not isinstance(value, dict | list):
        return value
    made = copy.copy(value)
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        made[key] = _copy_containers(child)
    return made


def _name_entries(state: Any, names: list[Any]) -> dict[Any, Any] | None:
    """The entries of a state by the names of children, which Orbax and Flax may have written in another way."""
    if isinstance(state, dict):
        texts = {str(name): name for name in names}
        return {texts.get(key, key) if type(key) in (str, int) else key: child for key, child in state.items()}
    if isinstance(state, list | tuple) and len(state) == len(names):
        return dict(zip(names, state, strict=True))
    return {} if state is None and not names else None
