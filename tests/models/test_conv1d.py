"""GPT-2's `Conv1D`, whose weights are transposed."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2Model

import statedict
from statedict import alter
from statedict.testing.same import assert_same


def test_the_transposed_weights_of_gpt2_are_split_along_their_outputs() -> None:

    from .. import operators  # noqa: F401 - transformers imports torchvision

    model = GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    torch.nn.init.normal_(model.h[1].attn.c_attn.bias)
    state = statedict.capture(model)
    new = alter.split(state, "h.{n}.attn.c_attn", [f"h.{{n}}.attn.{part}" for part in "qkv"])
    x = torch.randn(3, 8)
    expected = model.h[1].attn.c_attn(x).split(8, dim=-1)
    for part, want in zip("qkv", expected, strict=True):
        weight, bias = (new[f"h.1.attn.{part}.{name}"].torch() for name in ("weight", "bias"))
        assert torch.allclose(x @ weight + bias, want, atol=1e-6)
    parts = [f"h.{{n}}.attn.{part}" for part in "qkv"]
    back = alter.fuse(new, [f"{part}.weight" for part in parts], "h.{n}.attn.c_attn.weight", 1)
    back = alter.fuse(back, [f"{part}.bias" for part in parts], "h.{n}.attn.c_attn.bias")
    assert_same({name: back[name] for name in state}, dict(state))
