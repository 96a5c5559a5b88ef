"""Folders of several models: of diffusers and of sentence-transformers, laid out as these save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import statedict
from statedict.errors import CorruptFileError, FormatError, UnknownFormatError

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]


def put(folder: Path, name: str, value: float) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2, 3), float(value))}, file)


def pipeline(folder: Path, index: Any = INDEX) -> Path:
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    put(folder, "text_encoder/model.safetensors", 1)
    put(folder, "unet/diffusion_pytorch_model-00001-of-00001.safetensors", 2)
    weight_map = {"w": "diffusion_pytorch_model-00001-of-00001.safetensors"}
    text = json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map})
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    return folder


def test_a_pipeline_of_diffusers_is_a_dict_of_its_models(tmp_path: Path) -> None:
    folder = pipeline(tmp_path)
    for path in (folder, folder / "model_index.json"):
        state = statedict.load(path)
        assert {name: tensor.numpy().max() for name, tensor in state.tensors().items()} == {
            "text_encoder.w": 1,
            "unet.w": 2,
        }
        assert state.metadata["_class_name"] == "StableDiffusionPipeline"
    report = statedict.verify(folder)
    assert report.problems == ()
    assert report.tensors == 2
    assert report.unread == ()
    assert statedict.load(f"{folder}::unet")["w"].shape == (2, 3)
    statedict.convert(folder, tmp_path / "all.safetensors")
    assert statedict.diff(folder, tmp_path / "all.safetensors").identical == 2


def test_the_modules_of_sentence_transformers_open_by_their_list(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(MODULES, indent=2))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    put(tmp_path, "model.safetensors", 1)
    put(tmp_path, "2_Dense/model.safetensors", 2)
    assert list(statedict.load(tmp_path)) == ["w"]
    state = statedict.load(tmp_path / "modules.json")
    assert {name: tensor.numpy().max() for name, tensor in state.tensors().items()} == {
        "Transformer.w": 1,
        "2_Dense.w": 2,
    }


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (INDEX | {"../outside": ["diffusers", "X"]}, FormatError, "outside of the folder; refused"),
        (
            {"_class_name": "A", "scheduler": ["diffusers", "B"]},
            UnknownFormatError,
            "none of its components has weights",
        ),
        ([{"idx": 0, "name": "0"}], CorruptFileError, "a module without a path or a type"),
        ({"_class_name": "A", "x": "[", "y": "diffusers"}, FormatError, "names 0 components|JSON text"),
        (INDEX | {f"x{n}": ["diffusers", "X"] for n in range(200)}, CorruptFileError, "names 204 components"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(
    index: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        statedict.load(pipeline(tmp_path, index) / "model_index.json", format="pipeline")
    assert str(tmp_path) in str(caught.value)


def test_damage_in_a_component_is_found(tmp_path: Path) -> None:
    folder = pipeline(tmp_path)
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    report = statedict.verify(folder)
    assert not report.ok
    assert "text_encoder" in str(report)
