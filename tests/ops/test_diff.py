"""Two checkpoints compared: each kind of difference is found, and nothing else is."""

from __future__ import annotations

import copy
import itertools
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.errors import AlterError
from statedict.io.source import ComputedSource
from statedict.tensor.lazy import LazyTensor, Storage

from ..work import assert_linear, steps

KEYS = ("weight", "bias")


def trained(steps: int = 2) -> dict[str, Any]:
    """A checkpoint with a model, an optimizer, and values of every sort."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "rng": (3, tuple(range(625)), None),
        "torch_rng": torch.get_rng_state(),
        "scheduler": {"last_epoch": 2, "milestones": [1, 2], "gamma": math.nan},
    }
    return copy.deepcopy(tree)


def counts(found: statedict.reports.Diff) -> dict[str, int]:
    made: dict[str, int] = {}
    for tensor in found.tensors:
        made[tensor.kind] = made.get(tensor.kind, 0) + 1
    return made


def test_a_checkpoint_is_the_same_as_its_copy() -> None:
    one = trained()
    found = statedict.diff(one, copy.deepcopy(one))
    assert found.same
    assert counts(found) == {"identical": found.identical}
    assert str(found).startswith("same: ")


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.complex_numbers(), st.sampled_from([numpy.zeros(3), numpy.arange(4.0), numpy.full(2, math.nan)]),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=4), TREES, max_size=5))
def test_any_tree_is_the_same_as_itself_and_not_as_one_with_an_entry_more(tree: dict[str, Any]) -> None:
    found = statedict.diff(tree, copy.deepcopy(tree))
    assert found.same, found
    json.dumps(found.to_json(), allow_nan=False)
    more = statedict.diff(tree, {**tree, "one more": 1})
    assert [value.path for value in more.values] == ["one more"]
    json.dumps(more.to_json(), allow_nan=False)
    assert not statedict.diff({**tree, "one more": 1}, tree).same


def save(tree: Any, path: Path, kind: str) -> Path:
    if kind == "dcp":
        from .. import dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(tree, path / "dcp")
        return path / "dcp"
    target = path / {"torch": "x.pt", "pth": "x.pth", "safetensors": "x.safetensors", "folder": "shards"}[kind]
    if kind == "torch":
        torch.save(tree, target)
    else:
        statedict.save(tree, target, **({"max_shard_size": "1kB"} if kind == "folder" else {}))
    return target


@pytest.mark.parametrize("kind", ["torch", "pth", "safetensors", "folder", "dcp"])
@pytest.mark.parametrize("other", ["torch", "safetensors"])
def test_formats_make_no_difference(kind: str, other: str, tmp_path: Path) -> None:
    tree = {"model": trained()["model"], "epoch": 3}
    (tmp_path / "b").mkdir()
    one, two = save(tree, tmp_path, kind), save(tree, tmp_path / "b", other)
    found = statedict.diff(one, two)
    assert found.same, found
    assert found.identical == len(tree["model"])
    tree["model"]["0.weight"][0, 0] += 1
    tree["epoch"] = 4
    changed = statedict.diff(one, tree)
    assert [tensor.path for tensor in changed.changed] == ["model.0.weight"]
    assert [value.path for value in changed.values] == ["epoch"]


def change(act: Callable[[Any], None]) -> statedict.reports.Diff:
    one = trained()
    other = copy.deepcopy(one)
    act(other)
    return statedict.diff(one, other)


def test_a_changed_tensor_is_measured() -> None:
    found = change(lambda state: state["model"]["0.weight"].add_(0.5))
    assert counts(found) == {"identical": 27, "changed": 1}
    measures = found.changed[0].measures
    assert measures is not None
    assert (measures.elements, measures.share) == (30, 1.0)
    assert measures.max_abs == pytest.approx(0.5, rel=1e-5)
    assert not found.same


def test_another_dtype_with_equal_values_is_said_to_have_them() -> None:
    def act(state: Any) -> None:
        state["model"]["0.bias"] = state["model"]["0.bias"].double()
        state["model"]["0.weight"] = state["model"]["0.weight"].bfloat16()

    found = change(act)
    assert [(tensor.path, tensor.equal) for tensor in found.retyped] == [
        ("model.0.weight", False),
        ("model.0.bias", True),
    ]
    assert not found.same


def test_equal_numbers_of_another_dtype_are_no_difference_to_numeric() -> None:
    one = {"w": torch.arange(5.0)}
    for other in (torch.arange(5.0, dtype=torch.bfloat16), torch.arange(5), torch.arange(5).to(torch.complex64)):
        assert statedict.diff(one, {"w": other}, numeric=True).same
        assert not statedict.diff(one, {"w": other}).same
        assert not statedict.diff(one, {"w": other + 1}, numeric=True).same


def test_another_shape_is_told_and_whether_the_elements_are_equal() -> None:
    def act(state: Any) -> None:
        state["model"]["0.weight"] = state["model"]["0.weight"].reshape(-1)
        state["model"]["2.weight"] = torch.zeros(7)

    found = change(act)
    assert [(tensor.path, tensor.equal, tensor.shapes) for tensor in found.reshaped] == [
        ("model.0.weight", True, ((5, 6), (30,))),
        ("model.2.weight", None, ((3, 5), (7,))),
    ]


def test_added_and_removed_tensors() -> None:
    def act(state: Any) -> None:
        del state["model"]["2.weight"]
        state["model"]["3.weight"] = torch.randn(4)

    found = change(act)
    assert ([t.path for t in found.added], [t.path for t in found.removed]) == (["model.3.weight"], ["model.2.weight"])


def test_a_renamed_tensor_is_found_by_its_bytes_and_one_that_changed_is_not() -> None:
    one = {"a": torch.randn(4, 4), "b": torch.randn(4, 4)}
    found = statedict.diff(one, {"x": one["b"].clone(), "y": one["a"] + 1})
    assert [(t.before, t.after) for t in found.renamed] == [("b", "x")]
    assert ([t.path for t in found.added], [t.path for t in found.removed]) == (["y"], ["a"])


def test_constant_tensors_are_renamed_only_where_other_names_say_so_or_one_is_left() -> None:
    zeros = {"a": torch.zeros(9), "b": torch.zeros(9), "w": torch.randn(4)}
    found = statedict.diff(zeros, {"x": torch.zeros(9), "b": torch.zeros(9), "v": zeros["w"]})
    assert {(t.before, t.after, t.weak) for t in found.renamed} == {("a", "x", True), ("w", "v", False)}
    found = statedict.diff(zeros, {"x": torch.zeros(9), "y": torch.zeros(9), "w": zeros["w"]})
    assert (found.renamed, {t.same_as for t in found.added}) == ((), {"a"})
    one = {f"layers.{n}.{k}": v for n in range(5) for k, v in layer(n).items()}
    other = {key.replace("layers", "blocks").replace("fc", "linear"): value for key, value in one.items()}
    found = statedict.diff(one, other)
    assert {t.before: t.after for t in found.renamed} == dict(zip(one, other, strict=True))
    assert {t.before for t in found.renamed if t.weak} == {name for name in one if not name.endswith("fc.weight")}


def test_a_scalar_that_is_renamed_is_paired_and_marked() -> None:
    weight = torch.randn(3, 3)
    one = {"w": weight, "temperature": torch.tensor(14.5), "bias": torch.zeros(3)}
    other = {"w": weight, "logit_scale": torch.tensor(14.5), "shift": torch.zeros(3)}
    found = statedict.diff(one, other)
    assert {(t.before, t.after, t.weak) for t in found.renamed} == {
        ("temperature", "logit_scale", True), ("bias", "shift", True),
    }  # fmt: skip
    assert (found.added, found.removed) == ((), ())
    assert str(found).count("(same bytes, proves little)") == 2
    assert found._repr_html_().count("(same bytes, proves little)") == 2
    assert "proves little" in found.renamed[0]._repr_html_()
    assert {*found.to_json()["weak"]} == {"logit_scale", "shift"}
    assert found.renamed[0].to_json()["weak"]


def test_constants_that_changed_places_are_changes() -> None:
    found = statedict.diff({"a": torch.zeros(5), "b": torch.ones(5)}, {"a": torch.ones(5), "b": torch.zeros(5)})
    assert [t.path for t in found.changed] == ["a", "b"]
    found = statedict.diff({"a": torch.zeros(5), "b": torch.ones(5)}, {"a": torch.ones(5), "c": torch.zeros(5)})
    assert found.renamed == ()


def layer(number: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(number)
    return {"fc.weight": torch.randn(6, 6), "fc.bias": torch.zeros(6), "norm.weight": torch.ones(6)}


def test_a_layer_put_in_front_shifts_the_others() -> None:
    one = {f"layers.{n}.{k}": v for n in range(5) for k, v in layer(n).items()}
    other = {f"layers.{n}.{k}": v for n in range(6) for k, v in layer(n - 1).items()}
    found = statedict.diff(one, other)
    assert {(t.before, t.after) for t in found.renamed} == {
        (f"layers.{n}.fc.weight", f"layers.{n + 1}.fc.weight") for n in range(5)
    }
    assert not found.changed
    assert "layers.0.fc.weight" in [t.path for t in found.added]
    back = statedict.diff(other, one)
    assert len(back.renamed) == 5
    assert not back.changed


def test_a_copy_of_what_was_there_is_no_renaming() -> None:
    one = {"encoder": torch.randn(5), "decoder": torch.randn(5)}
    found = statedict.diff(one, {"encoder": one["encoder"] + 1, "decoder": one["encoder"].clone()})
    assert ([t.path for t in found.changed], found.renamed) == (["encoder", "decoder"], ())
    found = statedict.diff(one, {**one, "encoder": one["encoder"] + 1, "kept": one["encoder"].clone()})
    assert [t.path for t in found.changed] == ["encoder"]
    assert [(t.path, t.same_as) for t in found.added] == [("kept", "encoder")]


def test_two_tensors_that_changed_places_are_renamed() -> None:
    one = {"a": torch.randn(5), "b": torch.randn(5)}
    found = statedict.diff(one, {"a": one["b"], "b": one["a"]})
    assert [(t.before, t.after) for t in found.renamed] == [("b", "a"), ("a", "b")]


def test_a_prefix_moves_the_model_and_the_state_of_its_optimizer() -> None:
    one, other = trained(), trained()
    other["model"] = {f"module.{name}": tensor for name, tensor in other["model"].items()}
    other["model"]["module.0.weight"] = other["model"]["module.0.weight"] + 1
    found = statedict.diff(one, other)
    assert counts(found) == {"identical": 27, "changed": 1}
    assert {(rule.before, rule.after) for rule in found.moved} == {
        ("model", "model.module"),
        ("optimizer.state", "optimizer.state.module"),
    }
    assert (found.values, found.same) == ((), False)
    assert statedict.diff({"state_dict": one["model"]}, one["model"]).moved[0].count == len(one["model"])


def test_what_most_names_do_not_share_is_no_prefix() -> None:
    one = {"a.x": torch.randn(3), "b.x": torch.randn(3), "c.x": torch.randn(3)}
    found = statedict.diff(one, {"module.a.x": one["a.x"], "q": torch.randn(3), "r": torch.randn(3)})
    assert not found.moved
    assert [(t.before, t.after) for t in found.renamed] == [("a.x", "module.a.x")]


def regrouped(tree: dict[str, Any], groups: list[list[int]], named: bool) -> dict[str, Any]:
    """The checkpoint with its optimizer's parameters in other groups, and numbered anew."""
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    optimizer = tree["optimizer"]
    order = [number for group in groups for number in group]
    new = {old: number for number, old in enumerate(order)}
    (group,) = optimizer["param_groups"]
    made = {
        "state": {new[number]: entry for number, entry in optimizer["state"].items()},
        "param_groups": [
            {**group, "params": [new[n] for n in some]} | ({"param_names": [names[n] for n in some]} if named else {})
            for some in groups
        ],
    }
    return {**tree, "optimizer": made}


def test_an_optimizer_in_another_order_is_compared_by_the_names_of_its_parameters() -> None:
    one = trained()
    found = statedict.diff(one, regrouped(trained(), [[5, 3, 1, 0, 2, 4]], True))
    assert found.same, found
    assert any("another order" in note for note in found.notes)
    assert any("inferred" in note for note in found.notes)
    other = regrouped(trained(), [[5, 3, 1, 0, 2, 4]], True)
    other["optimizer"]["state"][0]["exp_avg"] += 1
    found = statedict.diff(one, other)
    assert [t.path for t in found.changed] == ["optimizer.state.2.bias.exp_avg"]


def test_other_groups_are_a_difference_and_their_settings_are_compared_where_they_meet() -> None:
    other = regrouped(trained(), [[0, 2, 4], [1, 3, 5]], True)
    found = statedict.diff(regrouped(trained(), [[0, 1, 2, 3, 4, 5]], True), other)
    assert [value.path for value in found.values] == ["optimizer.param_groups.params"]
    assert found.identical == len(found)
    other["optimizer"]["param_groups"][1]["weight_decay"] = 0
    found = statedict.diff(regrouped(trained(), [[0, 1, 2, 3, 4, 5]], True), other)
    assert [value.path for value in found.values] == [
        "optimizer.param_groups.params",
        "optimizer.param_groups.0→1.weight_decay",
    ]


def test_groups_that_changed_places_are_the_same() -> None:
    one = regrouped(trained(), [[0, 2, 4], [1, 3, 5]], True)
    other = regrouped(trained(), [[1, 3, 5], [0, 2, 4]], True)
    assert statedict.diff(one, other).same
    other["optimizer"]["param_groups"][0]["lr"] = 7.0
    assert [value.path for value in statedict.diff(one, other).values] == ["optimizer.param_groups.1→0.lr"]


def test_an_optimizer_whose_names_cannot_be_told_is_compared_by_number() -> None:
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    torch.stack(parameters).sum().backward()
    optimizer.step()
    one = optimizer.state_dict()
    other = copy.deepcopy(one)
    assert statedict.diff(one, other).same
    other["state"][1]["momentum_buffer"] += 1
    found = statedict.diff(one, other)
    assert [t.path for t in found.changed] == ["state.1.momentum_buffer"]
    assert any("by number" in note for note in found.notes)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (math.nan, math.nan, True), (1, 1.0, False), (1, True, False), (0.0, -0.0, False), ([1], (1,), False),
        ([1, 2], [1, 2], True), ([1, 2], [1, 3], False), ("a", b"a", False), ({}, None, False), ({1, 2}, {2, 1}, True),
        ((1, (math.nan,)), (1, (math.nan,)), True), (complex(0, math.nan), complex(0, math.nan), True),
    ],
)  # fmt: skip
def test_values_are_equal_with_their_types(one: Any, other: Any, same: bool) -> None:
    found = statedict.diff({"x": {"y": one}}, {"x": {"y": other}})
    assert found.same is same
    assert [(value.kind, value.path) for value in found.values] == [("changed", "x.y")] * (not same)


def test_a_key_of_another_type_is_a_difference() -> None:
    found = statedict.diff({"s": {1: 2}}, {"s": {"1": 2}})
    assert [value.path for value in found.values] == ["s.1 (the key)"]


def test_a_long_list_is_one_line() -> None:
    one = trained()
    other = {**one, "rng": (3, (0, *range(2, 626)), None)}
    found = statedict.diff(one, other)
    assert len(found.values) == 1
    assert "624 differ" in str(found)
    assert max(map(len, str(found).splitlines())) < 200


def test_ties_of_one_side_get_a_note() -> None:
    tied = {"a": torch.randn(4)}
    tied["b"] = tied["a"]
    apart = {"a": tied["a"].clone(), "b": tied["a"].clone()}
    found = statedict.diff(tied, apart)
    assert found.same
    assert found.notes == ("tied in A, not in B: b = a",)
    assert statedict.diff(apart, tied).notes == ("tied in B, not in A: b = a",)
    assert statedict.diff(tied, tied).notes == ()


def test_names_only_reads_no_tensor(tmp_path: Path) -> None:
    one, other = trained()["model"], trained()["model"]
    other["0.weight"] += 1
    other["2.bias"] = other["2.bias"].half()
    statedict.save(one, tmp_path / "one.safetensors")
    statedict.save(other, tmp_path / "other.safetensors")
    reading = (statedict.load(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    found = statedict.diff(*(unreadable(state) for state in reading), names_only=True)
    assert counts(found) == {"identical": 8, "retyped": 1}
    assert "no tensor was read" in str(found)


def unreadable(state: Any) -> dict[str, Any]:
    def refuse(*_: Any) -> None:
        raise AssertionError("it was read")

    return {
        name: LazyTensor(t.dtype, t.shape, Storage(ComputedSource(t.nbytes, refuse), 0, t.nbytes))
        for name, t in state.items()
    }


def test_a_tolerance_makes_close_what_lies_within_it() -> None:
    one = {"a": torch.ones(5), "b": torch.ones(5)}
    other = {"a": torch.ones(5) + 1e-4, "b": torch.ones(5) + 1e-2}
    found = statedict.diff(one, other, rtol=1e-3)
    assert ([t.path for t in found.close], [t.path for t in found.changed]) == (["a"], ["b"])
    assert not found.same
    assert statedict.diff(one, other, atol=0.1).same
    assert statedict.diff(one, {k: v.bfloat16() for k, v in other.items()}, atol=0.1, numeric=True).same


def test_only_looks_at_what_matches() -> None:
    one, other = trained(), trained(3)
    assert not statedict.diff(one, other).same
    assert statedict.diff(one, other, only="epoch").same
    found = statedict.diff(one, other, only=["model.0.*"])
    assert {t.path for t in found} == {"model.0.weight", "model.0.bias"}
    with pytest.raises(AlterError, match="no entry of"):
        statedict.diff(one, other, only="nothing.*")


def test_a_diff_filters_and_sorts() -> None:
    one = {name: torch.ones(4) for name in "abcd"}
    found = statedict.diff(
        one, {"a": torch.ones(4) * 2, "b": torch.ones(4) * 9, "c": torch.ones(4), "e": torch.ones(4)}
    )
    assert [t.path for t in found.filter("changed").sort()] == ["b", "a"]
    assert [t.path for t in found.sort("path", reverse=False)] == ["a", "b", "c", "d", "e"]
    assert [t.path for t in found.filter(only="a")] == ["a"]
    assert [t.path for t in found.filter(where=lambda t: t.relative > 5)] == ["b"]
    assert found.filter("identical").same
    with pytest.raises(ValueError, match="unknown 'altered'; expected one of identical, close"):
        found.filter("altered")
    with pytest.raises(ValueError, match="unknown 'size'; expected one of relative, max_abs"):
        found.sort("size")


def test_strided_tensors_are_compared_by_their_elements() -> None:
    one = torch.randn(30, 40)
    assert statedict.diff({"w": one.t()}, {"w": one.t().contiguous()}).same
    assert statedict.diff({"w": one.t()}, {"w": one.clone().t()}).same
    assert not statedict.diff({"w": one.t()}, {"w": (one + 1).t()}).same
    assert statedict.diff({"w": torch.ones(3, 1).expand(3, 50)}, {"w": torch.ones(3, 50)}).same


def test_an_executor_finds_the_same(tmp_path: Path) -> None:
    one, other = trained(), trained(3)
    other["model"]["new"] = other["model"].pop("0.weight")
    statedict.save(one, tmp_path / "one.pth")
    statedict.save(other, tmp_path / "other.safetensors")
    here = statedict.diff(tmp_path / "one.pth", tmp_path / "other.safetensors")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        there = statedict.diff(tmp_path / "one.pth", tmp_path / "other.safetensors", executor=pool)
    assert here.to_json() == there.to_json()


def test_the_cost_of_finding_renames_is_linear(tmp_path: Path) -> None:
    def cost(count: int) -> int:
        values = torch.randn(count, 16)
        one = {f"layers.{n}.weight": values[n] for n in range(count)} | {"x": torch.zeros(3)}
        other = {f"blocks.{count - n}.linear.weight": values[n] for n in range(count)} | {"y": torch.zeros(3)}
        statedict.save(one, tmp_path / "one.safetensors")
        statedict.save(other, tmp_path / "other.safetensors")
        found: list[statedict.reports.Diff] = []
        taken = steps(
            lambda: found.append(statedict.diff(tmp_path / "one.safetensors", tmp_path / "other.safetensors"))
        )
        assert {t.before: t.after for t in found[0].renamed} == {
            f"layers.{n}.weight": f"blocks.{count - n}.linear.weight" for n in range(count)
        } | {"x": "y"}
        return taken

    assert_linear(cost, 1_000, 4_000)


def test_a_key_put_into_every_layer_is_no_prefix_for_each_of_them() -> None:
    def cost(layers: int) -> int:
        random = numpy.random.default_rng(0)
        one = {f"layers.{n}.attn.{k}": random.standard_normal(4) for n in range(layers) for k in ("weight", "bias")}
        other = {name.replace("attn", "attn.inner"): array.copy() for name, array in one.items()}
        found: list[statedict.reports.Diff] = []
        taken = steps(lambda: found.append(statedict.diff(one, other)))
        assert (found[0].moved, len(found[0].renamed)) == ((), 2 * layers)
        return taken

    assert_linear(cost, 500, 2_000)


def test_what_only_looks_like_an_optimizer_is_compared_all_the_same() -> None:
    for params in ([[1]], [None], ["w", 2], [0, 0]):
        odd = {"o": {"state": {0: {"x": 1}}, "param_groups": [{"params": params, "lr": 1}]}, "w": torch.ones(2)}
        assert statedict.diff(odd, copy.deepcopy(odd)).same
        other = copy.deepcopy(odd)
        other["o"]["param_groups"][0]["lr"] = 2
        assert [value.path for value in statedict.diff(odd, other).values] == ["o.param_groups.0.lr"]


def test_live_objects_are_compared_with_files(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    live = {"model": model, "optimizer": optimizer}
    statedict.save(live, tmp_path / "x.pth")
    assert statedict.diff(live, tmp_path / "x.pth").same
    optimizer.param_groups[0]["lr"] = 0.2
    model(torch.randn(4, 3))
    found = statedict.diff(tmp_path / "x.pth", live)
    assert [value.path for value in found.values] == ["optimizer.param_groups.0.lr"]
    assert {tensor.path for tensor in found.changed} == {
        f"model.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_values_that_json_has_not_are_written_as_text() -> None:
    odd = statedict.Opaque("lab.Color", ("red",))
    made = statedict.diff({"x": 1, "s": {1}}, {"x": odd, "s": {odd}, "n": 1 << 80}).to_json()["values"]
    assert json.loads(json.dumps(made, allow_nan=False))["changed"][0]["after"] == "Opaque('lab.Color')"


def test_json_holds_what_a_script_needs() -> None:
    one = {"a": torch.ones(4), "b": torch.randn(4), "n": 1, "inf": math.inf}
    made = statedict.diff(one, {"a": torch.ones(4) * 2, "c": one["b"], "n": 2, "d": torch.ones(2)}).to_json()
    text = json.loads(json.dumps(made, allow_nan=False))
    assert (text["identical"], text["renamed"]) == (0, [["b", "c"]])
    assert (text["changed"][0]["name"], text["changed"][0]["max_abs"], text["changed"][0]["share"]) == ("a", 1.0, 1.0)
    assert [entry["name"] for entry in text["added"]] == ["d"]
    assert text["values"]["changed"] == [{"path": "n", "before": 1, "after": 2}]
    assert text["values"]["removed"] == [{"path": "inf", "before": {"$float": "inf"}}]


def test_a_tensor_that_as_numbers_is_not_equal_to_itself_is_changed_and_not_renamed() -> None:
    state = {name: torch.tensor([math.nan, 1.0, 2.0, last]) for name, last in (("a", 3.0), ("b", 3.0), ("c", 4.0))}
    found = statedict.diff(state, {**state, "copy": state["a"]}, numeric=True)
    assert counts(found) == {"changed": 3, "added": 1}
    assert statedict.diff(state, copy.deepcopy(state)).same


@pytest.mark.parametrize(
    ("shape", "strides"), [((6, 64), (64, 0)), ((2, 2), (3, 0)), ((2, 2), (3, 1)), ((3, 2), (1, 1))]
)
def test_what_lies_between_the_elements_of_a_view_is_no_difference(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    one = torch.arange(400.0)
    other = torch.full((400,), -1.0)
    places = torch.arange(400).as_strided(shape, strides).flatten()
    other[places] = one[places]
    views = [{"w": some.as_strided(shape, strides)} for some in (one, other)]
    assert torch.equal(views[0]["w"], views[1]["w"])
    assert statedict.diff(*views).same
    other[0] += 1
    (measures,) = (tensor.measures for tensor in statedict.diff(*views))
    assert measures is not None
    assert measures.elements == views[0]["w"].numel()
    assert measures.changed == int((views[0]["w"] != views[1]["w"]).sum())
    norms = [float(torch.linalg.vector_norm(x.double())) for x in (views[0]["w"] - views[1]["w"], views[0]["w"])]
    assert measures.relative == pytest.approx(norms[0] / norms[1])


def test_what_is_repeated_a_billion_times_is_compared_once() -> None:
    one, other = ({"w": torch.tensor([[1.0], [last]]).expand(2, 1 << 32)} for last in (2.0, 3.0))
    assert statedict.diff(one, {"w": torch.tensor([[1.0], [2.0]]).expand(2, 1 << 32)}).same
    (measures,) = (tensor.measures for tensor in statedict.diff(one, other))
    assert measures is not None
    assert (measures.elements, measures.changed, measures.max_abs) == (1 << 33, 1 << 32, 1)


def test_a_list_a_tuple_and_a_dict_of_the_same_tensors_are_not_the_same() -> None:
    ones = torch.ones(2)
    kinds = {"list": [ones], "tuple": (ones,), "dict": {"0": ones}}
    for one, other in itertools.product(kinds, kinds):
        found = statedict.diff({"x": kinds[one], "y": 1}, {"x": kinds[other], "y": 1})
        said = [(value.path, value.before, value.after) for value in found.values]
        assert found.identical == 1
        assert said == ([] if one == other else [("x (the container)", one, other)])
        assert statedict.diff({"x": kinds[one], "y": 1}, {"x": kinds[other], "y": 1}, only="y").same
    (value,) = statedict.diff([ones], (ones,)).values
    assert value.path == "(the container)"
    assert statedict.diff({"x": {0: ones}}, {"x": [ones]}).values[0].before == "dict"
    assert statedict.diff({"x": {}}, {"x": {"0": ones}}).added


def test_a_filter_leaves_out_the_moves_of_what_it_leaves_out() -> None:
    state = {f"layers.{n}.w": torch.full((3,), float(n)) for n in range(4)} | {"head": torch.ones(2), "epoch": 1}
    found = statedict.diff(state, {name.replace("layers", "blocks"): value for name, value in state.items()})
    assert [rule.after for rule in found.filter(only="blocks.1").moved] == ["blocks"]
    assert not found.filter(only="blocks.1").same
    assert found.filter(only="head").same
    assert found.filter("changed").same


def test_an_optimizer_that_goes_by_names_is_compared_by_these() -> None:
    one = trained()
    numbers, names = one["optimizer"]["param_groups"][0]["params"], [f"{n}.{key}" for n in (0, 1, 2) for key in KEYS]
    state = {name: one["optimizer"]["state"][number] for number, name in zip(numbers, names, strict=True)}
    other = one | {
        "optimizer": {"state": state, "param_groups": [one["optimizer"]["param_groups"][0] | {"params": names}]}
    }
    assert statedict.diff(other, copy.deepcopy(other)).notes == ()
    found = statedict.diff(one, other)
    assert found.same
    assert found.notes == ("optimizer: the names of its parameters are inferred from order and shapes in A",)
    del other["model"]
    assert statedict.diff(other, copy.deepcopy(other)).notes == ()


def test_what_became_nan_changed_most_and_is_not_measured_as_nothing() -> None:
    one = {f"layers.{i}.w": numpy.full((8, 8), 1.0 + i, numpy.float32) for i in range(40)}
    other = {name: value + numpy.float32(0.001) for name, value in one.items()}
    other["layers.7.w"] = numpy.full((8, 8), numpy.nan, numpy.float32)
    found = statedict.diff(one, other)
    assert found.sort().tensors[0].path == "layers.7.w"
    assert str(found).splitlines()[2].split()[:5] == ["layers.7.w", "rel", "–", "max", "–"]
