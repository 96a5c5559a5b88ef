"""Archives of torch.jit.save: parameters, buffers and constants by name, and no code."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.testing.same import assert_same

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.norm = torch.nn.BatchNorm2d(2)
        self.scale = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
        self.steps = 3
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).sum() * self.scale


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.shared = self.blocks[0].conv
        self.register_buffer("table", torch.arange(4, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).sum()
        return x + self.table.sum()


class Scaled(torch.nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = [table]  # neither a parameter nor a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.table[0]


def scripted(path: Path) -> Any:
    module = torch.jit.script(Model().eval())
    torch.jit.save(module, path)
    return module


def test_parameters_and_buffers_have_the_names_and_values_of_the_state_dict(tmp_path: Path) -> None:
    module = scripted(tmp_path / "m.pt")
    state = statedict.load(tmp_path / "m.pt")
    expected = module.state_dict()
    tensors = state.tensors()
    assert expected.keys() == tensors.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name].torch(), value), name
    assert tensors["blocks.0.conv.weight"].requires_grad
    assert not tensors["blocks.1.scale"].requires_grad
    assert tensors["shared.weight"].storage is tensors["blocks.0.conv.weight"].storage
    Model().load_state_dict({name: tensors[name] for name in expected})


def test_modules_are_state_dicts_and_plain_attributes_stand_beside_them(tmp_path: Path) -> None:
    scripted(tmp_path / "m.pt")
    state = statedict.load(tmp_path / "m.pt")
    assert state["blocks"]["0"]["conv"]["weight"].shape == (2, 1, 3, 3)
    assert (state.at("blocks.1.steps"), state.at("blocks.1.sizes"), state["training"]) == (3, [1, 2], False)


def test_the_constants_of_a_trace_stand_under_constants(tmp_path: Path) -> None:
    table = torch.arange(3.0)
    torch.jit.save(torch.jit.trace(Scaled(table), torch.ones(3)), tmp_path / "t.pt")
    state = statedict.load(tmp_path / "t.pt")
    assert_same(state["constants"], (table,))


def test_opening_reads_no_code_and_imports_nothing(tmp_path: Path) -> None:
    scripted(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
        for name in old.namelist():
            evil = "/code/" in name and name.endswith(".py")
            new.writestr(name, b"raise SystemExit('executed')" if evil else old.read(name))
    program = (
        "import sys, statedict; state = statedict.load(sys.argv[1]); "
        "assert state['table'].dtype.name == 'int64'; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', '__torch__', 'numpy')])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.pt")], check=True, capture_output=True, text=True
    ).stdout
    assert output == "[]\n"


def test_a_missing_constant_is_an_error_that_names_it(tmp_path: Path) -> None:
    table = torch.arange(3.0)
    torch.jit.save(torch.jit.trace(Scaled(table), torch.ones(3)), tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as old, zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
        for name in old.namelist():
            if not name.endswith("constants/0"):
                new.writestr(name, old.read(name))
    with pytest.raises(statedict.errors.CorruptFileError, match="storage constants/0 is missing"):
        statedict.load(tmp_path / "x.pt")


def test_constants_that_are_a_bare_tensor_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    (constants,) = (name for name in records if name.endswith("constants.pkl"))
    records[constants] = (
        b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu"
        b"K\1tQK\0K\1\x85K\1\x85\x89NtR."
    )
    records[constants.replace("constants.pkl", "constants/0")] = b"\0\0\x80?"
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            new.writestr(name, data)
    assert statedict.load(path)["constants"].tolist() == [1.0]
