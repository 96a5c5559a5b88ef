"""A part of each row of the matrix of faults; `make faults` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def faults(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faults", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def rows(table: str) -> dict[str, int]:
    """Fault → how many were broken, of a matrix in Markdown."""
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: int(row[-1]) for row in cells if row[-1].isdecimal()}


def test_whatever_happens_a_whole_checkpoint_is_found_and_the_process_is_told() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    done = faults("--points", "8", "--seed", seed, "--jobs", "2")
    assert done.returncode == 0, f"python -m faults --points 8 --seed {seed}\n{done.stdout}\n{done.stderr}"
    found = rows(done.stdout)
    assert len(found) > 20
    assert found.keys() == rows(PAGE.read_text().partition("made by python -m faults")[2]).keys(), "run make faults"


@pytest.mark.parametrize(
    ("what", "row", "points"),
    [("files", "loss of power", "2"), ("folders", "loss of power", "2"), ("digests", "a bit of a byte", "24")],
)
def test_the_harness_notices_what_is_missing(what: str, row: str, points: str) -> None:
    done = faults(row, "--points", points, "--seed", "ci", "--without", what)
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_word_in_no_row_is_a_usage_error() -> None:
    done = faults("nothing")
    assert done.returncode == 2
    assert "no row or job has such a word" in done.stderr
