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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


SHARDS = [*(f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)), "model.safetensors.index.json"]


def test_a_checkpoint_in_a_folder_replaces_the_one_there_with_all_its_files(tmp_path: Path) -> None:
    for number, (size, wanted) in enumerate(
        [("10MB", ["model.safetensors"]), ("10kB", SHARDS), ("20kB", None), ("10kB", SHARDS), ("10MB", None)]
    ):
        statedict.save(tree(number), tmp_path, max_shard_size=size)
        assert wanted is None or names(tmp_path) == wanted
        assert statedict.load(tmp_path)["w0"].tolist()[0] == number
        report = statedict.verify(tmp_path)
        assert (report.problems, report.unread) == ((), ())
    assert names(tmp_path) == ["model.safetensors"]


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    others = ["config.json", "model.fp16.safetensors", "model-best.safetensors", "adapter_model.safetensors"]
    for name in others:
        (tmp_path / name).write_text("{}")
    statedict.save(tree(0.0), tmp_path, max_shard_size="10kB")
    statedict.save(tree(1), f"{tmp_path}/")
    assert names(tmp_path) == sorted(["model.safetensors", *others])


def test_without_overwriting_a_checkpoint_with_other_files_stays(tmp_path: Path) -> None:
    for first, second in (("10kB", "10MB"), ("10MB", "10kB"), ("10kB", "20kB")):
        folder = tmp_path / f"{first}-{second}"
        statedict.save(tree(0.0), folder, max_shard_size=first)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(ExistingFileError, match="overwrite is off"):
            statedict.save(tree(1), folder, max_shard_size=second, overwrite=False)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_shards_that_are_read_are_replaced_by_what_is_made_of_them(tmp_path: Path) -> None:
    statedict.save(tree(1), tmp_path, max_shard_size="10kB")
    statedict.edit(tmp_path, f"{tmp_path}/", [{"cast": "float32"}])
    assert names(tmp_path) == ["model.safetensors"]
    assert statedict.load(tmp_path)["w3"].tolist()[0] == 4
    statedict.convert(tmp_path, tmp_path, max_shard_size="10kB")
    assert len(names(tmp_path)) > 2
    assert statedict.load(tmp_path)["w3"].tolist()[0] == 4


def test_weights_of_another_format_are_replaced_unless_they_are_only_converted(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path / "pytorch_model.bin")
    statedict.convert(tmp_path / "pytorch_model.bin", f"{tmp_path}/")
    assert names(tmp_path) == ["model.safetensors", "pytorch_model.bin"]
    (tmp_path / "model.safetensors").unlink()
    statedict.save(tree(1), tmp_path, max_shard_size="10kB")
    assert "pytorch_model.bin" in names(tmp_path)
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 1
    for path in tmp_path.glob("model*"):
        path.unlink()
    statedict.edit(tmp_path, f"{tmp_path}/", [{"cast": "float32"}])
    assert names(tmp_path) == ["model.safetensors"]


def test_shards_of_ranks_that_are_gone_go(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path, format="distributed", max_shard_size="10kB")
    assert len(names(tmp_path)) == 5
    statedict.save(tree(1), tmp_path, format="distributed")
    assert names(tmp_path) == [".metadata", "__0_0.distcp"]
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 1


def test_a_model_is_not_written_where_another_file_would_still_be_opened(tmp_path: Path) -> None:
    statedict.save(tree(0.0), tmp_path, format="distributed")
    with pytest.raises(ExistingFileError, match=r".metadata: is another checkpoint, by which that folder"):
        statedict.save(tree(1), tmp_path, format="safetensors", max_shard_size="10kB")
    assert statedict.load(tmp_path)["w0"].tolist()[0] == 0


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
