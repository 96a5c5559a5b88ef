"""Folders of adapters and of models: neither is written into the other, and each is read as what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statedict
from statedict import lora
from statedict.api.combine import average_files
from statedict.api.lora import apply_files, extract_files
from statedict.errors import CombineError

BASE = {"fc.weight": np.ones((6, 4), "f4"), "x.weight": np.ones(3, "f4")}
NAME = "base_model.model.fc.lora_{}.weight"
FACTORS = {NAME.format("A"): np.ones((2, 4), "f4"), NAME.format("B"): np.ones((6, 2), "f4")}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter, tmp_path / "tuned"):
        folder.mkdir()
    statedict.save(BASE, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "x"}))
    statedict.save(FACTORS, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return base, adapter


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_model_is_written_into_the_folder_of_an_adapter(folders: tuple[Path, Path], overwrite: bool) -> None:
    base, adapter = folders
    before = bytes_of(adapter)
    for write in (
        lambda **how: apply_files(base, [adapter], adapter, **how),
        lambda **how: average_files([base, base], adapter, **how),
    ):
        for dry_run in (False, True):
            with pytest.raises(CombineError, match=r"has an adapter \(adapter_config\.json\)"):
                write(overwrite=overwrite, dry_run=dry_run)
    assert bytes_of(adapter) == before


def test_the_file_of_an_adapter_is_not_replaced_by_the_model(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    before = bytes_of(adapter)
    for source in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(CombineError, match="would be replaced by the model; write to another file"):
            apply_files(base, [source], adapter / "adapter_model.safetensors")
    assert bytes_of(adapter) == before


def test_no_adapter_is_written_into_the_folder_of_a_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = folders
    tuned: dict[str, Any] = BASE | {"fc.weight": BASE["fc.weight"] + 1}
    statedict.save(tuned, tmp_path / "tuned" / "model.safetensors")
    before = bytes_of(base)
    for folder in (base, tmp_path / "tuned"):
        with pytest.raises(CombineError, match="is the folder of a model"):
            extract_files(base, tmp_path / "tuned", folder, 1)
    assert bytes_of(base) == before


def test_a_folder_that_has_a_model_beside_the_adapter_is_read_as_the_adapter(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    statedict.save(BASE, adapter / "model.safetensors")
    assert lora.show(adapter).modules[0].rank == 2
    assert lora.apply(base, adapter)["fc.weight"].numpy().max() == 3
