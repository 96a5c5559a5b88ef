"""`statedict diff`: what it prints, its exit status, and as git's driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statedict

from ..hollow import hollow
from ..remote.servers import WithRanges, serving

Run = Callable[..., subprocess.CompletedProcess[str]]


def altered(folder: Path, name: str = "other.safetensors") -> str:
    state = statedict.load(folder / "checkpoint.pth").torch(copy=True)
    state["model_state"]["fc3.bias"] += 1
    state["model_state"]["fc2.b"] = state["model_state"].pop("fc2.bias")
    state["epoch"] = 61
    statedict.save(state, folder / name)
    return name


def test_the_same_in_two_formats_is_one_line_and_status_0_without_torch(run: Run, tmp_path: Path) -> None:
    statedict.convert(tmp_path / "checkpoint.pth", tmp_path / "same.safetensors")
    done = run("diff", "checkpoint.pth", "same.safetensors", torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "same: 20 tensors identical"


def test_differences_are_status_1_and_come_by_kind(run: Run, tmp_path: Path) -> None:
    done = run("diff", "checkpoint.pth", altered(tmp_path), torch=False)
    assert (done.returncode, done.stderr) == (1, "")
    head, *lines = done.stdout.splitlines()
    assert head == "17 tensors identical, 1 changed, 2 renamed, 2 values changed"
    assert lines[0] == "changed"
    assert lines[1].startswith("  model_state.fc3.bias  rel ")
    assert [line.split() for line in lines[2:7]] == [
        ["renamed"],
        ["model_state.fc2.bias", "→", "model_state.fc2.b"],
        ["optimizer_state.state.fc2.bias.momentum_buffer", "→", "optimizer_state.state.fc2.b.momentum_buffer"],
        ["values", "changed"],
        ["epoch", "60", "→", "61"],
    ]


def test_json_is_strict_and_has_the_counts(run: Run, tmp_path: Path) -> None:
    done = run("diff", "--json", "checkpoint.pth", altered(tmp_path))
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert done.returncode == 1
    assert (found["identical"], len(found["renamed"])) == (17, 2)
    assert ["model_state.fc2.bias", "model_state.fc2.b"] in found["renamed"]
    assert [entry["name"] for entry in found["changed"]] == ["model_state.fc3.bias"]
    assert {"added", "removed", "values", "retyped", "reshaped", "moved", "notes", "same", "close"} <= set(found)


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint.pth",),
        ("a", "b", "c"),
        ("checkpoint.pth", "nothing.pth"),
        ("checkpoint.pth", "checkpoint.pth", "--only", "no.such"),
        ("--git", "x", "y"),
    ],
)
def test_what_cannot_be_compared_is_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("diff", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("statedict: ")


def test_options_reach_the_comparison(run: Run, tmp_path: Path) -> None:
    other = altered(tmp_path)
    assert run("diff", "checkpoint.pth", other, "--only", "model_state.conv*").returncode == 0
    assert run("diff", "checkpoint.pth", other, "--only", "epoch", "--only", "model_state.conv1").returncode == 1
    assert run("diff", "checkpoint.pth", other, "--only", "model_state.fc3", "--atol", "1.01").returncode == 0
    names = run("diff", "checkpoint.pth", other, "--names-only", "--only", "model_state")
    assert names.returncode == 1
    assert names.stdout.startswith("9 tensors alike, 1 added, 1 removed (")
    statedict.save({"a": torch.tensor([0.0])}, tmp_path / "plus.pth")
    statedict.save({"a": torch.tensor([-0.0])}, tmp_path / "minus.pth")
    assert run("diff", "plus.pth", "minus.pth").returncode == 1
    assert run("diff", "plus.pth", "minus.pth", "--numeric").returncode == 0


def test_a_screenful_of_each_kind_unless_all_are_asked_for(run: Run, tmp_path: Path) -> None:
    statedict.save({}, tmp_path / "none.pth")
    statedict.save({f"w{n:02}": torch.randn(n + 1) for n in range(50)}, tmp_path / "many.pth")
    some = run("diff", "none.pth", "many.pth").stdout.splitlines()
    assert (len(some), some[-1]) == (23, "  … and 30 more")
    assert len(run("diff", "none.pth", "many.pth", "--all").stdout.splitlines()) == 52


def test_names_that_could_steer_a_terminal_are_escaped(run: Run, tmp_path: Path) -> None:
    statedict.save({"\x1b[31mred\n": torch.ones(1), "n": "\x1b"}, tmp_path / "red.pth")
    statedict.save({}, tmp_path / "none.pth")
    done = run("diff", "none.pth", "red.pth")
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 5


def test_a_url_is_compared_with_a_file(run: Run, tmp_path: Path) -> None:
    other = altered(tmp_path)
    model = statedict.load(tmp_path / "checkpoint.pth")["model_state"].torch(copy=True)
    statedict.save({"model_state": {name: tensor + 1 for name, tensor in model.items()}}, tmp_path / "deep.pth")
    with serving(tmp_path, WithRanges) as server:
        assert run("diff", f"{server.url}/checkpoint.pth", "checkpoint.pth").returncode == 0
        assert run("diff", "checkpoint.pth", f"{server.url}/{other}").returncode == 1
        far = run("diff", "--deep", "checkpoint.pth", f"{server.url}/deep.pth")
    assert far.stdout == run("diff", "--deep", "checkpoint.pth", "deep.pth").stdout
    assert "rank of the change" in far.stdout


def test_a_gigabyte_is_compared_in_little_memory(tmp_path: Path) -> None:
    tensors = {f"w{n}": ("F32", [1 << 27], 1 << 29) for n in range(2)}
    for name in ("one", "other"):
        hollow(tmp_path / f"{name}.safetensors", tensors)
    with (tmp_path / "other.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x3f")
    program = (
        "import sys\nfrom statedict.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "diff", "one.safetensors", "other.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "one.safetensors").unlink()
    (tmp_path / "other.safetensors").unlink()
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 tensor identical, 1 changed\n")
    assert int(done.stderr.split()[-1]) < 150_000


def test_deep_says_what_a_fine_tune_did(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(64, 96), "b.weight": torch.randn(64, 96), "b.bias": torch.randn(64)}
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    tuned["b.weight"] = base["b.weight"] + torch.randn(64, 96)
    torch.save(base, tmp_path / "base.pth")
    statedict.save(tuned, tmp_path / "tuned.safetensors")
    done = run("diff", "--deep", "base.pth", "tuned.safetensors", torch=False)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = lines.index("1 of 2 changed matrices is explained by an adapter of rank 1; 1 changed fully")
    assert lines[at + 1] == "rank of the change"
    assert lines[at + 2].split() == ["rows×columns", "effective", "rank", "top", "1", "top", "8", "adapter", "method"]
    assert [(line.split()[0], *line.split()[-2:]) for line in lines[at + 3 :]] == [
        ("b.weight", "—", "svd"),
        ("a.weight", "1", "svd"),
    ]
    found = json.loads(run("diff", "--deep", "--rank", "64", "--json", "base.pth", "tuned.safetensors").stdout)
    assert {entry["name"]: entry.get("change", {}).get("adapter") for entry in found["changed"]} == {
        "a.weight": 1,
        "b.weight": 64,
        "b.bias": None,
    }


@pytest.mark.parametrize("arguments", [("--deep", "--names-only"), ("--rank", "3"), ("--deep", "--rank", "0")])
def test_a_rank_takes_numbers_and_deep(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("diff", *arguments, "checkpoint.pth", "checkpoint.pth")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("statedict: ")


@pytest.mark.parametrize("shape", [(2304, 8192), (1024, 16384)], ids=str)
def test_ranks_of_large_changes_take_less_than_200_megabytes(shape: tuple[int, int], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).bfloat16()
    sides = torch.randn(shape[0], 3, generator=generator), torch.randn(3, shape[1], generator=generator)
    statedict.save({"w": base}, tmp_path / "base.safetensors")
    statedict.save({"w": (base + 0.1 * sides[0] @ sides[1]).bfloat16()}, tmp_path / "tuned.safetensors")
    program = (
        "import statedict\n"
        "change = statedict.diff('base.safetensors', 'tuned.safetensors', deep=True).changed[0].change\n"
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(change.adapter, change.method, peak, sep=';')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    rank, method, peak = done.stdout.split(";")
    assert (rank, method) == ("3", "randomized, 64 directions" if shape[0] > 2048 else "gram")
    assert int(peak) < 200_000
