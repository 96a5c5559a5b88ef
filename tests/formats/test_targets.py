"""Where a checkpoint is written, and as what: what a name says in save, convert and edit alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statedict
from statedict.errors import FormatError, UnsupportedError
from statedict.formats import detect
from statedict.io.source import FileSource

TREE = {"w": np.arange(6, dtype="f4"), "b": np.ones(2, "f4")}
Writer = Callable[..., Any]


def save(folder: Path, target: str, **options: Any) -> None:
    statedict.save(TREE, target, **options)


def convert(folder: Path, target: str, **options: Any) -> None:
    statedict.save(TREE, folder / "source.pth")
    statedict.convert(folder / "source.pth", target, **options)


def edit(folder: Path, target: str, **options: Any) -> None:
    statedict.save(TREE, folder / "source.pth")
    statedict.edit(folder / "source.pth", target, [{"rename": {"w": "v"}}], **options)


every_writer = pytest.mark.parametrize("write", [save, convert, edit])


def is_written_as(path: Path) -> str:
    return detect(FileSource(str(path)))


@every_writer
@pytest.mark.parametrize("suffix", [".onnx", ".npy", ".xyz", ".pt2", ".7b"])
def test_a_suffix_of_no_format_that_is_written_is_an_error_that_lists_those(
    write: Writer, suffix: str, tmp_path: Path
) -> None:
    target = tmp_path / f"x{suffix}"
    with pytest.raises(FormatError) as error:
        write(tmp_path, str(target))
    assert f"x{suffix}: " in str(error.value)
    for known in (
        ".pth",
        ".pt",
        ".bin",
        ".ckpt",
        ".safetensors",
        "torch, safetensors, npz, distributed, gguf, hdf5, keras-weights, flax",
    ):
        assert known in str(error.value)
    assert not target.exists()


@every_writer
def test_a_format_that_is_named_takes_any_suffix(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, str(tmp_path / "x.xyz"), format="torch")
    assert is_written_as(tmp_path / "x.xyz") == "torch"


@every_writer
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".PT", ""])
def test_the_suffixes_of_pytorch_and_a_bare_name_are_a_file_of_torch(
    write: Writer, suffix: str, tmp_path: Path
) -> None:
    write(tmp_path, str(tmp_path / f"x{suffix}"))
    assert is_written_as(tmp_path / f"x{suffix}") == "torch"


@every_writer
def test_a_name_that_ends_in_a_slash_is_a_folder_whatever_its_suffix(write: Writer, tmp_path: Path) -> None:
    for name in ("out/", "out-1.5/", "out.pth/"):
        write(tmp_path, str(tmp_path) + "/" + name)
        assert os.listdir(tmp_path / name) == ["model.safetensors"]
        assert statedict.load(str(tmp_path / name)).at("b").shape == (2,)


@every_writer
def test_a_format_of_one_file_makes_no_folder(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="out/: a folder is written as safetensors or distributed, not as torch"):
        write(tmp_path, f"{tmp_path}/out/", format="torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [save, convert])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.gguf"])
@pytest.mark.parametrize("options", [{"max_shard_size": "5GB"}, {"format": "distributed"}])
def test_a_folder_is_not_given_the_name_of_a_file(
    write: Writer, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=f"{name}: is the name of a file, and a folder is written; .*a/"):
        write(tmp_path, str(tmp_path / name), **options)
    assert not (tmp_path / name).exists()


def test_a_folder_may_have_a_version_in_its_name(tmp_path: Path) -> None:
    statedict.save(TREE, tmp_path / "model-1.5", max_shard_size="5GB")
    assert os.listdir(tmp_path / "model-1.5") == ["model.safetensors"]


def test_a_folder_that_is_there_is_written_into_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.pth").mkdir()
    statedict.save(TREE, tmp_path / "a.pth", max_shard_size="5GB")
    assert os.listdir(tmp_path / "a.pth") == ["model.safetensors"]


@pytest.mark.parametrize("options", [{"format": "distributed"}, {}])
def test_of_a_folder_a_bare_name_is_a_folder(options: Any, tmp_path: Path) -> None:
    statedict.save(TREE, f"{tmp_path}/source/", **options)
    statedict.convert(tmp_path / "source", tmp_path / "converted")
    statedict.edit(tmp_path / "source", tmp_path / "edited", [{"rename": {"w": "v"}}])
    for target in ("converted", "edited"):
        assert os.listdir(tmp_path / target) == ["model.safetensors"]
    assert list(statedict.load(tmp_path / "edited")) == ["v", "b"]


def test_of_a_folder_a_suffix_is_a_file(tmp_path: Path) -> None:
    statedict.save(TREE, f"{tmp_path}/source/")
    statedict.convert(tmp_path / "source", tmp_path / "x.pth")
    assert is_written_as(tmp_path / "x.pth") == "torch"


def test_a_dry_run_says_that_the_target_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x\.onnx: "):
        edit(tmp_path, str(tmp_path / "x.onnx"), dry_run=True)
