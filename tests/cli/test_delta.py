"""`statedict delta`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import statedict

from .conftest import Run


@pytest.fixture(autouse=True)
def _states(tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(0).standard_normal(5000).astype("f4"), "b": np.ones(3)}
    statedict.save(base, tmp_path / "base.safetensors")
    statedict.save(base | {"w": base["w"] * np.float32(1.001), "epoch": 2}, tmp_path / "tuned.safetensors")


def test_a_delta_is_made_and_applied_without_torch(run: Run, tmp_path: Path) -> None:
    made = run("delta", "make", "base.safetensors", "tuned.safetensors", "-o", "x.delta", torch=False)
    assert made.stdout.endswith("1 of 2 tensors as differences from base.safetensors\n"), made.stderr
    assert run("delta", "apply", "base.safetensors", "x.delta", "-o", "out.safetensors", torch=False).returncode == 0
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()
    shards = run("delta", "apply", "base.safetensors", "x.delta", "-o", "parts/", "--max-shard-size", "10kB")
    assert shards.returncode == 0, shards.stderr
    assert statedict.diff(tmp_path / "parts", tmp_path / "tuned.safetensors").same


def test_a_dry_run_writes_nothing_and_tells_the_size(run: Run, tmp_path: Path) -> None:
    record = json.loads(run("delta", "make", "base.safetensors", "tuned.safetensors", "--dry-run", "--json").stdout)
    assert (record["verb"], record["written"], record["deltas"]) == ("make", False, 1)
    assert record["nbytes"][1] < record["nbytes"][0]
    assert not (tmp_path / "x.delta").exists()
    done = run("delta", "make", "base.safetensors", "tuned.safetensors")
    assert (done.returncode, "name a file by -o OUT, or use --dry-run" in done.stderr) == (2, True)


def test_an_existing_file_stays_without_overwrite(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.delta").write_bytes(b"precious")
    done = run("delta", "make", "base.safetensors", "tuned.safetensors", "-o", "x.delta")
    assert (done.returncode, (tmp_path / "x.delta").read_bytes()) == (2, b"precious")
    assert "--overwrite" in done.stderr
    assert run("delta", "make", "base.safetensors", "tuned.safetensors", "-o", "x.delta", "--overwrite").returncode == 0


def test_a_delta_alone_names_its_base_and_the_remedy_is_shell(run: Run) -> None:
    run("delta", "make", "base.safetensors", "tuned.safetensors", "-o", "x.delta")
    assert "5,003 elements, a delta to base.safetensors\n" in run("show", "x.delta").stdout
    assert json.loads(run("show", "x.delta", "--json").stdout)["base"] == "base.safetensors"
    failed = run("convert", "x.delta", "y.pth")
    assert (
        "its base base.safetensors is not in it; read it by statedict delta apply BASE x.delta -o OUT" in failed.stderr
    )
    refused = run("delta", "apply", "base.safetensors", "tuned.safetensors", "-o", "out.pth")
    assert "not a delta; make one by statedict delta make BASE TUNED -o OUT" in refused.stderr
    other = run("delta", "apply", "tuned.safetensors", "x.delta", "-o", "out.pth")
    assert "x.delta: is a delta to base.safetensors with the digest" in other.stderr
    assert "note: a delta: its coded bytes are checked" in run("verify", "x.delta").stdout
