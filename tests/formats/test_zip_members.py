"""Ordinary zip archives that hold checkpoints."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import statedict
from statedict.testing.same import assert_same
from statedict.values import Opaque


def by_torch(tree: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


POLICY = {"mlp.weight": torch.arange(12.0).reshape(3, 4), "mlp.bias": torch.ones(3, dtype=torch.float64)}
MEMBERS = {
    "data": json.dumps({"policy_class": {":serialized:": "gASV"}, "gamma": 0.99}).encode(),
    "pytorch_variables.pth": by_torch(None),
    "policy.pth": by_torch(POLICY),
    "policy.optimizer.pth": by_torch({"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}),
    "_stable_baselines3_version": b"2.3.0",
    "system_info.txt": b"- OS: Linux",
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_zip_of_stable_baselines_opens_as_the_tree_of_its_members(compression: int, tmp_path: Path) -> None:
    state = statedict.load(pack(tmp_path / "model.zip", MEMBERS, compression))
    assert list(state) == list(MEMBERS)
    assert_same(state["policy.pth"], POLICY)
    assert state["policy.optimizer.pth"]["param_groups"][0]["lr"] == 0.1
    assert state.at("policy.pth.mlp.weight").torch().sum() == 66
    assert state["_stable_baselines3_version"] == "2.3.0"
    assert json.loads(state["data"])["gamma"] == 0.99
    assert state["pytorch_variables.pth"] is None


def test_members_of_every_kind_open_and_the_rest_is_named(tmp_path: Path) -> None:
    members = {
        "folder/": b"",
        "folder/w.safetensors": safetensors.torch.save(POLICY),
        "legacy.pt": by_torch(POLICY, _use_new_zipfile_serialization=False),
        "noise": bytes(range(256)),
    }
    state = statedict.load(pack(tmp_path / "x.zip", members))
    assert_same({name: state["folder/w.safetensors"][name] for name in POLICY}, POLICY)
    assert_same(state["legacy.pt"], POLICY)
    assert state["noise"] == Opaque("a file of 256 bytes")
    assert "folder/" not in state


def test_archives_within_archives_are_named_and_not_entered(tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner.zip", {"policy.pth": by_torch(POLICY)}).read_bytes()
    state = statedict.load(pack(tmp_path / "outer.zip", {"w.pth": by_torch(POLICY), "inner.zip": inner}))
    assert isinstance(state["inner.zip"], Opaque)
    assert_same(state["w.pth"], POLICY)


def test_an_index_in_an_archive_opens_no_file_beside_the_archive(tmp_path: Path) -> None:
    safetensors.torch.save_file(POLICY, tmp_path / "secret.safetensors")
    index = json.dumps({"weight_map": {"mlp.bias": "secret.safetensors"}}).encode()
    state = statedict.load(pack(tmp_path / "x.zip", {"m.index.json": index, "w.pth": by_torch({})}))
    assert state["m.index.json"] == index.decode()
    with pytest.raises(statedict.errors.UnknownFormatError, match="without a checkpoint among its members"):
        statedict.load(pack(tmp_path / "y.zip", {"m.index.json": index}))


@pytest.mark.parametrize("members", [{}, {"readme.txt": b"hello"}, {"a": b"", "b": bytes(10)}])
def test_a_zip_without_a_checkpoint_is_none(members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnknownFormatError, match="without a checkpoint among its members; it holds"):
        statedict.load(pack(tmp_path / "x.zip", members))


def test_members_that_unpack_to_very_much_are_named_and_not_unpacked(tmp_path: Path) -> None:
    members = {"w.pth": by_torch(POLICY), "bomb": b"PK\3\4" + bytes(90 << 20), "later.pth": by_torch(POLICY)}
    state = statedict.load(pack(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED))
    assert state["bomb"] == Opaque(f"a file of {len(members['bomb']):,} bytes")
    assert_same(state["w.pth"], POLICY)


def test_a_damaged_member_does_not_hide_the_others(tmp_path: Path) -> None:
    broken = by_torch(POLICY)[:-40]
    state = statedict.load(pack(tmp_path / "x.zip", {"broken.pth": broken, "w.pth": by_torch(POLICY)}))
    assert isinstance(state["broken.pth"], Opaque)
    assert_same(state["w.pth"], POLICY)
