#!/usr/bin/env bash
# Versions: mergekit 0.1.5, torch 2.13.0, safetensors 0.8.0, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: in a merge by slices whose first slice has fewer sources than the last one, the final norm and the head are
# not merged. They are those of the first model of the last slice, whatever the weights say, and nothing is said about
# it. `MergePlanner.plan_module` repeats the tensor once for each source of `slices[0]`, pairs that with the models of
# `slices[-1]`, and `zip` drops the models beyond.
#
# A confident guess: all tensors of the last slice are merged alike, so the norm and the head are those of both models.
#
# Output seen (one model is 1 everywhere, the other 3, the weights are equal):
#   model.layers.1.mlp.up_proj.weight 2.0
#   model.norm.weight 1.0
#   lm_head.weight 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 mergekit==0.1.5 safetensors==0.8.0
cd "$work"
cat > models.py <<'PY'
import json
import os

import numpy
from safetensors.numpy import save_file

config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16,
    "tie_word_embeddings": False,
}
shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
for layer in range(2):
    shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
    shapes |= {f"model.layers.{layer}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    shapes |= {f"model.layers.{layer}.mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
    shapes |= {f"model.layers.{layer}.mlp.down_proj.weight": (8, 12)}
for name, value in (("one", 1), ("three", 3)):
    os.mkdir(name)
    with open(f"{name}/config.json", "w") as file:
        json.dump(config, file)
    tensors = {key: numpy.full(shape, value, "float32") for key, shape in shapes.items()}
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
PY
cat > merge.yml <<'YML'
merge_method: linear
dtype: float32
parameters: {weight: 0.5}
slices:
- sources: [{model: one, layer_range: [0, 1]}]
- sources: [{model: one, layer_range: [1, 2]}, {model: three, layer_range: [1, 2]}]
YML
venv/bin/python models.py
HF_HUB_OFFLINE=1 venv/bin/mergekit-yaml merge.yml out --no-copy-tokenizer --no-write-model-card > log 2>&1
venv/bin/python - > output <<'PY'
from safetensors.numpy import load_file

tensors = load_file("out/model.safetensors")
for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"):
    print(name, tensors[name].min())
PY
diff output - <<'SEEN'
model.layers.1.mlp.up_proj.weight 2.0
model.norm.weight 1.0
lm_head.weight 1.0
SEEN
cat output
