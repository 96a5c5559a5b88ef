#!/usr/bin/env bash
# Versions: mergekit 0.1.5, torch 2.13.0, safetensors 0.8.0, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: with `tokenizer: {source: base, tokens: {NEW: {source: MODEL}}}`, where the base lacks the token, the base
# does not get the row of MODEL: it takes part with a row of its own that stands for no token, the padding below its
# vocabulary. Without such a row, the merge ends with a KeyError. `build_tokenizer` adds the new tokens to the base's own
# tokenizer object, and then reads the base's vocabulary from it, which has the tokens by now. With `source: union` the
# tokenizer is a copy, and the row is that of MODEL.
#
# A confident guess: a model that lacks the token gets the row of MODEL, so that the mean of the base and MODEL is it.
#
# Output seen (the padding of the base is 7 everywhere, MODEL's row is 3, both weigh the same):
#   base with padding: 5.0
#   base without padding: KeyError: 3
#   union: 3.0
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

parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
for name, words, rows, spare in (("padded", "a b c", 5, 7), ("bare", "a b c", 3, 7), ("model", "a b c new", 4, 3)):
    os.mkdir(name)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": rows,
        "tie_word_embeddings": False,
    }
    vocabulary = {word: row for row, word in enumerate(words.split())}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    files = {
        "config": config,
        "tokenizer": {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts),
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for file, content in files.items():
        with open(f"{name}/{file}.json", "w") as out:
            json.dump(content, out)
    shapes = {f"model.layers.0.self_attn.{one}_proj.weight": (8, 8) for one in "qkvo"}
    shapes |= {f"model.layers.0.{one}_layernorm.weight": (8,) for one in ("input", "post_attention")}
    shapes |= {f"model.layers.0.mlp.{one}_proj.weight": (12, 8) for one in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (8, 12), "model.norm.weight": (8,)}
    tensors = {key: numpy.ones(shape, "float32") for key, shape in shapes.items()}
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = numpy.ones((rows, 8), "float32")
        tensors[key][3:] = spare
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
PY
venv/bin/python models.py
merge() {
    cat > merge.yml <<YML
merge_method: linear
base_model: $1
dtype: float32
models: [{model: $1}, {model: model}]
parameters: {weight: 1}
tokenizer: {source: $2, tokens: {new: {source: model}}}
YML
    rm -rf out
    venv/bin/mergekit-yaml merge.yml out --no-copy-tokenizer --no-write-model-card > log 2>&1 || { tail -1 log; return; }
    venv/bin/python - <<'PY'
from safetensors.numpy import load_file

print(load_file("out/model.safetensors")["lm_head.weight"][3, 0])
PY
}
{
    echo "base with padding: $(merge padded base)"
    echo "base without padding: $(merge bare base)"
    echo "union: $(merge padded union)"
} > output
diff output - <<'SEEN'
base with padding: 5.0
base without padding: KeyError: 3
union: 3.0
SEEN
cat output
