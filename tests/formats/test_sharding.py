"""Folders of shards that we write: joined again byte for byte, and read by those who made the form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import statedict
from statedict.testing.same import assert_same


def model(count: int = 5) -> dict[str, torch.Tensor]:
    return {f"layers.{n}.weight": torch.randn(100, 10) for n in range(count)}


def checkpoint() -> Any:
    network = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.BatchNorm1d(30))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    return {"model": network, "optimizer": optimizer, "epoch": 3, "odd": torch.zeros(3, dtype=torch.complex128)}


def test_shards_have_the_names_and_the_index_that_others_expect(tmp_path: Path) -> None:
    tensors = model()
    statedict.save(tensors, tmp_path / "out", max_shard_size="8kB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(os.listdir(tmp_path / "out")) == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert index["metadata"] == {"total_size": 20_000}
    assert index["weight_map"]["layers.2.weight"] == "model-00002-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], tensors[name])
    assert statedict.verify(tmp_path / "out").ok


def test_what_fits_into_one_is_one_file_without_an_index(tmp_path: Path) -> None:
    statedict.save(model(), tmp_path / "out", max_shard_size="1GB")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("tree", [model, checkpoint])
def test_shards_joined_again_are_the_same_bytes(tree: Any, suffix: str, tmp_path: Path) -> None:
    statedict.save(tree(), tmp_path / f"one{suffix}")
    statedict.convert(tmp_path / f"one{suffix}", tmp_path / "parts", max_shard_size=3000)
    assert len(os.listdir(tmp_path / "parts")) > 3
    statedict.convert(tmp_path / "parts", tmp_path / f"again{suffix}")
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert statedict.verify(tmp_path / "parts").ok


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(4, 200))
def test_no_shard_is_larger_than_asked_but_for_one_tensor(sizes: list[int], most: int) -> None:
    from statedict.adapters.collect import collect
    from statedict.formats.sharded import files as shards
    from statedict.tensor.lazy import as_lazy

    tree = statedict.StateDict((f"t{n}", torch.zeros(size)) for n, size in enumerate(sizes))
    files = shards(collect(tree, as_lazy), most)
    held = [write.args[0] for name, write in files.items() if name.endswith(".safetensors")]
    assert [name for part in held for name in part] == list(tree)
    for part in held:
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= most


def test_tied_tensors_stay_tied_across_shards(tmp_path: Path) -> None:
    tensors = model()
    tensors["head"] = tensors["layers.0.weight"]
    statedict.save(tensors, tmp_path / "out", max_shard_size="4kB")
    loaded = statedict.load(tmp_path / "out").torch(copy=True)
    assert loaded["head"].data_ptr() == loaded["layers.0.weight"].data_ptr()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 20_000


def test_what_else_is_in_the_folder_stays_and_a_file_that_exists_needs_overwrite(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    statedict.save(model(), folder, max_shard_size="8kB", overwrite=False)
    with pytest.raises(statedict.errors.ExistingFileError, match="model-00001-of-00003"):
        statedict.save(model(), folder, max_shard_size="8kB", overwrite=False)
    newer = model()
    statedict.save(newer, folder, max_shard_size="8kB")
    assert_same(statedict.load(folder), statedict.StateDict(newer))
    assert (folder / "config.json").read_text() == "{}"
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_folder_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    tree = model() | {"broken": statedict.LazyTensor(statedict.dtype("float32"), (2,), _Broken().storage())}
    with pytest.raises(RuntimeError, match="the disk is gone"):
        statedict.save(tree, tmp_path / "out", max_shard_size="8kB")
    assert os.listdir(tmp_path) == []
    statedict.save(model(), tmp_path / "out", max_shard_size="8kB")
    before = statedict.load(tmp_path / "out").torch(copy=True)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        statedict.save(tree, tmp_path / "out", max_shard_size="8kB")
    assert_same(statedict.load(tmp_path / "out").torch(copy=True), before)
    assert len(os.listdir(tmp_path / "out")) == 4


class _Broken:
    def storage(self) -> statedict.Storage:
        from statedict.io.source import ComputedSource

        def fill(offset: int, buffer: memoryview) -> None:
            raise RuntimeError("the disk is gone")

        return statedict.Storage(ComputedSource(8, fill), 0, 8)


@pytest.mark.parametrize("size", ["", "5 apples", "0", "-1GB", 0])
def test_a_size_that_is_none_is_refused(size: Any, tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match="is not a valid size; write it as 5GB"):
        statedict.save(model(), tmp_path / "out", max_shard_size=size)
