"""Folders of weights: transformers reads ours, and we read theirs."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel

import statedict

from ..same import assert_same


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
