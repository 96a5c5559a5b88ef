"""Files that Keras writes, with the backend of PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy
import torch
from keras import layers


class Block(keras.Model):
    """A model of a user, with layers in attributes and in a list."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Dense(4, name="inner")
        self.norm = layers.BatchNormalization(name="norm")
        self.blocks = [layers.Dense(4, name=f"block_{index}") for index in range(2)]
        self.gain = self.add_weight(shape=(4,), name="gain")

    def call(self, x: Any) -> Any:
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = block(x)
        return x * self.gain


def functional() -> keras.Model:
    """A functional model with recurrent, custom and half-precision layers, after a step of Adam."""
    keras.utils.set_random_seed(0)
    source = keras.Input((8,), name="source")
    x = layers.Dense(6, name="encoder")(source)
    x = layers.LSTM(5, name="rnn")(layers.Reshape((2, 3))(x))
    x = Block(name="block")(layers.Dropout(0.1)(x))
    return _fit(keras.Model(source, layers.Dense(3, dtype="bfloat16", name="head")(x), name="net"), (8,), 3)


def sequential() -> keras.Model:
    """A chain of layers, the same for everyone, after a step of Adam."""
    keras.utils.set_random_seed(0)
    chain = [
        layers.Conv2D(2, 3, name="stem"),
        layers.BatchNormalization(name="bn", scale=False),
        layers.Flatten(name="flat"),
        layers.Dense(3, use_bias=False, name="hidden"),
        layers.LayerNormalization(center=False, name="ln"),
        *(layers.Dense(3, name=f"dense_{index}") for index in range(11)),
        layers.Dense(2, name="head"),
    ]
    return _fit(keras.Sequential([keras.Input((5, 5, 1)), *chain]), (5, 5, 1), 2)


def _fit(model: keras.Model, shape: tuple[int, ...], outputs: int) -> keras.Model:
    rng = numpy.random.default_rng(0)
    model.compile("adam", "mse")
    model.train_on_batch(rng.random((4, *shape), "f4"), rng.random((4, outputs), "f4"))
    return model


def save(model: keras.Model, path: Path) -> Path:
    """Save a model whole, or its weights, by what the name says."""
    with warnings.catch_warnings(action="ignore"):
        if path.name.endswith(".weights.json"):
            model.save_weights(path, max_shard_size=4e-7)
        elif path.name.endswith(".weights.h5"):
            model.save_weights(path)
        else:
            model.save(path)
    return path


def values(model: keras.Model) -> list[bytes]:
    """The bytes of all variables, the optimizer's too."""
    every = [*model.variables, *model.optimizer.variables]
    return [bytes(variable.value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()) for variable in every]


def array(variable: Any) -> Any:
    """What a variable holds; Keras's own `numpy()` warns."""
    return variable.value.detach().cpu().numpy()


def named(model: keras.Model) -> dict[str, Any]:
    """All variables by their paths, the optimizer's too."""
    every = [*model.variables, *model.optimizer.variables]
    return {f"{index} {variable.name}": variable.value.detach() for index, variable in enumerate(every)}


def step(model: keras.Model) -> None:
    """Train a model for a step."""
    rng = numpy.random.default_rng(1)
    shapes = (model.input_shape[1:], model.output_shape[1:])
    model.train_on_batch(*(rng.random((4, *shape), "f4") for shape in shapes))


def clear(model: keras.Model) -> None:
    """Set all variables to zero."""
    for variable in [*model.variables, *model.optimizer.variables]:
        variable.assign(numpy.zeros(variable.shape))
