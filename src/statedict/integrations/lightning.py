"""Lightning: a plugin that reads and writes its checkpoints, and a callback that keeps those of a run.

    from statedict.integrations.lightning import StatedictCallback, StatedictCheckpointIO

    callback = StatedictCallback("runs/a", keep=3)
    trainer = Trainer(callbacks=[callback], plugins=[StatedictCheckpointIO()])
    trainer.fit(model, ckpt_path=callback.latest())

What a checkpoint holds is what Lightning puts into it: the callback asks for it by `Trainer.save_checkpoint`, behind
which another `CheckpointIO` stands for that moment. Both are Lightning's public interfaces, and so everything is there
that `ModelCheckpoint` would have saved: loops, callbacks, data modules, precision, `on_save_checkpoint`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from statedict.adapters.collect import collect, copy_arrays
from statedict.api.files import load, save, to_writable
from statedict.collector import Paused
from statedict.errors import FileError, MissingExtraError, RefusedError, RunError
from statedict.integrations.fresh import refuse_over
from statedict.integrations.plain import data, without_objects
from statedict.io.location import location
from statedict.io.urls import join, to_name
from statedict.runs.background import LOG, Background
from statedict.runs.directory import Directory
from statedict.runs.keep import BestN
from statedict.runs.manager import CheckpointManager
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

    from statedict.api.files import Path

_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams")
"""Where a checkpoint holds what a module was made with; going on with a run does not take it."""
_KEY = "statedict"


class StatedictCheckpointIO(CheckpointIO):
    """Reads and writes Lightning's checkpoints without running code from them, whole or not at all, with digests.

    Files are those of `torch.save`, or safetensors if the name says so; what reads Lightning's reads them. Every format
    that `statedict.load` knows is read.

    What a module was made with (`save_hyperparameters`) is kept as far as it is data: OmegaConf's containers and
    namespaces as dicts, paths as text, enumerations as their values. What is not, a module or a function, is left out
    with a warning; when loading, too.

    Args:
        background: whether saving returns once the checkpoint is copied; the rest goes on in a thread.

    >>> from statedict.integrations.lightning import StatedictCheckpointIO
    >>> import os, tempfile, torch
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
            checkpoint: as Lightning has it.
            path: the file, or its URL.
            storage_options: options of `statedict.save`: `{"format": "safetensors", "fsync": False}`.

        Raises:
            UnsupportedError: a value that is no data, outside of the hyperparameters.
            FileError: the file system refuses, now or for the save before, which went on in the background.
        """
        target, options = to_name(path), storage_options or {}
        if not isinstance(options, dict):
            raise RunError(f"storage_options={options!r:.80}: expected a dict with options of statedict.save")
        location(target).make_folder_above()
        tree = _data(checkpoint)
        if self._background is None:
            save(tree, target, **options)
            return
        self._background.surface(2)
        room = self._background.room(waiting=True)
        assert room is not None
        try:
            with Paused():
                state = to_writable(copy_arrays(collect(tree), room))
        except BaseException:
            self._background.give_up(room)
            raise
        self._writing.add(target)
        self._background.start(partial(self._save, state, target, options), room)

    def _save(self, state: Any, target: str, options: dict[str, Any]) -> None:
        try:
            save(state, target, **options)
        finally:
            self._writing.discard(target)

    def load_checkpoint(self, path: Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: the file, or its URL.
            map_location: as for `torch.load`; None means the CPU.
            weights_only: makes no difference: no code from the file is run.

        Raises:
            RefusedError: something outside of the hyperparameters could only be made by running code.
            FormatError: it is no checkpoint, truncated or damaged.
        """
        from statedict.torch import load as torch_load
        from statedict.torch.storages import from_tree

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
        """Remove a checkpoint; that there is none is no error."""
        target = to_name(path)
        self._settle(target)
        try:
            location(target).remove()
        except FileNotFoundError:
            pass

    def _settle(self, target: str) -> None:
        """Wait for a checkpoint that is still being written."""
        if self._background is not None and target in self._writing:
            self._background.wait()

    def teardown(self) -> None:
        """Wait until all is written.

        Raises:
            FileError: a save that went on in the background has failed.
        """
        if self._background is not None:
            self._background.close()
            self._background.surface(2)


class StatedictCallback(Checkpoint):
    """Keeps the checkpoints of a run by a `CheckpointManager`: verified, by policy, saved while training goes on.

    Each holds Lightning's whole checkpoint and the states of the random generators, so that a run goes on with
    `trainer.fit(model, ckpt_path=callback.latest())`, with or without our `CheckpointIO`. It takes the place of
    `ModelCheckpoint`; both may be there.

    Args:
        directory: of the run; or its URL, which takes our `CheckpointIO` to go on from.
        save_every: as for `CheckpointManager`, in steps of the optimizer (`trainer.global_step`). None saves at the
            end of each epoch. One that is due at the last step of an epoch is saved at its end, with the metrics of
            the validation; one at a step with a validation, after it.
        format: `"torch"`, which Lightning reads by itself, or `"safetensors"`, which takes our `CheckpointIO`.
        options: those of `CheckpointManager`: `keep=[3, BestN("val_loss")]`, `preemption=True`, …

    Raises:
        RunError: an argument makes no sense; or, when training begins, a strategy that writes its own directories, or
            a directory that has checkpoints when `latest()` was not asked for.

    >>> from statedict.integrations.lightning import StatedictCallback
    >>> import tempfile
    >>> callback = StatedictCallback(tempfile.mkdtemp(), keep=3)
    >>> callback.latest() is None
    True
    """

    def __init__(self, directory: Path, *, save_every: Any = None, format: str = "torch", **options: Any) -> None:
        super().__init__()
        self.manager = CheckpointManager(directory, save_every=save_every, format=format, **options)
        self._best = [one for one in _policies(options.get("keep")) if isinstance(one, BestN)]
        self._options = options
        self._asked = False  # whether the caller knows what is there
        self._each_epoch = save_every is None
        self._seen = -1  # the step that was looked at last
        self._saved = -1
        self._due = False  # at the end of the epoch
        self._rng: Any = None

    # what is there

    def latest(self) -> str | None:
        """The file of the newest sound checkpoint, for `ckpt_path`; None if there is none, and training begins anew."""
        return self._file(self.manager.latest())

    def best(self, metric: str, mode: str | None = None) -> str | None:
        """The file of the checkpoint with the best value of a metric; see `CheckpointManager.best`."""
        return self._file(self.manager.best(metric, mode))

    @property
    def best_model_path(self) -> str:
        """What `ckpt_path="best"` means: by the `BestN` in `keep`; empty without one."""
        return (self.best(self._best[0].metric) or "") if self._best else ""

    def _file(self, step: int | None) -> str | None:
        self._asked = True
        return None if step is None else Directory(self.manager.directory).data(step)

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be saved."""
        if stage == "fit" and type(trainer.strategy).save_checkpoint is not Strategy.save_checkpoint:
            kind = type(trainer.strategy).__name__
            raise RunError(f"{kind} writes checkpoints of its own, from all processes; use Lightning's ModelCheckpoint")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to begin anew over a run; put the random generators back, before loaders are made."""
        if not self._asked:
            refuse_over(self.manager.directory, self._options, "pass ckpt_path=callback.latest()")
        self._asked = True
        self._put_back(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Within an epoch once more: its loader was made before the checkpoint."""
        self._seen, self._due = trainer.global_step, False
        if self._rng is not None and self._rng["within_epoch"]:
            self._put_back(trainer)
        self._rng = None

    def _put_back(self, trainer: Trainer) -> None:
        if self._rng is not None and trainer.world_size == 1:
            rng().load_state_dict(self._rng["rng"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the states of the random generators into a checkpoint."""
        checkpoint[_KEY] = {"rng": rng().state_dict(), "within_epoch": not trainer.is_last_batch}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them out of it, if training goes on from it."""
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
        """Save again what was saved right before a validation within an epoch, now with its metrics."""
        if self._saved == trainer.global_step and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a checkpoint is due."""
        if self._each_epoch or self._due:
            self._save(trainer)
        self._due = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until all is committed.

        Raises:
            FileError: a save that went on in the background has failed.
        """
        if stage == "fit":
            self.manager.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait until all is committed; the error is told, and what it was saved for goes on."""
        try:
            self.manager.close()
        except FileError as failed:
            LOG.error("%s", failed)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_number(value)}
        with _intercept(trainer.strategy) as taken:
            trainer.save_checkpoint(join(self.manager.directory, str(step)), weights_only=False)
        self._saved = step
        for checkpoint in taken:  # none where this is not the first process
            self.manager.save(step, _data(checkpoint), metrics, force=True, overwrite=True)


class _Taking(CheckpointIO):
    """Takes checkpoints and writes none."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        self.taken.append(checkpoint)

    # abstract in Lightning's class, and never called: this one stands in while a checkpoint is taken
    def load_checkpoint(self, path: Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def remove_checkpoint(self, path: Path) -> None:
        raise NotImplementedError


@contextmanager
def _intercept(strategy: Strategy) -> Iterator[list[dict[str, Any]]]:
    """What is saved meanwhile, in place of files."""
    before, io = strategy.checkpoint_io, _Taking()
    strategy.checkpoint_io = io
    try:
        yield io.taken
    finally:
        strategy.checkpoint_io = before


def _data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as data. A class of hyperparameters becomes its name, for which Lightning has attributes."""
    kinds = {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in checkpoint.items() if _is_kind(key, kind)}
    return data(checkpoint | kinds, _PARAMETERS)


def _is_kind(key: str, value: Any) -> bool:
    return key.endswith("hparams_type") and isinstance(value, type | Opaque)


def _policies(keep: Any) -> list[Any]:
    return list(getattr(keep, "policies", keep if isinstance(keep, list | tuple) else [keep]))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
