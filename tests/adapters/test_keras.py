"""Live models and optimizers of Keras; the conformance suite tests what all adapters have in common."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy
import pytest
import torch
from keras import layers

import statedict
from statedict.errors import RestoreError

from ..formats import kerases


def chain(**options: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, **options), layers.Dense(3, **options)])
    model.compile("adam", "mse")
    return model


def test_a_model_is_captured_by_the_names_of_its_layers() -> None:
    model = kerases.functional()
    state = statedict.capture(model)
    assert [path for path in state.tensors() if not path.startswith("optimizer.")][:4] == [
        "encoder.kernel", "encoder.bias", "rnn.lstm_cell.kernel", "rnn.lstm_cell.recurrent_kernel",
    ]  # fmt: skip
    kernel = next(v for v in model.optimizer.variables if v.name.endswith("block_gain_velocity"))
    assert numpy.array_equal(state.at("optimizer.velocity.block.gain"), kerases.array(kernel))
    assert state.at("head.kernel").dtype is torch.bfloat16


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5", ".weights.json"])
def test_a_model_is_restored_from_its_files(suffix: str, tmp_path: Path) -> None:
    model, twin = kerases.functional(), kerases.functional()
    kerases.clear(twin)
    report = statedict.restore(twin, kerases.save(model, tmp_path / f"x{suffix}"))
    assert not report.problems
    mine, theirs = kerases.named(model), kerases.named(twin)
    seeds = [name for name in mine if "seed" in name]
    assert report.counts() == {"restored": len(mine) - len(seeds), "missing": len(seeds)}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name not in seeds)
    assert not any(theirs[name].any() for name in seeds)
    assert bool(report.notes) is (suffix != ".h5")


def test_a_capture_is_a_file_that_keras_loads(tmp_path: Path) -> None:
    model, twin = kerases.functional(), kerases.functional()
    kerases.clear(twin)
    with pytest.warns(UserWarning, match="Keras's files do not hold seed generators, which are left out: rnn"):
        statedict.save(statedict.capture(model), tmp_path / "x.weights.h5")
    twin.load_weights(tmp_path / "x.weights.h5")
    mine, theirs = kerases.named(model), kerases.named(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if "seed" not in name)


def test_a_training_goes_on_bit_for_bit_through_any_format(tmp_path: Path) -> None:
    model = kerases.functional()
    statedict.save(model, tmp_path / "x.safetensors")
    twin = kerases.functional()
    kerases.step(twin)
    statedict.restore(twin, tmp_path / "x.safetensors")
    for each in (model, twin):
        torch.manual_seed(7)  # by which dropout draws with this backend, not by its own seed
        kerases.step(each)
    mine, theirs = kerases.named(model), kerases.named(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_layers_that_keras_named_are_found_by_their_place_and_others_by_name(tmp_path: Path) -> None:
    model, twin = chain(), chain()
    assert [one.name for one in model.layers] != [one.name for one in twin.layers]
    report = statedict.restore(twin, kerases.save(model, tmp_path / "x.weights.h5"))
    assert "found by their place in the model, not by its number" in " ".join(report.notes)
    assert all(torch.equal(a.value, b.value) for a, b in zip(model.variables, twin.variables, strict=True))
    other = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a"), layers.Dense(3, name="b")])
    with pytest.raises(RestoreError, match=r"4 missing: a\.kernel"):
        statedict.restore(other, tmp_path / "x.weights.h5", allow_unexpected=["*"])


def test_layers_in_another_order_are_found_by_the_names_that_the_user_gave(tmp_path: Path) -> None:
    def make(*names: str) -> keras.Model:
        return keras.Sequential([keras.Input((3,)), *(layers.Dense(3, name=name) for name in names)])

    model, twin = make("a", "b"), make("b", "a")
    statedict.restore(twin, kerases.save(model, tmp_path / "x.weights.h5"))
    assert torch.equal(model.get_layer("a").kernel.value, twin.get_layer("a").kernel.value)


def test_an_optimizer_that_took_no_step_gets_its_state() -> None:
    model, fresh = chain(), chain()
    kerases.step(model)
    statedict.restore(fresh, statedict.capture(model))
    assert fresh.optimizer.built
    assert torch.equal(model.optimizer.variables[3].value, fresh.optimizer.variables[3].value)


def test_an_optimizer_stands_alone_too() -> None:
    model = chain()
    kerases.step(model)
    state = statedict.capture({"it": model.optimizer})
    fresh = keras.optimizers.Adam()
    fresh.build(model.trainable_variables)
    report = statedict.restore({"it": fresh}, state, override={"learning_rate": 0.5})
    assert report.counts() == {"restored": 9, "overridden": 1}
    assert float(fresh.learning_rate) == 0.5
    assert torch.equal(fresh.variables[3].value, model.optimizer.variables[3].value)


def test_shapes_and_dtypes_that_differ_are_errors_or_follow_a_policy() -> None:
    state = statedict.capture(keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a")]))
    wide = keras.Sequential([keras.Input((3,)), layers.Dense(6, name="a")])
    before = wide.layers[0].kernel.value.detach().clone()
    with pytest.raises(RestoreError, match=r"2 shape: a\.kernel"):
        statedict.restore(wide, state)
    statedict.restore(wide, state, shapes="overlap")
    assert torch.equal(wide.layers[0].kernel.value[:, :4], state["a"]["kernel"])
    assert torch.equal(wide.layers[0].kernel.value[:, 4:], before[:, 4:])
    half = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a", dtype="bfloat16")])
    with pytest.raises(RestoreError, match=r"2 dtype: a\.kernel"):
        statedict.restore(half, state)
    statedict.restore(half, state, cast=True)
    assert torch.equal(half.layers[0].kernel.value, state["a"]["kernel"].bfloat16())


def test_with_another_backend_it_is_the_same(tmp_path: Path) -> None:
    model = kerases.sequential()
    statedict.save(model, tmp_path / "x.safetensors")
    code = """
        import sys, numpy, keras, statedict
        assert keras.backend.backend() == "jax" and "torch" not in sys.modules
        chain = [keras.layers.Dense(3, name=f"dense_{i}") for i in range(2)]
        model = keras.Sequential([keras.Input((3,)), *chain, keras.layers.Dense(2, name="head", dtype="bfloat16")])
        model.compile("adam", "mse")
        model.train_on_batch(numpy.ones((4, 3)), numpy.ones((4, 2)))
        held = [numpy.asarray(v.value) for v in (*model.variables, *model.optimizer.variables)]
        state = statedict.capture(model)
        statedict.save(model, sys.argv[1])
        model.train_on_batch(numpy.ones((4, 3)), numpy.ones((4, 2)))
        report = statedict.restore(model, sys.argv[1])
        assert set(report.counts()) == {"restored"}, report
        now = [numpy.asarray(v.value) for v in (*model.variables, *model.optimizer.variables)]
        assert all(map(numpy.array_equal, held, now))
        model.load_weights(sys.argv[1])
        print(list(state)[:3])
    """
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "y.weights.h5")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "['dense_0', 'dense_1', 'head']\n", done.stderr
