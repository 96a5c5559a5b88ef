"""Folders that merge and average write: transformers loads them, and they say where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import statedict
from statedict.api.combine import average_files, merge_files
from statedict.api.recipes import merge_recipe_files
from statedict.errors import CombineError

Publish = Callable[..., GPT2LMHeadModel]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def publish(name: str, seed: int, shards: str = "5GB", **options: Any) -> GPT2LMHeadModel:
        torch.manual_seed(seed)
        given = {"n_layer": 3, "vocab_size": 50, "tie_word_embeddings": True} | options
        config = GPT2Config(n_head=2, n_embd=16, n_positions=16, bos_token_id=0, eos_token_id=1, **given)
        model = GPT2LMHeadModel(config)
        model.save_pretrained(name, max_shard_size=shards)
        (tmp_path / name / "README.md").write_text(f"of {name}")
        return model

    return publish


def loaded(name: str) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    assert not any(info.values()), info
    return model


def test_an_average_of_folders_is_one_that_from_pretrained_loads(publish: Publish) -> None:
    models = [publish(name, seed) for seed, name in enumerate("ab")]
    report = average_files(["a", "b"], "out")
    assert report.files.copied == ("config.json", "generation_config.json")
    model = loaded("out")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, (models[0].state_dict()[key] + models[1].state_dict()[key]) / 2)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in statedict.load("out")


def test_a_card_and_the_metadata_name_the_sources_and_their_digests(publish: Publish) -> None:
    publish("a", 0, "20kB")
    publish("b", 1)
    average_files(["a", "b"], "out", [3, 1])
    record = json.loads(statedict.load("out").metadata["provenance"])
    assert (record["method"], [one["name"] for one in record["sources"]]) == ("average", ["a", "b"])
    assert [one["share"] for one in record["sources"]] == [0.75, 0.25]
    files = record["sources"][0]["files"]
    assert len(files) > 2
    for name, about in files.items():
        data = Path("a", name).read_bytes()
        assert about == {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    card = Path("out", "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- merge\n---\n")
    for name, about in files.items():
        assert f"| `a` | 0.75 | `{name}` | {about['bytes']} | `xxh3_128 {about['xxh3_128']}` |" in card


def test_the_same_sources_give_the_same_bytes(publish: Publish, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
    sums = []
    for out in ("one", "two"):
        merge_files("dare_linear", ["b"], out, "a", parameters={"density": 0.5})
        sums.append([hashlib.sha256(path.read_bytes()).digest() for path in sorted(Path(out).iterdir())])
    assert sums[0] == sums[1]
    assert len(sums[0]) == 4
    assert str(tmp_path) not in Path("one", "README.md").read_text()


def test_stacked_layers_are_counted_in_the_configuration(publish: Publish) -> None:
    models = [publish(name, seed) for seed, name in enumerate("ab")]
    Path("stack.yml").write_text("""
        merge_method: passthrough
        dtype: bfloat16
        slices:
        - sources: [{model: a, layer_range: [0, 3]}]
        - sources: [{model: b, layer_range: [1, 3]}]
    """)
    report = merge_recipe_files("stack.yml", "out/")
    assert "config.json says n_layer 5 now" in report.files.notes
    model = loaded("out")
    assert (model.dtype, model.config.n_layer) == (torch.bfloat16, 5)
    for number, (source, layer) in enumerate([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]):
        found = model.transformer.h[number].attn.c_attn.weight
        assert torch.equal(found, models[source].transformer.h[layer].attn.c_attn.weight.bfloat16())
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    record = json.loads(statedict.load("out").metadata["provenance"])
    assert record["recipe"] == Path("stack.yml").read_text()
    assert "layer_range: [1, 3]" in Path("out", "README.md").read_text()


def test_lists_with_an_entry_for_each_layer_follow_the_layers(publish: Publish) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
        config = json.loads(Path(name, "config.json").read_text())
        config |= {"layer_types": [f"{name}{n}" for n in range(3)], "eos_token_id": [1, 2, 3]}
        Path(name, "config.json").write_text(json.dumps(config))
    Path("stack.yml").write_text("""
        merge_method: passthrough
        slices:
        - sources: [{model: a, layer_range: [0, 1]}]
        - sources: [{model: b, layer_range: [1, 3]}]
        - sources: [{model: a, layer_range: [2, 3]}]
    """)
    merge_recipe_files("stack.yml", "out/")
    config = json.loads(Path("out", "config.json").read_text())
    assert (config["n_layer"], config["layer_types"]) == (4, ["a0", "b1", "b2", "a2"])
    assert config["eos_token_id"] == [1, 2, 3]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_head_of_its_own_is_kept_beside_a_tied_model(publish: Publish, order: str) -> None:
    models = {"a": publish("a", 0), "b": publish("b", 1, tie_word_embeddings=False)}
    report = merge_files("linear", [*order], "out/", parameters={})
    assert report.notes == ("lm_head.weight: in a the tied embedding takes its place",)
    model = loaded("out")
    assert model.config.tie_word_embeddings is False
    wanted = (models["a"].transformer.wte.weight + models["b"].lm_head.weight) / 2
    torch.testing.assert_close(model.lm_head.weight, wanted)
    wanted = (models["a"].transformer.wte.weight + models["b"].transformer.wte.weight) / 2
    torch.testing.assert_close(model.transformer.wte.weight, wanted)


@pytest.mark.parametrize(("outer", "inner"), ["ab", "ba"])
@pytest.mark.parametrize("base", ["a", "b"])
def test_a_head_is_loaded_whether_the_outer_layers_or_the_base_tie_it(
    publish: Publish, outer: str, inner: str, base: str
) -> None:
    models = {"a": publish("a", 0), "b": publish("b", 1, tie_word_embeddings=False)}
    Path("stack.yml").write_text(f"""
        merge_method: passthrough
        base_model: {base}
        slices:
        - sources: [{{model: {outer}, layer_range: [0, 1]}}]
        - sources: [{{model: {inner}, layer_range: [0, 2]}}]
        - sources: [{{model: {outer}, layer_range: [2, 3]}}]
    """)
    merge_recipe_files("stack.yml", "out/")
    model = loaded("out")
    assert model.config.n_layer == 4
    assert torch.equal(model.lm_head.weight, models[outer].lm_head.weight)
    assert torch.equal(model.transformer.wte.weight, models[outer].transformer.wte.weight)


def test_a_head_that_is_stored_beside_a_tied_embedding_stays_tied_to_it(publish: Publish) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
        state = statedict.load(name)
        state["lm_head.weight"] = state["transformer.wte.weight"].numpy()
        statedict.save(state, f"{name}/")
        assert state["lm_head.weight"] is not state["transformer.wte.weight"]
    merge_files("dare_linear", ["b"], "out/", "a", parameters={"density": 0.5})
    found = statedict.load("out")
    assert found["lm_head.weight"].region == found["transformer.wte.weight"].region
    assert loaded("out").config.tie_word_embeddings is True


def test_a_head_of_its_own_beside_a_configuration_that_ties_it_is_loaded(publish: Publish) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed, tie_word_embeddings=False)
        path = Path(name, "config.json")
        path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    average_files(["a", "b"], "out/")
    model = loaded("out")
    assert torch.equal(model.lm_head.weight, statedict.load("out")["lm_head.weight"].torch())
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


@pytest.mark.parametrize(("policy", "rows"), [("truncate", 50), ("pad", 56)])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_vocabularies_that_differ_follow_the_policy(publish: Publish, policy: str, rows: int, order: str) -> None:
    models = {"a": publish("a", 0), "b": publish("b", 1, vocab_size=56)}
    with pytest.raises(CombineError, match=r"transformer.wte.weight: has 5\d rows in .*; if that is the vocabulary, "):
        average_files([*order], "out")
    average_files([*order], "out", vocabulary=policy)
    model = loaded("out")
    assert model.config.vocab_size == rows
    one, other = (models[name].transformer.wte.weight for name in "ab")
    torch.testing.assert_close(model.transformer.wte.weight[:50], (one + other[:50]) / 2)
    assert torch.equal(model.transformer.wte.weight[50:], other[50:rows])


def test_a_file_gets_no_files_beside_it(publish: Publish, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
    before = {*tmp_path.iterdir()}
    report = average_files(["a", "b"], "out.safetensors")
    assert {*tmp_path.iterdir()} - before == {tmp_path / "out.safetensors"}
    assert report.files.copied == ()
    assert "provenance" in statedict.load("out.safetensors").metadata


def tokenizer(folder: str, tokens: dict[str, int], **files: str) -> None:
    """Write the files of a tokenizer."""
    tree = {"model": {"type": "WordLevel", "vocab": tokens}, "added_tokens": [{"content": "<s>", "id": 49}]}
    for name, text in {"tokenizer.json": json.dumps(tree), **files}.items():
        Path(folder, name).write_text(text)


RECIPE = """
    merge_method: linear
    base_model: a
    models: [{model: a}, {model: b}]
    parameters: {weight: 1}
    tokenizer_source: %s
"""


@pytest.mark.parametrize(("source", "chosen"), [("base", "a"), ("b", "b"), ("union", "b")])
def test_the_tokenizer_is_that_of_the_model_that_is_named(publish: Publish, source: str, chosen: str) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
    tokenizer("a", {"x": 0, "y": 1}, **{"merges.txt": "a"})
    tokenizer("b", {"x": 0, "y": 1, "z": 2}, **{"tokenizer_config.json": "{}"})
    Path("merge.yml").write_text(RECIPE % source)
    report = merge_recipe_files("merge.yml", "out/")
    assert ("the tokenizer is that of b" in report.files.notes) is (chosen == "b")
    assert "tokenizer.json" in report.files.copied
    for name in ("tokenizer.json", "merges.txt", "tokenizer_config.json"):
        assert Path("out", name).exists() is Path(chosen, name).exists()
    assert Path("out", "tokenizer.json").read_text() == Path(chosen, "tokenizer.json").read_text()
    loaded("out")


def test_a_tokenizer_without_json_is_taken_and_not_compared(publish: Publish) -> None:
    for seed, name in enumerate("ab"):
        publish(name, seed)
    Path("a", "tokenizer.model").write_text("pieces")
    Path("merge.yml").write_text(RECIPE % "base")
    report = merge_recipe_files("merge.yml", "out/")
    assert "a, b: no tokenizer.json, so rows stay where they are" in report.notes
    assert Path("out", "tokenizer.model").read_text() == "pieces"
