#!/usr/bin/env bash
# Versions: peft 0.21.2, torch 2.13.0 (CPU), transformers 5.18.0, Python 3.11, Linux x86-64.
#
# Behaviour: with ensure_weight_tying, a LoRA on the embedding of a tied model is put on the head, too, with the same
# factors, and the adapted model computes with W + delta in both places. merge_and_unload merges both modules into the
# one tensor that they share, so it becomes W + 2·delta, and the merged model computes something else.
#
# A confident guess: W + delta in both, for the option is there to keep the two the same.
#
# Output seen:
#   embedding and head: W + 2 deltas, tied, outputs before and after merging differ
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.18.0 torch==2.13.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
before = model.lm_head.weight.detach().clone()
settings = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True, init_lora_weights=False)
adapted = get_peft_model(model, settings).eval()
delta = adapted.base_model.model.model.embed_tokens.get_delta_weight("default").detach().clone()
ids = torch.arange(6)[None]
with torch.no_grad():
    expected = adapted(ids).logits
    merged = adapted.merge_and_unload()
    found = merged(ids).logits
after = merged.lm_head.weight.detach()
count = round(float(((after - before) / delta).median()))
assert torch.allclose(after, before + count * delta, atol=1e-4)
tied = "tied" if merged.model.embed_tokens.weight is merged.lm_head.weight else "not tied"
same = "agree" if torch.allclose(expected, found, rtol=1e-3, atol=1e-3) else "differ"
print(f"embedding and head: W + {count} deltas, {tied}, outputs before and after merging {same}")
assert (count, tied, same) == (2, "tied", "differ"), "the behaviour has changed"
PYTHON
