"""What a checkpoint is called and holds in names: what is saved can be read again, and anything else is not saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from statedict import CheckpointManager, RunError, UnsupportedError
from statedict.runs.sound import verify_run

HALF = "caf\udce9"  # as Python reads a file name that is no UTF-8


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_tensor_whose_name_is_no_text_is_saved_and_restored(run: Path, format: str) -> None:
    with CheckpointManager(run, keep=1, format=format) as manager:
        for step in (1, 2):
            manager.save(step, {HALF: numpy.full(3, float(step)), "é😀": numpy.ones(2)})
    manager, tree = CheckpointManager(run), {HALF: numpy.zeros(3), "é😀": numpy.zeros(2)}
    assert manager.restore(tree).step == 2
    assert [*tree[HALF], *tree["é😀"]] == [2, 2, 2, 1, 1]
    assert verify_run(run).ok
    for command in ("ls", "show", "verify"):
        done = subprocess.run(
            [sys.executable, "-m", "statedict", "runs", command, run], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_name_that_its_manifest_would_change_is_not_committed(run: Path) -> None:
    """JSON joins two halves that stand side by side; so does a .safetensors, and a .pth does not."""
    pair = "\ud83d" + "\ude00"
    with (
        CheckpointManager(run, format="torch", background=False) as manager,
        pytest.raises(UnsupportedError, match="the two halves of a surrogate pair, which a manifest would join"),
    ):
        manager.save(1, {pair: numpy.ones(3)})
    assert manager.steps() == []
    with CheckpointManager(run) as manager:
        manager.save(1, {pair: numpy.ones(3)})
    assert manager.latest() == 1


def test_a_metric_whose_name_is_no_text_is_refused_before_anything_is_saved(run: Path) -> None:
    with (
        CheckpointManager(run) as manager,
        pytest.raises(RunError, match=r"the name 'caf\\udce9' has half of a surrogate pair"),
    ):
        manager.save(1, {"w": numpy.ones(3)}, metrics={HALF: 1.0})
    assert manager.steps() == []


@pytest.mark.parametrize("step", [1 << 63, 10**5000, -(10**5000)], ids=["2**63", "huge", "negative"])
def test_a_step_that_no_manifest_holds_is_refused_before_anything_is_saved(run: Path, step: int) -> None:
    with (
        CheckpointManager(run) as manager,
        pytest.raises(RunError, match=r"step=.*: expected a whole number of 0 or more, below 2\*\*63"),
    ):
        manager.save(step, {"w": numpy.ones(3)})
    with CheckpointManager(run) as manager:
        assert manager.save((1 << 63) - 1, {"w": numpy.ones(3)})
    assert (manager.steps(), manager.latest()) == ([(1 << 63) - 1], (1 << 63) - 1)
