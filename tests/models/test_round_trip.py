"""Models of timm, transformers and PyTorch: saved from one side of a wrapper, restored on the other, bit for bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.tensor.lazy import as_lazy
from statedict.testing.same import assert_same

from . import of_timm, of_torch, of_transformers
from .architecture import WRAPS

ARCHITECTURES = {
    f"{library}: {name}": architecture
    for library, module in (("timm", of_timm), ("transformers", of_transformers), ("torch", of_torch))
    for name, architecture in module.ARCHITECTURES.items()
}
TWO_SHAPES = "torch: two shapes of one weight"  # in safetensors they have other bytes, so there they are no tie
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),  # its checkpoints remain
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),  # its checkpoints remain
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max"),  # PyTorch's own default settings
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # it is slower, no more
]
WAYS = [("compiled", "plain"), ("plain", "compiled"), ("parallel", "plain"), ("plain", "parallel")]


def ties(places: Mapping[str, Hashable]) -> list[list[str]]:
    """The names that stand for one place."""
    names = defaultdict(list)
    for name, place in places.items():
        names[place].append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def in_memory(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in state.items() if tensor.numel()}


def in_file(state: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    lazy = {name: as_lazy(tensor) for name, tensor in state.items()}
    return {name: (t.storage.key, t.storage.offset + t.offset) for name, t in lazy.items() if t.numel()}


def test_there_are_sixty_architectures_and_more() -> None:
    assert len(ARCHITECTURES) >= 60


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("way", WAYS, ids=" to ".join)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_model_comes_back_bit_for_bit_whatever_wraps_it(
    name: str, way: tuple[str, str], suffix: str, tmp_path: Path
) -> None:
    architecture, path = ARCHITECTURES[name], tmp_path / f"model{suffix}"
    model, fresh = architecture.used(seed=1), architecture.made(seed=2)
    saved, target = WRAPS[way[0]](model), WRAPS[way[1]](fresh)
    statedict.save(saved, path)
    assert_same(statedict.load(path), statedict.capture(saved))
    if name != TWO_SHAPES or suffix == ".pth":
        assert ties(in_file(statedict.load(path))) == ties(in_memory(saved.state_dict()))

    own, state = fresh.state_dict(), model.state_dict()
    floats = [key for key, value in own.items() if value.is_floating_point() and value.numel()]
    assert not [key for key in floats if torch.equal(own[key], state[key])]
    report = statedict.restore(target, path)
    assert len(report.paths("restored")) + len(report.paths("tied")) == len(own)
    assert_same(fresh.state_dict(), state)
    assert ties(in_memory(fresh.state_dict())) == ties(in_memory(state))
    assert_same(architecture.outputs(fresh), architecture.outputs(model))
