"""PyTorch's own layers, and what it can do to the parameters of any."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune

from .architecture import Architecture


class First(nn.Module):
    """Passes on the first of what a layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(*inputs)[0]


class Coder(nn.Module):
    """Decodes with the encoder's weight, a parameter of its own in another shape over the same bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 4)
        self.decode = nn.Parameter(self.encode.weight.detach())
        self.decode.data = self.encode.weight.data.t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode(x) @ self.decode.t()


class Collections(nn.Module):
    """Parameters in lists and dicts, complex ones, and names that are wrappers' names."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ParameterList([torch.randn(8), torch.randn(8, dtype=torch.complex64)])
        self.named = nn.ParameterDict({"scale": torch.randn(8).bfloat16(), "shift": torch.randn(()).half()})
        self.branches = nn.ModuleDict({"module": nn.Linear(8, 8), "model": nn.Linear(8, 8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branches["module"](x) * self.named["scale"] + self.branches["model"](x) * self.named["shift"]
        return x * self.listed[0] * self.listed[1]


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu() + x.triu(1).t()


def _normalized() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.GroupNorm(2, 8)]
    layers += [nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ConvTranspose2d(8, 4, 3)]
    return nn.Sequential(*layers, nn.LayerNorm(12), nn.RMSNorm(12), nn.BatchNorm2d(4, track_running_stats=False))


def _shared() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(nn.Tanh(), layer))


def _parametrized(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(48, 8)))


def _twice_parametrized() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return parametrize.register_parametrization(layer, "bias", nn.Sequential(nn.Linear(8, 8, bias=False)))


def _pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[2], "weight", 0.25, n=2, dim=0)
    return model


def _averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), use_buffers=True)


class Convolutional(nn.Module):
    """What quantization fuses: convolution, normalization and activation."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(self.quant(x))))
        return self.dequant(self.head(x.mean((2, 3))))


def _quantization_aware(backend: str, *, fused: bool = True) -> nn.Module:
    model = Convolutional().train()
    if fused:
        quantization.fuse_modules_qat(model, [["conv", "norm", "relu"]], inplace=True)
    model.qconfig = quantization.get_default_qat_qconfig(backend)
    return quantization.prepare_qat(model)


def _observed() -> nn.Module:
    model = Convolutional().eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    return quantization.prepare(model)


def _of(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randn(shape),)


def _sequences(count: int, *widths: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: tuple(torch.randn(5, 2, width) for width in (*widths, *[8] * (count - len(widths))))


def _indices() -> tuple[torch.Tensor, ...]:
    return torch.randint(20, (10,)), torch.tensor([0, 4])


_Builders = dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]]
_LAYERS: _Builders = {
    "convolutions and normalizations": (_normalized, _of(2, 3, 12, 12)),
    "rnn": (lambda: nn.RNN(8, 6, num_layers=2), _sequences(1)),
    "lstm, both ways, projected": (lambda: nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3), _sequences(1)),
    "gru": (lambda: nn.GRU(8, 6, 2, bidirectional=True), _sequences(1)),
    "lstm cell": (lambda: nn.LSTMCell(8, 6), _of(2, 8)),
    "multihead attention": (lambda: nn.MultiheadAttention(8, 2), _sequences(3)),
    "multihead attention, widths differ": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True),
        _sequences(3, 8, 6, 4),
    ),
    "transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), _sequences(2)),
    "embedding bag": (lambda: nn.EmbeddingBag(20, 8, padding_idx=1), _indices),
    "bilinear": (lambda: nn.Bilinear(8, 8, 3), _sequences(2)),
    "adaptive softmax": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 20, cutoffs=[5, 10], div_value=2),
        lambda: (torch.randn(6, 8), torch.arange(6) * 3),
    ),
    "a layer at three places": (_shared, _of(2, 8)),
    "two shapes of one weight": (Coder, _of(2, 8)),
    "lists, dicts and other dtypes": (Collections, _of(2, 8)),
}
_ALTERED: _Builders = {
    "weight norm": (partial(_parametrized, parametrizations.weight_norm), _of(2, 3, 8)),
    "spectral norm": (partial(_parametrized, parametrizations.spectral_norm), _of(2, 3, 8)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), _of(2, 8)),
    "weight norm of an lstm": (lambda: parametrizations.weight_norm(nn.LSTM(8, 6), "weight_hh_l0"), _sequences(1)),
    "two parametrizations": (_twice_parametrized, _of(2, 8)),
    "old weight norm": (partial(_parametrized, nn.utils.weight_norm), _of(2, 3, 8)),
    "old spectral norm": (partial(_parametrized, nn.utils.spectral_norm), _of(2, 3, 8)),
    "pruned": (_pruned, _of(2, 8)),
    "averaged": (_averaged, _of(2, 8)),
}
_QUANTIZED: _Builders = {
    "quantization-aware, by tensor": (partial(_quantization_aware, "qnnpack"), _of(2, 3, 8, 8)),
    "quantization-aware, by channel": (partial(_quantization_aware, "x86"), _of(2, 3, 8, 8)),
    "quantization-aware, not fused": (partial(_quantization_aware, "x86", fused=False), _of(2, 3, 8, 8)),
    "observed for quantization": (_observed, _of(2, 3, 8, 8)),
}
ARCHITECTURES = {
    name: Architecture(build, inputs) for name, (build, inputs) in (_LAYERS | _ALTERED | _QUANTIZED).items()
}
