"""The recipe of PyTorch's documentation, and training that goes on bit by bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same

torch.set_num_threads(1)  # two test processes with two threads each on two cores wait for one another

_SPEC = importlib.util.spec_from_file_location("train", Path(__file__).parents[1] / "examples" / "train.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_TRAIN = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TRAIN)
Net: type[nn.Module] = _TRAIN.Net

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "Net": (Net, (3, 32, 32), 10),
    "Sequential": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), (2,), 1),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.001, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.001),
}
both_models = pytest.mark.parametrize("model_name", list(MODELS))
both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def built(model_name: str, optimizer_name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = MODELS[model_name][0]()
    return model, OPTIMIZERS[optimizer_name](model.parameters())


def train(model_name: str, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    _, shape, outputs = MODELS[model_name]
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, *shape, generator=generator), torch.randn(4, outputs, generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@both_formats
@pytest.mark.parametrize("optimizer_name", list(OPTIMIZERS))
@both_models
def test_ten_steps_after_a_restore_are_bit_equal_to_an_uninterrupted_run(
    model_name: str, optimizer_name: str, suffix: str, tmp_path: Path
) -> None:
    model, optimizer = built(model_name, optimizer_name, 1)
    train(model_name, model, optimizer, range(5))
    path = tmp_path / f"checkpoint{suffix}"
    captured = statedict.capture({"model_state": model, "optimizer_state": optimizer, "epoch": 5})
    uninterrupted = train(model_name, model, optimizer, range(5, 15))
    statedict.save(captured, path)

    fresh_model, fresh_optimizer = built(model_name, optimizer_name, 2)
    target = {"model_state": fresh_model, "optimizer_state": fresh_optimizer, "epoch": 0}
    report = statedict.restore(target, statedict.load(path))
    assert set(report.counts()) == {"restored"}
    assert target["epoch"] == 5
    assert train(model_name, fresh_model, fresh_optimizer, range(5, 15)) == uninterrupted
    assert_same(fresh_model.state_dict(), model.state_dict())
    assert_same(fresh_optimizer.state_dict(), optimizer.state_dict())


@both_formats
@both_models
def test_plain_pytorch_loads_what_statedict_opens(model_name: str, suffix: str, tmp_path: Path) -> None:
    model, optimizer = built(model_name, "SGD", 1)
    train(model_name, model, optimizer, range(3))
    path = tmp_path / f"checkpoint{suffix}"
    statedict.save({"model": model, "optimizer": optimizer}, path)
    fresh_model, fresh_optimizer = built(model_name, "SGD", 2)
    result = fresh_model.load_state_dict(statedict.load(path)["model"])
    assert result.missing_keys == result.unexpected_keys == []
    fresh_optimizer.load_state_dict(statedict.load(path)["optimizer"].torch(copy=True))
    assert train(model_name, fresh_model, fresh_optimizer, range(3, 9)) == train(
        model_name, model, optimizer, range(3, 9)
    )


@both_models
def test_plain_pytorch_loads_with_assign_too(model_name: str, tmp_path: Path) -> None:
    model, _ = built(model_name, "SGD", 1)
    statedict.save(model, tmp_path / "model.pth")
    fresh, _ = built(model_name, "SGD", 2)
    fresh.load_state_dict(statedict.load(tmp_path / "model.pth").torch(), assign=True)
    assert_same(fresh.state_dict(), model.state_dict())


@both_models
def test_the_file_that_pytorch_s_recipe_saves_is_restored(model_name: str, tmp_path: Path) -> None:
    model, optimizer = built(model_name, "SGD", 1)
    train(model_name, model, optimizer, range(3))
    path = tmp_path / "theirs.pth"
    torch.save({"model_state": model.state_dict(), "optimizer_state": optimizer.state_dict()}, path)
    fresh_model, fresh_optimizer = built(model_name, "SGD", 2)
    statedict.restore({"model_state": fresh_model, "optimizer_state": fresh_optimizer}, path)
    assert train(model_name, fresh_model, fresh_optimizer, range(3, 9)) == train(
        model_name, model, optimizer, range(3, 9)
    )


@both_models
def test_the_file_that_statedict_saves_opens_with_torch_load(model_name: str, tmp_path: Path) -> None:
    model, optimizer = built(model_name, "SGD", 1)
    train(model_name, model, optimizer, range(3))
    statedict.save({"model_state": model, "optimizer_state": optimizer}, tmp_path / "ours.pth")
    for mmap in (False, True):
        checkpoint = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
        assert_same(checkpoint["model_state"], model.state_dict())
        assert_same(checkpoint["optimizer_state"]["state"], optimizer.state_dict()["state"])


def test_training_on_does_not_change_what_was_captured() -> None:
    model, optimizer = built("Net", "Adam", 1)
    train("Net", model, optimizer, range(2))
    captured = statedict.capture({"m": model, "o": optimizer})
    before = statedict.capture(captured)
    train("Net", model, optimizer, range(2, 4))
    assert_same(captured, before)
    assert not torch.equal(captured["m"]["conv1.weight"], model.conv1.weight)
