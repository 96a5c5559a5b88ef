"""States that a model's own loading translates or resizes: what PyTorch's load_state_dict makes of them is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from torch.nn.utils import parametrize

import statedict
from statedict.testing.same import assert_same

from . import of_torch, of_transformers
from .architecture import WRAPS, Architecture

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),  # its checkpoints remain
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),  # its checkpoints remain
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max"),  # PyTorch's own default settings
]
OLD_NORM, NEW_NORM = (of_torch.ARCHITECTURES[name] for name in ("old weight norm", "weight norm"))
BY_CHANNEL, OBSERVED = (
    of_torch.ARCHITECTURES[name] for name in ("quantization-aware, by channel", "observed for quantization")
)
WAV2VEC2 = of_transformers.ARCHITECTURES["wav2vec2"]


def published() -> nn.Module:
    """As wav2vec2 was when its weights were published: before weight_norm was a parametrization."""
    model = WAV2VEC2.used(seed=1)
    layer = model.wav2vec2.encoder.pos_conv_embed.conv
    nn.utils.weight_norm(parametrize.remove_parametrizations(layer, "weight"), dim=2)
    return model


# what a model is, the saved one, the one to restore
CASES: dict[str, tuple[Architecture, Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "old weight norm": (NEW_NORM, lambda: OLD_NORM.used(seed=1), lambda: NEW_NORM.made(seed=2)),
    "old weight norm of wav2vec2": (WAV2VEC2, published, lambda: WAV2VEC2.made(seed=2)),
    "observed into new": (BY_CHANNEL, lambda: BY_CHANNEL.used(seed=1), lambda: BY_CHANNEL.made(seed=2)),
    "new into observed": (BY_CHANNEL, lambda: BY_CHANNEL.made(seed=1), lambda: BY_CHANNEL.used(seed=2)),
    "histograms": (OBSERVED, lambda: OBSERVED.used(seed=1), lambda: OBSERVED.made(seed=2)),
    "histograms, new into observed": (OBSERVED, lambda: OBSERVED.made(seed=1), lambda: OBSERVED.used(seed=2)),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrap", list(WRAPS))
@pytest.mark.parametrize("case", list(CASES))
def test_a_state_is_translated_as_pytorch_translates_it(case: str, wrap: str, suffix: str, tmp_path: Path) -> None:
    architecture, saved, made = CASES[case]
    model, reference, fresh = saved(), made(), made()
    reference.load_state_dict(model.state_dict())
    statedict.save(WRAPS[wrap](model), tmp_path / f"state{suffix}")
    statedict.restore(fresh, tmp_path / f"state{suffix}")
    assert_same(fresh.state_dict(), reference.state_dict())
    assert_same(architecture.outputs(fresh), architecture.outputs(model))


def test_a_model_that_takes_over_the_tensors_of_its_state_leaves_a_capture_as_it_was() -> None:
    state = statedict.capture(OBSERVED.used(seed=1))
    before = {name: tensor.clone() for name, tensor in state.items()}
    fresh = OBSERVED.made(seed=2)
    statedict.restore(fresh, state)
    for tensor in fresh.state_dict().values():
        tensor.add_(1)
    assert all(state[name].equal(tensor) for name, tensor in before.items())
