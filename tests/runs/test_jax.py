"""A loop of JAX, with optimizers of Optax, resumes bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.testing.same import assert_same

from ..jaxes import Net, TrainState, jax, jnp, make_train_state, nnx, optax

TARGETS = numpy.random.default_rng(0).normal(size=(64, 3)).astype("f4")


class Linen:
    """A functional loop: a TrainState, a typed key, and the position in the data."""

    def __init__(self, seed: int) -> None:
        self.tree: dict[str, Any] = {"state": make_train_state(seed), "key": jax.random.key(seed), "epoch": 0}

    @staticmethod
    @jax.jit
    def update(state: TrainState, key: Any, target: Any) -> tuple[TrainState, Any]:
        def loss(params: Any) -> Any:
            noise = jax.random.normal(key, (4, 2))
            return ((state.apply_fn({"params": params}, noise) - target) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    def step(self) -> Any:
        self.tree["key"], key = jax.random.split(self.tree["key"])
        at = int(self.tree["state"].step) % 16
        self.tree["state"], value = self.update(self.tree["state"], key, TARGETS[4 * at : 4 * at + 4])
        return value


class Nnx:
    """A module with dropout and an optimizer, both changed in place."""

    def __init__(self, seed: int) -> None:
        net = Net(seed)
        self.tree: dict[str, Any] = {"net": net, "optimizer": nnx.Optimizer(net, optax.adamw(0.05), wrt=nnx.Param)}

    def step(self) -> Any:
        def loss(net: Net) -> Any:
            return ((net(jnp.ones((4, 2))) - TARGETS[:4]) ** 2).mean()

        value, grads = nnx.value_and_grad(loss)(self.tree["net"])
        self.tree["optimizer"].update(self.tree["net"], grads)
        return value


@pytest.mark.parametrize("make", [Linen, Nnx], ids=["linen", "nnx"])
@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_run_that_is_resumed_goes_on_bit_by_bit(make: Callable[[int], Any], format: str, tmp_path: Path) -> None:
    run = make(0)
    with statedict.CheckpointManager(tmp_path, format=format, keep=2) as manager:
        for step in range(1, 7):
            run.step()
            manager.save(step, run.tree)
        wanted = [float(run.step()) for _ in range(3)]
    resumed = make(1)
    with statedict.CheckpointManager(tmp_path, format=format) as manager:
        found = manager.restore(resumed.tree)
        assert found is not None
    assert [float(resumed.step()) for _ in range(3)] == wanted
    assert_same(statedict.capture(resumed.tree), statedict.capture(run.tree))


def test_arrays_that_a_step_donates_are_in_the_checkpoint(tmp_path: Path) -> None:
    update = jax.jit(lambda tree: jax.tree.map(lambda one: one * 2, tree), donate_argnums=0)
    tree = {"w": jnp.ones(1 << 16), "n": jnp.zeros(3)}
    with statedict.CheckpointManager(tmp_path, background=True) as manager:
        for step in range(3):
            manager.save(step, tree)
            tree = update(tree)
    for step in range(3):
        assert statedict.load(tmp_path / f"{step}")["w"].numpy().max() == 2**step
