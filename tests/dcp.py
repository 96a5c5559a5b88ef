"""`torch.distributed.checkpoint` in one process, without a process group, as every release of PyTorch spells it."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from typing import Any

import torch.distributed.checkpoint as dcp

_ALONE = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}  # since PyTorch 2.7


def save(tree: Any, folder: Any) -> None:
    """Write a checkpoint into a folder."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that no process group is there
        dcp.save(tree, checkpoint_id=folder, **_ALONE)


def load(tree: Any, folder: Any, **options: Any) -> None:
    """Read one into the tensors of a tree."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        dcp.load(tree, checkpoint_id=folder, **_ALONE, **options)


def run_ranks(code: str, world: int, *arguments: Any) -> None:
    """Run code in several processes, which get their rank and the arguments."""
    command = [sys.executable, "-c", code]
    ranks = [subprocess.Popen([*command, str(rank), *map(str, arguments)]) for rank in range(world)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0] * world
