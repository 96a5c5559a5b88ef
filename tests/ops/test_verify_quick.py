"""`verify(quick=True)`: what is wrong with the structure is found, and no byte of a tensor is read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import statedict

from .. import dcp


def saved(folder: Path, kind: str) -> tuple[Path, Path]:
    """A checkpoint with 4 MB of tensors, and its file which holds them."""
    tensors = {"a": torch.full((1000, 500), 7.0), "b": torch.full((1000, 500), 7.0), "c": torch.ones(3)}
    if kind == "shards":
        statedict.save(tensors, folder / "shards", max_shard_size="3MB")
        return folder / "shards", folder / "shards" / "model-00001-of-00002.safetensors"
    if kind == "distributed":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(tensors, folder / "dcp")
        return folder / "dcp", next((folder / "dcp").glob("*.distcp"))
    path = folder / f"x.{kind.split()[-1]}"
    if kind == "torch.save pth":
        torch.save(tensors, path)
    elif kind == "legacy pt":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif kind == "foreign safetensors":
        save_file(tensors, path)
    else:
        statedict.save(tensors, path)
    return path, path


KINDS = ["pth", "safetensors", "torch.save pth", "legacy pt", "foreign safetensors", "shards", "distributed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_of_a_tensor_is_not_looked_for(tmp_path: Path, kind: str) -> None:
    path, file = saved(tmp_path, kind)
    data = bytearray(file.read_bytes())
    data[data.index(torch.full((1000,), 7.0).numpy().tobytes()) + 1002] ^= 1
    file.write_bytes(data)
    report = statedict.verify(path, quick=True)
    assert report.ok, report
    assert report.nbytes < 100_000
    assert (report.tensors, report.notes[-1][:15]) == (3, "structure only:")
    whole = statedict.verify(path)
    assert whole.nbytes > 4_000_000
    assert whole.ok == (kind in ("legacy pt", "foreign safetensors"))
    assert whole.parts == report.parts


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_short_is_found(tmp_path: Path, kind: str) -> None:
    path, file = saved(tmp_path, kind)
    file.write_bytes(file.read_bytes()[:-1000])
    assert not statedict.verify(path, quick=True).ok


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("safetensors", b'"F32"', b'"I32"'),  # the digest of the header
        ("foreign safetensors", b"[1000,500]", b"[1000,501]"),
        ("pth", b"PK\3\4", b"PK\3\5"),
        ("torch.save pth", b"FloatStorage", b"HalfStorage\n"),  # the CRC-32 of the pickle
    ],
)
def test_a_damaged_header_is_found(tmp_path: Path, kind: str, old: bytes, new: bytes) -> None:
    path, _ = saved(tmp_path, kind)
    data = path.read_bytes()
    at = data.rindex(old)
    path.write_bytes(data[:at] + new + data[at + len(old) :])
    report = statedict.verify(path, quick=True)
    assert not report.ok
    assert json.dumps(report.to_json())


def test_a_shard_that_lacks_a_tensor_of_the_index_is_found(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "shards")
    index: Any = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["absent"] = "model-00001-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not statedict.verify(path, quick=True).ok


def test_values_cannot_be_counted_without_reading_them(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "safetensors")
    with pytest.raises(ValueError, match="ask for one of them"):
        statedict.verify(path, quick=True, values=True)
