"""The network of `train.py` and its optimizer, made by functions, for `statedict check --model nets:Net`."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions, three linear layers; the last one goes by any name."""

    def __init__(self, last: str = "fc3", classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84)
        self.add_module(last, nn.Linear(84, classes))


def renamed() -> Net:
    """The same after a refactoring."""
    return Net(last="head")


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """As `train.py` makes it."""
    return torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
