"""Tensors that are one in the state, in the model, or in both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import statedict


class Language(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


@both_formats
def test_a_tie_on_both_sides_is_kept(suffix: str, tmp_path: Path) -> None:
    model, fresh = Language(tied=True), Language(tied=True)
    statedict.save(model, tmp_path / f"x{suffix}")
    report = statedict.restore(fresh, tmp_path / f"x{suffix}")
    assert report.paths("tied") == ["head.weight"]
    assert fresh.head.weight.data_ptr() == fresh.embed.weight.data_ptr()
    assert torch.equal(fresh.head.weight, model.head.weight)


@both_formats
def test_a_tie_that_only_the_state_has_is_reported(suffix: str, tmp_path: Path) -> None:
    model, fresh = Language(tied=True), Language(tied=False)
    statedict.save(model, tmp_path / f"x{suffix}")
    report = statedict.restore(fresh, tmp_path / f"x{suffix}")
    assert report.paths("untied") == ["head.weight"]
    assert "the state ties it to embed.weight, the target has it apart" in str(report)
    assert torch.equal(fresh.head.weight, model.head.weight)
    assert fresh.head.weight.data_ptr() != fresh.embed.weight.data_ptr()


@both_formats
def test_a_tie_that_only_the_model_has_is_reported_where_the_values_agree(suffix: str, tmp_path: Path) -> None:
    model, fresh = Language(tied=False), Language(tied=True)
    with torch.no_grad():
        model.head.weight.copy_(model.embed.weight)
    statedict.save(model, tmp_path / f"x{suffix}")
    report = statedict.restore(fresh, tmp_path / f"x{suffix}")
    assert report.paths("tied") == ["head.weight"]
    assert "the state has it twice" in str(report)


@both_formats
def test_two_values_for_one_tensor_are_an_error(suffix: str, tmp_path: Path) -> None:
    fresh = Language(tied=True)
    before = fresh.embed.weight.clone()
    statedict.save(Language(tied=False), tmp_path / f"x{suffix}")
    with pytest.raises(
        statedict.errors.RestoreError, match=r"1 tie: head\.weight .*the state has other values for each"
    ):
        statedict.restore(fresh, tmp_path / f"x{suffix}")
    assert torch.equal(fresh.embed.weight, before)


@pytest.mark.parametrize("left_out", ["head.weight", "embed.weight"])
def test_a_file_that_has_a_tied_weight_under_one_name_only_restores_both(left_out: str, tmp_path: Path) -> None:
    """As transformers and safetensors.torch.save_model write it; accelerate#3870: KeyError 'lm_head.weight'."""
    model, fresh = Language(tied=True), Language(tied=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != left_out}
    report = statedict.restore(fresh, state)
    assert report.paths("tied") == [left_out]
    assert torch.equal(fresh.head.weight, model.head.weight)
    assert torch.equal(fresh.embed.weight, model.embed.weight)
    with pytest.raises(statedict.errors.RestoreError, match=f"missing: {left_out}"):
        statedict.restore(Language(tied=False), state)


def test_a_file_of_save_model_restores(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model, fresh = Language(tied=True), Language(tied=True)
    save_model(model, str(tmp_path / "model.safetensors"))
    statedict.restore(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.head.weight, model.head.weight)


def test_a_tied_model_on_the_meta_device_is_tied_afterwards(tmp_path: Path) -> None:
    model = Language(tied=True)
    state = {"embed.weight": model.embed.weight}
    with torch.device("meta"):
        fresh = Language(tied=True)
    statedict.restore(fresh, state)
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh.head.weight, model.head.weight)
