"""Plain Python: containers, arrays, and objects by their attributes."""

from __future__ import annotations

import enum
import ipaddress
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy
import pytest
import torch

import statedict
from statedict.adapters.collect import parameters
from statedict.testing.same import assert_same

T = TypeVar("T")


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
    with pytest.raises(statedict.errors.RestoreError, match="the target is a list of 1, the state has 2 entries"):
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
    with pytest.raises(statedict.errors.RestoreError, match=rf"a(\.1)? \(.*{reason}"):
        statedict.restore(target, {"first": numpy.ones(1), **state})
    assert repr(target) == before


def test_a_lazy_tensor_is_no_target(tmp_path: Path) -> None:
    statedict.save({"w": numpy.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(statedict.errors.RestoreError, match="LazyTensor, which is read-only; restore into arrays"):
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
    with pytest.raises(statedict.errors.UnsupportedError, match=rf"model\.w: .*{message}"):
        statedict.capture({"model": {"w": value}})
    with pytest.raises(statedict.errors.UnsupportedError, match=rf"model\.w: .*{message}"):
        statedict.save({"model": {"w": value}}, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


class OnlyStateDict:
    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}


class Reduced:
    def __init__(self) -> None:
        self.a = 1

    def __reduce__(self) -> Any:
        return Reduced, ()


class FromCError(ValueError):
    pass


class Unit(numpy.ndarray):
    """An array that carries its unit."""


def with_unit() -> Any:
    array = numpy.ones(2).view(Unit)
    array.unit = "m"  # type: ignore[attr-defined]
    return array


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2).untyped_storage(), "torch.storage.UntypedStorage"),
        (torch.ones(2)._typed_storage(), "torch.storage.TypedStorage"),
        (random.SystemRandom(), "random.SystemRandom"),
        (Fraction(1, 3), "fractions.Fraction"),
        (ipaddress.ip_address("127.0.0.1"), "ipaddress.IPv4Address"),
        (Path("x"), r"pathlib.PosixPath; store str\(path\)"),
        (numpy.ma.masked_array([1.0, 2.0], [True, False]), "MaskedArray; store its data and what it adds"),
        (with_unit(), "Unit; store its data and what it adds"),
        (OnlyStateDict(), r"OnlyStateDict; it has state_dict\(\) but no load_state_dict\(\)"),
        (Reduced(), "Reduced"),
        (FromCError("x"), "FromCError"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_an_object_whose_attributes_are_not_its_whole_state_is_refused_by_its_path(
    value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match=rf"model\.w: cannot capture a .*{message}"):
        statedict.capture({"model": {"w": value}})
    with pytest.raises(statedict.errors.UnsupportedError, match=rf"model\.w: cannot capture a .*{message}"):
        statedict.save({"model": {"w": value}}, tmp_path / "x.pth")
    with pytest.raises(statedict.errors.UnsupportedError, match=r"model\.w: cannot capture a "):
        statedict.restore({"model": {"w": value}}, {"model": {"w": numpy.ones(2)}})
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True, slots=True)
class Frozen:
    mean: Any


class Typed(Generic[T]):
    def __init__(self) -> None:
        self.mean = numpy.ones(2)


def test_frozen_slots_and_generic_classes_are_plain_objects() -> None:
    for one, other in ((Frozen(numpy.ones(2)), Frozen(numpy.zeros(2))), (Typed(), Typed())):
        one.mean[:] = 5
        statedict.restore(other, statedict.capture(one))
        assert other.mean.tolist() == [5, 5]


def test_a_memory_map_is_an_array_like_any_other(tmp_path: Path) -> None:
    mapped = numpy.memmap(tmp_path / "x.bin", "f4", "w+", shape=(2,))
    mapped[:] = 3
    assert statedict.capture({"w": mapped})["w"].tolist() == [3, 3]
    statedict.restore({"w": mapped}, {"w": numpy.ones(2, "f4")})
    assert mapped.tolist() == [1, 1]
    assert statedict.capture({"w": mapped[1:] + 1})["w"].tolist() == [2]


def read_only() -> Any:
    array = numpy.zeros(2)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (read_only(), "the target is a read-only array"),
        (torch.zeros(1).double().expand(2), "elements of the target share memory"),
        (torch.zeros(2, device="meta").double(), "the target is on the meta device"),
        (torch.zeros(2).double().to_sparse(), "the target has the layout torch.sparse_coo"),
    ],
    ids=["read-only", "overlapping", "meta", "sparse"],
)
def test_a_target_that_cannot_be_written_is_found_before_anything_is(target: Any, reason: str) -> None:
    first = numpy.zeros(1)
    with pytest.raises(statedict.errors.RestoreError, match=rf"nothing was written:\n.*target: w \({reason}"):
        statedict.restore({"first": first, "w": target}, {"first": numpy.ones(1), "w": numpy.ones(2)})
    assert first.tolist() == [0]
    report = statedict.restore({"w": target}, {"w": numpy.ones(2)}, dry_run=True)
    assert len(report.problems) == 1
    assert report.entries == ()


class Failing:
    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise KeyError("b")


def test_an_error_while_writing_says_which_entry_failed_and_what_was_written() -> None:
    target = {"first": numpy.zeros(1), "parts": [Failing()], "last": numpy.zeros(1)}
    state = {"first": numpy.ones(1), "parts": [{"a": 1}], "last": numpy.ones(1)}
    with pytest.raises(
        statedict.errors.RestoreError, match=r"^parts\.0: .*KeyError: 'b'\nthe entries before it were written"
    ) as info:
        statedict.restore(target, state)
    assert type(info.value.__cause__) is KeyError
    assert target["first"].tolist() == [1]
    assert target["last"].tolist() == [0]
    with pytest.raises(statedict.errors.RestoreError, match=r"^the root: .*KeyError"):
        statedict.restore(Failing(), {"a": 1})


def nested(depth: int, kind: Any) -> Any:
    tree: Any = [numpy.ones(1)]
    for _ in range(depth - 1):
        tree = {"a": tree} if kind is dict else kind([tree]) if kind in (list, tuple) else kind(tree)
    return tree


@pytest.mark.parametrize("kind", [dict, list, tuple, Frozen])
def test_a_tree_that_is_nested_too_deep_is_refused_by_its_path(kind: Any, tmp_path: Path) -> None:
    message = r"'(a|0|mean)(\.(a|0|m|me|mea|mean)?)*': nested deeper than 200"
    for depth in (202, 5000):
        with pytest.raises(statedict.errors.TreeError, match=message):
            statedict.capture({"tree": nested(depth, kind)}["tree"])
        with pytest.raises(statedict.errors.TreeError, match=message):
            statedict.save(nested(depth, kind), tmp_path / "x.pth")
        with pytest.raises(statedict.errors.TreeError, match=message):
            parameters(nested(depth, dict))
    assert list(tmp_path.iterdir()) == []
    assert str(statedict.capture(nested(200, kind))).count("1.") == 1
