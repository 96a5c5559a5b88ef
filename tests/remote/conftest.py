from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict

from .servers import Server, WithoutRanges, WithRanges, serving


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of that server, with an empty bucket called `bucket`."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield client
    for one in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=one["Key"])
    client.delete_bucket(Bucket="bucket")


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
