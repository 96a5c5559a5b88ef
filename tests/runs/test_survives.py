"""What the fault harness has found, each by itself; `make faults` runs all of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from statedict import CheckpointManager, load
from statedict.errors import CorruptFileError, FileError
from statedict.io import disk
from statedict.runs import pin, prune
from statedict.runs.directory import Directory
from statedict.runs.look.listing import find, listing
from statedict.runs.manifest import Manifest


def tree(value: float) -> dict[str, object]:
    return {"w": numpy.full(3, value), "epoch": int(value), "inner": {"lr": value}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run", background=False) as manager:
        for step in (1, 2, 3):
            manager.save(step, tree(step))
    return tmp_path / "run"


def go_on(run: Path, step: int = 4) -> CheckpointManager:
    manager = CheckpointManager(run, background=False, existing="continue")
    manager.save(step, tree(step))
    return manager


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if disk.exchange(str(tmp_path / "a"), str(tmp_path / "b")):
        assert (tmp_path / "b").is_dir()
        assert (tmp_path / "a").read_text() == "b"


def test_a_step_whose_process_died_before_it_had_its_name_counts_and_gets_it_from_who_writes_next(run: Path) -> None:
    os.rename(run / "3", run / ".3.0123abcd.next")
    (run / "3").mkdir()
    (run / "3" / "REMOVED").touch()  # its removal was interrupted where it stands
    manager = CheckpointManager(run)
    target = tree(0)
    assert (manager.steps(), manager.latest(), manager.restore(target).step) == ([1, 2, 3], 3, 3)
    assert target["epoch"] == 3
    assert [(one.name, one.state) for one in listing(run)][-2:] == [("3", "committed"), ("3", "unfinished")]
    assert (run / ".3.0123abcd.next").exists()  # who reads changes nothing
    go_on(run)
    assert sorted(os.listdir(run)) == [".lock", "1", "2", "3", "4"]
    assert CheckpointManager(run).steps() == [1, 2, 3, 4]


def test_what_was_to_replace_a_step_that_is_still_there_is_left_over_and_goes(run: Path) -> None:
    shutil.copytree(run / "2", run / ".3.0123abcd.next")
    assert CheckpointManager(run).restore(tree(0)).step == 3
    go_on(run)
    assert sorted(os.listdir(run)) == [".lock", "1", "2", "3", "4"]
    assert float(load(run / "3" / "checkpoint.safetensors")["inner"]["lr"]) == 3


@pytest.mark.parametrize("inside", [(), ("REMOVED",), ("REMOVED", "manifest.json"), ("REMOVED", "checkpoint.pth")])
def test_a_step_whose_removal_was_interrupted_where_it_stands_is_no_damage_and_goes(
    run: Path, inside: tuple[str, ...]
) -> None:
    (run / "7").mkdir()
    for name in inside:
        (run / "7" / name).touch()
    manager = CheckpointManager(run)
    assert (manager.steps(), manager.latest()) == ([1, 2, 3], 3)
    go_on(run)
    assert sorted(os.listdir(run)) == [".lock", "1", "2", "3", "4"]


def test_a_folder_with_a_number_that_holds_what_is_not_ours_stays(run: Path) -> None:
    (run / "7").mkdir()
    for name in ("REMOVED", "mine"):
        (run / "7" / name).touch()
    go_on(run)
    assert sorted(os.listdir(run / "7")) == ["REMOVED", "mine"]


def test_half_a_list_of_pins_is_left_over_and_goes(run: Path) -> None:
    (run / ".pins.json.0123abcd.tmp").write_text('{"pin')
    go_on(run)
    assert not (run / ".pins.json.0123abcd.tmp").exists()


def test_a_step_without_its_marker_is_passed_over_aloud(run: Path) -> None:
    (run / "3" / "COMMITTED").unlink()
    manager = CheckpointManager(run)
    with pytest.warns(UserWarning, match="step 3 is passed over, it is damaged: COMMITTED"):
        assert manager.latest() == 2


def test_a_step_with_an_empty_marker_is_damaged(run: Path) -> None:
    (run / "3" / "COMMITTED").write_bytes(b"")
    manager = CheckpointManager(run, keep=1, background=False)
    with pytest.warns(UserWarning, match="COMMITTED has another digest"):
        assert manager.latest() == 2
    manager.prune()
    assert manager.steps() == [2, 3]


def test_a_directory_that_cannot_be_synced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match=f"{tmp_path}: cannot make the names in it durable: Input/output error"):
        disk.sync_directory(str(tmp_path))


def test_pruning_that_fails_says_that_the_step_is_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager(run, keep=1, background=False, existing="continue")
    monkeypatch.setattr(Directory, "remove", lambda *_: os.open(run / "1" / "COMMITTED" / "x", os.O_RDONLY))
    with pytest.raises(FileError, match="step 4 is saved, and others could not be removed: Not a directory"):
        manager.save(4, tree(4))
    assert manager.latest() == 4


def test_pruning_waits_for_what_is_being_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Directory.commit

    def slow(self: Directory, *args: Any, **options: Any) -> Manifest:
        time.sleep(0.3)
        return real(self, *args, **options)

    monkeypatch.setattr(Directory, "commit", slow)
    with CheckpointManager(run, existing="continue") as manager:
        manager.save(4, tree(4))
        manager.prune()
        assert manager.steps() == [1, 2, 3, 4]


def test_what_a_failed_save_has_left_goes_with_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = go_on(run)
    real = os.unlink
    with monkeypatch.context() as broken:
        for name in ("rename", "unlink", "rmdir"):
            broken.setattr(os, name, lambda *_, **__: os.close(-1))
        with pytest.raises(FileError, match="step 5 was not saved"):
            manager.save(5, tree(5))
    assert os.unlink is real
    assert any(name.startswith(".5.") for name in os.listdir(run))
    manager.save(6, tree(6))
    assert sorted(os.listdir(run)) == [".lock", "1", "2", "3", "4", "6"]


def test_a_lock_whose_file_was_removed_is_taken_anew(run: Path) -> None:
    manager = go_on(run)
    before = os.stat(run / ".lock").st_ino
    os.rename(run / ".lock", run / "elsewhere")
    manager.save(5, tree(5))
    assert os.stat(run / ".lock").st_ino != before


def test_a_lock_holds_where_its_owner_cannot_be_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", full)
        manager = go_on(run)
    code = f"import statedict; statedict.CheckpointManager({str(run)!r}, existing='continue').save(9, {{}})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process writes into this directory" in other.stderr
    manager.close()


def begin_anew(run: Path) -> None:
    """A run begun anew, whose process ended once its first checkpoint was committed and before the old ones went."""
    code = (
        "import os, sys, statedict\n"
        "from statedict.runs.directory import Directory\n"
        "Directory.remove = lambda *_: os._exit(9)\n"
        "manager = statedict.CheckpointManager(sys.argv[1], existing='replace', background=False)\n"
        "manager.save(1, {'w': 9.0})\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], check=False).returncode == 9


def test_a_run_that_was_replaced_does_not_count_though_its_steps_are_still_there(run: Path) -> None:
    begin_anew(run)
    manager = CheckpointManager(run, background=False)
    target = {"w": 0.0}
    assert manager.steps() == [1, 2, 3]
    assert (manager.latest(), manager.restore(target).step, target) == (1, 1, {"w": 9.0})
    assert [(one.name, one.state) for one in listing(run)] == [
        ("1", "committed"),
        ("2", "replaced"),
        ("3", "replaced"),
    ]
    assert find(listing(run), "latest").name == "1"
    assert prune(run, keep=5, dry_run=True).removed == (2, 3)
    manager.save(2, tree(2))
    assert manager.steps() == [1, 2]
    assert manager.latest() == 2
    assert sorted(os.listdir(run)) == [".lock", "1", "2"]


def test_what_was_to_be_replaced_counts_as_long_as_nothing_replaces_it(run: Path) -> None:
    (run / ".replaced.json").write_text(json.dumps({"by": 1, "marker": "00", "steps": {"3": "00"}}))
    manager = CheckpointManager(run, background=False)
    assert manager.restore(tree(0)).step == 3
    manager.save(4, tree(4))
    assert sorted(os.listdir(run)) == [".lock", "1", "2", "3", "4"]


def test_a_pinned_step_of_a_run_that_was_replaced_stays_and_is_never_the_newest(run: Path) -> None:
    pin(run, [3])
    with CheckpointManager(run, existing="replace", background=False) as manager:
        manager.save(1, tree(9))
        manager.save(2, tree(8))
        assert (manager.steps(), manager.latest()) == ([1, 2, 3], 2)
    with CheckpointManager(run, keep=1, background=False) as manager:
        assert manager.restore(tree(0)).step == 2
        manager.save(2, tree(7), overwrite=True, force=True)
        assert (manager.steps(), manager.latest()) == ([2, 3], 2)
    assert CheckpointManager(run).restore(tree(0), step=3).step == 3
    pin(run, [3], pinned=False)
    with CheckpointManager(run, existing="continue", background=False) as manager:
        manager.save(4, tree(4))
    assert sorted(os.listdir(run)) == [".lock", "2", "4", "pins.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"steps": {"x": "00"}}', '{"by": "1", "steps": {}}', '{"steps": 3}'])
def test_a_damaged_list_of_what_was_replaced_is_an_error_that_names_it(run: Path, text: str) -> None:
    (run / ".replaced.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"\.replaced\.json: not a list of replaced steps"):
        CheckpointManager(run).latest()
