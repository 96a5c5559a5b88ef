from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statedict
from statedict.cli import COMMANDS
from statedict.cli.demo import STORY, steps

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_version_is_the_librarys(run: Run) -> None:
    assert run("--version").stdout == f"statedict, version {statedict.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    helped = run(name, "--help")
    assert helped.returncode == 0
    assert len(helped.stdout.splitlines()) > 3


def test_convert_writes_the_format_of_the_suffix_and_back(run: Run, tmp_path: Path) -> None:
    assert run("convert", "checkpoint.pth", "c.safetensors").returncode == 0
    assert run("convert", "c.safetensors", "back.pth").returncode == 0
    before, after = torch.load(tmp_path / "checkpoint.pth"), torch.load(tmp_path / "back.pth", mmap=True)
    assert before["model_state"].keys() == after["model_state"].keys()
    assert all(torch.equal(before["model_state"][name], after["model_state"][name]) for name in before["model_state"])


def test_convert_refuses_to_replace_a_file_unless_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    refused = run("convert", "checkpoint.pth", "there.safetensors")
    assert refused.returncode == 2
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert run("convert", "checkpoint.pth", "there.safetensors", "--overwrite").returncode == 0


def test_convert_with_a_format_ignores_the_suffix(run: Run, tmp_path: Path) -> None:
    assert run("convert", "checkpoint.pth", "model.bin", "--format", "safetensors").returncode == 0
    assert (tmp_path / "model.bin").read_bytes()[8:9] == b"{"


def test_an_error_is_one_line_and_status_2(run: Run) -> None:
    failed = run("show", "missing.pth")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr == "statedict: missing.pth: cannot open: No such file or directory\n"


def test_debug_shows_the_traceback(run: Run) -> None:
    assert "Traceback" in run("--debug", "show", "missing.pth").stderr


@pytest.mark.parametrize("group", [[], ["runs"]])
def test_a_group_without_arguments_prints_its_help(run: Run, group: list[str]) -> None:
    bare, helped = run(*group), run(*group, "--help")
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, helped.stdout, "")
    assert len(bare.stdout.splitlines()) > 10


@pytest.mark.parametrize(
    ("arguments", "nearest"), [(["shwo", "x"], "show"), (["verfy"], "verify"), (["runs", "prun"], "prune")]
)
def test_an_unknown_command_suggests_the_nearest(run: Run, arguments: list[str], nearest: str) -> None:
    failed = run(*arguments)
    assert failed.returncode == 2
    assert failed.stderr.endswith(f"Did you mean {nearest!r}?\n")
    assert "Did you mean" not in run("nonsense").stderr


@pytest.mark.parametrize("arguments", [["show"], ["nonsense"], ["show", "checkpoint.pth", "--depth", "0"]])
def test_wrong_usage_is_status_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def test_the_demo_proves_what_is_equal_and_what_changed_without_torch(run: Run) -> None:
    told = run("demo", torch=False)
    assert told.returncode == 0, told.stderr
    for file in ("altered.pth", "altered.safetensors"):
        after = told.stdout.split(f"\n{file} epoch 61 no optimizer\n")[1].splitlines()[:10]
        assert [line.split()[1] for line in after] == ["equal", "changed", *["equal"] * 6, "equal,", "equal,"]
    assert "\nTrue\n" in told.stdout
    assert "average: 10 tensors" in told.stdout
    assert "8 tensors identical, 2 changed" in told.stdout


def test_the_demo_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    run("demo")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_the_story_is_cut_into_commands_python_and_prose() -> None:
    kinds = [kind for kind, _ in steps(STORY)]
    assert kinds.count("$") == 6
    assert any("\n" in text for kind, text in steps(STORY) if kind == ">>>")


def test_a_folder_is_shown_and_converted_with_the_size_of_its_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    statedict.save({"w": torch.zeros(50_000)}, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert run("show", "folder", torch=False).stdout.startswith("folder  200.3 kB  1 tensor, 50,000 elements")
    assert run("convert", "folder", "x.pth", torch=False).stdout.startswith("folder (200.3 kB) → x.pth (")
    refused = run("convert", "folder", "x.pickle", "--format", "pickle")
    assert refused.returncode == 2
    assert "'torch', 'safetensors'" in refused.stderr


def test_debug_is_taken_anywhere_and_keeps_the_status(run: Run) -> None:
    failed = run("show", "missing.pth", "--debug")
    assert (failed.returncode, failed.stderr.count("Traceback")) == (2, 2)


@pytest.mark.parametrize("arguments", [["show"], ["nonsense"], ["show", "checkpoint.pth", "--recipe", "--json"]])
def test_a_usage_error_is_one_line(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_terminal_that_lacks_characters_gets_escapes(tmp_path: Path, encoding: str) -> None:
    statedict.save({"\u2200": torch.ones(2), "m": {"w": torch.ones(1)}}, tmp_path / "odd.pth")
    command = [sys.executable, "-m", "statedict", "show", "odd.pth"]
    shown = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    assert b"u2200" in shown.stdout


def test_convert_keeps_a_part_and_writes_shards(run: Run, tmp_path: Path) -> None:
    done = run("convert", "checkpoint.pth", "parts", "--only", "model_state", "--max-shard-size", "100kB")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) == 3
    state = statedict.load(tmp_path / "parts")
    assert list(state) == ["model_state"]
    assert len(state.tensors()) == 10
    again = run("convert", "checkpoint.pth", "parts", "--max-shard-size", "100kB")
    assert again.returncode == 2
    failed = run("convert", "checkpoint.pth", "x.pth", "--only", "nothing")
    assert "no entry of 12 matches 'nothing'" in failed.stderr


PART = "checkpoint.pth::model_state"
WITH_A_PART = {  # of every command that reads a source: arguments, and what it prints or writes
    "show": ([PART], "10 tensors, 62,006 elements"),
    "stats": ([PART], "10 tensors, 62,006 elements"),
    "report": ([PART, "-o", "page.html"], "page.html"),
    "check": ([PART, "--model", "torch.nn:Identity"], "model_state: would restore 0 of 10 entries"),
    "convert": ([PART, "out.safetensors"], "out.safetensors"),
    "edit": ([PART, "out.pth", "--drop", "fc1"], "10 tensors"),
    "average": ([PART, PART, "--dry-run"], "0.5 × checkpoint.pth::model_state"),
    "merge": (["--method", "linear", PART, PART, "--dry-run"], "1 × checkpoint.pth::model_state"),
    "lora": (["show", PART], "checkpoint.pth::model_state: has no tensor of a low-rank adapter"),
    "delta": (["make", PART, PART, "--dry-run"], "7 of 10 tensors as differences from checkpoint.pth::model_state"),
    "diff": ([PART, "weights"], "same: 10 tensors identical"),
    "scan": ([PART], "scan checks a whole file; name checkpoint.pth alone"),
    "verify": ([PART], "verify checks a whole file; name checkpoint.pth alone"),
}


def test_every_command_that_reads_a_source_is_in_the_table() -> None:
    assert {*WITH_A_PART} == {*COMMANDS} - {"runs", "demo"}


@pytest.mark.parametrize("name", WITH_A_PART)
def test_every_command_takes_a_part_of_a_file_or_says_why_not(run: Run, name: str, tmp_path: Path) -> None:
    statedict.convert(tmp_path / "checkpoint.pth::model_state", f"{tmp_path}/weights/")
    arguments, expected = WITH_A_PART[name]
    done = run(name, *arguments)
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_that_only_one_side_has_is_compared_with_the_whole_of_the_other(run: Run, tmp_path: Path) -> None:
    statedict.convert(tmp_path / "checkpoint.pth::model_state", f"{tmp_path}/weights/")
    done = run("diff", "checkpoint.pth", "weights", "--only", "model_state")
    assert done.returncode == 1
    assert (
        "note: only A has 'model_state'; to compare it with the whole of B, name it checkpoint.pth::model_state"
        in done.stdout
    )
    assert "note: only B has 'model_state'" in run("diff", "weights", "checkpoint.pth", "--only", "model_state").stdout
    assert "name it" not in run("diff", "checkpoint.pth", "checkpoint.pth", "--only", "model_state").stdout
