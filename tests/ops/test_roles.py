"""Which entries of a checkpoint are the model, in files as libraries write them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import statedict
from statedict import alter
from statedict.errors import AlterError
from statedict.testing.same import assert_same
from statedict.tree.roles import find_models

ROOT = Path(__file__).parents[2]

LIGHTNING = """
import sys
from tests import operators
import lightning.pytorch as pl, torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
    def training_step(self, batch, index):
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

class Ema(pl.Callback):
    def state_dict(self):
        return {"net.weight": torch.ones(2, 4), "net.bias": torch.ones(2)}

callbacks = [Ema(), EarlyStopping("loss"), ModelCheckpoint(dirpath=sys.argv[1], filename="x", monitor="loss")]
shown = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(max_steps=2, accelerator="cpu", default_root_dir=sys.argv[1], callbacks=callbacks, **shown)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4))
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 2)
        self.fc.weight = nn.Parameter(torch.randn(2, 4))
        self.free = nn.Parameter(torch.ones(1))
        self.cached = torch.ones(3)  # an attribute, not of its state_dict
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("made", torch.ones(5), persistent=False)
        self.register_parameter("unused", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3))) * self.free


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    module = ModuleType("made_elsewhere")
    monkeypatch.setitem(sys.modules, "made_elsewhere", module)
    module.Net = Net  # type: ignore[attr-defined]
    monkeypatch.setattr(Net, "__module__", "made_elsewhere")
    return Net()


def trained(net: Net) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer


def stripped(tree: Any, folder: Path) -> statedict.StateDict:
    torch.save(tree, folder / "x.pth")
    return alter.strip(statedict.load(folder / "x.pth"))


BESIDE: dict[str, Callable[[Net], dict[str, Any]]] = {
    # docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html, with a loss not .item()
    "the loss of PyTorch's tutorial": lambda net: {"epoch": 5, "loss": torch.tensor(0.4, requires_grad=True)},
    # MDIL-SNU/SevenNet sevenn/scripts/processing_continue.py: its configuration has tensors
    "the configuration of SevenNet": lambda net: {
        "config": {"shift": torch.tensor(-4.5), "scale": torch.ones(89), "cutoff": 5.0, "_number_of_species": 89},
        "scheduler_state_dict": {"base_lrs": [0.1], "_last_lr": [torch.tensor(0.1)], "last_epoch": 3},
        "epoch": 600,
        "hash": "2024",
    },
    "generator states": lambda net: {"rng": {"torch": torch.get_rng_state(), "cuda": [torch.get_rng_state()]}},
    "statistics of the data": lambda net: {"mean": torch.zeros(3), "std": torch.ones(3), "normalizer": {
        "mean": torch.zeros(3), "std": torch.ones(3)
    }},
    "metrics": lambda net: {"accuracy": {"correct": torch.tensor(3), "total": torch.tensor(7)}},
    "an exponential average of the optimizer": lambda net: {"optimizer": {
        "state": {}, "param_groups": [], "ema": dict(net.state_dict())
    }},
    "moments of optax": lambda net: {"opt_state": {"mu": dict(net.named_parameters()), "count": torch.tensor(3)}},
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
def test_strip_takes_the_model_and_leaves_what_lies_beside_it(what: str, net: Net, tmp_path: Path) -> None:
    optimizer = trained(net)
    tree = {"model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict(), **BESIDE[what](net)}
    found = stripped(tree, tmp_path)
    assert_same(found, net.state_dict())
    Net().load_state_dict(found.torch())


def test_strip_takes_the_model_of_a_lightning_run_whose_callbacks_hold_tensors(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LIGHTNING, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=240)
    state = statedict.load(tmp_path / "x.ckpt")
    assert any(path.startswith("callbacks.") for path in state.tensors())
    assert_same(alter.strip(state), state["state_dict"])
    roles = {tensor.path: tensor.role for tensor in statedict.inspect(state).tensors}
    assert {path for path, role in roles.items() if role == "parameter"} == {
        "state_dict.net.weight",
        "state_dict.net.bias",
    }


def test_strip_takes_the_model_of_our_own_run_with_generators(net: Net, tmp_path: Path) -> None:
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": net, "optimizer": trained(net), "rng": statedict.rng(), "epoch": 1})
    state = statedict.load(tmp_path / "run" / "1")
    rng = {tensor.role for tensor in statedict.inspect(state).tensors if tensor.path.startswith("rng")}
    assert rng == {"generator"}
    assert_same(alter.strip(state), net.state_dict())


MODELS: dict[str, Callable[[Net], tuple[dict[str, Any], list[str]]]] = {
    "Real-ESRGAN": lambda net: ({"params": net.state_dict(), "params_ema": deepcopy(net.state_dict())}, []),
    "timm": lambda net: (
        {"epoch": 3, "arch": "vit", "state_dict": net.state_dict(), "state_dict_ema": dict(net.state_dict())},
        ["epoch", "arch"],
    ),
    "a GAN": lambda net: ({"generator": net.state_dict(), "discriminator": nn.Linear(2, 2).state_dict()}, []),
    "two plain models": lambda net: ({"g": {"w": torch.ones(2), "b": torch.ones(1)}, "d": {"w": torch.ones(2)}}, []),
    "two layers": lambda net: ({"net": nn.Linear(2, 2).state_dict(), "ema": nn.Linear(2, 2).state_dict()}, []),
}


@pytest.mark.parametrize("what", MODELS)
def test_several_models_are_listed_and_one_is_to_be_kept(what: str, net: Net, tmp_path: Path) -> None:
    tree, others = MODELS[what](net)
    first, second = (name for name in tree if name not in others)
    with pytest.raises(AlterError, match=rf"2 models could be meant: {first} \(.*\), {second} \(.*by select\(state, "):
        stripped(tree, tmp_path)
    state = statedict.load(tmp_path / "x.pth")
    assert_same(alter.strip(alter.select(state, second)), tree[second])
    report = statedict.edit(state, tmp_path / "y.pth", [{"keep": first}, {"strip": True}])
    assert report.tensors[1] == len(tree[first])


def test_a_shared_model_is_one(net: Net) -> None:
    state = net.state_dict()
    assert_same(alter.strip(statedict.StateDict(model=state, best=state)), state)


def test_the_tree_of_a_flax_model_stays_a_tree() -> None:
    params = {"Dense_0": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "Dense_1": {"kernel": np.ones((3, 1))}}
    state = statedict.StateDict(step=3, params=params, opt_state={"0": {"count": np.array(3), "mu": params}})
    assert list(alter.strip(state).tensors()) == ["Dense_0.kernel", "Dense_0.bias", "Dense_1.kernel"]


@pytest.mark.parametrize("place", ["", "model"])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_whole_module_has_the_names_of_its_own_state_dict(place: str, wrap: bool, net: Net, tmp_path: Path) -> None:
    whole: Any = nn.DataParallel(net) if wrap else net
    found = stripped({place: whole, "epoch": 3} if place else whole, tmp_path)
    expected = net.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name].torch(), tensor) for name, tensor in expected.items())
    summary = statedict.inspect(tmp_path / "x.pth")
    roles = {tensor.path.rpartition(".")[2]: tensor.role for tensor in summary.tensors}
    assert (roles["free"], roles["kept"], roles["cached"], roles["made"]) == ("parameter", "buffer", "tensor", "tensor")
    fresh = Net()
    statedict.restore({place: fresh} if place else fresh, tmp_path / "x.pth", allow_unexpected="epoch")
    assert_same(fresh.state_dict(), expected)


def test_a_torchscript_module_has_the_names_of_its_own_state_dict(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    torch.jit.script(net).save(tmp_path / "x.pt")
    found = alter.strip(statedict.load(tmp_path / "x.pt"))
    assert {*found} == {*net.state_dict()}
    nn.Sequential(*net).load_state_dict(found.torch())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_strip_removes_the_keys_of_wrappers(wrap: Callable[[nn.Module], nn.Module], net: Net, tmp_path: Path) -> None:
    Net().load_state_dict(stripped({"model": wrap(net).state_dict(), "epoch": 3}, tmp_path).torch())


def test_a_module_of_the_users_that_is_called_module_stays() -> None:
    state = statedict.capture(nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 1)}))
    assert list(alter.strip(state)) == list(state)


def test_extra_state_stays_with_the_model() -> None:
    state = statedict.StateDict({"w": np.ones(2), "a._extra_state": {"scale": np.ones(1)}, "b._extra_state": 3})
    assert_same(alter.strip(statedict.StateDict(model=state)), state)


def test_modules_that_contain_each_other_are_refused() -> None:
    marks = {"training": True, "_backward_hooks": {}, "_forward_hooks": {}}
    one = statedict.Opaque("a.Net", (), statedict.StateDict())
    one.state.update({"w": np.ones(1), "inner": one, **marks})
    with pytest.raises(statedict.errors.TreeError, match="modules nested deeper than"):
        find_models(statedict.StateDict(model=one))


def test_the_tensors_of_a_model_may_stand_among_other_entries(net: Net, tmp_path: Path) -> None:
    flat = {
        **net.state_dict(),
        "epoch": 3,
        "callbacks": {"best": torch.ones(1)},
        "optimizer": trained(net).state_dict(),
    }
    assert_same(stripped(flat, tmp_path), dict(net.state_dict()))
    roles = {tensor.path: tensor.role for tensor in statedict.inspect(tmp_path / "x.pth").tensors}
    assert roles["callbacks.best"] == "tensor"


@pytest.mark.parametrize("outer", [list, tuple])
def test_a_list_of_states_is_searched_too(outer: Callable[[list[Any]], Any], net: Net, tmp_path: Path) -> None:
    optimizer = trained(net)
    batches = [{"observation": torch.ones(2, 3), "action": torch.ones(2)}, torch.ones(3)]
    whole = outer([net.state_dict(), optimizer.state_dict(), batches, {"epoch": 3}])
    assert_same(stripped(whole, tmp_path), net.state_dict())
    assert_same(stripped({"all": whole}, tmp_path), net.state_dict())
    with pytest.raises(AlterError, match=r"2 models could be meant: 0 .*, 1 "):
        stripped(outer([net.state_dict(), Net().state_dict()]), tmp_path)
    summary = statedict.inspect(tmp_path / "x.pth")
    assert {tensor.role for tensor in summary.tensors} == {"parameter", "buffer"}


def test_batches_in_a_list_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(AlterError, match="there is no model in it"):
        stripped([{"observation": torch.ones(2, 3)}, {"observation": torch.ones(2, 3)}], tmp_path)
