from __future__ import annotations

import contextlib
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import statedict

Run = Callable[..., subprocess.CompletedProcess[str]]


def recipe_of_pytorch(checkpoint: dict[str, dict[str, object]]) -> str:
    """What the loops of PyTorch's recipe print."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print("Model's state_dict:")
        for param_tensor in checkpoint["model_state"]:
            print(param_tensor, "\t", checkpoint["model_state"][param_tensor].size())  # type: ignore[attr-defined]
        print()
        print("Optimizer's state_dict:")
        for var_name in checkpoint["optimizer_state"]:
            print(var_name, "\t", checkpoint["optimizer_state"][var_name])
    return out.getvalue()


def test_recipe_prints_what_the_loops_of_pytorch_print(run: Run, tmp_path: Path) -> None:
    shown = run("show", "--recipe", "checkpoint.pth")
    assert shown.stdout == recipe_of_pytorch(torch.load(tmp_path / "checkpoint.pth"))
    assert shown.returncode == 0


def test_recipe_prints_the_same_from_safetensors(run: Run, tmp_path: Path) -> None:
    statedict.convert(tmp_path / "checkpoint.pth", tmp_path / "checkpoint.safetensors")
    assert run("show", "--recipe", "checkpoint.safetensors").stdout == run("show", "--recipe", "checkpoint.pth").stdout


def test_recipe_prints_the_sequential_model_of_the_recipe(run: Run, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    checkpoint = {"model_state": model.state_dict(), "optimizer_state": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "sequential.pth")
    assert run("show", "--recipe", "sequential.pth").stdout == recipe_of_pytorch(checkpoint)


def test_recipe_without_torch_prints_dtype_and_shape_of_moments(run: Run) -> None:
    shown = run("show", "--recipe", "checkpoint.pth", torch=False)
    assert "conv1.weight \t torch.Size([6, 3, 5, 5])\n" in shown.stdout
    assert "state \t {0: {'momentum_buffer': float32[6, 3, 5, 5]}, 1: " in shown.stdout
    assert "param_groups \t [{'lr': 0.001, 'momentum': 0.9, " in shown.stdout


def test_recipe_of_a_file_without_models_says_so(run: Run, tmp_path: Path) -> None:
    statedict.save({"epoch": 3}, tmp_path / "epoch.pth")
    shown = run("show", "--recipe", "epoch.pth")
    assert shown.returncode == 2
    assert "no state_dict of a model or an optimizer" in shown.stderr


def test_the_tree_names_modules_dtypes_shapes_totals_and_hyperparameters(run: Run) -> None:
    lines = run("show", "checkpoint.pth").stdout.splitlines()
    assert any(line.split() == ["│", "├─", "weight", "float32", "6×3×5×5", "450", "1.8", "kB"] for line in lines)
    assert any(line.split() == ["model_state", "10", "tensors", "62,006", "248.0", "kB"] for line in lines)
    assert any(line.split() == ["├─", "momentum", "0.9"] or line.split()[-2:] == ["momentum", "0.9"] for line in lines)
    assert "parameters 62,006 (248.0 kB), optimizer state 62,006 (248.0 kB)" in lines


def test_in_a_pipe_there_are_no_colours_and_no_wrapping(run: Run, tmp_path: Path) -> None:
    name = ".".join(["a_rather_long_module_name"] * 12)
    statedict.save({name: np.zeros(3, "float32")}, tmp_path / "long.pth")
    shown = run("show", "long.pth")
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) > 60


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    import sys

    statedict.save({f"t{i}": np.zeros(1) for i in range(20_000)}, tmp_path / "many.safetensors")
    command = f"{sys.executable} -m statedict show {tmp_path / 'many.safetensors'} | head -1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert shown.stdout.count("\n") == 1


def test_json_has_every_tensor_value_and_total(run: Run) -> None:
    found = json.loads(run("show", "checkpoint.pth", "--json").stdout)
    assert found["tensors"][0] == {
        "name": "model_state.conv1.weight", "dtype": "float32", "shape": [6, 3, 5, 5], "elements": 450, "nbytes": 1800,
        "role": "parameter", "parameter": None, "inferred": False, "tied": None, "attributes": None,
        "quantized": None,
    }  # fmt: skip
    assert found["values"]["optimizer_state.param_groups.0.lr"] == 0.001
    assert found["total"] == {"tensors": 20, "elements": 124_012, "nbytes": 496_048}
    assert found["dtypes"] == {"float32": found["total"]}


def test_at_shows_one_entry(run: Run) -> None:
    assert "conv1" not in run("show", "checkpoint.pth", "--at", "model_state.fc3.weight").stdout
    assert run("show", "checkpoint.pth", "--at", "epoch").stdout.splitlines()[-1].split() == ["epoch", "60"]


def test_at_an_unknown_path_names_the_nearest(run: Run) -> None:
    shown = run("show", "checkpoint.pth", "--at", "model_state.fc3.wieght")
    assert shown.returncode == 2
    assert "model_state.fc3.weight" in shown.stderr


def test_depth_folds_the_tree(run: Run) -> None:
    folded = run("show", "checkpoint.pth", "--depth", "1").stdout
    assert "model_state" in folded
    assert "conv1" not in folded


def test_depth_counts_from_the_items_of_a_list(run: Run, tmp_path: Path) -> None:
    torch.save([torch.nn.Linear(2, 2).state_dict(), {"epoch": 3}], tmp_path / "list.pt")
    folded = run("show", "list.pt", "--depth", "1").stdout
    assert [line.split()[:2] for line in folded.splitlines()[4:6]] == [["├─", "0"], ["└─", "1"]]
    assert "weight" not in folded


def test_wasted_bytes_of_views_and_opaque_objects_are_named(run: Run, tmp_path: Path) -> None:
    import argparse

    torch.save({"view": torch.zeros(1000)[:10], "args": argparse.Namespace(lr=1)}, tmp_path / "odd.pth")
    shown = run("show", "odd.pth").stdout
    assert "wasted 4.0 kB" in shown
    assert "object of argparse.Namespace" in shown
    assert "opaque 1" in shown


def test_optimizer_state_is_named_by_its_parameter_where_the_file_knows(run: Run, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    statedict.save({"model": model, "optimizer": optimizer}, tmp_path / "named.pth")
    lines = run("show", "named.pth").stdout.splitlines()
    assert any(line.split()[-1:] == ["weight"] and "3 tensors" in line for line in lines)


def test_names_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    statedict.save({"evil\x1b[2J": np.zeros(1)}, tmp_path / "evil.safetensors")
    shown = run("show", "evil.safetensors").stdout
    assert "\x1b" not in shown
    assert "evil\\x1b[2J" in shown


def test_show_moves_no_tensor_bytes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 40))
    shown = run("show", "huge.safetensors")
    assert "1.1 TB" in shown.stdout


def test_at_a_module_shows_the_entries_below_it(run: Run) -> None:
    lines = run("show", "checkpoint.pth", "--at", "model_state.fc3").stdout.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["weight", "bias"]


def test_json_of_one_entry_keeps_paths_of_the_file(run: Run) -> None:
    found = json.loads(run("show", "checkpoint.pth", "--at", "model_state.fc3.bias", "--json").stdout)
    assert [tensor["name"] for tensor in found["tensors"]] == ["model_state.fc3.bias"]


def test_the_groups_of_an_optimizer_are_a_table_and_its_troubles_stand_below(run: Run, tmp_path: Path) -> None:
    state = statedict.load("examples/checkpoint.pth")
    group = state["optimizer_state"]["param_groups"][0]
    state["optimizer_state"]["param_groups"] = [
        group | {"params": [0, 1], "lr": 0.5},
        group | {"params": list(range(2, 9))},
    ]
    statedict.save(state, tmp_path / "a.pth")
    out = run("show", str(tmp_path / "a.pth")).stdout
    assert "conv1.weight" in out
    table = out[out.index("optimizer_state  group") :].splitlines()
    assert [line.split() for line in table] == [
        ["optimizer_state", "group", "parameters", "lr", "momentum"],
        ["0", "2", "0.5", "0.9"],
        ["1", "7", "0.001", "0.9"],
        ["optimizer_state:", "stale", "state", "of", "1", "parameter", "in", "no", "group:", "9"],
    ]


def test_textconv_shows_a_part_of_a_file(run: Run, tmp_path: Path) -> None:
    done = run("show", "checkpoint.pth::model_state", "--textconv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("conv1.bias = float32[6]")
