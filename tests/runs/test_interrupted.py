"""A part of the harness of interrupts; `python -m faults interrupts` sends a thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interrupts(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faults", "interrupts", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def test_an_interrupt_at_any_moment_touches_no_foreign_file_and_commits_nothing_wrong() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    done = interrupts("--count", "30", "--seed", seed)
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"


def test_the_harness_notices_threads_that_are_lost() -> None:
    done = interrupts("--count", "500", "--seed", "ci", "--lose-threads")
    assert done.returncode == 1, done.stdout + done.stderr
