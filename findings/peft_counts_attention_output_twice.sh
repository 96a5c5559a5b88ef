#!/usr/bin/env bash
# Versions: peft 0.21.2, torch 2.13.0 (CPU), transformers 5.18.0, Python 3.11, Linux x86-64.
#
# Behaviour: a LoRA on torch.nn.MultiheadAttention adapts in_proj_weight and out_proj. That of in_proj gives W + delta,
# with delta = lora_alpha / r · B · A, which get_delta_weight returns for both. That of out_proj gives W + 2·delta, in
# merge_and_unload and in every forward pass, which merges and unmerges: merge adds the change itself, and then calls
# out_proj.merge, which adds it again. So the two halves of a layer have scales that differ by two.
#
# A confident guess: both get W + lora_alpha / r · B · A.
#
# Output seen:
#   in_proj: W + 1 delta, out_proj: W + 2 deltas, outputs before and after merging agree
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.18.0 torch==2.13.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0]


torch.manual_seed(0)
model = Model().eval()
before = {name: value.clone() for name, value in model.state_dict().items()}
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)).eval()
adapter = {name.removeprefix("base_model.model.attention."): value.clone()
           for name, value in get_peft_model_state_dict(adapted).items()}
x = torch.randn(5, 1, 8)
with torch.no_grad():
    expected = adapted(x)
    merged = adapted.merge_and_unload()
    found = merged(x)
after = merged.state_dict()
counts = []
for name, below in (("attention.in_proj_weight", ""), ("attention.out_proj.weight", "base_layer.out_proj.")):
    delta = 4 * adapter[f"{below}lora_B.weight"] @ adapter[f"{below}lora_A.weight"]  # lora_alpha 8, r 2
    times = (after[name] - before[name]) / delta
    counts.append(float(times.median()))
    assert torch.allclose(after[name], before[name] + round(counts[-1]) * delta, atol=1e-5)
assert torch.allclose(expected, found, atol=1e-5)
first, second = (round(count) for count in counts)
print(f"in_proj: W + {first} delta, out_proj: W + {second} deltas, outputs before and after merging agree")
assert (first, second) == (1, 2), "the behaviour has changed"
PYTHON
