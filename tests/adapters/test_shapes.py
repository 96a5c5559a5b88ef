"""Tensors whose shape is not their target's: every policy, for parameters and for what optimizers keep of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import statedict
from statedict.adapters.shapes import POLICIES, Fit
from statedict.tensor.lazy import as_lazy
from statedict.testing.same import assert_same

from .test_optimizer_state import Keeping
from .test_torch_optimizer import OPTIMIZERS, OPTIONS


class Language(nn.Module):
    def __init__(self, words: int, classes: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 4), nn.Linear(4, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens)).sum()


def trained(words: int, classes: int = 2, name: str = "AdamW", steps: int = 3) -> tuple[Language, Any]:
    torch.manual_seed(words)
    model = Language(words, classes)
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIONS.get(name, {}))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.arange(words)) ** 2).backward()
        optimizer.step()
    return model, optimizer


def test_a_shape_that_differs_is_an_error_that_names_both_and_writes_nothing() -> None:
    old, new = trained(6)[0], trained(8)[0]
    before = new.embed.weight.clone()
    with pytest.raises(
        statedict.errors.RestoreError, match=r"1 shape: embed\.weight .*has \(6, 4\), the target \(8, 4\)"
    ):
        statedict.restore(new, statedict.capture(old))
    assert torch.equal(new.embed.weight, before)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "error"])
def test_each_policy_does_what_it_says(policy: str) -> None:
    bigger, smaller = torch.arange(12.0).reshape(4, 3), torch.arange(6.0).reshape(2, 3)
    cases: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {
        "skip": (bigger, torch.full((2, 3), 7.0), torch.full((2, 3), 7.0)),
        "slice": (bigger, torch.full((2, 2), 7.0), bigger[:2, :2]),
        "pad": (smaller, torch.full((4, 3), 7.0), torch.cat([smaller, torch.zeros(2, 3)])),
        "overlap": (smaller, torch.full((4, 2), 7.0), torch.cat([smaller[:, :2], torch.full((2, 2), 7.0)])),
        "reshape": (smaller, torch.zeros(3, 2, 1), smaller.reshape(3, 2, 1)),
    }
    state, target, expected = cases[policy]
    model = nn.Module()
    model.weight, model.bias = nn.Parameter(target.clone()), nn.Parameter(torch.zeros(1))
    report = statedict.restore(model, {"weight": state, "bias": torch.ones(1)}, shapes={"weight": policy})
    assert torch.equal(model.weight, expected)
    assert model.bias.item() == 1
    assert report.paths("skipped" if policy == "skip" else "reshaped") == ["weight"]
    arrays = {"weight": target.clone()}
    statedict.restore({"it": arrays, "n": 0}, {"it": {"weight": state}, "n": 1}, shapes={"it.weight": policy})
    assert torch.equal(arrays["weight"], expected)
    numbers = {"weight": target.numpy().copy(), "n": 0}
    statedict.restore(numbers, {"weight": state.numpy(), "n": 1}, shapes=policy)
    assert (numbers["weight"] == expected.numpy()).all()


@pytest.mark.parametrize(
    ("policy", "old", "new", "reason"),
    [
        ("slice", (2, 3), (4, 3), "has fewer entries along a dimension; 'pad' or 'overlap' fills up"),
        ("pad", (4, 3), (2, 3), "has more entries along a dimension; 'slice' or 'overlap' cuts off"),
        ("pad", (3,), (2, 3), "has another number of dimensions"),
        ("overlap", (3,), (2, 3), "has another number of dimensions"),
        ("reshape", (2, 3), (2, 2), "has another number of elements"),
    ],
)
def test_a_policy_that_cannot_do_it_says_why(
    policy: str, old: tuple[int, ...], new: tuple[int, ...], reason: str
) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(new))
    with pytest.raises(statedict.errors.RestoreError, match=reason):
        statedict.restore(model, {"weight": torch.ones(old)}, shapes=policy)
    assert not model.weight.any()


def test_the_first_pattern_that_matches_counts_and_a_word_for_no_policy_is_an_error() -> None:
    old, new = trained(6, 3)[0], trained(8, 5)[0]
    rows = new.embed.weight[6:].clone()
    report = statedict.restore(new, statedict.capture(old), shapes={"embed": "overlap", "*": "pad"})
    assert torch.equal(new.embed.weight, torch.cat([old.embed.weight, rows]))
    assert not new.head.bias[3:].any()
    assert "3 reshaped: embed.weight, head.weight, head.bias (overlap: (6, 4) → (8, 4))" in str(report)
    with pytest.raises(
        statedict.errors.RestoreError, match="expected one of error, skip, slice, pad, overlap, reshape, got"
    ):
        statedict.restore(new, statedict.capture(old), shapes={"*": "truncate"})


@pytest.mark.parametrize("policy", ["pad", "overlap", "skip", "slice"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("Muon", "SparseAdam", "LBFGS")])
def test_the_moments_of_a_parameter_follow_it(name: str, policy: str) -> None:
    words, wanted = (8, 6) if policy == "slice" else (6, 8)
    old, new = trained(words, name=name), trained(wanted, name=name, steps=0)
    state = statedict.capture({"model": old[0], "optimizer": old[1]})
    target = {"model": new[0], "optimizer": new[1]}
    begun = copy.deepcopy(new[1].state.get(new[0].embed.weight, {}))  # empty, but for Adagrad of some releases
    report = statedict.restore(target, state, shapes={"model.embed": policy})
    was, now = old[1].state[old[0].embed.weight], new[1].state.get(new[0].embed.weight, {})
    if policy == "skip":
        assert_same(dict(now), dict(begun))
        assert "optimizer.state.0" in report.paths("fresh")
    else:
        both = min(words, wanted)
        assert list(now) == list(was)
        for key, value in was.items():
            if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[0] == words:
                assert now[key].shape[0] == wanted
                assert torch.equal(now[key][:both], value[:both]), key
            else:
                assert torch.equal(torch.as_tensor(now[key]), torch.as_tensor(value))
        if name == "Rprop" and policy != "slice":
            assert (now["step_size"][6:] == 0.01).all()  # as it begins, for from zero it would never move
    (new[0](torch.arange(wanted)) ** 2).backward()
    new[1].step()
    assert torch.equal(
        torch.as_tensor(new[1].state[new[0].head.weight].get("step", 0)),
        torch.as_tensor(old[1].state[old[0].head.weight].get("step", 0)) + ("step" in old[1].state[old[0].head.weight]),
    )


def test_an_optimizer_alone_takes_the_policy_by_the_name_of_its_parameter() -> None:
    old, new = trained(6), trained(8, steps=0)
    state = statedict.capture({"model": old[0], "optimizer": old[1]})["optimizer"]
    fresh = torch.optim.AdamW(new[0].named_parameters())
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: state\.0\.exp_avg, state\.0\.exp_avg_sq"):
        statedict.restore(fresh, state)
    for pattern in ("embed.weight", "state.embed"):
        statedict.restore(fresh, state, shapes={pattern: "pad"})
        assert fresh.state[new[0].embed.weight]["exp_avg"].shape == (8, 4)


def test_what_cannot_follow_is_an_error() -> None:
    old, new = trained(6, name="Adafactor"), trained(6, name="Adafactor", steps=0)
    new[0].embed.weight = nn.Parameter(torch.zeros(12, 2))
    optimizer = torch.optim.Adafactor(new[0].parameters())
    state = statedict.capture({"m": old[0], "o": old[1]})
    with pytest.raises(
        statedict.errors.RestoreError, match=r"o\.state\.0\.row_var.*cannot follow the parameter, reshape"
    ):
        statedict.restore({"m": new[0], "o": optimizer}, state, shapes="reshape")
    assert not optimizer.state


def test_a_cast_and_a_new_shape_go_together() -> None:
    model = nn.Linear(3, 4).bfloat16()
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    report = statedict.restore(model, state, shapes="pad", cast="weight", dry_run=True)
    assert report.paths("dtype") == ["bias"]
    statedict.restore(model, state, shapes="pad", cast=True)
    assert torch.equal(model.weight[:2], state["weight"].bfloat16())


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3))
def test_slicing_undoes_padding(sizes: list[tuple[int, int]]) -> None:
    small = tuple(min(pair) for pair in sizes)
    large = tuple(max(pair) for pair in sizes)
    tensor = torch.randn(small)
    padded = Fit("pad", small, large).apply(as_lazy(tensor))
    assert padded.shape == large
    assert padded.abs().sum().item() == pytest.approx(tensor.abs().sum().item())
    assert torch.equal(Fit("slice", large, small).apply(as_lazy(padded)), tensor)


@pytest.mark.parametrize(
    ("old", "new", "policy"),
    [
        ((4, 1), (4, 3), "pad"),
        ((1, 4), (3, 4), "pad"),
        ((1, 1), (2, 2), "overlap"),
        ((1, 1), (3, 1), "pad"),
        ((3, 4), (1, 4), "slice"),
        ((3, 4), (3, 1), "overlap"),
        ((1, 4), (1, 2), "slice"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_factored_moments_follow_a_parameter_of_one_row_or_column(
    old: tuple[int, int], new: tuple[int, int], policy: str, own: bool
) -> None:
    class Other(torch.optim.Adafactor):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    def build(shape: tuple[int, int]) -> tuple[nn.Linear, torch.optim.Optimizer]:
        model = nn.Linear(*shape)
        return model, (torch.optim.Adafactor if own else Other)(model.parameters())

    def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(1, model.in_features)).sum().backward()
        optimizer.step()

    (model, optimizer), (target, after) = build(old), build(new)
    step(model, optimizer)
    statedict.restore({"m": target, "o": after}, statedict.capture({"m": model, "o": optimizer}), shapes=policy)
    held, was, (rows, columns) = after.state[target.weight], optimizer.state[model.weight], target.weight.shape
    assert (held["row_var"].shape, held["col_var"].shape) == ((rows, 1), (1, columns))
    for key in ("row_var", "col_var"):
        both = tuple(slice(0, min(pair)) for pair in zip(held[key].shape, was[key].shape, strict=True))
        assert torch.equal(held[key][both], was[key][both])
    step(target, after)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [((1, 4), (3, 4), (1,)), ((1, 1), (3, 1), (1,)), ((1, 4), (3, 4), (1, 4, 1)), ((4, 1, 4), (4, 2, 4), (4, 1, 1))],
)
def test_what_may_be_of_an_axis_of_one_that_changes_is_refused(old: Any, new: Any, kept: Any) -> None:
    def build(shape: Any) -> tuple[nn.ParameterDict, Any]:
        model = nn.ParameterDict({"w": nn.Parameter(torch.ones(shape))})
        return model, Keeping(model.parameters(), lambda grad: {"e": grad})

    (model, optimizer), (target, after) = build(old), build(new)
    optimizer.state[model["w"]] = {"step": torch.ones(1), "e": torch.ones(kept)}
    state = statedict.capture({"m": model, "o": optimizer})
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: o\.state\.0\.e \(.* cannot follow the parameter"):
        statedict.restore({"m": target, "o": after}, state, shapes="pad")
    assert torch.equal(target["w"], torch.ones(new))


def test_a_single_number_stays_where_no_axis_of_one_changes() -> None:
    model, target = nn.Linear(1, 4, bias=False), nn.Linear(1, 6, bias=False)
    optimizers = [Keeping(m.parameters(), lambda grad: {"e": grad}) for m in (model, target)]
    kept = {"step": torch.ones(1), "e": torch.ones(1), "n": torch.tensor(2.0), "u": torch.ones(1, 1)}
    optimizers[0].state[model.weight] = dict(kept)
    state = statedict.capture({"m": model, "o": optimizers[0]})
    statedict.restore({"m": target, "o": optimizers[1]}, state, shapes="pad")
    assert_same(dict(optimizers[1].state[target.weight]), kept)


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_of_one_element_stays_where_its_parameter_has_one(size: int) -> None:
    model, target = (nn.ParameterDict({"w": nn.Parameter(torch.ones(n))}) for n in (1, size))
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model, target)]
    one = torch.ones(1)
    optimizers[0].state[model["w"]] = {"step": one * 5, "exp_avg": one, "exp_avg_sq": one}
    state = statedict.capture({"m": model, "o": optimizers[0]})
    statedict.restore({"m": target, "o": optimizers[1]}, state, shapes="pad")
    held = optimizers[1].state[target["w"]]
    assert (held["step"].tolist(), held["exp_avg"].tolist()) == ([5], [1, 0, 0][:size])
