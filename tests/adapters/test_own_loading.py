"""Modules that load in a way of their own: hooks, `_load_from_state_dict`, parametrizations, observers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import statedict

both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and what old checkpoints were made with
        return nn.utils.weight_norm(module)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@both_formats
def test_weights_of_the_old_weight_norm_go_into_the_new_one(suffix: str, tmp_path: Path) -> None:
    old = nn.Sequential(old_weight_norm(nn.Linear(3, 4)), nn.ReLU(), old_weight_norm(nn.Linear(4, 2)))
    new = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 2))
    )
    statedict.save(nn.DataParallel(old), tmp_path / f"x{suffix}")
    report = statedict.restore(new, tmp_path / f"x{suffix}")
    x = torch.randn(5, 3)
    assert torch.equal(new(x), old(x))
    assert "0.parametrizations.weight.original0" in report.paths("renamed")
    assert "module.0.weight_g of the state" in str(report)


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal"])
@both_formats
def test_parametrized_weights_are_restored_as_they_are(wrap: str, suffix: str, tmp_path: Path) -> None:
    one, other = (getattr(parametrizations, wrap)(nn.Linear(4, 4)) for _ in range(2))
    one(torch.randn(2, 4))
    statedict.save(one, tmp_path / f"x{suffix}")
    statedict.restore(other, tmp_path / f"x{suffix}")
    assert equal(one, other)
    x = torch.randn(2, 4)
    assert torch.equal(one.eval()(x), other.eval()(x))


@both_formats
def test_observers_take_the_size_of_what_they_saw(suffix: str, tmp_path: Path) -> None:
    from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    def made() -> nn.Module:
        fake = FakeQuantize(
            MovingAveragePerChannelMinMaxObserver, dtype=torch.qint8, quant_min=-128, quant_max=127,
            qscheme=torch.per_channel_symmetric,
        )  # fmt: skip
        return nn.Sequential(nn.Linear(3, 5), fake)

    one, other = made(), made()
    one[1](one[0].weight)
    statedict.save(one, tmp_path / f"x{suffix}")
    report = statedict.restore(other, tmp_path / f"x{suffix}")
    assert equal(one, other)
    assert "takes its shape (5,) from the state" in str(report)


class Fused(nn.Module):
    """Loads what was three projections into one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(6, 2))
        self.register_load_state_dict_pre_hook(self._fuse)
        self.calls = 0

    def _fuse(self, module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
        parts = [state.pop(f"{prefix}{name}") for name in "qkv" if f"{prefix}{name}" in state]
        if parts:
            module.calls += 1
            state[prefix + "qkv"] = torch.cat(parts)


def test_a_hook_that_makes_one_entry_from_several_is_honoured_and_called_once() -> None:
    model = nn.ModuleDict({"attention": Fused(), "other": nn.Linear(1, 1)})
    state: dict[str, Any] = {f"attention.{name}": torch.full((2, 2), float(i)) for i, name in enumerate("qkv")}
    state |= {f"other.{name}": tensor for name, tensor in nn.Linear(1, 1).state_dict().items()}
    report = statedict.restore(model, {f"module.{name}": tensor for name, tensor in state.items()})
    assert model["attention"].qkv[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert report.paths("made") == ["attention.qkv"]
    assert model["attention"].calls == 1  # a twin was asked before
    with pytest.raises(statedict.errors.RestoreError, match=r"1 shape|refused|size mismatch|missing"):
        statedict.restore(model, {name: tensor for name, tensor in state.items() if name != "attention.v"})


class Looking(nn.Module):
    """Decides by a value in the state how to read it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        scale = state.pop(prefix + "scale", None)
        if scale is not None and scale.item() != 1:
            state[prefix + "weight"] = state[prefix + "weight"] * scale
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_that_looks_at_values_is_honoured() -> None:
    model = Looking()
    weight = torch.ones(3)
    report = statedict.restore(model, {"weight": weight, "scale": torch.tensor(2.0)})
    assert model.weight.tolist() == [2, 2, 2]
    assert weight.tolist() == [1, 1, 1]
    assert not report.problems


class Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state: Any, *rest: Any) -> None:
        rest[-1].append("this release reads no states of the last one")


def test_what_a_module_refuses_is_known_before_anything_is_written() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), Refusing()])
    state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    state["1.old"] = torch.ones(1)
    before = model[0].weight.clone()
    with pytest.raises(statedict.errors.RestoreError, match=r"refused: .*this release reads no states of the last one"):
        statedict.restore(model, state)
    assert torch.equal(model[0].weight, before)


def test_an_older_batch_norm_gets_the_counter_that_it_had_not() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items() if "num_batches" not in name}
    report = statedict.restore(model, state)
    assert report.paths("made") == ["0.num_batches_tracked"]
    assert (model[0].running_mean == 1).all()
    newer = statedict.StateDict(state)
    newer._metadata = {"0": {"version": 2}}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 missing: 0\.num_batches_tracked"):
        statedict.restore(model, newer)


def test_lazy_modules_beside_modules_with_hooks_take_their_shapes() -> None:
    one, other = (
        nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
        nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
    )
    one(torch.randn(4, 5))
    statedict.restore(other, statedict.capture(one))
    assert equal(one, other)
    assert type(other(torch.randn(4, 5))) is torch.Tensor
