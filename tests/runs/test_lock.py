"""The lock of a run on a disk: no other process gets it, whatever happens to its file in this one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from statedict import CheckpointManager
from statedict.errors import RunError

OTHER = """
import sys, statedict
manager = statedict.CheckpointManager(sys.argv[1], existing="continue", background=False)
manager.save(int(sys.argv[2]), {"w": 1.0})
print("saved", flush=True)
sys.stdin.read()
manager.close()
"""


def other(run: Path, step: int) -> subprocess.Popen[str]:
    """Another process that saves, and holds the lock until it is told to end."""
    command = [sys.executable, "-c", OTHER, str(run), str(step)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def begin(run: Path) -> CheckpointManager:
    manager = CheckpointManager(run, existing="continue", background=False)
    manager.save(1, {"w": 0.0})
    return manager


def open_and_close(run: Path) -> None:
    """As who copies the directory does: it takes away the lock of this process."""
    shutil.copytree(run, f"{run}-copy")


def test_a_lock_that_cannot_be_taken_anew_closes_no_file_of_somebody_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    manager = begin(run)
    os.unlink(run / ".lock")
    with monkeypatch.context() as broken:
        broken.setattr(fcntl, "lockf", no_locks)
        manager.save(2, {"w": 0.0})
    files = [open(tmp_path / f"{number}", "w+") for number in range(3)]  # noqa: SIM115
    for file in files:
        file.write("precious")
        file.flush()
    manager.close()
    for file in files:
        file.write(" still")
        file.close()
        assert Path(file.name).read_text() == "precious still"


def test_a_lock_that_could_not_be_taken_anew_is_taken_by_the_next_save(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as broken:
        broken.setattr(fcntl, "lockf", no_locks)
        manager = begin(run)
    manager.save(2, {"w": 0.0})
    _, said = other(run, 3).communicate()
    assert f"process {os.getpid()} on " in said
    manager.close()


def test_a_save_takes_the_lock_again_after_the_directory_was_copied(run: Path) -> None:
    manager = begin(run)
    open_and_close(run)
    manager.save(2, {"w": 0.0})
    _, said = other(run, 3).communicate()
    assert f"process {os.getpid()} on " in said
    manager.close()
    assert CheckpointManager(run).steps() == [1, 2]


@pytest.mark.parametrize("call", ["save", "prune"])
def test_who_lost_the_lock_to_a_process_that_writes_is_told(run: Path, call: str) -> None:
    manager = begin(run)
    open_and_close(run)
    process = other(run, 2)
    for _ in range(2):
        with pytest.raises(RunError, match=f"process {process.pid} on .* writes into this directory"):
            manager.save(3, {"w": 0.0}) if call == "save" else manager.prune()
    process.communicate()
    assert CheckpointManager(run).steps() == [1, 2]
    manager.save(3, {"w": 0.0})
    manager.close()


def test_who_lost_the_lock_to_a_process_that_has_ended_is_told_once(run: Path) -> None:
    manager = begin(run)
    open_and_close(run)
    other(run, 2).communicate()
    with pytest.raises(RunError, match="another process wrote into this directory meanwhile"):
        manager.save(3, {"w": 0.0})
    assert manager.save(3, {"w": 0.0})
    manager.close()
    assert CheckpointManager(run).steps() == [1, 2, 3]


def test_who_lost_the_lock_and_ends_leaves_the_name_of_the_one_who_has_it(run: Path) -> None:
    manager = begin(run)
    open_and_close(run)
    process = other(run, 2)
    manager.close()
    assert f'"pid": {process.pid}' in (run / ".lock").read_text()
    process.communicate()


def test_another_manager_of_the_process_takes_the_lock_again_too(run: Path) -> None:
    first = begin(run)
    open_and_close(run)
    second = CheckpointManager(run, existing="continue", background=False)
    second.save(2, {"w": 0.0})
    _, said = other(run, 3).communicate()
    assert f"process {os.getpid()} on " in said
    first.close()
    second.close()


def test_a_damaged_lock_is_no_lock_that_was_lost(run: Path) -> None:
    manager = begin(run)
    with open(run / ".lock", "r+b") as file:
        file.write(b"\xff")
    manager.save(2, {"w": 0.0})
    assert f'"pid": {os.getpid()}' in (run / ".lock").read_text()
    manager.close()


def test_a_fork_that_outlives_its_parent_has_the_lock_for_itself(run: Path) -> None:
    code = """
import gc, os, sys, time, statedict
first = statedict.CheckpointManager(sys.argv[1], background=False)
first.save(1, {"w": 0.0})
if os.fork():
    os._exit(0)
second = statedict.CheckpointManager(sys.argv[1], existing="continue", background=False)
for _ in range(500):
    try:
        second.save(2, {"w": 0.0})
        break
    except statedict.errors.RunError:
        time.sleep(0.01)
del first
gc.collect()
print(os.getpid(), flush=True)
sys.stdin.read()
second.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    _, said = other(run, 3).communicate()
    assert f"process {pid} on " in said
    process.communicate()
    assert CheckpointManager(run).steps() == [1, 2]


def test_who_lost_the_lock_ends_its_own_save_before_it_cleans(run: Path) -> None:
    manager = CheckpointManager(run, existing="continue", in_flight=2, retries=0)
    manager.save(1, {"w": 0.0})
    manager.wait()
    held, writer = threading.Event(), manager._writer
    commit = writer._files.commit

    def late(*what: Any, **options: Any) -> Any:
        held.wait()
        return commit(*what, **options)

    writer._files.commit = late  # type: ignore[method-assign]
    manager.save(2, {"w": 0.0})
    open_and_close(run)
    process = other(run, 9)
    with pytest.raises(RunError, match="writes into this directory"):
        manager.save(10, {"w": 0.0})
    process.communicate()
    threading.Timer(0.3, held.set).start()
    manager.save(10, {"w": 0.0})
    assert (run / "2").is_dir()
    manager.close()
    assert manager.steps() == [1, 2, 9, 10]


def test_two_managers_that_lost_the_lock_are_both_told(run: Path) -> None:
    first = begin(run)
    open_and_close(run)
    process = other(run, 2)
    second = CheckpointManager(run, existing="continue", background=False)
    for manager in (second, first, second, first):
        with pytest.raises(RunError, match=f"process {process.pid} on .* writes into this directory"):
            manager.save(3, {"w": 0.0})
    process.communicate()
    assert CheckpointManager(run).steps() == [1, 2]
    first.save(3, {"w": 0.0})
    second.close()
    first.close()
