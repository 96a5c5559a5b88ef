"""Train the network of PyTorch's state_dict recipe for real, and save `checkpoint.pth` by plain `torch.save`.

The data are scikit-learn's handwritten digits, 8×8 grey, upscaled to 3×32×32. Run it from the repository's root:

    python examples/train.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """The recipe's network: two convolutions, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 3, 32, 32) from 0 to 1, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return images.contiguous(), torch.tensor(data.target)


def main(path: str, epochs: int = 60) -> None:
    """Train and save."""
    torch.manual_seed(0)
    images, labels = digits()
    train = slice(0, 1500)
    net, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(1500).split(4):
            optimizer.zero_grad()
            loss(net(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()
        if epoch % 10 == 0 or epoch == epochs:
            with torch.no_grad():
                accuracy = (net(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
            print(f"epoch {epoch}: {accuracy:.1%} of 297 unseen digits are right")
    checkpoint = {"epoch": epochs, "model_state": net.state_dict(), "optimizer_state": optimizer.state_dict()}
    torch.save(checkpoint, path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("checkpoint.pth")))
