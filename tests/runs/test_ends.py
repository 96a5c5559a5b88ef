"""A save that nobody waits for is finished whatever ends the program, and a failure changes its status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from statedict import CheckpointManager

SMALL, LARGE = 1, 24  # MB of the tree: one job, and enough for several threads in each of several jobs
START = """
import logging, multiprocessing, os, signal, sys, threading, time
import numpy, statedict

logging.getLogger("statedict.runs").addHandler(logging.NullHandler())

def save(folder, size, failing=False, manager=None):
    tree = {f"w{i}": numpy.full(size << 17, i, "f4") for i in range(2)} | {"step": 1}
    if manager is None:
        manager = statedict.CheckpointManager(folder, retries=0)
    if failing:
        writes = os.pwrite
        def pwrite(fd, data, at):
            if len(data) > 1000:
                raise OSError(28, "No space left on device")
            return writes(fd, data, at)
        os.pwrite = pwrite
    manager.save(1, tree)
    return manager

def child(how, arguments):
    process = multiprocessing.get_context(how).Process(target=save, args=arguments)
    process.start()
    process.join()
    sys.exit(process.exitcode)

def fork(arguments):
    pid = os.fork()
    if not pid:
        save(*arguments)
    else:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def run(thread):
    thread.start()
    thread.join()

def late(*arguments):
    threading.main_thread().join()
    time.sleep(0.1)  # by now the interpreter gives no threads any more, in some versions
    save(*arguments)

if __name__ == "__main__":
    what = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "failing"
"""
ENDS = {  # how a process ends: the code, and the status when the save succeeds
    "the end of the script": ("save(*what)", 0),
    "the end with a manager that lives": ("manager = save(*what)", 0),
    "del": ("manager = save(*what); del manager", 0),
    "sys.exit": ("save(*what); sys.exit(0)", 0),
    "sys.exit with a status": ("save(*what); sys.exit(7)", 7),
    "sys.exit in a with-block": (
        "with statedict.CheckpointManager(what[0], retries=0) as manager: save(*what, manager); sys.exit()",
        0,
    ),
    "an exception in a with-block": (
        "with statedict.CheckpointManager(what[0], retries=0) as manager: save(*what, manager); 1 / 0",
        1,
    ),
    "an uncaught exception": ("save(*what); 1 / 0", 1),
    "an interrupt": ("save(*what); raise KeyboardInterrupt", -2),
    "a thread that saves": ("threading.Thread(target=save, args=what).start()", 0),
    "a daemon that saves": ("thread = threading.Thread(target=save, args=what, daemon=True); run(thread)", 0),
    "a thread that saves after the main thread": ("threading.Thread(target=late, args=what).start()", 0),
    "atexit": ("import atexit; atexit.register(save, *what)", 0),
    "a child of multiprocessing, by fork": ("child('fork', what)", 0),
    "a child of multiprocessing, by spawn": ("child('spawn', what)", 0),
    "a child of multiprocessing, by forkserver": ("child('forkserver', what)", 0),
    "a fork": ("fork(what)", 0),
}  # fmt: skip


def end(code: str, *arguments: object, script: Path) -> subprocess.CompletedProcess[str]:
    script.write_text(f"{START}    {code}\n")
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("how", ENDS)
def test_a_save_that_nobody_waits_for_is_finished(how: str, size: int, run: Path, tmp_path: Path) -> None:
    code, status = ENDS[how]
    done = end(code, run, size, "fine", script=tmp_path / "script.py")
    assert done.returncode == status, done.stderr
    assert "not all was saved" not in done.stderr
    found = CheckpointManager(run)
    assert found.latest() == 1
    assert float(found.load()["w1"].numpy()[-1]) == 1
    assert not [*run.glob(".1*")]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("how", ENDS)
def test_one_that_fails_ends_the_program_with_a_message_and_a_status(
    how: str, size: int, run: Path, tmp_path: Path
) -> None:
    done = end(ENDS[how][0], run, size, "failing", script=tmp_path / "script.py")
    assert done.returncode != 0
    assert "step 1 was not saved" in done.stderr
    assert "No space left on device" in done.stderr
    assert CheckpointManager(run).latest() is None


def test_one_that_somebody_was_told_of_does_not(run: Path, tmp_path: Path) -> None:
    code = """manager = save(*what)
    try:
        manager.wait()
    except OSError as error:
        print(error)"""
    done = end(code, run, SMALL, "failing", script=tmp_path / "script.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1 was not saved" in done.stdout


def test_an_error_is_not_taken_for_another_that_was_freed(run: Path, tmp_path: Path) -> None:
    code = """save(*what)
    from statedict.runs.background import Background
    for number in range(30):
        Background(1)._run(lambda: open(f"/nowhere/{number}"))"""
    done = end(code, run, SMALL, "failing", script=tmp_path / "script.py")
    assert all(f"'/nowhere/{number}'" in done.stderr for number in range(30))
    assert done.returncode == 120
    assert "step 1 was not saved" in done.stderr


def test_all_that_failed_together_are_told_together(run: Path, tmp_path: Path) -> None:
    code = """manager = statedict.CheckpointManager(what[0], retries=0, in_flight=2)
    writes, write, hold = os.pwrite, manager._write, threading.Event()
    manager._write = lambda *what: (hold.wait(), write(*what))
    save(*what, manager)
    manager.save(2, {"w": numpy.ones(9000)})
    hold.set()
    try:
        manager.wait()
    except OSError as error:
        print(error, *error.__notes__)
    os.pwrite = writes
    manager.save(3, {"w": numpy.ones(9000)})"""
    done = end(code, run, SMALL, "failing", script=tmp_path / "script.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1 was not saved" in done.stdout
    assert "and another save failed: " in done.stdout
    assert "step 2 was not saved" in done.stdout
    assert CheckpointManager(run).steps() == [3]


@pytest.mark.parametrize("close", ["steps.close()", "del steps"])
def test_one_that_fails_where_a_generator_is_closed_changes_the_status(close: str, run: Path, tmp_path: Path) -> None:
    code = f"""def train():
        with statedict.CheckpointManager(what[0], retries=0) as manager:
            save(*what, manager)
            yield 1
    steps = train()
    next(steps)
    {close}"""
    done = end(code, run, SMALL, "failing", script=tmp_path / "script.py")
    assert done.returncode == 120
    assert "step 1 was not saved" in done.stderr


def test_one_that_fails_where_a_task_is_cancelled_changes_the_status(run: Path, tmp_path: Path) -> None:
    code = """import asyncio
    async def train():
        with statedict.CheckpointManager(what[0], retries=0) as manager:
            save(*what, manager)
            await asyncio.sleep(60)
    async def main():
        task = asyncio.create_task(train())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    asyncio.run(main())"""
    done = end(code, run, SMALL, "failing", script=tmp_path / "script.py")
    assert done.returncode == 120
    assert "step 1 was not saved" in done.stderr


def test_an_interrupt_while_the_end_of_the_program_waits_is_told_once(run: Path, tmp_path: Path) -> None:
    code = """manager = statedict.CheckpointManager(what[0])
    def interrupt(*_):
        from statedict.runs import background
        while not background._STATE["ending"]:
            time.sleep(0.01)
        time.sleep(0.2)  # by now it waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    manager._write = interrupt
    manager.save(1, {"w": 1.0})"""
    done = end(code, run, SMALL, "fine", script=tmp_path / "script.py")
    assert done.returncode == 120
    assert done.stderr.count("not all was saved:") == 1
