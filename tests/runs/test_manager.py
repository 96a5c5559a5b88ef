"""CheckpointManager: what is saved is there, whole and verified; what is damaged or unfinished is never chosen."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import CheckpointManager, LazyTensor, Storage, dtype
from statedict.errors import ArgumentError, CorruptFileError, FileError, MissingFileError, RunError
from statedict.io.source import ComputedSource
from statedict.runs import prune
from statedict.runs.directory import Directory
from statedict.testing.same import assert_same

At = Callable[[int], dict[str, Any]]


def saved(run: Path, at: At, steps: Any, **options: Any) -> None:
    """A run with these steps, whose loss falls and rises: least at 3."""
    with CheckpointManager(run, **options) as manager:
        for step in steps:
            assert manager.save(step, at(step), {"loss": abs(step - 3)})


def blank(tree: Any) -> Any:
    """A tree of the same kind with other values."""
    return {"model": {name: numpy.zeros_like(value) for name, value in tree["model"].items()}, "epoch": -1}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_what_was_saved_is_restored_bit_for_bit(run: Path, at: At, background: bool, format: str) -> None:
    saved(run, at, (1, 2, 10), background=background, format=format)
    manager = CheckpointManager(run)
    assert manager.steps() == [1, 2, 10]
    assert manager.latest() == 10
    tree = blank(at(10))
    report = manager.restore(tree)
    assert report.step == 10
    assert_same(tree, at(10))
    assert manager.restore(tree, step=2).step == 2
    assert_same(tree, at(2))


def test_a_run_that_has_not_begun_has_no_steps_and_nothing_to_restore(run: Path) -> None:
    manager = CheckpointManager(run)
    assert manager.steps() == []
    assert manager.latest() is None
    assert manager.best("loss") is None
    with pytest.raises(MissingFileError, match="holds no sound checkpoint"):
        manager.restore({})


def test_bad_arguments_are_value_errors(run: Path) -> None:
    for arguments in ({"format": "xyz"}, {"keep": -1}, {"save_every": "often"}, {"in_flight": 0}, {"busy": "no"}):
        with pytest.raises(ArgumentError) as error:
            CheckpointManager(run, **arguments)
        assert isinstance(error.value, ValueError)
        assert not run.exists()


def test_a_format_may_be_named_by_a_suffix(run: Path, at: At) -> None:
    saved(run, at, (1,), format="pth")
    assert (run / "1" / "checkpoint.pth").exists()


def test_a_manager_shows_its_settings(run: Path) -> None:
    shown = repr(CheckpointManager(run, keep=2, format="pt"))
    assert shown == f"CheckpointManager({str(run)!r}, keep=LatestN(n=2), save_every=None, format='torch')"


def test_any_tool_opens_the_file_of_a_checkpoint(run: Path, at: At) -> None:
    saved(run, at, (1,))
    from safetensors.numpy import load_file

    assert set(load_file(run / "1" / "checkpoint.safetensors")) == {"model.w", "model.b"}
    assert_same(statedict.load(run / "1").numpy(), at(1))
    saved(run / "other", at, (1,), format="torch")
    found = torch.load(run / "other" / "1" / "checkpoint.pth", weights_only=False)
    assert found["epoch"] == 1


def test_the_manifest_tells_anyone_what_is_there(run: Path, at: At) -> None:
    saved(run, at, (3,))
    found = json.loads((run / "3" / "manifest.json").read_text())
    assert found["step"] == 3
    assert found["metrics"] == {"loss": 0.0}
    assert found["files"] == {"checkpoint.safetensors": (run / "3" / "checkpoint.safetensors").stat().st_size}
    assert [entry[:3] for entry in found["entries"]] == [["model.w", "float32", [8, 5]], ["model.b", "float64", [5]]]
    from xxhash import xxh3_128_hexdigest

    assert found["entries"][0][3] == xxh3_128_hexdigest(at(3)["model"]["w"].tobytes())


def test_metrics_that_are_not_finite_come_back(run: Path, at: At) -> None:
    metrics = {
        "a": float("nan"),
        "b": float("-inf"),
        "c": numpy.float32(0.5),
        "d": torch.tensor(2.0, requires_grad=True),
    }
    with CheckpointManager(run) as manager:
        manager.save(1, at(1), metrics)
        manager.wait()
        found = manager.metrics(1)
    assert str(found["a"]) == "nan"
    assert (found["b"], found["c"], found["d"]) == (-numpy.inf, 0.5, 2.0)
    with pytest.raises(RunError, match="expected a number"):
        CheckpointManager(run).save(2, at(2), {"loss": "low"})  # type: ignore[dict-item]
    for wrong in (5.0, ["loss"], {"loss": 10**400}):
        with pytest.raises(RunError, match="metrics"):
            CheckpointManager(run).save(2, at(2), wrong)  # type: ignore[arg-type]


def test_best_is_by_metric_and_mode_and_never_nan(run: Path, at: At) -> None:
    with CheckpointManager(run, keep=[5, statedict.runs.BestN("score", mode="max")]) as manager:
        for step, loss in enumerate((float("nan"), 3.0, 1.0, 2.0)):
            manager.save(step, at(step), {"loss": loss, "score": -loss})
        manager.wait()
        assert manager.best("loss") == manager.best("loss", "min") == 2
        assert manager.best("loss", "max") == 1
        assert manager.best("score") == 2  # the mode is that of the policy
        assert manager.best("nothing") is None
        with pytest.raises(RunError, match="mode='least': expected 'min' or 'max'"):
            manager.best("loss", "least")


# damage


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "manifest.json", "COMMITTED"])
def test_a_flipped_byte_anywhere_makes_latest_fall_back_with_a_warning_that_names_the_file(
    run: Path, at: At, name: str
) -> None:
    saved(run, at, (1, 2))
    size = (run / "2" / name).stat().st_size
    for position in sorted({*range(0, size, max(1, size // 40)), size - 1}):
        flip(run / "2" / name, position)
        manager = CheckpointManager(run)
        with pytest.warns(UserWarning, match=rf"step 2 is passed over, it is damaged: .*{name}|manifest"):
            assert manager.latest() == 1
        flip(run / "2" / name, position)
    assert CheckpointManager(run).latest() == 2


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "manifest.json", "COMMITTED"])
def test_a_truncated_or_missing_file_is_never_chosen(run: Path, at: At, name: str) -> None:
    saved(run, at, (1, 2))
    whole = (run / "2" / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (run / "2" / name).write_bytes(whole[:length])
        with pytest.warns(UserWarning, match="step 2 is passed over"):
            assert CheckpointManager(run).latest() == 1
    (run / "2" / name).unlink()
    if name == "checkpoint.safetensors":
        with pytest.warns(UserWarning, match="step 2 is passed over"):
            assert CheckpointManager(run).latest() == 1
    else:  # which was never committed
        assert CheckpointManager(run).steps() == [1]


def test_the_file_of_another_step_is_not_taken_for_that_of_this_one(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    shutil.copy(run / "1" / "checkpoint.safetensors", run / "2" / "checkpoint.safetensors")
    with pytest.warns(UserWarning, match="is not the file that was committed"):
        assert CheckpointManager(run).latest() == 1
    shutil.rmtree(run / "2")
    shutil.copytree(run / "1", run / "2")
    with pytest.warns(UserWarning, match="its manifest is that of step 1"):
        assert CheckpointManager(run).latest() == 1


def test_a_damaged_step_that_is_asked_for_by_its_number_is_an_error(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    flip(run / "2" / "checkpoint.safetensors", -1)
    with pytest.raises(CorruptFileError, match=r"step 2 is damaged: .*model"):
        CheckpointManager(run).restore(blank(at(2)), step=2)
    with pytest.raises(MissingFileError, match="step 7 is not committed there; it has 1, 2"):
        CheckpointManager(run).restore(blank(at(2)), step=7)


def test_a_damaged_step_is_replaced_when_training_comes_to_it_again(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    flip(run / "2" / "checkpoint.safetensors", -1)
    tree = blank(at(1))
    with CheckpointManager(run) as manager:
        with pytest.warns(UserWarning, match="step 2 is passed over"):
            assert manager.restore(tree).step == 1
        manager.save(2, at(2))
    assert CheckpointManager(run).latest() == 2


def test_less_is_looked_at_where_less_is_wanted(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    flip(run / "2" / "checkpoint.safetensors", -1)
    assert CheckpointManager(run, verify="quick").latest() == 2
    assert CheckpointManager(run, verify="off").latest() == 2
    assert CheckpointManager(run).latest("off") == 2


def test_what_was_verified_is_not_read_again_until_it_changes(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    manager = CheckpointManager(run)
    assert manager.latest() == 2
    time.sleep(0.01)
    flip(run / "2" / "checkpoint.safetensors", -1)
    with pytest.warns(UserWarning, match="step 2"):
        assert manager.latest() == 1


# whose directory it is


def test_a_fresh_start_over_a_run_is_refused_unless_asked(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    with (
        CheckpointManager(run) as manager,
        pytest.raises(RunError, match=r"has 2 checkpoints, up to step 2, and nothing was restored; restore\(tree\)"),
    ):
        manager.save(3, at(3))
    assert CheckpointManager(run).steps() == [1, 2]
    with CheckpointManager(run, existing="continue") as manager:
        manager.save(3, at(3))
    assert CheckpointManager(run).steps() == [1, 2, 3]
    with CheckpointManager(run, existing="replace") as manager:
        manager.save(0, at(0))
    assert CheckpointManager(run).steps() == [0]


def test_a_manager_that_was_closed_may_go_on(run: Path, at: At) -> None:
    manager = CheckpointManager(run)
    for step in (1, 2):
        manager.save(step, at(step))
        manager.close()
    assert manager.steps() == [1, 2]
    manager = CheckpointManager(run, existing="replace")
    for step in (5, 6):
        manager.save(step, at(step))
        manager.close()
    assert manager.steps() == [5, 6]
    assert manager.save(6, at(7), overwrite=True)
    manager.close()


def test_the_step_that_was_restored_is_not_saved_again(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    with CheckpointManager(run) as manager:
        manager.restore(blank(at(2)), dry_run=True)
        manager.restore(blank(at(2)))
        assert not manager.save(2, at(2))
        assert manager.save(3, at(3))


def test_a_signal_ends_the_process_even_where_saves_are_skipped(run: Path) -> None:
    slow = Event()

    def fill(start: int, buffer: memoryview) -> None:
        slow.wait(10)
        buffer[:] = bytes(len(buffer))

    tree = {"w": LazyTensor(dtype("uint8"), (8,), Storage(ComputedSource(8, fill), 0, 8))}
    manager = CheckpointManager(run, busy="skip", preemption=[signal.SIGUSR2])
    assert manager.save(1, tree)
    os.kill(os.getpid(), signal.SIGUSR2)
    Timer(0.2, slow.set).start()
    with pytest.raises(SystemExit) as ended:
        manager.save(2, tree)
    assert ended.value.code == 128 + signal.SIGUSR2
    assert manager.steps() == [1, 2]
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_save_waits_while_as_many_are_being_written_or_skips_by_choice(run: Path) -> None:
    slow = Event()

    def fill(start: int, buffer: memoryview) -> None:
        slow.wait(10)
        buffer[:] = bytes(len(buffer))

    def tree() -> dict[str, Any]:
        return {"w": LazyTensor(dtype("uint8"), (8,), Storage(ComputedSource(8, fill), 0, 8))}

    with CheckpointManager(run, in_flight=2, busy="skip") as manager:
        assert [manager.save(step, tree()) for step in range(4)] == [True, True, False, False]
        slow.set()
        manager.wait()
        assert manager.steps() == [0, 1]
        slow.clear()
        assert manager.save(5, tree())
        slow.set()
    slow.clear()
    with CheckpointManager(run, existing="continue") as manager:
        assert manager.save(6, tree())
        Timer(0.3, slow.set).start()
        assert manager.save(7, tree())
        assert slow.is_set()  # until then the one before was being written
    assert CheckpointManager(run).steps() == [0, 1, 5, 6, 7]


def test_going_on_after_a_restore_is_not_refused(run: Path, at: At) -> None:
    saved(run, at, (1, 2))
    with CheckpointManager(run) as manager:
        manager.restore(blank(at(2)))
        manager.save(3, at(3))
    assert CheckpointManager(run).steps() == [1, 2, 3]


def test_steps_that_lie_before_those_that_are_there_are_refused(run: Path, at: At) -> None:
    saved(run, at, (10, 20))
    with CheckpointManager(run) as manager:
        manager.restore(blank(at(10)), step=10)
        with pytest.raises(RunError, match="has step 20, which is not before step 15"):
            manager.save(15, at(15))


def test_going_back_is_refused_until_what_comes_after_is_to_be_replaced(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        for step in (10, 20, 30, 40):
            manager.save(step, at(step))
        manager.restore(blank(at(10)), step=20)
        with pytest.raises(RunError, match="has step 40, which is not before step 25"):
            manager.save(25, at(25))
    Directory(str(run)).pin({30})
    with CheckpointManager(run, existing="replace") as manager:
        manager.restore(blank(at(10)), step=20)
        assert manager.save(50, at(50))
        manager.wait()
        assert manager.steps() == [10, 20, 30, 50]


def test_a_directory_is_that_of_the_time_when_it_was_named(
    run: Path, at: At, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointManager("run") as manager:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        manager.save(1, at(1))
        manager.wait()
        assert manager.steps() == [1]
    assert CheckpointManager(run).latest() == 1


def test_a_fork_neither_writes_nor_hears_signals_for_its_parent(run: Path, at: At) -> None:
    code = """
import os, signal, sys, time, numpy, statedict
manager = statedict.CheckpointManager(sys.argv[1], preemption=True, background=False)
manager.save(1, {"w": numpy.ones(2)})
child = os.fork()
if not child:
    try:
        manager.save(2, {"w": numpy.zeros(2)})
    except statedict.errors.RunError as error:
        print(error, flush=True)
    time.sleep(30)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), manager.steps(), manager.preempted)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True, timeout=20
    )
    first, last = done.stdout.splitlines()
    assert "this process is a fork" in first
    assert last == "-15 [1] False"


def test_a_save_that_failed_is_owed_at_the_next_step(run: Path, at: At) -> None:
    with CheckpointManager(run, retries=0, save_every=10) as manager:
        manager.save(0, at(0))
        manager.wait()
        run.rename(run.with_name("away"))
        run.write_text("in the way")
        manager.save(10, at(10))
        with pytest.raises(FileError, match="step 10 was not saved"):
            manager.wait()
        run.unlink()
        run.with_name("away").rename(run)
        assert manager.save(10, at(10))
        manager.wait()
        assert not manager.save(11, at(11))
        assert manager.steps() == [0, 10]


def test_many_threads_may_save(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda step: manager.save(step, at(step)), range(8)))
        manager.wait()
        assert manager.steps() == list(range(8))


def test_what_is_raised_in_a_with_block_is_not_hidden_by_a_warning(run: Path, at: At) -> None:
    def loop() -> None:
        with CheckpointManager(run) as manager:
            manager.save(1, at(1))
            manager.save(2, at(1))
            manager._background.wait()
            raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            loop()


def test_a_step_is_saved_once_unless_it_is_to_be_replaced(run: Path, at: At) -> None:
    with CheckpointManager(run) as manager:
        assert manager.save(1, at(1))
        assert not manager.save(1, at(1))  # the last one of the loop, once more
        assert manager.save(2, at(2))
        manager.wait()
        with pytest.raises(RunError, match="step 1 is committed already"):
            manager.save(1, at(1))
        assert manager.save(1, at(7), overwrite=True)
        manager.wait()
        tree = blank(at(1))
        manager.restore(tree, step=1)
        assert_same(tree, at(7))


WRITES = """
import sys, numpy, statedict
manager = statedict.CheckpointManager(sys.argv[1])
manager.save(1, {"w": numpy.zeros(3)})
manager.wait()
print("saved", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("variables", [("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")])
def test_a_rank_that_finds_another_one_writing_is_told_to_leave_it_to_rank_0(
    run: Path, at: At, variables: tuple[str, str]
) -> None:
    with CheckpointManager(run) as manager:
        manager.save(1, at(1))
        environment = os.environ | dict(zip(variables, ("2", "8"), strict=True))
        other = subprocess.run(
            [sys.executable, "-c", WRITES, str(run)], env=environment, capture_output=True, text=True, check=False
        )
    assert "this one is rank 2 of 8, and one of them saves a run: call `save` on rank 0 only" in other.stderr
    assert "a directory of its own" not in other.stderr


def test_one_process_writes_at_a_time_and_the_lock_of_a_dead_one_is_no_lock(run: Path, at: At) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "saved\n"
        manager = CheckpointManager(run)
        assert manager.latest() == 1  # anybody may read
        with pytest.raises(RunError, match=rf"process {other.pid} on .* writes into this directory"):
            manager.save(2, at(2))
        with pytest.raises(RunError, match=rf"process {other.pid} on .* writes into this directory"):
            CheckpointManager(run, keep=1).prune()
        with pytest.raises(
            RunError, match=rf"process {other.pid} .*removes by its own `keep`.*`mv .*/STEP .*gone && rm"
        ):
            prune(run, keep=1)
        other.kill()
        other.wait()
        assert manager.save(2, at(2))
        manager.close()


def test_two_managers_of_a_process_take_turns(run: Path, at: At) -> None:
    one = CheckpointManager(run)
    one.save(1, at(1))
    other = CheckpointManager(run)
    other.latest()
    other.save(2, at(2))  # waits for what the other one is writing
    one.save(3, at(3))
    other.close()
    one.wait()
    assert one.steps() == [1, 2, 3]
    one.close()
    assert CheckpointManager(run, existing="continue").save(4, at(4))


def test_leftovers_are_never_chosen_and_are_cleaned_by_who_writes_next(run: Path, at: At) -> None:
    saved(run, at, (1,))
    shutil.copytree(run / "1", run / ".2.0123abcd.tmp")
    shutil.copytree(run / "1", run / ".0.0123abcd.gone")
    shutil.copytree(run / "1", run / "5")
    (run / "5" / "COMMITTED").unlink()
    (run / "notes.txt").write_text("mine")
    (run / "007").mkdir()
    (run / "9").mkdir()
    (run / "9" / "mine").write_text("also")
    with CheckpointManager(run) as manager:
        assert manager.steps() == [1]
        with pytest.warns(UserWarning, match="step 5 is passed over, it is damaged: COMMITTED or manifest.json is mis"):
            assert manager.latest() == 1
        manager.save(2, at(2))
    assert sorted(os.listdir(run)) == [".lock", "007", "1", "2", "5", "9", "notes.txt"]
    with CheckpointManager(run, existing="continue") as manager:
        manager.save(5, at(5))  # in the place of one that was never committed
        manager.save(9, at(9))
        with pytest.raises(RunError, match="not a checkpoint of ours and would be replaced"):
            manager.wait()
        assert manager.steps() == [1, 2, 5]
    assert os.listdir(run / "9") == ["mine"]


# what is saved, and when


def test_a_policy_says_when_to_save(run: Path, at: At) -> None:
    with CheckpointManager(run, save_every=[3, statedict.runs.CustomSteps([4])]) as manager:
        assert [step for step in range(8) if manager.save(step, at(step))] == [0, 3, 4, 6]
        assert manager.save(7, at(7), force=True)
    with CheckpointManager(run / "timed", save_every=statedict.runs.EveryNSeconds(0.2)) as manager:
        assert not manager.save(0, at(0))
        time.sleep(0.25)
        assert manager.should_save(1)
        assert manager.save(1, at(1))
        assert not manager.save(2, at(2))


def test_changes_right_after_save_never_reach_the_file(run: Path) -> None:
    tensors = {f"layers.{i}": torch.full((256, 1024), 0.0) for i in range(32)}
    with CheckpointManager(run, in_flight=2) as manager:
        for step in range(1, 12):
            for tensor in tensors.values():
                tensor.fill_(step)
            manager.save(step, {"model": tensors, "values": [step]})
            for tensor in tensors.values():
                tensor.fill_(-1)
        manager.wait()
        for step in manager.steps():
            assert statedict.verify(run / str(step) / "checkpoint.safetensors").ok
            state = manager.load(step)
            assert all(bool((tensor.numpy() == step).all()) for tensor in state["model"].values()), step
            assert state["values"] == [step]


def test_ties_and_views_survive_the_copy(run: Path) -> None:
    shared = torch.arange(6.0)
    tree = {"a": shared, "b": shared, "half": shared[:3], "column": torch.arange(6.0).reshape(2, 3)[:, 1]}
    for format in ("safetensors", "torch"):
        with CheckpointManager(run / format, format=format) as manager:
            manager.save(1, tree)
            manager.wait()
            found = manager.load(1).torch(copy=True)
        assert all(torch.equal(found[name], tree[name]) for name in tree)
        assert found["a"].data_ptr() == found["b"].data_ptr()


def test_a_save_that_fails_is_told_at_the_next_call_and_training_goes_on(run: Path, at: At) -> None:
    with CheckpointManager(run, retries=0) as manager:
        manager.save(1, at(1))
        manager.wait()
        shutil.rmtree(run)
        run.write_text("in the way")
        manager.save(2, at(2))
        with pytest.raises(FileError, match="step 2 was not saved"):
            manager.wait()
        run.unlink()
        run.mkdir()
        manager.save(3, at(3))
        manager.wait()
        assert manager.steps() == [3]


def test_a_save_that_fails_leaves_the_with_block_with_its_error(run: Path, at: At) -> None:
    def loop() -> None:
        with CheckpointManager(run, retries=0) as manager:
            manager.save(1, at(1))
            manager.wait()
            shutil.rmtree(run)
            run.write_text("in the way")
            manager.save(2, at(2))

    with pytest.raises(FileError, match="step 2 was not saved"):
        loop()


def test_what_cannot_be_saved_is_an_error_at_once_with_its_path(run: Path) -> None:
    with CheckpointManager(run) as manager:
        with pytest.raises(statedict.errors.UnsupportedError, match=r"model\.thread"):
            manager.save(1, {"model": {"thread": logging.getLogger().handle}})
        assert manager.save(1, {"model": {"w": numpy.ones(2)}})


def test_steps_with_the_same_weights_are_warned_of(run: Path, at: At) -> None:
    tree = at(1)
    with CheckpointManager(run) as manager:
        for step in (1, 2):
            tree["epoch"] = step
            manager.save(step, {**tree, "rng": statedict.rng()})
        with pytest.warns(UserWarning, match="steps 1 and 2 have the same weights"):
            manager.wait()


def test_what_is_not_captured_is_said_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(2, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4)), shuffle=True)
    tree: dict[str, Any] = {"model": model, "data": {"loader": loader, "seen": 70}, "epoch": 7}
    with CheckpointManager(run) as manager:
        for step in (1, 2):
            torch.nn.init.normal_(model.weight)
            manager.save(step, tree)
    said = [record.getMessage() for record in caplog.records if "not captured" in record.getMessage()]
    assert len(said) == 2
    assert "data.loader: a torch.utils.data.dataloader.DataLoader without state_dict()" in said[0]
    assert "random generators; put statedict.rng() into the tree" in said[1]
    assert len(json.loads((run / "2" / "manifest.json").read_text())["not_captured"]) == 2
    tree["epoch"], tree["data"]["seen"] = 8, 80
    assert CheckpointManager(run).restore(tree).step == 2
    assert (tree["epoch"], tree["data"]["seen"], tree["data"]["loader"]) == (7, 70, loader)


def test_a_rehearsal_leaves_nothing_and_tells_of_a_disk_that_is_too_small(run: Path, at: At) -> None:
    CheckpointManager(run, check=at(1)).close()
    assert os.listdir(run) in ([], [".lock"])
    with pytest.raises(statedict.errors.UnsupportedError, match="thread"):
        CheckpointManager(run, check={"thread": logging.getLogger().handle})
    file = run.parent / "large"
    with open(file, "wb") as sparse:
        sparse.truncate(os.statvfs(run).f_bavail * os.statvfs(run).f_frsize // 3)
    with pytest.raises(FileError, match=r"4 checkpoints of .* have to fit"):
        CheckpointManager(run, keep=3, check={"w": numpy.memmap(file, "u1", "r")})


def test_arguments_that_make_no_sense_are_refused(run: Path, at: At) -> None:
    for wrong in ({"format": "onnx"}, {"busy": "drop"}, {"verify": "twice"}, {"existing": "?"}, {"in_flight": 0}):
        with pytest.raises(RunError):
            CheckpointManager(run, **wrong)  # type: ignore[arg-type]
    for wrong_keep in (0, -1, 1.5, "all", [], statedict.runs.LatestN, [0], [statedict.runs.EveryNSteps(2), "x"]):
        with pytest.raises(RunError, match=r"keep|n="):
            CheckpointManager(run, keep=wrong_keep)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="save_every"):
        CheckpointManager(run, save_every=statedict.runs.LatestN(2))  # type: ignore[arg-type]
    for step in (-1, 1.5, "1", True, None):
        with pytest.raises(RunError, match="expected a whole number"):
            CheckpointManager(run).save(step, at(1))  # type: ignore[arg-type]


SIGNALLED = """
import os, sys, signal, numpy, statedict
with statedict.CheckpointManager(sys.argv[1], save_every=1000, preemption=True) as manager:
    for step in range(10_000):
        manager.save(step, {"w": numpy.full(3, step), "step": step})
        if step == 7:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_at_the_end_of_the_step_and_ends_with_the_usual_status(
    run: Path, name: str, status: int
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(run), name], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (status, "")
    manager = CheckpointManager(run)
    assert manager.steps() == [0, 8]
    assert manager.load()["step"] == 8


def test_replacing_a_checkpoint_by_one_with_the_same_weights_and_other_metrics_is_no_reason_to_warn(
    run: Path, at: At
) -> None:
    with CheckpointManager(run) as manager:
        manager.save(1, at(1))
        manager.save(1, at(1), {"loss": 2.0}, overwrite=True)
        manager.wait()
        assert manager.metrics(1) == {"loss": 2.0}
