"""What a manager does in a process made by fork: it works or says why not, and never hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from statedict import CheckpointManager

START = """
import os, signal, sys, time
import numpy, statedict

HELD = sys.argv[1] + ".held"  # while it is there, nothing is written

def slowly(fd, data, at, write=os.pwrite, process=os.getpid()):
    while os.getpid() == process and os.path.exists(HELD):
        time.sleep(0.05)
    if os.path.exists(sys.argv[1] + ".full"):
        raise OSError(28, "No space left on device")
    return write(fd, data, at)

os.pwrite = slowly
tree = {f"w{i}": numpy.full(1 << 18, i, "f4") for i in range(2)}
manager = statedict.CheckpointManager(sys.argv[1], keep=5, retries=0)
manager.save(1, tree, {"loss": 1.0})
manager.wait()
if sys.argv[2] == "under way":
    open(HELD, "w").close()
    tree["w1"] += 1
    manager.save(2, tree)

def fork(call):
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends the child by a signal
        try:
            print(call())
        except statedict.StateDictError as error:
            print(f"{type(error).__name__}: {error}")
        sys.exit(3)
    sys.stdout.flush()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def leave():
    with manager:
        pass
"""
CALLS = {  # what of the manager is called, and what comes of it; None where it is the same without a save under way
    "directory": ("manager.directory", "run", None),
    "preempted": ("manager.preempted", "False", None),
    "not_captured": ("manager.not_captured", "()", None),
    "should_save": ("manager.should_save(3)", "True", None),
    "save": ("manager.save(3, tree)", "RunError: RUN: this process is a fork", None),
    "steps": ("manager.steps()", "[1]", None),
    "latest": ("manager.latest()", "1", None),
    "best": ("manager.best('loss')", "1", None),
    "metrics": ("manager.metrics(1)", "{'loss': 1.0}", None),
    "load": ("manager.load(1)['w1'].numpy()[0]", "1.0", None),
    "restore": ("manager.restore(tree, step=1)", "restored 2 of 2", "RunError: this process is a fork"),
    "prune": ("manager.prune()", "RunError: RUN/.lock: process", "RunError: this process is a fork"),
    "wait": ("manager.wait()", "None", "RunError: this process is a fork"),
    "close": ("manager.close()", "None", None),
    "with": ("leave()", "None", None),
}


def run_forking(run: Path, when: str, code: str) -> str:
    # newer Pythons warn of every fork of a process that has threads
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + code, str(run), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("when", ["under way", "over"])
def test_every_method_works_or_says_why_not(when: str, run: Path) -> None:
    calls = "".join(f"print(fork(lambda: {code}))\n" for code, _, _ in CALLS.values())
    begin = "sys.stdout.reconfigure(line_buffering=True)\n"
    end = "if os.path.exists(HELD): os.remove(HELD)\nmanager.close()\n"
    out = run_forking(run, when, begin + calls + end)
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    for (name, (_, free, busy)), answer, status in zip(CALLS.items(), lines[::2], lines[1::2], strict=True):
        expected = busy if busy is not None and when == "under way" else free
        assert expected.replace("RUN", str(run)) in answer, name
        assert status == "3", name
    assert CheckpointManager(run).steps() == ([1, 2] if when == "under way" else [1])


def test_no_method_is_left_out() -> None:
    public = {name for name in dir(CheckpointManager) if not name.startswith("_")}
    assert public <= CALLS.keys()


def test_workers_of_a_loader_that_are_forked_while_a_save_is_under_way_end(run: Path) -> None:
    out = run_forking(
        run,
        "under way",
        """
import torch
class Data(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return i, manager.latest()
loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
print(sorted(int(i) for i, _ in loader))
os.remove(HELD)
manager.close()
""",
    )
    assert out == "[0, 1, 2, 3, 4, 5]\n"
    found = CheckpointManager(run)
    assert found.steps() == [1, 2]
    assert found.latest() == 2


def test_a_fork_that_ends_tells_nothing_of_what_its_parent_was_not_told(run: Path) -> None:
    code = """
import logging
logging.getLogger("statedict.runs").addHandler(logging.NullHandler())
open(sys.argv[1] + ".full", "w").close()
manager.save(2, tree)
manager._background.wait()
print(fork(lambda: 0), flush=True)
try:
    manager.wait()
except statedict.errors.FileError as error:
    print(error)
"""
    child, status, told = run_forking(run, "over", code).splitlines()
    assert (child, status) == ("0", "3")
    assert "step 2 was not saved" in told
