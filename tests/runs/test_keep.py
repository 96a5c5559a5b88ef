"""Which checkpoints stay: each policy, any of several, and what no policy can take away."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict import CheckpointManager
from statedict.errors import RunError
from statedict.runs import AnyPolicy, BestN, CustomSteps, EveryNSeconds, EveryNSteps, LatestN, Pruned, pin, prune
from statedict.runs.directory import Directory
from statedict.runs.manifest import Manifest

At = Callable[[int], dict[str, Any]]


def checkpoints(count: int, seconds: float = 10.0) -> list[Manifest]:
    return [Manifest(step, step * seconds, {"loss": abs(step - 4), "score": -abs(step - 4)}) for step in range(count)]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (LatestN(3), {7, 8, 9}),
        (LatestN(99), set(range(10))),
        (BestN("loss", 2), {4, 5}),  # of equal ones the later
        (BestN("score", 1, "max"), {4}),
        (BestN("nothing"), set()),
        (EveryNSteps(4), {0, 4, 8}),
        (EveryNSeconds(30), {0, 3, 6, 9}),
        (EveryNSeconds(timedelta(minutes=1)), {0, 6}),
        (CustomSteps([2, 77]), {2}),
        (AnyPolicy([LatestN(1), CustomSteps([2])]), {2, 9}),
    ],
)
def test_a_policy_keeps_these(policy: Any, kept: set[int]) -> None:
    assert policy.kept(checkpoints(10)) == kept


@given(st.lists(st.floats(-1e9, 1e9), max_size=20), st.floats(1, 1e6))
def test_a_clock_that_jumps_never_makes_a_policy_of_time_keep_nothing(times: list[float], seconds: float) -> None:
    kept = EveryNSeconds(seconds).kept([Manifest(step, time) for step, time in enumerate(times)])
    assert not times or 0 in kept


def test_nan_and_missing_metrics_are_not_the_best() -> None:
    found = [Manifest(0, 0, {"loss": float("nan")}), Manifest(1, 1, {}), Manifest(2, 2, {"loss": 5.0})]
    assert BestN("loss", 3).kept(found) == {2}


def test_old_checkpoints_go_once_the_new_one_is_there(run: Path, at: At) -> None:
    with CheckpointManager(run, keep=[2, BestN("loss"), EveryNSteps(4)]) as manager:
        for step in range(10):
            manager.save(step, at(step), {"loss": abs(step - 3)})
        manager.wait()
        assert manager.steps() == [0, 3, 4, 8, 9]


def test_a_dry_run_says_what_would_go_and_why_the_rest_stays(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in range(5):
            manager.save(step, at(step), {"loss": step})
    manager = CheckpointManager(run, keep=[1, BestN("loss")])
    found = manager.prune(dry_run=True)
    assert found.removed == (1, 2, 3)
    assert found.kept == {0: "BestN(metric='loss', n=1, mode='min')", 4: "LatestN(n=1)"}
    assert found.nbytes > 0
    assert manager.steps() == [0, 1, 2, 3, 4]
    assert "  removed 1" in str(found)
    assert manager.prune().removed == (1, 2, 3)
    assert manager.steps() == [0, 4]


def test_the_last_good_one_and_pinned_ones_stay_whatever_the_policy_says(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in range(6):
            manager.save(step, at(step))
    Directory(str(run)).pin({1})
    data = run / "5" / "checkpoint.safetensors"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = CheckpointManager(run, keep=CustomSteps([0])).prune()
    assert found.kept == {0: "CustomSteps(steps=frozenset({0}))", 1: "pinned", 4: "the newest"}
    assert CheckpointManager(run).steps() == [0, 1, 4]


def test_a_policy_that_keeps_none_removes_none(run: Path, at: At) -> None:
    with CheckpointManager(run, keep=BestN("los")) as manager:
        for step in range(3):
            manager.save(step, at(step), {"loss": step})
    found = CheckpointManager(run, keep=BestN("los")).prune()
    assert (found.removed, set(found.kept.values())) == ((), {"the policy keeps none, so nothing is removed"})
    assert CheckpointManager(run).steps() == [0, 1, 2]


def test_damaged_ones_take_no_place_of_sound_ones(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in (1, 2, 3, 4):
            manager.save(step, at(step))
    for step in (3, 4):
        data = run / str(step) / "checkpoint.safetensors"
        data.write_bytes(data.read_bytes()[:-1])
    with CheckpointManager(run, keep=2) as manager:
        with pytest.warns(UserWarning, match="is passed over"):
            assert manager.latest() == 2
        found = manager.prune(dry_run=True)
    assert found.kept == {1: "LatestN(n=2)", 2: "LatestN(n=2)", 3: "damaged", 4: "damaged"}


def test_pins_that_cannot_be_read_stop_the_pruning(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in range(3):
            manager.save(step, at(step))
    (run / "pins.json").write_text("{")
    with pytest.raises(ValueError, match=r"pins\.json: not a list of pinned steps"):
        CheckpointManager(run, keep=1).prune()
    assert CheckpointManager(run).steps() == [0, 1, 2]


def test_policies_that_make_no_sense_are_refused() -> None:
    for make in (lambda: LatestN(0), lambda: BestN("loss", 0), lambda: BestN("loss", mode="low"),
                 lambda: EveryNSteps(-1), lambda: EveryNSeconds(0), lambda: EveryNSteps(True)):  # fmt: skip
        with pytest.raises(RunError):
            make()


def test_a_step_that_is_pinned_while_people_are_asked_stays(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in (1, 2, 3):
            manager.save(step, at(step))
    found = prune(run, 1, agreed=lambda _: bool(pin(run, [1])))
    assert found.removed == (2,)
    assert found.kept[1] == "pinned"
    assert manager.steps() == [1, 3]


def test_people_are_asked_again_if_more_would_go_than_they_were_asked_for(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in (1, 2, 3):
            manager.save(step, at(step))
    pin(run, [2])
    asked = []

    def agreed(found: Pruned) -> bool:
        asked.append(found.removed)
        pin(run, [2], pinned=False)
        return len(asked) == 1

    prune(run, 1, agreed=agreed)
    assert asked == [(1,), (1, 2)]
    assert manager.steps() == [1, 2, 3]


def test_a_step_that_somebody_moves_away_before_it_is_removed_is_gone(
    run: Path, at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removes = Directory.remove

    def moved(files: Directory, step: int) -> None:
        (run / str(step)).rename(tmp_path / f"gone{step}")
        removes(files, step)

    monkeypatch.setattr(Directory, "remove", moved)
    with CheckpointManager(run, keep=1) as manager:
        for step in (1, 2, 3):
            manager.save(step, at(step))
    assert manager.steps() == [3]
    assert (tmp_path / "gone1").is_dir()


def test_the_advice_to_move_a_step_away_can_be_pasted_into_a_shell(tmp_path: Path, at: At) -> None:
    run = tmp_path / "my run; it's new"
    with CheckpointManager(run) as manager:
        for step in (1, 2):
            manager.save(step, at(step))
        manager.wait()
        code = "import sys\nfrom statedict.runs import prune\nprune(sys.argv[1], 1)"
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
        advice = re.findall("`(mv .*)`", done.stderr)[-1]
        subprocess.run(advice.replace("STEP", "1"), shell=True, check=True)
        assert manager.steps() == [2]
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
