"""`statedict runs`: what its commands print, their exit statuses, and what they do to a directory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import CheckpointManager
from statedict.cli.runs import sparkline

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A run of ten steps: `w` moves, `frozen` does not, NaN comes at 70."""
    with CheckpointManager(tmp_path / "run", background=False) as manager:
        for step in range(10, 110, 10):
            w = numpy.full(30, step, "float32")
            w[0] = math.nan if step >= 70 else 0
            tree = {"w": w, "frozen": numpy.ones(4), "epoch": step}
            manager.save(step, tree, metrics={"loss": 1 / step, "acc": math.sin(step)})
    return tmp_path / "run"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    for step in (1, 2, 3):
        torch.save({"w": torch.full((4,), float(step))}, tmp_path / "theirs" / f"epoch={step}-loss={step / 4}.pt")
    torch.save({"w": torch.ones(4)}, tmp_path / "theirs" / "best.pt")
    return tmp_path / "theirs"


def test_ls_shows_steps_and_draws_metrics_without_torch(run: Run, ours: Path) -> None:
    done = run("runs", "ls", "run", torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["step", "age", "size", "state", "loss", "acc"]
    assert [row.split()[0] for row in rows[:10]] == [str(step) for step in range(10, 110, 10)]
    assert rows[10] == "loss  █▄▃▂▂▂▁▁▁▁  0.01 at 100 … 0.1 at 10"
    assert rows[11].startswith("acc   ")


def test_ls_sorts_by_a_metric_and_shows_only_what_is_asked_for(run: Run, ours: Path) -> None:
    lines = run("runs", "ls", "run", "--metric", "acc", "--sort", "loss").stdout.splitlines()
    assert lines[0].split() == ["step", "age", "size", "state", "acc"]
    assert [line.split()[0] for line in lines[1:11]] == [str(step) for step in range(100, 0, -10)]
    assert len(lines) == 12
    again = run("runs", "ls", "run", "--metric", "acc", "--sort", "loss", "--reverse").stdout.splitlines()
    assert [line.split()[0] for line in again[1:11]] == [str(step) for step in range(10, 110, 10)]
    done = run("runs", "ls", "run", "--sort", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no checkpoint has the metric 'nothing'; there are loss, acc" in done.stderr


def test_ls_says_what_is_damaged_unfinished_and_pinned(run: Run, ours: Path) -> None:
    assert run("runs", "pin", "run", "30").stdout == "pinned: 30\n"
    (ours / "20" / "checkpoint.safetensors").write_bytes(b"half")
    (ours / "40" / "COMMITTED").unlink()
    done = run("runs", "ls", "run")
    states = {line.split()[0]: line.split("B  ")[1].split("  ")[0] for line in done.stdout.splitlines()[1:5]}
    assert states == {"10": "committed", "20": "damaged", "30": "committed, pinned", "40": "unfinished"}
    assert "20: run/20/checkpoint.safetensors: has 4 bytes" in done.stdout
    record = json.loads(run("runs", "ls", "run", "--json").stdout)
    assert [one["state"] for one in record["checkpoints"]][:4] == ["committed", "damaged", "committed", "unfinished"]


def test_ls_of_what_others_wrote_has_names_and_kinds(run: Run, theirs: Path) -> None:
    lines = run("runs", "ls", "theirs").stdout.splitlines()
    assert lines[0].split() == ["step", "name", "kind", "age", "size", "state", "loss"]
    assert lines[1].split()[:3] == ["1", "epoch=1-loss=0.25.pt", "torch"]
    assert lines[4].split()[:3] == ["–", "best.pt", "torch"]
    assert lines[5] == "loss  ▁▅█  0.25 at epoch=1-loss=0.25.pt … 0.75 at epoch=3-loss=0.75.pt"


def test_ls_of_nothing_and_of_no_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("runs", "ls", "empty").stdout == "empty: no checkpoints\n"
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    torch.save({}, tmp_path / "version_0" / "checkpoints" / "step_1.pt")
    assert run("runs", "ls", "version_0").stdout == "version_0: no checkpoints; 'checkpoints' in it has some\n"
    for name in ("missing", "checkpoint.pth"):
        done = run("runs", "ls", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"statedict: {name}: ")


def test_names_that_could_steer_a_terminal_are_escaped(run: Run, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    torch.save({"\x1b[31m": torch.ones(1)}, tmp_path / "odd" / "\x1b[31m-step=3.pt")
    torch.save({"\x1b[31m": torch.zeros(1)}, tmp_path / "odd" / "\x1b[31m-step=4.pt")
    for arguments in (("ls",), ("show",), ("verify",), ("blame", "*"), ("diff", "3", "4")):
        done = run("runs", arguments[0], "odd", *arguments[1:])
        assert "\x1b" not in done.stdout + done.stderr, arguments
        assert done.stdout


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([3.0, 3.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0, math.nan, 1, math.inf], "▁·█·"),
        ([math.nan] * 3, "···"),
        ([-1e308, 1e308], "▁█"),
        (list(range(600)), None),
    ],
)
def test_a_sparkline_goes_from_the_least_to_the_most(values: list[float], bars: str | None) -> None:
    drawn = sparkline(values)
    if bars is None:
        assert len(drawn) == 60
        assert list(drawn) == sorted(drawn, key="▁▂▃▄▅▆▇█".index)
    else:
        assert drawn == bars


def test_show_says_what_the_manifest_does(run: Run, ours: Path) -> None:
    done = run("runs", "show", "run", "best:loss", torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run/100/checkpoint.safetensors  ")
    for text in ("step          100", "metric        loss 0.01", "holds         2 tensors, 34 elements"):
        assert text in lines
    assert any(line.startswith("libraries     statedict ") for line in lines)
    assert lines[-2].split()[:3] == ["w", "float32", "30"]
    assert run("runs", "show", "run").stdout.startswith("run/100/")
    record = json.loads(run("runs", "show", "run", "20", "--biggest", "1", "--json").stdout)
    assert (record["step"], [one["name"] for one in record["biggest"]]) == (20, ["w"])


def test_show_lists_what_was_not_captured(run: Run, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run", background=False) as manager:
        manager.save(1, {"model": torch.nn.Linear(2, 2)})
    assert "not captured  the states of random generators" in run("runs", "show", "run").stdout


def test_show_of_a_damaged_one_and_of_one_that_others_wrote(run: Run, ours: Path, theirs: Path) -> None:
    (ours / "20" / "checkpoint.safetensors").write_bytes(b"half")
    assert "damage        run/20/checkpoint.safetensors: has 4 bytes" in run("runs", "show", "run", "20").stdout
    assert "metric        loss 0.5" in run("runs", "show", "theirs", "2").stdout
    done = run("runs", "show", "run", "15")
    assert done.returncode == 2
    assert done.stderr == "statedict: run: has no checkpoint '15'; it has … 60, 70, 80, 90, 100\n"


def test_best_is_for_scripts(run: Run, ours: Path, theirs: Path) -> None:
    assert run("runs", "best", "run", "loss").stdout == "100\trun/100/checkpoint.safetensors\n"
    assert run("runs", "best", "run", "loss", "--mode", "max", "--path").stdout == "run/10/checkpoint.safetensors\n"
    assert json.loads(run("runs", "best", "theirs", "loss", "--json").stdout)["step"] == 1
    done = run("runs", "best", "run", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are acc, loss" in done.stderr


def test_verify_is_status_1_if_one_is_damaged(run: Run, ours: Path) -> None:
    done = run("runs", "verify", "run")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "run: 10 checkpoints, none damaged")
    file = ours / "50" / "checkpoint.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run("runs", "verify", "run")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "run: 10 checkpoints, 1 damaged"
    assert run("runs", "verify", "run", "--quick").returncode == 0
    assert run("runs", "verify", "run", "10", "best:loss").returncode == 0
    record = json.loads(run("runs", "verify", "run", "50", "--json").stdout)
    assert [(one["checkpoint"], one["ok"]) for one in record["checkpoints"]] == [("50", False)]


def test_verify_looks_at_what_others_wrote(run: Run, theirs: Path) -> None:
    assert run("runs", "verify", "theirs").returncode == 0
    file = theirs / "epoch=2-loss=0.5.pt"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    done = run("runs", "verify", "theirs")
    assert done.returncode == 1
    assert "epoch=2-loss=0.5.pt" in done.stdout


def steps(path: Path) -> list[int]:
    return sorted(int(one.name) for one in path.iterdir() if one.name.isdecimal())


def test_prune_removes_what_no_policy_keeps(run: Run, ours: Path) -> None:
    options = ("--keep", "2", "--keep", "best:loss:1:max", "--keep", "every:50")
    done = run("runs", "prune", "run", *options, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("would remove 20, 30, 40, 60, 70, 80 (")
    assert len(steps(ours)) == 10
    done = run("runs", "prune", "run", *options, "--yes")
    assert done.stdout.startswith("removed 20, 30, 40, 60, 70, 80 (")
    assert steps(ours) == [10, 50, 90, 100]
    record = json.loads(run("runs", "prune", "run", "--keep", "steps:10,50", "--yes", "--json").stdout)
    assert record["removed"] == [90]
    assert steps(ours) == [10, 50, 100]


def asked(ours: Path, answer: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "statedict", "runs", "prune", str(ours), "--keep", "1"]
    return subprocess.run(command, input=answer, capture_output=True, text=True, check=False)


def test_prune_asks_and_an_answer_that_is_not_yes_removes_nothing(ours: Path) -> None:
    done = asked(ours, "n\n")
    assert (done.returncode, done.stdout.splitlines()[-1][-19:]) == (1, "nothing was removed")
    assert "would remove 10, 20" in done.stdout
    assert asked(ours, "").returncode == 130
    assert len(steps(ours)) == 10
    assert asked(ours, "y\n").returncode == 0
    assert steps(ours) == [100]


def test_prune_leaves_pinned_and_the_last_sound_one_and_what_is_locked(run: Run, ours: Path) -> None:
    assert run("runs", "pin", "run", "20", "40").stdout == "pinned: 20, 40\n"
    assert json.loads(run("runs", "unpin", "run", "40", "--json").stdout) == {"schema": 1, "pinned": [20]}
    for step in (100, 90):
        (ours / str(step) / "checkpoint.safetensors").write_bytes(b"half")
    with CheckpointManager(ours, existing="continue", background=False) as manager:
        manager.save(200, {"w": numpy.ones(3)})
        done = run("runs", "prune", "run", "--keep", "steps:10", "--yes")
        assert done.returncode == 2
        assert "writes into this directory" in done.stderr
    (ours / "200" / "checkpoint.safetensors").write_bytes(b"half")
    run("runs", "prune", "run", "--keep", "steps:10", "--yes")
    assert {10, 20, 80} <= {*steps(ours)}
    assert not {30, 40, 50, 60, 70} & {*steps(ours)}


@pytest.mark.parametrize("word", ["0", "best", "best:", "often", "every:x", "latest:-1", "steps:a", "seconds:0"])
def test_a_policy_that_is_none_is_an_error(run: Run, ours: Path, word: str) -> None:
    done = run("runs", "prune", "run", "--keep", word, "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(steps(ours)) == 10


def test_what_others_wrote_is_never_changed(run: Run, theirs: Path) -> None:
    before = sorted(os.listdir(theirs))
    for arguments in (("prune", "theirs", "--keep", "1", "--yes"), ("pin", "theirs", "1"), ("unpin", "theirs", "1")):
        done = run("runs", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "statedict: theirs: its checkpoints are torch, which are only read\n"
    assert sorted(os.listdir(theirs)) == before


def test_a_step_that_is_not_committed_cannot_be_pinned(run: Run, ours: Path) -> None:
    done = run("runs", "pin", "run", "15")
    assert done.returncode == 2
    assert "step 15 is not committed" in done.stderr


def test_diff_is_that_of_two_files_with_its_options(run: Run, ours: Path) -> None:
    done = run("runs", "diff", "run", "10", "latest", torch=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == run("diff", "run/10/checkpoint.safetensors", "run/100/checkpoint.safetensors").stdout
    assert run("runs", "diff", "run", "10", "20", "--only", "frozen").returncode == 0
    assert json.loads(run("runs", "diff", "run", "10", "20", "--json").stdout)["same"] is False
    assert run("runs", "diff", "run", "10").returncode == 2
    parts = [("10::frozen", "20::frozen", 0), ("10::w", "latest::w", 1), ("10::frozen", "10::w", 1)]
    assert [run("runs", "diff", "run", *sides).returncode for *sides, _ in parts] == [status for *_, status in parts]
    assert run("runs", "diff", "run", "10::absent", "20").returncode == 2


def test_blame_says_when_and_how_much(run: Run, ours: Path) -> None:
    done = run("runs", "blame", "run", "*", torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "2 tensors in 10 checkpoints, 10 to 100"
    assert lines[-1] == "first NaN or infinite at 70: w"
    assert "never changed" in lines
    record = json.loads(run("runs", "blame", "run", "w", "--json").stdout)
    assert [change["step"] for change in record["tensors"][0]["changes"]] == [*range(20, 110, 10)]
    assert run("runs", "blame", "run", "w", "--all").returncode == 0
    assert run("runs", "blame", "run", "x").returncode == 2


TEST = "import sys, statedict; sys.exit(statedict.stats(sys.argv[1], only='w').total.nan > 0)"


def test_bisect_finds_the_step_that_broke_it(run: Run, ours: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.py").write_text(TEST)
    test = f"echo testing; {sys.executable} eval.py {{checkpoint}}"
    done = run("runs", "bisect", "run", "--test", test)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line != "testing"]
    assert lines[-1].startswith("70 is the first bad checkpoint, 60 the last good one (")
    assert lines[0].startswith("10: good (")
    assert len(lines) < 8
    done = run("runs", "bisect", "run", "--good", "50", "--bad", "80", "--json", "--test", test)
    record = json.loads(done.stdout)
    assert (record["found"], record["bad"]["step"], record["good"]["step"]) == (True, 70, 60)
    assert "testing" in done.stderr


def test_bisect_is_status_1_where_skips_hide_it_and_2_where_it_stops(run: Run, ours: Path) -> None:
    done = run("runs", "bisect", "run", "--test", "test {step} -le 30 || (test {step} -le 60 && exit 125)")
    assert done.returncode == 1
    assert "the first bad checkpoint is one of 40, 50, 60, 70" in done.stdout
    for test in ("exit 200", "exit 1", "exit 0"):
        assert run("runs", "bisect", "run", "--test", test).returncode == 2


def test_what_others_wrote_is_blamed_and_bisected(run: Run, theirs: Path) -> None:
    assert "changed at every step" in run("runs", "blame", "theirs", "w").stdout
    done = run("runs", "bisect", "theirs", "--test", "test {step} -lt 3")
    assert done.stdout.splitlines()[-1].startswith("epoch=3-loss=0.75.pt is the first bad checkpoint")


def test_a_bucket_is_a_directory(run: Run, s3: Any) -> None:
    with CheckpointManager("s3://bucket/run", background=False) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": numpy.full(3, step)}, metrics={"loss": step})
    url = "s3://bucket/run"
    assert run("runs", "ls", url).stdout.splitlines()[-1] == "loss  ▁▅█  1 at 1 … 3 at 3"
    assert run("runs", "best", url, "loss").stdout == f"1\t{url}/1/checkpoint.safetensors\n"
    assert run("runs", "verify", url).returncode == 0
    assert "changed at every step" in run("runs", "blame", url, "w").stdout
    assert run("runs", "diff", url, "1", "2").returncode == 1
    assert run("runs", "pin", url, "1").returncode == 0
    assert run("runs", "prune", url, "--keep", "1", "--yes").stdout.startswith("removed 2 ")
    assert CheckpointManager(url).steps() == [1, 3]
    assert statedict.load(f"{url}/3")["w"].tolist() == [3, 3, 3]
