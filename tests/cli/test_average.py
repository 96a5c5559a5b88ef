from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import statedict
from statedict.runs import CheckpointManager

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def weights(tmp_path: Path) -> list[torch.Tensor]:
    """Of a run with five checkpoints, the weights by step."""
    with CheckpointManager(tmp_path / "run") as manager:
        models = [nn.Linear(3, 2) for _ in range(5)]
        for step, model in enumerate(models):
            manager.save(step * 10, {"model": model, "step": step}, metrics={"loss": abs(step - 2)})
    return [model.weight.detach() for model in models]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("--last", "2"), (3, 4)),
        (("--best", "3", "loss"), (1, 2, 3)),
        (("--best", "2", "loss", "--mode", "max"), (0, 4)),
        (("--steps", "10:30"), (1, 2, 3)),
        (("--steps", "0:40:20"), (0, 2, 4)),
    ],
)
def test_checkpoints_of_a_run_are_chosen(
    run: Run, weights: list[torch.Tensor], options: tuple[str, ...], chosen: tuple[int, ...], tmp_path: Path
) -> None:
    done = run("average", "run", *options, "-o", "out.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [Path(name).parent.name for name, _ in record["sources"]] == [str(step * 10) for step in chosen]
    found = statedict.load(tmp_path / "out.safetensors")["model"]["weight"].torch()
    total = weights[chosen[0]].clone()
    for step in chosen[1:]:
        total += weights[step]
    assert torch.equal(found, total / len(chosen))


def test_weights_and_a_dry_run(run: Run, weights: list[torch.Tensor], tmp_path: Path) -> None:
    done = run("average", "run/0", "run/10", "--weights", "3,1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0.75 × run/0",
        "0.25 × run/10",
        "left out: step (differs)",
        "average: 2 tensors, 32 B (nothing was written)",
    ]
    assert run("average", "run/0", "run/10", "--ema", "0.9", "-o", "out.pth").returncode == 0
    found = statedict.load(tmp_path / "out.pth")["model"]["weight"].torch()
    torch.testing.assert_close(found, 0.9 * weights[0] + 0.1 * weights[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run/0", "run/10"), "name a file by -o OUT"),
        (("run", "--dry-run"), "name two or more sources, or a run and --last"),
        (("run", "--last", "9", "--dry-run"), "has 5 sound checkpoints, expected 9 or more; there are 0, 10"),
        (("run", "--best", "2", "acc", "--dry-run"), "has 0 sound checkpoints with the metric 'acc'"),
        (("run", "--steps", "41:50", "--dry-run"), "has 0 sound checkpoints in that range"),
        (("run", "--steps", "10:10", "--dry-run"), "has 1 sound checkpoints in that range, expected 2 or more"),
        (("run", "--steps", "50:10:-20", "--dry-run"), "'50:10:-20' is not FIRST:LAST"),
        (("run", "--steps", "1:2:3:4", "--dry-run"), "'1:2:3:4' is not FIRST:LAST"),
        (("run", "--last", "2", "--mode", "max", "--dry-run"), "--mode goes with --best"),
        (("run/0", "run/10", "--integers", "nope=first", "--dry-run"), "no entry of 2 matches 'nope'"),
        (("run", "--steps", "1", "--dry-run"), "'1' is not FIRST:LAST"),
        (("run", "run", "--last", "2", "--dry-run"), "choose of one run"),
        (("run/0", "run/10", "--weights", "a", "--dry-run"), "'a' is not a list of numbers"),
        (("run/0", "checkpoint.pth", "--dry-run"), "checkpoint.pth: lacks 2 entries that run/0 has"),
        (("run/0", "nothing.pth", "--dry-run"), "No such file"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(
    run: Run, weights: list[torch.Tensor], arguments: tuple[str, ...], message: str
) -> None:
    done = run("average", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_integers_that_differ_need_a_rule_which_the_message_names(run: Run, tmp_path: Path) -> None:
    for value in range(2):
        statedict.save({"w": torch.zeros(1), "ids": torch.tensor([value])}, tmp_path / f"{value}.pth")
    done = run("average", "0.pth", "1.pth", "--dry-run")
    assert (done.returncode, "pass --integers ids=first, or one of max" in done.stderr) == (2, True), done.stderr
    assert run("average", "0.pth", "1.pth", "-o", "out.pth", "--integers", "ids=last").returncode == 0
    assert statedict.load(tmp_path / "out.pth")["ids"].tolist() == [1]


def test_an_existing_file_is_replaced_only_when_asked(run: Run, weights: list[torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_bytes(b"mine")
    assert run("average", "run/0", "run/10", "-o", "out.pth").returncode == 2
    assert (tmp_path / "out.pth").read_bytes() == b"mine"
    assert run("average", "run/0", "run/10", "-o", "out.pth", "--overwrite").returncode == 0


def test_a_merge_by_a_method_with_parameters_of_each_model(run: Run, tmp_path: Path) -> None:
    for name, values in (("base", [0.0, 0.0]), ("a", [2.0, 1.0]), ("b", [2.0, -3.0])):
        statedict.save({"w": torch.tensor(values)}, tmp_path / f"{name}.safetensors")
    models = ("--base", "base.safetensors", "a.safetensors", "b.safetensors")
    done = run("merge", "--method", "ties", *models, "--weight", "1,3", "--set", "normalize=false", "-o", "out.pth")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "base.safetensors",
        "1 × a.safetensors",
        "3 × b.safetensors",
        "ties: 1 tensor, 8 B",
    ]
    assert statedict.load(tmp_path / "out.pth")["w"].tolist() == [8, -9]
    chosen = [run("merge", "--method", "dare_linear", *models, "--density", "0.5", "--seed", seed, "-o", f"{n}.pth")
              for n, seed in enumerate("112")]  # fmt: skip
    assert {done.returncode for done in chosen} == {0}
    assert (tmp_path / "0.pth").read_bytes() == (tmp_path / "1.pth").read_bytes()
    record = json.loads(run("merge", "--method", "slerp", *models[:3], "--set", "t=0.5", "--dry-run", "--json").stdout)
    assert (record["method"], record["sources"]) == ("slerp", [["base.safetensors", None], ["a.safetensors", 1.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "tie", "checkpoint.pth", "--dry-run"), "'tie': not a merge method; expected one of linear"),
        (("--method", "ties", "checkpoint.pth", "--dry-run"), "ties: needs a base; pass --base SOURCE"),
        (("--method", "ties", "checkpoint.pth"), "name a file by -o OUT"),
        (("--method", "linear", "checkpoint.pth", "--weight", "x", "--dry-run"), "'x' is not a list of numbers"),
        (("--method", "linear", "checkpoint.pth", "--set", "x", "--dry-run"), "expected NAME=VALUE"),
        (("--method", "linear", "checkpoint.pth", "--weight", "1", "--set", "weight=2", "--dry-run"), "given twice"),
    ],
)
def test_mistakes_in_a_merge_are_explained(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run("merge", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
