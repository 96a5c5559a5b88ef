"""Each adapter's entry for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy
import pytest
import torch
from torch import nn

from statedict.adapters.collect import ADAPTERS

from ..formats import kerases

torch.set_num_threads(1)  # two test processes with two threads each on two cores wait for one another


@dataclass(frozen=True)
class Subject:
    """An adapter under test.

    `make(seed)` builds an object whose state depends on the seed; `change` alters that state in place.
    `state` is what the object's owner sees of it, to compare by.
    """

    make: Callable[[int], Any]
    change: Callable[[Any], None]
    state: Callable[[Any], Any]


def keras_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    source = keras.Input((3,))
    made = keras.Model(source, keras.layers.Dense(2, name="head")(keras.layers.Dropout(0.5, name="drop")(source)))
    made.compile("adam", "mse")
    kerases.step(made)
    return made


class Progress:
    """A plain object: attributes of all kinds, one of them in a slot."""

    def __init__(self, seed: int) -> None:
        generator = numpy.random.default_rng(seed)
        self.losses = generator.normal(size=5)
        self.mean = torch.tensor(generator.normal(size=(2, 3)))
        self.step = seed
        self.names = ["a", f"run {seed}"]
        self.nested = {"best": float(seed), 3: {"deep": generator.normal(size=2)}}


class Counting:
    """Has `state_dict` and `load_state_dict`, as samplers and metrics do."""

    def __init__(self, seed: int) -> None:
        self.seen, self.total = seed, torch.full((3,), float(seed))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "total": self.total, "nested": {"twice": [2 * self.seen]}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.total = state["seen"], state["total"]


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2).bfloat16())
    network[1].running_mean.add_(seed)
    return network


def optimizer(seed: int) -> torch.optim.Optimizer:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    made = torch.optim.AdamW(network.parameters(), lr=0.1 / (seed + 1))
    step(made)
    return made


def scheduler(seed: int) -> torch.optim.lr_scheduler.LRScheduler:
    made = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=torch.tensor(0.1)), step_size=9 + seed)
    change_scheduler(made)
    return made


def change_scheduler(value: torch.optim.lr_scheduler.LRScheduler) -> None:
    value.optimizer.step()
    value.step()


def step(value: torch.optim.Optimizer) -> None:
    for group in value.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    value.step()


def change_model(value: nn.Module) -> None:
    with torch.no_grad():
        for tensor in value.state_dict().values():
            tensor.add_(1)


def change_counting(value: Counting) -> None:
    value.seen += 1
    value.total += 1


def change_progress(value: Progress) -> None:
    value.losses += 1
    value.mean.add_(1)
    value.step += 1
    value.names[1] = "changed"
    value.nested["best"] = -1.0
    value.nested[3]["deep"][0] = 7


def of_jax(part: str) -> Subject:
    """Of what does not change, in a dict; JAX is imported once it is needed."""

    def make(seed: int) -> Any:
        from .. import jaxes

        key = jaxes.jax.random.key(seed)
        if part == "arrays":
            return {"w": jaxes.jax.random.normal(key, (2, 3)), "key": key}
        return {"state": jaxes.make_train_state(seed)} if part == "trees" else jaxes.Net(seed)

    def change(value: Any) -> None:
        from ..jaxes import jax, nnx

        def add(array: Any) -> Any:
            return array if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) else array + 1

        if part == "module":
            nnx.update(value, jax.tree.map(add, nnx.state(value)))
        for name in value if part != "module" else ():
            value[name] = jax.tree.map(lambda leaf: add(leaf) if isinstance(leaf, jax.Array) else leaf, value[name])

    def read(value: Any) -> Any:
        from ..jaxes import nnx, to_numpy

        whole = to_numpy(nnx.to_pure_dict(nnx.state(value)) if part == "module" else value)
        return {"step": whole["state"].step, "params": whole["state"].params} if part == "trees" else whole

    return Subject(make, change, read)


def estimator(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    rows = numpy.random.default_rng(seed).normal(size=(20, 3))
    return LogisticRegression(C=seed + 1.0).fit(rows, rows[:, 0] > 0)


def change_estimator(value: Any) -> None:
    value.coef_ += 1
    value.C = 9.0


def mlx_model(seed: int) -> Any:
    import mlx.core as mx
    from mlx import nn as layers

    mx.random.seed(seed)
    network = layers.Sequential(layers.Linear(3, 4), layers.BatchNorm(4), layers.Linear(4, 2))
    network.layers[2].set_dtype(mx.bfloat16)
    return network


def change_mlx(value: Any) -> None:
    from mlx.utils import tree_map

    value.update(tree_map(lambda array: array + 1, value.parameters()))


def read_mlx(value: Any) -> dict[str, Any]:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    return {name: numpy.array(array.astype(mx.float32)) for name, array in tree_flatten(value.parameters())}


SUBJECTS = {
    "statedict.adapters.mlx": Subject(mlx_model, change_mlx, read_mlx),
    "statedict.adapters.keras": Subject(keras_model, kerases.step, kerases.named),
    "statedict.adapters.flax_nnx": of_jax("module"),
    "statedict.adapters.jax_arrays": of_jax("arrays"),
    "statedict.adapters.jax_trees": of_jax("trees"),
    "statedict.adapters.sklearn": Subject(estimator, change_estimator, vars),
    "statedict.adapters.torch_module": Subject(model, change_model, lambda value: value.state_dict()),
    "statedict.adapters.torch_optimizer": Subject(optimizer, step, lambda value: value.state_dict()),
    "statedict.adapters.torch_scheduler": Subject(scheduler, change_scheduler, lambda value: value.state_dict()),
    "statedict.adapters.generators": Subject(
        lambda seed: torch.Generator().manual_seed(seed), torch.Generator.seed, lambda value: {"": value.get_state()}
    ),
    "statedict.adapters.stateful": Subject(Counting, change_counting, lambda value: value.state_dict()),
    "statedict.adapters.objects": Subject(Progress, change_progress, vars),
}


@pytest.fixture(params=[name for _, name in ADAPTERS], ids=lambda name: name.rpartition(".")[2])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every adapter of the table; one without an entry above fails."""
    return SUBJECTS[request.param]
