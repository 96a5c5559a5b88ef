"""Small models, and adapters of them that peft made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .. import operators  # noqa: F401 - before transformers imports torchvision


class Mixed(torch.nn.Module):
    """Convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = torch.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(6, 8, 1), torch.nn.Conv1d(4, 6, 3)
        self.m = torch.nn.MultiheadAttention(8, 2)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


def llama(tie: bool = False, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 64}
    more: dict[str, Any] = {"num_hidden_layers": layers, "tie_word_embeddings": tie, "attention_bias": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **ids, **more))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 64, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, **ids))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, vocab_size=64, num_hidden_layers=1, num_local_experts=3))


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 32, "moe_intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    more: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 2, "num_experts": 4, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **more, num_experts_per_tok=2))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "tied": lambda: llama(True),
    "gpt2": gpt2,
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "mixed": Mixed,
}


class Tuned:
    """A model, an adapter of it in a folder, and the model with the adapter merged by peft."""

    def __init__(self, folder: Path, model: str, dtype: torch.dtype = torch.float32, **config: Any) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(17)
        base = MODELS[model]().to(dtype)
        self.base: dict[str, Any] = copy.deepcopy(base.state_dict())
        self.folder = folder / "adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fan_in_fan_out, tied embeddings, saved embeddings
            self.peft = get_peft_model(base, LoraConfig(init_lora_weights=False, **config))
            for one in self.peft.parameters():
                if one.requires_grad:
                    one.data += torch.randn_like(one) * 0.02
            self.peft.save_pretrained(self.folder)

    def merged(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.peft.merge_and_unload()


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Tuned]:
    return lambda model, dtype=torch.float32, **config: Tuned(tmp_path, model, dtype, **config)
