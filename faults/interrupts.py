"""Ctrl-C at random moments of saving and reading: no foreign file is touched, nothing wrong committed, nothing hangs.

    python -m faults interrupts --count 1000

A child saves 40 MB again and again, in each way there is, and reads it back, while it opens and closes other files,
which get the numbers of descriptors that were closed. This process sends it SIGINT at random moments, sometimes twice;
in between it looks at every file.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

import statedict

SIZE, PARTS = 40 << 20, 5  # bytes of a tree and its arrays
FOREIGN = 8
HANG = 120  # seconds without a sign
EVERY = 50  # interrupts between two looks
BEGUN, CAUGHT, WRONG = b"b", b"c", b"w"


# the child


def tree(number: int) -> dict[str, Any]:
    """What is saved for the n-th time: nothing but n."""
    return {f"w{i}": numpy.full(SIZE // PARTS // 4, number, "f4") for i in range(PARTS)} | {"number": number}


def number_of(found: Any) -> int:
    """Which one it is; AssertionError if it is a mixture."""
    number = int(found["number"])
    for i in range(PARTS):
        array = numpy.asarray(found[f"w{i}"])
        if array.nbytes != SIZE // PARTS or not (array == number).all():
            raise AssertionError(f"{number}: w{i} holds {numpy.unique(array)[:5]}")
    return number


class Child:
    """What is interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count(int(time.time() * 10) % 1_000_000)
        self.tree = tree(next(self.numbers))
        self.manager = self._manage("run", False)
        self.background = self._manage("background", True)
        threading.Thread(target=self._open_others, daemon=True).start()

    def _manage(self, name: str, background: bool) -> Any:
        return statedict.CheckpointManager(self.folder / name, keep=2, background=background, existing="continue")

    def loop(self) -> None:
        """Save and read, for ever."""
        jobs = [self._file("a.safetensors"), self._file("a.pth"), self._step, self._background_step, self._read]
        for job in itertools.cycle(jobs):
            number = next(self.numbers)
            for array in self.tree.values():
                if not isinstance(array, int):
                    array[:] = number
            self.tree["number"] = number
            os.write(1, BEGUN)
            job(number)

    def look_at_others(self) -> None:
        """Open them right after an interrupt, when descriptors have become free."""
        files = [open(self.folder / "foreign" / str(i), "r+b") for i in range(FOREIGN)]  # noqa: SIM115
        time.sleep(0.003)
        for file in files:
            file.close()

    def _open_others(self) -> None:
        for i in itertools.cycle(range(FOREIGN)):
            with open(self.folder / "foreign" / str(i), "r+b"):
                time.sleep(0.001)

    def _file(self, name: str) -> Callable[[int], object]:
        return lambda number: statedict.save(self.tree, self.folder / name, fsync=False)

    def _step(self, number: int) -> None:
        self.manager.save(number, self.tree)

    def _background_step(self, number: int) -> None:
        self.background.save(number, self.tree)
        self.background.wait()

    def _read(self, number: int) -> None:
        path = self.folder / "a.safetensors"
        if path.exists():
            buffers = {name: value.numpy(copy=True) for name, value in statedict.load(path).items() if name[0] == "w"}
            for buffer in buffers.values():
                buffer[:] = -1
            time.sleep(0.002)
            if any((buffer != -1).any() for buffer in buffers.values()):
                os.write(1, WRONG)


def run_child(folder: Path, sabotage: bool) -> None:
    """Work, and tell of each interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if sabotage:
        _lose_threads()
    child = Child(folder)
    while True:
        try:
            child.loop()
        except KeyboardInterrupt:
            child.look_at_others()
            os.write(1, CAUGHT)


def _lose_threads() -> None:
    """As if nobody had thought of interrupts; the harness has to notice."""
    from statedict.io import disk, parallel

    parallel._Pool.close = lambda self: None  # type: ignore[method-assign]
    disk.Descriptor.__enter__ = lambda self: self.fileno()  # type: ignore[method-assign]
    disk.Descriptor.__exit__ = lambda self, *_: None  # type: ignore[method-assign]


# who interrupts


class Harness:
    """Sends interrupts and looks.

    Attributes:
        outcomes: what became of them.
        broken: what must not be, in words.
    """

    def __init__(self, folder: Path, seed: str, sabotage: bool = False) -> None:
        self.folder, self.outcomes, self.broken = folder, Counter[str](), list[str]()
        self._random, self._sabotage = random.Random(seed), sabotage
        self._child: subprocess.Popen[bytes] | None = None
        self._jobs = 0  # that were begun since the last sign
        self._foreign = [os.urandom(1 << 16) for _ in range(FOREIGN)]
        (folder / "foreign").mkdir()
        for i, data in enumerate(self._foreign):
            (folder / "foreign" / str(i)).write_bytes(data)

    def run(self, count: int) -> None:
        """So many interrupts, or until something is broken."""
        for done in range(count):
            self._interrupt()
            if (done + 1) % EVERY == 0 or done + 1 == count:
                self._look()
            if self.broken:
                break
        self._end()

    def _interrupt(self) -> None:
        child = self._started()
        if not self._wait(child, BEGUN):
            return
        time.sleep(self._random.random() ** 2 * 0.3)
        child.send_signal(signal.SIGINT)
        if self._random.random() < 0.1:
            time.sleep(self._random.random() * 0.001)
            child.send_signal(signal.SIGINT)
            self.outcomes["twice"] += 1
        if self._wait(child, CAUGHT):
            self.outcomes["caught" if self._jobs < 30 else "ignored"] += 1

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, "-m", "faults", "interrupts", "--child", str(self.folder)]
            command += ["--lose-threads"] * self._sabotage
            log = open(self.folder / "log", "ab")  # noqa: SIM115
            self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
            log.close()
        return self._child

    def _wait(self, child: subprocess.Popen[bytes], sign: bytes) -> bool:
        """Read what the child tells until it is a sign; whether it came.

        An interrupt that comes in a `__del__` is ignored by Python, so the child may go on without one.
        """
        assert child.stdout is not None
        alarm = threading.Timer(HANG, self._hangs, [child])
        alarm.start()
        self._jobs = 0
        try:
            while (told := os.read(child.stdout.fileno(), 1)) != sign and self._jobs < 30:
                self._jobs += told == BEGUN
                if told == WRONG:
                    self.broken.append("a buffer was filled after its reading had ended")
                if not told:
                    self._child = None
                    if child.wait() not in (1, -signal.SIGINT):
                        self.broken.append(f"the child ended with {child.returncode}: {self._log()}")
                    self.outcomes["ended by the second one"] += 1
                    return False
            return True
        finally:
            alarm.cancel()

    def _hangs(self, child: subprocess.Popen[bytes]) -> None:
        child.send_signal(signal.SIGUSR1)
        time.sleep(1)
        self.broken.append("it hangs")
        child.kill()

    def _log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def _look(self) -> None:
        """Everything that is there, while nothing goes on."""
        self._end()
        for i, data in enumerate(self._foreign):
            if (self.folder / "foreign" / str(i)).read_bytes() != data:
                self.broken.append(f"foreign file {i} was written to")
        files = [*self.folder.glob("a.*")]
        for name in ("run", "background"):
            with statedict.CheckpointManager(self.folder / name) as manager:
                for step in manager.steps():
                    files.append(next(self.folder.glob(f"{name}/{step}/*.safetensors")))
                    if int(manager.load(step)["number"]) != step:
                        self.broken.append(f"step {step} is not what was saved")
        for file in files:
            if problems := statedict.verify(file).problems:
                self.broken.append(f"{file}: {problems[0]}")
            else:
                try:
                    number_of(statedict.load(file))
                except AssertionError as error:
                    self.broken.append(f"{file}: {error}")
        self.outcomes["files that were looked at"] += len(files) + FOREIGN

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser("python -m faults interrupts", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="so many interrupts (default 1000)")
    parser.add_argument("--seed", default="0", help="when they come (default 0)")
    parser.add_argument("--lose-threads", action="store_true", help="as if nobody had thought of it: must fail")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(sys.argv[2:])
    if options.child:
        run_child(options.child, options.lose_threads)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), options.seed, options.lose_threads)
        harness.run(options.count)
    print(", ".join(f"{what} {number:,}" for what, number in harness.outcomes.items()))
    for what in harness.broken:
        print(what)
    return int(bool(harness.broken))
