"""Runs of Lightning's Trainer; test_integrations.py runs them in a process of their own."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from tests.integrations.forks import digest, examples_hold, forked, page
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import statedict
from statedict.integrations.lightning import StatedictCallback, StatedictCheckpointIO

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
EPOCHS, STEPS = 2, 10  # of each epoch


class Module(pl.LightningModule):
    """A model with dropout, a running mean and augmentation, so that every random number counts."""

    def __init__(self, width: int = 8, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        linear = torch.nn.Linear(4, width)
        self.net = torch.nn.Sequential(
            linear, torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1)
        )

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x + 0.1 * torch.randn_like(x)), y)

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


class At(pl.Callback):
    """Sends a signal to its own process before a step."""

    def __init__(self, step: int | None, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def rows(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def fitted(
    callbacks: list[Any],
    ckpt_path: Any,
    loader: Any = DataLoader,
    module: Any = None,
    plugins: Any = (),
    **options: Any,
) -> tuple[Any, Any]:
    pl.seed_everything(1, verbose=False)
    module = module or Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=callbacks, plugins=list(plugins), **quiet, **options
    )
    trainer.fit(module, loader(rows(40, 0), 4, shuffle=True), DataLoader(rows(8, 1), 4), ckpt_path=ckpt_path)
    return module, trainer


def run(
    folder: str, at: int | None = None, number: int = signal.SIGKILL, loader: Any = DataLoader, **options: Any
) -> Any:
    callback = StatedictCallback(os.path.join(folder, "run"), **options)
    resumed = callback.latest()
    plugins = [StatedictCheckpointIO()] if options.get("format") == "safetensors" else []
    module, _ = fitted([callback, At(at, number)], resumed, loader, plugins=plugins)
    steps = callback.manager.steps()
    return digest(module), steps, callback.manager.metrics(steps[-1]), callback.best_model_path, resumed


def test_a_run_that_is_killed_goes_on_from_the_end_of_an_epoch(folder: str) -> None:
    keep = [5, statedict.runs.BestN("val_loss")]
    whole = forked(partial(run, f"{folder}/whole", keep=keep))
    assert forked(partial(run, folder, 13, keep=keep, background=False)) == -signal.SIGKILL
    resumed = forked(partial(run, folder, keep=keep))
    assert resumed[:3] == whole[:3]
    assert resumed[1] == [10, 20]
    assert set(resumed[2]) == {"val_loss"}
    assert resumed[3] in [f"{folder}/run/{step}/checkpoint.pth" for step in resumed[1]]
    assert resumed[4] == f"{folder}/run/10/checkpoint.pth"


def resumable(*args: Any, **options: Any) -> Any:
    return statedict.ResumableLoader(DataLoader(*args, **options))


def test_within_an_epoch_it_goes_on_with_a_loader_that_has_a_state(folder: str) -> None:
    for loader, at, last in ((StatefulDataLoader, 5, 3), (StatefulDataLoader, 13, 12), (resumable, 13, 12)):
        here, options = f"{folder}/{at}-{loader.__name__}", {"save_every": 3, "loader": loader, "format": "safetensors"}
        whole = forked(partial(run, f"{here}/whole", **options))
        forked(partial(run, here, at, background=False, **options))
        resumed = forked(partial(run, here, **options))
        assert resumed[:2] == whole[:2], here
        assert resumed[4] == f"{here}/run/{last}/checkpoint.safetensors"


def test_a_signal_saves_and_ends_the_process_with_its_status(folder: str) -> None:
    options = {"preemption": True, "loader": StatefulDataLoader}
    whole = forked(partial(run, f"{folder}/whole", **options))
    assert forked(partial(run, folder, 5, signal.SIGTERM, **options)) == 128 + signal.SIGTERM
    resumed = forked(partial(run, folder, **options))
    assert resumed[0] == whole[0]
    assert resumed[1] == [6, 10, 20]


def test_validations_within_an_epoch_give_their_metrics_to_the_checkpoint_of_their_step(folder: str) -> None:
    callback = StatedictCallback(f"{folder}/run", save_every=5)
    fitted([callback], None, val_check_interval=5)
    losses = [callback.manager.metrics(step)["val_loss"] for step in callback.manager.steps()]
    assert callback.manager.steps() == [5, 10, 15, 20]
    assert len(set(losses)) == 4


def test_lightning_and_plain_torch_read_what_the_callback_writes(folder: str) -> None:
    callback = StatedictCallback(f"{folder}/run")
    module, trainer = fitted([callback], None)
    path = callback.latest()
    assert digest(Module.load_from_checkpoint(path, weights_only=True)) == digest(module)
    found = torch.load(path, weights_only=True)
    assert found["hyper_parameters"] == {"width": 8}
    assert {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "callbacks"} <= set(found)
    assert statedict.verify(path).ok
    plain, _ = fitted([callback], path)
    assert trainer.checkpoint_callback is callback  # and no ModelCheckpoint beside it
    assert digest(plain) == digest(module)


def test_the_plugin_serves_model_checkpoint_in_the_background_too(folder: str) -> None:
    def trained(plugins: Any, here: str) -> str:
        module, _ = fitted(
            [ModelCheckpoint(here, save_top_k=1, save_last=True, every_n_epochs=1)], None, plugins=plugins
        )
        assert sorted(os.listdir(here)) == ["epoch=1-step=20.ckpt", "last.ckpt"]
        assert statedict.verify(f"{here}/last.ckpt").ok
        return digest(module)

    made = {
        trained(p, f"{folder}/{i}")
        for i, p in enumerate(([], [StatedictCheckpointIO()], [StatedictCheckpointIO(True)]))
    }
    assert len(made) == 1
    theirs = torch.load(f"{folder}/0/last.ckpt", weights_only=False)
    ours = torch.load(f"{folder}/2/last.ckpt", weights_only=True)
    assert list(ours) == list(theirs)
    assert str(ours["loops"]) == str(theirs["loops"])
    assert str(ours["optimizer_states"]) == str(theirs["optimizer_states"])
    for path in (f"{folder}/0/epoch=1-step=20.ckpt", f"{folder}/2/epoch=1-step=20.ckpt"):
        assert str(StatedictCheckpointIO().load_checkpoint(path)["state_dict"]) == str(ours["state_dict"])


def test_what_goes_wrong_in_the_background_is_told(folder: str) -> None:
    plugin = StatedictCheckpointIO(background=True)
    os.makedirs(f"{folder}/a.ckpt/b")
    plugin.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, f"{folder}/a.ckpt")
    with pytest.raises(statedict.errors.FileError) as error:
        plugin.teardown()
    assert "a.ckpt" in str(error.value)
    plugin.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, f"{folder}/b.ckpt", {"format": "safetensors"})
    assert plugin.load_checkpoint(f"{folder}/b.ckpt")["state_dict"]["w"].tolist() == [1, 1]
    plugin.remove_checkpoint(f"{folder}/b.ckpt")
    plugin.remove_checkpoint(f"{folder}/b.ckpt")
    plugin.teardown()
    assert os.listdir(folder) == ["a.ckpt"]


def test_hyperparameters_are_kept_as_far_as_they_are_data(folder: str) -> None:
    config = OmegaConf.create({"lr": 0.1, "net": {"layers": [1, 2], "again": "${lr}"}})
    given = {"config": config, "args": Namespace(root=Path("/data")), "net": torch.nn.ReLU(), "step": partial(int)}
    plain = {"config": {"lr": 0.1, "net": {"layers": [1, 2], "again": "${lr}"}}, "args": {"root": "/data"}}
    plugin, path = StatedictCheckpointIO(), f"{folder}/a.ckpt"
    with pytest.warns(UserWarning, match="the checkpoint is") as told:
        plugin.save_checkpoint({"epoch": 1, "hyper_parameters": given, "hparams_type": type(config)}, path)
    assert [str(one.message) for one in told] == [
        "the checkpoint is saved without what is not data: hyper_parameters.net (torch.nn.modules.activation.ReLU), "
        "hyper_parameters.step (functools.partial); pass it when you make the module"
    ]
    kind = "omegaconf.dictconfig.DictConfig"
    assert plugin.load_checkpoint(path) == {"epoch": 1, "hyper_parameters": plain, "hparams_type": kind}
    with pytest.raises(statedict.errors.UnsupportedError) as error:
        plugin.save_checkpoint({"epoch": 1, "state": [torch.nn.ReLU()]}, path)
    assert "state.0: a torch.nn.modules.activation.ReLU is not data" in str(error.value)


class Evil:
    def __reduce__(self) -> Any:
        return os.makedirs, ("/tmp/statedict-was-run",)


def test_a_checkpoint_of_others_is_loaded_without_running_code(folder: str) -> None:
    config = OmegaConf.create({"lr": 0.1, "net": {"layers": [1, 2]}})
    given = {"config": config, "args": Namespace(root=Path("/data")), "evil": Evil()}
    plugin, path = StatedictCheckpointIO(), f"{folder}/a.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": given, "hparams_type": type(config)}, path)
    with pytest.warns(UserWarning, match="the checkpoint is") as told:
        found = plugin.load_checkpoint(path, map_location="meta")
    assert len(told) == 1
    assert "hyper_parameters.evil (os.makedirs)" in str(told[0].message) or "posix" in str(told[0].message)
    assert found["hyper_parameters"] == {"config": {"lr": 0.1, "net": {"layers": [1, 2]}}, "args": {"root": "/data"}}
    assert found["state_dict"]["w"].device.type == "meta"
    torch.save({"state_dict": {"w": torch.ones(2)}, "other": Evil()}, path)
    with pytest.raises(statedict.errors.RefusedError) as error:
        plugin.load_checkpoint(path)
    assert path in str(error.value)
    assert not os.path.exists("/tmp/statedict-was-run")


def test_a_strategy_that_writes_its_own_directories_is_refused(folder: str) -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    with pytest.raises(statedict.errors.RunError) as error:
        StatedictCallback(f"{folder}/run").setup(SimpleNamespace(strategy=FSDPStrategy()), Module(), "fit")
    assert "FSDPStrategy writes checkpoints of its own" in str(error.value)


def test_a_fresh_start_over_a_run_is_refused_before_training(folder: str) -> None:
    forked(partial(run, folder))
    with pytest.raises(statedict.errors.RunError) as error:
        fitted([StatedictCallback(f"{folder}/run"), At(0, signal.SIGKILL)], None)
    assert "up to step 20, and training begins anew; pass ckpt_path=callback.latest() to go on" in str(error.value)
    fitted([StatedictCallback(f"{folder}/run", existing="replace")], None)


def test_it_serves_pytorch_lightning_where_that_is_the_one_in_use(folder: str) -> None:
    def other() -> bool:
        for name in [*sys.modules]:
            if name.split(".")[0] == "lightning" or name == "statedict.integrations.lightning":
                del sys.modules[name]
        import pytorch_lightning

        ours = importlib.import_module("statedict.integrations.lightning")
        return issubclass(ours.StatedictCallback, pytorch_lightning.Callback) and "lightning.pytorch" not in sys.modules

    assert forked(other) is True


def test_the_page_holds(folder: str) -> None:
    def followed() -> list[str]:
        os.chdir(folder)
        loaders = {"train_loader": DataLoader(rows(40, 0), 4, shuffle=True), "val_loader": DataLoader(rows(8, 1), 4)}
        page("Lightning", {"model": Module(), **loaders})
        return [*os.listdir("runs/a"), *os.listdir("checkpoints")]

    assert {"10", "20", "epoch=1-step=20.ckpt"} <= set(forked(followed))


def test_the_examples_hold(folder: str) -> None:
    examples_hold("statedict.integrations.lightning", "statedict.integrations.plain")
