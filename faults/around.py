"""What goes on around a run: clocks that jump, disks that are slow or small, other processes, damaged lock files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.calls import PATIENCE, apart, scratch
from faults.shim import BYTES, Fault, Shim
from faults.work import FaultError, Manager, Mode, tidy, tree
from statedict.errors import FileError, RunError
from statedict.runs import EveryNSeconds, LatestN
from statedict.runs.lock import _held as held

YEAR = 365 * 86400
SLOW = Fault("slow", "delay", BYTES)


def clock(mode: Mode, jump: float) -> None:
    """The clock is set between saves; order, newest and what is kept do not follow it."""
    shim = Shim()
    with scratch() as folder:
        manager = Manager(
            folder, keep=[LatestN(2), EveryNSeconds(3600)], format=mode.format, background=mode.background
        )
        for step, offset in enumerate((0, jump, 0, -jump, jump / 2), 1):
            shim.clock(offset)
            manager.save(step, tree(step))
            manager.wait()
            _expect(manager.latest(), step)
            if step > 1:
                _expect(manager.steps()[-2:], [step - 1, step])
        manager.close()
        shim.clock(-jump)
        resumed = Manager(folder, format=mode.format, background=mode.background)
        target = tree(0)
        _expect(resumed.restore(target).step, 5)
        _expect(str(target), str(tree(5)))
        tidy(folder)


def due(mode: Mode, jump: float) -> None:
    """What is due after so many seconds goes by a clock that nobody sets."""
    shim = Shim()
    with scratch() as folder:
        manager = Manager(folder, save_every=EveryNSeconds(1000), format=mode.format, background=mode.background)
        shim.clock(jump)
        _expect(manager.save(1, tree(1)), False)
        manager.close()


def slow(mode: Mode, busy: str) -> None:
    """`save` returns while the disk is still writing; the second waits, or is left out."""
    shim, pause = Shim(), 0.1
    with scratch() as folder:
        manager = Manager(folder, keep=2, format=mode.format, background=True, busy=busy)
        manager.save(1, tree(1))
        manager.wait()
        shim.arm(folder, SLOW, 1)
        shim.delay(pause)
        began = time.monotonic()
        _expect(manager.save(2, tree(2)), True)
        first = time.monotonic() - began
        _expect(manager.save(3, tree(3)), busy == "wait")
        second = time.monotonic() - began
        manager.wait()
        shim.disarm()
        whole = time.monotonic() - began
        if first > whole / 3 or (busy == "wait") != (second > whole / 3):
            raise FaultError(f"save took {first:.2f} s, the next one {second:.2f} s, all of it {whole:.2f} s")
        _expect(manager.steps(), [2, 3] if busy == "wait" else [1, 2])
        manager.close()
        tidy(folder)


def room(mode: Mode, nbytes: int) -> None:
    """A disk that is too small is known before training begins, and leaves nothing behind."""
    shim = Shim()
    with scratch() as folder:
        shim.room(nbytes)
        try:
            Manager(folder, keep=3, format=mode.format, check=tree(1, True))
        except FileError as error:
            shim.room(-1)
            _expect(error.errno, 28)
            _expect("bytes" in str(error) and str(folder) in str(error), True)
        else:
            raise FaultError(f"{nbytes:,} bytes are free, four checkpoints of 20 MB have to fit, and nothing was said")
        tidy(folder)
        Manager(folder, keep=3, format=mode.format, check=tree(1, True)).close()
        tidy(folder)


def mounted(mode: Mode, size: int) -> str:
    """A disk that is really full: a file system of a few megabytes. Needs the right to mount one."""
    with scratch() as folder:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
        )
        if done.returncode:
            return "not allowed here"
        try:
            _fill_up(folder, mode)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    return "held"


def overlay(mode: Mode, what: str) -> str:
    """A run in a lower layer of overlayfs goes on in an upper one. Needs the right to mount one."""
    with scratch() as above:
        for name in ("lower", "upper", "work", "run"):
            (above / name).mkdir()
        with Manager(above / "lower", format=mode.format, background=False) as manager:
            for step in (1, 2, 3):
                manager.save(step, tree(step))
        layers = ",".join(f"{name}dir={above / name}" for name in ("lower", "upper", "work"))
        done = subprocess.run(
            ["mount", "-t", "overlay", "-o", layers, "none", above / "run"], capture_output=True, check=False
        )
        if done.returncode:
            return "not allowed here"
        try:
            _in_a_layer(above / "run", mode, what)
        finally:
            subprocess.run(["umount", "-l", above / "run"], check=True)
    return "held"


def _in_a_layer(folder: Path, mode: Mode, what: str) -> None:
    manager = Manager(folder, keep=2, existing=what, format=mode.format, background=mode.background)
    target = tree(0)
    if what == "continue":
        _expect(manager.restore(target).step, 3)
        manager.save(3, tree(9), overwrite=True, force=True)
        manager.wait()
        _expect(manager.steps(), [2, 3])
        _expect((manager.restore(target).step, str(target)), (3, str(tree(9))))
    manager.save(4, tree(4))
    manager.wait()
    _expect(manager.steps(), [4] if what == "replace" else [3, 4])
    manager.save(5, tree(5))
    manager.close()
    _expect(manager.steps(), [4, 5])
    _expect((manager.restore(target).step, str(target)), (5, str(tree(5))))
    tidy(folder)


def _fill_up(folder: Path, mode: Mode) -> None:
    manager = Manager(folder, format=mode.format, background=mode.background, busy="wait")
    saved = 0
    try:
        for step in range(1, 50):
            manager.save(step, tree(step, True))
            manager.wait()
            saved = step
    except FileError as error:
        _expect(error.errno, 28)
        _expect(f"step {saved + 1}" in str(error), True)
    _expect(0 < saved < 49, True)
    _expect(manager.latest(), saved)
    manager.close()
    tidy(folder)


def two(mode: Mode, what: int) -> None:
    """A second process is told who writes; when the first is killed, it may."""
    with scratch() as folder:
        owner = _owner(folder, mode, 1)
        try:
            _refused(folder, mode, owner)
            LOCKS[what](folder / ".lock")
            _refused(folder, mode, None)
        finally:
            _kill(owner)
        manager = Manager(folder, existing="continue", format=mode.format, background=mode.background)
        manager.save(2, tree(2))
        manager.close()
        _expect(manager.steps(), [1, 2])
        tidy(folder)


def stolen(mode: Mode, step: int) -> None:
    """The lock file is deleted, and another process begins: the first one is told at its next save."""
    with scratch() as folder:
        first = Manager(folder, format=mode.format, background=mode.background)
        first.save(1, tree(1))
        first.wait()
        (folder / ".lock").unlink()
        second = _owner(folder, mode, step)
        try:
            first.save(3, tree(3))
        except RunError as error:
            _expect(f"process {second} on" in str(error), True)
        else:
            raise FaultError("two processes write into one directory")
        finally:
            _kill(second)
        first.save(3, tree(3))
        first.close()
        _expect(first.latest(), 3)
        tidy(folder)


def _owner(folder: Path, mode: Mode, step: int) -> int:
    """A process that has saved a step and does not end."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        held.clear()  # a process that was started, not forked, knows of no locks
        manager = Manager(folder, existing="continue", format=mode.format, background=mode.background)
        manager.save(step, tree(step))
        manager.wait()
        os.write(writer, b"x")
        time.sleep(PATIENCE)
        os._exit(0)
    os.close(writer)
    _expect(os.read(reader, 1), b"x")
    os.close(reader)
    return child


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _refused(folder: Path, mode: Mode, owner: int | None) -> None:
    manager = Manager(folder, existing="continue", format=mode.format, background=mode.background)
    _expect(manager.latest(), 1)  # reading is for all
    try:
        manager.save(2, tree(2))
    except RunError as error:
        if owner is not None:
            _expect(f"process {owner} on" in str(error), True)
        return
    raise FaultError("two processes write into one directory")


LOCKS: tuple[Callable[[Path], object], ...] = (
    lambda lock: None,
    lambda lock: lock.write_bytes(b""),
    lambda lock: lock.write_bytes(b"\xff{" * 5000),
    lambda lock: lock.write_text('{"pid": "x", "host": []}'),
)


def _expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise FaultError(f"expected {wanted!r}, got {got!r}")


ROWS: dict[str, tuple[Callable[[Mode, Any], str | None], tuple[Any, ...]]] = {
    "the clock jumps": (clock, (3600, -3600, 10 * YEAR, -10 * YEAR)),
    "the clock jumps, and saves go by seconds": (due, (YEAR, -YEAR)),
    "the disk is slow": (slow, ("wait", "skip")),
    "the disk is too small for what will be kept": (room, (70 << 20, 10 << 20, 0)),
    "the disk is full, a real one": (mounted, (50 << 20, 85 << 20)),
    "the run is in a lower layer of overlayfs, a real one": (overlay, ("continue", "replace")),
    "two processes, the first is killed; its lock file is damaged": (two, (0, 1, 2, 3)),
    "the lock file is deleted, and a second process begins": (stolen, (2,)),
}


HEAVY = tuple(name for name, (work, _) in ROWS.items() if work in (room, mounted))


def try_out(name: str, mode: Mode, value: object) -> str:
    """Carry out a row in a process of its own; "held".

    Raises:
        FaultError: something does not hold.
    """
    work, _ = ROWS[name]
    return apart(lambda: work(mode, value)) or "held"
