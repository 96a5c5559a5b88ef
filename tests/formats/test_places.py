"""What lies in a folder already, and what is altered in place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import ExistingFileError, FileError, UnsupportedError


def tree(value: float) -> dict[str, Any]:
    return {f"w{i}": numpy.full(1000, value + i) for i in range(4)}


def test_shards_are_not_written_where_another_file_would_still_be_opened(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path, max_shard_size="10MB")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ExistingFileError, match=r"model.safetensors: is another checkpoint, by which that folder"):
        statedict.save(tree(1), tmp_path, max_shard_size="10kB")
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 0
    statedict.save(tree(2), tmp_path, max_shard_size="10MB")
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 2


def test_shards_beside_a_bin_of_pytorch_are_what_the_folder_is_opened_by(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path / "pytorch_model.bin")
    statedict.save(tree(1), tmp_path, max_shard_size="10kB")
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("blob", "safetensors"), ("x.bin", "safetensors"), ("y.safetensors", "torch")]
)
def test_in_place_a_file_keeps_its_format_whatever_its_name(tmp_path: Path, name: str, kind: str) -> None:
    statedict.save({"w": numpy.ones(3, "float32")}, tmp_path / name, format=kind)
    head = (tmp_path / name).read_bytes()[:2]
    statedict.edit(tmp_path / name, None, [{"cast": "bf16"}])
    assert statedict.verify(tmp_path / name).format == kind
    assert kind == "safetensors" or (tmp_path / name).read_bytes()[:2] == head
    assert str(statedict.load(tmp_path / name)["w"].dtype) == "bfloat16"


def test_in_place_shards_are_refused_and_stay(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path, max_shard_size="10kB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises(UnsupportedError, match="is sharded, which is not altered in place"):
            statedict.edit(path, None, [{"cast": "bf16"}])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("inner", ["", ".metadata"])
def test_in_place_a_distributed_checkpoint_is_replaced_by_one(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "step"
    statedict.save(tree(0.0), folder, format="distributed")
    statedict.edit(folder / inner, None, [{"cast": "bf16"}])
    assert statedict.verify(folder).format == "distributed"
    assert str(statedict.load(folder)["w0"].dtype) == "bfloat16"


def test_a_disk_too_small_for_all_shards_is_noticed_before_the_first(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    from statedict.io.source import ComputedSource

    def fill(offset: int, buffer: memoryview) -> None:
        raise AssertionError("a shard was written")

    part = free // 3
    kind = statedict.dtype("uint8")
    large = {
        f"w{i}": statedict.LazyTensor(kind, (part,), statedict.Storage(ComputedSource(part, fill), 0, part))
        for i in range(4)
    }
    for options in ({"max_shard_size": part}, {"max_shard_size": part, "format": "distributed"}):
        with pytest.raises(FileError, match="make room for"):
            statedict.save(large, tmp_path / "shards", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
