"""The libraries that people train with: real runs, killed and resumed. What holds is in the programs, `*_run.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_run_that_is_killed_goes_on_bit_for_bit_and_all_else_holds(library: str) -> None:
    program = ROOT / "tests" / "integrations" / f"{library}_run.py"
    command = [sys.executable, "-W", "ignore", "-m", "tests.integrations.forks", f"tests.integrations.{program.stem}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    held = [line for line in done.stdout.splitlines() if line.startswith("test_")]
    assert held == [line[4:].partition("(")[0] for line in program.read_text().splitlines() if line[:9] == "def test_"]


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; import statedict.integrations.{library}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (
        f"MissingExtraError: this takes {library.replace('l', 'L', 1) if library == 'lightning' else library}"
        in done.stderr
    )
    assert f"pip install 'statedict[{library}]'" in done.stderr
