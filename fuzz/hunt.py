"""The loop: forge, probe, count; in a process of its own, so that one that dies leaves its input behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

from fuzz import mutate
from fuzz.documents import LINK
from fuzz.mutate import Files
from fuzz.probe import Guard, Violation, warm
from fuzz.probe import probe as probe_data
from fuzz.real import of_real_tensors

WALL = 60  # seconds after which a process that counts nothing is stuck
ROUND = 5000  # inputs a process
KEPT = 2000  # inputs with an outcome of their own that are forged further


@dataclass
class Score:
    """What became of a target's inputs."""

    inputs: int = 0
    loaded: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: dict[str, str] = field(default_factory=dict)  # what happened → the folder with the input

    def add(self, other: Score) -> None:
        """Count another round of the same target."""
        self.inputs += other.inputs
        self.loaded += other.loaded
        self.seconds += other.seconds
        self.outcomes += other.outcomes
        known = {how.partition(": ")[0] for how in self.crashes}
        self.crashes |= {how: kept for how, kept in other.crashes.items() if how.partition(": ")[0] not in known}


def seeds(folder: Path) -> dict[str, list[Files]]:
    """What `fuzz.seeds` wrote, by target."""
    found: dict[str, list[Files]] = {}
    for name in sorted(folder.glob("*/*")):
        found.setdefault(name.parent.name, []).append(read(name))
    return found


def read(folder: Path) -> Files:
    """The files of an input, in folders too; links as what `put` makes them of."""
    found = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*"))}
    return {
        name: LINK + os.fsencode(file.readlink()) if file.is_symlink() else file.read_bytes()
        for name, file in found.items()
        if file.is_symlink() or file.is_file()
    }


def put(files: Files, folder: Path) -> None:
    """Make the files of an input all that a folder holds."""
    for file in folder.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()
    for name, data in files.items():
        file = folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if data.startswith(LINK):
                file.symlink_to(os.fsdecode(data.removeprefix(LINK)))
            elif not file.parent.resolve().is_relative_to(folder.resolve()):
                continue  # it would be written through a link
            else:
                file.write_bytes(data)
        except OSError:
            pass  # a name that is taken by now, or too long


def hunt(valid: list[Files], seed: str, seconds: float, most: int, crashes: Path, real: bool = False) -> Score:
    """Forge one target's seeds for a time or a number of inputs, in one process after the other.

    With `real` PyTorch's own tensors are made of them, too.
    """
    warm()
    score, until = Score(), time.monotonic() + seconds
    while score.inputs < most and time.monotonic() < until:
        score.add(_round(valid, f"{seed} {score.inputs}", until, min(ROUND, most - score.inputs), crashes, real))
    return score


def _round(valid: list[Files], seed: str, until: float, most: int, crashes: Path, real: bool) -> Score:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder, tally = Path(name, "input"), Path(name, "tally")
        folder.mkdir()
        start = time.monotonic()
        child = os.fork()
        if not child:
            run_child(lambda: _forge(valid, Random(seed), until, most, folder, tally, crashes, real))
        how = wait_for(child, tally)
        score = Score(**json.loads(tally.read_text())) if tally.exists() else Score()
        score.outcomes = Counter(score.outcomes)
        score.seconds = time.monotonic() - start
        if how:
            score.crashes[how] = _keep(folder, how, crashes)
        return score


def wait_for(child: int, tally: Path) -> str:
    """How the process died, or nothing."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError("the harness itself failed, as printed above")
            return f"dies of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
        if time.time() - max(tally.stat().st_mtime if tally.exists() else time.time(), _STARTED) > WALL:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"takes more than {WALL} s and cannot be interrupted"
        time.sleep(0.02)


_STARTED = time.time()


def run_child(work: Callable[[], None]) -> NoReturn:
    """What a forked process does, and no more."""
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _forge(
    valid: list[Files],
    random: Random,
    until: float,
    most: int,
    folder: Path,
    tally: Path,
    crashes: Path,
    real: bool,
) -> None:
    os.chdir(folder)
    probe = of_real_tensors() if real else probe_data
    guard = Guard(folder)
    score = Score()
    for files in valid:  # once more than `warm`: what only they make Python import is no finding
        put(files, folder)
        with contextlib.suppress(Violation):
            probe(str(folder / "input"), sum(map(len, files.values())), guard)
        probe(str(folder / "input"), sum(map(len, files.values())), guard)
    pool = list(valid)
    noted = time.monotonic()
    while score.inputs < most and time.monotonic() < until:
        files = forged(valid, pool, random)
        put(files, folder)
        score.inputs += 1
        try:
            outcome = probe(str(folder / "input"), sum(map(len, files.values())), guard)
            score.loaded += outcome.startswith("loaded")
            if outcome not in score.outcomes and len(pool) < KEPT:
                pool.append(files)
            score.outcomes[outcome] += 1
        except Violation as violation:
            how = str(violation)[:300]
            if how.partition(": ")[0] not in {known.partition(": ")[0] for known in score.crashes}:
                put(files, folder)
                score.crashes[how] = _keep(folder, how, crashes)
        if time.monotonic() - noted > 1 or score.inputs == most:
            noted = time.monotonic()
            tally.write_text(json.dumps(vars(score)))
    tally.write_text(json.dumps(vars(score)))


def forged(valid: list[Files], pool: list[Files], random: Random) -> Files:
    """One to eight changes of a valid input, or of one that had an outcome of its own."""
    files = random.choice(random.choice((valid, pool)))
    for _ in range(random.choice((1, 1, 1, 1, 2, 2, 3, 4, 6, 8))):
        files = mutate.mutated(files, random.choice(pool), random)
        if sum(map(len, files.values())) > 300_000:
            break
    return files


def _keep(folder: Path, how: str, crashes: Path) -> str:
    """Copy an input that broke something to where people find it."""
    import hashlib

    digest = hashlib.sha256(b"".join(read(folder).values())).hexdigest()[:12]
    kept = crashes / digest
    if not kept.exists():
        shutil.copytree(folder, kept, symlinks=True)
        (crashes / f"{digest}.txt").write_text(how + "\n")
    return str(kept)


def again(files: Files, real: bool = False) -> str:
    """What an input breaks, probed in a process of its own; nothing if it breaks nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder, said = Path(name, "input"), Path(name, "said")
        folder.mkdir()
        child = os.fork()
        if not child:
            run_child(lambda: _once(files, folder, said, real))
        return wait_for(child, said) or (said.read_text() if said.exists() else "")


def _once(files: Files, folder: Path, said: Path, real: bool) -> None:
    warm()
    probe = of_real_tensors() if real else probe_data
    put(files, folder)
    os.chdir(folder)
    try:
        probe(str(folder / "input"), sum(map(len, files.values())), Guard(folder))
    except Violation as violation:
        said.write_text(str(violation))


def smaller(files: Files, real: bool = False, seconds: float = 30.0) -> Files:
    """The files with as many bytes taken out as leave the same thing broken."""
    how = again(files, real)[:25]
    end = time.monotonic() + seconds
    for candidate in _without(lambda: files):
        if time.monotonic() > end:
            break
        if again(candidate, real)[:25] == how:
            files.clear()
            files.update(candidate)
    return files


def _without(current: object) -> Iterator[Files]:
    """The files with ever smaller blocks taken out, beginning from what `current()` is by then."""
    length = max(map(len, current().values()))  # type: ignore[operator]
    while length := length // 2:
        for name in list(current()):  # type: ignore[operator]
            at = 0
            while at < len(data := current()[name]):  # type: ignore[operator]
                yield {**current(), name: data[:at] + data[at + length :]}  # type: ignore[operator]
                at += length if current()[name] is data else 0  # type: ignore[operator]
