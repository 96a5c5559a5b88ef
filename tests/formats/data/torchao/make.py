"""Made the files beside it, with PyTorch 2.13.0 and torchao 0.18.0, then 0.15.0: `python make.py`."""

from pathlib import Path

import torch
import torchao
from torchao import quantization
from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig


def quantized(config: object) -> torch.Tensor:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 4, bias=False, dtype=torch.bfloat16)
    quantization.quantize_(layer, config)
    return layer.state_dict()["weight"]


state = {"int8": quantized(Int8WeightOnlyConfig()), "dynamic": quantized(Int8DynamicActivationInt8WeightConfig())}
if torchao.__version__.startswith("0.18"):
    halves = torch.zeros(4, 16, dtype=torch.int8), torch.ones(1, 4).bfloat16(), torch.zeros(1, 4).bfloat16()
    state["int4"] = quantization.Int4Tensor(*halves, [1, 32], torch.Size([4, 32]))
    state["float8"] = quantized(Float8WeightOnlyConfig())
torch.save(state, Path(__file__).parent / f"{torchao.__version__[:4]}.pth")
