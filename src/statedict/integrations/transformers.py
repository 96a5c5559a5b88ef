"""Hugging Face transformers: a callback that keeps the checkpoints of a `Trainer`'s run.

    from statedict.integrations.transformers import StatedictCallback

    callback = StatedictCallback("runs/a", keep=3)
    trainer = Trainer(model, TrainingArguments(save_strategy="no", …), callbacks=[callback], …)
    trainer.train(resume_from_checkpoint=callback.latest())

A callback cannot tell a `Trainer` where to go on: which batches are passed over is decided before the first callback
runs. So `latest()` writes what `resume_from_checkpoint` reads, a directory as `Trainer` itself would have written it,
and the `Trainer` does the rest. The directory goes away when training has begun.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import numpy

from statedict.api.files import save
from statedict.errors import MissingExtraError, RunError, file_error
from statedict.integrations.fresh import refuse_over
from statedict.io.urls import is_url
from statedict.runs.manager import CheckpointManager
from statedict.runs.rng import Rng, rng

try:
    import torch
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("this takes transformers; install it by: pip install 'statedict[transformers]'") from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from statedict.api.files import Path
    from statedict.tree.state_dict import StateDict

_FILES = {"model": "pytorch_model.bin", "optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}
"""What a checkpoint of ours holds → the file that `Trainer` reads it from, of `torch.save`'s format."""


class StatedictCallback(TrainerCallback):
    """Keeps the checkpoints of a run by a `CheckpointManager`: verified, by policy, saved while training goes on.

    Each holds the model, the optimizer, the scheduler, the scaler, the states of the random generators and the
    `TrainerState`, with the metrics of the evaluation if there was one at that step. `save_strategy="no"` keeps the
    `Trainer` from writing its own beside them.

    Args:
        directory: of the run, or its URL.
        save_every: as for `CheckpointManager`, in steps of the optimizer (`state.global_step`). None saves at the end
            of each epoch. One that is due at a step with an evaluation or a log is saved after it.
        options: those of `CheckpointManager`: `keep=[3, BestN("eval_loss")]`, `preemption=True`, …

    Raises:
        RunError: an argument makes no sense; or, when training begins, a model that is spread over processes, or a
            directory that has checkpoints when `latest()` was not asked for.

    >>> from statedict.integrations.transformers import StatedictCallback
    >>> import tempfile
    >>> callback = StatedictCallback(tempfile.mkdtemp(), keep=3)
    >>> callback.latest() is None
    True
    """

    def __init__(self, directory: Path, *, save_every: Any = None, **options: Any) -> None:
        self.manager = CheckpointManager(directory, save_every=save_every, **options)
        self._options = options
        self._asked = False  # whether the caller knows what is there
        self._each_epoch = save_every is None
        self._training = self._waiting = False
        self._saved = -1
        self._folders: list[str] = []

    def latest(self) -> str | None:
        """The newest sound checkpoint, for `resume_from_checkpoint`; None if there is none, and training begins anew.

        Returns:
            A directory beside the checkpoints, with what `Trainer` reads; a second copy, until training has begun.

        Raises:
            FileError: the disk has no room for it.
        """
        self._asked = True
        step = self.manager.latest()
        if step is None:
            return None
        try:
            if is_url(self.manager.directory):
                folder = tempfile.mkdtemp(prefix=f"step-{step}-")
            else:
                folder = os.path.join(self.manager.directory, f".{step}.{os.urandom(4).hex()}.tmp")
                os.mkdir(folder)  # by a name that whoever writes there next removes, if this process dies
        except OSError as error:
            raise file_error(self.manager.directory, "cannot make a directory to go on from", error) from error
        self._folders.append(folder)
        _written_for_trainer(self.manager.load(step), folder)
        return folder

    def _forget(self) -> None:
        """Remove what the `Trainer` has read."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    # the Trainer's hooks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be saved, and to begin anew over a run."""
        if args.world_size > 1 and (args.fsdp or args.deepspeed):
            raise RunError("FSDP and DeepSpeed spread a model over processes; use the Trainer's own save_strategy")
        if not self._asked:
            refuse_over(self.manager.directory, self._options, "pass resume_from_checkpoint=callback.latest()")
        self._training, self._waiting, self._saved, self._asked = True, False, -1, True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save if a checkpoint is due."""
        self._forget()
        step = state.global_step
        if self.manager.preempted or (not self._each_epoch and self.manager.should_save(step)):
            self._save_or_wait(state, control, kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save if a checkpoint is due."""
        if self._each_epoch or self._saved == state.global_step:
            self._save_or_wait(state, control, kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save what waited for this entry of the log."""
        if self._waiting and not control.should_evaluate:
            self._save(state, control, kwargs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save what waited for the metrics, and again what was saved right before."""
        if self._training and (self._waiting or self._saved == state.global_step):
            self._save(state, control, kwargs, metrics)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what waited for something that did not come."""
        if self._waiting:
            self._save(state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait until all is committed.

        Raises:
            FileError: a save that went on in the background has failed.
        """
        if self._waiting:
            self._save(state, control, kwargs)
        self._training = False
        self._forget()
        self.manager.close()

    def _save_or_wait(self, state: TrainerState, control: TrainerControl, live: dict[str, Any]) -> None:
        """Save as the `Trainer` does, after it has written its log and evaluated."""
        if (control.should_evaluate or control.should_log) and not self.manager.preempted:
            self._waiting = True
        elif self._saved != state.global_step:
            self._save(state, control, live)

    def _save(
        self, state: TrainerState, control: TrainerControl, live: dict[str, Any], metrics: dict[str, Any] | None = None
    ) -> None:
        self._waiting = False
        self._saved = state.global_step
        if not state.is_world_process_zero:
            return
        tree = {
            "model": live["model"],
            "optimizer": _inner(live["optimizer"]),
            "scheduler": live["lr_scheduler"],
            "rng": rng(),
            "trainer_state": _trainer_state(state, control),
        }
        scaler = getattr(live["optimizer"], "scaler", None)
        if scaler is not None:
            tree["scaler"] = scaler
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        self.manager.save(state.global_step, tree, numbers, force=True, overwrite=True)


def _trainer_state(state: TrainerState, control: TrainerControl) -> dict[str, Any]:
    """The state as JSON has it, and the control in it as it is now."""
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(state)))
    made["stateful_callbacks"]["TrainerControl"] = control.state()
    return made


def _inner(optimizer: Any) -> Any:
    """The optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _written_for_trainer(state: StateDict, folder: str) -> None:
    """Write a checkpoint as the files that `Trainer` reads."""
    for name, file in _FILES.items():
        if name in state:
            save(state[name], os.path.join(folder, file), format="torch", fsync=False)
    with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as stream:
        json.dump(state["trainer_state"], stream)
    torch.save(_generators(state["rng"]), os.path.join(folder, "rng_state.pth"))


def _generators(state: Any) -> dict[str, Any]:
    """The states of the generators as `Trainer` has them; those of the process stay as they are."""
    if torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]
    before = Rng().state_dict()
    try:
        Rng().load_state_dict(state)
        made: dict[str, Any] = {"python": random.getstate(), "numpy": numpy.random.get_state()}
        made["cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            made["cuda"] = torch.cuda.get_rng_state()
    finally:
        Rng().load_state_dict(before)
    return made
