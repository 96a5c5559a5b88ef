"""k steps, an end of any kind, and a resume are an uninterrupted run, bit for bit: at every step of an epoch."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

import statedict
from statedict.testing.same import assert_same

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCH, STEPS = 6, 8


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume_example", EXAMPLES / "resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = imported()


class Decay:
    """A function of the epoch with a state of its own, which LambdaLR saves."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 0.9**epoch + 0.001 * self.calls


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, amsgrad=True)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, Decay()),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 7),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3),
    "CyclicLR of an own shape": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3, scale_fn=lambda x: 1 / (x + 1)),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, STEPS),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=0.1),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=3), schedulers.CosineAnnealingLR(o, 5)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, total_iters=4), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=5),
    "SWALR, linear": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=5, anneal_strategy="linear"),
}
OPTIMIZERS = {"SGD": sgd, "AdamW": adamw}
CASES = [("SGD", name) for name in SCHEDULERS]
CASES += [
    ("AdamW", name) for name in ("CosineAnnealingLR", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau", "SequentialLR")
]


@pytest.fixture(autouse=True)
def left_as_they_were() -> Iterator[None]:
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    random.setstate(before[0])
    numpy.random.set_state(before[1])
    torch.set_rng_state(before[2])
    torch.set_num_threads(before[3])


def process(seed: int, optimizer: str, scheduler: str) -> dict[str, Any]:
    """What a new process has before it restores anything."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    it: dict[str, Any] = example.parts()
    it["optimizer"] = OPTIMIZERS[optimizer](it["model"].parameters())
    it["scheduler"] = SCHEDULERS[scheduler](it["optimizer"])
    return it


def trained(it: dict[str, Any], done: int, manager: statedict.CheckpointManager | None = None) -> list[Any]:
    """The loss and the learning rate of each step until the last."""
    log: list[Any] = []
    while done < STEPS:
        for images, labels in it["loader"]:
            loss = example.step(it, images, labels)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SequentialLR steps with an epoch that it deprecates itself
                metric = (loss,) if isinstance(it["scheduler"], schedulers.ReduceLROnPlateau) else ()
                it["scheduler"].step(*metric)
            done += 1
            log.append((done, loss, float(it["optimizer"].param_groups[0]["lr"])))
            if manager is not None:
                manager.save(done, it)
            if done == STEPS:
                break
    return log


@pytest.mark.parametrize(("optimizer", "scheduler"), CASES, ids=list(map(" and ".join, CASES)))
def test_a_resume_at_any_step_is_an_uninterrupted_run(optimizer: str, scheduler: str, tmp_path: Path) -> None:
    reference = process(1, optimizer, scheduler)
    expected = trained(reference, 0)
    end = statedict.capture(reference)

    live = process(1, optimizer, scheduler)
    with statedict.CheckpointManager(tmp_path) as manager:
        manager.save(0, live)
        assert trained(live, 0, manager) == expected, "saving changed the run"
    assert_same(statedict.capture(live), end)

    for step in range(EPOCH + 2):
        fresh = process(100 + step, optimizer, scheduler)
        with statedict.CheckpointManager(tmp_path) as manager:
            assert manager.restore(fresh, step).step == step
        assert trained(fresh, step) == expected[step:], step
        assert_same(statedict.capture(fresh), end, f"after step {step}")


@pytest.mark.parametrize("left_out", ["model", "ema", "optimizer", "scheduler", "scaler", "loader", "rng"])
def test_without_any_one_part_it_is_another_run(left_out: str, tmp_path: Path) -> None:
    live = process(1, "AdamW", "CosineAnnealingLR")
    with statedict.CheckpointManager(tmp_path, format="torch", background=False) as manager:
        expected = trained(live, 0, manager)
        fresh = process(2, "AdamW", "CosineAnnealingLR")
        manager.restore(fresh, 3)
        assert trained(fresh, 3) == expected[3:]
        fresh = process(2, "AdamW", "CosineAnnealingLR")
        manager.restore({key: part for key, part in fresh.items() if key != left_out}, 3, allow_unexpected=[left_out])
    log, state = trained(fresh, 3), statedict.capture(fresh)
    with pytest.raises(AssertionError):
        assert_same([log, state], [expected[3:], statedict.capture(live)])


@pytest.mark.parametrize(
    ("name", "override"),
    [("ExponentialLR", {"lr": 0.5}), ("LambdaLR", {"lr": 0.5, "scheduler.base_lrs": [0.5]})],
)
def test_a_learning_rate_of_one_s_own_is_the_one_that_training_goes_on_with(
    name: str, override: dict[str, Any], tmp_path: Path
) -> None:
    live = process(1, "SGD", name)
    with statedict.CheckpointManager(tmp_path) as manager:
        plain = trained(live, 0, manager)
        fresh = process(2, "SGD", name)
        report = manager.restore(fresh, 3, override=override)
    assert "optimizer.param_groups.0.lr" in report.paths("overridden")
    assert fresh["optimizer"].param_groups[0]["lr"] == 0.5
    factor = 0.5 / plain[2][2] if name == "ExponentialLR" else 0.5 / 0.1
    assert [rate for _, _, rate in trained(fresh, 3)] == pytest.approx([rate * factor for _, _, rate in plain[3:]])


KILLED = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import resume
at, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
plain, steps = resume.step, 0
def step(*args):
    global steps
    steps += 1
    if steps == at:
        os.kill(os.getpid(), number)
    return plain(*args)
resume.step = step
resume.main()
"""


def run(directory: Path, at: int = 0, number: int = 0) -> tuple[int, list[str]]:
    """The exit status and the output of the example; in its step `at` a signal comes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, str(EXAMPLES), str(at), str(number), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = done.stdout.splitlines()
    end = next((at for at, line in enumerate(lines, 1) if line.startswith("weights")), len(lines))
    return done.returncode, lines[:end]  # behind it PyTorch 2.6 says that it leaves a temporary folder


def test_the_example_ends_alike_whatever_happens_to_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resume.py", str(tmp_path / "plain")])
    example.main()
    plain = capsys.readouterr().out.splitlines()
    assert len(plain) == 7

    status, output = run(tmp_path / "run", 23, signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    newest = statedict.CheckpointManager(tmp_path / "run").latest()
    assert newest in (15, 20)

    status, output = run(tmp_path / "run", 12, signal.SIGTERM)
    assert status == 143, output
    assert output[0] == f"go on after step {newest}"
    assert statedict.CheckpointManager(tmp_path / "run").latest() == newest + 12

    status, output = run(tmp_path / "run")
    assert status == 0, output
    assert output[0] == f"go on after step {newest + 12}"
    assert output[-1] == plain[-1]
    assert output[1:] == plain[-len(output) + 1 :]
