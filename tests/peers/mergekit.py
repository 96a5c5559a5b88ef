"""Record what mergekit makes of small models, or compare it with the record; `make peers` installs it and runs this.

    python -P mergekit.py [--write]

The models are a base and three that differ from it by normal noise, with the names of a Llama of two layers. Each case
is one configuration of mergekit in float32, which only some of its methods would use for bfloat16. The files in
`recipes` name smaller models of four layers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file, save_file

RECORD = Path(__file__).with_suffix(".safetensors")
RECIPES = sorted(Path(__file__).with_name("recipes").glob("*.yml"))

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "vocab_size": 12}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 8,
    "d_kv": 4,
    "num_heads": 2,
    "d_ff": 12,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "vocab_size": 12,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
VOCABULARIES = {  # model → tokens in the order of rows; what stands in <> was added. There are rows for two more.
    "V": "a b c d e f g h <s>",
    "W": "h a k c b l <s> m d <w>",
    "X": "m a b n c <s>",
}
W2, W3 = {"weight": [0.5, 0.3]}, {"weight": [0.5, 0.3, 0.4]}
DENSITY = W2 | {"density": [0.5, 0.6]}
GAMMA = DENSITY | {"gamma": [0.05, 0.02]}
EPSILON = DENSITY | {"epsilon": [0.1, 0.1]}
CASES: dict[str, Any] = {  # name → method, models, parameters of each, parameters of the method
    "linear": ("linear", "ABC", W3, {}),
    "linear_sum": ("linear", "AB", W2, {"normalize": False}),
    "slerp": ("slerp", "bA", {}, {"t": 0.3}),
    "nuslerp": ("nuslerp", "AB", W2, {}),
    "nuslerp_base": ("nuslerp", "bAB", W2, {}),
    "nuslerp_rows": ("nuslerp", "AB", W2, {"nuslerp_flatten": False}),
    "nuslerp_columns": ("nuslerp", "bAB", W2, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "multislerp": ("multislerp", "ABC", W3, {}),
    "multislerp_sum": ("multislerp", "AB", W2, {"normalize_weights": False}),
    "multislerp_base": ("multislerp", "bABC", W3, {}),
    "karcher": ("karcher", "ABC", {}, {}),
    "task_arithmetic": ("task_arithmetic", "bAB", W2, {"lambda": 0.9}),
    "ties": ("ties", "bAB", DENSITY, {}),
    "breadcrumbs": ("breadcrumbs", "bAB", GAMMA, {}),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        "bAB",
        GAMMA,
        {},
    ),
    "dare_linear": ("dare_linear", "bAB", DENSITY, {}),
    "dare_ties": ("dare_ties", "bAB", DENSITY, {}),
    "della": ("della", "bAB", EPSILON, {}),
    "della_linear": ("della_linear", "bAB", EPSILON, {}),
    "model_stock": ("model_stock", "bABC", {}, {}),
    "model_stock_rows": ("model_stock", "bABC", {}, {"filter_wise": True}),
    "sce": ("sce", "bABC", {}, {"select_topk": 0.5}),
    "nearswap": ("nearswap", "bA", {}, {"t": 0.001}),
    "arcee_fusion": ("arcee_fusion", "bA", {}, {}),
    "passthrough": ("passthrough", "A", {"scale": [0.5]}, {}),
    "ram": ("ram", "bAB", {}, {}),
    "ramplus_tl": ("ramplus_tl", "bAB", {}, {}),
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a Llama."""
    wide, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, wide),
        "model.norm.weight": (wide,),
        "lm_head.weight": (rows, wide),
    }
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (wide // 2, wide),
        "self_attn.v_proj": (wide // 2, wide),
        "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide),
        "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    numbers = range(config["num_hidden_layers"])
    return outside | {f"model.layers.{n}.{name}.weight": shape for n in numbers for name, shape in layer.items()}


def t5_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a T5 with gates."""
    wide, inner, rows = config["d_model"], config["d_ff"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"shared.weight": (rows, wide), "lm_head.weight": (rows, wide)}
    parts = {
        "encoder": ("num_layers", ["SelfAttention"]),
        "decoder": ("num_decoder_layers", ["SelfAttention", "EncDecAttention"]),
    }
    for part, (count, attentions) in parts.items():
        found[f"{part}.final_layer_norm.weight"] = (wide,)
        found[f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
        for block in range(config[count]):
            for layer, name in enumerate([*attentions, "DenseReluDense"]):
                above = f"{part}.block.{block}.layer.{layer}"
                found[f"{above}.layer_norm.weight"] = (wide,)
                dense = {"wi_0": (inner, wide), "wi_1": (inner, wide), "wo": (wide, inner)}
                matrices = dense if name == "DenseReluDense" else dict.fromkeys("qkvo", (wide, wide))
                found |= {f"{above}.{name}.{key}.weight": shape for key, shape in matrices.items()}
    return found


def models(config: dict[str, Any], letters: str) -> dict[str, dict[str, Any]]:
    """By letter: b is the base."""
    rng = numpy.random.Generator(numpy.random.PCG64(17))
    base: dict[str, Any] = {
        name: (rng.standard_normal(shape) * 0.05).astype("float32") + numpy.float32("norm" in name)
        for name, shape in (t5_shapes if config["model_type"] == "t5" else shapes)(config).items()
    }
    made = {"b": base}
    for letter in letters:
        noise = {name: rng.standard_normal(value.shape).astype("float32") for name, value in base.items()}
        made[letter] = {name: value + noise[name] * numpy.float32(0.01) for name, value in base.items()}
    return made


def run(root: Path, case: str) -> dict[str, Any]:
    """What mergekit makes of one case."""
    method, letters, each, whole = CASES[case]
    chosen = [letter for letter in letters if letter != "b"]
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "parameters": whole,
        "models": [
            {"model": str(root / letter), "parameters": {key: values[number] for key, values in each.items()}}
            for number, letter in enumerate(chosen)
        ],
    }
    if "b" in letters:
        config["base_model"] = str(root / "b")
    if method in ("slerp", "nearswap", "arcee_fusion"):
        config["models"].insert(0, {"model": str(root / "b")})
    (root / "config.yml").write_text(json.dumps(config))
    return run_file(root, root / "config.yml", case)


def run_file(root: Path, path: Path, case: str) -> dict[str, Any]:
    """What mergekit makes of a configuration, whose models are folders in `root`.

    If it makes a tokenizer, rows of the vocabulary are in the order of their tokens, which are in `tokens`.
    """
    command = Path(sys.executable).parent / "mergekit-yaml"
    options = ["--random-seed", "7", "--no-copy-tokenizer", "--no-write-model-card"]
    subprocess.run([command, path, root / case, *options], check=True, capture_output=True, cwd=root)
    tensors: dict[str, Any] = load_file(root / case / "model.safetensors")
    made = root / case / "tokenizer.json"
    if made.exists():
        tree = json.loads(made.read_text())
        table = tree["model"]["vocab"] | {one["content"]: one["id"] for one in tree["added_tokens"]}
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = [table[token] for token in sorted(table)]
            tensors[name] = tensors[name][[*rows, *range(len(rows), len(tensors[name]))]]
        tensors["tokens"] = to_bytes(" ".join(sorted(table)))
    return tensors


def to_bytes(text: str) -> Any:
    return numpy.frombuffer(text.encode(), "uint8")


def write_tokenizer(folder: Path, words: list[str]) -> str:
    """Write the tokenizer of a model, and return its text."""
    vocabulary = {word: row for row, word in enumerate(words)}
    ordinary = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": row, "content": word} | ordinary for word, row in vocabulary.items() if word.startswith("<")]
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    tree = {"version": "1.0", "added_tokens": added, "model": model} | dict.fromkeys(parts)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return json.dumps(tree)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        record: dict[str, Any] = {}
        small = CONFIG | SMALL
        made = [(letter, tensors, CONFIG) for letter, tensors in models(CONFIG, "ABC").items()]
        made += [(f"{letter}4", tensors, small) for letter, tensors in models(small, "AB").items()]
        made += [(letter, tensors, T5) for letter, tensors in models(T5, "PQ").items() if letter != "b"]
        for name, tensors, config in made:
            (root / name).mkdir()
            (root / name / "config.json").write_text(json.dumps(config))
            save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
            record |= {f"{name}/{key}": value for key, value in tensors.items()}
        for letter, words in VOCABULARIES.items():
            of_tokens = small | {"num_hidden_layers": 1, "vocab_size": len(words.split()) + 2}
            (root / letter).mkdir()
            (root / letter / "config.json").write_text(json.dumps(of_tokens))
            record[f"{letter}/tokenizer.json"] = to_bytes(write_tokenizer(root / letter, words.split()))
            tensors = models(of_tokens, "VWX")[letter]
            save_file(tensors, root / letter / "model.safetensors", {"format": "pt"})
            record |= {f"{letter}/{key}": value for key, value in tensors.items()}
        for case in CASES:
            record |= {f"{case}/{name}": value for name, value in run(root, case).items()}
        for path in RECIPES:
            found = run_file(root, path, f"recipe {path.stem}")
            record |= {f"{path.name}/{name}": value for name, value in found.items()}
    if "--write" in sys.argv:
        save_file(record, RECORD)
        return 0
    before = load_file(RECORD)
    wrong = [name for name in record.keys() | before.keys() if name not in record or name not in before]
    wrong += [name for name in record.keys() & before.keys() if abs(record[name] - before[name]).max() > 1e-6]
    print("\n".join(sorted(wrong)) or f"mergekit: {len(CASES) + len(RECIPES)} cases are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
