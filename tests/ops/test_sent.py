"""Whatever was done to a tensor, it can be sent to another process, where it gives the same bytes."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statedict
from statedict import alter
from statedict.io.source import BytesSource, ComputedSource, FileSource, Slice
from statedict.io.zip import Inflated, Record, read_directory
from statedict.tree.state_dict import StateDict

from .. import dcp

STEPS: dict[str, Any] = {
    "nothing": lambda state: state,
    "cast": lambda state: alter.cast(state, "bf16"),
    "transpose": lambda state: alter.transpose(state, "w"),
    "reshape": lambda state: alter.reshape(state, "w", [-1]),
    "slice": lambda state: alter.slice(state, "w", (slice(None), slice(1, 5, 2))),
    "pad": lambda state: alter.pad(state, "w", [20, 30], 1.5),
    "split": lambda state: alter.split(state, "w", ["a", "b"], 1),
    "fuse": lambda state: alter.fuse(state, ["w", "v"], "x", 1),
    "fuse, transpose, cast": lambda state: alter.cast(
        alter.transpose(alter.fuse(state, ["w", "v"], "x", 1), "x"), "fp16"
    ),
    "tie": lambda state: alter.tie(state, {"v": "w"}),
    "rename": lambda state: alter.rename(state, {"w": "x"}),
    "set": lambda state: alter.set(state, "y", 3),
}


def same(state: Any, sent: Any) -> None:
    assert list(sent) == list(state)
    for (path, one), other in zip(state.tensors().items(), sent.tensors().values(), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        assert bytes(one.raw()) == bytes(other.raw()), path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("step", STEPS)
def test_what_an_operation_made_is_the_same_elsewhere(tmp_path: Path, step: str, suffix: str) -> None:
    tensors = {"w": torch.randn(12, 8), "v": torch.randn(12, 8)}
    torch.save(tensors, tmp_path / "in.pth")
    statedict.convert(tmp_path / "in.pth", tmp_path / f"x{suffix}")
    state = STEPS[step](statedict.load(tmp_path / f"x{suffix}"))
    data = pickle.dumps(state)
    same(state, pickle.loads(data))
    assert len(data) < 4000  # where the bytes are, not the bytes
    small = pickle.dumps(next(iter(state.tensors().values())))
    assert bytes(pickle.loads(small).raw()) == bytes(next(iter(state.tensors().values())).raw())


@pytest.mark.parametrize(
    "tensors",
    [
        {"conjugate": torch.tensor([1 + 2j, 3j]).conj(), "negative": torch.tensor([1 + 2j, 3j]).conj().imag},
        {"view": torch.arange(60.0).reshape(6, 10)[1:5, ::3], "turned": torch.arange(60.0).reshape(6, 10).T},
        {"repeated": torch.arange(3.0).expand(4, 3)},
    ],
    ids=lambda tensors: next(iter(tensors)),
)
def test_tensors_of_torch_of_every_layout_are_the_same_elsewhere(tmp_path: Path, tensors: Any) -> None:
    torch.save(tensors, tmp_path / "x.pth")
    state = statedict.load(tmp_path / "x.pth")
    same(state, pickle.loads(pickle.dumps(state)))
    altered = StateDict({name: tensor.contiguous() for name, tensor in state.items()})
    same(altered, pickle.loads(pickle.dumps(altered)))


def test_chunks_of_a_distributed_checkpoint_are_put_together_elsewhere(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(6, 4), "turned": torch.randn(6, 4).t(), "n": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, tmp_path / "dcp")
    state = statedict.load(tmp_path / "dcp")
    same(state, pickle.loads(pickle.dumps(state)))
    same(state, pickle.loads(pickle.dumps(state)))  # with chunks that were fetched


def test_live_arrays_go_along(tmp_path: Path) -> None:
    state = alter.cast(StateDict({"w": np.ones((2, 3), "f4")}), "fp64")
    same(state, pickle.loads(pickle.dumps(state)))


def sources(folder: Path) -> dict[str, Any]:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stored", b"0123456789" * 20, zipfile.ZIP_STORED)
        archive.writestr("deflated", b"0123456789" * 20, zipfile.ZIP_DEFLATED)
    file = FileSource(str(path))
    records = read_directory(file)
    assert isinstance(records["stored"], Record)
    assert isinstance(records["deflated"], Inflated)
    return {
        "file": file,
        "slice": Slice(file, 3, 100, "a slice"),
        "stored": records["stored"],
        "deflated": records["deflated"],
        "bytes": BytesSource(b"abc" * 9),
        "slice of a record": Slice(records["stored"], 5, 50),
        "computed": ComputedSource(30, file.readinto),
    }


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("name", ["file", "slice", "stored", "deflated", "bytes", "slice of a record", "computed"])
def test_every_source_is_the_same_elsewhere(tmp_path: Path, name: str, used: bool) -> None:
    source = sources(tmp_path)[name]
    if used:
        source.view()
        source.read(0, 3)
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.name, sent.size) == (source.name, source.size)
    assert bytes(sent.read(1, sent.size - 1)) == bytes(source.read(1, source.size - 1))


def test_a_file_that_changed_in_between_is_an_error_and_no_other_tensor(tmp_path: Path) -> None:
    statedict.save({"w": np.ones((2, 3), "f4")}, tmp_path / "x.safetensors")
    sent = pickle.dumps(alter.transpose(statedict.load(tmp_path / "x.safetensors"), "w"))
    statedict.save({"w": np.zeros((2, 3), "f4")}, tmp_path / "x.safetensors")
    with pytest.raises(statedict.errors.FileError, match="changed since it was loaded"):
        pickle.loads(sent)
