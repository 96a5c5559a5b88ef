r"""What one framework calls the entries of a model, and another: one table of rules, read in both directions.

A rule has the paths of PyTorch or Hugging Face, those of the other side, in the language of tree/rename.py, and the
change that the tensors go through (ops/alter/maps.py). Several paths of a side belong together. Where PyTorch's names
do not tell what an entry is, `when` asks its shape; the names of the other side always tell.

    keras, flax, nnx   kernels are [in, out] and [*window, in, out], in PyTorch [out, in] and [out, in, *window]; batch
                       norm has gamma or scale; of the two biases of an LSTM there is only the sum
    consolidated       Meta's files of Llama and Mistral
    gguf:FAMILY        llama.cpp's. The rows of q and k are in another order for Llama, as they are in Meta's files

Sources: `TensorNameMap` of gguf 0.19.0 and llama.cpp's convert_hf_to_gguf.py; convert_llama_weights_to_hf.py of
transformers; the layers of Keras 3.15 and Flax 0.12.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """An entry in both namings; several paths are parts of one, and none drops it."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    change: str = ""
    when: str = ""

    def sides(self, back: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The paths before and after."""
        one, other = ((side,) if isinstance(side, str) else side for side in (self.ours, self.theirs))
        return (other, one) if back else (one, other)


def _recurrent(cell: str, gates: str, biases: str) -> tuple[Rule, ...]:
    kernels = (("weight_ih_l0", "kernel"), ("weight_hh_l0", "recurrent_kernel"))
    rules = tuple(Rule(f"*.{ours}", f"*.{cell}.{theirs}", gates, gates) for ours, theirs in kernels)
    return (*rules, Rule(("*.bias_ih_l0", "*.bias_hh_l0"), f"*.{cell}.bias", biases, gates))


_BATCH_COUNT = Rule("*.num_batches_tracked", ())
_KERAS = (
    *_recurrent("lstm_cell", "lstm", "sum"),
    *_recurrent("gru_cell", "gru", "gru biases"),
    Rule("*.running_mean", "*.moving_mean"),
    Rule("*.running_var", "*.moving_variance"),
    _BATCH_COUNT,
    Rule("*.weight", "*.gamma", when="vector"),
    Rule("*.bias", "*.beta", when="bias of a norm"),
    Rule("*.weight", "*.embeddings", when="embedding"),
    Rule("*.weight", "*.kernel", "kernel", "matrix"),
    Rule("*.bias", "*.bias"),
)


def _flax(parameters: str, statistics: str) -> tuple[Rule, ...]:
    def parts(names: str, key: str) -> tuple[str, ...]:
        return tuple(f"{parameters}*.{name}.{key}" for name in names.split())

    biases = "*.bias_ih_l0", "*.bias_hh_l0"
    return (
        Rule("*.weight_ih_l0", parts("ii if ig io", "kernel"), "four kernels", "lstm"),
        Rule("*.weight_hh_l0", parts("hi hf hg ho", "kernel"), "four kernels", "lstm"),
        Rule(biases, parts("hi hf hg ho", "bias"), "sum of four", "lstm"),
        Rule("*.weight_ih_l0", parts("ir iz in", "kernel"), "three kernels", "gru"),
        Rule("*.weight_hh_l0", parts("hr hz hn", "kernel"), "three kernels", "gru"),
        Rule(biases, parts("ir iz in hn", "bias"), "sum of two", "gru"),
        Rule("*.running_mean", f"{statistics}*.mean"),
        Rule("*.running_var", f"{statistics}*.var"),
        _BATCH_COUNT,
        Rule("*.weight", f"{parameters}*.scale", when="vector"),
        Rule("*.weight", f"{parameters}*.embedding", when="embedding"),
        Rule("*.weight", f"{parameters}*.kernel", "kernel", "matrix"),
        Rule("*.bias", f"{parameters}*.bias"),
    )


_CONSOLIDATED = (
    Rule("model.embed_tokens", "tok_embeddings"),
    Rule("model.norm", "norm"),
    Rule("lm_head", "output"),
    Rule("model.layers.{n}.input_layernorm", "layers.{n}.attention_norm"),
    Rule("model.layers.{n}.post_attention_layernorm", "layers.{n}.ffn_norm"),
    Rule("model.layers.{n}.self_attn.q_proj", "layers.{n}.attention.wq", "heads"),
    Rule("model.layers.{n}.self_attn.k_proj", "layers.{n}.attention.wk", "key heads"),
    Rule("model.layers.{n}.self_attn.v_proj", "layers.{n}.attention.wv"),
    Rule("model.layers.{n}.self_attn.o_proj", "layers.{n}.attention.wo"),
    Rule("model.layers.{n}.mlp.gate_proj", "layers.{n}.feed_forward.w1"),
    Rule("model.layers.{n}.mlp.down_proj", "layers.{n}.feed_forward.w2"),
    Rule("model.layers.{n}.mlp.up_proj", "layers.{n}.feed_forward.w3"),
    Rule((), "rope.freqs"),  # made of the configuration
)


def _gguf(heads: bool = False, norm: str = "", sandwich: bool = False, fused: bool = False) -> tuple[Rule, ...]:
    """Those of llama.cpp for a decoder: reordered heads, a change of norms, norms after layers, fused projections."""
    at, block = "model.layers.{n}", "blk.{n}"
    before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    after = (
        Rule(f"{at}.post_attention_layernorm", f"{block}.post_attention_norm", norm),
        Rule(f"{at}.post_feedforward_layernorm", f"{block}.post_ffw_norm", norm),
    )
    whole = (
        Rule(f"{at}.self_attn.qkv_proj", f"{block}.attn_qkv"),
        Rule(f"{at}.mlp.gate_up_proj", f"{block}.ffn_up"),
    )
    apart = (
        Rule(f"{at}.self_attn.q_proj", f"{block}.attn_q", "heads" * heads),
        Rule(f"{at}.self_attn.k_proj", f"{block}.attn_k", "key heads" * heads),
        Rule(f"{at}.self_attn.v_proj", f"{block}.attn_v"),
        Rule(f"{at}.mlp.gate_proj", f"{block}.ffn_gate"),
        Rule(f"{at}.mlp.up_proj", f"{block}.ffn_up"),
    )
    return (
        Rule("model.embed_tokens", "token_embd"),
        Rule("model.norm", "output_norm", norm),
        Rule("lm_head", "output"),
        Rule(f"{at}.input_layernorm", f"{block}.attn_norm", norm),
        Rule(f"{at}.{before_mlp}", f"{block}.ffn_norm", norm),
        *(after if sandwich else ()),
        *(whole if fused else apart),
        Rule(f"{at}.self_attn.q_norm", f"{block}.attn_q_norm", norm),
        Rule(f"{at}.self_attn.k_norm", f"{block}.attn_k_norm", norm),
        Rule(f"{at}.self_attn.o_proj", f"{block}.attn_output"),
        Rule(f"{at}.mlp.down_proj", f"{block}.ffn_down"),
        Rule((), "rope_freqs"),  # made of the configuration
    )


def _gpt2() -> tuple[Rule, ...]:
    layers = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    layers |= {"ln_1": "attn_norm", "ln_2": "ffn_norm"}
    whole = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    return (
        *(Rule(f"transformer.{ours}", theirs) for ours, theirs in whole.items()),
        Rule("lm_head", "output"),
        *(
            Rule(f"transformer.h.{{n}}.{ours}", f"blk.{{n}}.{theirs}", "matrix" * ("c_" in ours))
            for ours, theirs in layers.items()
        ),
    )


MAPS: dict[str, tuple[Rule, ...]] = {
    "keras": _KERAS,
    "flax": _flax("params.", "batch_stats."),
    "nnx": _flax("", ""),
    "consolidated": _CONSOLIDATED,
    "gguf:llama": _gguf(heads=True),
    "gguf:qwen": _gguf(),
    "gguf:gemma": _gguf(norm="one more"),
    "gguf:gemma2": _gguf(norm="one more", sandwich=True),
    "gguf:phi3": _gguf(fused=True),
    "gguf:gpt2": _gpt2(),
}
FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma2",
    "gemma3_text": "gemma2",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""What configurations, and GGUF files, call an architecture → the family whose names it has."""
