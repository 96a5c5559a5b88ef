"""transformers: models of small configurations, with tied and untied heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from .architecture import Architecture

_SPECIAL = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = _SPECIAL | _BLOCKS | {"max_position_embeddings": 64}
_GROUPED = _TEXT | {"num_key_value_heads": 2, "head_dim": 8}
_DISTILLED = _SPECIAL | {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
_GPT = _SPECIAL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_STATES = _SPECIAL | {"hidden_size": 32, "num_hidden_layers": 2}
_BOTH = (
    _SPECIAL
    | {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "decoder_start_token_id": 2}
    | {"max_position_embeddings": 64, "forced_eos_token_id": None}
)
_T5 = _SPECIAL | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_VISION = _BLOCKS | {"image_size": 32, "patch_size": 8}
_SPEECH = (
    _SPECIAL
    | _BLOCKS
    | {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False}
)
_WHISPER = _BOTH | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
_TWO = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 16}
_UNTIED, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

# the name of the test, the class, its configuration's options, what it is given
_TABLE: list[tuple[str, str, dict[str, Any], str]] = [
    ("bert", "BertForMaskedLM", _TEXT, "text"),
    ("bert, untied", "BertForMaskedLM", _TEXT | _UNTIED, "text"),
    ("roberta", "RobertaForMaskedLM", _TEXT, "text"),
    ("distilbert", "DistilBertForMaskedLM", _DISTILLED, "text"),
    ("albert", "AlbertForMaskedLM", _TEXT | {"embedding_size": 16}, "text"),
    ("electra", "ElectraForMaskedLM", _TEXT | {"embedding_size": 16}, "text"),
    ("deberta v2", "DebertaV2ForMaskedLM", _TEXT | {"relative_attention": True, "conv_kernel_size": 3}, "text"),
    ("xlnet", "XLNetLMHeadModel", _SPECIAL | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, "text"),
    ("gpt2", "GPT2LMHeadModel", _GPT, "text"),
    ("gpt2, untied", "GPT2LMHeadModel", _GPT | _UNTIED, "text"),
    ("gptj", "GPTJForCausalLM", _GPT | {"rotary_dim": 4}, "text"),
    ("gpt neox", "GPTNeoXForCausalLM", _TEXT, "text"),
    ("llama", "LlamaForCausalLM", _GROUPED, "text"),
    ("llama, tied", "LlamaForCausalLM", _GROUPED | _TIED, "text"),
    ("mistral", "MistralForCausalLM", _GROUPED, "text"),
    ("qwen2", "Qwen2ForCausalLM", _GROUPED | _TIED, "text"),
    ("qwen3", "Qwen3ForCausalLM", _GROUPED, "text"),
    ("gemma", "GemmaForCausalLM", _GROUPED, "text"),
    ("gemma3", "Gemma3ForCausalLM", _GROUPED, "text"),
    ("phi", "PhiForCausalLM", _TEXT, "text"),
    ("mixtral", "MixtralForCausalLM", _GROUPED | {"num_local_experts": 4}, "text"),
    ("opt", "OPTForCausalLM", _TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 16}, "text"),
    ("opt, untied", "OPTForCausalLM", _TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32} | _UNTIED, "text"),
    ("bloom", "BloomForCausalLM", _SPECIAL | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "text"),
    ("falcon", "FalconForCausalLM", _TEXT, "text"),
    ("mpt", "MptForCausalLM", _SPECIAL | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "text"),
    ("mamba", "MambaForCausalLM", _STATES | {"state_size": 4}, "text"),
    ("rwkv", "RwkvForCausalLM", _STATES, "text"),
    ("t5", "T5ForConditionalGeneration", _T5, "text to text"),
    ("bart", "BartForConditionalGeneration", _BOTH, "text to text"),
    ("mbart", "MBartForConditionalGeneration", _BOTH, "text to text"),
    ("pegasus", "PegasusForConditionalGeneration", _BOTH, "text to text"),
    ("whisper", "WhisperForConditionalGeneration", _WHISPER, "spectrum to text"),
    ("wav2vec2", "Wav2Vec2ForCTC", _SPEECH, "sound"),
    ("hubert", "HubertForCTC", _SPEECH, "sound"),
    ("vit", "ViTForImageClassification", _VISION, "image"),
    ("dinov2", "Dinov2ForImageClassification", _VISION, "image"),
    ("clip", "CLIPModel", _TWO, "text and image"),
    ("siglip", "SiglipModel", _TWO, "text and image"),
    ("blip", "BlipForConditionalGeneration", _TWO, "text and image"),
]


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    model = getattr(transformers, name)
    return model(model.config_class(**options))


def _inputs(kind: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 99, (2, 12))
    return {
        "text": lambda: {"input_ids": ids},
        "text to text": lambda: {"input_ids": ids, "decoder_input_ids": ids[:, :5]},
        "spectrum to text": lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids[:, :5]},
        "sound": lambda: {"input_values": torch.randn(2, 400)},
        "image": lambda: {"pixel_values": torch.randn(2, 3, 32, 32)},
        "text and image": lambda: {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32)},
    }[kind]()


ARCHITECTURES = {
    name: Architecture(partial(_build, model, options), partial(_inputs, kind)) for name, model, options, kind in _TABLE
}
