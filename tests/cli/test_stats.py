"""`statedict stats`: what it prints, as a table, JSON and CSV; what it takes."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy

import statedict

from ..hollow import hollow
from ..hollow import run as measured
from ..work import assert_linear, steps
from .conftest import Run

MOST = 150_000  # kilobytes
HEAD = ["name", "dtype", "shape", "min", "max", "mean", "std", "l2"]
ROOM = 640 << 20  # of address space


def test_the_table_has_a_row_for_each_tensor_and_the_flags_below(run: Run) -> None:
    done = run("stats", "checkpoint.pth", torch=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == "checkpoint.pth  20 tensors, 124,012 elements"
    assert lines[2].split() == [*HEAD, "zeros", "histogram"]
    (row,) = [line for line in lines if line.startswith("model_state.fc1.weight")]
    assert row.split()[1:9] == ["float32", "120×400", "-0.1912", "0.1866", "0.0003106", "0.03371", "7.386", "0"]
    assert "dead rows: optimizer_state.state.6.momentum_buffer: 1 of 84 rows are all 0" in lines
    assert any(line.startswith("total") and "20 tensors" in line for line in lines)


def test_depth_folds_modules_to_rows(run: Run) -> None:
    lines = run("stats", "checkpoint.pth", "--only", "model_state", "--depth", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines[3:8]] == [
        f"model_state.{name}" for name in ("conv1", "conv2", "fc1", "fc2", "fc3")
    ]
    assert "2 tensors" in lines[3]
    lines = run("stats", "checkpoint.pth", "--depth", "1").stdout.splitlines()
    assert lines[3].split()[:3] == ["model_state", "10", "tensors"]
    assert lines[4].split()[:3] == ["optimizer_state", "10", "tensors"]


def test_json_has_a_record_a_tensor_the_modules_the_total_and_the_flags(run: Run) -> None:
    found = json.loads(run("stats", "checkpoint.pth", "--json", torch=False).stdout)
    assert list(found) == [
        "schema",
        "file",
        "tensors",
        "modules",
        "dtypes",
        "total",
        "flags",
        "optimizers",
        "quantization",
        "weights",
    ]
    names = "name dtype shape elements min max mean std l2 zeros nan inf denormal edge histogram dead_rows tied"
    names += " parameter inferred"
    assert all(list(record) == names.split() for record in found["tensors"])
    assert found["tensors"][0]["shape"] == [6, 3, 5, 5]
    assert found["total"]["elements"] == 124_012
    assert {flag["kind"] for flag in found["flags"]} == {"denormal", "dead rows"}


def test_csv_has_a_line_a_tensor(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("stats", "checkpoint.pth", "--csv", "--only", "*.fc3").stdout)))
    assert [(row["name"], row["shape"]) for row in rows] == [
        ("model_state.fc3.weight", "10×84"),
        ("model_state.fc3.bias", "10"),
    ]
    assert math.isclose(float(rows[1]["std"]), 0.07526395017181552)
    rows = list(csv.DictReader(io.StringIO(run("stats", "checkpoint.pth", "--csv").stdout)))
    assert (rows[-1]["name"], rows[-1]["parameter"]) == ("optimizer_state.state.9.momentum_buffer", "fc3.bias")


def test_what_is_flagged_is_no_failure_and_what_cannot_be_read_is(run: Run, tmp_path: Path) -> None:
    statedict.save({"w": numpy.full(3, numpy.nan)}, tmp_path / "nan.pth")
    done = run("stats", "nan.pth")
    assert done.returncode == 0
    assert "nan: w: 3 of 3 elements are NaN" in done.stdout
    assert json.loads(run("stats", "nan.pth", "--json").stdout)["tensors"][0]["mean"] is None
    for arguments in (("gone.pth",), ("nan.pth", "--only", "v"), ("nan.pth", "--json", "--csv")):
        done = run("stats", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_names_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    statedict.save({"a\x1b[2J\nb": numpy.zeros(3), "n" * 100: numpy.ones(2)}, tmp_path / "odd.safetensors")
    for option in ((), ("--csv",), ("--json",)):
        done = run("stats", "odd.safetensors", *option)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout


def test_a_file_without_tensors_has_no_figures(run: Run, tmp_path: Path) -> None:
    statedict.save({"epoch": 3}, tmp_path / "none.pth")
    done = run("stats", "none.pth")
    assert done.returncode == 0
    assert "none.pth  0 tensors, 0 elements" in done.stdout


def large(path: Path, megabytes: int) -> Path:
    """Tensors of several dtypes of together so many megabytes."""
    size = megabytes << 20
    hollow(
        path,
        {
            "half": ("BF16", [size // 4 // 4096, 2048], size // 4),
            "wide": ("F32", [size // 4 // 4096, 1024], size // 4),
            "bytes": ("I8", [size // 4], size // 4),
            "long": ("I64", [size // 32], size // 4),
        },
    )
    return path


def test_a_gigabyte_takes_little_memory_and_is_read_once(tmp_path: Path) -> None:
    whole = large(tmp_path / "whole.safetensors", 1024)
    taken = measured("stats", whole, room=ROOM)
    assert taken.kilobytes < MOST
    assert "zeros: half: all 134,217,728 elements are 0" in taken.printed
    assert taken.read < (1024 + 64) << 20


def test_work_grows_with_the_number_of_tensors(tmp_path: Path) -> None:
    def cost(count: int) -> int:
        path = tmp_path / f"{count}.safetensors"
        hollow(path, {f"layers.{n}.weight": ("F32", [8, 8], 256) for n in range(count)})
        return steps(lambda: str(statedict.stats(path)))

    assert_linear(cost, 1_000, 4_000)


def test_a_name_cannot_begin_a_line(run: Run, tmp_path: Path) -> None:
    state = {"x\nnan: w: all elements are NaN": numpy.zeros(3, "f4"), "é": numpy.ones(2, "f4")}
    statedict.save(state, tmp_path / "a.pth")
    done = run("stats", "a.pth")
    assert done.returncode == 0
    assert not any(line.startswith("nan") for line in done.stdout.splitlines())
    assert "x\\nnan: w" in done.stdout


def test_histograms_are_linear_or_by_powers_of_two(run: Run, tmp_path: Path) -> None:
    statedict.save({"w": numpy.random.default_rng(0).normal(size=10_000).astype("f4")}, tmp_path / "w.pth")
    linear, powers = (run("stats", "w.pth", *option).stdout.splitlines()[3].split()[-1] for option in ([], ["--log"]))
    assert "▇" in linear[4:-4]
    assert (len(powers), powers.count("▇")) == (9, 1)
    assert len(linear) > 9
