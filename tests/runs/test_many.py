"""Many saves: no memory is kept, and the last ones are as much work as the first."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy
import pytest

from statedict import CheckpointManager
from statedict.runs import BestN, EveryNSteps

from ..work import steps


def resident() -> float:
    """Resident memory, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize("megabytes", [0.1, 4])
def test_work_and_memory_stay_flat_over_hundreds_of_saves(run: Path, megabytes: float) -> None:
    tree = {f"layers.{i}": numpy.zeros(int(megabytes * 25_000), numpy.float32) for i in range(10)}
    work, used = [], []
    with CheckpointManager(run, keep=[3, BestN("loss", 2), EveryNSteps(20)]) as manager:
        for step in range(300):
            tree["layers.0"] += 1

            def save(step: int = step) -> None:
                manager.save(step, tree, {"loss": (step * 7) % 100})
                manager.wait()

            work.append(steps(save))
            used.append(resident())
    assert used[-1] - used[60] < 8 + megabytes, used[::30]
    first, last = statistics.median(work[30:110]), statistics.median(work[-80:])
    assert last < 1.5 * first, (first, last)
    assert len(CheckpointManager(run).steps()) == 15 + 3  # the best are among those of every 20
