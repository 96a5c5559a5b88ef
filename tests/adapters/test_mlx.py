"""MLX: arrays of every dtype, modules, optimizers, and a run that goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_flatten

import statedict
from statedict.errors import RestoreError


class Net(nn.Module):
    """A module with lists, a frozen layer, a bare parameter and what is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, 4), nn.BatchNorm(4)]
        self.out = nn.Linear(4, 2)
        self.scale = mx.array(2.0)
        self.width = 4
        self._hidden = mx.array(1.0)
        self.layers[0].freeze()

    def __call__(self, rows: mx.array) -> mx.array:
        for layer in self.layers:
            rows = layer(rows)
        return self.out(rows) * self.scale


def make(seed: int) -> dict[str, Any]:
    mx.random.seed(seed)
    model, optimizer = Net(), optimizers.AdamW(optimizers.cosine_decay(1e-2, 10))
    optimizer.init(model.trainable_parameters())
    return {"model": model, "optimizer": optimizer, "step": 0}


def train(run: dict[str, Any], until: int) -> None:
    model, optimizer = run["model"], run["optimizer"]
    loss = nn.value_and_grad(model, lambda model, rows: model(rows).square().mean())
    for step in range(run["step"], until):
        rows = mx.array(numpy.random.default_rng(step).normal(size=(5, 3)).astype("f4"))
        optimizer.update(model, loss(model, rows)[1])
        mx.eval(model.parameters(), optimizer.state)
    run["step"] = until


def content(run: dict[str, Any]) -> dict[str, Any]:
    state = {"model": run["model"].parameters(), "optimizer": run["optimizer"].state}
    return {name: numpy.array(array).tobytes() for name, array in tree_flatten(state)}


def test_a_run_that_is_resumed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = make(0)
    train(whole, 6)
    begun = make(0)
    train(begun, 3)
    with statedict.CheckpointManager(tmp_path) as manager:
        manager.save(3, begun)
    resumed = make(1)
    with statedict.CheckpointManager(tmp_path) as manager:
        assert manager.restore(resumed).written
    assert content(resumed) == content(begun)
    train(resumed, 6)
    assert content(resumed) == content(whole)


def test_the_names_are_those_of_save_weights(tmp_path: Path) -> None:
    model, fresh = Net(), Net()
    model.save_weights(str(tmp_path / "mlx.safetensors"))
    statedict.save(model, tmp_path / "ours.safetensors")
    assert [*statedict.load(tmp_path / "ours.safetensors")] == [name for name, _ in tree_flatten(model.parameters())]
    for name in ("mlx", "ours"):
        assert not statedict.restore(fresh, tmp_path / f"{name}.safetensors").problems
        fresh.load_weights(str(tmp_path / f"{name}.safetensors"))


KINDS = ("bool_", "uint8", "int8", "uint16", "int32", "uint64", "float16", "bfloat16", "float32", "complex64")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_dtype_come_back_in_dicts_and_lists(kind: str, tmp_path: Path) -> None:
    array = (mx.arange(6).reshape(2, 3) % 2).astype(getattr(mx, kind))
    live = {"w": array, "more": [array + array, mx.array(1).astype(array.dtype), mx.zeros((0, 3)).astype(array.dtype)]}
    statedict.save(live, tmp_path / "x.safetensors")
    fresh = {"w": mx.zeros_like(array), "more": [mx.zeros_like(one) for one in live["more"]]}
    statedict.restore(fresh, tmp_path / "x.safetensors")
    for (name, one), (_, other) in zip(tree_flatten(live), tree_flatten(fresh), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert mx.array_equal(one, other), name


def test_what_does_not_fit_is_an_error_and_nothing_is_written() -> None:
    model, other = Net(), Net()
    state = statedict.capture(other)
    before = content({"model": model, "optimizer": optimizers.SGD(0.1)})
    for name, wrong in (("out.bias", numpy.ones(3, "f4")), ("scale", "two")):
        with pytest.raises(RestoreError, match=name):
            statedict.restore(model, {**state, name: wrong})
    with pytest.raises(RestoreError, match=r"1 missing: out\.bias"):
        statedict.restore(model, {name: value for name, value in state.items() if name != "out.bias"})
    assert content({"model": model, "optimizer": optimizers.SGD(0.1)}) == before
    with pytest.raises(RestoreError, match="an array of MLX"):
        statedict.restore(mx.zeros(3), {"": numpy.ones(3, "f4")})


def test_an_optimizer_without_state_says_how_it_gets_one() -> None:
    run = make(0)
    train(run, 1)
    with pytest.raises(RestoreError, match=r"call optimizer\.init\(model\.trainable_parameters\(\)\) first"):
        statedict.restore(optimizers.AdamW(1e-3), statedict.capture(run["optimizer"]))


def test_a_module_without_parameters_has_an_empty_state() -> None:
    assert statedict.capture(nn.ReLU()) == {}
