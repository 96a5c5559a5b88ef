"""Objects that were not built never reach a live object: they are refused, rebuilt as its own class, or replaced."""

from __future__ import annotations

import copy
import enum
import io
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same
from statedict.values import Opaque


class Norm(enum.Enum):
    AUTO = "auto"
    SPECTRAL = ("spectral", 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(str, enum.Enum):  # noqa: UP042  # the text of such a member is not its value
    UP = "down"
    DOWN = "up"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    NONE = 0
    EXECUTE = 1


class Name(enum.StrEnum):
    FIRST = "first"
    LAST = "last"


class Projector:
    def __init__(self, rank: int = 2) -> None:
        self.rank, self.basis = rank, torch.ones(rank)


class Normed(torch.optim.SGD):
    """Has an enumeration among its hyperparameters and steps by it."""

    def __init__(self, parameters: Any, norm: Any = Norm.AUTO) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        for group in self.param_groups:
            group["norm"] = norm


def pair(optimizer: Any = Normed, seed: int = 1, **options: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    made = optimizer(model.parameters(), **options)
    model(torch.ones(4, 3)).square().sum().backward()
    made.step()
    return {"model": model, "optimizer": made}


def foreign(tree: dict[str, Any], path: Path) -> Path:
    torch.save({key: part.state_dict() for key, part in tree.items()}, path)
    return path


def refused(target: dict[str, Any], source: Any, match: str, **options: Any) -> None:
    """Nothing is written, and the dry run says so too."""
    before = copy.deepcopy(target["model"].state_dict())
    assert statedict.restore(target, source, dry_run=True, **options).problems
    with pytest.raises(statedict.errors.RestoreError, match=match):
        statedict.restore(target, source, **options)
    assert_same(target["model"].state_dict(), before)


@pytest.mark.parametrize("norm", [Norm.SPECTRAL, Level.HIGH, Word.UP])
def test_a_member_of_an_enumeration_comes_back_as_the_live_class_has_it(norm: Any, tmp_path: Path) -> None:
    path = foreign(pair(norm=norm), tmp_path / "x.pth")
    target = pair(seed=2, norm=next(iter(reversed(type(norm)))))
    statedict.restore(target, path)
    assert target["optimizer"].param_groups[0]["norm"] is norm
    other = pair(seed=3, norm=0.5)
    refused(other, path, rf"object: optimizer\.param_groups\.0\.norm \(is an object of .*{type(norm).__name__}")
    statedict.restore(other, path, override={"norm": norm})
    assert other["optimizer"].param_groups[0]["norm"] is norm
    statedict.restore(other, path, allow_unexpected="optimizer.param_groups.0.norm")
    assert other["optimizer"].param_groups[0]["norm"] is norm  # the target's stays


def test_a_member_that_the_live_class_lacks_or_of_another_class_is_refused(tmp_path: Path) -> None:
    path = foreign(pair(norm=Level.HIGH), tmp_path / "x.pth")
    refused(pair(seed=2), path, r"object: optimizer\.param_groups\.0\.norm \(is not a member of .*Norm; pass override=")
    state = pair()["optimizer"].state_dict()
    state["param_groups"][0]["norm"] = "nothing"
    refused(pair(seed=2), {"model": pair()["model"].state_dict(), "optimizer": state}, "is not a member of")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "distributed", "shards/"])
@pytest.mark.parametrize(
    ("norm", "data"),
    [(Level.HIGH, 2), (Word.UP, "down"), (Norm.SPECTRAL, "SPECTRAL"), (Access.READ | Access.WRITE, 3), (Access(0), 0)],
)
def test_our_files_hold_a_value_or_the_name_and_the_member_comes_back(
    norm: Any, data: Any, name: str, tmp_path: Path
) -> None:
    path = str(tmp_path / name) + "/" * name.endswith("/")
    tree = pair(norm=norm) | {"best": norm}
    statedict.save(tree, path, format="distributed" if name == "distributed" else None)
    for state in (statedict.load(path), statedict.capture(tree)):
        held = state["optimizer"]["param_groups"][0]["norm"]
        assert (held, isinstance(held, type(data)), state["best"]) == (data, True, data)
        last = next(iter(reversed(type(norm))))
        target = pair(seed=2, norm=last) | {"best": last}
        statedict.restore(target, state)
        assert target["optimizer"].param_groups[0]["norm"] is norm
        assert target["best"] is norm
        refused(target, state | {"best": 77}, "object: best")


def test_pytorch_loads_a_member_by_its_name_with_weights_only(tmp_path: Path) -> None:
    statedict.save(pair(norm=Norm.SPECTRAL), tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth")["optimizer"]["param_groups"][0]["norm"] == "SPECTRAL"


@pytest.mark.parametrize("other", [Level.LOW, Word.UP, Access.READ])
def test_the_name_of_a_member_is_refused_where_the_live_enumeration_has_none(other: Any) -> None:
    state = statedict.capture(pair(norm=Norm.SPECTRAL) | {"best": Norm.SPECTRAL})
    why = rf"is not a member of .*{type(other).__name__}; pass override="
    refused(pair(seed=2, norm=other) | {"best": Norm.AUTO}, state, rf"object: optimizer\.param_groups\.0\.norm \({why}")
    refused(pair(seed=2) | {"best": other}, state, rf"object: best \({why}")


@pytest.mark.parametrize("number", [0.5, 1, True])
def test_a_text_is_refused_where_the_live_group_has_a_number(number: Any) -> None:
    state, at = statedict.capture(pair(norm="SPECTRAL")), "optimizer.param_groups.0.norm"
    target = pair(seed=2, norm=number)
    refused(target, state, rf"kind: {at} \(the target has {number}, the state 'SPECTRAL'; pass override={{'{at}': …}}")
    statedict.restore(target, state, override={at: Norm.SPECTRAL})
    assert target["optimizer"].param_groups[0]["norm"] is Norm.SPECTRAL


def test_members_come_back_by_name_wherever_a_live_object_has_one(tmp_path: Path) -> None:
    def build(norm: Norm) -> dict[str, Any]:
        tree = pair(seed=1 + (norm is Norm.AUTO))
        tree["optimizer"].state[tree["model"].weight]["kept"] = {"deep": (norm, [norm])}
        scheduler = torch.optim.lr_scheduler.StepLR(tree["optimizer"], 5)
        scheduler.mine = norm  # type: ignore[attr-defined]
        held = Projector()
        held.basis, held.rank = [norm, norm], norm  # type: ignore[assignment]
        return tree | {"s": scheduler, "extra": Extra(norm), "held": held, "holder": Holder({"a": [norm]})}

    def members(tree: dict[str, Any]) -> list[Any]:
        kept = tree["optimizer"].state[tree["model"].weight]["kept"]["deep"]
        held = tree["held"]
        return [
            kept[0],
            *kept[1],
            tree["s"].mine,
            tree["extra"].value,
            *held.basis,
            held.rank,
            *tree["holder"].held["a"],
        ]

    statedict.save(build(Norm.SPECTRAL), tmp_path / "x.pth")
    target = build(Norm.AUTO)
    assert members(target) == [Norm.AUTO] * 8
    statedict.restore(target, tmp_path / "x.pth")
    assert members(target) == [Norm.SPECTRAL] * 8


@pytest.mark.parametrize("form", ["x.pth", "x.safetensors", "torch"])
@pytest.mark.parametrize("member", [Access.WRITE, Access.READ | Access.WRITE, Mode.EXECUTE, Name.LAST, Word.UP])
def test_members_that_iterate_come_back_in_the_state_of_an_optimizer(member: Any, form: str, tmp_path: Path) -> None:
    def build(seed: int, member: Any) -> dict[str, Any]:
        tree = pair(torch.optim.SGD, seed=seed, momentum=0.9)
        tree["optimizer"].state[tree["model"].weight] |= {"mode": member, "deep": [{"mode": (member, "a")}]}
        return tree

    tree, target = build(1, member), build(2, next(iter(type(member))))
    path = tmp_path / form if form != "torch" else foreign(tree, tmp_path / "x.pth")
    if form != "torch":
        statedict.save(tree, path)
    statedict.restore(target, path)
    state = target["optimizer"].state[target["model"].weight]
    for held in (state["mode"], state["deep"][0]["mode"][0]):
        assert (held, type(held)) == (member, type(member))
    assert state["deep"][0]["mode"][1] == "a"
    assert_same(target["model"].state_dict(), tree["model"].state_dict())


def test_a_history_of_members_comes_back_at_another_length() -> None:
    for norm in (Norm.SPECTRAL, Level.HIGH):
        target = {"seen": [norm]}
        statedict.restore(target, statedict.capture({"seen": [norm] * 3}))
        assert target == {"seen": [norm] * 3}
        assert all(type(item) is type(norm) for item in target["seen"])
    with pytest.raises(statedict.errors.RestoreError, match=r"object: seen\.1 \(is not a member of"):
        statedict.restore({"seen": [Norm.AUTO]}, {"seen": ["AUTO", "nothing"]})


def test_a_member_in_a_tuple_is_compared_by_name() -> None:
    target = {"pair": (Norm.AUTO, torch.zeros(1))}
    statedict.restore(target, {"pair": ("AUTO", torch.ones(1))})
    assert target["pair"][1].item() == 1
    with pytest.raises(statedict.errors.RestoreError, match=r"kind: pair\.0 \(is a plain value in a tuple"):
        statedict.restore(target, {"pair": ("SPECTRAL", torch.ones(1))})


def test_a_name_that_the_caller_gives_becomes_the_member() -> None:
    target = {"norm": Norm.AUTO, "level": Level.LOW}
    statedict.restore(target, {"norm": "AUTO", "level": 1}, override={"norm": "SPECTRAL", "level": 2})
    assert target == {"norm": Norm.SPECTRAL, "level": Level.HIGH}


def test_an_enumeration_in_the_tree_takes_a_member_of_a_foreign_file(tmp_path: Path) -> None:
    torch.save({"norm": Norm.SPECTRAL}, tmp_path / "x.pth")
    target = {"norm": Norm.AUTO}
    statedict.restore(target, tmp_path / "x.pth")
    assert target == {"norm": Norm.SPECTRAL}


@pytest.mark.parametrize("value", [Projector(), [Projector()], {"deep": (Projector(),)}, deque([1])])
def test_an_object_in_the_state_of_another_is_refused_when_it_is_saved(value: Any, tmp_path: Path) -> None:
    tree = pair()
    tree["optimizer"].state[tree["model"].weight]["kept"] = value
    with pytest.raises(
        statedict.errors.UnsupportedError, match=r"optimizer\.state\.0\.kept.*: cannot capture a .* in the state"
    ):
        statedict.capture(tree)
    with pytest.raises(statedict.errors.UnsupportedError, match=r"optimizer\.state\.0\.kept"):
        statedict.save(tree, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []
    scheduler = torch.optim.lr_scheduler.StepLR(pair()["optimizer"], 5)
    scheduler.mine = value  # type: ignore[attr-defined]
    with pytest.raises(
        statedict.errors.UnsupportedError,
        match=r"s\.mine.*: cannot capture a .* in the state of StepLR, .* or leave it out",
    ):
        statedict.capture({"s": scheduler})


@pytest.mark.parametrize("deep", [False, True])
def test_an_object_in_foreign_state_is_refused_left_out_or_replaced(deep: bool, tmp_path: Path) -> None:
    tree, kept = pair(), Projector()
    tree["optimizer"].state[tree["model"].weight]["kept"] = {"more": [kept]} if deep else kept
    path, at = foreign(tree, tmp_path / "x.pth"), "optimizer.state.0.kept" + ".more.0" * deep
    refused(pair(seed=2), path, rf"object: {at} \(is an object of .*Projector.*override=.*allow_unexpected='{at}'")
    target = pair(seed=2)
    statedict.restore(target, path, allow_unexpected=at)
    state = target["optimizer"].state[target["model"].weight]
    assert state.get("kept") == ({} if deep else None)
    mine = Projector(3)
    statedict.restore(target, path, override={at: mine})
    state = target["optimizer"].state[target["model"].weight]["kept"]
    assert (state["more"][0] if deep else state) is mine


def test_what_is_refused_is_said_in_one_line(tmp_path: Path) -> None:
    tree = pair()
    tree["optimizer"].param_groups[0]["lr"] = tree["optimizer"].param_groups[0]["mine"] = Projector()
    tree["s"] = Holder(Projector())
    target = pair(seed=2) | {"s": Holder(1)}
    target["optimizer"].param_groups[0]["mine"] = 0.5
    report = statedict.restore(target, foreign(tree, tmp_path / "x.pth"), dry_run=True)
    paths = ["optimizer.param_groups.0.lr", "optimizer.param_groups.0.mine", "s.held"]
    assert sorted(report.paths("object")) == paths
    assert [sum(one.path == path for one in (*report.entries, *report.problems)) for path in paths] == [1, 1, 1]


def test_a_dict_does_not_take_the_place_of_an_object() -> None:
    tree, target = (pair(torch.optim.SGD, seed=seed, lr=0.1, momentum=0.9) for seed in (1, 2))
    target["optimizer"].state[target["model"].weight]["kept"] = Projector()
    state = statedict.capture(tree)
    state["optimizer"]["state"][0]["kept"] = {"rank": 2}
    refused(target, state, r"object: optimizer\.state\.0\.kept \(is a dict, where the target has a .*Projector")


class Extra(nn.Module):
    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.ones(2)), value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state.read() if isinstance(state, io.BytesIO) else state


@pytest.mark.parametrize("value", [io.BytesIO(b"x"), {"a": [Projector()]}, {Level.LOW: 1, "b": {Norm.AUTO}}])
def test_extra_state_that_is_no_data_is_refused_before_the_weights_are_written(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": nn.ModuleList([Extra(value)]).state_dict()}, path)
    target = {"model": nn.ModuleList([Extra(5)])}
    nn.init.zeros_(target["model"][0].weight)  # type: ignore[arg-type]
    refused(target, path, r"object: model\.0\._extra_state")
    statedict.restore(target, path, allow_unexpected="model.0._extra_state")
    assert (target["model"][0].value, target["model"][0].weight.sum().item()) == (5, 2)
    statedict.restore(target, path, override={"model.0._extra_state": 7})
    assert target["model"][0].value == 7


class Holder:
    def __init__(self, held: Any = None) -> None:
        self.held = held

    def state_dict(self) -> Any:
        return {"held": self.held}

    def load_state_dict(self, state: Any) -> None:
        self.held = state["held"]


@pytest.mark.parametrize("held", [Opaque("lab.X"), {"a": [Opaque("lab.X")]}, {Opaque("lab.X"): 1}, {Opaque("lab.X")}])
def test_no_kind_of_live_object_takes_a_label(held: Any) -> None:
    targets: list[tuple[Any, Any]] = [
        ({"a": 1, "o": Holder()}, {"a": 2, "o": {"held": held}}),
        ({"a": 1, "o": None}, {"a": 2, "o": held}),
        ({"a": 1, "o": {}}, {"a": 2, "o": {"x": held}}),
        ({"a": 1, "o": []}, {"a": 2, "o": [held]}),
        ({"a": 1, "o": [1, 2]}, {"a": 2, "o": [held]}),
    ]
    for target, state in targets:
        with pytest.raises(statedict.errors.RestoreError, match=r"(object|kind): o"):
            statedict.restore(target, state)
        assert target["a"] == 1
    target = {"a": 1, "o": Holder()}
    statedict.restore(target, {"a": 2, "o": {"held": held}}, override={"o.held": 3})
    assert (target["a"], target["o"].held) == (2, 3)  # type: ignore[attr-defined]


def test_a_generator_takes_no_label() -> None:
    import random

    target = {"a": 1, "r": random.Random(1)}
    state = statedict.capture(target)
    state["r"]["gauss"] = Opaque("lab.X")
    with pytest.raises(statedict.errors.RestoreError, match=r"kind: r\.gauss"):
        statedict.restore(target, state | {"a": 2})
    assert target["a"] == 1
