"""Folders of weights: transformers reads ours, and we read theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import statedict
from statedict.cli import cli
from statedict.testing.same import assert_same


def test_transformers_loads_a_folder_that_we_wrote_and_we_one_of_theirs(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=1)
    source = GPT2LMHeadModel(config)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path / "ours")
    statedict.save(source, tmp_path / "ours", max_shard_size="10kB")
    assert len(os.listdir(tmp_path / "ours")) > 3
    ours = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert_same(ours.state_dict(), source.state_dict(), flags=False)
    source.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    fresh = GPT2LMHeadModel(config)
    statedict.restore(fresh, tmp_path / "theirs")
    assert_same(fresh.state_dict(), source.state_dict(), flags=False)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its tokenizer, and what else lies about."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, "[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("README.md", "modeling_x.py", "optimizer.pt", "trainer_state.json", "pytorch_model.bin", "logo.png"):
        (tmp_path / "model" / name).write_bytes(b"{}")
    (tmp_path / "model" / "onnx").mkdir()
    return tmp_path / "model"


COPIED = (
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "modeling_x.py", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
LEFT = {
    "logo.png": "of no known use",
    "onnx/": "a folder",
    "optimizer.pt": "of the training",
    "pytorch_model.bin": "other weights",
    "trainer_state.json": "of the training",
}


def test_what_lies_beside_a_model_goes_along_and_from_pretrained_works(published: Path, tmp_path: Path) -> None:
    report = statedict.edit(published, tmp_path / "half", [{"cast": "bf16"}])
    assert (report.files.copied, report.files.left) == (COPIED, LEFT)
    assert report.files.notes == ("config.json says bfloat16 now, not float32",)
    assert {"model.safetensors", *COPIED} == {*os.listdir(tmp_path / "half")}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "half").chat_template == "{{ messages }}"
    text = (published / "config.json").read_text()
    assert (tmp_path / "half" / "config.json").read_text() == text.replace('"float32"', '"bfloat16"')
    statedict.convert(published, tmp_path / "shards", max_shard_size="2kB")
    assert (tmp_path / "shards" / "config.json").read_text() == text
    shards = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    assert_same(shards.state_dict(), AutoModelForCausalLM.from_pretrained(published).state_dict(), flags=False)


def test_the_command_line_lists_what_goes_along(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", str(published), str(tmp_path / "half"), "--cast", "fp16", "--dry-run"]
    cli.main(arguments, standalone_mode=False)
    out = capsys.readouterr().out
    assert f"\nwith {', '.join(COPIED)}\n" in out
    assert "logo.png (of no known use), onnx/ (a folder), optimizer.pt (of the training)" in out
    assert not (tmp_path / "half").exists()
    cli.main(["convert", str(published), str(tmp_path / "copy"), "--json"], standalone_mode=False)
    assert '"files": {"copied": ["README.md", ' in capsys.readouterr().out


def test_in_place_only_the_dtype_of_the_configuration_changes(published: Path) -> None:
    before = {name: (published / name).read_bytes() for name in COPIED}
    report = statedict.edit(published, None, [{"cast": "fp16"}])
    assert (report.files.copied, report.files.left) == (("config.json",), {})
    before["config.json"] = before["config.json"].replace(b"float32", b"float16")
    assert {name: (published / name).read_bytes() for name in COPIED} == before
    assert statedict.edit(published, None, [{"cast": "fp16"}]).files.copied == ()


def test_a_dtype_that_no_model_can_have_is_noted_and_left(published: Path, tmp_path: Path) -> None:
    report = statedict.edit(published, tmp_path / "small", [{"cast": "float8_e4m3fn"}])
    assert "config.json still has the dtype it had" in report.files.notes[0]
    assert (tmp_path / "small" / "config.json").read_bytes() == (published / "config.json").read_bytes()


def test_a_configuration_that_has_the_new_dtype_already_is_not_noted(published: Path, tmp_path: Path) -> None:
    config = published / "config.json"
    config.write_bytes(config.read_bytes().replace(b"float32", b"bfloat16"))
    report = statedict.edit(published, tmp_path / "small", [{"cast": "bf16"}])
    assert report.files.notes == ()


def test_files_go_along_only_from_folder_to_folder(published: Path, tmp_path: Path) -> None:
    for target in ("x.pth", "x.safetensors"):
        assert statedict.edit(published, tmp_path / target, [{"cast": "bf16"}]).files.copied == ()
    statedict.convert(published / "model.safetensors", f"{tmp_path}/alone/")
    statedict.convert(published, tmp_path / "parts", format="distributed")
    for folder in ("alone", "parts"):
        assert not (tmp_path / folder / "config.json").exists()
    statedict.convert(tmp_path / "alone", tmp_path / "again")
    assert os.listdir(tmp_path / "again") == ["model.safetensors"]


def test_the_modules_of_sentence_transformers_go_along(published: Path, tmp_path: Path) -> None:
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"idx": at, "name": f"{at}", "path": path, "type": kind} for at, (path, kind) in enumerate(kinds.items())
    ]
    (published / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "onnx/config.json"):
        (published / name).parent.mkdir(exist_ok=True)
        (published / name).write_bytes(name.encode())
    for target, overwrite in ((f"{tmp_path}/new/", False), (f"{tmp_path}/new/", True)):
        report = statedict.edit(published, target, [{"cast": "bf16"}], overwrite=overwrite)
        inner = [name for name in report.files.copied if "/" in name]
        assert inner == ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
        assert {name: (tmp_path / "new" / name).read_text() for name in inner} == {name: name for name in inner}
        assert report.files.left["onnx/"] == "a folder"
        assert sorted(os.listdir(tmp_path / "new" / "2_Dense")) == ["config.json", "model.safetensors"]
