"""Make the tensors of torchao that the tests read, or compare them with those recorded; see `make peers`.

    python -P torchao.py [--write]

torchao 0.15.0 made 0.15.pth in the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "formats" / "data" / "torchao"


def make() -> tuple[dict[str, Any], Path]:
    import torch
    import torchao
    from torchao import quantization

    def quantized(config: Any) -> Any:
        torch.manual_seed(0)
        layer = torch.nn.Linear(32, 4, bias=False, dtype=torch.bfloat16)
        quantization.quantize_(layer, config)
        return layer.state_dict()["weight"]

    state = {
        "int8": quantized(quantization.Int8WeightOnlyConfig()),
        "dynamic": quantized(quantization.Int8DynamicActivationInt8WeightConfig()),
    }
    if not torchao.__version__.startswith("0.15"):
        halves = torch.zeros(4, 16, dtype=torch.int8), torch.ones(1, 4).bfloat16(), torch.zeros(1, 4).bfloat16()
        state["int4"] = quantization.Int4Tensor(*halves, [1, 32], torch.Size([4, 32]))
        state["float8"] = quantized(quantization.Float8WeightOnlyConfig())
    return state, FOLDER / f"{torchao.__version__[:4]}.pth"


def parts(tensor: Any) -> list[Any]:
    """The class and the inner tensors of a tensor, and of those in it."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    if not names:
        return [tensor.dtype, tensor.tolist()]
    return [type(tensor).__name__, [(name, parts(getattr(tensor, name))) for name in names]]


def main() -> int:
    import torch

    state, path = make()
    if "--write" in sys.argv:
        torch.save(state, path)
        return 0
    before = torch.load(path, weights_only=False)
    wrong = [name for name in {*state, *before} if parts(state[name]) != parts(before[name])]
    print("\n".join(wrong) or f"torchao: {path.name} is as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
