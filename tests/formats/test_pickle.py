"""Bare pickles, and classes that are not there."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import CliRunner

import statedict
from statedict.cli import cli
from statedict.cli.commands import error_line
from statedict.errors import FormatError, UnknownFormatError
from statedict.testing.same import assert_same
from statedict.values import Opaque


def legacy(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


TREE = {"w": numpy.arange(6.0).reshape(2, 3), "b": [numpy.arange(3, dtype="i2"), 1.5], "epoch": 3, "name": None}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_is_read(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(TREE, protocol))
    assert_same(statedict.load(tmp_path / "x.pkl"), TREE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_that_pickle_itself_wrote_are_read(protocol: int, tmp_path: Path) -> None:
    tree = {"w": torch.arange(6.0).reshape(2, 3).T, "p": torch.nn.Parameter(torch.ones(2).bfloat16()), "epoch": 3}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol))
    found = statedict.load(tmp_path / "x.pkl")
    assert_same(found, tree)
    assert found["p"].parameter
    assert statedict.verify(tmp_path / "x.pkl").ok


@pytest.mark.parametrize(
    "stream",
    [b"", b"\x80\x02N.", "text", legacy({"w": 1}), legacy({"w": torch.ones(2)}), legacy("s" * 5000)],
    ids=range(6),
)
def test_what_stands_for_a_storage_and_is_none_is_refused(stream: Any, tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (stream,)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Forged()))
    with pytest.raises(statedict.errors.FormatError):
        statedict.load(tmp_path / "x.pkl")


def test_a_storage_that_is_referred_to_again_and_again_is_within_the_bounds(tmp_path: Path) -> None:
    whole = pickle.dumps(torch.ones(2).untyped_storage(), 2)
    call = whole[2 : whole.rindex(b"R") + 1]
    again = call.rpartition(b"\x85")[0][-2:]
    assert again[:1] == b"q"
    data = b"\x80\x02](" + call + (b"h\x00h" + again[1:] + b"\x85R") * 20_000 + b"e."
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(statedict.errors.LimitError):
        statedict.load(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_oldest_protocols_are_read_when_the_format_is_named(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(TREE, protocol))
    assert_same(statedict.load(tmp_path / "x.pkl", format="pickle"), TREE)
    with pytest.raises(statedict.errors.UnknownFormatError):
        statedict.load(tmp_path / "x.pkl")


def test_a_root_that_is_no_dict_comes_under_an_empty_key(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(TREE["w"]))
    assert_same(statedict.load(tmp_path / "x.pkl")[""], TREE["w"])


def test_the_arrays_can_be_saved_as_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(TREE))
    statedict.convert(tmp_path / "x.pkl", tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["w"].tolist() == TREE["w"].tolist()


def test_a_pickle_that_ends_anywhere_is_truncated(tmp_path: Path) -> None:
    whole = pickle.dumps(TREE, 2)
    for length in range(2, len(whole)):
        (tmp_path / "x.pkl").write_bytes(whole[:length])
        with pytest.raises(statedict.errors.TruncatedError, match=r"x\.pkl: at byte"):
            statedict.load(tmp_path / "x.pkl")


WRITE = """
import sys, types, argparse, torch
lib = types.ModuleType("configs_of_a_lab"); sys.modules["configs_of_a_lab"] = lib
class DictConfig:
    def __init__(self, **content): self._content = content
class Schedule(dict): pass
class Sampler(list): pass
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.norm = torch.nn.BatchNorm2d(2)
        self.temperature = torch.tensor(0.5)
for kind in (DictConfig, Schedule, Sampler, Net):
    kind.__module__ = "configs_of_a_lab"; kind.__qualname__ = kind.__name__; setattr(lib, kind.__name__, kind)
torch.manual_seed(0)
net = Net()
checkpoint = {
    "epoch": 7, "pytorch-lightning_version": "2.2.0", "state_dict": net.state_dict(),
    "hyper_parameters": {"config": DictConfig(lr=0.1, mean=torch.ones(3))},
    "args": argparse.Namespace(lr=0.1, init=torch.arange(2.0)),
    "callbacks": {"best": Schedule(best=torch.tensor(3.0)), "sampler": Sampler([torch.zeros(2)])},
    "model": net,
}
torch.save(checkpoint, sys.argv[1] + "/lightning.ckpt")
torch.save(net, sys.argv[1] + "/whole.pt")
torch.save(net, sys.argv[1] + "/old.pt", _use_new_zipfile_serialization=False)
torch.save(net.state_dict(), sys.argv[1] + "/expected.pth")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with classes of a module that does not exist here."""
    folder = tmp_path_factory.mktemp("lab")
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITE, str(folder)], check=True)
    return folder


def test_every_tensor_of_a_lightning_checkpoint_is_reachable(lab: Path) -> None:
    state = statedict.load(lab / "lightning.ckpt")
    expected = torch.load(lab / "expected.pth", weights_only=True)
    assert_same(state["state_dict"], expected)
    for name, value in expected.items():
        assert torch.equal(state.at(f"model.{name}").torch(), value), name
    assert state.at("hyper_parameters.config._content.mean").tolist() == [1, 1, 1]
    assert (state.at("args.lr"), state.at("args.init").tolist()) == (0.1, [0, 1])
    assert state.at("callbacks.best.best").item() == 3
    assert state.at("callbacks.sampler.items.0").tolist() == [0, 0]
    assert state.at("model.temperature").item() == 0.5
    assert state["hyper_parameters"]["config"].name == "configs_of_a_lab.DictConfig"
    names = set(state.tensors())
    assert {"model.conv.weight", "model.norm.running_mean", "args.init"} <= names


@pytest.mark.parametrize("file", ["whole.pt", "old.pt"])
def test_a_whole_pickled_module_reads_by_the_names_of_its_state_dict(file: str, lab: Path) -> None:
    state = statedict.load(lab / file)
    expected = torch.load(lab / "expected.pth", weights_only=True)
    tensors = state.tensors()
    assert {name: value.tolist() for name, value in expected.items()}.items() <= {
        name: tensor.tolist() for name, tensor in tensors.items()
    }.items()
    assert isinstance(state[""], Opaque)
    assert state[""].name == "configs_of_a_lab.Net"


@pytest.mark.parametrize("file", ["lightning.ckpt", "whole.pt", "old.pt"])
def test_nothing_is_imported_for_the_classes_in_a_file(file: str, lab: Path) -> None:
    program = (
        "import sys, statedict.tree.state_dict, statedict.api.files\n"
        "import statedict.formats.torch.legacy, statedict.formats.torch.archive\n"
        "import statedict.collector, statedict.io.tar, zlib\n"
        "before = set(sys.modules)\n"
        "state = statedict.api.files.load(sys.argv[1]); assert state.tensors()\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(lab / file)], check=True, capture_output=True, text=True
    ).stdout
    assert output == "[]\n"


class Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_code_in_a_pickle_is_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": Evil(), "w": numpy.ones(1)}))
    state = statedict.load(tmp_path / "x.pkl")
    assert state["a"] == Opaque("builtins.print", ("executed",))
    assert capsys.readouterr().out == ""


def test_an_archive_without_its_first_header_is_no_pickle(tmp_path: Path) -> None:
    statedict.save({"w": numpy.ones(3), "epoch": 3}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[64:])
    with pytest.raises(statedict.errors.CorruptFileError, match=r"archive of torch.save whose first bytes are missing"):
        statedict.load(tmp_path / "cut.pth")
    assert not statedict.verify(tmp_path / "cut.pth").ok


PLAIN = [["a", "b"], [["a"], ("b", 2.5, None)], 42, "text", b"bytes", None, (), {1, 2}]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_a_pickle_of_plain_values_is_no_checkpoint_unless_one_asks_for_it(value: object, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    for opened in (statedict.load, statedict.inspect, statedict.verify, statedict.stats):
        with pytest.raises(UnknownFormatError, match=r"is a pickle without any tensor .* not a checkpoint"):
            opened(path)
    assert statedict.load(path, format="pickle") == {"": value}
    assert statedict.inspect(path, format="pickle").total.tensors == 0
    shown = CliRunner().invoke(cli, ["show", str(path)])
    assert isinstance(shown.exception, UnknownFormatError)
    assert "use --format pickle, or --read-as pickle of convert and edit" in error_line(shown.exception)
    assert CliRunner().invoke(cli, ["show", str(path), "--format", "pickle"]).exit_code == 0
    as_pickle = ["--read-as", "pickle", "--overwrite"]
    assert CliRunner().invoke(cli, ["convert", str(path), str(tmp_path / "x.pth"), *as_pickle]).exit_code == 0
    assert statedict.load(tmp_path / "x.pth") == {"": value}
    step = ["--set", "more=1", *as_pickle]
    assert CliRunner().invoke(cli, ["edit", str(path), str(tmp_path / "y.pth"), *step]).exit_code == 0


def test_a_list_that_contains_itself_is_no_checkpoint(tmp_path: Path) -> None:
    endless: list[object] = []
    endless.append(endless)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(endless))
    with pytest.raises(UnknownFormatError, match="without any tensor"):
        statedict.load(tmp_path / "x.pkl")


WITHOUT_TENSORS = {
    "an optimizer before its first step": torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict(),
    "several optimizers": [torch.optim.Adam([torch.zeros(1)]).state_dict() for _ in range(2)],
    "a number of steps": {"epoch": 3},
    "nothing yet": {},
    "an object": argparse.Namespace(lr=0.1),
}


@pytest.mark.parametrize("name", list(WITHOUT_TENSORS))
def test_dicts_and_objects_without_tensors_are_checkpoints(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(WITHOUT_TENSORS[name]))
    assert statedict.inspect(tmp_path / "x.pkl").total.tensors == 0
    assert statedict.verify(tmp_path / "x.pkl").ok


def test_protocols_that_look_like_text_are_read_where_one_says_what_they_are(tmp_path: Path) -> None:
    for protocol in (0, 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"w": numpy.ones(3), "epoch": 3}, protocol))
        assert statedict.stats(path, format="pickle")["w"].l2 == 3**0.5
        assert statedict.diff(path, path, format="pickle").same
        assert statedict.verify(path, format="pickle").ok
        for command in (["verify", path], ["stats", path], ["diff", path, path]):
            assert CliRunner().invoke(cli, [*map(str, command), "--format", "pickle"]).exit_code == 0


def test_a_format_that_does_not_exist_is_named_beside_those_that_do(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": numpy.ones(3)}))
    with pytest.raises(FormatError, match="no format 'pickles'; there are torch, "):
        statedict.verify(tmp_path / "x.pkl", format="pickles")
