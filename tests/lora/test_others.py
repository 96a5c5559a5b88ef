"""Adapters of peft that are not LoRA: against its own `merge_and_unload`."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statedict import lora
from statedict.api.lora import apply_files
from statedict.errors import CombineError

from .conftest import MODELS
from .test_apply import assert_close
from .test_dialects import BASE, DOWN, HADA, UP, Q

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # case → model, class of peft's configuration, settings
    "LoHa": ("llama", "LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}),
    "LoHa with patterns": (
        "llama",
        "LoHaConfig",
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ),
    "LoHa of convolutions": ("mixed", "LoHaConfig", {"r": 2, "target_modules": ["a", "b", "c"]}),
    "AdaLoRA": (
        "llama",
        "AdaLoraConfig",
        {"init_r": 6, "lora_alpha": 5, "total_step": 9, "target_modules": ["q_proj", "up_proj"]},
    ),
    "AdaLoRA of transposed weights": (
        "gpt2",
        "AdaLoraConfig",
        {"total_step": 9, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
}


def made(folder: Path, case: str) -> tuple[Any, Any]:
    """The state of a base, and peft's model with an adapter that was saved."""
    import peft

    kind, name, settings = CASES[case]
    torch.manual_seed(17)
    model = MODELS[kind]()
    base = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(model, getattr(peft, name)(**settings))
        for one in tuned.parameters():
            if one.requires_grad:
                one.data += torch.randn_like(one) * 0.2
        if name == "AdaLoraConfig":
            prune(tuned)
        tuned.save_pretrained(folder / "adapter")
    return base, tuned


def prune(tuned: Any) -> None:
    """Drop half of the directions of each module, as AdaLoRA does while it trains."""
    pattern = {}
    for name, one in tuned.base_model.model.named_modules():
        if hasattr(one, "lora_E"):
            kept = [number % 2 == 0 for number in range(len(one.lora_E["default"]))]
            one.lora_E["default"].data *= torch.tensor(kept)[:, None]
            pattern[f"{name}.lora_E.default"] = kept
    tuned.peft_config["default"].rank_pattern = pattern


@pytest.mark.parametrize("case", CASES)
def test_other_kinds_give_what_peft_merges(tmp_path: Path, case: str) -> None:
    base, tuned = made(tmp_path, case)
    ours = lora.apply(base, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tuned.merge_and_unload().state_dict()
    assert_close(ours, theirs, 1e-6)
    assert any(not torch.equal(ours[name].torch(), value) for name, value in base.items())
    assert lora.show(tmp_path / "adapter").kind == case.split()[0]
    report = apply_files(base, [tmp_path / "adapter"], tmp_path / "out.safetensors", prove=True)
    assert report.proved
    for target in report.targets:
        difference = theirs[target.path].double() - base[target.path].double()
        assert target.norm == pytest.approx(float(difference.norm()), rel=1e-4), target


def test_loha_of_lycoris_is_applied_too() -> None:
    adapter = HADA | {"lora_unet_down_blocks_0_attentions_0_to_q.alpha": np.array(1, "f4")}
    expected = BASE[Q] + 0.5 * (UP @ DOWN) * ((UP + 1) @ (DOWN - 1))
    assert np.allclose(lora.apply(BASE, adapter)[Q].numpy(), expected, atol=1e-5)
    assert lora.show(adapter).kind == "LoHa"
    with pytest.raises(CombineError, match="linear mixes factors of LoRA, not of LoHa"):
        lora.apply(BASE, [adapter, adapter], combination="linear")
