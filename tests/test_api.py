"""load, save, convert, capture and restore: what they take, what they give, what they refuse."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import statedict
from statedict.testing.same import assert_same

TREE = {
    "model": {"w": numpy.arange(6.0).reshape(2, 3), "b": numpy.ones(2, "float32")},
    "epoch": 3,
    "note": ["x", (1, 2)],
}


class OwnPath(os.PathLike[str]):
    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


@pytest.mark.parametrize("kind", [str, Path, OwnPath], ids=["str", "Path", "PathLike"])
def test_every_path_may_be_a_string_or_path_like(kind: Callable[[str], Any], tmp_path: Path) -> None:
    one, other = kind(str(tmp_path / "one.pth")), kind(str(tmp_path / "other.safetensors"))
    statedict.save(TREE, one)
    statedict.convert(one, other)
    target = {"model": {"w": numpy.zeros((2, 3)), "b": numpy.zeros(2, "float32")}, "epoch": 0, "note": ["", (1, 2)]}
    statedict.restore(target, other)
    assert_same(target, TREE)
    assert_same(statedict.load(other), TREE)


@pytest.mark.parametrize("call", ["load", "convert", "restore"])
def test_a_file_that_is_not_there_is_named(call: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"
    arguments = {"load": (missing,), "convert": (missing, tmp_path / "x.pth"), "restore": ({}, missing)}[call]
    with pytest.raises(statedict.errors.FileError, match=r"missing\.pth: cannot open: No such file") as caught:
        getattr(statedict, call)(*arguments)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.filename == str(missing)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.FileError, match=r"cannot write into .*nowhere") as caught:
        statedict.save(TREE, tmp_path / "nowhere" / "x.pth")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_folder_is_no_file_to_write_to_or_read(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.FileError, match="is not a regular file"):
        statedict.save(TREE, tmp_path)
    with pytest.raises(statedict.errors.UnknownFormatError, match=r"is an empty folder; .*name its file"):
        statedict.load(tmp_path)


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a in (".pth", ".safetensors") for b in (".pth", ".safetensors", ".bin")]
)
def test_a_conversion_keeps_every_key_value_and_bit(source: str, target: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).bfloat16()
    model[0].bias = nn.Parameter(model[0].bias.detach(), requires_grad=False)
    tree = {"model": model.state_dict(), "tied": [model[0].weight, model[0].weight], **TREE}
    statedict.save(tree, tmp_path / f"a{source}")
    statedict.convert(tmp_path / f"a{source}", tmp_path / f"b{target}")
    assert_same(statedict.load(tmp_path / f"b{target}"), tree)
    assert len(statedict.load(tmp_path / f"b{target}").tensors()) == len(
        statedict.load(tmp_path / f"a{source}").tensors()
    )


def test_a_conversion_there_and_back_gives_the_same_tree(tmp_path: Path) -> None:
    statedict.convert("examples/checkpoint.pth", tmp_path / "x.safetensors")
    statedict.convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert_same(statedict.load(tmp_path / "y.pth"), torch.load("examples/checkpoint.pth", weights_only=True))
    assert_same(
        torch.load(tmp_path / "y.pth", weights_only=True), torch.load("examples/checkpoint.pth", weights_only=True)
    )


def test_a_conversion_of_a_file_into_itself_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    statedict.save(TREE, path)
    statedict.convert(path, path, format="safetensors")
    assert path.read_bytes()[8:9] == b"{"
    assert_same(statedict.load(path), TREE)


def test_a_conversion_respects_overwrite(tmp_path: Path) -> None:
    statedict.save(TREE, tmp_path / "x.pth")
    statedict.save({}, tmp_path / "y.pth")
    with pytest.raises(FileExistsError):
        statedict.convert(tmp_path / "x.pth", tmp_path / "y.pth", overwrite=False)
    assert statedict.load(tmp_path / "y.pth") == {}


def test_a_symbolic_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    statedict.save({"epoch": 1}, tmp_path / "real.pth")
    (tmp_path / "best.pth").symlink_to("real.pth")
    statedict.save({"epoch": 2}, tmp_path / "best.pth")
    assert (tmp_path / "best.pth").is_symlink()
    assert statedict.load(tmp_path / "real.pth")["epoch"] == 2


def test_saving_leaves_its_argument_alone(tmp_path: Path) -> None:
    weight = numpy.ones(3)
    tree = {"w": weight, "nested": {"l": [weight]}}
    statedict.save(tree, tmp_path / "x.pth")
    assert tree["w"] is weight
    assert tree["nested"]["l"][0] is weight
    assert type(tree["nested"]) is dict


def test_a_loaded_state_can_be_altered_as_the_dict_it_is_and_saved(tmp_path: Path) -> None:
    statedict.save(TREE, tmp_path / "x.pth")
    state = statedict.load(tmp_path / "x.pth")
    state["model"]["renamed"] = state["model"].pop("w")
    state["model"]["b"] = state["model"]["b"].numpy() * 2
    state["new"] = torch.ones(2)
    state["part"] = state["model"]["renamed"][1:, ::2]
    del state["epoch"]
    statedict.save(state, tmp_path / "y.safetensors")
    again = statedict.load(tmp_path / "y.safetensors")
    assert list(again) == ["model", "note", "new", "part"]
    assert again["model"]["renamed"].tolist() == TREE["model"]["w"].tolist()
    assert again["model"]["b"].tolist() == [2, 2]
    assert again["part"].tolist() == [[3, 5]]


def test_a_capture_of_one_array_comes_under_the_empty_key() -> None:
    captured = statedict.capture(torch.arange(3))
    assert list(captured) == [""]
    target = torch.zeros(3, dtype=torch.int64)
    statedict.restore(target, captured)
    assert target.tolist() == [0, 1, 2]


def test_a_bare_root_is_restored_from_its_file(tmp_path: Path) -> None:
    statedict.save([numpy.ones(2), 5], tmp_path / "x.pth")
    target = [numpy.zeros(2), 0]
    statedict.restore(target, tmp_path / "x.pth")
    assert target[0].tolist() == [1, 1]
    assert target[1] == 5


def test_the_collector_is_as_it_was_after_every_call(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for wanted in (True, False):
        (gc.enable if wanted else gc.disable)()
        try:
            statedict.save(TREE, path)
            statedict.load(path)
            with pytest.raises(statedict.errors.UnsupportedError):
                statedict.save({"x": open}, path)
            assert gc.isenabled() is wanted
        finally:
            gc.enable()


def test_every_error_is_a_statedict_error_and_the_built_in_that_fits(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"PK\3\4")
    with pytest.raises(statedict.StateDictError) as caught:
        statedict.load(tmp_path / "bad.pth")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(statedict.StateDictError) as caught:
        statedict.save({"x": open}, tmp_path / "x.pth")
    assert isinstance(caught.value, TypeError)
    with pytest.raises(statedict.StateDictError) as caught:
        statedict.restore({"x": numpy.ones(1)}, {"x": numpy.ones(2)})
    assert isinstance(caught.value, ValueError)


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".pth")
    statedict.save(TREE, path)
    assert_same(statedict.load(path), TREE)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_save_crosses_the_captured_state_twice(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from statedict.adapters import Capture
    from statedict.tree.walk import _Visitor

    visits: list[int] = []  # by thread
    for owner, name in ((Capture, "value"), (_Visitor, "enter")):
        call = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, *args, call=call: visits.append(threading.get_ident()) or call(self, *args)
        )
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1)) for _ in range(100)])
    statedict.save({"model": model}, tmp_path / f"model{suffix}")
    assert 200 <= len(visits) <= 210
    visits.clear()
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": model})
    assert 100 <= visits.count(threading.get_ident()) <= 105  # the rest is done in the background
