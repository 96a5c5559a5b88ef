"""What torch.optim keeps for parameters that change: it follows, or is an error that names it; nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict import StateDict, alter
from statedict.errors import AlterError, PatternError
from statedict.ops.alter.steps import apply_steps

Alter = Callable[[StateDict], StateDict]


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(2, 4))
        self.last = nn.Parameter(torch.ones(1, 4))


class Custom(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: a test fills in the state."""


def step(model: nn.Module, optimizer: torch.optim.Optimizer, names: str = "q k last") -> None:
    optimizer.zero_grad()
    torch.stack([getattr(model, name).square().sum() for name in names.split()]).sum().backward()
    optimizer.step()


def of(model: nn.Module, optimizer: torch.optim.Optimizer) -> StateDict:
    return statedict.capture({"m": model, "o": optimizer})


def fused(state: StateDict) -> StateDict:
    return alter.fuse(state, ["m.q", "m.k"], "m.qk")


def filled(kept: Callable[[nn.Parameter], dict[str, Any]]) -> StateDict:
    model = Parts()
    optimizer = Custom(model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter] = kept(parameter)
    return of(model, optimizer)


def partly_stepped(names: str, again: str = "") -> StateDict:
    model = Parts()
    optimizer = torch.optim.Adam(model.parameters())
    for some in filter(None, (names, again)):
        step(model, optimizer, some)
    return of(model, optimizer)


def in_groups() -> StateDict:
    model = Parts()
    groups = [{"params": [model.q, model.last], "lr": 1e-3}, {"params": [model.k], "lr": 1e-1}]
    optimizer = torch.optim.AdamW(groups)
    step(model, optimizer)
    return of(model, optimizer)


def of_some(names: str) -> StateDict:
    model = Parts()
    optimizer = torch.optim.Adam([getattr(model, name) for name in names.split()])
    step(model, optimizer, names)
    return of(model, optimizer)


def with_other_keys(name: str) -> StateDict:
    state = partly_stepped("q k last")
    state["o"]["state"][["q", "k"].index(name)]["max_exp_avg_sq"] = torch.ones(2, 4)
    return state


def with_norms(*norms: Any) -> StateDict:
    left = iter(norms)
    return filled(lambda p: {"m": torch.ones_like(p), "norm": next(left)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: partly_stepped("q last"), r"o: has moments of only some of m\.q, m\.k"),
        (lambda: partly_stepped("k last"), r"o: has moments of only some of m\.q, m\.k"),
        (lambda: of_some("q last"), r"o: has moments of only some of m\.q, m\.k"),
        (lambda: of_some("k last"), r"o: has moments of only some of m\.q, m\.k"),
        (lambda: with_other_keys("q"), r"o\.state\.0\.max_exp_avg_sq: only some of m\.q, m\.k have it"),
        (lambda: with_other_keys("k"), r"o\.state\.0\.max_exp_avg_sq: only some of m\.q, m\.k have it"),
        (lambda: partly_stepped("q k last", "q"), r"o\.state\.0\.step: differs between m\.q, m\.k"),
        (in_groups, r"o: m\.q, m\.k are in different groups"),
        (lambda: with_norms(1.0, 2.0, 3.0), r"o\.state\.0\.norm: differs between m\.q, m\.k"),
        (lambda: with_norms(*torch.arange(3.0)), r"o\.state\.0\.norm: differs between m\.q, m\.k"),
        (lambda: with_norms(1, None, 1), r"o\.state\.0\.norm: differs between m\.q, m\.k"),
        (lambda: with_norms(torch.tensor(1.0), 1.0, 1.0), r"o\.state\.0\.norm: differs between m\.q, m\.k"),
    ],
    ids=[
        "no state of one", "no state of the first", "one in the optimizer", "the other in the optimizer",
        "a key of the first", "a key of the other", "steps", "groups", "numbers", "tensors", "none", "kinds",
    ],
)  # fmt: skip
def test_parameters_that_an_optimizer_treats_differently_are_not_fused(state: Any, message: str) -> None:
    with pytest.raises(AlterError, match=message + ".*drop the optimizer"):
        fused(state())
    assert list(alter.fuse(alter.drop(state(), "o"), ["m.q", "m.k"], "m.qk")["m"]) == ["qk", "last"]


def test_parameters_that_an_optimizer_treats_alike_are_fused_with_what_it_keeps() -> None:
    state = fused(partly_stepped("q k last"))
    assert [entries["step"].tolist() for entries in state["o"]["state"].values()] == [1, 1]
    assert [entries["exp_avg"].shape for entries in state["o"]["state"].values()] == [(4, 4), (1, 4)]
    assert state["o"]["param_groups"][0]["param_names"] == ["qk", "last"]
    assert not fused(of(model := Parts(), torch.optim.Adam(model.parameters())))["o"]["state"]


def with_adafactor(*shape: int) -> StateDict:
    model = nn.ParameterDict({"w": torch.ones(shape), "v": torch.ones(shape)})
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer, "w v")
    return of(model, optimizer)


RESHAPES: dict[str, tuple[tuple[int, int], Alter]] = {
    "pad": ((1, 4), lambda s: alter.pad(s, "m.w", [3, 4])),
    "pad both": ((1, 1), lambda s: alter.pad(s, "m.w", [2, 2])),
    "fuse": ((1, 4), lambda s: alter.fuse(s, ["m.w", "m.v"], "m.x")),
    "fuse columns": ((4, 1), lambda s: alter.fuse(s, ["m.w", "m.v"], "m.x", 1)),
    "slice": ((4, 1), lambda s: alter.slice(s, "m.w", slice(0, 2))),
    "transpose": ((1, 4), lambda s: alter.transpose(s, "m.w")),
    "reshape": ((1, 4), lambda s: alter.reshape(s, "m.w", [2, 2])),
    "split": ((1, 4), lambda s: alter.split(s, "m.w", ["m.a", "m.b"], 1)),
}


@pytest.mark.parametrize("case", RESHAPES)
def test_what_adafactor_keeps_of_rows_and_columns_follows_no_change_of_shape(case: str) -> None:
    shape, change = RESHAPES[case]
    with pytest.raises(AlterError, match=r"o\.state\.\d\.(row|col)_var: .* cannot follow its parameter"):
        change(with_adafactor(*shape))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1), (3, 4)])
def test_what_adafactor_keeps_follows_a_cast(shape: tuple[int, int]) -> None:
    entries = alter.cast(with_adafactor(*shape), "bf16")["o"]["state"][0]
    assert entries["step"].dtype == torch.float32
    assert entries["row_var"].dtype == entries["col_var"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        lambda s: alter.pad(s, "m.last", [3, 4]),
        lambda s: alter.transpose(s, "m.last"),
        lambda s: alter.reshape(s, "m.last", [4]),
    ],
    ids=["pad", "transpose", "reshape"],
)
def test_one_element_beside_a_dimension_of_size_one_does_not_follow_its_growth(change: Alter) -> None:
    with pytest.raises(AlterError, match=r"o\.state\.2\.row: \(1,\) cannot follow its parameter"):
        change(filled(lambda p: {"row": torch.ones(1)}))


@pytest.mark.parametrize("norm", [torch.ones(1), torch.ones(()), torch.ones(1, 1)])
def test_one_element_stays_where_no_dimension_of_size_one_changes(norm: torch.Tensor) -> None:
    entries = alter.slice(filled(lambda p: {"norm": norm, "m": torch.ones_like(p)}), "m.q", slice(0, 1))["o"]["state"]
    assert entries[0]["norm"].shape == tuple(norm.shape)
    assert entries[0]["m"].shape == (1, 4)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("patterns", ["*", "m.q"])
def test_integers_and_flags_do_not_follow_a_cast(kind: torch.dtype, patterns: str) -> None:
    state = filled(lambda p: {"codes": torch.ones_like(p, dtype=kind), "m": torch.ones_like(p)})
    entries = alter.cast(state, "bf16", patterns)["o"]["state"][0]
    assert (entries["codes"].dtype, entries["m"].dtype) == (kind, torch.bfloat16)
    assert alter.transpose(state, "m.q")["o"]["state"][0]["codes"].shape == (4, 2)


def tied_checkpoint() -> StateDict:
    model = nn.ModuleDict({"e": nn.Linear(3, 3, bias=False), "f": nn.Linear(3, 1), "h": nn.Linear(3, 3, bias=False)})
    model["h"].weight = model["e"].weight
    optimizer = torch.optim.Adam(model.parameters())
    model["f"](model["h"](torch.ones(1, 3))).sum().backward()
    optimizer.step()
    return of(model, optimizer)


def test_moments_stay_while_one_name_of_a_tied_parameter_stays() -> None:
    state = tied_checkpoint()
    for lost, left in (("m.e", ["f.weight", "f.bias", "h.weight"]), ("m.h", ["e.weight", "f.weight", "f.bias"])):
        new = alter.drop(state, lost)
        assert list(new["m"]) == left
        assert new["o"]["param_groups"][0]["param_names"] == left
        moments = new["o"]["state"][new["o"]["param_groups"][0]["params"][left.index("f.weight")]]["exp_avg"]
        assert moments.shape == (1, 3)
    model = nn.ModuleDict({"f": nn.Linear(3, 1), "h": nn.Linear(3, 3, bias=False)})
    optimizer = torch.optim.Adam(model.parameters())
    statedict.restore({"m": model, "o": optimizer}, alter.drop(state, "m.e"))
    assert torch.equal(optimizer.state[model["h"].weight]["exp_avg"], state["o"]["state"][0]["exp_avg"])
    assert "e.weight" not in alter.drop(state, ["m.e", "m.h"])["o"]["param_groups"][0]["param_names"]


def test_the_average_of_a_dropped_model_does_not_inherit_its_moments() -> None:
    state = tied_checkpoint()
    state["ema"] = StateDict(state["m"])
    assert alter.drop(state, "m")["o"]["param_groups"][0]["param_names"] == ["e.weight", "f.weight", "f.bias"]
    with pytest.raises(AlterError, match="o: may belong to 'm' and 'ema', and they change differently"):
        alter.drop(state, "m.e")


def with_lbfgs() -> StateDict:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 2)) - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return of(model, optimizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: alter.drop(s, "m.bias"),
        lambda s: alter.drop(s, "m.weight"),
        lambda s: alter.transpose(s, "m.weight"),
        lambda s: alter.pad(s, "m.bias", [4]),
        lambda s: alter.split(s, "m.bias", ["m.a", "m.b"], sizes=[1, 2]),
        lambda s: alter.cast(s, "bf16", "m.bias"),
    ],
    ids=["drop", "drop the first", "transpose", "pad", "split", "cast one"],
)
def test_what_lbfgs_keeps_for_all_parameters_does_not_follow_some(change: Alter) -> None:
    with pytest.raises(AlterError, match="o: keeps one state for all its parameters, and some of them change"):
        change(with_lbfgs())


def test_what_lbfgs_keeps_follows_names_and_a_cast_of_all() -> None:
    state = with_lbfgs()
    renamed = alter.rename(state, {"m.weight": "m.w"})["o"]
    assert renamed["param_groups"][0]["param_names"] == ["w", "bias"]
    assert renamed["state"][0]["d"] is state["o"]["state"][0]["d"]
    assert alter.cast(state, "float64")["o"]["state"][0]["d"].dtype == torch.float64
    assert not alter.drop(state, "o").get("o")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: alter.split(s, "m.q", ["m.a", "m.b"]),
        lambda s: alter.fuse(s, ["m.q", "m.k"], "m.qk"),
        lambda s: alter.drop(s, "m.q"),
        lambda s: alter.rename(s, {"m.q": "m.x"}),
    ],
    ids=["split", "fuse", "drop", "rename"],
)
def test_state_of_the_optimizer_as_a_whole_stays(change: Alter) -> None:
    state = partly_stepped("q k last")
    state["o"]["state"]["global"] = {"count": 3}
    assert change(state)["o"]["state"]["global"] == {"count": 3}


@pytest.mark.parametrize(
    "step",
    [{"transpose": "m.q"}, {"slice": "m.q", "index": "0:1"}, {"cast": "bf16"}],
    ids=["transpose", "slice", "cast"],
)
def test_a_step_count_that_stays_is_not_reported_as_altered(step: dict[str, Any]) -> None:
    _, report = apply_steps(partly_stepped("q k last"), [step], False)
    assert not [path for path in report.changes[0].altered if path.endswith("step")]


def test_an_optimizer_alone_is_cast_without_its_step_counts(tmp_path: Path) -> None:
    model = Parts()
    optimizer = torch.optim.NAdam(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    for entries in optimizer.state.values():
        entries["step"].fill_(1001)
    statedict.save({"m": model, "o": optimizer}, tmp_path / "ck.pth")
    statedict.edit(f"{tmp_path}/ck.pth::o", tmp_path / "o.pth", [{"cast": "bf16"}])
    for state in (
        statedict.load(tmp_path / "o.pth"),
        alter.cast(statedict.capture(optimizer), "bf16"),
        alter.cast(statedict.capture(optimizer), "bf16", "state.*"),
    ):
        entries = state["state"][0]
        assert (entries["step"].tolist(), entries["step"].dtype) == (1001, torch.float32)
        assert (entries["exp_avg"].dtype, entries["mu_product"].dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(PatternError, match=r"no tensor of 6 matches 'state\.0\.step'"):
        alter.cast(statedict.capture(optimizer), "bf16", "state.0.step")
    with pytest.raises(AlterError, match="there is no model in it"):
        alter.strip(statedict.capture(optimizer))


def trained(kind: Any = torch.optim.Adam, groups: bool = False, **options: Any) -> tuple[Parts, Any]:
    model = Parts()
    optimizer = kind([{"params": [p]} for p in model.parameters()] if groups else model.parameters(), **options)
    step(model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.ASGD, torch.optim.Adagrad])
@pytest.mark.parametrize("part", ["opt", "opt.state", "opt.state.0", "all.opt.state"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_part_of_an_optimizer_keeps_its_step_counts_too(kind: Any, part: str, suffix: str, tmp_path: Path) -> None:
    _, optimizer = trained(kind)
    optimizer.state[next(iter(optimizer.state))]["more"] = {"step": torch.tensor(1.0)}
    path = tmp_path / f"ck.{suffix}"
    statedict.save({"opt": optimizer, "all": {"opt": {"state": optimizer.state_dict()["state"]}}}, path)
    statedict.edit(f"{path}::{part}", tmp_path / "half.pth", {"cast": "bf16"})
    before, after = statedict.load(path).at(part), statedict.load(tmp_path / "half.pth")
    dtypes = {path: str(tensor.dtype) for path, tensor in after.tensors().items()}
    assert dtypes.keys() == before.tensors().keys()
    counts = {path for path in dtypes if path.rpartition(".")[2] in ("step", "mu_product", "eta", "mu")}
    assert counts
    assert {path for path, dtype in dtypes.items() if dtype == "float32"} == counts
    with pytest.raises(PatternError, match="no tensor of"):
        alter.cast(before, "bf16", "*step")


def test_a_step_of_a_model_is_cast_like_the_rest() -> None:
    state = StateDict({"model": StateDict({"step": torch.ones(()), "sum.w": torch.ones(2)}), "sum": torch.ones(1)})
    assert {str(tensor.dtype) for tensor in alter.cast(state, "bf16").tensors().values()} == {"bfloat16"}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adafactor, torch.optim.Rprop])
def test_a_group_that_loses_its_parameters_stays_for_pytorch_steps_with_it(kind: Any) -> None:
    model, optimizer = trained(kind, groups=True, lr=0.1)
    state = alter.drop(statedict.capture({"model": model, "opt": optimizer}), "model.k")
    assert [group["params"] for group in state["opt"]["param_groups"]] == [[0], [], [1]]
    assert [group["param_names"] for group in state["opt"]["param_groups"]] == [["q"], [], ["last"]]
    del model.k
    other = kind([{"params": [model.q]}, {"params": []}, {"params": [model.last]}], lr=0.1)
    other.load_state_dict(state["opt"].torch())
    step(model, other, "q last")
    fresh = kind([{"params": [model.q]}, {"params": []}, {"params": [model.last]}], lr=0.1)
    statedict.restore({"model": model, "opt": fresh}, state)
    step(model, fresh, "q last")


def test_a_parameter_that_is_no_number_and_no_name_is_named() -> None:
    model, optimizer = trained()
    state = statedict.capture({"model": model, "opt": optimizer})
    state["opt"]["param_groups"][0]["params"] = [0, [1], 2]
    with pytest.raises(
        AlterError, match=r"opt\.param_groups\.0\.params\.1: expected a number or a name, got \[1\]; fix it or drop"
    ):
        alter.transpose(state, "model.q")
    with pytest.raises(statedict.errors.RestoreError, match=r"kind: opt\.param_groups\.0\.params\.1 \(expected"):
        statedict.restore({"model": model, "opt": optimizer}, state)
