"""What the tables of architectures hold, and what models are wrapped in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # it wraps; nothing is compiled
    "parallel": nn.DataParallel,
}


@dataclass(frozen=True)
class Architecture:
    """`build()` and `inputs()` draw from PyTorch's random numbers; inputs are arguments, by position or by name."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...] | Mapping[str, Any]]

    def made(self, seed: int) -> nn.Module:
        """A new one, for evaluation."""
        torch.manual_seed(seed)
        return self.build().eval()

    def outputs(self, model: nn.Module) -> list[torch.Tensor]:
        """All tensors that it gives for inputs that are always the same."""
        torch.manual_seed(0)
        inputs = self.inputs()
        with torch.no_grad():
            return _tensors(model(**inputs) if isinstance(inputs, Mapping) else model(*inputs))

    def used(self, seed: int) -> nn.Module:
        """One that was used in training: no floating-point entry of its state is as a new one has it."""
        model = self.made(seed).train()
        self.outputs(model)
        with torch.no_grad():
            for tensor in _distinct(model):
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.add_(torch.rand_like(tensor), alpha=0.01)
        return model.eval()


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, list | tuple):
        return []  # None, a cache of keys and values
    return [tensor for part in output for tensor in _tensors(part)]


def _distinct(model: nn.Module) -> list[torch.Tensor]:
    """The tensors of its state, tied ones once."""
    return list({tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values())
