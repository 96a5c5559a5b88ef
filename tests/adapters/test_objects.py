"""Plain Python: containers, arrays, and objects by their attributes."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict

from ..same import assert_same


class Stage(enum.IntEnum):
    WARMUP = 1
    DECAY = 2


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Tracker:
    best: float | None = None
    stage: Stage = Stage.WARMUP
    colour: Colour = Colour.RED
    losses: list[float] = field(default_factory=list)
    seen: dict[Any, Any] = field(default_factory=dict)
    mean: Any = field(default_factory=lambda: numpy.zeros(3))
    dtype: Any = torch.float32
    scale: Any = field(default_factory=lambda: numpy.float32(1))


class Slotted:
    __slots__ = ("_private", "value")

    def __init__(self) -> None:
        self.value = torch.zeros(2)


class SlottedChild(Slotted):
    def __init__(self) -> None:
        super().__init__()
        self.more = 1


def filled() -> Tracker:
    return Tracker(
        0.5,
        Stage.DECAY,
        Colour.BLUE,
        [1.0, 2.0, 3.0],
        {3: "x", "t": torch.ones(2)},
        numpy.ones(3),
        torch.float16,
        numpy.float32(4),
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_object_gets_its_attributes_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    statedict.save({"tracker": filled()}, tmp_path / f"x{suffix}")
    fresh = Tracker()
    mean = fresh.mean
    statedict.restore({"tracker": fresh}, tmp_path / f"x{suffix}")
    assert fresh.best == 0.5
    assert fresh.stage is Stage.DECAY
    assert fresh.colour is Colour.BLUE
    assert fresh.losses == [1.0, 2.0, 3.0]
    assert fresh.seen[3] == "x"
    assert torch.equal(fresh.seen["t"], torch.ones(2))
    assert fresh.mean is mean
    assert mean.tolist() == [1, 1, 1]
    assert fresh.dtype is torch.float16
    assert type(fresh.scale) is numpy.float32
    assert fresh.scale == 4


def test_a_history_that_is_longer_or_shorter_is_replaced_in_its_place() -> None:
    target = {"losses": [0.0, 0.1, 0.2, 0.3]}
    losses = target["losses"]
    report = statedict.restore(target, {"losses": [1.0, 2.0]})
    assert target["losses"] is losses
    assert losses == [1.0, 2.0]
    assert "4 entries → 2" in str(report)
    with pytest.raises(statedict.RestoreError, match="the target is a list of 1, the state has 2 entries"):
        statedict.restore({"arrays": [numpy.ones(2)]}, {"arrays": [numpy.ones(2), numpy.ones(2)]})


def test_slots_of_all_classes_are_captured_and_restored() -> None:
    one, other = SlottedChild(), SlottedChild()
    one.value += 3
    one.more = 7
    assert set(statedict.capture(one)) == {"value", "more"}
    statedict.restore(other, statedict.capture(one))
    assert other.value.tolist() == [3, 3]
    assert other.more == 7


def test_containers_stay_what_they_are_and_keys_keep_their_types() -> None:
    tree = {1: OrderedDict(b=1), "1": [(1, [2, ()])], (1, 2): {None: 3}, "p": Point(1, numpy.ones(1))}
    captured = statedict.capture(tree)
    assert_same(captured[1], {"b": 1})
    assert captured["1"] == [(1, [2, ()])]
    assert captured[(1, 2)] == {None: 3}
    assert captured["p"] == (1, numpy.ones(1))
    assert [type(key) for key in captured] == [int, str, tuple, str]


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_are_filled_in_place_in_every_layout(library: str, tmp_path: Path) -> None:
    base = numpy.zeros((4, 6)) if library == "numpy" else torch.zeros(4, 6)
    target = {
        "t": base.T,
        "part": base[1:3, ::2],
        "scalar": (numpy.zeros(()) if library == "numpy" else torch.zeros(()).double()),
    }
    fresh = {"t": numpy.arange(24.0).reshape(6, 4), "scalar": numpy.array(3.0)}
    dtype = "float64" if library == "numpy" else "float32"
    fresh = {"t": fresh["t"].astype(dtype), "scalar": fresh["scalar"]}
    statedict.save(fresh, tmp_path / "x.pth")
    statedict.restore(target, tmp_path / "x.pth", allow_missing=["part"])
    assert numpy.array_equal(numpy.asarray(base), fresh["t"].T)
    assert float(target["scalar"]) == 3.0
    statedict.restore({"part": target["part"]}, {"part": numpy.full((2, 3), 9, dtype)})
    assert numpy.asarray(base)[1:3, ::2].tolist() == [[9] * 3] * 2


@pytest.mark.parametrize(
    ("target", "state", "reason"),
    [
        ({"a": numpy.zeros(2)}, {"a": 3}, "the target is a tensor, the state has a int"),
        ({"a": numpy.zeros(2)}, {"a": [1, 2]}, "the target is a tensor, the state has a list"),
        ({"a": numpy.zeros(2)}, {"a": numpy.zeros(3)}, r"the state has \(3,\), the target \(2,\)"),
        ({"a": numpy.zeros(2)}, {"a": numpy.zeros(2, "f4")}, "float32, the target float64; pass cast=True"),
        ({"a": 3}, {"a": numpy.zeros(2)}, "the target is a int, the state has a ndarray"),
        ({"a": "x"}, {"a": {"b": 1}}, "the target is a str, the state has a dict"),
        ({"a": {"b": 1}}, {"a": 3}, "the target is a dict, the state has a int"),
        ({"a": [1, 2]}, {"a": {"0": 1}}, "the target is a list of 2, the state has a dict"),
        ({"a": (1, 2)}, {"a": (1, 3)}, "is a plain value in a tuple, which cannot be changed"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_says_why_and_changes_nothing(
    target: dict[str, Any], state: dict[str, Any], reason: str
) -> None:
    target = {"first": numpy.zeros(1), **target}
    before = repr(target)
    with pytest.raises(statedict.RestoreError, match=rf"a(\.1)? \(.*{reason}"):
        statedict.restore(target, {"first": numpy.ones(1), **state})
    assert repr(target) == before


def test_a_lazy_tensor_is_no_target(tmp_path: Path) -> None:
    statedict.save({"w": numpy.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(statedict.RestoreError, match="LazyTensor, which is read-only; restore into arrays"):
        statedict.restore(statedict.load(tmp_path / "x.pth"), {"w": numpy.zeros(2)})


def test_arrays_are_captured_as_copies_of_their_kind_and_views_share_memory_again() -> None:
    base = numpy.arange(10.0)
    captured = statedict.capture({"all": base, "part": base[2:5], "t": torch.ones(2)})
    base += 1
    assert type(captured["all"]) is numpy.ndarray
    assert type(captured["t"]) is torch.Tensor
    assert captured["part"].tolist() == [2, 3, 4]
    captured["all"][:] = 0
    assert captured["part"].tolist() == [0, 0, 0]


def test_a_captured_tensor_keeps_its_dtype_shape_and_values_whatever_its_layout() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    tree = {
        "t": torch.arange(6).reshape(2, 3).t(),
        "conj": z.conj(),
        "e": torch.ones(1).expand(5),
        "s": torch.tensor(2).bfloat16(),
    }
    assert_same(statedict.capture(tree), {name: tensor.resolve_conj() for name, tensor in tree.items()})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "on the meta device"),
        (numpy.array(["text"]), "numpy dtype <U4 has no counterpart"),
        (numpy.array([object()]), "numpy dtype object has no counterpart"),
    ],
    ids=["sparse", "meta", "strings", "objects"],
)
def test_an_array_without_plain_memory_is_refused_by_its_path(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(statedict.UnsupportedError, match=rf"model\.w: .*{message}"):
        statedict.capture({"model": {"w": value}})
    with pytest.raises(statedict.UnsupportedError, match=rf"model\.w: .*{message}"):
        statedict.save({"model": {"w": value}}, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []
