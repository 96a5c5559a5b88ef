"""Hugging Face transformers: a callback that saves the checkpoints of a `Trainer`'s run.

    from statedict.integrations.transformers import StatedictCallback

    callback = StatedictCallback("runs/a", keep=3)
    trainer = Trainer(model, TrainingArguments(save_strategy="no", …), callbacks=[callback], …)
    trainer.train(resume_from_checkpoint=callback.latest())

A callback cannot tell a `Trainer` where to resume: which batches to skip is decided before the first callback runs. So
`latest()` writes a directory as `Trainer` itself would, for `resume_from_checkpoint`. It is removed when training has
begun.
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
from statedict.errors import MissingExtraError, RunError
from statedict.io.disk import file_errors
from statedict.io.location import location
from statedict.runs.manager import CheckpointManager, check_new
from statedict.runs.places import hidden_name
from statedict.runs.rng import Rng, rng

try:
    import torch
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("this takes transformers; install it by: pip install 'statedict[transformers]'") from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

    from statedict.api.names import Path
    from statedict.tree.state_dict import StateDict

# key of our checkpoint → file of `torch.save` that `Trainer` reads
_FILES = {"model": "pytorch_model.bin", "optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}


class StatedictCallback(TrainerCallback):
    """Saves the checkpoints of a run with a `CheckpointManager`: verified, pruned by policy, beside training.

    Each holds the model, the optimizer, the scheduler, the scaler, the states of the random generators and the
    `TrainerState`, with the metrics of an evaluation at that step. `save_strategy="no"` keeps the `Trainer` from
    writing its own.

    Args:
        directory: the run, or its URL.
        save_every: as for `CheckpointManager`, in steps of the optimizer (`state.global_step`). None saves at the end
            of each epoch. A checkpoint due at a step with an evaluation or a log is saved after it.
        options: those of `CheckpointManager`: `keep=[3, BestN("eval_loss")]`, `preemption=True`, …

    Raises:
        ArgumentError: an argument is invalid.
        RunError: when training begins, the model is spread over processes, or the
            directory has checkpoints and nobody called `latest()`.

    >>> import tempfile
    >>> from statedict.integrations.transformers import StatedictCallback
    >>> callback = StatedictCallback(tempfile.mkdtemp(), keep=3)
    >>> callback.latest() is None
    True
    """

    def __init__(self, directory: Path, *, save_every: Any = None, **options: Any) -> None:
        self.manager = CheckpointManager(directory, save_every=save_every, **options)
        self._each_epoch = save_every is None
        self._training = self._waiting = False
        self._saved = -1
        self._folders: list[str] = []

    def latest(self) -> str | None:
        """Copy the newest sound checkpoint for `resume_from_checkpoint`; None if there is none.

        The copy is a directory beside the checkpoints, removed when training has begun.

        Raises:
            FileError: the disk has no room for it.
        """
        step = self.manager.latest()
        if step is None:
            return None
        with file_errors(self.manager.directory, "cannot make a directory to go on from"):
            if location(self.manager.directory).has_folders:
                folder = hidden_name(self.manager.directory, step, "tmp")  # the next writer removes it if we die
                os.mkdir(folder)
            else:
                folder = tempfile.mkdtemp(prefix=f"step-{step}-")
        self._folders.append(folder)
        _write_for_trainer(self.manager.load(step), folder)
        return folder

    def _remove_folders(self) -> None:
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Refuse models that are spread over processes, and to begin anew over a run."""
        if args.world_size > 1 and (args.fsdp or args.deepspeed):
            raise RunError("FSDP and DeepSpeed spread a model over processes; use the Trainer's own save_strategy")
        check_new(self.manager, "training begins anew; pass resume_from_checkpoint=callback.latest()")
        self._training, self._waiting, self._saved = True, False, -1

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Save if a checkpoint is due."""
        self._remove_folders()
        step = state.global_step
        if self.manager.preempted or (not self._each_epoch and self.manager.should_save(step)):
            self._save_or_wait(state, control, live)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Save if a checkpoint is due."""
        if self._each_epoch or self._saved == state.global_step:
            self._save_or_wait(state, control, live)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Save what waited for this entry of the log."""
        if self._waiting and not control.should_evaluate:
            self._save(state, control, live)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **live: Any
    ) -> None:
        """Save what waited for the metrics, or save it again with them."""
        if self._training and (self._waiting or self._saved == state.global_step):
            self._save(state, control, live, metrics)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Save what waited for something that did not come."""
        if self._waiting:
            self._save(state, control, live)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **live: Any) -> None:
        """Wait until all is committed; raise what failed in the background."""
        if self._waiting:
            self._save(state, control, live)
        self._training = False
        self._remove_folders()
        self.manager.close()

    def _save_or_wait(self, state: TrainerState, control: TrainerControl, live: dict[str, Any]) -> None:
        """Save after the log and the evaluation, as the `Trainer` does."""
        if (control.should_evaluate or control.should_log) and not self.manager.preempted:
            self._waiting = True
        elif self._saved != state.global_step:
            self._save(state, control, live)

    def _save(self, state: TrainerState, control: TrainerControl, live: dict[str, Any], metrics: Any = None) -> None:
        self._waiting, self._saved = False, state.global_step
        if not state.is_world_process_zero:
            return
        tree = {
            "model": live["model"],
            "optimizer": getattr(live["optimizer"], "optimizer", live["optimizer"]),  # accelerate wraps it
            "scheduler": live["lr_scheduler"],
            "rng": rng(),
            "trainer_state": json.loads(json.dumps(dataclasses.asdict(state))),
        }
        tree["trainer_state"]["stateful_callbacks"]["TrainerControl"] = control.state()
        scaler = getattr(live["optimizer"], "scaler", None)
        if scaler is not None:
            tree["scaler"] = scaler
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        self.manager.save(state.global_step, tree, numbers, force=True, overwrite=True)


def _write_for_trainer(state: StateDict, folder: str) -> None:
    for name, file in _FILES.items():
        if name in state:
            save(state[name], os.path.join(folder, file), format="torch", fsync=False)
    with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as stream:
        json.dump(state["trainer_state"], stream)
    torch.save(_generators(state["rng"]), os.path.join(folder, "rng_state.pth"))


def _generators(state: Any) -> dict[str, Any]:
    """The states of the generators in `Trainer`'s form; those of the process stay the same."""
    if torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]
    before = Rng().state_dict()
    try:
        Rng().load_state_dict(state)
        states: dict[str, Any] = {"python": random.getstate(), "numpy": numpy.random.get_state()}
        states["cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
    finally:
        Rng().load_state_dict(before)
    return states
