"""torch.nn.Module: names, ties, hooks, extra state, and every way in which a state can fail to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same, overlaps


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("cache", torch.zeros(9), persistent=False)
        self.register_parameter("absent", None)
        self.note = "no part of the state"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def state_of(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_capture_holds_the_parameters_and_persistent_buffers_and_nothing_else() -> None:
    block = Block()
    captured = statedict.capture(block)
    assert list(captured) == list(block.state_dict())
    assert "mask" in captured
    assert "norm.running_mean" in captured
    assert "cache" not in captured
    assert_same(captured, block.state_dict())
    assert captured._metadata == block.state_dict()._metadata


def test_a_state_that_the_model_captured_loads_with_plain_pytorch(tmp_path: Path) -> None:
    block, fresh = Block(), Block()
    statedict.save(block, tmp_path / "block.safetensors")
    fresh.load_state_dict(statedict.load(tmp_path / "block.safetensors"))
    assert_same(fresh.state_dict(), block.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tied_weights_are_captured_saved_and_restored_tied(suffix: str, tmp_path: Path) -> None:
    model, fresh = Tied(), Tied()
    captured = statedict.capture(model)
    assert len(overlaps(captured)) == 1
    statedict.save(captured, tmp_path / f"tied{suffix}")
    report = statedict.restore(fresh, tmp_path / f"tied{suffix}")
    assert report.counts() == {"restored": 1, "tied": 1}
    assert report.paths("tied") == ["head.weight"]
    assert fresh.head.weight is fresh.embed.weight
    assert_same(fresh.state_dict(), model.state_dict())


class WithExtra(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scale: Any = 1.0

    def get_extra_state(self) -> Any:
        return self.scale

    def set_extra_state(self, state: Any) -> None:
        self.scale = state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "extra",
    [2.5, {"a": [1, (2, None)]}, torch.arange(3), {"t": torch.ones(2), "d": torch.float16}],
    ids=lambda e: type(e).__name__,
)
def test_extra_state_of_any_kind_is_kept_and_given_back_as_torch_has_it(
    extra: Any, suffix: str, tmp_path: Path
) -> None:
    model, fresh = WithExtra(), WithExtra()
    model.scale = extra
    if isinstance(extra, torch.Tensor):
        fresh.scale = torch.zeros(7, 7)
    statedict.save({"m": model}, tmp_path / f"x{suffix}")
    statedict.restore({"m": fresh}, tmp_path / f"x{suffix}")
    assert type(fresh.scale) is type(extra)
    assert_same(fresh.scale, extra)
    if isinstance(extra, dict) and "d" in extra:
        assert fresh.scale["d"] is torch.float16


def test_the_hooks_of_a_module_run() -> None:
    seen: list[str] = []
    model, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    model.register_state_dict_pre_hook(lambda *_: seen.append("saving"))
    model.register_state_dict_post_hook(lambda _m, state, _p, _l: state.update(hooked=torch.ones(1)))
    fresh.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    fresh.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    captured = statedict.capture(model)
    assert list(captured) == ["weight", "bias", "hooked"]
    statedict.restore(fresh, captured, allow_unexpected=["hooked"])
    assert seen == ["saving", "loading", "loading", "loaded"]  # the first time for a twin, since names differ


def test_a_parameter_that_takes_its_shape_at_the_first_input_takes_it_from_the_state() -> None:
    model, fresh = nn.Linear(3, 2), nn.LazyLinear(2)
    report = statedict.restore(fresh, statedict.capture(model))
    assert fresh.weight.shape == (2, 3)
    assert torch.equal(fresh.weight, model.weight)
    assert "takes its shape (2, 3)" in str(report)


PROBLEMS = {
    "missing": (lambda state: state.pop("mask"), "missing", "mask", "the target has it, the state does not"),
    "unexpected": (
        lambda state: state.update(x=torch.ones(1)),
        "unexpected",
        "x",
        "the state has it, the target does not",
    ),
    "shape": (
        lambda state: state.update(weight=torch.ones(2, 3)),
        "shape",
        "weight",
        r"the state has \(2, 3\), the target \(3, 2\)",
    ),
    "dtype": (
        lambda state: state.update(weight=torch.ones(3, 2).half()),
        "dtype",
        "weight",
        "the state has float16, the target float32; pass cast=True",
    ),
    "no tensor": (
        lambda state: state.update(weight=3),
        "kind",
        "weight",
        "the target is a tensor, the state has a int",
    ),
}


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_what_does_not_fit_is_named_with_its_reason_and_nothing_is_written(name: str) -> None:
    change, action, path, reason = PROBLEMS[name]
    block = Block()
    before, state = state_of(block), statedict.capture(Block())
    change(state)
    with pytest.raises(statedict.errors.RestoreError, match=rf"nothing was written:\n  1 {action}: {path} \({reason}"):
        statedict.restore(block, state)
    assert all(torch.equal(block.state_dict()[key], tensor) for key, tensor in before.items())
    report = statedict.restore(block, state, dry_run=True)
    assert [(e.action, e.path) for e in report.problems] == [(action, path)]


def test_missing_and_unexpected_entries_are_accepted_by_pattern_and_reported() -> None:
    block, other = Block(), Block()
    state = statedict.capture(other)
    del state["norm.running_mean"], state["norm.weight"]
    state["head.weight"] = torch.ones(1)
    kept = block.norm.running_mean.clone()
    report = statedict.restore(block, state, allow_missing=["norm.*"], allow_unexpected=["head"])
    assert report.paths("missing") == ["norm.weight", "norm.running_mean"]
    assert report.paths("unexpected") == ["head.weight"]
    assert torch.equal(block.norm.running_mean, kept)
    assert torch.equal(block.weight, other.weight)
    remedy = r"allow_missing=\['norm\.weight', 'norm\.running_mean'\], allow_unexpected=\['head\.weight'\]"
    with pytest.raises(statedict.errors.RestoreError, match=remedy):
        statedict.restore(block, state, allow_missing=["head"], allow_unexpected=["norm"])


def test_a_pattern_allows_only_what_it_matches() -> None:
    state = statedict.capture(Block())
    del state["mask"], state["weight"]
    with pytest.raises(statedict.errors.RestoreError, match="1 missing: weight"):
        statedict.restore(Block(), state, allow_missing="mask")


def test_a_cast_is_done_when_asked_for_and_reported() -> None:
    block, other = Block(), Block()
    state = statedict.capture(other)
    state["weight"] = state["weight"].double()
    report = statedict.restore(block, state, cast=True)
    assert report.paths("cast") == ["weight"]
    assert "float64 → float32" in str(report)
    assert block.weight.dtype is torch.float32
    assert torch.equal(block.weight, other.weight)


def test_parameters_keep_their_identity_and_autograd_sees_the_change() -> None:
    layer = nn.Linear(2, 2)
    weight, loss = layer.weight, (layer(torch.ones(1, 2)) ** 2).sum()
    version = weight._version
    statedict.restore(layer, statedict.capture(nn.Linear(2, 2)))
    assert layer.weight is weight
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight._version > version
    hidden = nn.Linear(2, 1)(layer(torch.ones(1, 2)))
    hidden.sum().backward()
    assert weight.grad is not None
    twice = (weight * weight).sum()
    statedict.restore(layer, statedict.capture(nn.Linear(2, 2)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twice.backward()
    assert loss.item() >= 0


def test_a_model_restored_inside_no_grad_and_inference_mode_is_the_same() -> None:
    source = nn.Linear(2, 2)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        layer = nn.Linear(2, 2)
        with context:
            statedict.restore(layer, statedict.capture(source))
        assert torch.equal(layer.weight, source.weight)
        assert layer.weight.requires_grad


@pytest.mark.parametrize("layout", ["transposed", "channels last", "a view of one buffer"])
def test_parameters_of_any_layout_are_filled(layout: str, tmp_path: Path) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        module = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            if layout == "transposed":
                module.weight = nn.Parameter(torch.randn(3, 3, 3, 4).permute(3, 0, 1, 2))
            elif layout == "channels last":
                module = module.to(memory_format=torch.channels_last)
            else:
                flat = torch.randn(1000)
                module.weight = nn.Parameter(flat[7 : 7 + 108].view(4, 3, 3, 3))
        return module

    model, fresh = made(1), made(2)
    strides = fresh.weight.stride()
    statedict.save(model, tmp_path / "model.pth")
    statedict.restore(fresh, tmp_path / "model.pth")
    assert torch.equal(fresh.weight, model.weight)
    assert fresh.weight.stride() == strides


def test_a_whole_checkpoint_given_to_a_model_says_which_entry_of_it_fits() -> None:
    model = nn.Linear(2, 2)
    checkpoint = {"epoch": 3, "model_state": statedict.capture(model)}
    with pytest.raises(
        statedict.errors.RestoreError,
        match=r"the entry 'model_state' of the state fits, restore from load\(path\)\['model_state'\]",
    ):
        statedict.restore(model, checkpoint)


def test_the_error_for_many_entries_stays_short() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(129)])
    prefixed = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(statedict.errors.RestoreError, match="258 missing") as caught:
        statedict.restore(model, prefixed, prefix="")
    assert len(str(caught.value).splitlines()) < 10


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_module_on_the_meta_device_gets_memory_and_the_state(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(Block(), Tied())
    with torch.device("meta"):
        fresh = nn.Sequential(Block(), Tied())
    fresh[0].weight.requires_grad_(False)
    weight, optimizer = fresh[0].weight, torch.optim.SGD(fresh.parameters())
    statedict.save(model, tmp_path / f"x{suffix}")
    statedict.restore(fresh, tmp_path / f"x{suffix}")
    assert_same(fresh.state_dict(), model.state_dict())
    assert fresh[1].head.weight is fresh[1].embed.weight
    assert type(fresh[1].head.weight) is nn.Parameter
    assert fresh[1].head.weight.requires_grad
    assert fresh[0].weight is weight
    assert not weight.requires_grad
    assert not any(parameter.is_meta for parameter in optimizer.param_groups[0]["params"])
    assert fresh[0].cache.is_meta  # no part of the state


def test_a_module_that_is_partly_on_the_meta_device_is_filled_whole() -> None:
    model, fresh = nn.Linear(2, 3), nn.Linear(2, 3)
    fresh.weight = nn.Parameter(torch.empty(3, 2, device="meta"))
    bias = fresh.bias
    statedict.restore(fresh, statedict.capture(model))
    assert fresh.bias is bias
    assert_same(fresh.state_dict(), model.state_dict())


def test_a_lazy_module_on_the_meta_device_is_filled() -> None:
    model = nn.Linear(3, 2)
    with torch.device("meta"):
        fresh = nn.LazyLinear(2)
    statedict.restore(fresh, statedict.capture(model))
    assert_same(fresh.state_dict(), model.state_dict())


def test_a_state_that_pytorch_has_assigned_from_is_still_restored_and_left_as_it_was() -> None:
    model, fresh = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    state = statedict.capture(model)
    for metadata in state._metadata.values():
        metadata["assign_to_params_buffers"] = True
    weight = fresh[0].weight
    statedict.restore(fresh, state)
    assert fresh[0].weight is weight
    assert_same(fresh.state_dict(), model.state_dict())
    assert all("assign_to_params_buffers" in metadata for metadata in state._metadata.values())
