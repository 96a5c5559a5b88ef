"""Operations on states: against torch for values, against an uninterrupted training for optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import statedict
from statedict import alter
from statedict.tensor.assembled import assemble
from statedict.tensor.lazy import as_lazy
from statedict.testing.same import assert_same

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PLAIN = [*FLOATS, torch.int8, torch.int64, torch.uint8, torch.bool]


def flat(**tensors: torch.Tensor) -> statedict.StateDict:
    return statedict.StateDict(tensors)


def read(state: Any, name: str) -> torch.Tensor:
    return state[name].torch(copy=True) if isinstance(state[name], statedict.LazyTensor) else state[name]


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("wanted", PLAIN, ids=str)
@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_a_cast_is_torch_s(kind: torch.dtype, wanted: torch.dtype) -> None:
    values = torch.cat([torch.randn(500) * 3, torch.tensor([0.0, 1.0, -2.0, 100.0, 3.5])]).abs().to(kind)
    result = alter.cast(flat(x=values), wanted, ["x"])
    assert torch.equal(read(result, "x"), values.to(wanted))


def test_floats_beyond_the_range_become_what_torch_makes_of_them() -> None:
    values = torch.tensor([1e39, -1e39, 3.39e38, float("nan"), 1e-42, 65520.0, -0.0], dtype=torch.float64)
    for wanted in (torch.float32, torch.bfloat16, torch.float16):
        result = read(alter.cast(flat(x=values), wanted), "x")
        assert torch.equal(result.isnan(), values.to(wanted).isnan())
        assert torch.equal(result.nan_to_num(nan=7), values.to(wanted).nan_to_num(nan=7))


def test_a_cast_without_patterns_leaves_integers_and_step_counts_alone() -> None:
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = alter.cast(statedict.capture({"m": model, "o": optimizer}), "bf16")
    assert {name: str(t.dtype) for name, t in state["m"].tensors().items()} == {
        "weight": "bfloat16", "bias": "bfloat16", "running_mean": "bfloat16", "running_var": "bfloat16",
        "num_batches_tracked": "int64",
    }  # fmt: skip
    moments = state["o"]["state"][0]
    assert [str(as_lazy(moments[key]).dtype) for key in ("step", "exp_avg", "exp_avg_sq")] == [
        "float32", "bfloat16", "bfloat16",
    ]  # fmt: skip


@given(shapes, st.sampled_from(PLAIN), st.data())
def test_transpose_reshape_slice_and_pad_are_torch_s(shape: tuple[int, ...], kind: torch.dtype, data: Any) -> None:
    tensor = torch.arange(numpy.prod(shape)).reshape(shape).to(kind)
    state = flat(x=tensor)
    if len(shape) > 1:
        order = data.draw(st.permutations(range(len(shape))))
        assert torch.equal(read(alter.transpose(state, "x", order), "x"), tensor.permute(*order))
        assert torch.equal(read(alter.transpose(state, "x"), "x"), tensor.transpose(-1, -2))
    assert torch.equal(read(alter.reshape(state, "x", (-1,)), "x"), tensor.reshape(-1))
    index = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape)
    assert torch.equal(read(alter.slice(state, "x", index), "x"), tensor[index])
    larger = tuple(n + data.draw(st.integers(0, 3)) for n in shape)
    expected = torch.full(larger, 1).to(kind)
    expected[tuple(map(slice, shape))] = tensor
    assert torch.equal(read(alter.pad(state, "x", larger, 1), "x"), expected)


@given(shapes, st.data())
def test_fusing_undoes_splitting_and_both_are_torch_s(shape: tuple[int, ...], data: Any) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    shape = tuple(sum(sizes) if d == dim % len(shape) else n for d, n in enumerate(shape))
    tensor = torch.randn(shape)
    names = [f"{letter}.w" for letter, _ in zip("abcd", sizes, strict=False)]
    parts = alter.split(flat(**{"qkv.w": tensor, "other": torch.ones(1)}), "qkv.w", names, dim, sizes)
    assert list(parts) == [*names, "other"]
    for name, part in zip(names, tensor.split(sizes, dim), strict=True):
        assert torch.equal(read(parts, name), part)
    whole = alter.fuse(parts, names, "qkv.w", dim)
    assert list(whole) == ["qkv.w", "other"]
    assert torch.equal(read(whole, "qkv.w"), tensor)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 60), st.integers(1, 40))
def test_any_range_of_an_assembled_tensor_can_be_read_alone(shape: list[int], start: int, length: int) -> None:
    whole = torch.arange(numpy.prod(shape), dtype=torch.int16).reshape(shape)
    cut = shape[0] // 2
    pieces = [(0, whole[:cut]), (cut, whole[cut:])]
    chunks = [((at, *[0] * (len(shape) - 1)), lambda piece=piece: as_lazy(piece)) for at, piece in pieces if len(piece)]
    lazy = assemble(as_lazy(whole).dtype, tuple(shape), chunks, "test")
    raw = whole.numpy().tobytes()
    start = min(start, len(raw) - 1)
    length = min(length, len(raw) - start)
    assert bytes(lazy.storage.source.read(start, length)) == raw[start : start + length]


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        if fused:
            self.qkv = nn.Linear(4, 12)
        else:
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        q, k, v = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        return self.last(q * torch.tanh(k) + v).sum()


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_fused_projection_is_split_with_its_moments_and_training_goes_on(
    suffix: str, named: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fused, apart = Attention(fused=True), Attention(fused=False)
    one, other = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (fused, apart))
    trained(fused, one, range(4))
    whole = {"model": fused, "optim": one, "epoch": 4}
    plain = {"model": fused.state_dict(), "optim": one.state_dict(), "epoch": 4}
    statedict.save(whole if named else plain, tmp_path / f"fused{suffix}")
    state = statedict.load(tmp_path / f"fused{suffix}")
    new = alter.split(state, "model.qkv", ["model.q", "model.k", "model.v"])
    statedict.save(new, tmp_path / f"apart{suffix}")
    statedict.restore({"model": apart, "optim": other, "epoch": 0}, tmp_path / f"apart{suffix}")
    for key in ("exp_avg", "exp_avg_sq", "step"):
        moments = [one.state[fused.qkv.weight][key], *(other.state[p][key] for p in (apart.q.weight, apart.v.weight))]
        if key == "step":
            assert torch.equal(moments[0], moments[1])  # and each counts its own: see what follows
        else:
            assert torch.equal(moments[0][:4], moments[1])
            assert torch.equal(moments[0][8:], moments[2])
    back = alter.fuse(statedict.load(tmp_path / f"apart{suffix}"), ["model.q", "model.k", "model.v"], "model.qkv")
    statedict.save(back, tmp_path / f"back{suffix}")
    assert (tmp_path / f"back{suffix}").read_bytes() == (tmp_path / f"fused{suffix}").read_bytes()
    trained(fused, one, range(4, 7))
    trained(apart, other, range(4, 7))
    assert torch.allclose(fused.qkv.weight[:4], apart.q.weight, atol=1e-5)


def checkpoint() -> statedict.StateDict:
    torch.manual_seed(0)
    model = Attention(fused=True)
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer, range(2))
    return statedict.capture({"model": model, "optim": optimizer, "epoch": 2, "rng": [1, {"x": torch.ones(2)}]})


def test_what_is_dropped_leaves_the_optimizer_too() -> None:
    state = alter.drop(checkpoint(), ["model.first", "epoch"])
    assert list(state) == ["model", "optim", "rng"]
    assert list(state["model"]) == ["qkv.weight", "qkv.bias", "last.weight", "last.bias"]
    group = state["optim"]["param_groups"][0]
    assert group["param_names"] == list(state["model"])
    assert group["params"] == [0, 1, 2, 3]
    assert list(state["optim"]["state"]) == [0, 1, 2, 3]
    rest = Attention(fused=True)
    rest.first = nn.Identity()
    optimizer = torch.optim.Adam(rest.parameters())
    statedict.restore({"model": rest, "optim": optimizer}, state, allow_unexpected="rng")
    assert torch.equal(optimizer.state[rest.last.bias]["exp_avg"], checkpoint()["optim"]["state"][5]["exp_avg"])


def test_the_optimizer_goes_by_names_that_follow_and_rules_leave_the_original_alone() -> None:
    state = checkpoint()
    kept = copy.deepcopy(state)
    new = alter.rename(state, {"model.first": "model.embed", "model.{x}.weight": "model.{x}.w"})
    assert list(new["model"])[:3] == ["embed.weight", "embed.bias", "qkv.w"]
    assert new["optim"]["param_groups"][0]["param_names"] == list(new["model"])
    assert new["model"]._metadata["embed"] == {"version": 1}
    assert_same(state, kept)
    assert new["model"]["qkv.w"] is state["model"]["qkv.weight"]


def test_an_entry_may_leave_its_dict_for_another() -> None:
    new = alter.rename(checkpoint(), {"model.last": "head.last", "epoch": "model.epoch"})
    assert list(new) == ["model", "optim", "rng", "head.last.weight", "head.last.bias"]
    assert new["model"]["epoch"] == 2


def test_strip_leaves_the_model() -> None:
    assert_same(alter.strip(checkpoint()), checkpoint()["model"])
    with pytest.raises(statedict.errors.AlterError, match=r"2 models could be meant: model \(6 .*ema \(1 tensor"):
        alter.strip(checkpoint() | {"ema": {"w": torch.ones(1)}})
    with pytest.raises(statedict.errors.AlterError, match="there is no model in it"):
        alter.strip(statedict.StateDict(optim=checkpoint()["optim"]))


def test_select_and_prefix() -> None:
    state = alter.select(checkpoint(), ["model.*.bias", "rng"])
    assert list(state) == ["model", "rng"]
    assert list(state["model"]) == ["first.bias", "qkv.bias", "last.bias"]
    wrapped = alter.prefix(checkpoint(), "module.", "model")
    assert next(iter(wrapped["model"])) == "module.first.weight"
    assert wrapped["optim"]["param_groups"][0]["param_names"][0] == "module.first.weight"
    assert_same(alter.prefix(wrapped, "-module.")["model"], checkpoint()["model"])


def test_ties_are_made_and_undone(tmp_path: Path) -> None:
    state = flat(a=torch.randn(100, 10), b=torch.randn(5))
    tied = alter.tie(state, {"c": "a"})
    statedict.save(tied, tmp_path / "tied.safetensors")
    statedict.save(alter.untie(statedict.load(tmp_path / "tied.safetensors")), tmp_path / "apart.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("tied", "apart")]
    assert 3900 < sizes[1] - sizes[0] < 4200
    assert_same(statedict.load(tmp_path / "apart.safetensors"), statedict.load(tmp_path / "tied.safetensors"))


def test_set_replaces_and_adds() -> None:
    state = alter.set(alter.set(checkpoint(), "epoch", 0), "model.extra", numpy.ones(2, ml_dtypes.bfloat16))
    assert state["epoch"] == 0
    assert list(state["model"])[-1] == "extra"


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda s: alter.select(s, "nothing.*"), r"no entry of \d+ matches 'nothing\.\*'"),
        (lambda s: alter.cast(s, "bf16", "nothing"), "no tensor of 7 matches 'nothing'"),
        (lambda s: alter.cast(s, "float33"), "unknown dtype 'float33'"),
        (lambda s: alter.rename(s, {"model.{n}.weight": "model.w"}), "both become 'model.w'"),
        (lambda s: alter.rename(s, {"optim": "o"}), "'optim': rules do not rename an optimizer"),
        (lambda s: alter.prefix(s, "-module."), "no name begins with 'module.'"),
        (lambda s: alter.transpose(s, "model.first.bias"), r"model\.first\.bias: .*cannot be transposed"),
        (lambda s: alter.reshape(s, "model.first.weight", (5, -1)), "has 16 elements"),
        (lambda s: alter.slice(s, "model.first.bias", (0, 0)), "too many indices"),
        (lambda s: alter.pad(s, "model.first.bias", [2]), "cannot be padded to"),
        (lambda s: alter.split(s, "model.qkv.bias", ["model.a", "model.b"], 0, [1, 2]), "cannot be split along 0"),
        (lambda s: alter.split(s, "nothing", ["a", "b"]), "no tensor of 6 matches 'nothing'"),
        (lambda s: alter.fuse(s, ["model.first", "model.nothing"], "x"), r"has no part for 'model\.nothing'"),
        (lambda s: alter.fuse(s, ["model.first.weight", "model.qkv.bias"], "model.x"), "does not go with"),
        (lambda s: alter.fuse(s, ["model.first.weight", "model.last.weight"], "model.qkv.weight"), "is there already"),
        (lambda s: alter.tie(s, {"a": "nothing"}), "there is no such tensor"),
        (lambda s: alter.set(s, "model", 3), "is a whole dict"),
    ],
)
def test_what_cannot_be_done_says_why(operation: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(statedict.StateDictError, match=message):
        operation(checkpoint())


def test_a_slice_is_told_in_python_or_as_text() -> None:
    state = flat(a=torch.arange(12.0).reshape(3, 4))
    for text, index in (("0:2", slice(0, 2)), ("...,-1", (..., -1)), ("1,:2", (1, slice(2)))):
        assert_same(alter.slice(state, "a", text), alter.slice(state, "a", index))
    with pytest.raises(statedict.errors.AlterError, match="'0;2': not an index; write it as 0:5"):
        alter.slice(state, "a", "0;2")


def test_moments_that_nobody_can_attribute_stop_what_would_need_them() -> None:
    state = checkpoint()
    del state["optim"]["param_groups"][0]["param_names"]
    state["optim"]["param_groups"][0]["params"] = state["optim"]["param_groups"][0]["params"][:3]
    for entries in state["optim"]["state"].values():
        entries["exp_avg"] = torch.ones(1)
        entries["exp_avg_sq"] = torch.ones(1)
    assert alter.rename(state, {"model.first": "model.embed"})["optim"] == state["optim"]
    with pytest.raises(statedict.errors.AlterError, match=r"optim: has no names of parameters.*drop the optimizer"):
        alter.drop(state, "model.first")
    assert next(iter(alter.drop(state, ["model.first", "optim"])["model"])) == "qkv.weight"


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_several_sizes_fuse_again(transposed: bool) -> None:
    weight = torch.randn(12, 8)
    state = flat(**{"qkv.weight": weight.T.contiguous() if transposed else weight, "qkv.bias": torch.randn(12)})
    new = alter.split(state, "qkv", ["q", "k", "v"], sizes=[8, 2, 2])
    shapes = [tuple(new[f"{part}.weight"].shape) for part in "qkv"]
    assert shapes == ([(8, 8), (8, 2), (8, 2)] if transposed else [(8, 8), (2, 8), (2, 8)])
    assert_same(alter.fuse(new, ["q", "k", "v"], "qkv"), state)
