"""Checkpoints in several files with an index, and the folders of Hugging Face that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import statedict
from statedict.testing.same import assert_same

TREE = {f"layers.{i}.weight": torch.arange(6.0).reshape(2, 3) + i for i in range(4)}


def shards(folder: Path, suffix: str = ".safetensors") -> Path:
    """Two files with two tensors each, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = list(TREE)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002{suffix}"
        tensors = {name: TREE[name] for name in part}
        if suffix == ".safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}{suffix}.index.json"
    write(index, {name: weight_map[name] for name in names})
    return index


def write(index: Path, weight_map: Any) -> None:
    index.write_text(json.dumps({"metadata": {"total_size": 96, "note": "x"}, "weight_map": weight_map}, indent=2))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_shards_read_as_one_in_the_order_of_the_index(suffix: str, tmp_path: Path) -> None:
    index = shards(tmp_path / "m", suffix)
    for path in (index, index.parent):
        state = statedict.load(path)
        assert_same(state, TREE)
        assert state.metadata == {"note": "x"}


def test_an_index_is_known_by_its_content_also_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = shards(tmp_path / "m").rename(tmp_path / "m" / "anything")
    assert_same(statedict.load(index), TREE)
    monkeypatch.chdir(index.parent)
    assert_same(statedict.load("anything"), TREE)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "model.fp16.safetensors",
     "pytorch_model.fp16.bin", "consolidated.safetensors"],
)  # fmt: skip
def test_a_folder_with_one_file_of_weights_opens_as_that_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    (tmp_path / "tokenizer.json").write_text("{}")
    statedict.save(TREE, tmp_path / name)
    assert_same(statedict.load(tmp_path), TREE)


def test_a_folder_prefers_safetensors_to_pickles(tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    statedict.save({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert statedict.load(tmp_path)["w"].item() == 0


def test_the_only_index_of_another_name_opens_the_folder_and_two_are_ambiguous(tmp_path: Path) -> None:
    index = shards(tmp_path / "m")
    index.rename(index.with_name("unet.fp16.index.json"))
    assert_same(statedict.load(tmp_path / "m"), TREE)
    write(tmp_path / "m" / "vae.index.json", {})
    with pytest.raises(
        statedict.errors.UnknownFormatError, match=r"has several: unet\.fp16\.index\.json, vae\.index\.json"
    ):
        statedict.load(tmp_path / "m")


def test_the_index_of_a_variant_opens_the_folder(tmp_path: Path) -> None:
    index = shards(tmp_path / "m")
    index.rename(index.with_name("model.safetensors.index.fp16.json"))
    assert_same(statedict.load(tmp_path / "m"), TREE)


def test_several_variants_are_ambiguous_and_a_lone_shard_is_none(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.fp32.safetensors"):
        statedict.save(TREE, tmp_path / name)
    with pytest.raises(
        statedict.errors.UnknownFormatError, match=r"has several: model\.fp16\.safetensors, model\.fp32"
    ):
        statedict.load(tmp_path)
    for name in ("model.fp16.safetensors", "model.fp32.safetensors"):
        (tmp_path / name).unlink()
    statedict.save(TREE, tmp_path / "model.fp16-00001-of-00002.safetensors")
    with pytest.raises(statedict.errors.UnknownFormatError, match="shards without their index"):
        statedict.load(tmp_path)


def test_a_folder_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        statedict.errors.UnknownFormatError, match=r"is a folder without .*holds notes\.txt; name the file"
    ):
        statedict.load(tmp_path)


def test_missing_shards_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path / "m")
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        statedict.errors.FileError, match=r"model-00002-of-00002.*missing, with 0 more of 2 shards"
    ) as caught:
        statedict.load(index)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path / "m")
    weight_map = json.loads(index.read_text())["weight_map"]
    write(index, weight_map | {"extra.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(statedict.errors.CorruptFileError, match=r"says that 'extra\.weight' is in model-00001"):
        statedict.load(index)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "link", "sub/../../outside.safetensors", ""])
def test_a_shard_outside_of_the_folder_is_refused(file: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside.safetensors")
    write(folder / "model.safetensors.index.json", {"w": file})
    with pytest.raises(statedict.errors.FormatError, match="outside of the folder; refused"):
        statedict.load(folder)


def test_a_folder_whose_weights_are_a_link_out_of_it_is_refused_but_the_file_opens(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(statedict.errors.FormatError, match="refused, open that file by itself"):
        statedict.load(tmp_path / "m")
    assert statedict.load(tmp_path / "m" / "model.safetensors")["w"].item() == 1


def test_the_links_of_a_hugging_face_cache_lead_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    repository = tmp_path / "models--x--y"
    snapshot = repository / "snapshots" / "abc123"
    index = shards(snapshot)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(repository / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert_same(statedict.load(snapshot), TREE)
    assert_same(statedict.load(index), TREE)
    shard = snapshot / "model-00001-of-00002.safetensors"
    (repository / "refs").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to("../../refs")
    with pytest.raises(statedict.errors.FormatError, match="refused"):
        statedict.load(snapshot)


def test_an_index_that_names_itself_or_another_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors.index.json", {"w": "model.safetensors.index.json"})
    with pytest.raises(statedict.errors.FormatError, match="one deep"):
        statedict.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": []}', '{"weight_map": {"a": 1}}'],
)
def test_an_index_that_is_none_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(statedict.errors.CorruptFileError, match="is JSON but not an index of shards"):
        statedict.load(tmp_path / "x.index.json")


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": ',
        '{"weight_map": {"a": "b"}} x',
        '{"weight_map": {"a": "b", "a": "c"}}',
        '{"weight_map": {"a": "b"}, "weight_\\u006dap": {"a": "c"}}',
        '{"weight_map": {"\\ud800": "b"}}',
        '{"weight_map": {"a": "b"}, "metadata": {"total_size": NaN}}',
    ],
)
def test_an_index_that_readers_could_read_differently_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(statedict.errors.CorruptFileError, match=r"x\.index\.json is not JSON"):
        statedict.load(tmp_path / "x.index.json")
