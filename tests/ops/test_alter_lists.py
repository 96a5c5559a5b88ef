"""A cast reaches tensors in lists and tuples, and no digest of other bytes survives a change."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

import statedict
from statedict.errors import PatternError

ONES = numpy.ones(3, "f4")


@pytest.mark.parametrize(
    "tree",
    [
        {"a": [ONES, ONES * 2], "w": ONES},
        {"a": (ONES, "text", None, 3)},
        {"a": {"b": [{"c": ONES, "d": (ONES,)}, [ONES]]}},
        {"a": [torch.ones(2)], 3: (torch.ones(2), [torch.ones(1)])},
        {"a": [ONES, numpy.arange(3)]},
    ],
)
def test_a_cast_reaches_tensors_in_lists_and_tuples(tree: dict[Any, Any], tmp_path: Path) -> None:
    statedict.save(tree, tmp_path / "a.pth")
    report = statedict.edit(tmp_path / "a.pth", tmp_path / "b.pth", {"cast": "bf16"})
    before, after = statedict.load(tmp_path / "a.pth"), statedict.load(tmp_path / "b.pth")
    floats = [path for path, tensor in before.tensors().items() if tensor.dtype.kind == "float"]
    assert {*report.changes[0].altered} == {*floats}
    loaded = torch.load(tmp_path / "b.pth")
    assert [*map(type, loaded.values())] == [*map(type, torch.load(tmp_path / "a.pth", weights_only=False).values())]
    for path, tensor in after.tensors().items():
        assert tensor.dtype.name == ("bfloat16" if path in floats else "int64")
        assert tensor.numpy().astype("f4").tolist() == before.tensors()[path].numpy().tolist()
    assert [*before.flatten()] == [*after.flatten()]


def test_a_pattern_takes_some_of_a_list_and_one_that_matches_nothing_is_an_error() -> None:
    state = statedict.StateDict({"a": [ONES, ONES], "w": ONES})
    found = statedict.alter.cast(state, "fp16", "a.1").tensors()
    assert {path: tensor.dtype.name for path, tensor in found.items()} == {
        "a.0": "float32", "a.1": "float16", "w": "float32",
    }  # fmt: skip
    assert state["a"][1] is ONES
    with pytest.raises(PatternError, match="no tensor of 3 matches 'b'"):
        statedict.alter.cast(state, "fp16", "b")


def test_tied_tensors_in_lists_stay_tied(tmp_path: Path) -> None:
    weight = torch.ones(2)
    torch.save({"w": weight, "a": [weight, weight]}, tmp_path / "a.pth")
    statedict.edit(tmp_path / "a.pth", tmp_path / "b.pth", {"cast": "bf16"})
    loaded = torch.load(tmp_path / "b.pth")
    assert loaded["w"].data_ptr() == loaded["a"][0].data_ptr() == loaded["a"][1].data_ptr()


def test_an_optimizer_in_a_list_keeps_its_step_counts(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}, tmp_path / "a.ckpt")
    statedict.edit(tmp_path / "a.ckpt", tmp_path / "b.ckpt", {"cast": "bf16"})
    state = torch.load(tmp_path / "b.ckpt")["optimizer_states"][0]["state"][0]
    assert (state["step"].dtype, state["exp_avg"].dtype) == (torch.float32, torch.bfloat16)


def hashes_of_kohya(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """As `precalculate_safetensors_hashes` of sd-scripts: of the file without its header, and of 64 kB at 1 MB."""
    data = safetensors.torch.save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(data[:8], "little")
    old = BytesIO(data)
    old.seek(0x100000)
    return hashlib.sha256(data[start:]).hexdigest(), hashlib.sha256(old.read(0x10000)).hexdigest()[:8]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors = {f"lora_unet_{i}.lora_{side}.weight": torch.randn(4, 8) for i in range(3) for side in ("up", "down")}
    metadata = {"ss_network_dim": "4", "modelspec.title": "mine"}
    new, old = hashes_of_kohya(tensors, metadata)
    metadata |= {"sshs_model_hash": new, "sshs_legacy_hash": old, "modelspec.hash_sha256": "0x" + new}
    safetensors.torch.save_file(tensors, tmp_path / "lora.safetensors", metadata)
    return tmp_path / "lora.safetensors"


def read_metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))


@pytest.mark.parametrize("step", [{"cast": "bf16"}, {"drop": "*up*"}, {"rename": {"lora_unet_0.*": "x.*"}}])
def test_a_change_drops_digests_of_the_bytes_before_and_says_so(step: dict[str, Any], lora: Path) -> None:
    after = lora.with_name("after.safetensors")
    report = statedict.edit(lora, after, step)
    kept = read_metadata(after)
    assert {key: kept[key] for key in ("ss_network_dim", "modelspec.title")} == {
        "ss_network_dim": "4", "modelspec.title": "mine",
    }  # fmt: skip
    assert not {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"} & {*kept}
    for text in (str(report), json.dumps(report.to_json()), report._repr_html_()):
        assert "sshs_model_hash, sshs_legacy_hash, modelspec.hash_sha256" in text
    statedict.edit(lora, None, step)
    assert "sshs_model_hash" not in read_metadata(lora)


def test_python_drops_them_too_and_leaves_its_argument_alone(lora: Path) -> None:
    state = statedict.load(lora)
    assert "sshs_model_hash" not in statedict.alter.cast(state, "bf16").metadata
    assert "sshs_model_hash" in state.metadata


def test_without_a_change_they_stay(lora: Path) -> None:
    after = lora.with_name("after.safetensors")
    report = statedict.edit(lora, after, {"cast": "fp32"})
    assert read_metadata(lora).items() <= read_metadata(after).items()
    assert report.notes == ()
    statedict.convert(lora, lora.with_name("copy.safetensors"))
    assert read_metadata(lora).items() <= read_metadata(lora.with_name("copy.safetensors")).items()
