"""Train; be killed at any step; go on as if nothing had happened, bit for bit.

    python examples/resume.py RUN --steps 60

Kill it whenever you like, then give the same command again. What it prints at the end is the same either way.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from typing import Any

import numpy
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import statedict


class Shapes(Dataset[tuple[torch.Tensor, int]]):
    """Squares and bars, each time mirrored, shifted and noisy in another way."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = index % 2
        image = torch.zeros(8, 8)
        image[2:6, 2 : 6 if label else 4] = 1
        if random.random() < 0.5:
            image = image.flip(1)
        image = image.roll(int(numpy.random.randint(-1, 2)), 0)
        return (image + 0.3 * torch.randn(8, 8)).flatten(), label


def parts() -> dict[str, Any]:
    """All that training changes. What is in here is saved and restored."""
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return {
        "model": model,
        "ema": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100),
        "scaler": torch.amp.GradScaler("cpu", growth_interval=7),
        "loader": statedict.ResumableLoader(DataLoader(Shapes(), batch_size=8, shuffle=True)),
        "rng": statedict.rng(),
    }


def step(it: dict[str, Any], images: torch.Tensor, labels: torch.Tensor) -> float:
    """One step of training; its loss."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(it["model"](images), labels)
    it["optimizer"].zero_grad()
    it["scaler"].scale(loss).backward()
    it["scaler"].step(it["optimizer"])
    it["scaler"].update()
    it["ema"].update_parameters(it["model"])
    return loss.item()


def train(it: dict[str, Any], manager: statedict.CheckpointManager, steps: int) -> None:
    """Train up to a step, from the newest checkpoint if there is one."""
    done = 0
    if manager.latest() is not None:
        done = manager.restore(it).step or 0
        print(f"go on after step {done}", flush=True)
    while done < steps:
        for images, labels in it["loader"]:
            loss = step(it, images, labels)
            it["scheduler"].step()
            done += 1
            if done % 10 == 0:
                print(f"step {done}: loss {loss:.4f}", flush=True)
            manager.save(done, it, metrics={"loss": loss}, force=done == steps)
            if done == steps:
                break


def digest(model: nn.Module) -> str:
    """Of the weights, to see that they are the same to the last bit."""
    raw = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(raw).hexdigest()[:16]


def main() -> None:
    """Read the command line, train, say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="where the checkpoints are")
    parser.add_argument("--steps", type=int, default=60, help="when to stop (60)")
    arguments = parser.parse_args()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    it = parts()
    with statedict.CheckpointManager(arguments.directory, save_every=5, keep=3, preemption=True) as manager:
        train(it, manager, arguments.steps)
    print("weights", digest(it["model"]))


if __name__ == "__main__":
    main()
