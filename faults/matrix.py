"""The rows of the matrix, and how their points are carried out: in one process for each core, forked from this one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from faults import around, calls, damage, power
from faults.shim import FAULTS, Fault
from faults.work import JOBS, LARGE, MODES, FaultError, Job, Mode

FALLBACK = Mode("torch", False, exchange=False)
BY_DAMAGE = tuple(damage.DAMAGES)
POWER = "loss of power after each call"
REPLACES = [job for job in JOBS if "over" in job.name or "anew" in job.name]

SPARSE = 5  # of the calls that write much data every fifth

Point = Callable[[], str]


@dataclass
class Row:
    """A kind of fault.

    Attributes:
        name: of the fault.
        points: what is to be tried, each with its name.
    """

    name: str
    points: list[tuple[str, Point]] = field(default_factory=list)


@dataclass
class Score:
    """What became of a row."""

    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)


def pairs() -> Iterator[tuple[Job, Mode]]:
    """Every job in one mode, the most common one in all, and some with much data and without exchanges of names."""
    usual = JOBS[1]
    yield from ((usual, mode) for mode in (*MODES, *LARGE))
    for n, job in enumerate(JOBS):
        if job is not usual:
            yield job, MODES[n % 2 * 3]
    yield from ((job, FALLBACK) for job in REPLACES)


def rows(chosen: list[str]) -> Iterator[Row]:
    """The rows whose names hold one of some words; all if there are none."""
    for name, points in _all():
        if not chosen or any(word in name for word in chosen):
            yield Row(name, list(points()))


def _all() -> Iterator[tuple[str, Callable[[], Iterator[tuple[str, Point]]]]]:
    for fault in FAULTS:
        yield fault.name, partial(_at_calls, fault)
    yield POWER, _at_power
    for name in BY_DAMAGE:
        yield name, partial(_at_rest, name)
    for name, (_, values) in around.ROWS.items():
        yield name, partial(_around, name, values)


def _at_calls(fault: Fault) -> Iterator[tuple[str, Point]]:
    for job, mode in pairs():
        for n in range(1, calls.count(job, mode, fault) + 1, SPARSE if mode.large else 1):
            yield f"{job.name}, {mode}, call {n}", partial(calls.try_out, job, mode, fault, n)


def _at_power() -> Iterator[tuple[str, Point]]:
    for job, mode in pairs():
        if not mode.large:
            yield f"{job.name}, {mode}", partial(_states, job, mode)


def _states(job: Job, mode: Mode) -> str:
    return f"{power.try_out(job, mode)} directories"


def _at_rest(name: str) -> Iterator[tuple[str, Point]]:
    for mode in (MODES[0], MODES[2]):
        for place in damage.places(name, mode):
            yield f"{mode}, step {place[0]}, {place[1]}, {place[2]}", partial(damage.try_out, name, mode, *place)


def _around(name: str, values: tuple[object, ...]) -> Iterator[tuple[str, Point]]:
    for mode, value in itertools.product((MODES[0], MODES[3]), values):
        yield f"{mode}, {value}", partial(around.try_out, name, mode, value)


def spread(points: list[tuple[str, Point]], most: int, seed: str) -> list[tuple[str, Point]]:
    """At most so many of a row's points, spread over it; which ones depends on the seed."""
    if len(points) <= most:
        return points
    chance, step = random.Random(seed), len(points) / most
    return [points[min(len(points) - 1, int((n + chance.random()) * step))] for n in range(most)]


def run(chosen: list[str], most: int, seed: str, jobs: int) -> Iterator[tuple[str, Score]]:
    """Carry out rows; yields each with its score once it is done."""
    global _points
    folder = tempfile.mkdtemp(dir=calls.MEMORY, prefix="faults-")
    calls.TEMPLATES.append(folder)
    try:
        found = [(row.name, spread(row.points, most, seed + row.name)) for row in rows(chosen)]
        _points = [point for _, points in found for point in points]
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            results = pool.imap(_try, range(len(_points)), chunksize=1 if most < 100 else 8)
            for name, points in found:
                score = Score()
                for what, _ in points:
                    outcome, why = next(results)
                    score.points += int(outcome.split()[0]) if outcome[:1].isdigit() else 1
                    score.outcomes["held" if outcome[:1].isdigit() else outcome] += 1
                    if why:
                        score.broken[what] = why
                yield name, score
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_points: list[tuple[str, Point]] = []


def _try(n: int) -> tuple[str, str]:
    try:
        return _points[n][1](), ""
    except FaultError as error:
        return "broken", str(error)
    except Exception as error:
        return "broken", f"the harness itself: {type(error).__name__}: {error}"


def table(scores: dict[str, Score]) -> str:
    """The matrix, as docs/reliability.md has it."""
    lines = ["| fault | tried | what came of it | broken |", "|---|---:|---|---:|"]
    for name, score in scores.items():
        came = ", ".join(f"{what} {count:,}" for what, count in score.outcomes.most_common() if what != "broken")
        lines.append(f"| {name} | {score.points:,} | {came} | {len(score.broken)} |")
    together = sum(score.points for score in scores.values())
    lines.append(f"| together | {together:,} | | {sum(len(score.broken) for score in scores.values())} |")
    return "\n".join(lines)


def _no_sync_of_files() -> None:
    real = os.fsync
    os.fsync = lambda fd: real(fd) if os.path.isdir(f"/proc/self/fd/{fd}") else None


def _no_sync_of_folders() -> None:
    from statedict.io import atomic

    atomic.sync_directory = lambda directory: None


def _no_digests() -> None:
    from statedict.runs.directory import Directory

    Directory.damage = lambda self, step, level="full": None  # type: ignore[method-assign]


SABOTAGE = {  # what takes away a thing on which a guarantee rests, to see that the harness notices
    "files": _no_sync_of_files,
    "folders": _no_sync_of_folders,
    "digests": _no_digests,
}
