from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "checkpoint.pth"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `statedict ARGUMENTS` as a process in a directory with the example checkpoint, with or without torch."""
    shutil.copy(EXAMPLE, tmp_path)

    def command(*arguments: str, torch: bool = True) -> subprocess.CompletedProcess[str]:
        absent = "" if torch else "import sys; sys.modules['torch'] = None"
        program = f"{absent}\nfrom statedict.cli import main\nmain()"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return command
