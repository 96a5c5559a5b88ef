"""A checkpoint as lines: the same for the same content, another line for each entry that is another."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import statedict
from statedict.dtypes import BY_NAME
from statedict.render.textconv import lines
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.values import Opaque


def checkpoint(opt: Any = torch.optim.AdamW, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = opt(model.parameters(), **options)
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": (0.5, [1])}


def differing(one: Any, other: Any) -> list[str]:
    """The paths of the lines that only one side has."""
    return sorted({line.split(" = ")[0] for line in set(lines(one)) ^ set(lines(other))})


def test_the_text_is_the_same_in_every_format_and_order(tmp_path: Path) -> None:
    state = checkpoint()
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    statedict.save(state, tmp_path / "b.safetensors")
    statedict.save(state, tmp_path / "c.pth")
    statedict.convert(tmp_path / "a.pth", tmp_path / "sharded", max_shard_size=100)
    expected = lines(state)
    for name in ("a.pth", "old.pth", "b.safetensors", "c.pth", "sharded"):
        assert lines(statedict.load(tmp_path / name)) == expected, name
    shuffled = dict(sorted(state.items(), key=lambda _: random.random()))
    assert lines(shuffled) == expected


def test_a_tensor_that_changes_changes_its_line_alone() -> None:
    state, other = checkpoint(), checkpoint()
    other["model"]["1.weight"][1, 2] += 1e-7
    assert differing(state, other) == ["model.1.weight"]
    assert differing(state, state | {"epoch": 4}) == ["epoch"]
    assert differing(state, state | {"epoch": 3.0}) == ["epoch"]
    assert differing(state, state | {"best": (0.5, [1.0])}) == ["best"]


def test_hyperparameters_moments_and_members_of_groups_are_lines_under_the_names_of_parameters() -> None:
    state, other = checkpoint(), checkpoint()
    other["optimizer"]["param_groups"][0]["lr"] = 0.5
    other["optimizer"]["state"][2]["exp_avg"][0] += 1
    assert differing(state, other) == ["optimizer.param_groups.0.lr", "optimizer.state.1.weight.exp_avg"]
    text = lines(state)
    members = [line.partition(" = ")[2] for line in text if line.startswith("optimizer.param_groups.0.params = ")]
    assert members == [f"{name} (inferred)" for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
    assert any(line.startswith("optimizer.state.0.bias.step = float32[]  value 1  xxh3_128 ") for line in text)
    alone = lines(checkpoint()["optimizer"])
    assert "param_groups.0.params = [0, 1, 2, 3]" in alone
    assert any(line.startswith("state.0.exp_avg = float32[4, 3]") for line in alone)


def test_the_digest_is_that_of_the_elements_in_their_order() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    for made in (base, base.T, base[1:, ::2], base.expand(2, 3, 4), base.to(torch.bfloat16)):
        (line,) = lines({"w": made})
        raw = made.contiguous().view(torch.uint8).numpy().tobytes()
        assert line.endswith(f"  xxh3_128 {xxhash.xxh3_128_hexdigest(raw)}")
    assert lines({"w": base.T}) == lines({"w": base.T.contiguous()})


def test_what_is_not_finite_is_counted_and_packed_dtypes_have_no_figures() -> None:
    (line,) = lines({"w": numpy.array([numpy.nan, numpy.inf, 2.0, -1.0])})
    assert line.startswith("w = float64[4]  min -1  max 2  l2 2.236  nan 1  inf 1  xxh3_128 ")
    (line,) = lines({"w": numpy.zeros(4, ml_dtypes.float8_e4m3fn).view(ml_dtypes.float8_e4m3fn)})
    assert line.startswith("w = float8_e4m3fn[4]  min 0  max 0  l2 0  xxh3_128 ")
    words = as_lazy(numpy.zeros(4, "u1"))
    (line,) = lines({"w": LazyTensor(BY_NAME["float4_e2m1fn_x2"], words.shape, words.storage)})
    assert line.startswith("w = float4_e2m1fn_x2[4]  xxh3_128 ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(torch.tensor(2**62 + 1), "int64[]  value 4611686018427387905"),
     (torch.tensor([0.1]), "float32[1]  value 0.100000001"),
     (torch.tensor(1 + 2j), "complex64[]  value 1+2j"), (torch.tensor(float("nan")), "float32[]  nan 1")],
)  # fmt: skip
def test_a_single_element_is_its_value(value: torch.Tensor, text: str) -> None:
    assert lines({"w": value})[0].startswith(f"w = {text}  xxh3_128 ")


def test_lines_come_in_the_order_of_their_numbers() -> None:
    assert [line.split()[0] for line in lines({f"layers.{n}.w": n for n in (10, 2, 1, 9)})] == [
        f"layers.{n}.w" for n in (1, 2, 9, 10)
    ]


@given(st.sets(st.text(max_size=5)), st.randoms())
def test_a_set_is_written_in_one_order(items: set[str], chance: random.Random) -> None:
    mixed = sorted(items, key=lambda _: chance.random())
    assert lines({"s": set(mixed)}) == lines({"s": items})


def test_long_values_are_cut_and_tell_what_changed_by_a_digest() -> None:
    numbers = list(range(10_000))
    (one,), (other,) = lines({"rng": numbers}), lines({"rng": [*numbers[:-1], 0]})
    assert one != other
    assert len(one) < 300


def test_metadata_and_objects_are_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"title": "x", "format": "pt"})
    assert lines(statedict.load(path))[0] == "__metadata__.title = 'x'"
    assert lines({"a": Opaque("lab.Thing", state={"x": 1})}) == ["a = object of lab.Thing", "a.x = 1"]
    assert lines({}) == []


@pytest.mark.parametrize("tree", [{"a": {}, "b": []}, {0: {1: None}}, {"a.b": 1, "a": {"b": 2}}])
def test_odd_trees_have_a_line_for_each_leaf(tree: Any) -> None:
    assert len(lines(tree)) == len({line.split(" = ")[0] for line in lines(tree)}) > 0
