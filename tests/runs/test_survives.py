"""What the fault harness has found, each by itself; `make faults` runs all of it."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch

from statedict import CheckpointManager


def tree(value: float) -> dict[str, object]:
    return {"w": numpy.full(3, value), "epoch": int(value), "inner": {"lr": value}}


def test_plain_values_are_restored_into_the_dict_that_was_given(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, background=False) as manager:
        manager.save(1, tree(4))
    target = tree(0)
    CheckpointManager(tmp_path).restore(target)
    assert target["epoch"] == 4
    assert target["inner"] == {"lr": 4.0}


def test_plain_values_are_restored_beside_a_loader_without_state(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([1, 2])
    with CheckpointManager(tmp_path, background=False) as manager:
        manager.save(1, {**tree(4), "loader": loader})
    target = {**tree(0), "loader": loader}
    CheckpointManager(tmp_path).restore(target)
    assert target["epoch"] == 4
    assert target["loader"] is loader
