"""Adapters of a tied head and embedding, alone and together: against the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statedict import lora
from statedict.api.lora import apply_files
from statedict.errors import CombineError

from .conftest import Tuned, llama

Make = Callable[..., Any]
TOKENS = torch.arange(6)[None]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS: dict[str, dict[str, Any]] = {
    "a saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "a saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "LoRA of the head": {"target_modules": ["lm_head"]},
    "LoRA of the embedding": {"target_modules": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
}


def made(folder: Path, *kinds: str) -> tuple[Path, list[Any]]:
    """A folder of the tied base, and adapters."""
    adapters = []
    for kind in kinds:
        (folder / kind).mkdir()
        adapters.append(Tuned(folder / kind, "tied", **KINDS[kind]))
    model = llama(tie=True)
    model.load_state_dict(adapters[0].base)
    model.save_pretrained(folder / "base")
    return folder / "base", adapters


def logits(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(folder)(TOKENS).logits


def test_tokens_are_replaced_in_a_tied_head_that_has_an_adapter(tuned: Make, tmp_path: Path) -> None:
    one = tuned("tied", target_modules=["q_proj", "lm_head"], trainable_token_indices=[1, 5])
    model = llama(tie=True)
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    assert apply_files(tmp_path / "base", [one.folder], tmp_path / "out", prove=True).proved
    with torch.no_grad():  # merge_and_unload loses the change of the head
        assert torch.allclose(logits(tmp_path / "out"), one.peft(TOKENS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("saved", "other", "name"),
    [
        ("a saved head", "LoRA of the head", HEAD),
        ("a saved embedding", "LoRA of the embedding", EMBEDDING),
        ("a saved head", "LoRA of the embedding", HEAD),
        ("a saved embedding", "LoRA of the head", EMBEDDING),
    ],
)
def test_what_one_adapter_replaces_and_another_changes_gets_both(
    tmp_path: Path, saved: str, other: str, name: str
) -> None:
    base, (one, two) = made(tmp_path, saved, other)
    trees = []
    for adapters in ([one.folder, two.folder], [two.folder, one.folder]):
        report = apply_files(base, adapters, tmp_path / f"out{len(trees)}", prove=True)
        assert report.proved
        trees.append(lora.apply(base, adapters))
        assert torch.equal(logits(tmp_path / f"out{len(trees) - 1}"), logits(tmp_path / "out0"))
    before = one.base[EMBEDDING]
    replaced = one.merged().state_dict()[name]
    changed = two.merged().state_dict()[name] - before
    wanted = {name: replaced + (changed if saved.split()[-1] in other else 0)}
    wanted |= {({EMBEDDING, HEAD} - {name}).pop(): before + (0 if saved.split()[-1] in other else changed)}
    for tree in trees:
        for key, value in wanted.items():
            assert torch.allclose(tree[key].torch(), value, atol=1e-5), key


def test_rows_of_a_tensor_that_another_adapter_replaces_are_refused(tmp_path: Path) -> None:
    base, (one, two) = made(tmp_path, "a saved embedding", "tokens")
    for adapters in ([one.folder, two.folder], [two.folder, one.folder]):
        with pytest.raises(CombineError, match="replace"):
            lora.apply(base, adapters)


def test_an_adapter_of_an_embedding_can_be_taken_away_though_it_has_a_copy_of_it(tmp_path: Path) -> None:
    base, (one,) = made(tmp_path, "LoRA of the embedding")
    apply_files(base, [one.folder], tmp_path / "merged")
    again = lora.apply(tmp_path / "merged", one.folder, -1)
    assert torch.allclose(again[EMBEDDING].torch(), one.base[EMBEDDING], atol=1e-5)
