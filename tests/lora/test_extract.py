"""Adapters made of two models: peft loads them, and applied they give the tuned model again."""

from __future__ import annotations

import copy
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statedict
from statedict import lora
from statedict.api.lora import apply_files, extract_files
from statedict.errors import CombineError

from .conftest import MODELS

RNG = np.random.default_rng(17)


def low(rows: int, columns: int, rank: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))).astype("f4")


def tune(model: Any, rank: int, only: tuple[str, ...]) -> Any:
    """A copy of a model with changes of a rank in its matrices, and others in its vectors."""
    tuned = copy.deepcopy(model)
    torch.manual_seed(1)
    for name, one in tuned.named_parameters():
        if any(part in name for part in only):
            change = torch.randn_like(one) * 0.1
            if one.ndim > 1:
                flat = one.reshape(one.shape[0], -1)
                change = torch.randn(flat.shape[0], rank) @ torch.randn(rank, flat.shape[1]) * 0.1
            one.data += change.reshape(one.shape)
    return tuned


CASES = {  # case → model, parts of names that change
    "linear": ("llama", ("q_proj.weight", "up_proj", "lm_head")),
    "norms and biases": ("llama", ("q_proj", "o_proj.bias", "layernorm", "model.norm")),
    "embedding": ("llama", ("embed_tokens", "v_proj.weight")),
    "tied": ("tied", ("embed_tokens", "q_proj.weight")),
    "a tied embedding alone": ("tied", ("embed_tokens",)),
    "norms alone": ("llama", ("norm",)),
    "biases alone": ("gpt2", ("c_attn.bias", "ln_1.bias")),
    "transposed": ("gpt2", ("c_attn", "c_proj", "ln_f")),
    "convolutions": ("mixed", ("a.", "b.weight", "c.weight")),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_was_extracted_and_computes_the_tuned_model(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    kind, only = CASES[case]
    torch.manual_seed(17)
    base = MODELS[kind]().eval()
    tuned = tune(base, 3, only)
    report = extract_files(base, tuned, tmp_path / "adapter", 3)
    assert report.written
    assert report.energy == pytest.approx(1, abs=1e-5)
    assert not report.left_out
    tree = lora.apply(base, tmp_path / "adapter")
    for name, value in tuned.state_dict().items():
        assert torch.allclose(tree[name].torch(), value, atol=1e-5), name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(tie_word_embeddings|tied|fan_in_fan_out).*")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    given = torch.randn(2, 4, 5, 5) if kind == "mixed" else torch.arange(6)[None]
    with torch.no_grad():
        one, other = loaded(given), tuned(given)
    if kind != "mixed":
        one, other = one.logits, other.logits
    assert torch.allclose(one, other, atol=1e-4)


def test_a_head_that_no_file_has_follows_the_embedding(tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(17)
    base = MODELS["tied"]().eval()
    tuned = tune(base, 3, ("embed_tokens", "q_proj.weight"))
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    assert "lm_head.weight" not in statedict.load(tmp_path / "base")
    extract_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", 3)
    apply_files(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
        again = type(base).from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        expected = tuned(tokens).logits
        assert torch.allclose(loaded(tokens).logits, expected, atol=1e-4)
        assert torch.allclose(again(tokens).logits, expected, atol=1e-4)


def test_a_head_of_its_own_is_not_lost_where_the_base_ties() -> None:
    one = torch.nn.Parameter(torch.zeros(4, 3))
    base = {"embed_tokens.weight": one, "lm_head.weight": one}
    tuned = {"embed_tokens.weight": one + 1, "lm_head.weight": one + 2}
    with pytest.raises(CombineError, match=r"lm_head\.weight: is tied to embed_tokens\.weight in the base, and not"):
        lora.extract(base, tuned, 1)


def test_a_share_of_the_energy_says_the_rank(tmp_path: Path) -> None:
    values = np.diag([8.0, 4, 2, 1, 0.5, 0, 0, 0]).astype("f4")
    base = {"m.weight": np.zeros((8, 8), "f4")}
    for share, rank in ((0.5, 1), (0.9, 2), (0.98, 3), (0.999, 5), (1, 5)):
        report = extract_files(base, {"m.weight": values}, None, energy=share, dry_run=True)
        assert report.modules[0][1] == rank
        assert report.modules[0][2] >= share - 1e-9


def graded(rows: int, columns: int, *, power: float) -> Any:
    """A matrix whose singular values fall off as k^-power."""
    short = min(rows, columns)
    left, right = (np.linalg.qr(RNG.standard_normal((side, short)))[0] for side in (rows, columns))
    return (left * np.arange(1.0, short + 1) ** -power) @ right.T


CHANGES = {
    "of rank 4": lambda rows, columns: low(rows, columns, 4),
    "of rank 4, and noise": lambda rows, columns: low(rows, columns, 4) + 0.3 * RNG.standard_normal((rows, columns)),
    "noise": lambda rows, columns: RNG.standard_normal((rows, columns)),
    "falling off slowly": partial(graded, power=0.3),
    "falling off fast": partial(graded, power=2),
    "nearly flat": lambda rows, columns: low(rows, columns, 40) + 10 * RNG.standard_normal((rows, columns)),
}


@pytest.mark.parametrize("shape", [(30, 20), (530, 640), (640, 530), (4000, 300)], ids=str)
@pytest.mark.parametrize("kind", CHANGES)
def test_no_adapter_of_that_rank_is_closer(kind: str, shape: tuple[int, int]) -> None:
    change = CHANGES[kind](*shape).astype("f4")
    values = np.linalg.svd(change.astype("f8"), compute_uv=False) ** 2
    for options in ({"rank": 4}, {"rank": 12}, {"energy": 0.2}):
        adapter = lora.extract({"m.weight": np.zeros(shape, "f4")}, {"m.weight": change}, **options)
        down, up = (np.asarray(adapter[f"base_model.model.m.lora_{part}.weight"], "f8") for part in "AB")
        least, distance = np.sqrt(values[len(down) :].sum()), np.linalg.norm(change - up @ down)
        assert distance <= 1.001 * least + 1e-6 * np.sqrt(values.sum())
        if "energy" in options:
            assert distance**2 <= (1 - 0.2 + 1e-6) * values.sum()
            needed = int((values.cumsum() >= 0.2 * values.sum()).argmax()) + 1
            assert needed <= len(down) <= max(needed + 1, 1.05 * needed)


def test_the_factors_are_balanced_and_small_changes_keep_their_size() -> None:
    change = low(40, 30, 2) * np.float32(1e-20)
    base = {"m.weight": np.zeros((40, 30), "f4")}
    adapter = lora.extract(base, {"m.weight": change}, 2)
    down, up = (adapter[f"base_model.model.m.lora_{part}.weight"] for part in "AB")
    down, up = (np.asarray(one, "f8") for one in (down, up))
    assert np.allclose(np.linalg.norm(down, axis=1), np.linalg.norm(up, axis=0), rtol=1e-4)
    assert np.allclose(up @ down, change, rtol=1e-4, atol=1e-25)


def test_an_adapter_goes_into_a_base_and_comes_back(tmp_path: Path) -> None:
    base = {f"layers.{n}.m.weight": RNG.standard_normal((12, 8)).astype("f4") for n in range(3)}
    tuned = {name: value + low(12, 8, 2, seed) for seed, (name, value) in enumerate(base.items())}
    statedict.save(base, tmp_path / "base.safetensors")
    statedict.save({"model": tuned, "epoch": 1}, tmp_path / "tuned.pth")
    extract_files(tmp_path / "base.safetensors", tmp_path / "tuned.pth", tmp_path / "adapter", 2)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (2, 2, {})
    assert config["target_modules"] == ["layers.0.m", "layers.1.m", "layers.2.m"]
    assert not lora.show(tmp_path / "adapter").fault
    adapters = [tmp_path / "adapter"]
    report = apply_files(tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors", prove=True)
    assert report.proved
    for name, value in statedict.load(tmp_path / "out.safetensors").items():
        assert np.allclose(value.numpy(), tuned[name], atol=1e-5)
    first = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    extract_files(tmp_path / "base.safetensors", tmp_path / "tuned.pth", tmp_path / "adapter", 2)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == first


def test_what_peft_has_no_module_for_is_named() -> None:
    base = {"m.weight": np.zeros((4, 4), "f4"), "cls_token": np.zeros((1, 1, 4), "f4")}
    tuned = {"m.weight": np.ones((4, 4), "f4"), "cls_token": np.ones((1, 1, 4), "f4")}
    report = extract_files(base, tuned, None, 1, dry_run=True)
    assert report.left_out == ("cls_token",)
    assert "cls_token: no module of peft's holds them" in report.notes[0]


SQUARE = np.zeros((4, 4), "f4")
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # case → the tuned model, arguments, message
    "no rank": ({"m.weight": SQUARE + 1}, {}, r"give either rank=… or energy=…"),
    "both": ({"m.weight": SQUARE + 1}, {"rank": 1, "energy": 0.5}, r"give either rank=… or energy=…"),
    "a rank of 0": ({"m.weight": SQUARE + 1}, {"rank": 0}, "rank: expected a whole number above 0, got 0"),
    "too much energy": ({"m.weight": SQUARE + 1}, {"energy": 2}, "energy: expected a share above 0 and up to 1"),
    "the same": ({"m.weight": SQUARE}, {"rank": 1}, "has the values of base; there is nothing to extract"),
    "another shape": ({"m.weight": SQUARE[:2]}, {"rank": 1}, r"m\.weight: has the shape \(2, 4\) in tuned, \(4, 4\)"),
    "other names": ({"n.weight": SQUARE}, {"rank": 1}, r"tuned: lacks m\.weight"),
    "more names": ({"m.weight": SQUARE, "n": SQUARE + 2}, {"rank": 1}, "tuned: has n, which base lacks"),
    "NaN": ({"m.weight": SQUARE + np.float32("nan")}, {"rank": 1}, "16 differences are NaN or infinite"),
    "integers": ({"m.weight": SQUARE.astype("i4") + 1}, {"rank": 1}, "of that an adapter cannot be made"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(case: str) -> None:
    tuned, arguments, message = MISTAKES[case]
    with pytest.raises(CombineError, match=message):
        lora.extract({"m.weight": SQUARE}, tuned, **arguments)
