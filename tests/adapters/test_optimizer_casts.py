"""What an optimizer keeps follows its parameter to another dtype, and it steps with that."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same

from .test_optimizer_state import Keeping, factored
from .test_torch_optimizer import OPTIMIZERS, OPTIONS, made, train

CASTS = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
NAMES = [name for name in OPTIMIZERS if name != "SparseAdam"]


def built(name: str, seed: int, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = made(name, seed)[0].to(dtype)
    return model, getattr(torch.optim, name)(model.parameters(), **OPTIONS.get(name, {}) | options)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("old", "new"), CASTS)
@pytest.mark.parametrize("name", NAMES)
def test_moments_follow_their_parameters_to_another_dtype(
    name: str, old: torch.dtype, new: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    whole, fresh, peer = built(name, 1, old), built(name, 2, new), built(name, 3, new)
    train(*whole, range(3))
    statedict.save({"m": whole[0], "o": whole[1]}, tmp_path / f"x{suffix}")
    statedict.restore({"m": fresh[0], "o": fresh[1]}, tmp_path / f"x{suffix}", cast=True)
    peer[0].load_state_dict(whole[0].state_dict())
    peer[1].load_state_dict(whole[1].state_dict())
    assert_same(fresh[0].state_dict(), peer[0].state_dict())
    for one, other in zip(fresh[1].state.values(), peer[1].state.values(), strict=True):
        for key, value in one.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert (key, value.dtype) == (key, new)
                assert torch.equal(value, other[key])
    train(*fresh, range(3, 6))


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": False}])
def test_steps_stay_as_they_are_where_moments_are_cast(options: Any, tmp_path: Path) -> None:
    whole, fresh = (built("Adam", seed, kind, **options) for seed, kind in ((1, torch.float32), (2, torch.bfloat16)))
    train(*whole, range(2))
    for entries in whole[1].state.values():
        entries["step"].fill_(1001)
    statedict.save({"m": whole[0], "o": whole[1]}, tmp_path / "x.pth")
    statedict.restore({"m": fresh[0], "o": fresh[1]}, tmp_path / "x.pth", cast=True)
    for entries in fresh[1].state.values():
        assert (entries["step"].item(), entries["step"].dtype) == (1001, torch.float32)
    train(*fresh, range(2, 4))


def test_only_what_had_the_dtype_of_its_parameter_is_cast_for_an_optimizer_of_another_class() -> None:
    def keep(grad: torch.Tensor) -> dict[str, Any]:
        more = {"full": grad.double(), "count": torch.tensor(1001.0), "mask": grad > 0}
        return {"q": [factored(grad)], **more, "names": ["a"]}

    old, new = nn.Linear(1, 3), nn.Linear(1, 3).bfloat16()
    optimizers = Keeping(old.parameters(), keep), Keeping(new.parameters(), keep)
    for parameter in old.parameters():
        optimizers[0].state[parameter] = {"step": 3, **keep(torch.ones_like(parameter))}
    statedict.restore({"m": new, "o": optimizers[1]}, statedict.capture({"m": old, "o": optimizers[0]}), cast=True)
    state = optimizers[1].state[new.weight]
    assert [value.dtype for value in state["q"][0].values()] == [torch.bfloat16] * 2
    assert (state["full"].dtype, state["mask"].dtype) == (torch.float64, torch.bool)
    assert (state["count"].dtype, state["count"].item()) == (torch.float32, 1001)


def test_moments_of_parameters_that_a_shape_policy_changes_are_cast_too() -> None:
    old, new = nn.Linear(2, 2), nn.Linear(2, 3).bfloat16()
    one, other = torch.optim.AdamW(old.parameters()), torch.optim.AdamW(new.parameters())
    old(torch.ones(1, 2)).sum().backward()
    one.step()
    statedict.restore({"m": new, "o": other}, statedict.capture({"m": old, "o": one}), cast=True, shapes="pad")
    assert other.state[new.weight]["exp_avg"].dtype is torch.bfloat16
    new(torch.ones(1, 2).bfloat16()).sum().backward()
    other.step()


def test_an_optimizer_without_its_model_casts_its_moments_where_the_caller_allows_it() -> None:
    (_, one), (_, other) = whole, fresh = built("Adam", 1, torch.float32), built("Adam", 2, torch.bfloat16)
    train(*whole, range(2))
    state = statedict.capture(one)
    with pytest.raises(statedict.errors.RestoreError, match=r"dtype: state\.0.*the state has float32.*cast=True"):
        statedict.restore(other, state)
    assert not other.state
    report = statedict.restore(other, state, cast=True)
    assert report.paths("cast") == [f"state.{number}" for number in range(6)]
    assert all(entries["exp_avg"].dtype is torch.bfloat16 for entries in other.state.values())
    train(*fresh, range(2, 4))


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_moments_that_are_no_floats_are_refused_before_anything_is_written(kind: torch.dtype) -> None:
    whole, fresh = built("Adam", 1, torch.float32), built("Adam", 2, torch.float32)
    train(*whole, range(2))
    state = statedict.capture({"m": whole[0], "o": whole[1]}).torch(copy=True)
    state["o"]["state"][0]["exp_avg"] = state["o"]["state"][0]["exp_avg"].to(kind)
    before = copy.deepcopy(fresh[0].state_dict())
    with pytest.raises(statedict.errors.RestoreError, match=r"o\.state\.0\.exp_avg \(expected floats, the state has"):
        statedict.restore({"m": fresh[0], "o": fresh[1]}, state, cast=True)
    assert_same(fresh[0].state_dict(), before)
    with pytest.raises(statedict.errors.RestoreError, match=r"state\.0\.exp_avg \(expected floats, the state has"):
        statedict.restore(fresh[1], state["o"], cast=True)


def test_an_lbfgs_whose_parameters_change_their_dtypes_differently_is_refused() -> None:
    whole, fresh = built("LBFGS", 1, torch.float32), built("LBFGS", 2, torch.float32)
    fresh[0][3].double()
    train(*whole, range(2))
    state = statedict.capture({"m": whole[0], "o": whole[1]})
    with pytest.raises(statedict.errors.RestoreError, match="whose dtypes change differently"):
        statedict.restore({"m": fresh[0], "o": fresh[1]}, state, cast=True)
