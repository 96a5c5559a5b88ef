"""JAX with two devices, and what the tests train with it; import JAX from here."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy
import optax
from flax import nnx
from flax.training.train_state import TrainState

with suppress(RuntimeError):  # something else has used JAX before
    jax.config.update("jax_num_cpu_devices", 2)


def make_train_state(seed: int) -> TrainState:
    """A linen model after one step of AdamW."""
    model = linen.Dense(3)
    params = model.init(jax.random.key(seed), jnp.ones((1, 2)))["params"]
    params["bias"] = params["bias"].astype(jnp.bfloat16)
    schedule = optax.cosine_decay_schedule(0.1, 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    return state.apply_gradients(grads=jax.tree.map(lambda one: one + seed, params))


class Net(nnx.Module):
    """With a normalization, a dropout, a list of layers and a variable that stands twice."""

    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.first, self.norm = nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        layers = [nnx.Linear(3, 3, rngs=rngs) for _ in range(2)]
        self.layers = getattr(nnx, "List", list)(layers)
        self.tied = self.first.kernel

    def __call__(self, x: Any) -> Any:
        x = self.dropout(self.norm(self.first(x)))
        for layer in self.layers:
            x = layer(x)
        return x


def to_numpy(tree: Any) -> Any:
    """A tree of JAX as one of numpy; keys as their data."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return numpy.array(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(convert, tree)
