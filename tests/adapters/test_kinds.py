"""What an object gets back is of the kind that it has there: containers, arrays, scalars."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import statedict
from statedict.errors import RestoreError
from statedict.testing.same import assert_same

from .test_labels import Extra, Holder, pair

Point = namedtuple("Point", ["x", "y"])
Wide = namedtuple("Wide", ["x", "y", "z"])


class Table(dict[str, Any]):
    def __init__(self, *args: Any, name: str) -> None:  # which no copy can call
        super().__init__(*args)
        self.name = name


class Row(list[Any]):
    pass


class Text(str):
    pass


def swapped(values: Any) -> Any:
    array = numpy.asarray(values)
    return array.astype(array.dtype.newbyteorder())


KINDS: dict[str, tuple[Any, Any]] = {
    "Counter": (Counter(a=3, b=1), Counter(c=1)),
    "namedtuple": (Point(3, [1.5, "x"]), Point(0, [0.0, "y"])),
    "namedtuple with a tensor": (Point(torch.ones(2), 1), Point(torch.zeros(2), 0)),
    "float64": (numpy.float64(2.5), numpy.float64(0)),
    "float32": (numpy.float32(2.5), numpy.float32(0)),
    "int64": (numpy.int64(7), numpy.int64(0)),
    "bool": (numpy.True_, numpy.False_),
    "complex": (numpy.complex64(2.5j), numpy.complex64(0)),
    "array": (numpy.arange(6, dtype="float32").reshape(2, 3), numpy.zeros(1, "float32")),
    "array of ints": (numpy.arange(3, dtype="uint16"), numpy.zeros(3, "uint16")),
    "array of the other byte order": (swapped([1.5, 2]), swapped([0.0])),
    "scalar array": (numpy.array(7), numpy.array(0)),
    "defaultdict": (defaultdict(list, a=[1]), defaultdict(list)),
    "OrderedDict": (OrderedDict(b=1, a=numpy.ones(2)), OrderedDict(a=numpy.zeros(2))),
    "dict": (Table({"a": [1, Point(1, 2)]}, name="one"), Table({"a": [0, Point(0, 0)]}, name="two")),
    "list": (Row([1, numpy.int8(2)]), Row([0, numpy.int8(0)])),
    "text": (Text("one"), Text("two")),
    "longer list": ([numpy.float32(1.5)] * 3, [numpy.float32(0)]),
    "nested": ({"a": [(Counter(a=1), numpy.ones(2))]}, {"a": [(Counter(), numpy.zeros(2))]}),
}


def build(place: str, value: Any, seed: int) -> tuple[dict[str, Any], Any]:
    """A live tree with a value somewhere, or nothing, and what reads it there."""
    if place == "extra state":
        return {"m": nn.ModuleList([Extra(value)])}, lambda tree: tree["m"][0].value
    if place == "object":
        return {"h": Holder(value)}, lambda tree: tree["h"].held
    tree = pair(torch.optim.SGD, seed=seed, lr=0.1, momentum=0.9)
    if place == "scheduler":
        tree["s"] = torch.optim.lr_scheduler.StepLR(tree["optimizer"], 5)
        tree["s"].mine = value
        return tree, lambda tree: tree["s"].mine
    group, state = tree["optimizer"].param_groups[0], tree["optimizer"].state[tree["model"].weight]
    if value is not None:
        (group if place == "group" else state)["kept"] = value
    elif place == "state":
        tree["optimizer"].state.clear()
    if place == "group":
        return tree, lambda tree: tree["optimizer"].param_groups[0]["kept"]
    return tree, lambda tree: tree["optimizer"].state[tree["model"].weight]["kept"]


PLACES = ["extra state", "object", "scheduler", "group", "state"]


def write(tree: dict[str, Any], folder: Path, form: str) -> Any:
    if form == "capture":
        return statedict.capture(tree)
    if form == "torch":
        torch.save({key: part.state_dict() for key, part in tree.items()}, folder / "x.pth")
        return folder / "x.pth"
    statedict.save(tree, folder / form, format="distributed" if form == "distributed" else None)
    return folder / form


def assert_alike(one: Any, other: Any) -> None:
    """The same kinds and values at every depth."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        assert getattr(one, "default_factory", 0) == getattr(other, "default_factory", 0)
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif isinstance(one, torch.Tensor | numpy.ndarray):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()
    else:
        assert one == other


FORMS = ["x.pth", "x.safetensors", "distributed", "torch", "capture"]
OBJECTS = ("text", "dict")  # in a pickle objects that are more than their entries


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "form"), [(kind, form) for kind in KINDS for form in FORMS if form != "torch" or kind not in OBJECTS]
)
def test_an_object_gets_back_the_kind_that_it_has(kind: str, place: str, form: str, tmp_path: Path) -> None:
    value, live = copy.deepcopy(KINDS[kind])
    tree, get = build(place, value, 1)
    target, _ = build(place, live, 2)
    statedict.restore(target, write(tree, tmp_path, form))
    assert_alike(get(target), value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_an_array_and_a_counter_come_back_where_the_object_has_nothing_yet(
    form: str, place: str, tmp_path: Path
) -> None:
    value = {"a": [numpy.arange(3, dtype="uint16"), torch.ones(2)], "b": Counter(a=1), "c": (numpy.array(2.5),)}
    tree, get = build(place, copy.deepcopy(value), 1)
    target, _ = build(place, None, 2)
    statedict.restore(target, write(tree, tmp_path, form))
    assert_alike(get(target), value)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("place", PLACES)
def test_an_object_in_a_pickle_is_refused_whatever_it_is_based_on(place: str, kind: str, tmp_path: Path) -> None:
    value, live = copy.deepcopy(KINDS[kind])
    tree, _ = build(place, value, 1)
    target, _ = build(place, live, 2)
    with pytest.raises(RestoreError, match=rf"object: .*is an object of .*{type(value).__name__}"):
        statedict.restore(target, write(tree, tmp_path, "torch"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_a_named_tuple_of_other_fields_is_refused_before_anything_is_written(
    form: str, place: str, tmp_path: Path
) -> None:
    tree, _ = build(place, Point(1, 2), 1)
    live = Wide(1, 2, 3)
    target, get = build(place, live, 2)
    before = statedict.capture(target)
    with pytest.raises(
        RestoreError, match=r"object: .*(cannot become a .*Wide: Expected 3 arguments, got 2|of .*Point)"
    ):
        statedict.restore(target, write(tree, tmp_path, form))
    assert_same(statedict.capture(target), before)
    assert get(target) is live


class Frozen(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("is frozen")


class Pair(tuple[Any, ...]):
    def __new__(cls, one: Any, other: Any) -> Pair:
        return super().__new__(cls, (one, other))


@pytest.mark.parametrize(("live", "value"), [(Frozen(a=1), {"a": 2}), (Pair(1, 2), (3, 4)), ([Pair(1, 2)], [(3, 4)])])
@pytest.mark.parametrize("place", PLACES)
def test_a_container_that_takes_no_entries_is_refused_before_anything_is_written(
    place: str, live: Any, value: Any
) -> None:
    (tree, _), (target, _) = build(place, value, 1), build(place, live, 2)
    before = statedict.capture(target)
    with pytest.raises(
        RestoreError, match=r"object: .*cannot become a .*(Frozen: is frozen|Pair: .*missing 1 required)"
    ):
        statedict.restore(target, statedict.capture(tree))
    assert_same(statedict.capture(target), before)


def test_a_scalar_keeps_its_value_where_the_live_kind_cannot_hold_it() -> None:
    live = [numpy.float32(1), numpy.int8(1), numpy.int64(1), numpy.float64(1), Text("x"), numpy.float32(1)]
    target = Holder(list(live))
    values = [0.1, 300, True, 2, 5, float("nan")]
    statedict.restore({"h": target}, {"h": {"held": list(values)}})
    assert_alike(target.held[:5], values[:5])
    assert type(target.held[5]) is numpy.float32


def test_an_array_stays_one_through_formats_and_edits(tmp_path: Path) -> None:
    tree, _ = build("object", {"a": numpy.ones(3), "t": torch.ones(3)}, 1)
    path: Any = tmp_path / "a.pth"
    statedict.save(tree, path)
    assert type(torch.load(path)["h"]["held"]["a"]) is torch.Tensor
    for name in ("b.safetensors", "shards/", "distributed", "c.pth"):
        new = str(tmp_path / name) + "/" * name.endswith("/")
        statedict.convert(path, new, format="distributed" if name == "distributed" else None)
        path = new
        state = statedict.load(path)
        assert [state["h"]["held"][key].ndarray for key in "at"] == [True, False]
        assert {type(tensor) for tensor in state.torch()["h"]["held"].values()} == {torch.Tensor}
    statedict.edit(path, None, [{"cast": "float16"}, {"slice": "h.held.*", "index": "0:2"}])
    target, get = build("object", None, 1)
    statedict.restore(target, path)
    assert_alike(get(target), {"a": numpy.ones(2, "float16"), "t": torch.ones(2, dtype=torch.float16)})


def test_a_flat_state_of_arrays_is_a_plain_file(tmp_path: Path) -> None:
    statedict.save({"w": numpy.ones(3)}, tmp_path / "x.safetensors")
    assert b'"statedict":' not in (tmp_path / "x.safetensors").read_bytes()


def test_a_tensor_replaces_a_tensor_whatever_the_state_has() -> None:
    target = Holder(torch.zeros(2))
    statedict.restore({"h": target}, {"h": {"held": numpy.ones(2, "float32")}})
    assert_alike(target.held, torch.ones(2))


def test_an_optimizer_steps_on_with_what_pytorch_cannot_load() -> None:
    trees = [pair(torch.optim.Adam, seed=seed, lr=0.1) for seed in (1, 2)]
    for tree in trees:
        tree["optimizer"].state[tree["model"].weight]["kept"] = Point(torch.ones(2), numpy.ones(1))
    statedict.restore(trees[1], statedict.capture(trees[0]))
    for tree in trees:
        tree["optimizer"].zero_grad()
        tree["model"](torch.ones(4, 3)).square().sum().backward()
        tree["optimizer"].step()
    assert_same(trees[1]["model"].state_dict(), trees[0]["model"].state_dict())
