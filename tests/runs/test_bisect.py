"""The step that broke a run is found, with as few tests as halving takes."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict import CheckpointManager
from statedict.errors import RunError
from statedict.reports.runs import Checkpoint
from statedict.runs import bisect
from statedict.runs.look.bisection import fill_command


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the steps 0 to 39, each with its step in it."""
    path = tmp_path_factory.mktemp("it's a $RUN")
    for step in range(40):
        torch.save({"step": step}, path / f"step_{step}.pt")
    torch.save({"step": 99}, path / "last.pt")
    return path


@given(data=st.data())
def test_the_first_bad_one_is_found_by_halving_whatever_is_skipped(plain: Path, data: Any) -> None:
    first = data.draw(st.integers(1, 39))
    skipped = data.draw(st.sets(st.integers(1, 38), max_size=20))
    tested: list[int] = []

    def good(one: Checkpoint) -> bool | None:
        assert one.step is not None
        tested.append(one.step)
        return None if one.step in skipped else one.step < first

    found = bisect(plain, good)
    low, high = found.good.step, found.bad.step
    assert low is not None
    assert high is not None
    assert low < first <= high
    assert set(range(low + 1, high)) <= skipped
    assert found.between == tuple(f"step_{step}.pt" for step in range(low + 1, high))
    assert len(tested) == len(set(tested)) == len(found.tried)
    if not skipped:
        assert len(tested) <= 2 + math.ceil(math.log2(39))
        assert found.found


def test_ends_that_are_named_are_the_ends(plain: Path) -> None:
    found = bisect(plain, lambda one: (one.step or 0) < 13, good="10", bad="step_20.pt")
    assert (found.good.step, found.bad.step) == (12, 13)
    assert {one.step for one in found.tried} <= set(range(10, 21))


@pytest.mark.parametrize(
    ("first", "ends", "message"),
    [
        (0, {}, r"step_0\.pt is bad, expected it to be good; the test fails there, too"),
        (99, {}, r"step_39\.pt is good, expected it to be bad"),
        (5, {"good": 7}, r"step_7\.pt is bad, expected it to be good"),
        (5, {"good": 7, "bad": 3}, "the good one has to come first"),
        (5, {"bad": "last.pt"}, "last.pt cannot be tested; it is foreign and has no step"),
        (5, {"bad": "77"}, "has no checkpoint '77'"),
    ],
)
def test_ends_that_are_wrong_are_said_so(plain: Path, first: int, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        bisect(plain, lambda one: (one.step or 0) < first, **ends)


def test_an_end_that_cannot_be_tested_is_passed_over_unless_it_was_named(plain: Path) -> None:
    def good(one: Checkpoint) -> bool | None:
        return None if one.step in (0, 1, 39) else (one.step or 0) < 20

    assert bisect(plain, good).bad.step == 20
    with pytest.raises(RunError, match="was to be good, and the test skips it"):
        bisect(plain, good, good=1)
    with pytest.raises(RunError, match="the test skips all"):
        bisect(plain, lambda one: None)


def script(path: Path, text: str) -> str:
    file = path / "eval it.py"
    file.write_text(text)
    return f'{sys.executable} "{file}"'


def test_a_command_gets_the_file_and_its_exit_status_is_the_verdict(plain: Path, tmp_path: Path) -> None:
    test = script(
        tmp_path,
        "import sys, pathlib, statedict\n"
        "step = statedict.load(sys.argv[1])['step']\n"
        "assert pathlib.Path(sys.argv[1]).name == sys.argv[3] and int(sys.argv[2]) == step\n"
        "sys.exit(125 if step == 19 else 0 if step < 27 else 1 + step)\n",
    )
    for quoted in ("{checkpoint}", "'{checkpoint}'", '"{checkpoint}"'):
        found = bisect(plain, f"{test} {quoted} {{step}} {{name}}", good=18, bad=29)
        assert (found.good.step, found.bad.step) == (26, 27)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("exit 128", "ended with status 128, which means stop"),
        ("kill -SEGV $$", "ended with status 139"),
        ("no-such-command {checkpoint} 2>/dev/null", "is bad, expected it to be good; .* does it run at all"),
        ("true", "is good, expected it to be bad"),
    ],
)
def test_what_the_command_says_otherwise(plain: Path, command: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        bisect(plain, command)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_a_word_reaches_the_command_as_it_is(word: str) -> None:
    command = fill_command("""printf '%s|' {name} "{name}" '{name}' x{name}y \\"{name} "$(echo {other})" """)
    done = subprocess.run(["/bin/sh", "-c", command], env={"STATEDICT_NAME": word}, capture_output=True, check=True)
    expected = [word, word, word, f"x{word}y", f'"{word}', "{other}"]
    assert done.stdout == "".join(f"{one}|" for one in expected).encode()


def test_a_name_is_never_run_as_a_command(tmp_path: Path) -> None:
    for number in range(3):
        torch.save({}, tmp_path / f"$(touch pwned);touch pwned`touch pwned`'touch pwned' step_{number}.pt")
    for command in ('echo "$(echo {name}; echo "{name}")"', "echo `echo {name}`", "sh -c 'echo {step}'"):
        with pytest.raises(RunError, match="expected it to be bad"):
            bisect(tmp_path, f"cd {shlex.quote(str(tmp_path))}; {command} >&2")
    assert len([*tmp_path.iterdir()]) == 3


def test_of_ours_the_file_is_tested_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, background=False) as manager:
        for step in range(1, 9):
            manager.save(step, {"w": torch.full((3,), float(step))})
    (tmp_path / "4" / "checkpoint.safetensors").write_bytes(b"")
    found = bisect(tmp_path, lambda one: statedict.load(one.path)["w"].numpy()[0] < 4)
    assert (found.good.step, found.bad.step, found.found) == (3, 5, True)
    record = json.loads(json.dumps(found.to_json()))
    assert record["bad"]["path"].endswith("5/checkpoint.safetensors")
    assert record["tried"][0]["verdict"] == "good"


def test_what_is_pruned_meanwhile_is_skipped_not_bad(tmp_path: Path) -> None:
    for step in range(9):
        torch.save({}, tmp_path / f"step_{step}.pt")
    found = bisect(tmp_path, "if [ {step} = 4 ]; then rm {checkpoint}; fi; [ -e {checkpoint} ] && [ {step} -lt 6 ]")
    assert (found.good.step, found.bad.step) == (5, 6)
    assert [one.verdict for one in found.tried if one.step == 4] == ["skip"]


def test_one_checkpoint_is_not_enough(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "step_1.pt")
    with pytest.raises(RunError, match="two are needed"):
        bisect(tmp_path, "true")
