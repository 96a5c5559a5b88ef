"""Runs of transformers' Trainer; test_integrations.py runs them in a process of their own."""

from __future__ import annotations

import os
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tests.integrations.forks import digest, examples_hold, forked, page
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

import statedict
from statedict.integrations.transformers import StatedictCallback

EPOCHS, BATCHES = 2, 10  # of each epoch
ROWS = torch.randint(0, 50, (40, 8), generator=torch.Generator().manual_seed(0))


def model() -> GPT2LMHeadModel:
    """With dropout and tied weights."""
    set_seed(1)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))


class At(TrainerCallback):
    """Sends a signal to its own process before a step."""

    def __init__(self, step: int | None, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def run(
    folder: str,
    at: int | None = None,
    number: int = signal.SIGKILL,
    evaluate: str = "no",
    accumulate: int = 1,
    **options: Any,
) -> Any:
    network, directory = model(), os.path.join(folder, "run")
    callback = StatedictCallback(directory, **options)
    arguments = TrainingArguments(
        output_dir=os.path.join(folder, "out"),
        use_cpu=True,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        save_strategy="no",
        eval_strategy=evaluate,
        eval_steps=4,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        log_level="error",
    )
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = Trainer(
        network, arguments, train_dataset=rows, eval_dataset=rows[:8], callbacks=[callback, At(at, number)]
    )
    trainer.train(resume_from_checkpoint=callback.latest())
    assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]
    steps = callback.manager.steps()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return digest(network), steps, losses, [callback.manager.metrics(step).get("eval_loss") for step in steps]


def test_a_run_that_is_killed_goes_on_from_the_end_of_an_epoch(folder: str) -> None:
    options: dict[str, Any] = {"evaluate": "epoch", "keep": [5, statedict.runs.BestN("eval_loss")]}
    whole = forked(partial(run, f"{folder}/whole", **options))
    assert forked(partial(run, folder, 13, background=False, **options)) == -signal.SIGKILL
    assert forked(partial(run, folder, **options)) == whole
    assert whole[1] == [10, 20]
    assert None not in whole[3]


def test_it_goes_on_within_an_epoch_and_after_an_evaluation(folder: str) -> None:
    options: dict[str, Any] = {"evaluate": "steps", "save_every": 1, "format": "torch"}
    whole = forked(partial(run, f"{folder}/whole", **options))
    for at in (4, 13):
        forked(partial(run, f"{folder}/{at}", at, background=False, **options))
        assert sorted(map(int, [one for one in os.listdir(f"{folder}/{at}/run") if one.isdecimal()])) == list(
            range(1, at + 1)
        )
        assert forked(partial(run, f"{folder}/{at}", **options)) == whole
    assert [step for step, loss in zip(whole[1], whole[3], strict=True) if loss is not None] == [4, 8, 12, 16, 20]


def test_it_goes_on_with_accumulated_gradients(folder: str) -> None:
    options: dict[str, Any] = {"accumulate": 2, "save_every": 3}
    whole = forked(partial(run, f"{folder}/whole", **options))
    forked(partial(run, folder, 4, background=False, **options))
    assert forked(partial(run, folder, **options)) == whole
    assert whole[1] == [3, 6, 9]


def test_a_signal_saves_and_ends_the_process_with_its_status(folder: str) -> None:
    whole = forked(partial(run, f"{folder}/whole", preemption=True))
    assert forked(partial(run, folder, 5, signal.SIGTERM, preemption=True)) == 128 + signal.SIGTERM
    resumed = forked(partial(run, folder, preemption=True))
    assert resumed[0] == whole[0]
    assert resumed[1] == [6, 10, 20]


def test_what_was_written_to_go_on_from_does_not_stay(folder: str) -> None:
    forked(partial(run, folder, 13, background=False))
    left = StatedictCallback(f"{folder}/run").latest()  # by a process that then dies
    assert left is not None
    assert sorted(os.listdir(left)) == [
        "optimizer.pt", "pytorch_model.bin", "rng_state.pth", "scheduler.pt", "trainer_state.json"
    ]  # fmt: skip
    forked(partial(run, folder))
    assert not os.path.exists(left)


def test_the_generators_of_the_process_stay_as_they_are_until_training_begins(folder: str) -> None:
    forked(partial(run, folder, 13, background=False))
    before = torch.get_rng_state()
    assert StatedictCallback(f"{folder}/run").latest()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_of_a_step_are_put_into_a_model_by_themselves(folder: str) -> None:
    found = forked(partial(run, folder))
    network, manager = model(), statedict.CheckpointManager(f"{folder}/run")
    statedict.restore(network, manager.load(20)["model"])
    assert digest(network) == found[0]
    assert {"model", "optimizer", "scheduler", "rng", "trainer_state"} == set(manager.load(20))


def test_a_model_that_is_spread_over_processes_is_refused(folder: str) -> None:
    spread: Any = SimpleNamespace(world_size=2, fsdp="full_shard", deepspeed=None)
    with pytest.raises(statedict.errors.RunError) as error:
        StatedictCallback(folder).on_train_begin(spread, None, None)  # type: ignore[arg-type]
    assert "FSDP and DeepSpeed spread a model over processes" in str(error.value)


def test_a_fresh_start_over_a_run_is_refused_before_training(folder: str) -> None:
    statedict.CheckpointManager(folder, background=False).save(1, {"epoch": 1})
    alone: Any = SimpleNamespace(world_size=1)
    with pytest.raises(statedict.errors.RunError) as error:
        StatedictCallback(folder).on_train_begin(alone, None, None)  # type: ignore[arg-type]
    assert "pass resume_from_checkpoint=callback.latest() to go on" in str(error.value)
    StatedictCallback(folder, existing="replace").on_train_begin(alone, None, None)  # type: ignore[arg-type]


def test_the_page_holds(folder: str) -> None:
    def followed() -> list[str]:
        os.chdir(folder)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        page(
            "Hugging Face transformers", {"model": model(), "rows": [{"input_ids": row, "labels": row} for row in ROWS]}
        )
        return os.listdir("runs/a")

    assert {"5", "10"} <= set(forked(followed))


def test_the_examples_hold(folder: str) -> None:
    examples_hold("statedict.integrations.transformers")
