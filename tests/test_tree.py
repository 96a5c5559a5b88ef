"""StateDict: nesting, paths, flatten and its exact inverse."""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import pickle
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import dtype
from statedict.errors import CorruptFileError, PathError, TreeError, UnsupportedError
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.tree.state_dict import StateDict, decode, transform, unflatten
from statedict.tree.walk import encode, free_name, walk
from statedict.values import Device, Opaque, Size, from_json, to_json

keys = st.text(max_size=5) | st.sampled_from(["a", "a.b", "", "1", "$leaf", "$dict"]) | st.integers(-5, 5) | st.booleans() | st.none() | st.tuples(st.integers(0, 3), st.text(max_size=2))  # fmt: skip  # noqa: E501
leaves = st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.sampled_from([Size((2,)), Device("cpu")])  # fmt: skip  # noqa: E501
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4).map(StateDict)
        | st.builds(
            Opaque,
            st.text(max_size=4),
            st.none() | st.lists(inner, max_size=2).map(tuple),
            st.none() | st.dictionaries(keys, inner, max_size=2).map(StateDict),
            st.none() | st.lists(inner, max_size=2),
            st.none() | st.dictionaries(keys, inner, max_size=2).map(StateDict),
        )
    ),
    max_leaves=20,
)
dicts = st.dictionaries(keys, trees, max_size=5).map(StateDict)


def same(one: Any, other: Any) -> bool:
    """Equal in value, in type and in the order of keys, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return [*map(repr, one)] == [*map(repr, other)] and all(map(same, one.values(), other.values()))
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Opaque):
        return all(same(getattr(one, slot), getattr(other, slot)) for slot in Opaque.__slots__)
    return bool(one == other)


@given(dicts)
def test_unflatten_is_the_exact_inverse_of_flatten(tree: StateDict) -> None:
    flat = tree.flatten()
    assert same(flat.unflatten(), tree)
    assert same(unflatten(dict(flat), flat.skeleton), tree)
    assert same(StateDict.unflatten(flat), tree)


@given(dicts)
def test_a_skeleton_survives_json(tree: StateDict) -> None:
    flat = tree.flatten()
    assert same(unflatten(flat, json.loads(json.dumps(flat.skeleton))), tree)


@given(dicts)
def test_flatten_and_walk_see_every_leaf_in_order(tree: StateDict) -> None:
    flat = tree.flatten()
    walked = list(walk(tree))
    assert len(walked) == len(flat)
    for (path, leaf), (name, value) in zip(walked, flat.items(), strict=True):
        assert leaf is value
        assert name == path or name.startswith(f"{path}~")


@given(dicts)
def test_replaced_leaves_come_back_in_their_places(tree: StateDict) -> None:
    flat = tree.flatten()
    for index, path in enumerate(flat):
        flat[path] = index
    assert [leaf for _, leaf in walk(flat.unflatten())] == list(range(len(flat)))


@given(
    st.dictionaries(
        st.text("ab$1", min_size=1), leaves | st.dictionaries(st.text("ab$1", min_size=1), leaves, min_size=1)
    )
)
def test_a_path_without_dots_in_its_keys_leads_to_its_leaf(tree: dict[str, Any]) -> None:
    state = StateDict(tree)
    for path, leaf in walk(state):
        assert state.at(path) is leaf


def test_a_path_leads_through_dicts_lists_opaques_and_keys_with_dots() -> None:
    state = StateDict(
        {"model": {"conv1.weight": 1, "conv1": {"bias": 2}},
         "optimizer": {"state": {0: {"step": 3}}, "groups": [{"lr": 4}]},
         "config": Opaque("a.B", (5,), {"lr": 6}, [7], {"k": 8})}
    )  # fmt: skip
    paths = ["model.conv1.weight", "model.conv1.bias", "optimizer.state.0.step", "optimizer.groups.0.lr",
             "config.args.0", "config.lr", "config.items.0", "config.k"]  # fmt: skip
    assert [state.at(path) for path in paths] == list(range(1, 9))
    assert [leaf for path, leaf in walk(state)] == list(range(1, 9))
    assert state.at("optimizer.state") == {0: {"step": 3}}
    assert state.at("config").name == "a.B"


def test_a_path_that_is_missing_is_named_with_the_nearest_ones() -> None:
    state = StateDict({"model": {"conv1": {"weight": 1}}})
    with pytest.raises(PathError, match=r"no entry 'model.conv.weight' among 1; did you mean model.conv1.weight\?"):
        state.at("model.conv.weight")
    with pytest.raises(PathError, match=r"the first is 'model\.conv1\.weight'"):
        state.at("zzz")
    with pytest.raises(KeyError, match="it is empty"):
        StateDict().at("x")


def test_entries_of_one_path_get_a_tilde_and_a_number() -> None:
    state = StateDict({1: "a", "1": "b", "1~2": "c"})
    assert list(state.flatten().items()) == [("1", "a"), ("1~2", "b"), ("1~2~2", "c")]
    state = StateDict({"a.b": 1, "a": {"b": 2}})
    assert dict(state.flatten()) == {"a.b": 1, "a.b~2": 2}
    assert state.flatten().unflatten() == state


@given(st.integers(0, 300))
def test_the_free_name_is_the_next_one_however_many_are_taken(count: int) -> None:
    taken: dict[str, int] = {}
    for index in range(count):
        taken[free_name("a", taken)] = index
    assert list(taken) == ["a", *(f"a~{number}" for number in range(2, count + 1))][:count]


def test_many_entries_of_one_path_take_no_quadratic_time() -> None:
    state = StateDict({Opaque("a"): index for index in range(60_000)})
    assert len(state.tensors()) == 0
    assert len(StateDict({Opaque("a"): np.zeros(0) for _ in range(30_000)}).tensors()) == 30_000


@pytest.mark.parametrize(
    ("flat", "message"),
    [({"a": 1, "a.b": 2}, "'a' is both a leaf and a parent"), ({"a.b": 1, "a": 2}, "'a' is both a leaf and a parent"),
     ({".".join("a" * 300): 1}, "nested deeper than 200")],
)  # fmt: skip
def test_paths_that_contradict_each_other_are_refused(flat: dict[str, int], message: str) -> None:
    with pytest.raises(TreeError, match=message):
        unflatten(flat)


def test_paths_and_skeleton_that_do_not_agree_are_refused() -> None:
    flat = StateDict({"a": {"b": 1}, "c": 2}).flatten()
    del flat["c"]
    with pytest.raises(TreeError, match="the skeleton has an entry 'c' that the flat dict lacks"):
        flat.unflatten()
    flat["c"] = flat["d"] = 3
    with pytest.raises(TreeError, match="1 paths are not in the skeleton, the first is 'd'"):
        flat.unflatten()


@pytest.mark.parametrize(
    "skeleton", [{"$tuple": 1}, {"$dict": [1]}, {"$dict": [[[], 1]]}, {"$opaque": "a", "b": []}, {"$leaf": []}]
)
def test_a_skeleton_that_is_none_is_refused(skeleton: Any) -> None:
    with pytest.raises((CorruptFileError, TreeError)):
        unflatten({"a": 1}, skeleton)


def test_a_skeleton_may_be_as_deep_as_a_tree_and_no_deeper() -> None:
    tree: Any = 1
    for _ in range(200):
        tree = [tree]
    skeleton = encode(tree, lambda _, leaf: to_json(leaf))
    assert decode(skeleton, from_json) == tree
    with pytest.raises(TreeError, match="nested deeper than 200"):
        decode([[skeleton]], from_json)


# trees that are hostile, or merely strange


def nested(depth: int, kind: type) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = {"a": tree} if kind is dict else Opaque("a", state=tree) if kind is Opaque else kind([tree])
    return tree


@pytest.mark.parametrize("kind", [dict, list, tuple, Opaque])
def test_nesting_of_200_is_fine_and_of_10000_is_an_error_of_ours(kind: type) -> None:
    assert len(list(walk(nested(200, kind)))) == 1
    assert len(list(walk(transform(nested(200, kind), lambda leaf: leaf)))) == 1
    for operation in (walk, lambda tree: transform(tree, lambda leaf: leaf)):
        with pytest.raises(TreeError, match="nested deeper than 200"):
            operation(nested(10_000, kind))


def test_a_tree_that_contains_itself_is_refused() -> None:
    loop = StateDict(a=[1])
    loop["a"].append({"b": loop})
    for operation in (walk, StateDict.flatten, StateDict.tensors, lambda tree: transform(tree, lambda leaf: leaf)):
        with pytest.raises(TreeError, match="contains itself"):
            operation(loop)


def family() -> StateDict:
    """A tree whose object is referred to by its parts, as omegaconf's nodes refer to their parents."""
    parent = Opaque("a.Config", (), StateDict())
    parent.state["content"] = [Opaque("a.Node", (), StateDict(w=np.ones(2, "f4"), parent=parent))]
    return StateDict(config=parent, lr=0.1)


def test_an_object_that_its_parts_refer_to_is_only_named_there() -> None:
    assert [path for path, _ in walk(family())] == ["config.content.0.w", "lr"]
    assert [path for path, _ in walk(family()["config"].state)] == ["content.0.w"]
    found = family().flatten().unflatten()["config"].state["content"][0]
    assert found.state["parent"] == Opaque("a.Config")
    assert "lr" in family().numpy()


def test_an_object_that_its_parts_refer_to_is_transformed_once() -> None:
    made = transform(family(), lambda leaf: leaf)["config"]
    assert made.state["content"][0].state["parent"] is made


def laughs(depth: int, width: int) -> StateDict:
    tree: Any = [np.zeros(2, "f4")]
    for _ in range(depth):
        tree = [tree] * width
    return StateDict(a=tree)


def test_a_few_containers_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    for operation in (StateDict.flatten, StateDict.tensors, StateDict.numpy):
        with pytest.raises(TreeError, match="containers that are shared multiply"):
            operation(laughs(100, 10))


def test_a_few_containers_that_multiply_are_transformed_once_and_shown_in_part() -> None:
    seen = []
    made = transform(laughs(100, 10), lambda leaf: seen.append(leaf) or 7)
    assert len(seen) == 1
    assert made["a"][0] is made["a"][9]
    assert len(laughs(100, 10)._repr_html_()) < 2_000_000


def test_long_keys_over_many_leaves_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(TreeError, match="the paths have more than 268,435,456 characters"):
        walk({"k" * 1_000_000: [0] * 10_000})


def test_a_container_in_several_places_is_several_entries() -> None:
    shared = {"lr": 0.1}
    state = StateDict(groups=[shared] * 5)
    assert list(state.flatten()) == [f"groups.{index}.lr" for index in range(5)]
    assert state.flatten().unflatten() == state


def test_tensors_are_found_whatever_the_keys_are() -> None:
    weight = np.ones(2, "f4")
    strange = {Opaque("some.Class"): {"w": weight}, frozenset([1]): [weight], 1j: weight}
    state = StateDict(strange)
    state._metadata = {"": Opaque("a")}
    assert [t.shape for t in state.tensors().values()] == [(2,)] * 3
    assert "some.Class.w" in state.tensors()
    with pytest.raises(UnsupportedError):
        state.flatten()


# what a StateDict carries and gives


def test_a_state_dict_is_a_dict_that_copies_and_pickles_with_what_it_carries() -> None:
    state = StateDict({"w": 1, 2: [3]})
    state._metadata = OrderedDict({"": {"version": 1}})
    state.metadata = {"license": "MIT"}
    for made in (state.copy(), copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state)),
                 transform(state, lambda leaf: leaf), state.flatten().unflatten()):  # fmt: skip
        assert same(made, state)
        assert made is not state
        assert (made._metadata, made.metadata) == (state._metadata, state.metadata)
    copied = state.copy()
    copied.metadata["more"] = "x"
    assert isinstance(state, dict)
    assert "more" not in state.metadata


def test_a_state_dict_loads_into_a_module_as_it_is() -> None:
    module = torch.nn.BatchNorm1d(3)
    state = StateDict({name: as_lazy(tensor + 1) for name, tensor in module.state_dict().items()})
    state._metadata = module.state_dict()._metadata
    other = torch.nn.BatchNorm1d(3)
    assert not any(other.load_state_dict(state))
    assert torch.equal(other.running_var, module.running_var + 1)


def test_arrays_of_every_kind_are_leaves_and_tied_ones_stay_tied() -> None:
    weight, array = torch.arange(6.0).reshape(2, 3), np.arange(3)
    state = StateDict(
        a=weight, b=[weight, weight.T], c=array, n=Counter(x=1), o=Opaque("a.B", state={"t": array}), d=dtype("bf16")
    )
    assert all(isinstance(tensor, LazyTensor) for tensor in state.tensors().values())
    assert list(state.tensors()) == ["a", "b.0", "b.1", "c", "o.t"]
    owned = state.torch(copy=True)
    assert type(owned) is dict
    assert torch.equal(owned["b"][1], weight.T)
    owned["a"][0, 1] = 50
    assert owned["b"][0][0, 1] == owned["b"][1][1, 0] == 50
    assert weight[0, 1] == 1
    assert owned["d"] is torch.bfloat16
    shared = state.torch()
    shared["a"][0, 2] = 70
    assert weight[0, 2] == 70
    numbers = state.numpy(copy=True)
    numbers["a"][1, 0] = 90
    assert numbers["b"][0][1, 0] == 90
    assert weight[1, 0] == 3
    assert numbers["o"].state["t"].tolist() == [0, 1, 2]


def test_sizes_and_devices_become_those_of_torch() -> None:
    real = StateDict(size=Size((2, 3)), device=Device("cuda:1"), epoch=3).torch()
    assert (real["size"], real["device"], real["epoch"]) == (torch.Size((2, 3)), torch.device("cuda:1"), 3)
    assert type(real["size"]) is torch.Size


def test_module_versions_come_along_into_plain_dicts() -> None:
    state = StateDict(w=np.zeros(1))
    state._metadata = OrderedDict({"": {"version": 2}})
    assert state.numpy()._metadata == {"": {"version": 2}}  # type: ignore[attr-defined]


def test_a_notebook_sees_the_tree_escaped_and_in_part() -> None:
    state = StateDict({"<b>": {"w": np.zeros((2, 3), "f4")}, "many": list(range(1500)), "o": Opaque("a.<i>", (1,))})
    html = state._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<i>" not in html
    assert "<small>float32</small> <small>2×3</small> <small>24 B</small>" in html
    assert "… 1,000 more" in html


# a key that is missing


def test_a_missing_key_is_a_key_error_that_suggests_the_nearest() -> None:
    state = StateDict({"model_state": {"fc.weight": 1}, "epoch": 3, 7: 0})
    with pytest.raises(KeyError, match=r"no key 'model_stat' among 3; did you mean model_state\?") as caught:
        state["model_stat"]
    assert isinstance(caught.value, PathError)
    assert caught.value.args == ("model_stat",)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(KeyError, match=r"no key 'zzz' among 3; the first is 'model_state'"):
        state["zzz"]
    with pytest.raises(KeyError, match=r"no key 8 among 3"):
        state[8]
    with pytest.raises(KeyError, match=r"it is a path, use \.at\('model_state\.fc\.weight'\)"):
        state["model_state.fc.weight"]
    with pytest.raises(KeyError, match="it is empty"):
        StateDict()["x"]


def test_a_missing_key_that_nobody_reads_of_costs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda *args: searched.append(args[0]) or [])
    state = StateDict({f"layer.{n}": n for n in range(100)})
    assert state.get("nope") is None
    assert "nope" not in state
    assert state.pop("nope", None) is None
    with contextlib.suppress(KeyError):
        state["nope"]
    assert not searched
    with pytest.raises(KeyError, match="no key 'nope'"):
        state["nope"]
    assert searched
