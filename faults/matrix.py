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
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from faults import around, beside, calls, damage, power, store
from faults.shim import FAULTS, Fault
from faults.work import JOBS, LARGE, MODES, FaultError, Job, Mode

FALLBACK = Mode("torch", False, exchange=False)
OVERLAY = Mode(overlay=True)
BY_DAMAGE = tuple(damage.DAMAGES)
POWER = "loss of power after each call"
BESIDE = "readers beside a process that saves, replaces and prunes"
REPLACES = [job for job in JOBS if "over" in job.name or "anew" in job.name]

DEAR = 4  # times as long as others
SHARES = 10  # so many calls of those that write much data


@dataclass(frozen=True)
class Point:
    """One thing to try.

    Attributes:
        name: what it is.
        work: tries it.
        heavy: whether that needs torch.
    """

    name: str
    work: Callable[[], str]
    heavy: bool = False


@dataclass(frozen=True)
class Row:
    """A kind of fault.

    Attributes:
        name: of the fault.
        points: what is to be tried.
        dear: whether a point takes long, so that a part of the row is a smaller one.
    """

    name: str
    points: list[Point]
    dear: bool = False


@dataclass
class Score:
    """What became of a row."""

    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    def count(self, name: str, outcome: str, why: str) -> None:
        """What became of a point; of a loss of power, of how many directories."""
        number, _, _ = outcome.partition(" ")
        self.points += int(number) if number.isdigit() else 1
        self.outcomes["held" if number.isdigit() else outcome] += 1
        if why:
            self.broken[name] = why


def pairs() -> Iterator[tuple[Job, Mode]]:
    """Every job in one mode, the most common one in all, and some with much data and without exchanges of names."""
    usual = JOBS[1]
    yield from ((usual, mode) for mode in (*MODES, *LARGE))
    for n, job in enumerate(JOBS):
        if job is not usual:
            yield job, MODES[n % 2 * 3]
    yield from ((job, FALLBACK) for job in REPLACES)
    yield from ((job, OVERLAY) for job in JOBS[1:])


def rows(chosen: list[str]) -> Iterator[Row]:
    """The rows whose names hold one of some words; all if there are none."""
    for name, points in _all():
        if not chosen or any(word in name for word in chosen):
            yield Row(name, list(points()), name.startswith("a store"))


def _all() -> Iterator[tuple[str, Callable[[], Iterator[Point]]]]:
    for fault in FAULTS:
        yield fault.name, partial(_at_calls, fault)
    yield POWER, _at_power
    for name in BY_DAMAGE:
        yield name, partial(_at_rest, name)
    for name, (_, values) in around.ROWS.items():
        yield name, partial(_around, name, values)
    yield BESIDE, _beside
    for trouble in store.TROUBLES:
        yield trouble.name, partial(_at_requests, trouble)
    for name, (work, most) in store.SEVERAL.items():
        yield name, partial(_of_several, work, most)


def _at_calls(fault: Fault) -> Iterator[Point]:
    for job, mode in pairs():
        if mode.large:
            for n in range(SHARES):
                yield Point(f"{job.name}, {mode}, {n}/{SHARES}", partial(_share, job, mode, fault, n), True)
            continue
        for n in range(1, calls.count(job, mode, fault) + 1):
            yield Point(f"{job.name}, {mode}, call {n}", partial(calls.try_out, job, mode, fault, n))


def _share(job: Job, mode: Mode, fault: Fault, n: int) -> str:
    return calls.try_out(job, mode, fault, 1 + n * calls.count(job, mode, fault) // SHARES)


def _at_power() -> Iterator[Point]:
    for job, mode in pairs():
        if not mode.large:
            yield Point(f"{job.name}, {mode}", partial(_states, job, mode))


def _states(job: Job, mode: Mode) -> str:
    return f"{power.try_out(job, mode)} directories"


def _at_rest(name: str) -> Iterator[Point]:
    for mode in (MODES[0], MODES[2]):
        for place in damage.places(name, mode):
            step, file, at = place
            yield Point(f"{mode}, step {step}, {file}, {at}", partial(damage.try_out, name, mode, *place))


def _around(name: str, values: tuple[object, ...]) -> Iterator[Point]:
    for mode, value in itertools.product((MODES[0], MODES[3]), values):
        yield Point(f"{mode}, {value}", partial(around.try_out, name, mode, value), name in around.HEAVY)


def _beside() -> Iterator[Point]:
    for n, mode, verb in itertools.product(range(6), beside.WAYS, beside.VERBS):
        yield Point(f"{verb.__name__.lstrip('_')}, {mode}, {n}", partial(beside.try_out, verb, mode))


def _at_requests(trouble: store.Trouble) -> Iterator[Point]:
    for job, mode in store.PAIRS:
        for n in range(1, store.count(job, mode) + 1):
            yield Point(f"{job.name}, {mode}, request {n}", partial(store.at_request, job, mode, trouble, n))


def _of_several(work: Callable[[Mode, store.Trouble, int], str], most: int) -> Iterator[Point]:
    for trouble, n in itertools.product(store.PASSING, range(1, most + 1)):
        yield Point(f"{trouble.name}, request {n}", partial(work, MODES[n % 2 * 3], trouble, n))


def spread(points: list[Point], most: int, seed: str) -> list[Point]:
    """At most so many of a row's points, spread over it; which ones depends on the seed."""
    if len(points) <= most:
        return points
    chance, step = random.Random(seed), len(points) / most
    return [points[min(len(points) - 1, int((n + chance.random()) * step))] for n in range(most)]


def run(chosen: list[str], job: str, most: int, seed: str, jobs: int) -> Iterator[tuple[str, Score]]:
    """Carry out rows, of jobs with a word in their name; yields each with its score once it is done."""
    folder = tempfile.mkdtemp(dir=calls.MEMORY, prefix="faults-")
    calls.TEMPLATES.append(folder)
    try:
        found = [
            (row.name, spread(points, -(-most // (DEAR if row.dear else 1)), seed + row.name))
            for row in rows(chosen)
            if (points := [point for point in row.points if job in point.name])
        ]
        _points.extend(point for _, points in found for point in points)
        heavy = [point.heavy for point in _points]
        context = multiprocessing.get_context("fork")
        with ExitStack() as stack:
            light = stack.enter_context(context.Pool(jobs))
            few = light.imap(_try, [n for n, torch in enumerate(heavy) if not torch], chunksize=4)
            if any(heavy):
                _import_torch()
                many = stack.enter_context(context.Pool(1)).imap(_try, [n for n, torch in enumerate(heavy) if torch])
            for name, points in found:
                score = Score()
                for point in points:
                    score.count(point.name, *next(many if point.heavy else few))
                yield name, score
    finally:
        store.stop()
        shutil.rmtree(folder, ignore_errors=True)


_points: list[Point] = []


def _try(n: int) -> tuple[str, str]:
    try:
        return _points[n].work(), ""
    except FaultError as error:
        return "broken", str(error)
    except Exception as error:
        return "broken", f"the harness itself: {type(error).__name__}: {error}"


def _import_torch() -> None:
    """Once, before processes fork; those that do not need it are there by now, for with it a fork takes long."""
    import torch

    torch.set_num_threads(1)


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
    from statedict.io import disk

    disk.sync_directory = lambda directory: None


def _no_digests() -> None:
    from statedict.runs.directory import Directory

    Directory.damage = lambda self, step, level="full": None  # type: ignore[method-assign]


SABOTAGE = {  # what takes away a thing on which a guarantee rests, to see that the harness notices
    "files": _no_sync_of_files,
    "folders": _no_sync_of_folders,
    "digests": _no_digests,
}
