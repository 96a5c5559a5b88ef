"""A tensor with Python attributes is the tensor under its own name, and keeps those that are data."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import statedict
import statedict.torch
from statedict.ops.alter.tensors import cast, fuse, pad, reshape, slice, split, transpose
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.testing.same import assert_same
from statedict.values import Opaque

DATA: dict[str, Any] = {
    "lr_scale": 0.5,
    "no_decay": True,
    "nothing": None,
    "shape_of_whole": torch.Size([4, 6]),
    "kind": torch.bfloat16,
    "home": torch.device("cuda:1"),
    "groups": ["a", {"b": (1, 2.5)}],
    "$name": "a name that the skeleton has for itself",
}
LOADED = {**DATA, "shape_of_whole": (4, 6), "kind": statedict.dtype("bfloat16"), "home": "cuda:1"}
JSON = {
    **LOADED,
    "shape_of_whole": {"$size": [4, 6]},
    "kind": {"$dtype": "bfloat16"},
    "home": {"$device": "cuda:1"},
    "groups": ["a", {"b": {"$tuple": [1, 2.5]}}],
}
FORMATS = ["x.pth", "x.safetensors"]


def noted(value: Any, attributes: dict[str, Any] = DATA) -> Any:
    for name, held in attributes.items():
        setattr(value, name, held)
    return value


def tree() -> dict[str, Any]:
    parameter = noted(nn.Parameter(torch.arange(6.0).reshape(2, 3)))
    frozen = noted(nn.Parameter(torch.ones(2), requires_grad=False), {"lr_scale": 2})
    buffer = noted(torch.arange(3), {"persistent": True, "_is_buffer": True})
    young = noted(torch.ones(2, dtype=torch.uint16), {"tag": "x"})
    return {
        "w": parameter,
        "frozen": frozen,
        "tied": parameter,
        "buffer": buffer,
        "young": young,
        "plain": torch.ones(1),
    }


@pytest.mark.parametrize("writer", ["torch", *FORMATS])
def test_a_tensor_keeps_its_name_and_its_attributes(writer: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.pth" if writer == "torch" else writer)
    (torch.save if writer == "torch" else statedict.save)(tree(), path)
    state = statedict.load(path)
    assert_same(state, tree())
    assert state["w"].attributes == state["tied"].attributes == LOADED
    assert state["frozen"].attributes == {"lr_scale": 2}
    assert state["buffer"].attributes == {"persistent": True, "_is_buffer": True}
    assert state["plain"].attributes is None
    assert state["w"].region == state["tied"].region
    assert list(state.tensors()) == list(tree())


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_conversions_keep_attributes_and_give_the_same_bytes_again(source: str, target: str, tmp_path: Path) -> None:
    statedict.save(tree(), tmp_path / source)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        statedict.convert(tmp_path / source, tmp_path / name / target)
    assert statedict.load(tmp_path / "one" / target)["w"].attributes == LOADED
    assert (tmp_path / "one" / target).read_bytes() == (tmp_path / "two" / target).read_bytes()
    assert statedict.verify(tmp_path / "one" / target).ok


def test_pytorch_reads_what_we_write_and_finds_the_attributes(tmp_path: Path) -> None:
    statedict.save(tree(), tmp_path / "x.pth")
    for load in (torch.load, statedict.torch.load):
        loaded = load(tmp_path / "x.pth", weights_only=True)
        for name, expected in tree().items():
            assert type(loaded[name]) is type(expected), name
            assert loaded[name].requires_grad is expected.requires_grad
            assert torch.equal(loaded[name], expected)
            assert vars(loaded[name]) == vars(expected)


def test_the_torch_drop_in_reads_what_torch_saved_as_torch_does(tmp_path: Path) -> None:
    torch.save(tree(), tmp_path / "x.pth")
    old = {name: value for name, value in tree().items() if name != "young"}  # which torch.load cannot read there
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("x.pth", "old.pth"):
        one, other = (load(tmp_path / name, weights_only=True) for load in (torch.load, statedict.torch.load))
        assert {k: vars(v) for k, v in one.items()} == {k: vars(v) for k, v in other.items()}
    assert statedict.load(tmp_path / "old.pth")["w"].attributes == LOADED


def test_capture_strip_and_restore_take_it_as_the_tensor(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    named = OrderedDict((name, noted(parameter, {"lr_scale": 0.5})) for name, parameter in model.named_parameters())
    state = {"model": named, "step": 1}
    captured = statedict.capture(state)
    assert_same(captured["model"], state["model"], flags=False)
    assert captured["model"]["weight"].lr_scale == 0.5
    torch.save(state, tmp_path / "x.pth")
    other = nn.Linear(3, 2)
    noted(other.weight, {"lr_scale": 7})
    statedict.restore({"model": other}, statedict.load(tmp_path / "x.pth"), allow_unexpected="step")
    assert torch.equal(other.weight, model.weight)
    assert other.weight.lr_scale == 7  # what is set on the live tensor is the program's
    other.load_state_dict(statedict.load(tmp_path / "x.pth")["model"])
    statedict.edit(tmp_path / "x.pth", tmp_path / "y.safetensors", [{"strip": True}])
    assert list(statedict.load(tmp_path / "y.safetensors")) == ["weight", "bias"]
    assert statedict.load(tmp_path / "y.safetensors")["weight"].attributes == {"lr_scale": 0.5}
    edited = statedict.load(tmp_path / "x.pth")
    assert cast(edited, "bfloat16")["model"]["weight"].attributes == {"lr_scale": 0.5}


def test_a_file_is_altered_in_place_with_its_attributes(tmp_path: Path) -> None:
    for name in FORMATS:
        statedict.save({"w": noted(nn.Parameter(torch.ones(4000)))}, tmp_path / name)
        statedict.edit(tmp_path / name, tmp_path / name, [{"rename": {"w": "v"}}])
        assert statedict.load(tmp_path / name)["v"].attributes == LOADED
        assert statedict.verify(tmp_path / name).ok


def test_shards_keep_attributes_and_a_distributed_checkpoint_warns_that_it_does_not(tmp_path: Path) -> None:
    state = {"w": noted(nn.Parameter(torch.ones(2)), {"lr_scale": 0.5}), "v": torch.ones(9)}
    statedict.save(state, tmp_path / "shards", max_shard_size=40)
    assert statedict.load(tmp_path / "shards")["w"].attributes == {"lr_scale": 0.5}
    with pytest.warns(UserWarning, match=r"left out: w\.lr_scale"):
        statedict.save(state, tmp_path / "dcp", format="distributed")
    assert_same(statedict.load(tmp_path / "dcp"), state)


def test_show_says_what_a_tensor_carries() -> None:
    state = {"w": noted(nn.Parameter(torch.ones(2)), {"lr_scale": 0.5, "hook": print})}
    text = statedict.inspect(state).root.children[0][1].note
    assert ".lr_scale = 0.5" in text
    assert ".hook is not data" in text
    assert "lr_scale, hook" in as_lazy(state["w"])._repr_html_()


def test_the_json_of_inspect_has_the_attributes(tmp_path: Path) -> None:
    statedict.save(tree(), tmp_path / "x.pth")
    record = json.loads(json.dumps(statedict.inspect(tmp_path / "x.pth").to_json(), allow_nan=False))
    assert {tensor["name"]: tensor["attributes"] for tensor in record["tensors"]} == {
        "w": JSON,
        "frozen": {"lr_scale": 2},
        "tied": JSON,
        "buffer": {"persistent": True, "_is_buffer": True},
        "young": {"tag": "x"},
        "plain": None,
    }


def test_the_json_of_inspect_has_a_text_for_an_attribute_that_is_not_data() -> None:
    (tensor,) = statedict.inspect({"w": noted(torch.ones(2), {"hook": print, "scale": math.inf})}).to_json()["tensors"]
    assert tensor["attributes"] == {
        "hook": "Opaque('builtins.builtin_function_or_method')",
        "scale": {"$float": "inf"},
    }


def test_attributes_that_the_compiler_sets_are_none_of_ours(tmp_path: Path) -> None:
    weight = noted(nn.Parameter(torch.ones(2)), {"_dynamo_static_input_type": "unguarded"})
    assert as_lazy(weight).attributes is None
    torch.save({"w": weight}, tmp_path / "x.pth")
    assert statedict.load(tmp_path / "x.pth")["w"].attributes is None


def test_a_diff_says_which_attributes_differ() -> None:
    one, other = ({"w": noted(torch.ones(2), {"lr_scale": scale, "same": 1})} for scale in (0.5, 0.25))
    (found,) = statedict.diff(one, other).values
    assert (found.path, found.before, found.after) == ("w.lr_scale", 0.5, 0.25)
    assert not statedict.diff(one, {"w": torch.ones(2)}).values  # what one format cannot hold is not a difference


# what is no data


class Thing:
    pass


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]
NO_DATA: dict[str, Any] = {"hook": print, "thing": Thing(), "grad_copy": torch.ones(2), "loop": LOOP, "deep": DEEP}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_data_stays_out_with_a_warning_and_the_weights_are_saved(name: str, tmp_path: Path) -> None:
    state = {"layer": {"w": noted(nn.Parameter(torch.ones(2)), {**NO_DATA, "lr_scale": 0.5})}}
    with pytest.warns(UserWarning, match=r"layer\.w\.hook, layer\.w\.thing, layer\.w\.grad_copy and 2 more"):
        statedict.save(state, tmp_path / name)
    loaded = statedict.load(tmp_path / name)["layer"]["w"]
    assert_same(loaded, state["layer"]["w"])
    assert loaded.attributes == {"lr_scale": 0.5}
    assert "lr_scale" in vars(statedict.capture(state)["layer"]["w"])


@pytest.mark.parametrize("name", FORMATS)
def test_data_that_only_one_format_can_hold_is_kept_by_that_one(name: str, tmp_path: Path) -> None:
    state = {"w": noted(torch.ones(2), {"labels": frozenset("a"), "lr_scale": 0.5})}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        statedict.save(state, tmp_path / name)
    kept = statedict.load(tmp_path / name)["w"].attributes
    assert kept == ({"lr_scale": 0.5} if name == "x.pth" else {"labels": frozenset("a"), "lr_scale": 0.5})
    assert len(said) == (name == "x.pth")
    assert torch.load(tmp_path / name, weights_only=True)["w"].lr_scale == 0.5 if name == "x.pth" else True


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_in_the_attributes_of_a_file_stay_with_it(name: str, tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    weight = noted(nn.Parameter(torch.ones(2)), {"mask": torch.tensor([True, False]), "parts": [whole, whole[1:]]})
    torch.save({"w": weight}, tmp_path / "torch.pth")
    statedict.convert(tmp_path / "torch.pth", tmp_path / name)
    state = statedict.load(tmp_path / name)
    assert list(state.tensors()) == ["w"]
    assert state["w"].attributes["mask"].tolist() == [True, False]
    assert state["w"].attributes["parts"][1].tolist() == [1, 2, 3]
    assert statedict.verify(tmp_path / name).ok
    if name == "x.pth":
        assert torch.equal(torch.load(tmp_path / name, weights_only=True)["w"].mask, weight.mask)


def test_a_tensor_whose_attributes_lead_back_to_it_is_saved_without_that(tmp_path: Path) -> None:
    weight = as_lazy(torch.ones(2))
    weight.attributes = {"self": [weight], "n": 1}
    for name in FORMATS:
        statedict.save({"w": weight}, tmp_path / name)
        loaded = statedict.load(tmp_path / name)["w"]
        assert isinstance(loaded, LazyTensor)
        assert loaded.attributes["n"] == 1
        assert loaded.attributes["self"][0].attributes is None


def test_attributes_that_are_objects_in_a_file_are_labels(tmp_path: Path) -> None:
    torch.save({"w": noted(nn.Parameter(torch.ones(2)), {"thing": Thing(), "n": 1})}, tmp_path / "x.pth")
    loaded = statedict.load(tmp_path / "x.pth")["w"]
    assert isinstance(loaded.attributes["thing"], Opaque)
    assert data_of(loaded.attributes) == {"n": 1}
    with pytest.raises(pickle.UnpicklingError, match="Thing"):
        statedict.torch.load(tmp_path / "x.pth")
    with pytest.warns(UserWarning, match=r"w\.thing"):
        statedict.convert(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert statedict.load(tmp_path / "y.safetensors")["w"].attributes == {"n": 1}


def test_changing_an_attribute_later_changes_no_lazy_tensor() -> None:
    weight = noted(torch.ones(2), {"groups": [1], "scale": numpy.float32(0.5)})
    lazy = as_lazy(weight)
    weight.groups.append(2)
    assert lazy.attributes == {"groups": [1], "scale": 0.5}


def test_a_checkpoint_with_attributes_opens_without_pytorch(tmp_path: Path) -> None:
    torch.save({"w": noted(nn.Parameter(torch.ones(2)))}, tmp_path / "x.pth")
    code = (
        "import sys, statedict; sys.modules['torch'] = None; "
        "print(statedict.load(sys.argv[1])['w'].attributes['lr_scale'])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.pth")], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("0.5\n", "")


ONES, ZEROS = as_lazy(torch.ones(2)), as_lazy(torch.zeros(2))  # as a file gives them


def two_parts(first: Any, other: Any) -> statedict.StateDict:
    parts = {"a": noted(nn.Parameter(torch.ones(2, 4)), first), "b": noted(nn.Parameter(torch.ones(2, 4)), other)}
    return statedict.StateDict({name: as_lazy(part) for name, part in parts.items()})


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (lambda s: cast(s, "bf16"), "a b"),
        (lambda s: transpose(s, "*"), "a b"),
        (lambda s: reshape(s, "*", (8,)), "a b"),
        (lambda s: slice(s, "*", "0:1"), "a b"),
        (lambda s: pad(s, "*", (3, 4)), "a b"),
        (lambda s: split(s, "a", ["c", "d"]), "c d b"),
        (lambda s: fuse(s, ["a", "b"], "c"), "c"),
    ],
    ids=["cast", "transpose", "reshape", "slice", "pad", "split", "fuse"],
)
def test_what_is_altered_keeps_its_attributes_and_its_marks(alter: Any, names: str) -> None:
    new = alter(two_parts(DATA, {**DATA, "groups": ["a", {"b": (1, 2.5)}]}))
    assert list(new) == names.split()
    for tensor in new.values():
        assert tensor.attributes == as_lazy(noted(torch.ones(1))).attributes
        assert tensor.parameter
        assert tensor.requires_grad


@pytest.mark.parametrize(
    ("first", "other"),
    [(0.5, 0.1), (0.5, None), (1, True), (ONES, ZEROS), ([1, ONES], [1, ZEROS])],
    ids=["numbers", "none", "kinds", "tensors", "lists"],
)
def test_parts_with_different_attributes_are_not_fused(first: Any, other: Any) -> None:
    for one, two in ((first, other), (other, first)):
        with pytest.raises(statedict.errors.AlterError, match="a: the parts differ in their attribute 'lr_scale'"):
            fuse(two_parts({"lr_scale": one}, {"lr_scale": two}), ["a", "b"], "c")
    with pytest.raises(statedict.errors.AlterError, match="a: the parts differ in their attribute 'lr_scale'"):
        fuse(two_parts({}, {"lr_scale": first}), ["a", "b"], "c")
    assert fuse(two_parts({"lr_scale": first}, {"lr_scale": first}), ["a", "b"], "c")["c"].shape == (4, 4)
