"""Renames that travel with the code: states from before two refactorings, and from between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict


class Layer1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.fc = nn.Linear(3, 3), nn.Linear(3, 3)


class Model1(nn.Module):
    """As it was at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([Layer1(), Layer1()]), nn.Linear(3, 2)


class Model2(nn.Module):
    """Renamed once: layers are blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.out = nn.ModuleList([Layer1(), Layer1()]), nn.Linear(3, 2)


@statedict.renamed_in(1, {"query": "attention.q", "fc": "mlp"})
class Layer3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"q": nn.Linear(3, 3)})
        self.mlp = nn.Linear(3, 3)


@statedict.renamed_in(2, {"out": "head"})
@statedict.renamed_in(1, {"layers.{n}": "blocks.{n}"})
class Model3(nn.Module):
    """Renamed twice, and so were its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Layer3(), Layer3()]), nn.Linear(3, 2)


Model2 = statedict.renamed_in(1, {"layers.{n}": "blocks.{n}"})(Model2)


def values(model: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def write(how: str, model: nn.Module, path: Path) -> Any:
    if how == "statedict":
        statedict.save(model, path)
    elif how == "torch":
        torch.save(model.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)  # keeps no metadata of modules
    return path


@pytest.mark.parametrize("how", ["statedict", "torch", "safetensors"])
@pytest.mark.parametrize("old", [Model1, Model2, Model3])
def test_a_state_from_before_any_refactoring_still_loads(old: type[nn.Module], how: str, tmp_path: Path) -> None:
    source, target = old(), Model3()
    report = statedict.restore(target, write(how, source, tmp_path / "old"))
    assert values(target) == values(source)
    assert len(report.paths("renamed")) == {Model1: 10, Model2: 10, Model3: 0}[old]
    assert bool(report.notes) is (old is not Model3)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.ModuleDict({"net": m})])
@pytest.mark.parametrize("turned", [False, True])
def test_it_holds_wherever_the_module_stands(wrap: Any, turned: bool, tmp_path: Path) -> None:
    source, target = Model1(), Model3()
    statedict.save(source if turned else wrap(source), tmp_path / "old.pth")
    statedict.restore(wrap(target) if turned else target, tmp_path / "old.pth")
    assert values(target) == values(source)


def test_the_optimizer_follows(tmp_path: Path) -> None:
    source, target = Model1(), Model3()
    first, second = (torch.optim.Adam(reversed(list(model.parameters()))) for model in (source, target))
    second = torch.optim.Adam(target.parameters())
    for parameter in source.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    statedict.save({"optimizer": first, "model": source}, tmp_path / "old.pth")
    statedict.restore({"optimizer": second, "model": target}, tmp_path / "old.pth")
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(first.state[one]["exp_avg"], second.state[other]["exp_avg"])


def test_what_is_saved_says_its_version_and_plain_pytorch_reads_it(tmp_path: Path) -> None:
    model = Model3()
    assert model.state_dict()._metadata[""] == {"version": 1, "renamed_in": 2}
    statedict.save(model, tmp_path / "new.pth")
    assert torch.load(tmp_path / "new.pth", weights_only=True)._metadata["blocks.0"]["renamed_in"] == 1
    Model3().load_state_dict(torch.load(tmp_path / "new.pth", weights_only=True))


@statedict.renamed_in(1, {"a": "b", "b": "a"})
class Swapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)


def test_names_that_changed_places_are_told_by_the_version_and_without_one_are_an_error() -> None:
    old = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    target = Swapped()
    statedict.restore(target, old.state_dict())  # its metadata has no version: from before
    assert torch.equal(target.a.weight, old["b"].weight)
    again = Swapped()
    statedict.restore(again, target.state_dict())
    assert torch.equal(again.a.weight, target.a.weight)
    with pytest.raises(
        statedict.errors.RestoreError, match="does not say which version it is, and version 1 and version 0"
    ):
        statedict.restore(again, dict(old.state_dict()))


def test_a_state_from_newer_code_is_an_error() -> None:
    state = Model3().state_dict()
    state._metadata[""]["renamed_in"] = 7
    with pytest.raises(statedict.errors.RestoreError, match="the state has version 7 of the names, the code 2"):
        statedict.restore(Model3(), state)


def test_a_subclass_inherits_the_renames_and_may_add_its_own() -> None:
    @statedict.renamed_in(3, {"extra": "more"})
    class Sub(Model3):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(1, 1)

    class Old(Model1):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(1, 1)

    source, target = Old(), Sub()
    statedict.restore(target, source.state_dict())
    assert values(target) == values(source)
    assert target.state_dict()._metadata[""]["renamed_in"] == 3
    assert Model3().state_dict()._metadata[""]["renamed_in"] == 2


def test_two_entries_that_get_one_name_are_an_error() -> None:
    state = dict(Model1().state_dict()) | {"head.weight": torch.zeros(2, 3)}
    with pytest.raises(statedict.errors.RestoreError, match=r"'out\.weight' and 'head\.weight' both become"):
        statedict.restore(Model3(), state)


def test_a_malformed_registration_is_refused() -> None:
    with pytest.raises(statedict.errors.RenameError, match="begin with 1"):
        statedict.renamed_in(0, {"a": "b"})
    with pytest.raises(statedict.errors.RenameError, match="neither"):
        statedict.renamed_in(1, {"{a b": "c", "{a+b}": "c"})
    with pytest.raises(statedict.errors.RenameError, match="Model3 has a version 2 of its names already"):
        statedict.renamed_in(2, {"a": "b"})(Model3)
