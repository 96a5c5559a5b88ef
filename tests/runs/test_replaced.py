"""A run begun anew: what it replaces never comes back, whoever is killed when, and it is never in its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statedict import CheckpointManager
from statedict.errors import FileError, FormatError, RunError
from statedict.runs import about, pin
from statedict.runs.directory import Directory
from statedict.runs.look.listing import listing

At = Callable[[int], dict[str, Any]]

KILLED = """
import os, sys, numpy, statedict
run, step = sys.argv[1], sys.argv[2]
rename = os.rename

def renamed(source, target, **options):
    if os.path.basename(target) == step:
        os._exit(9)
    rename(source, target, **options)

os.rename = renamed
manager = statedict.CheckpointManager(run, existing="replace", background=False)
manager.save(int(step), {"w": numpy.ones(3)})
"""


def saved(run: Path, at: At, *steps: int, **options: Any) -> None:
    with CheckpointManager(run, **options) as manager:
        for step in steps:
            manager.save(step, at(step), metrics={"loss": step})


def killed_before_it_commits(run: Path, step: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, run, str(step)], check=False)
    assert done.returncode == 9


def test_a_pinned_step_that_was_replaced_stays_so_when_the_next_run_is_killed(run: Path, at: At) -> None:
    saved(run, at, 2, 50)
    pin(run, [50])
    saved(run, at, 1, 3, existing="replace")
    killed_before_it_commits(run, 5)
    assert CheckpointManager(run).latest() == 3
    with CheckpointManager(run) as manager:
        assert manager.restore(at(0)).step == 3
        manager.save(4, at(4))
    assert (CheckpointManager(run).steps(), CheckpointManager(run).latest()) == ([1, 3, 4, 50], 4)
    killed_before_it_commits(run, 5)
    killed_before_it_commits(run, 6)
    assert CheckpointManager(run).latest() == 4
    saved(run, at, 7, existing="replace")
    assert (CheckpointManager(run).steps(), CheckpointManager(run).latest()) == ([7, 50], 7)


def test_what_could_not_be_removed_stays_replaced_when_the_next_save_is_killed(run: Path, at: At) -> None:
    saved(run, at, 2, 50)
    (run / "pins.json").write_text("{")
    manager = CheckpointManager(run, existing="replace", background=False)
    with pytest.raises(FormatError, match="list of pinned steps"):
        manager.save(1, at(1))
    manager._lock.release()  # type: ignore[union-attr]
    assert CheckpointManager(run).latest() == 1
    (run / "pins.json").write_text('{"pinned": [50]}')
    killed_before_it_commits(run, 3)
    assert CheckpointManager(run).latest() == 1


def test_going_back_within_a_run_does_not_revive_the_one_that_it_replaced(run: Path, at: At) -> None:
    saved(run, at, 2, 50)
    pin(run, [2, 50])
    saved(run, at, 10, 20, 30, existing="replace")
    with CheckpointManager(run, existing="replace") as manager:
        manager.restore(at(0), step=10)
        manager.save(11, at(11), metrics={"loss": 11})
    manager = CheckpointManager(run)
    assert (manager.steps(), manager.latest(), manager.best("loss")) == ([2, 10, 11, 50], 11, 10)
    assert [one.step for one in listing(run) if one.state == "replaced"] == [2, 50]


def test_a_run_saves_a_step_that_the_one_before_has_pinned(run: Path, at: At) -> None:
    saved(run, at, 10, 50)
    pin(run, [50])
    with CheckpointManager(run, existing="replace") as manager:
        for step in (10, 20, 50, 60):
            manager.save(step, at(step))
            manager.wait()
        with pytest.raises(RunError, match="step 50 is committed already"):
            manager.save(50, at(50))
    assert (manager.steps(), manager.latest()) == ([10, 20, 50, 60], 60)
    assert [one.state for one in listing(run)] == ["committed"] * 4


def test_a_list_that_is_a_link_out_of_the_run_is_neither_obeyed_nor_written(run: Path, at: At, tmp_path: Path) -> None:
    saved(run, at, 1, 3)
    outside = tmp_path / "outside.json"
    (run / ".replaced.json").symlink_to(outside)
    steps = {"3": (run / "3" / "COMMITTED").read_bytes().hex()}
    for text in (None, json.dumps({"steps": steps})):
        if text:
            outside.write_text(text)
        with pytest.raises(FormatError, match=r"\.replaced\.json"):
            CheckpointManager(run).latest()
        with pytest.raises(FormatError, match=r"\.replaced\.json"):
            saved(run, at, 1, existing="replace")
        assert (outside.read_text() if outside.exists() else None) == text
    assert {"1", "3"} <= {*os.listdir(run)}


@pytest.mark.parametrize(
    "text", ['{"steps": {"%s": "ab"}}' % ("9" * 5000), '{"by": -1, "marker": "", "steps": {}}', "[1]", '{"steps": [1]}',
             '{"steps": {"1": "ab", "1": "cd"}}', '{"by": Infinity, "marker": "", "steps": {}}',
             '{"steps": {"01": ""}}',
             '{"by": 1, "marker": "", "steps": {}, "before": 5}', '{"steps": {"9223372036854775808": ""}}', ""],
    ids=range(10),
)  # fmt: skip
def test_a_list_that_is_damaged_is_named(run: Path, at: At, text: str) -> None:
    saved(run, at, 1, 3)
    (run / ".replaced.json").write_text(text)
    for look in (CheckpointManager(run).latest, lambda: listing(run), lambda: saved(run, at, 9, existing="replace")):
        with pytest.raises(FormatError, match=r"\.replaced\.json"):
            look()
    (run / ".replaced.json").unlink()
    (run / ".replaced.json").mkdir()
    with pytest.raises(FileError, match=r"\.replaced\.json"):
        CheckpointManager(run).latest()


def test_a_step_behind_the_one_that_was_saved_last_is_refused(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        manager.save(10, at(10))
        with pytest.raises(RunError, match="has step 10, which is not before step 5"):
            manager.save(5, at(5))
        manager.save(11, at(11))
    assert manager.steps() == [10, 11]


def test_a_listing_beside_a_run_that_is_begun_anew_has_the_old_one_or_the_new_one(
    run: Path, at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(run, at, 10)
    pin(run, [10])
    pins, begun = Directory.pins, list[bool]()

    def pins_while_another_run_begins(files: Directory) -> set[int]:
        if not begun:  # the steps have been listed
            begun.append(True)
            saved(run, at, 5, existing="replace")
        return pins(files)

    monkeypatch.setattr(Directory, "pins", pins_while_another_run_begins)
    assert about(run).checkpoint.step == 5
    assert [(one.step, one.state) for one in listing(run)] == [(5, "committed"), (10, "replaced")]
