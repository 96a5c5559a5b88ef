#!/usr/bin/env bash
# Versions: peft 0.21.2, torch 2.13.0 (CPU), transformers 5.18.0, Python 3.11, Linux x86-64.
#
# Behaviour: an adapter trains tokens of a tied embedding (trainable_token_indices) and has LoRA for the head. While it
# is loaded, the head is the embedding with the new rows, plus its LoRA. merge_and_unload gives a model whose head has
# lost the LoRA and is still wrapped for tokens, so its state_dict has no lm_head.weight but
# lm_head.token_adapter.base_layer.weight. Nothing warns.
#
# A confident guess: merge_and_unload gives a plain model that computes what the adapted one does, or refuses.
#
# Output seen:
#   the outputs differ by 1.102; the merged head has its LoRA: False; lm_head.weight is there: False
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
sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, tie_word_embeddings=True)).eval()
config = LoraConfig(target_modules=["lm_head"], trainable_token_indices=[1, 5], init_lora_weights=False)
adapted = get_peft_model(model, config).eval()
inside = adapted.base_model.model
rows = next(one for name, one in adapted.named_parameters() if "trainable_tokens_delta" in name)
rows.data += 0.1
tokens = torch.arange(6)[None]
with torch.no_grad():
    hidden = inside.model(tokens)[0]
    head = inside.model.embed_tokens.token_adapter.get_merged_weights(["default"])
    change = inside.lm_head.get_delta_weight("default")
    trained = adapted(tokens).logits
    assert torch.allclose(trained, hidden @ (head + change).T, atol=1e-5), "the behaviour has changed"
    merged = adapted.merge_and_unload()
    found = merged(tokens).logits
kept = not torch.allclose(found, hidden @ head.T, atol=1e-5)
plain = "lm_head.weight" in merged.state_dict()
difference = float((found - trained).abs().max())
print(f"the outputs differ by {difference:.3f}; the merged head has its LoRA: {kept}; lm_head.weight is there: {plain}")
assert difference > 1e-3 and not kept and not plain, "the behaviour has changed"
PYTHON
