"""Merges of models whose tokenizers differ: rows go with their tokens, as mergekit moves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import statedict
from statedict.api.recipes import merge_recipe_files
from statedict.errors import CombineError

PEERS = Path(__file__).parents[1] / "peers"
RECORD = statedict.load(PEERS / "mergekit.safetensors")
ROWS = ("model.embed_tokens.weight", "lm_head.weight")
Publish = Callable[..., None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorded(name: str) -> dict[str, Any]:
    return {key.partition("/")[2]: value.numpy() for key, value in RECORD.items() if key.startswith(f"{name}/")}


def tokens_of(folder: str) -> dict[str, int]:
    tree = json.loads(Path(folder, "tokenizer.json").read_text())
    return dict(tree["model"]["vocab"]) | {one["content"]: one["id"] for one in tree["added_tokens"]}


def publish(name: str, words: str, state: dict[str, Any], **files: str) -> None:
    """A model whose row of a token is what it stands at in `words`; words in <> were added."""
    Path(name).mkdir()
    statedict.save(state, f"{name}/model.safetensors")
    table = {word: row for row, word in enumerate(words.split())}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": row, "content": word} | flags for word, row in table.items() if word.startswith("<")]
    files = {"config": json.dumps({"vocab_size": len(next(iter(state.values())))}), **files}
    if words:
        files["tokenizer"] = json.dumps(
            {"model": {"type": "WordLevel", "vocab": table, "unk_token": "x"}, "added_tokens": added}
        )
    for file, text in files.items():
        Path(name, f"{file}.json").write_text(text)


def column(*values: float, kind: str = "f4") -> dict[str, Any]:
    return {"embed": np.array(values, kind).reshape(-1, 1), "norm": np.ones(1, kind)}


def merge(models: str = "ab", *, tokenizer: str, **more: Any) -> tuple[dict[str, list[float]], Any]:
    listed = ", ".join(f"{{model: {name}}}" for name in models)
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    Path("merge.yml").write_text(
        f"{{merge_method: linear, models: [{listed}], parameters: {{weight: 1}}, tokenizer: {tokenizer}{keys}}}"
    )
    report = merge_recipe_files("merge.yml", "out/")
    rows = statedict.load("out")["embed"].numpy().astype("f4")[:, 0].tolist()
    return {word: rows[row] for word, row in tokens_of("out").items()} | {"": rows[len(tokens_of("out")) :]}, report


@pytest.mark.parametrize("name", ["union", "rules", "model"])
def test_rows_are_where_mergekit_has_them(name: str) -> None:
    for model in "VWX":
        state = recorded(model)
        Path(model).mkdir()
        Path(model, "tokenizer.json").write_bytes(state.pop("tokenizer.json").tobytes())
        Path(model, "config.json").write_text(json.dumps({"vocab_size": len(state[ROWS[0]])}))
        statedict.save(state, f"{model}/model.safetensors")
    merge_recipe_files(PEERS / "recipes" / f"tokens_{name}.yml", "out/")
    wanted, found = recorded(f"tokens_{name}.yml"), statedict.load("out")
    words, table = wanted.pop("tokens").tobytes().decode().split(), tokens_of("out")
    assert (sorted(table), found.keys()) == (words, wanted.keys())
    assert json.loads(Path("out", "config.json").read_text())["vocab_size"] == len(wanted[ROWS[0]])
    for key, value in wanted.items():
        ours = found[key].numpy()
        order = [table[word] for word in words] + [*range(len(words), len(value))]
        np.testing.assert_allclose(ours[order] if key in ROWS else ours, value, rtol=0, atol=2.5e-7)
    if name != "model":
        assert Tokenizer.from_file("out/tokenizer.json").get_vocab() == table


def test_a_row_comes_from_the_only_model_that_has_the_token_else_the_base_else_the_mean() -> None:
    publish("a", "x y <s>", column(1, 2, 3))
    publish("b", "y z x", column(10, 20, 30))
    publish("c", "z w x", column(100, 200, 302))
    made, _ = merge("abc", tokenizer="{source: union}")
    assert made == {"x": 111, "y": 6, "<s>": 3, "z": 60, "w": 200, "": []}
    Path("out", "tokenizer.json").unlink()
    made, report = merge("abc", tokenizer="{source: union}", base_model="a", dtype="float32")
    assert made["y"] == pytest.approx(14 / 3)
    assert (report.files.notes[-1], report.written) == ("the tokenizer is that of a with 2 more tokens", True)


def test_rows_below_the_vocabulary_are_the_mean_of_those_above() -> None:
    for name, words, values in (("a", "x y", (1, 2)), ("b", "y x", (10, 30))):
        publish(name, words, column(*values, kind="f2"))
    made, _ = merge(tokenizer="{source: base, pad_to_multiple_of: 4}")
    assert made == {"x": 15.5, "y": 6, "": [10.75, 10.75]}
    assert str(statedict.load("out")["embed"].dtype) == "float16"


def test_a_file_has_no_place_for_a_tokenizer_and_the_report_says_so() -> None:
    for name, words, values in (("a", "x y", (1, 2)), ("b", "y z", (10, 30))):
        publish(name, words, column(*values))
    merge(tokenizer="{source: union}")
    report = merge_recipe_files("merge.yml", "out.safetensors")
    assert any("of a with 1 more tokens; it is not written beside a file" in note for note in report.notes)


def test_a_head_that_is_tied_stays_tied_and_its_bias_goes_along() -> None:
    for name, words, values in (("a", "x y", (1, 2)), ("b", "y z", (10, 30))):
        state = column(*values) | {"head.bias": np.array(values, "f4"), "layers.0.w": np.ones((2, 2), "f4")}
        publish(name, words, state | {"head.weight": state["embed"]}, config='{"tie_word_embeddings": true}')
    made, report = merge(tokenizer="{source: union}")
    assert made == {"x": 1, "y": 6, "z": 30, "": []}
    found = statedict.load("out")
    assert found["head.bias"].tolist() == [1, 6, 30]
    assert found["head.weight"].region == found["embed"].region
    assert report.notes == ("the vocabulary has 3 rows, of 2, 2",)


def test_a_vocabulary_that_is_larger_than_the_embedding_has_rows_for_all_tokens() -> None:
    publish("a", "x y <pad>", column(1, 2))
    publish("b", "x y", column(3, 4))
    made, report = merge(tokenizer="{source: base}")
    assert made == {"x": 2, "y": 3, "<pad>": 0, "": []}
    assert "no model has the tokens '<pad>': their rows are zeros" in report.notes


def test_a_token_that_the_model_of_a_slice_lacks_has_a_row_of_zeros_and_is_named() -> None:
    for name, words, values in (("a", "x y", (1, 2)), ("b", "y z", (10, 30))):
        layer = {"layers.0.w": np.ones((2, 2), "f4"), "head": np.array(values, "f4").reshape(-1, 1)}
        publish(name, words, column(*values) | layer)
    slices = ", ".join(f"{{sources: [{{model: {name}, layer_range: [0, 1]}}]}}" for name in "ab")
    Path("merge.yml").write_text(f"{{merge_method: passthrough, slices: [{slices}], tokenizer: {{source: union}}}}")
    report = merge_recipe_files("merge.yml", "out/")
    found = statedict.load("out")
    assert (found["embed"].tolist(), found["head"].tolist()) == ([[1], [2], [0]], [[0], [10], [30]])
    assert report.notes[:2] == (
        "a: without the tokens 'z': their rows are zeros", "b: without the tokens 'x': their rows are zeros",
    )  # fmt: skip


def test_other_files_tell_the_tokens_of_a_model_too() -> None:
    publish("a", "x y z", column(1, 2, 3))
    publish("b", "", column(10, 21, 32), vocab='{"z": 0, "y": 1}', added_tokens='{"x": 2}')
    publish("c", "", column(30, 10, 20))
    Path("c", "vocab.txt").write_text("x\r\ny\r\nz\r\n\u2028\n", newline="")
    assert merge("abc", tokenizer="{source: base}")[0] == {"x": 21, "y": 11, "z": 11, "": []}


def test_a_model_without_a_tokenizer_is_taken_to_have_that_of_the_base() -> None:
    publish("a", "y x", column(1, 2))
    publish("b", "", column(3, 4))
    made, report = merge(tokenizer="{source: base}")
    assert made == {"y": 2, "x": 3, "": []}
    assert "b: no tokenizer.json; its rows are taken to be those of a" in report.notes
    Path("a", "tokenizer.json").unlink()
    Path("merge.yml").write_text(Path("merge.yml").read_text().replace("source: base", ""))
    with pytest.raises(CombineError, match=r"tokenizer: a has no tokenizer.json that tells its tokens"):
        merge_recipe_files("merge.yml", "out/")


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [
        ("{source: union, tokens: {x: {source: c}}}", "'x': c is not merged; there are a, b"),
        (
            "{source: union, tokens: {x: {source: {kind: model_token, model: a, token_id: 9}}}}",
            "a has no row 9, only 3",
        ),
        ("{source: union, tokens: {q: {source: {kind: model_token, model: b, token: y}}}}", "b has no token 'y'"),
        ("{source: union, tokens: {y: {source: b}}}", "tokens: 'y': b has no token 'y'"),
        ("{source: union, tokens: {y: {force: true}}}", "'y': needs a source among the models merged here: a, b"),
        ("{tokens: {y: {source: {kind: ones}}}}", r"source: expected a model, \{kind: zero\}, or \{kind: model_token"),
        ("{tokens: {y: {source: {kind: model_token, model: a}}}}", "source: expected a model"),
        ("{tokens: {y: {source: {kind: model_token, model: a, token: x, token_id: 1}}}}", "source: expected a model"),
        ("{tokens: [y]}", r"tokens: expected tokens and where they come from, got \['y'\]"),
        ("{tokens: {y: {force: 1}}}", "'y': force: expected true or false, got 1"),
        ("{tokens: {y: {source: a, froce: true}}}", "the key 'froce' is not known"),
        ("{pad_to_multiple_of: -8}", "pad_to_multiple_of: expected a whole number above 0, got -8"),
    ],
)
def test_what_cannot_be_followed_is_an_error(tokenizer: str, match: str) -> None:
    publish("a", "x y <s>", column(1, 2, 3))
    publish("b", "x z", column(10, 20))
    with pytest.raises(CombineError, match=match):
        merge(tokenizer=tokenizer)


CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "R"},
]
RENDERED = {  # by mergekit's templates of these names
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>\n<|start_header_id|>user<|end_header_id|>\n"
    "\nQ<|eot_id|>\n<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>\n<|start_header_id|>user"
    "<|end_header_id|>\n\nR<|eot_id|>\n<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] S\n\nQ [/INST] A</s> [INST] R [/INST]",
    "'{{ messages[0].content }} and more'": "S and more",
    "auto": "the second",
}


@pytest.mark.parametrize("template", RENDERED)
def test_a_template_of_chats_is_in_all_files_that_hold_one(template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    publish("a", "x <s> </s>", column(1, 2, 3), tokenizer_config='{"chat_template": "the first"}')
    publish("b", "x <s> </s>", column(4, 5, 6), tokenizer_config='{"bos_token": "<s>", "eos_token": "</s>"}')
    publish("c", "x <s> </s>", column(4, 5, 6))
    Path("b", "chat_template.jinja").write_text("the second\n")
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "the second"}]
    Path("c", "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    merge("abc", tokenizer="{source: b}", chat_template=template)
    fast = PreTrainedTokenizerFast.from_pretrained("out")
    assert fast.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == RENDERED[template]
    _, report = merge("ac", tokenizer="{source: a}", chat_template=template.replace("auto", "chatml"), dtype="float32")
    assert json.loads(Path("out", "tokenizer_config.json").read_text())["chat_template"] != "the first"
    assert "chat_template.jinja" in report.files.copied


@pytest.mark.parametrize(
    ("template", "match"), [("alpaca", "expected auto, chatml, llama3, mistral, or the template itself, got 'alpaca'")]
)
def test_a_template_that_is_not_known_is_an_error(template: str, match: str) -> None:
    publish("a", "x", column(1))
    publish("b", "x", column(2))
    with pytest.raises(CombineError, match=match):
        merge(tokenizer="{source: base}", chat_template=template)
    assert (
        "chat_template: auto, and no model has one" in merge(tokenizer="{source: base}", chat_template="auto")[1].notes
    )


@pytest.mark.parametrize("row", ["-1", "1.5", "true", '"1"', "99999999999", "null"])
def test_a_tokenizer_that_gives_a_token_no_row_is_an_error(row: str) -> None:
    publish("a", "x y", column(1, 2))
    publish("b", "", column(3, 4), vocab=f'{{"x": 0, "y": {row}}}')
    with pytest.raises(CombineError, match=r"b: its tokenizer gives 'y' the row .*, not a whole number"):
        merge(tokenizer="{source: base}")


def test_a_tokenizer_of_another_form_is_an_error() -> None:
    publish("a", "x y", column(1, 2), tokenizer_config="[")
    publish("b", "", column(3, 4), vocab="[]")
    with pytest.raises(CombineError, match=r"b/vocab.json: is not a vocabulary as the packages tokenizers"):
        merge(tokenizer="{source: base}")
    Path("b", "vocab.json").unlink()
    with pytest.raises(statedict.StateDictError, match=r"tokenizer_config\.json"):
        merge(tokenizer="{source: base}", chat_template="auto")


def test_rows_of_the_embedding_that_an_encoder_and_a_decoder_share_are_moved() -> None:
    for name, words, values in (("a", "x y", (1, 2)), ("b", "y x", (10, 30))):
        state = {"shared.weight": column(*values)["embed"], "encoder.w": np.ones(2, "f4")}
        publish(name, words, state, config='{"vocab_size": 2}')
    Path("merge.yml").write_text(
        "{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1}, tokenizer_source: base}"
    )
    merge_recipe_files("merge.yml", "out/")
    assert statedict.load("out")["shared.weight"].tolist() == [[15.5], [6]]


def test_rows_that_are_not_numbers_are_not_moved() -> None:
    publish("a", "x y", column(1, 2, kind="i4"))
    publish("b", "y x", column(10, 20, kind="i4"))
    with pytest.raises(CombineError, match="embed: rows of int32 are not moved"):
        merge(tokenizer="{source: base}")
