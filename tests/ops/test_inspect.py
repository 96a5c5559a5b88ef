from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.reports.summary import Total
from statedict.tensor.lazy import as_lazy
from statedict.tree.layout import is_optimizer
from statedict.tree.roles import find_roles, is_model
from statedict.values import Opaque

from ..work import assert_linear, steps


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_roles_tell_parameters_buffers_and_optimizer_state_apart() -> None:
    model, optimizer = trained()
    summary = statedict.inspect(
        statedict.capture({"model": model, "optimizer": optimizer, "extra": {"x": [np.ones(2)]}})
    )
    roles = {info.path: info.role for info in summary.tensors}
    assert roles["model.0.weight"] == "parameter"
    assert roles["model.1.running_mean"] == "buffer"
    assert roles["optimizer.state.0.exp_avg"] == "optimizer"
    assert roles["extra.x.0"] == "tensor"


def test_moments_carry_the_name_of_their_parameter() -> None:
    model, optimizer = trained()
    summary = statedict.inspect(statedict.capture({"model": model, "optimizer": optimizer}))
    assert {info.parameter for info in summary.tensors if info.role == "optimizer"} == {
        name for name, _ in model.named_parameters()
    }


def test_an_object_that_its_parts_refer_to_is_only_named_there() -> None:
    parent = statedict.Opaque("a.Config", (), {})
    parent.state["content"] = {"node": statedict.Opaque("a.Node", (), {"w": np.ones(2), "parent": parent})}
    summary = statedict.inspect({"config": parent})
    assert [tensor.path for tensor in summary.tensors] == ["config.content.node.w"]
    assert summary.opaque == {"a.Config": 1, "a.Node": 1}


def test_a_few_containers_that_multiply_are_refused() -> None:
    tree: list[object] = [[1]]
    for _ in range(100):
        tree = [tree, tree]
    with pytest.raises(statedict.errors.TreeError, match="containers that are shared multiply"):
        statedict.inspect({"a": tree})


def test_tied_tensors_count_once() -> None:
    shared = torch.zeros(10)
    summary = statedict.inspect({"a": shared, "b": shared})
    assert summary.total == Total(2, 10, 40)
    assert summary.tensors[1].tied == "a"


def test_bytes_that_no_tensor_covers_are_wasted() -> None:
    big = torch.zeros(100)
    assert statedict.inspect({"x": big[:10], "y": big[5:20]}).wasted == 320
    assert statedict.inspect({"x": big}).wasted == 0


@given(
    st.recursive(
        st.integers(0, 4).map(lambda n: np.zeros((n, 2), "float32")) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=6), inner, max_size=4) | st.lists(inner, max_size=3),
        max_leaves=12,
    ).map(lambda tree: {"root": tree})
)
def test_the_totals_are_the_sums_of_the_tensors(tree: object) -> None:
    state = statedict.StateDict(tree)  # type: ignore[call-overload]
    summary = statedict.inspect(state)
    tensors = state.tensors().values()
    assert summary.total.tensors == len(tensors)
    assert summary.total.elements == sum(t.numel() for t in tensors)
    assert len(summary.values) + len(tensors) == len(state.flatten())
    json.dumps(summary.to_json())


def test_optimizers_and_models_are_found_at_any_depth() -> None:
    model, optimizer = trained()
    tree = {"gan": {"g": model.state_dict(), "o": optimizer.state_dict()}, "n": 1}
    assert [path for _, path, _ in find_roles(tree)] == ["gan.g", "gan.o"]
    assert is_model(model.state_dict())
    assert is_optimizer(optimizer.state_dict())
    assert not is_model({"a": 1})


def test_objects_that_are_no_data_are_counted_by_name() -> None:
    opaque = statedict.Opaque("lib.Config", args=(), state=statedict.StateDict({"w": torch.ones(2)}))
    summary = statedict.inspect({"config": opaque})
    assert summary.opaque == {"lib.Config": 1}
    assert [info.path for info in summary.tensors] == ["config.w"]


def test_the_cost_grows_linearly_with_the_tensors() -> None:
    def cost(count: int) -> int:
        state = statedict.StateDict({f"layers.{i}.weight": np.zeros(1) for i in range(count)})
        return steps(lambda: statedict.inspect(state))

    assert_linear(cost, 1_000, 4_000)


def test_the_summary_shows_itself_in_a_notebook() -> None:
    assert "<b>w</b> <small>float64</small> <small>2</small>" in statedict.inspect({"w": np.zeros(2)})._repr_html_()


def test_a_summary_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        statedict.inspect({}).wasted = 1  # type: ignore[misc]


@pytest.mark.parametrize("keys", [[1, "1"], [None, "None"], ["", "."], ["a.", "a.."], ["." * 3000, "." * 3000 + "b"]])
def test_keys_that_read_alike_are_shown_side_by_side(keys: list[object]) -> None:
    summary = statedict.inspect({key: np.zeros(1) for key in keys})
    assert len({info.path for info in summary.tensors}) == 2


def test_objects_in_keys_and_sets_are_named() -> None:
    red, blue = Opaque("lab.Color", ("red",)), Opaque("lab.Color", ("blue",))
    state = {"by": {red: np.zeros(1), (blue, 2): 3}, "both": {red, blue}, "weights": {as_lazy(np.zeros((2, 3))): 1}}
    summary = statedict.inspect(state)
    assert summary.opaque == {"lab.Color": 4}
    assert [info.path for info in summary.tensors] == ["by.lab.Color('red')"]
    assert "weights.float64[2,3]" in summary.values
    found = statedict.StateDict(state)
    assert list(found.tensors()) == ["by.lab.Color('red')"]
    assert found.at("by.lab.Color('red')") is state["by"][red]


def test_objects_in_sets_are_text_in_json() -> None:
    summary = statedict.inspect({"both": {Opaque("lab.Color", ("red",))}, "list": [1, 2.5, float("nan")]})
    values = json.loads(json.dumps(summary.to_json(), allow_nan=False))["values"]
    assert values == {"both": "{Opaque('lab.Color')}", "list.0": 1, "list.1": 2.5, "list.2": {"$float": "nan"}}


def test_a_path_is_opened_as_load_opens_it() -> None:
    assert statedict.inspect("examples/checkpoint.pth") == statedict.inspect(statedict.load("examples/checkpoint.pth"))
    with pytest.raises(statedict.errors.MissingFileError):
        statedict.inspect("checkpoint.pth")
