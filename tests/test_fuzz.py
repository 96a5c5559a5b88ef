"""A short run of the fuzzing harness; `make fuzz` runs it for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_no_forged_file_does_more_than_be_read_or_refused() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    done = fuzz("--seed", seed, "--inputs", "60", "--seconds", "12")
    assert done.returncode == 0, f"python -m fuzz --seed {seed} --inputs 60\n{done.stdout}\n{done.stderr}"
    together = re.search(r"^together +([\d,]+) .*? (\d+)%", done.stdout, re.MULTILINE)
    assert together, done.stdout
    assert int(together[1].replace(",", "")) > 100
    assert 1 < int(together[2]) < 90  # neither all damage nor none


def test_a_target_that_does_not_exist_is_a_usage_error() -> None:
    done = fuzz("nothing")
    assert done.returncode == 2
    assert "there are torch, torchscript, legacy" in done.stderr
