"""What optimizers of any kind keep for their parameters goes back to them, whatever it looks like, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same

Keep = Callable[[torch.Tensor], dict[str, Any]]


class Keeping(torch.optim.Optimizer):
    """Keeps what `keep(gradient)` makes, and steps by all of it."""

    def __init__(self, parameters: Any, keep: Keep) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.keep = keep

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, **self.keep(torch.zeros_like(parameter))}
            state["step"] += 1
            for kept, new in zip(_tensors(state), _tensors(self.keep(parameter.grad)), strict=True):
                kept.add_(new)
                parameter.sub_(0.01 * kept.float().sum().sin())


def _tensors(kept: Any) -> list[torch.Tensor]:
    if isinstance(kept, torch.Tensor):
        return [kept]
    some = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list) else ()
    return [tensor for value in some for tensor in _tensors(value)]


def factored(grad: torch.Tensor) -> dict[str, Any]:
    """As Adafactor of transformers does."""
    if grad.ndim < 2:
        return {"exp_avg_sq": grad.square()}
    return {"exp_avg_sq_row": grad.square().mean(-1), "exp_avg_sq_col": grad.square().mean(-2)}


def averaged(grad: torch.Tensor) -> dict[str, Any]:
    """As Adalite does."""
    if grad.ndim < 2:
        return {"m_avg": grad, "v_avg": grad.square()}
    rows = {"v_avg_0": grad.mean(1), "v_avg_1": grad.mean(0), "m_avg_c": grad.mean(1, keepdim=True)}
    return rows | {"m_avg_r": grad.mean(0, keepdim=True), "m_avg_u": grad.mean().reshape(1, 1)}


def single(grad: torch.Tensor) -> dict[str, Any]:
    """As Amos does."""
    return {"exp_avg_sq": grad.square().mean(), "decay": grad.mean()}


def sided(grad: torch.Tensor) -> dict[str, Any]:
    """As RACS does."""
    wide = grad if grad.ndim > 1 else grad.unsqueeze(1)
    return {"s": wide.mean(1), "q": wide.mean(0), "theta": wide.mean()}


def masked(grad: torch.Tensor) -> dict[str, Any]:
    """As SPAM does, and SaRA, whose mask may be empty."""
    if grad.ndim < 2:
        return {"exp_avg": grad[:0]}
    return {"mask": torch.ones_like(grad), "exp_avg": grad.flatten(), "exp_avg_sq": grad.flatten().square()}


def reduced(grad: torch.Tensor) -> dict[str, Any]:
    """As GaLore does: fewer rows than the parameter has."""
    return {"exp_avg": grad[:2] if grad.ndim > 1 else grad}


def quantized(grad: torch.Tensor) -> dict[str, Any]:
    """As bitsandbytes 0.50 does."""
    return {"q": {"state1": grad, "state2": [grad.square(), {"absmax": grad.abs().max()}]}}


def square(grad: torch.Tensor) -> dict[str, Any]:
    """As Shampoo does, without what has the parameter's shape."""
    return {"left": grad.reshape(len(grad), -1) @ grad.reshape(len(grad), -1).T}


LAYOUTS = [factored, averaged, single, sided, masked, reduced, quantized, square]


def pair(keep: Keep, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4))
    return {"model": model, "optimizer": Keeping(model.parameters(), keep)}


def train(tree: dict[str, Any], steps: range) -> list[float]:
    losses = []
    for step in steps:
        tree["optimizer"].zero_grad()
        batch = torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
        loss = tree["model"](batch).square().sum()
        loss.backward()
        tree["optimizer"].step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", LAYOUTS)
def test_state_of_any_shape_goes_back_to_its_parameter(keep: Keep, suffix: str, tmp_path: Path) -> None:
    one, other = pair(keep, 1), pair(keep, 2)
    train(one, range(3))
    statedict.save(one, tmp_path / f"x{suffix}")
    statedict.restore(other, tmp_path / f"x{suffix}")
    assert train(one, range(5, 8)) == train(other, range(5, 8))


@pytest.mark.parametrize("keep", LAYOUTS)
def test_state_of_any_shape_in_a_file_of_pytorch_goes_back_to_its_parameter(keep: Keep, tmp_path: Path) -> None:
    one, other = pair(keep, 1), pair(keep, 2)
    train(one, range(3))
    torch.save({key: part.state_dict() for key, part in one.items()}, tmp_path / "x.pth")
    statedict.restore(other, tmp_path / "x.pth")
    assert train(one, range(5, 8)) == train(other, range(5, 8))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_a_user_keeps_beside_the_state_of_a_known_optimizer_goes_back(suffix: str, tmp_path: Path) -> None:
    def train(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(8, 16)
        plain, adam = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(model.parameters())
        return model, plain, adam

    model, plain, adam = train(1)
    model(torch.ones(2, 8)).sum().backward()
    adam.step()
    plain.state[model.weight] = {"step": 1, "exp_avg_sq_row": torch.ones(16), "exp_avg_sq_col": torch.ones(8)}
    plain.state[model.bias] = {"step": 1, "exp_avg_sq": torch.ones(16)}
    adam.state[model.weight]["ema"] = torch.full((16, 8), 3.0)
    path = tmp_path / f"x{suffix}"
    statedict.save({"model": model, "plain": plain, "adam": adam}, path)
    other, plain_too, adam_too = train(2)
    statedict.restore({"model": other, "plain": plain_too, "adam": adam_too}, path)
    assert_same(plain_too.state_dict(), plain.state_dict())
    assert_same(adam_too.state_dict(), adam.state_dict())


@pytest.mark.parametrize("keep", [keep for keep in LAYOUTS if keep is not reduced])
def test_state_of_any_shape_goes_back_without_the_model_by_position(keep: Keep) -> None:
    one, other = pair(keep, 1), pair(keep, 2)
    train(one, range(3))
    other["model"].load_state_dict(one["model"].state_dict())
    statedict.restore(other["optimizer"], statedict.capture(one["optimizer"]))
    assert train(one, range(5, 8)) == train(other, range(5, 8))


def test_adafactor_of_transformers_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    from transformers import Adafactor

    def tree(seed: int) -> dict[str, Any]:
        model = pair(single, seed)["model"]
        return {"model": model, "optimizer": Adafactor(model.parameters())}  # type: ignore[no-untyped-call]

    one, other = tree(1), tree(2)
    train(one, range(3))
    statedict.save(one, tmp_path / "x.safetensors")
    statedict.restore(other, tmp_path / "x.safetensors")
    assert train(one, range(5, 8)) == train(other, range(5, 8))


def test_single_numbers_are_not_given_to_other_parameters_of_a_model_that_was_reordered() -> None:
    class Ordered(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    def made(names: str) -> dict[str, Any]:
        model = Ordered(names)
        return {"model": model, "optimizer": Keeping(model.parameters(), single)}

    one, other = made("abc"), made("cab")
    for name, parameter in one["model"].named_parameters():
        parameter.grad = torch.full((3,), float(ord(name)))
    one["optimizer"].step()
    statedict.restore(other, {key: part.state_dict() for key, part in one.items()})
    for name, parameter in other["model"].named_parameters():
        assert other["optimizer"].state[parameter]["decay"] == ord(name)


def test_an_unknown_optimizer_s_state_for_a_parameter_of_another_shape_is_an_error() -> None:
    one, other = pair(quantized, 1), pair(quantized, 2)
    train(one, range(2))
    fresh = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 7))
    optimizer = Keeping(fresh.parameters(), quantized)
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: state\.4\.q\.state1, state\.4\.q\.state2\.0"):
        statedict.restore(optimizer, statedict.capture(one["optimizer"]))
    before = copy.deepcopy(other["model"].state_dict())
    backwards = Keeping(list(other["model"].parameters())[::-1], quantized)
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: state\.0\.q\.state1"):
        statedict.restore(backwards, statedict.capture(one["optimizer"]))
    assert not backwards.state
    assert all(torch.equal(value, before[key]) for key, value in other["model"].state_dict().items())


def listed(grad: torch.Tensor) -> dict[str, Any]:
    return {"buffers": [{"m": grad}, [grad.square()]]}


def two(keep: Keep, seed: int, backwards: bool = False) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    parameters = list(model.parameters())
    return {"model": model, "optimizer": Keeping(parameters[::-1] if backwards else parameters, keep)}


def stepped(tree: dict[str, Any]) -> dict[str, Any]:
    for number, parameter in enumerate(tree["model"].parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    tree["optimizer"].step()
    return tree


@pytest.mark.parametrize("keep", [listed, quantized])
def test_nested_state_in_a_file_of_others_goes_to_the_parameter_of_its_shape(keep: Keep, tmp_path: Path) -> None:
    one, other = stepped(two(keep, 1, backwards=True)), two(keep, 2)
    torch.save({key: part.state_dict() for key, part in one.items()}, tmp_path / "x.pth")
    statedict.restore(other, tmp_path / "x.pth")
    for number, parameter in enumerate(other["model"].parameters()):
        assert {*_tensors(other["optimizer"].state[parameter])[0].flatten().tolist()} == {number + 1.0}
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: state\.0\."):
        statedict.restore(other["optimizer"], one["optimizer"].state_dict())


@pytest.mark.parametrize("policy", ["slice", "pad", "overlap", "reshape", "skip"])
@pytest.mark.parametrize("keep", [listed, quantized])
def test_nested_state_follows_its_parameter_where_its_shape_changes(keep: Keep, policy: str) -> None:
    one = stepped(two(keep, 1))
    other = two(keep, 2)
    shape = {"slice": (2, 2), "pad": (4, 2), "overlap": (4, 1), "reshape": (2, 3), "skip": (9, 9)}[policy]
    other["model"][0].weight = nn.Parameter(torch.zeros(shape))
    other["optimizer"] = Keeping(other["model"].parameters(), keep)
    statedict.restore(other, statedict.capture(one), shapes={"model.0.weight": policy})
    kept = [t for t in _tensors(other["optimizer"].state[other["model"][0].weight]) if t.ndim]
    assert [tuple(tensor.shape) for tensor in kept] == [shape] * (0 if policy == "skip" else 2)
    stepped(other)


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ({"q": {"absmax": torch.ones(5)}}, r"q\.absmax"),
        ({"q": [1, (torch.ones(5),)]}, r"q\.1\.0"),
        ({"q": [statedict.Opaque("lab.Projector")]}, r"q\.0"),
    ],
)
def test_nested_state_that_cannot_follow_is_an_error_that_names_it(extra: dict[str, Any], path: str) -> None:
    one, other = stepped(two(listed, 1)), two(listed, 2)
    other["model"][0].weight = nn.Parameter(torch.zeros(4, 2))
    other["optimizer"] = Keeping(other["model"].parameters(), listed)
    state = statedict.capture(one)
    state["optimizer"]["state"][0] |= extra
    with pytest.raises(
        statedict.errors.RestoreError, match=rf"optimizer\.state\.0\.{path} .*cannot follow the parameter"
    ):
        statedict.restore(other, state, shapes={"model.0.weight": "overlap"})
    assert not other["model"][0].weight.any()


class Lookahead(torch.optim.Optimizer):
    """Steps by another optimizer and follows it slowly; with a layout of its own, as that of pytorch_optimizer."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.count = inner, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.count += 1
        parameters = [p for group in self.inner.param_groups for p in group["params"]]
        for slow, parameter in zip(self.slow, parameters, strict=True) if self.count % 2 == 0 else ():
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.slow, self.count = state["slow"], state["count"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("theirs", [False, True], ids=["our file", "pytorch's file"])
def test_an_optimizer_with_a_layout_of_its_own_is_an_object_like_any_other(
    theirs: bool, suffix: str, tmp_path: Path
) -> None:
    def tree(seed: int) -> dict[str, Any]:
        model = pair(single, seed)["model"]
        return {"model": model, "optimizer": Lookahead(torch.optim.Adam(model.parameters()))}

    one, other = tree(1), tree(2)
    train(one, range(3))
    if theirs:
        torch.save({key: part.state_dict() for key, part in one.items()}, tmp_path / "x.pth")
        statedict.convert(tmp_path / "x.pth", tmp_path / f"y{suffix}")
    else:
        statedict.save(one, tmp_path / f"y{suffix}")
    statedict.restore(other, tmp_path / f"y{suffix}")
    assert train(one, range(5, 8)) == train(other, range(5, 8))
    with pytest.raises(statedict.errors.RestoreError, match=r"missing: optimizer\.slow"):
        statedict.restore(other, {"model": one["model"].state_dict(), "optimizer": {"inner": {}, "count": 1}})


class Peculiar(torch.optim.SGD):
    """Has PyTorch's keys with contents of its own."""

    def __init__(self, parameters: Any, contents: dict[str, Any]) -> None:
        super().__init__(parameters, 0.1)
        self.contents = contents

    def state_dict(self) -> dict[str, Any]:
        return self.contents

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.contents = state


@pytest.mark.parametrize(
    ("state", "groups"),
    [
        (3, 4),
        ([3], []),
        ({"a": 3}, 4),
        ({}, []),
        ({}, [3]),
        ({}, [{"lr": 3}]),
        ({}, [{"params": 3}]),
        ({}, [{"params": [0]}]),
        ({}, [{"params": [0, 1]}, {"params": []}]),
    ],
)
def test_an_optimizer_with_pytorchs_keys_and_other_contents_is_an_object_like_any_other(
    state: Any, groups: Any, tmp_path: Path
) -> None:
    contents = {"state": state, "param_groups": groups}
    model = nn.Linear(2, 2)
    statedict.save({"m": model, "o": Peculiar(model.parameters(), copy.deepcopy(contents))}, tmp_path / "x.pth")
    optimizer = Peculiar(model.parameters(), copy.deepcopy(contents))
    statedict.restore({"m": model, "o": optimizer}, tmp_path / "x.pth")
    assert optimizer.contents == contents
