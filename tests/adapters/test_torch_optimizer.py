"""torch.optim: every optimizer goes on bit by bit, by name where there are names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True, "weight_decay": 0.1},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "ASGD": {"t0": 1},
    "LBFGS": {"history_size": 4, "max_iter": 3},
}


def network(seed: int, *, sparse: bool = False, matrices: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    if sparse:
        return nn.EmbeddingBag(6, 3, mode="sum", sparse=True)
    return nn.Sequential(
        nn.Linear(4, 5, bias=not matrices),
        nn.Tanh(),
        nn.Linear(5, 5, bias=not matrices),
        nn.Linear(5, 2, bias=not matrices),
    )


def made(name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(seed, sparse=name == "SparseAdam", matrices=name == "Muon")
    return model, getattr(torch.optim, name)(model.parameters(), **OPTIONS.get(name, {}))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)

        def closure(generator: torch.Generator = generator) -> torch.Tensor:
            optimizer.zero_grad()
            if isinstance(model, nn.EmbeddingBag):
                loss = (model(torch.randint(0, 6, (2, 4), generator=generator.manual_seed(step))) ** 2).sum()  # noqa: B023
            else:
                batch = torch.randn(3, 4, generator=generator.manual_seed(step))  # noqa: B023
                loss = (model(batch.to(next(model.parameters()).dtype)) ** 2).sum()
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses


def same_training(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert train(*one, range(10, 15)) == train(*other, range(10, 15))
    assert_same(other[0].state_dict(), one[0].state_dict())
    assert_same(statedict.capture(other[1]), statedict.capture(one[1]), flags=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_as_if_it_had_not_been_interrupted(name: str, suffix: str, tmp_path: Path) -> None:
    whole, fresh = made(name, 1), made(name, 2)
    train(*whole, range(5))
    statedict.save({"model": whole[0], "optimizer": whole[1]}, tmp_path / f"x{suffix}")
    statedict.restore({"model": fresh[0], "optimizer": fresh[1]}, tmp_path / f"x{suffix}")
    same_training(whole, fresh)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_that_has_not_stepped_yet_is_captured_and_restored(name: str) -> None:
    whole, fresh = made(name, 1), made(name, 2)
    train(*fresh, range(2))
    statedict.restore({"m": fresh[0], "o": fresh[1]}, statedict.capture({"m": whole[0], "o": whole[1]}))
    same_training(whole, fresh)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_torch_restores_every_optimizer_from_our_file(name: str, suffix: str, tmp_path: Path) -> None:
    whole, fresh = made(name, 1), made(name, 2)
    train(*whole, range(5))
    path = tmp_path / f"x{suffix}"
    statedict.save({"model": whole[0], "optimizer": whole[1]}, path)
    checkpoint = torch.load(path, weights_only=True) if suffix == ".pth" else statedict.load(path).torch(copy=True)
    fresh[0].load_state_dict(checkpoint["model"])
    fresh[1].load_state_dict(checkpoint["optimizer"])
    assert train(*whole, range(10, 15)) == train(*fresh, range(10, 15))


def test_an_optimizer_captured_beside_its_model_carries_the_names_of_its_parameters() -> None:
    model, optimizer = made("Adam", 1)
    names = [name for name, _ in model.named_parameters()]
    assert statedict.capture({"m": model, "o": optimizer})["o"]["param_groups"][0]["param_names"] == names
    assert "param_names" not in statedict.capture(optimizer)["param_groups"][0]
    assert "param_names" not in optimizer.param_groups[0]
    own = torch.optim.Adam(model.named_parameters())
    assert statedict.capture(own)["param_groups"][0]["param_names"] == names


def test_two_models_give_their_parameters_names_of_their_own() -> None:
    one, other = network(1), network(2)
    optimizer = torch.optim.SGD([*one.parameters(), *other.parameters()])
    names = statedict.capture({"a": one, "b": [other], "o": optimizer})["o"]["param_groups"][0]["param_names"]
    assert names[0] == "a.0.weight"
    assert names[6] == "b.0.0.weight"


class Pair(nn.Module):
    def __init__(self, seed: int, first: str) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name in (first, "ab".replace(first, "")):
            self.register_parameter(name, nn.Parameter(torch.randn(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.a).sum() ** 2 + (x - self.b).pow(4).sum()


def drive(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(torch.randn(3, generator=torch.Generator().manual_seed(step)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("named", [False, True], ids=["beside its model", "named by torch"])
def test_two_parameters_of_one_shape_that_changed_places_get_their_own_moments(
    named: bool, suffix: str, tmp_path: Path
) -> None:
    def pair(seed: int, first: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Pair(seed, first)
        return model, torch.optim.Adam(model.named_parameters() if named else model.parameters(), lr=0.1)

    whole, swapped = pair(1, "a"), pair(2, "b")
    drive(*whole, range(5))
    statedict.save({"m": whole[0], "o": whole[1]}, tmp_path / f"x{suffix}")
    report = statedict.restore({"m": swapped[0], "o": swapped[1]}, tmp_path / f"x{suffix}")
    assert "position" not in str(report)
    assert drive(*whole, range(5, 15)) == drive(*swapped, range(5, 15))


def test_parameters_that_were_grouped_anew_find_their_moments_and_the_hyperparameters_of_their_group() -> None:
    model, fresh = network(1), network(2)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    old = torch.optim.AdamW([{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}], lr=0.01)
    train(model, old, range(4))
    new = torch.optim.AdamW(
        [
            {"params": [p for p in fresh.parameters() if p.ndim == 1], "weight_decay": 9.0},
            {"params": [p for p in fresh.parameters() if p.ndim > 1], "weight_decay": 9.0},
        ]
    )
    statedict.restore({"m": fresh, "o": new}, statedict.capture({"m": model, "o": old}))
    assert [group["weight_decay"] for group in new.param_groups] == [0.0, 0.3]
    assert train(model, old, range(4, 9)) == train(fresh, new, range(4, 9))


def test_without_names_parameters_go_by_position_and_the_report_says_so() -> None:
    whole, fresh = made("Adam", 1), made("Adam", 2)
    train(*whole, range(3))
    report = statedict.restore(fresh[1], statedict.capture(whole[1]))
    assert "by position, for names are missing" in str(report)
    fresh[0].load_state_dict(whole[0].state_dict())
    same_training(whole, fresh)


def test_a_file_that_plain_torch_saved_is_restored_by_position(tmp_path: Path) -> None:
    whole, fresh = made("AdamW", 1), made("AdamW", 2)
    train(*whole, range(3))
    torch.save({"m": whole[0].state_dict(), "o": whole[1].state_dict()}, tmp_path / "theirs.pth")
    report = statedict.restore({"m": fresh[0], "o": fresh[1]}, tmp_path / "theirs.pth")
    assert "inferred from order and shapes" in str(report)
    same_training(whole, fresh)


def test_moments_that_are_of_another_shape_than_their_parameter_are_an_error() -> None:
    model, fresh = network(1), nn.Sequential(*reversed(list(network(2))))
    old, new = torch.optim.Adam(model.parameters()), torch.optim.Adam(fresh.parameters())
    train(model, old, range(2))
    with pytest.raises(
        statedict.errors.RestoreError,
        match=r"shape: state\.0\.exp_avg, .*the state has \(5, 4\), the parameter \(2, 5\)",
    ):
        statedict.restore(new, statedict.capture(old))
    assert not new.state


def test_groups_of_other_sizes_without_names_are_an_error() -> None:
    model = network(1)
    state = statedict.capture(torch.optim.SGD(list(model.parameters())[:3], momentum=0.9))
    with pytest.raises(
        statedict.errors.RestoreError, match=r"groups of \[3\] parameters, the target of \[6\], and not both"
    ):
        statedict.restore(torch.optim.SGD(model.parameters(), momentum=0.9), state)


def test_a_parameter_that_the_state_lacks_is_an_error_and_where_allowed_keeps_its_own_moments() -> None:
    model, fresh = network(1), network(2)
    old = torch.optim.Adam([p for n, p in model.named_parameters() if n.startswith("0")], lr=0.5)
    new = torch.optim.Adam(fresh.parameters(), lr=0.1)
    train(model, old, range(2))
    train(fresh, new, range(3))
    state = statedict.capture({"m": model, "o": old})
    kept = copy.deepcopy(new.state[fresh[3].bias]["exp_avg"])
    with pytest.raises(statedict.errors.RestoreError, match=r"4 missing: o\.state\.2\.weight"):
        statedict.restore({"m": fresh, "o": new}, state)
    report = statedict.restore({"m": fresh, "o": new}, state, allow_missing=["o.state.*"])
    assert len(report.paths("fresh")) == 4
    assert torch.equal(new.state[fresh[3].bias]["exp_avg"], kept)
    assert torch.equal(new.state[fresh[0].weight]["exp_avg"], old.state[model[0].weight]["exp_avg"])
    assert new.param_groups[0]["lr"] == 0.5


def test_a_parameter_that_only_the_state_has_is_an_error_unless_allowed() -> None:
    model, fresh = network(1), network(2)
    old = torch.optim.Adam(model.parameters())
    new = torch.optim.Adam([p for n, p in fresh.named_parameters() if not n.startswith("3")])
    train(model, old, range(2))
    state = statedict.capture({"m": model, "o": old})
    with pytest.raises(statedict.errors.RestoreError, match=r"2 unexpected: o\.state\.3\.weight, o\.state\.3\.bias"):
        statedict.restore({"m": fresh, "o": new}, state)
    statedict.restore({"m": fresh, "o": new}, state, allow_unexpected=["o.state.3"])
    assert len(new.state) == 4


def test_moments_keep_their_dtype_where_the_parameters_have_another(tmp_path: Path) -> None:
    whole, fresh = made("Adam", 1), made("Adam", 2)
    for model, _ in (whole, fresh):
        model.bfloat16()
    train(*whole, range(2))
    for entries in whole[1].state.values():
        entries["exp_avg"] = entries["exp_avg"].float() + 1e-5
    statedict.save({"m": whole[0], "o": whole[1]}, tmp_path / "x.pth")
    statedict.restore({"m": fresh[0], "o": fresh[1]}, tmp_path / "x.pth")
    for one, other in zip(whole[1].state.values(), fresh[1].state.values(), strict=True):
        assert other["exp_avg"].dtype is torch.float32
        assert torch.equal(other["exp_avg"], one["exp_avg"])
        assert other["exp_avg_sq"].dtype is torch.bfloat16


def test_changed_hyperparameters_are_reported() -> None:
    model = network(1)
    state = statedict.capture(torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.5, 0.6)))
    target = torch.optim.Adam(model.parameters(), lr=0.1)
    report = statedict.restore(target, state)
    details = {entry.path: entry.detail for entry in report.entries}
    assert details["param_groups.0.lr"] == "0.1 → 0.5"
    assert details["param_groups.0.betas"] == "(0.9, 0.999) → (0.5, 0.6)"
    assert details["param_groups.0.eps"] == ""
    assert target.param_groups[0]["lr"] == 0.5


def test_a_learning_rate_that_is_a_tensor_stays_one() -> None:
    model, fresh = network(1), network(2)
    old = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25))
    new = torch.optim.Adam(fresh.parameters(), lr=torch.tensor(0.5))
    train(model, old, range(2))
    statedict.restore({"m": fresh, "o": new}, statedict.capture({"m": model, "o": old}))
    assert torch.equal(new.param_groups[0]["lr"], torch.tensor(0.25))
    assert train(model, old, range(2, 5)) == train(fresh, new, range(2, 5))


def test_a_hyperparameter_that_the_state_lacks_keeps_the_targets_value_and_is_reported() -> None:
    model = network(1)
    target, state = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.2)
    older = statedict.capture(state)
    del older["param_groups"][0]["nesterov"]
    report = statedict.restore(target, older)
    assert report.paths("missing") == ["param_groups.0.nesterov"]
    assert (target.param_groups[0]["lr"], target.param_groups[0]["nesterov"]) == (0.2, False)


def test_a_hyperparameter_that_a_scheduler_added_is_taken_over_and_reported() -> None:
    model = network(1)
    target, old = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.2)
    torch.optim.lr_scheduler.StepLR(old, 1)
    report = statedict.restore(target, statedict.capture(old))
    assert report.paths("unexpected") == ["param_groups.0.initial_lr"]
    assert target.param_groups[0]["initial_lr"] == 0.2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("AdamW", "SGD"),
        ("RMSprop", "Adam"),
        ("Adam", "LBFGS"),
        ("LBFGS", "Adam"),
        ("SGD", "Adam"),
        ("SGD", "RMSprop"),
        ("Adam", "Adamax"),
        ("Adamax", "Adam"),
        ("Adam", "RAdam"),
        ("RAdam", "Adamax"),
        ("Adamax", "RAdam"),
        ("NAdam", "Adam"),
    ],
)
def test_the_state_of_an_optimizer_of_another_class_is_an_error_and_nothing_is_written(theirs: str, ours: str) -> None:
    old, new = made(theirs, 1), made(ours, 2)
    train(*old, range(2))
    before, hyper = copy.deepcopy(new[0].state_dict()), copy.deepcopy(new[1].state_dict())
    with pytest.raises(
        statedict.errors.RestoreError, match=r"(?s)nothing was written.*(missing|unexpected): o\.(param_groups|state)"
    ):
        statedict.restore({"m": new[0], "o": new[1]}, statedict.capture({"m": old[0], "o": old[1]}))
    assert_same(new[0].state_dict(), before)
    assert new[1].state_dict() == hyper


def test_the_hyperparameters_of_an_older_pytorch_are_filled_in() -> None:
    whole, fresh = made("Adam", 1), made("Adam", 2)
    train(*whole, range(2))
    older = statedict.capture({"m": whole[0], "o": whole[1]})
    added = ["maximize", "foreach", "capturable", "differentiable", "fused"]
    added += ["decoupled_weight_decay"] * ("decoupled_weight_decay" in whole[1].defaults)  # since 2.7
    for name in added:
        del older["o"]["param_groups"][0][name]
    report = statedict.restore({"m": fresh[0], "o": fresh[1]}, older)
    assert set(report.paths("missing")) == {f"o.param_groups.0.{name}" for name in added}
    same_training(whole, fresh)


@pytest.mark.parametrize(
    "state",
    [
        {"state": {}},
        {"state": [], "param_groups": []},
        {"state": {}, "param_groups": {}},
        {"state": {}, "param_groups": [3]},
        {"state": {}, "param_groups": [{"lr": 1}]},
        {"state": {}, "param_groups": [{"params": [[1]]}]},
        {"state": {}, "param_groups": []},
    ],
    ids=str,
)
def test_a_state_that_is_no_optimizer_s_is_refused(state: Any) -> None:
    _, optimizer = made("SGD", 1)
    with pytest.raises(statedict.errors.RestoreError):
        statedict.restore(optimizer, state)
