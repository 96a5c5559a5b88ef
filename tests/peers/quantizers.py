"""Make the quantized models that the tests read, or compare them with those recorded; see `make peers`.

    python -P quantizers.py [--write]

Each library quantizes the same small Llama on the CPU. `models.json` has what PyTorch says of the models before that:
name → shape of each parameter. Where libraries round differently on another processor, the values differ from the
record; names, dtypes, shapes and configurations do not, and are compared.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECORD = Path(__file__).parents[1] / "ops" / "data" / "quantized"
CONFIG = ("quantization_config", "quantization")


def llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=16, tie_word_embeddings=False)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(number): number for number in range(16)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0")


def bitsandbytes(source: Path, target: Path, **settings: Any) -> None:
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    config = BitsAndBytesConfig(**settings)
    model = LlamaForCausalLM.from_pretrained(source, quantization_config=config, dtype="bfloat16", device_map="cpu")
    model.save_pretrained(target)


def torchao(source: Path, target: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import LlamaForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = LlamaForCausalLM.from_pretrained(source, quantization_config=config, dtype="bfloat16", device_map="cpu")
    model.save_pretrained(target)


def auto_round(source: Path, target: Path, form: str, scheme: str, **settings: Any) -> None:
    from auto_round import AutoRound
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype="bfloat16")
    rounding = AutoRound(model, tokenizer(), scheme=scheme, iters=0, disable_opt_rtn=True, device_map="cpu", **settings)
    rounding.quantize_and_save(str(target / "all"), format=form)
    folder = next(target.rglob("config.json")).parent
    for name in ("config.json", "model.safetensors"):
        shutil.move(folder / name, target / name)


def compressed_tensors(source: Path, target: Path, scheme: str, **weights: Any) -> None:
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype="bfloat16")
    preset = preset_name_to_scheme(scheme, ["Linear"])
    for name, value in weights.items():
        setattr(preset.weights, name, value)
    oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": preset}, ignore=["lm_head"]))
    model.save_pretrained(target)


def mlx(source: Path, target: Path, **settings: Any) -> None:
    from mlx_lm import convert

    target.rmdir()
    convert(str(source), mlx_path=str(target), quantize=True, **settings)


def quanto(source: Path, target: Path) -> None:
    from optimum.quanto import freeze, qint4, quantize
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype="bfloat16")
    quantize(model, weights=qint4)
    freeze(model)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, target / "model.safetensors")


def blocks(source: Path, target: Path) -> None:
    """FP8 in blocks, as DeepSeek-V3 has it and transformers quantizes to it."""
    from safetensors.torch import load_file, save_file
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(weight_block_size=(16, 16))
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=config))
    state = load_file(source / "model.safetensors")
    linear = {name: tensor for name, tensor in state.items() if "_proj" in name}
    save_file(state | quantize.convert(linear), target / "model.safetensors")
    about = json.loads((source / "config.json").read_text())
    text = json.dumps(about | {"quantization_config": config.to_dict()}, indent=2, default=str)
    (target / "config.json").write_text(text)


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}
    return GptOssForCausalLM(GptOssConfig(**sizes, **experts, num_hidden_layers=1, vocab_size=16))


def mxfp4(source: Path, target: Path) -> None:
    """Experts of gpt-oss, of which transformers only reads the packed form: random bytes that it unpacks."""
    import torch
    from safetensors.torch import save_file
    from transformers import Mxfp4Config
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    model, state = gpt_oss(), {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            state[name] = tensor.bfloat16().contiguous()
            continue
        experts, length, out = tensor.shape
        packed = torch.randint(0, 256, (experts, out, length // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 130, (experts, out, length // 32), dtype=torch.uint8)
        assert convert_moe_packed_tensors(packed, scales).shape == tensor.shape
        state |= {f"{name}_blocks": packed, f"{name}_scales": scales}
    save_file(state, target / "model.safetensors")
    config = model.config.to_dict() | {"quantization_config": Mxfp4Config().to_dict()}
    (target / "config.json").write_text(json.dumps(config, indent=2, default=str))


FOUR = {"load_in_4bit": True}
MODELS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "bitsandbytes-nf4": (bitsandbytes, FOUR | {"bnb_4bit_quant_type": "nf4"}),
    "bitsandbytes-nf4-double": (bitsandbytes, FOUR | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "bitsandbytes-fp4-bfloat16": (
        bitsandbytes,
        FOUR | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "bfloat16", "bnb_4bit_use_double_quant": True},
    ),
    "bitsandbytes-int8": (bitsandbytes, {"load_in_8bit": True}),
    "gptq-4": (auto_round, {"form": "auto_gptq", "scheme": "W4A16", "group_size": 32, "sym": False}),
    "gptq-4-symmetric": (auto_round, {"form": "auto_gptq", "scheme": "W4A16", "group_size": 32}),
    "gptq-3": (auto_round, {"form": "auto_gptq", "scheme": "W3A16", "group_size": 32, "sym": False}),
    "gptq-8-rows": (auto_round, {"form": "auto_gptq", "scheme": "W8A16", "group_size": -1, "sym": False}),
    "awq": (auto_round, {"form": "auto_awq", "scheme": "W4A16", "group_size": 32, "sym": False}),
    "compressed-int4": (compressed_tensors, {"scheme": "W4A16", "group_size": 32}),
    "compressed-int4-zero-points": (compressed_tensors, {"scheme": "W4A16_ASYM", "group_size": 32}),
    "compressed-int3": (compressed_tensors, {"scheme": "W3A16", "group_size": 32}),
    "compressed-int8": (compressed_tensors, {"scheme": "W8A8"}),
    "compressed-float8": (compressed_tensors, {"scheme": "FP8_DYNAMIC"}),
    "compressed-nvfp4": (compressed_tensors, {"scheme": "NVFP4A16"}),
    "compressed-mxfp4": (compressed_tensors, {"scheme": "MXFP4A16"}),
    "compressed-mxfp8": (compressed_tensors, {"scheme": "MXFP8A16"}),
    **{f"mlx-{bits}": (mlx, {"q_bits": bits, "q_group_size": 32}) for bits in (2, 3, 4, 5, 6, 8)},
    "mlx-mixed": (mlx, {"q_group_size": 32, "quant_predicate": "mixed_3_6"}),
    **{
        f"mlx-{mode}": (mlx, {"q_mode": mode, "q_bits": None, "q_group_size": None})
        for mode in ("mxfp4", "mxfp8", "nvfp4")
    },
    "float8-blocks": (blocks, {}),
    "gpt-oss-mxfp4": (mxfp4, {}),
    "quanto-int4": (quanto, {}),
    "torchao-int8": (torchao, {}),
}


def make(folder: Path) -> None:
    source = folder / "source"
    llama().save_pretrained(source)
    tokenizer().save_pretrained(source)
    shapes = {
        name: {key: list(tensor.shape) for key, tensor in model.named_parameters()}
        for name, model in (("llama", llama()), ("gpt-oss", gpt_oss()))
    }
    (folder / "models.json").write_text(json.dumps(shapes, indent=1) + "\n")
    for name, (quantize, settings) in MODELS.items():
        (folder / name).mkdir()
        quantize(source, folder / name, **settings)
        for path in (folder / name).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("config.json", "model.safetensors"):
                path.unlink()
    shutil.rmtree(source)


def describe(folder: Path) -> dict[str, Any]:
    """What is compared: dtypes and shapes of the tensors, and what the configuration says of quantization."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is not a dict)
        found: dict[str, Any] = {key: [part.get_dtype(), part.get_shape()] for key, part in parts.items()}
    config = folder / "config.json"
    about = json.loads(config.read_text()) if config.exists() else {}
    return found | {key: about[key] for key in CONFIG if key in about}


def main() -> int:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        make(made)
        if "--write" in sys.argv:
            shutil.rmtree(RECORD, ignore_errors=True)
            shutil.copytree(made, RECORD)
            return 0
        wrong = [name for name in MODELS if describe(made / name) != describe(RECORD / name)]
        wrong += ["models.json"] * ((made / "models.json").read_text() != (RECORD / "models.json").read_text())
    print("\n".join(wrong) or "quantizers: the models are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
