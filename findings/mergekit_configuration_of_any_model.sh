#!/usr/bin/env bash
# Versions: mergekit 0.1.5, torch 2.13.0, safetensors 0.8.0, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: without `base_model`, as for linear or passthrough, the same command with the same --random-seed copies
# config.json from another model each time, and with it the tokenizer: whichever `referenced_models()[0]` is, the first
# of a set whose order follows Python's randomized hashes. The weights are the same.
#
# A confident guess: they come from the first model that the file names.
#
# Output seen (one model ends texts by token 1, the other by token 2; 12 runs):
#   weights: 1 kind
#   eos_token_id: 1 2
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
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16,
    "tie_word_embeddings": False,
}
shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
shapes |= {f"model.layers.0.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
shapes |= {f"model.layers.0.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
shapes |= {f"model.layers.0.mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
shapes |= {"model.layers.0.mlp.down_proj.weight": (8, 12)}
for value, name in enumerate(("one", "two"), 1):
    os.mkdir(name)
    with open(f"{name}/config.json", "w") as file:
        json.dump(config | {"eos_token_id": value}, file)
    tensors = {key: numpy.full(shape, value, "float32") for key, shape in shapes.items()}
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
PY
cat > merge.yml <<'YML'
merge_method: linear
dtype: float32
models: [{model: one, parameters: {weight: 0.75}}, {model: two, parameters: {weight: 0.25}}]
YML
venv/bin/python models.py
for run in {1..12}; do
    HF_HUB_OFFLINE=1 venv/bin/mergekit-yaml merge.yml "out$run" --random-seed 7 --no-copy-tokenizer --no-write-model-card \
        > log 2>&1
done
{
    echo "weights: $(sha256sum out*/model.safetensors | cut -d' ' -f1 | sort -u | wc -l) kind"
    echo "eos_token_id:" $(grep -h eos_token_id out*/config.json | tr -dc '0-9\n' | sort -u)
} > output
diff output - <<'SEEN'
weights: 1 kind
eos_token_id: 1 2
SEEN
cat output
