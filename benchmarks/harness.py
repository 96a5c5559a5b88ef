"""Peer and ours in turn, each run in a process of its own, medians of several runs, printed as ratios."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
RUNS_A_CHILD = 3
SYNC = "import os\nif os.path.exists(out): os.unlink(out)\nos.sync()"
"""Before a timed save: no dirty pages of the other side, which would throttle this one's writes."""


@dataclass(frozen=True)
class Side:
    """One of the two programs that are compared: Python source that sees `path` and `out`."""

    name: str
    run: str
    setup: str = ""
    before: str = ""


@dataclass(frozen=True)
class Row:
    """One claim: `ours` is at least `target` times as fast as `peer`.

    `new_process` times the whole process, its start and its imports included; otherwise `run` is timed alone, in a
    process that has run it once before. `most` bounds our peak resident memory, in megabytes, `within` our seconds.
    Without a peer our time alone is of interest.
    """

    name: str
    data: str
    peer: Side | None
    ours: Side
    target: float | None = None
    new_process: bool = False
    most: float | None = None
    within: float | None = None
    leaner: float | None = None
    """How many times less memory we take than the peer."""
    first: bool = False
    """Time the first run in a process, into memory that the system has to find, instead of later ones."""


@dataclass
class Samples:
    """What the runs of one side took."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        """Largest resident memory of any run, in megabytes."""
        return max(self.megabytes)


@dataclass
class Result:
    """Both sides of a row."""

    row: Row
    peer: Samples = field(default_factory=Samples)
    ours: Samples = field(default_factory=Samples)

    @property
    def ratio(self) -> float:
        """How many times faster we are."""
        return self.peer.median / self.ours.median if self.row.peer else math.nan

    @property
    def verdict(self) -> str:
        """One word."""
        if self.peer.error or self.ours.error:
            return "error"
        slow = self.row.target is not None and round(self.ratio, 2) < self.row.target
        slow |= self.row.within is not None and self.ours.median > self.row.within
        fat = self.row.most is not None and self.ours.peak > self.row.most
        fat |= self.row.leaner is not None and self.ours.peak * self.row.leaner > self.peer.peak
        claims = (self.row.target, self.row.most, self.row.within, self.row.leaner)
        return "FAIL" if slow or fat else "pass" if any(claim is not None for claim in claims) else "–"


def environment() -> dict[str, str]:
    """The children's environment: with compiled modules, whatever the shell says, and one way of hashing."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONHASHSEED": "0"}


def measure(row: Row, directory: Path, runs: int) -> Result:
    """Run both sides in turn until each has `runs` runs or a few more; whole processes after one untimed start."""
    result = Result(row)
    rounds = runs + 1 if row.new_process else -(-runs // _runs_a_child(row))
    for number in range(rounds):
        for side, samples in ((row.peer, result.peer), (row.ours, result.ours)):
            if side is None or samples.error:
                continue
            try:
                seconds, megabytes = (_process if row.new_process else _timed)(side, row, directory)
            except RuntimeError as error:
                samples.error = str(error)
                continue
            if number or not row.new_process:
                samples.seconds += seconds
                samples.megabytes.append(megabytes)
    return result


def _runs_a_child(row: Row) -> int:
    return 1 if row.first else RUNS_A_CHILD


def _process(side: Side, row: Row, directory: Path) -> tuple[list[float], float]:
    """Wall clock and peak resident memory of `python -c`, from start to end."""
    code = f"path = {str(directory / row.data)!r}\n{side.run}"
    with open(os.devnull, "w") as null, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-c", code], stdout=null, stderr=errors, env=environment())
        _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(_last_line(errors.read().decode()))
    return [took], usage.ru_maxrss / 1024


def _timed(side: Side, row: Row, directory: Path) -> tuple[list[float], float]:
    """Seconds of each `side.run` in a fresh process that has run it once, and the process's peak resident memory."""
    out = directory / f"out{Path(row.data).suffix}"
    job = {
        "setup": side.setup,
        "before": side.before,
        "run": side.run,
        "runs": _runs_a_child(row),
        "warm": not row.first,
    }
    job |= {"path": str(directory / row.data), "out": str(out)}
    command = [sys.executable, "-P", str(HERE / "child.py")]
    child = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, env=environment(), check=False
    )
    for left in directory.glob(f"{out.name}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if child.returncode:
        raise RuntimeError(_last_line(child.stderr))
    found = json.loads(child.stdout.splitlines()[-1])
    return found["seconds"], found["megabytes"]


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it failed without a word")


COLUMNS = ("job", "peer", "seconds", "MB", "ours", "MB", "ratio", "target", "")


def cells(result: Result) -> tuple[str, ...]:
    """A result as a line of the table."""
    row, peer, ours = result.row, result.peer, result.ours
    claims = (
        (row.target, "≥ {:g}×"),
        (row.within, "< {:g} s"),
        (row.most, "< {:,.0f} MB"),
        (row.leaner, "≤ 1/{:g} MB"),
    )
    target = ", ".join(text.format(claim) for claim, text in claims if claim is not None)
    if peer.error or ours.error:
        what = f"{'peer' if peer.error else 'ours'}: {peer.error or ours.error}"
        return (row.name, row.peer.name if row.peer else "", "", "", "", "", what[:100], target, "error")
    return (
        row.name,
        *((row.peer.name, _seconds(peer.median), f"{peer.peak:,.0f}") if row.peer else ("", "", "")),
        _seconds(ours.median),
        f"{ours.peak:,.0f}",
        f"{result.ratio:.2f}×" if row.peer else "",
        target,
        result.verdict,
    )


def markdown(lines: Iterable[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> str:
    """A table for the terminal that is also one for a page."""
    table = [columns, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([drawn[0], rule, *drawn[1:]])


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.5f}"


def as_json(result: Result) -> dict[str, object]:
    """A result with every run of it."""
    return {
        "job": result.row.name,
        "peer": {"name": result.row.peer.name, **vars(result.peer)} if result.row.peer else None,
        "ours": {"name": result.row.ours.name, **vars(result.ours)},
        "target": result.row.target,
        "most_megabytes": result.row.most,
        "ratio": result.ratio if result.row.peer and result.verdict != "error" else None,
        "verdict": result.verdict,
    }
