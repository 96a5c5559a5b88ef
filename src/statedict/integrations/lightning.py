"""Lightning: a plugin that reads and writes its checkpoints, and a callback that saves those of a run.

    from statedict.integrations.lightning import StatedictCallback, StatedictCheckpointIO

    callback = StatedictCallback("runs/a", keep=3)
    trainer = Trainer(callbacks=[callback], plugins=[StatedictCheckpointIO()])
    trainer.fit(model, ckpt_path=callback.latest())

The callback calls `Trainer.save_checkpoint` while another `CheckpointIO` catches what Lightning saves. Both are public
interfaces, so a checkpoint holds all that `ModelCheckpoint` would save: loops, callbacks, data modules, precision,
`on_save_checkpoint`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from statedict.adapters import qualified_name
from statedict.adapters.collect import copy_arrays
from statedict.api.files import load, save
from statedict.errors import ArgumentError, FileError, MissingExtraError, RefusedError, RunError
from statedict.integrations.plain import data, without_objects
from statedict.io.location import location
from statedict.io.urls import join, to_name
from statedict.runs.background import LOG, Background
from statedict.runs.directory import Directory
from statedict.runs.keep import BestN, split_policy, to_policy
from statedict.runs.manager import CheckpointManager, check_new
from statedict.runs.rng import rng
from statedict.values import Opaque

try:
    if TYPE_CHECKING or "pytorch_lightning" not in sys.modules or "lightning.pytorch" in sys.modules:
        from lightning.pytorch.callbacks import Checkpoint
        from lightning.pytorch.plugins import CheckpointIO
        from lightning.pytorch.strategies import Strategy
    else:
        from pytorch_lightning.callbacks import Checkpoint
        from pytorch_lightning.plugins import CheckpointIO
        from pytorch_lightning.strategies import Strategy
except ImportError as error:
    raise MissingExtraError("this takes Lightning; install it by: pip install 'statedict[lightning]'") from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from statedict.api.names import Path

_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams")  # which resuming does not need
_KEY = "statedict"


class StatedictCheckpointIO(CheckpointIO):
    """Reads and writes Lightning's checkpoints without running code from them, atomically, with digests.

    Writes the files of `torch.save`, or safetensors if the name says so; reads all that `statedict.load` reads.

    Hyperparameters (`save_hyperparameters`) become data: OmegaConf containers and namespaces become dicts, paths text,
    enumerations their values. Others, such as a module or a function, are dropped with a warning, in saving and
    loading.

    Args:
        background: whether saving returns once the checkpoint is copied; a thread does the rest.

    >>> import os, tempfile, torch
    >>> from statedict.integrations.lightning import StatedictCheckpointIO
    >>> path = os.path.join(tempfile.mkdtemp(), "checkpoints", "epoch=1.ckpt")
    >>> plugin = StatedictCheckpointIO()
    >>> plugin.save_checkpoint({"state_dict": {"w": torch.ones(2)}, "epoch": 1}, path)
    >>> plugin.load_checkpoint(path)
    {'state_dict': {'w': tensor([1., 1.])}, 'epoch': 1}
    """

    def __init__(self, background: bool = False) -> None:
        self._background = Background(1) if background else None
        self._writing: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: from Lightning.
            path: the file, or its URL.
            storage_options: options of `statedict.save`: `{"format": "safetensors", "fsync": False}`.

        Raises:
            UnsupportedError: a value outside of the hyperparameters is not data.
            FileError: the file system refuses, now or during the last save in the background.
        """
        target, options = to_name(path), storage_options or {}
        if not isinstance(options, dict):
            raise ArgumentError(f"storage_options={options!r:.80}: expected a dict with options of statedict.save")
        location(target).make_folder_above()
        tree = _data(checkpoint)
        if self._background is None:
            save(tree, target, **options)
            return
        self._background.surface(2)

        def copy(room: Any) -> Any:
            state = copy_arrays(tree, room)
            self._writing.add(target)
            return state

        def write(state: Any) -> None:
            try:
                save(state, target, **options)
            finally:
                self._writing.discard(target)

        self._background.save(copy, write)

    def load_checkpoint(self, path: Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: the file, or its URL.
            map_location: as for `torch.load`; None means the CPU.
            weights_only: ignored, as no code from the file is run.

        Raises:
            RefusedError: only running code could make something outside of the hyperparameters.
            FormatError: it is not a checkpoint, or damaged.
        """
        from statedict.torch import load as torch_load
        from statedict.torch.loading import from_tree

        target = to_name(path)
        self._settle(target)
        try:
            found = torch_load(target, map_location)
        except RefusedError as refusal:
            state = load(target)
            state |= {key: kind.name for key, kind in state.items() if _is_kind(key, kind)}
            state = without_objects(state, _PARAMETERS, refusal)
            found = from_tree(state, True, map_location)
        assert isinstance(found, dict)
        return found

    def remove_checkpoint(self, path: Path) -> None:
        """Remove a checkpoint if it exists."""
        target = to_name(path)
        self._settle(target)
        try:
            location(target).remove()
        except FileNotFoundError:
            pass

    def _settle(self, target: str) -> None:
        if self._background is not None and target in self._writing:
            self._background.wait()

    def teardown(self) -> None:
        """Wait until all is written; raise what failed in the background."""
        if self._background is not None:
            self._background.close()
            self._background.surface(2)


class StatedictCallback(Checkpoint):
    """Saves the checkpoints of a run with a `CheckpointManager`: verified, pruned by policy, beside training.

    Each holds Lightning's whole checkpoint and the states of the random generators, so that
    `trainer.fit(model, ckpt_path=callback.latest())` resumes a run, with or without our `CheckpointIO`. It replaces
    `ModelCheckpoint`, or works beside it.

    Args:
        directory: the run, or its URL; resuming from a URL takes our `CheckpointIO`.
        save_every: as for `CheckpointManager`, in steps of the optimizer (`trainer.global_step`). None saves at the
            end of each epoch. A checkpoint due at the last step of an epoch or at a step with a validation is saved
            after it, with its metrics.
        format: `"torch"`, which Lightning reads by itself, or `"safetensors"`, which takes our `CheckpointIO`.
        options: those of `CheckpointManager`: `keep=[3, BestN("val_loss")]`, `preemption=True`, …

    Raises:
        ArgumentError: an argument is invalid.
        RunError: when training begins, the strategy writes its own directories, or the
            directory has checkpoints and nobody called `latest()`.

    >>> import tempfile
    >>> from statedict.integrations.lightning import StatedictCallback
    >>> callback = StatedictCallback(tempfile.mkdtemp(), keep=3)
    >>> callback.latest() is None
    True
    """

    def __init__(self, directory: Path, *, save_every: Any = None, format: str = "torch", **options: Any) -> None:
        super().__init__()
        self.manager = CheckpointManager(directory, save_every=save_every, format=format, **options)
        self._best = [one for one in split_policy(to_policy(options.get("keep"))) if isinstance(one, BestN)]
        self._each_epoch = save_every is None
        self._seen = self._saved = -1  # the last step that ended, and that was saved
        self._due = False  # at the end of the epoch
        self._rng: Any = None

    def latest(self) -> str | None:
        """The file of the newest sound checkpoint, for `ckpt_path`; None if there is none."""
        return self._file(self.manager.latest())

    def best(self, metric: str, mode: str | None = None) -> str | None:
        """The file of the checkpoint with the best value of a metric; see `CheckpointManager.best`."""
        return self._file(self.manager.best(metric, mode))

    @property
    def best_model_path(self) -> str:
        """The file for `ckpt_path="best"`, by the `BestN` in `keep`; empty without one."""
        return (self.best(self._best[0].metric) or "") if self._best else ""

    def _file(self, step: int | None) -> str | None:
        return None if step is None else Directory(self.manager.directory).data(step)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that write checkpoints themselves."""
        if stage == "fit" and type(trainer.strategy).save_checkpoint is not Strategy.save_checkpoint:
            kind = type(trainer.strategy).__name__
            raise RunError(f"{kind} writes checkpoints of its own, from all processes; use Lightning's ModelCheckpoint")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to begin anew over a run; restore the random generators before loaders are made."""
        check_new(self.manager, "training begins anew; pass ckpt_path=callback.latest()")
        self._restore_rng(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generators once more within an epoch, as its loader was made before the checkpoint."""
        self._seen, self._due = trainer.global_step, False
        if self._rng is not None and self._rng["within_epoch"]:
            self._restore_rng(trainer)
        self._rng = None

    def _restore_rng(self, trainer: Trainer) -> None:
        if self._rng is not None and trainer.world_size == 1:
            rng().load_state_dict(self._rng["rng"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the states of the random generators into a checkpoint."""
        checkpoint[_KEY] = {"rng": rng().state_dict(), "within_epoch": not trainer.is_last_batch}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them out again, if training resumes."""
        self._rng = checkpoint.get(_KEY) if trainer.state.fn == "fit" else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due."""
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        due = self.manager.preempted or (not self._each_epoch and self.manager.should_save(step))
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)
        if due and trainer.is_last_batch:
            self._due = True
        elif due:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again with the metrics of a validation within an epoch."""
        if self._saved == trainer.global_step and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a checkpoint is due."""
        if self._each_epoch or self._due:
            self._save(trainer)
        self._due = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until all is committed; raise what failed in the background."""
        if stage == "fit":
            self.manager.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait until all is committed; log an error, so that it does not hide the exception."""
        try:
            self.manager.close()
        except FileError as failed:
            LOG.error("%s", failed)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_number(value)}
        strategy, catcher = trainer.strategy, _Catcher()
        before, strategy.checkpoint_io = strategy.checkpoint_io, catcher
        try:
            trainer.save_checkpoint(join(self.manager.directory, str(step)), weights_only=False)
        finally:
            strategy.checkpoint_io = before
        self._saved = step
        for checkpoint in catcher.checkpoints:  # none unless this is the first process
            self.manager.save(step, _data(checkpoint), metrics, force=True, overwrite=True)


class _Catcher(StatedictCheckpointIO):
    """Collects checkpoints and writes none."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: list[dict[str, Any]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        self.checkpoints.append(checkpoint)


def _data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as data; the class of hyperparameters becomes its name."""
    kinds = {key: qualified_name(kind) for key, kind in checkpoint.items() if _is_kind(key, kind)}
    return data(checkpoint | kinds, _PARAMETERS)


def _is_kind(key: str, value: Any) -> bool:
    return key.endswith("hparams_type") and isinstance(value, type | Opaque)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
