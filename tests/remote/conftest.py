from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict

from .servers import Server, WithoutRanges, WithRanges, serving


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    """A server of `tmp_path` that sends ranges."""
    with serving(tmp_path, WithRanges) as server:
        yield server


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Server]:
    """A server of `tmp_path` that does not."""
    with serving(tmp_path, WithoutRanges) as server:
        yield server


@pytest.fixture
def state() -> dict[str, Any]:
    random = numpy.random.default_rng(0)
    model = {f"layers.{i}.weight": random.standard_normal((64, 257), numpy.float32) for i in range(9)}
    model["layers.0.bias"] = random.standard_normal(7).astype("float16")
    return {"model": model, "epoch": 3, "big": random.integers(0, 255, (3 << 20) + 5).astype("uint8")}


@pytest.fixture
def files(tmp_path: Path, state: dict[str, Any]) -> Path:
    """A folder with the state as `a.pth`, `a.safetensors` and in shards."""
    statedict.save(state, tmp_path / "a.pth")
    statedict.save(state, tmp_path / "a.safetensors")
    statedict.save(state, tmp_path / "shards", max_shard_size="1MB")
    return tmp_path
