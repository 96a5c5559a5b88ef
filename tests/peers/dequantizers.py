"""Digest what the libraries make of the recorded quantized models, or compare with the record; see `make peers`.

    python -P dequantizers.py [--write]

`dequantized.json` has for each weight the dtype and the beginning of the SHA-256 of the numbers that its own library
computes on the CPU. It takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

RECORD = Path(__file__).parents[1] / "ops" / "data" / "quantized"
TORCHAO = Path(__file__).parents[1] / "formats" / "data" / "torchao" / "0.18.pth"
Tensors = dict[str, Any]


def gptq(parts: Tensors, config: dict[str, Any]) -> Any:
    """What the layer multiplies with: the zero points of this version of the format are one less."""
    import torch
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    length, out = parts["g_idx"].shape[0], parts["scales"].shape[1]
    layer = QuantLinear(config["bits"], config["group_size"], length, out, False)
    for name in ("qweight", "qzeros", "scales"):  # its indices are those of groups in a row
        setattr(layer, name, parts[name])
    found: list[Any] = []
    multiply = torch.matmul
    with patch.object(torch, "matmul", lambda x, weight: found.append(weight) or multiply(x, weight)):
        layer(torch.eye(length, dtype=torch.float16))
    return found[0].t()


def awq(parts: Tensors, config: dict[str, Any]) -> Any:
    """`dequantize_gemm` of AutoAWQ 0.2.9, whose other functions compressed-tensors has copied."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter as Converter

    bits, group = config["bits"], config["group_size"]
    numbers, zeros = Converter.unpack_awq(parts["qweight"], parts["qzeros"], bits)
    numbers, zeros = Converter.reverse_awq_order(numbers, zeros, bits)
    numbers, zeros = numbers & (2**bits - 1), zeros & (2**bits - 1)
    return ((numbers - zeros.repeat_interleave(group, 0)) * parts["scales"].repeat_interleave(group, 0)).t()


def bitsandbytes(parts: Tensors, config: dict[str, Any]) -> Any:
    from bitsandbytes import functional

    if "SCB" in parts:
        return functional.int8_vectorwise_dequant(parts["weight"], parts["SCB"])
    state = functional.QuantState.from_dict({k: v for k, v in parts.items() if k != "weight"}, device="cpu")
    return functional.dequantize_4bit(parts["weight"], state)


def compressed_tensors(parts: Tensors, config: dict[str, Any]) -> Any:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    return BaseCompressor.get_value_from_registry(config["format"]).decompress(parts, scheme)["weight"]


def mlx(parts: Tensors, config: dict[str, Any]) -> Any:
    import mlx.core as mx
    import torch

    def to_mlx(tensor: Any) -> Any:
        if tensor.dtype == torch.bfloat16:
            return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
        return mx.array(tensor.numpy())

    arrays = {name: to_mlx(tensor) for name, tensor in parts.items()}
    how = {"group_size": config["group_size"], "bits": config["bits"], "mode": config.get("mode", "affine")}
    found = mx.dequantize(arrays["weight"], arrays["scales"], arrays.get("biases"), **how)
    assert found.dtype == mx.bfloat16
    return torch.from_numpy(__import__("numpy").array(found.view(mx.uint16))).view(torch.bfloat16)


def float8(parts: Tensors, config: dict[str, Any]) -> Any:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    return Fp8Dequantize(SimpleNamespace())._dequantize_one(parts["weight"], parts["weight_scale_inv"])


def mxfp4(parts: Tensors, config: dict[str, Any]) -> Any:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(parts["blocks"], parts["scales"])


def quanto(parts: Tensors, config: dict[str, Any]) -> Any:
    import torch
    from optimum.quanto import qint4
    from optimum.quanto.tensor import WeightQBitsTensor

    inner = {name.removeprefix("weight."): tensor for name, tensor in parts.items() if name.startswith("weight.")}
    size = torch.Size(config["shape"])
    strides = (size[1], 1)
    return WeightQBitsTensor.load_from_state_dict(
        {f"weight.{name}": tensor for name, tensor in inner.items()},
        "weight.", qtype=qint4, axis=0, group_size=config["group"], size=size, stride=strides, missing_keys=[],
    ).dequantize()  # fmt: skip


def torchao(parts: Tensors, config: dict[str, Any]) -> Any:
    import torch
    from torchao.quantization import Int8Tensor

    named = {name.removeprefix("_weight_"): tensor for name, tensor in parts.items()}
    length = named["qdata"].shape[1]
    scale, zero = named["scale"], named.get("zero_point")
    return Int8Tensor(named["qdata"], scale, [1, length], torch.bfloat16, zero_point=zero).dequantize()


LIBRARIES = {
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed": compressed_tensors,
    "mlx": mlx,
    "float8": float8,
    "gpt-oss": mxfp4,
    "quanto": quanto,
    "torchao": torchao,
}
# where the names of a weight's tensors begin to differ
STEMS = {"gpt-oss": "_", "bitsandbytes": ".weight."}


def layers(state: Tensors, library: str) -> dict[str, Tensors]:
    """Name of each quantized weight → its tensors by the rest of their names."""
    found: dict[str, Tensors] = {}
    for name, tensor in state.items():
        if library == "gpt-oss":
            stem, _, part = name.rpartition("_")
            named = stem if part in ("blocks", "scales") else ""
        else:
            head = name.partition("._weight_")[0] if "._weight_" in name else name
            stem = head.partition(".weight.")[0] if ".weight." in head else head.rpartition(".")[0]
            stem = stem if "._weight_" not in name else head
            part, named = name[len(stem) + 1 :], f"{stem}.weight"
        if named:
            found.setdefault(named, {})[part] = tensor
    return {name: parts for name, parts in found.items() if len(parts) > 1}


def digest(tensor: Any) -> list[str]:
    import torch

    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), hashlib.sha256(data).hexdigest()[:16]]


def of_model(folder: Path) -> dict[str, list[str]]:
    from safetensors.torch import load_file

    library = next(name for name in LIBRARIES if folder.name.startswith(name))
    about = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    config = about.get("quantization_config") or {}
    found = {}
    for name, parts in layers(load_file(folder / "model.safetensors"), library).items():
        settings = config | (config.get(name.removesuffix(".weight")) or {})
        if library == "quanto":
            scales = {k: v for k, v in parts.items() if k.startswith("weight.")}
            if "weight._shift" not in scales:
                continue
            shapes = json.loads((RECORD / "models.json").read_text())["llama"]
            rows, length = shapes[name]
            settings |= {"shape": [rows, length], "group": rows * length // scales["weight._scale"].numel()}
        found[name] = digest(LIBRARIES[library](parts, settings))
    return found


def of_torchao() -> dict[str, list[str]]:
    """The tensors of its classes in a pickle; its Int4Tensor has no `dequantize`."""
    import torch

    state = torch.load(TORCHAO, weights_only=False)
    return {name: digest(tensor.dequantize()) for name, tensor in state.items() if name != "int4"}


def main() -> int:
    made = {folder.name: of_model(folder) for folder in sorted(RECORD.iterdir()) if folder.is_dir()}
    made[TORCHAO.name] = of_torchao()
    lines = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in made.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    file = RECORD / "dequantized.json"
    if "--write" in sys.argv:
        file.write_text(text)
        return 0
    same = text == file.read_text()
    print("dequantizers: the numbers are as recorded" if same else "dequantizers: the numbers are others")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
