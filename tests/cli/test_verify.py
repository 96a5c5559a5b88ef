from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statedict

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    statedict.save({"w": torch.arange(100.0), "b": torch.ones(2)}, tmp_path / "damaged.safetensors")
    data = bytearray((tmp_path / "damaged.safetensors").read_bytes())
    data[-20] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    return "damaged.safetensors"


def test_a_file_that_is_fine_is_status_0_without_torch(run: Run) -> None:
    verified = run("verify", "checkpoint.pth", torch=False)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout == "checkpoint.pth: fine (torch, 20 tensors in 26 parts, CRC-32 of 26, digests of 0)\n"


def test_damage_is_status_1_and_names_the_tensor(run: Run, damaged: str) -> None:
    verified = run("verify", damaged)
    assert verified.returncode == 1
    first, second = verified.stdout.splitlines()
    assert first.startswith("damaged.safetensors: 1 problem (safetensors, 2 tensors in 3 parts")
    assert second.startswith("  w: its digest differs, so its bytes are damaged: expected ")
    assert second.endswith("; fetch the file again, or save it again")


@pytest.mark.parametrize(("name", "data"), [("missing.pth", None), ("page.pth", b"<html>"), ("empty.pth", b"")])
def test_what_cannot_be_opened_or_is_no_checkpoint_is_status_2(
    run: Run, tmp_path: Path, name: str, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    verified = run("verify", name)
    assert (verified.returncode, verified.stdout) == (2, "")
    assert verified.stderr.startswith(f"statedict: {name}: ")
    assert verified.stderr.count("\n") == 1


def test_of_several_files_each_is_checked_and_the_worst_status_stands(run: Run, damaged: str) -> None:
    verified = run("verify", "missing.pth", damaged, "checkpoint.pth")
    assert verified.returncode == 2
    assert [line.split(":")[0] for line in verified.stdout.splitlines() if line[0] != " "] == [
        damaged,
        "checkpoint.pth",
    ]
    assert run("verify", damaged, "checkpoint.pth").returncode == 1


def test_json_is_one_object_with_an_entry_a_file(run: Run, damaged: str) -> None:
    verified = run("verify", "--json", "--values", "missing.pth", damaged, "checkpoint.pth")
    missing, bad, fine = json.loads(verified.stdout)["files"]
    assert (verified.returncode, verified.stderr) == (2, "")
    assert (missing["ok"], "cannot open" in missing["error"]) == (False, True)
    assert (bad["ok"], bad["problems"][0]["part"], bad["problems"][0]["tensors"]) == (False, "w", ["w"])
    assert (fine["ok"], fine["tensors"], fine["crcs"], fine["nonfinite"]) == (True, 20, 26, [])


def test_values_counts_nan_and_infinities_which_are_no_damage(run: Run, tmp_path: Path) -> None:
    statedict.save({"x": torch.tensor([1.0, float("nan"), float("inf")])}, tmp_path / "nan.pth")
    verified = run("verify", "--values", "nan.pth", torch=False)
    assert verified.returncode == 0
    assert verified.stdout.endswith("\n  x: 1 NaN and 1 infinite of 3 elements\n")


def test_quick_looks_at_the_structure_and_reads_no_tensor(run: Run, damaged: str, tmp_path: Path) -> None:
    verified = run("verify", "--quick", damaged, torch=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout == (
        "damaged.safetensors: fine (safetensors, 2 tensors in 3 parts, CRC-32 of 0, digests of 1)\n"
        "  note: structure only: no tensor was read, so damage within tensors is not seen\n"
    )
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-1])
    assert run("verify", "--quick", damaged).returncode == 1
    assert run("verify", "--quick", "missing.pth").returncode == 2


def test_quick_and_values_contradict_one_another(run: Run, damaged: str) -> None:
    verified = run("verify", "--quick", "--values", damaged)
    assert (verified.returncode, verified.stdout) == (2, "")
    assert "give one of them" in verified.stderr


def test_names_that_could_steer_a_terminal_are_escaped(run: Run, tmp_path: Path) -> None:
    statedict.save({"\x1b[31mred": torch.tensor([float("nan")])}, tmp_path / "red.safetensors")
    assert "\x1b" not in run("verify", "--values", "red.safetensors").stdout


def test_no_file_is_wrong_usage(run: Run) -> None:
    assert run("verify").returncode == 2
