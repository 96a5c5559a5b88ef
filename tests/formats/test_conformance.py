"""What every format keeps: the one suite that each row of the table runs."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import statedict
from statedict.dtypes import BY_NAME
from statedict.values import Opaque, Size, member

from ..same import assert_same, in_torch, overlaps, patterned, raw
from .conftest import Subject

SAVED_BY_TORCH = [kind for kind in BY_NAME.values() if kind.itemsize and kind.kind != "quantized" and in_torch(kind)]
NO_ARITHMETIC = ("complex32", "bcomplex32", "float4_e2m1fn_x2")

by_dtype = pytest.mark.parametrize("kind", SAVED_BY_TORCH, ids=str)
complex_half = pytest.mark.filterwarnings("ignore:B?Complex(Half|32):UserWarning")  # torch itself warns of complex32


@complex_half
@by_dtype
def test_every_dtype_that_torch_saves_comes_back_bit_by_bit(any_subject: Subject, kind: Any, tmp_path: Path) -> None:
    any_subject.skip_others(kind)
    tree = {"w": patterned(kind, 2, 3), "empty": patterned(kind, 0, 4), "row": patterned(kind, 5)}
    if not (any_subject.name == "safetensors" and kind.name == "float4_e2m1fn_x2"):
        tree["scalar"] = patterned(kind)
    loaded = any_subject.round_trip(tree, tmp_path)
    assert_same(loaded, tree)
    for name, tensor in tree.items():
        again = loaded[name].torch()
        assert again.dtype is tensor.dtype
        assert again.shape == tensor.shape
        assert raw(again) == raw(tensor)


@complex_half
@by_dtype
def test_strided_tensors_of_every_dtype_keep_their_elements(any_subject: Subject, kind: Any, tmp_path: Path) -> None:
    any_subject.skip_others(kind)
    whole = patterned(kind, 4, 6)
    tree = {"t": whole.t(), "every other": patterned(kind, 4, 6)[:, ::2], "row": patterned(kind, 3, 4)[1]}
    assert_same(any_subject.round_trip(tree, tmp_path), tree)


def _views() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "contiguous": base.clone(),
        "transposed": base.clone().t(),
        "sliced": base.clone()[1:3, 2:5],
        "stepped": base.clone()[::2, ::3],
        "expanded": torch.arange(4.0).reshape(4, 1).expand(4, 5),
        "expanded scalar": torch.tensor(3.0).expand(2, 2),
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "zero-dim": torch.tensor(7.0),
        "a scalar in the middle": base.clone()[2, 3],
        "empty": torch.empty(0),
        "empty in a dimension": torch.empty(3, 0, 2),
        "empty of a large one": base.clone()[4:],
        "diagonal": base.clone().diagonal(),
        "unfolded": torch.arange(10.0).unfold(0, 4, 2),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "large": torch.arange(600_000).reshape(600, 1000),
        "large transposed": torch.arange(600_000).reshape(600, 1000).t(),
    }


@pytest.mark.parametrize("name", list(_views()))
def test_every_layout_keeps_its_elements(any_subject: Subject, name: str, tmp_path: Path) -> None:
    tensor = _views()[name]
    any_subject.skip_others(tensor.dtype)
    loaded = any_subject.round_trip({"w": tensor}, tmp_path)["w"]
    assert loaded.shape == tuple(tensor.shape)
    assert torch.equal(loaded.torch(), tensor.resolve_conj())
    assert numpy.array_equal(loaded.numpy(), tensor.resolve_conj().resolve_neg().numpy())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("code", ["<f4", ">f4", ">i8", "<c16", ">u2", "?", "<f2"])
def test_numpy_arrays_of_any_byte_order_and_layout_keep_their_elements(
    any_subject: Subject, code: str, order: Any, tmp_path: Path
) -> None:
    any_subject.skip_others(numpy.dtype(code).name)
    array = numpy.asarray(numpy.arange(24).reshape(4, 6) % 5, code, order=order)
    tree = {"whole": array, "reversed": array[::-1, ::-1], "part": array[1:3, 2:], "scalar": numpy.asarray(array[2, 2])}
    loaded = any_subject.round_trip(tree, tmp_path)
    for name, expected in tree.items():
        assert numpy.array_equal(loaded[name].numpy(), expected), name


def test_a_small_view_of_a_huge_storage_takes_only_its_own_bytes(any_subject: Subject, tmp_path: Path) -> None:
    huge = torch.zeros(8, 1_000_000)
    tree = {"column": torch.zeros(8, 1_000_000)[:, 5], "few": huge[3, 10:20], "start": huge[0, :3], "end": huge[7, -3:]}
    loaded = any_subject.round_trip(tree, tmp_path)
    assert any_subject.size(tmp_path / f"round-trip{any_subject.suffix}") < 8_000
    assert_same(loaded, tree)


def test_an_expanded_tensor_keeps_its_shape(any_subject: Subject, tmp_path: Path) -> None:
    tree = {"w": torch.arange(3.0).expand(1000, 3)}
    assert_same(any_subject.round_trip(tree, tmp_path), tree)


def test_tied_tensors_stay_tied_and_are_stored_once(subject: Subject, tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    tree = {"wte": {"weight": weight}, "lm_head": {"weight": weight}, "list": [weight.detach(), weight.view(100, 100)]}
    loaded = subject.round_trip(tree, tmp_path)
    assert subject.size(tmp_path / f"round-trip{subject.suffix}") < weight.nbytes + 4_000
    assert len(overlaps(loaded)) == 6
    assert set(overlaps(loaded).values()) == {0}
    made = loaded.torch(copy=True)
    made["wte"]["weight"].zero_()
    assert not made["list"][0].any()
    assert not loaded.numpy(copy=False)["wte"]["weight"].flags.writeable


def test_tensors_that_overlap_in_part_keep_their_values_and_where_the_format_can_their_overlap(
    subject: Subject, tmp_path: Path
) -> None:
    base = torch.arange(100.0)
    tree = {
        "all": base,
        "first": base[:60],
        "last": base[40:],
        "odd": base[1::2],
        "bytes": base[50:60].view(torch.uint8),
    }
    loaded = subject.round_trip(tree, tmp_path)
    assert_same(loaded, tree)
    if subject.views:
        assert overlaps(loaded) == overlaps(tree)
        made = loaded.torch(copy=True)
        made["all"].zero_()
        assert not made["odd"].any()
        assert not made["bytes"].any()


def test_tensors_side_by_side_in_one_storage_are_not_mixed_up(any_subject: Subject, tmp_path: Path) -> None:
    flat = torch.arange(30.0)
    tree = {"b": flat[10:20], "a": flat[:10], "none": flat[5:5], "c": flat[20:]}
    assert_same(any_subject.round_trip(tree, tmp_path), tree)


def _tree() -> dict[Any, Any]:
    return {
        "epoch": 3,
        7: "an integer key",
        -1: {0: [torch.ones(2), ()], "0": "the same path as its neighbour's"},
        True: None,
        None: "no key",
        2.5: "a float",
        (1, "two"): "a tuple",
        "": "the empty key",
        "dots.in.keys": {"a.b": 1},
        "dots": {"in": {"keys": 2}},
        "$leaf": {"$tensor": "looks like ours", "$dict": []},
        "list": [1, [2, [3, {"deep": ()}]], {}, []],
        "tuple": (1, (2,), [], ()),
        "numbers": [0, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**63, 2**64, -(2**63) - 1, 3**500, -(3**500)],
        "floats": [0.0, -0.0, 0.1, 1e308, 5e-324, math.inf, -math.inf, math.nan],
        "complex": [1 + 2j, complex(-0.0, math.nan), complex(math.inf, -1)],
        "text": ["", "λ→✓🙂", "a\nb\0c", "\ud800 alone", "x" * 70_000],
        "binary": [b"", b"\0\xff" * 300, bytearray(b"abc")],
        "truth": [True, False, None],
        "sets": [set(), {1, 2, 300}, {"a", "b"}, {(1, 2), (3,)}],
        "counters": [Counter(), Counter({3: 1, 5: 2}), Counter("hello")],
        "torch": [torch.Size([2, 3]), torch.Size([]), torch.bfloat16, torch.device("cuda:1"), torch.device("cpu")],
        "ordered": OrderedDict(b=1, a=2),
        "numpy": [numpy.float32(0.5), numpy.int64(7), numpy.bool_(True)],
        "empty": {},
    }


def test_a_tree_of_every_kind_of_key_container_and_value_comes_back_the_same(subject: Subject, tmp_path: Path) -> None:
    loaded = subject.round_trip(_tree(), tmp_path)
    assert_same(loaded, _tree())
    assert type(loaded) is statedict.StateDict
    assert type(loaded[-1]) is statedict.StateDict
    assert type(loaded["torch"][0]) is Size


def test_parameters_and_requires_grad_come_back(subject: Subject, tmp_path: Path) -> None:
    tree = {
        "parameter": nn.Parameter(torch.ones(2)),
        "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
        "leaf": torch.ones(4, requires_grad=True),
        "plain": torch.ones(5),
        "result": torch.ones(6, requires_grad=True) * 2,
        "half": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "young": nn.Parameter(torch.ones(2).to(torch.float8_e5m2)),
    }
    assert_same(subject.round_trip(tree, tmp_path), tree)


def test_the_module_versions_of_a_state_dict_come_back(subject: Subject, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    own = model.state_dict()
    loaded = subject.round_trip({"model": own, "flat": own}, tmp_path)
    assert loaded["model"]._metadata == own._metadata
    assert type(loaded["model"]._metadata) is OrderedDict
    assert loaded["model"]._metadata["1"] == {"version": 2}
    assert_same(subject.round_trip(own, tmp_path), own)


@pytest.mark.parametrize(
    "root", [torch.arange(3.0), [torch.ones(2), 1], (1, "a"), 5, None, [], Counter("aab")], ids=repr
)
def test_a_root_that_is_no_dict_comes_under_the_empty_key_and_is_saved_as_it_was(
    subject: Subject, root: Any, tmp_path: Path
) -> None:
    loaded = subject.round_trip(root, tmp_path)
    assert list(loaded) == [""]
    assert_same(loaded[""], root)
    again = tmp_path / f"again{subject.suffix}"
    subject.save(loaded, again)
    assert subject.content(again) == subject.content(tmp_path / f"round-trip{subject.suffix}")


def test_metadata_strings_come_back(subject: Subject, tmp_path: Path) -> None:
    tree = statedict.StateDict({"w": torch.ones(2)})
    tree.metadata = {"author": "Ada", "note": "λ\n", "format": "np"}
    loaded = subject.round_trip(tree, tmp_path)
    assert {key: loaded.metadata[key] for key in tree.metadata} == tree.metadata
    assert loaded.metadata == subject.round_trip(loaded, tmp_path).metadata


def test_what_is_no_data_is_kept_as_a_label_or_refused_by_its_path(subject: Subject, tmp_path: Path) -> None:
    tree = {
        "args": [Opaque("argparse.Namespace", None, statedict.StateDict(lr=0.1, w=torch.ones(2)))],
        "w": torch.ones(3),
    }
    if subject.opaque:
        assert_same(subject.round_trip(tree, tmp_path), tree)
    else:
        with pytest.raises(statedict.errors.UnsupportedError, match=r"args\.0: an object of class argparse\.Namespace"):
            subject.round_trip(tree, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_flat_dict_of_tensors_opens_in_the_format_s_own_library(any_subject: Subject, tmp_path: Path) -> None:
    tree = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3).bfloat16(), "steps": torch.tensor(5)}
    any_subject.round_trip(tree, tmp_path)
    theirs = any_subject.peer(tmp_path / f"round-trip{any_subject.suffix}")
    assert sorted(theirs) == sorted(tree)
    for name, tensor in tree.items():
        assert torch.equal(theirs[name], tensor)


def test_the_same_tree_makes_the_same_bytes(subject: Subject, tmp_path: Path) -> None:
    one, other = tmp_path / f"one{subject.suffix}", tmp_path / f"other{subject.suffix}"
    subject.save(_tree(), one)
    subject.save(_tree(), other)
    assert subject.content(one) == subject.content(other)
    subject.save(statedict.load(one), other)
    assert subject.content(one) == subject.content(other)


keys = (
    st.text(max_size=5) | st.integers(-3, 300) | st.booleans() | st.none() | st.floats() | st.tuples(st.integers(0, 9))
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**2000), 2**2000)
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=20)
    | st.complex_numbers()
    | st.sets(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3), max_size=4)
    | st.lists(st.integers(0, 5), max_size=4).map(torch.Size)
    | st.sampled_from([torch.float32, torch.device("cpu"), torch.device("cuda", 3)])
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3).map(Counter)
)
members = st.builds(member, st.sampled_from(["lab.Norm", "lab.Other"]), st.text(max_size=3) | st.integers(-3, 1 << 70))
tensors = st.builds(
    lambda kind, shape, transpose: (
        patterned(kind, *shape).T if transpose and len(shape) == 2 else patterned(kind, *shape)
    ),
    st.sampled_from([kind for kind in SAVED_BY_TORCH if kind.kind != "bits" and kind.name not in NO_ARITHMETIC]),
    st.lists(st.integers(0, 4), max_size=3),
    st.booleans(),
)


def grow(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys.filter(lambda key: key == key), inner, max_size=4)
        ),
        max_leaves=20,
    )


torch_trees = grow(plain | tensors)
trees = grow(plain | members | tensors)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_any_tree_round_trips(subject: Subject, tree: Any, tmp_path: Path) -> None:
    try:
        loaded = subject.round_trip(tree, tmp_path, fsync=False)
    except statedict.errors.UnsupportedError as error:
        assume(subject.name != "distributed" or "two entries have this name" not in str(error))  # as of None and "None"
        raise
    assert_same(loaded if type(tree) is dict else loaded[""], tree)
