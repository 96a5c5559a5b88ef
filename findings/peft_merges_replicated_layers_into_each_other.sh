#!/usr/bin/env bash
# Versions: peft 0.21.2, torch 2.13.0 (CPU), transformers 5.18.0, Python 3.11, Linux x86-64.
#
# Behaviour: with layer_replication some layers of the base occur several times, share their weights, and have an
# adapter each. merge_and_unload adds each adapter to the shared weight in place, so every copy gets the sum of the
# changes of all copies. The merged model computes something else than the one with adapters, without a warning.
#
# A confident guess: merge_and_unload changes no output, or refuses.
#
# Output seen:
#   layers 0, 1, 1: outputs differ by 0.012, the copies hold W + delta_1 + delta_2: True
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
model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
before = model.model.layers[1].self_attn.q_proj.weight.detach().clone()
config = LoraConfig(
    r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]], init_lora_weights=False
)
adapted = get_peft_model(model, config).eval()
tokens = torch.arange(6)[None]
layers = adapted.base_model.model.model.layers
deltas = [layers[n].self_attn.q_proj.get_delta_weight("default").detach() for n in (1, 2)]
with torch.no_grad():
    expected = adapted(tokens).logits
    merged = adapted.merge_and_unload()
    found = merged(tokens).logits
difference = float((found - expected).abs().max())
copies = [merged.model.layers[n].self_attn.q_proj.weight.detach() for n in (1, 2)]
both = all(torch.allclose(copy, before + deltas[0] + deltas[1], atol=1e-6) for copy in copies)
print(f"layers 0, 1, 1: outputs differ by {difference:.3f}, the copies hold W + delta_1 + delta_2: {both}")
assert difference > 1e-3, "the behaviour has changed"
assert both, "the behaviour has changed"
PYTHON
