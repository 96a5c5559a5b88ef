"""What a checkpoint is called and holds in names: what is saved can be read again, and anything else is not saved."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from statedict import CheckpointManager
from statedict.errors import FileError, RunError, UnsupportedError
from statedict.runs import about
from statedict.runs.look.listing import verify_run

HALF = "caf\udce9"  # as Python reads a file name that is no UTF-8


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_tensor_whose_name_is_no_text_is_saved_and_restored(run: Path, format: str) -> None:
    with CheckpointManager(run, keep=1, format=format) as manager:
        for step in (1, 2):
            manager.save(step, {HALF: numpy.full(3, float(step)), "é😀": numpy.ones(2)})
    manager, tree = CheckpointManager(run), {HALF: numpy.zeros(3), "é😀": numpy.zeros(2)}
    assert manager.restore(tree).step == 2
    assert [*tree[HALF], *tree["é😀"]] == [2, 2, 2, 1, 1]
    assert verify_run(run).ok
    for command in ("ls", "show", "verify"):
        done = subprocess.run(
            [sys.executable, "-m", "statedict", "runs", command, run], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_name_that_its_manifest_would_change_is_not_committed(run: Path) -> None:
    """JSON joins two halves that stand side by side; so does a .safetensors, and a .pth does not."""
    pair = "\ud83d" + "\ude00"
    with (
        CheckpointManager(run, format="torch", background=False) as manager,
        pytest.raises(UnsupportedError, match="the two halves of a surrogate pair, which a manifest would join"),
    ):
        manager.save(1, {pair: numpy.ones(3)})
    assert manager.steps() == []
    with CheckpointManager(run) as manager:
        manager.save(1, {pair: numpy.ones(3)})
    assert manager.latest() == 1


def test_a_metric_whose_name_is_no_text_is_refused_before_anything_is_saved(run: Path) -> None:
    with (
        CheckpointManager(run) as manager,
        pytest.raises(RunError, match=r"the name 'caf\\udce9' has half of a surrogate pair"),
    ):
        manager.save(1, {"w": numpy.ones(3)}, metrics={HALF: 1.0})
    assert manager.steps() == []


@pytest.mark.parametrize("step", [1 << 63, 10**5000, -(10**5000)], ids=["2**63", "huge", "negative"])
def test_a_step_that_no_manifest_holds_is_refused_before_anything_is_saved(run: Path, step: int) -> None:
    with (
        CheckpointManager(run) as manager,
        pytest.raises(RunError, match=r"step=.*: expected a whole number of 0 or more, below 2\*\*63"),
    ):
        manager.save(step, {"w": numpy.ones(3)})
    with CheckpointManager(run) as manager:
        assert manager.save((1 << 63) - 1, {"w": numpy.ones(3)})
    assert (manager.steps(), manager.latest()) == ([(1 << 63) - 1], (1 << 63) - 1)


@pytest.mark.parametrize("which", [10**5000, -(10**5000), "9" * 5000, "x" * 5000], ids=range(4))
def test_a_checkpoint_that_nobody_can_have_is_not_there(run: Path, which: str | int) -> None:
    with CheckpointManager(run) as manager:
        manager.save(7, {"w": numpy.ones(3)})
    with pytest.raises(RunError, match=r"has no checkpoint '.{,80}; it has 7"):
        about(run, which)
    assert about(run, "0" * 20 + "7").checkpoint.step == 7


def whole_but_unnamed(run: Path) -> Path:
    """Step 7, as its process died before it had its name."""
    with CheckpointManager(run) as manager:
        for step in (1, 7):
            manager.save(step, {"w": numpy.full(3, step)})
    return (run / "7").rename(run / ".7.0123abcd.next")


def test_what_a_link_named_by_a_step_leads_to_is_never_removed(run: Path, tmp_path: Path) -> None:
    whole_but_unnamed(run)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("REMOVED", "checkpoint.safetensors"):
        (outside / name).write_text("mine")
    (run / "7").symlink_to(outside)
    with CheckpointManager(run, existing="continue") as manager:
        manager.save(8, {"w": numpy.ones(3)})
    assert {one.name: one.read_text() for one in outside.iterdir()} == {
        "REMOVED": "mine",
        "checkpoint.safetensors": "mine",
    }
    assert manager.latest() == 8


def test_a_file_system_that_refuses_to_tidy_up_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_but_unnamed(run)
    real = os.rename

    def rename(source: str, target: str, **options: int) -> None:
        if str(source).endswith(".next"):
            raise PermissionError(errno.EPERM, "no", source)
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    with (
        CheckpointManager(run, existing="continue", retries=0) as manager,
        pytest.raises(FileError, match="cannot tidy up"),
    ):
        manager.save(8, {"w": numpy.ones(3)})


@pytest.mark.parametrize("names", [["checkpoint.safetensors"], ["checkpoint.pth"], ["checkpoint.pth", "mine"]])
def test_a_folder_of_the_users_own_that_is_named_by_a_step_is_not_replaced(run: Path, names: list[str]) -> None:
    (run / "9").mkdir(parents=True)
    for name in names:
        (run / "9" / name).write_text("mine")
    with (
        CheckpointManager(run, background=False) as manager,
        pytest.raises(RunError, match="not a checkpoint of ours and would be replaced"),
    ):
        manager.save(9, {"w": numpy.ones(3)}, overwrite=True)
    assert [(run / "9" / name).read_text() for name in names] == ["mine"] * len(names)
