from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run, not made yet."""
    return tmp_path / "run"


@pytest.fixture
def at() -> Callable[[int], dict[str, Any]]:
    """The tree of a step."""

    def tree(step: int) -> dict[str, Any]:
        random = numpy.random.default_rng(step)
        return {
            "model": {"w": random.standard_normal((8, 5), numpy.float32), "b": random.standard_normal(5)},
            "epoch": step,
        }

    return tree
