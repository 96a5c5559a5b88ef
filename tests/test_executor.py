"""`executor=`: the same bytes, carried out elsewhere, and nothing half-written when a worker dies."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import UnsupportedError, WorkerError
from statedict.io.location import location
from statedict.io.source import ComputedSource

# a cluster of dask closes its sockets when it likes
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

MB = 1 << 20
STEPS: list[dict[str, Any]] = [
    {"rename": {"layers.{n}.qkv": "blocks.{n}.qkv"}},
    {"split": "blocks.{n}.qkv", "into": ["blocks.{n}.q", "blocks.{n}.k", "blocks.{n}.v"]},
    {"cast": "bf16"},
    {"transpose": "blocks.*.q"},
    {"slice": "blocks.*.k", "index": ":,1:9"},
    {"pad": "blocks.*.v", "shape": [200, -1]},
    {"fuse": ["blocks.{n}.q", "blocks.{n}.k"], "into": "blocks.{n}.qk", "dim": 1},
]


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    """Of a cluster of two processes."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    random = numpy.random.default_rng(0)
    tree: dict[str, Any] = {f"layers.{n}.qkv": random.standard_normal((384, 128), numpy.float32) for n in range(40)}
    tree |= {f"small.{n}": random.standard_normal(9, numpy.float32) for n in range(3000)}
    tree["large"] = random.integers(0, 255, 9 * MB + 3).astype("uint8")
    statedict.save(tree, tmp_path / "in", max_shard_size="3MB")
    return tmp_path / "in"


@pytest.mark.parametrize("kind", ["processes", "dask", "threads"])
def test_an_executor_makes_the_same_bytes(
    kind: str, sharded: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    executor: Executor = ThreadPoolExecutor(3) if kind == "threads" else request.getfixturevalue(kind)
    for name in ("a.pth", "a.safetensors"):
        statedict.convert(sharded, tmp_path / f"here-{name}")
        statedict.convert(sharded, tmp_path / f"there-{name}", executor=executor)
        assert (tmp_path / f"here-{name}").read_bytes() == (tmp_path / f"there-{name}").read_bytes()
    statedict.convert(sharded, tmp_path / "here", max_shard_size="2MB")
    statedict.convert(sharded, tmp_path / "there", max_shard_size="2MB", executor=executor)
    names = sorted(os.listdir(tmp_path / "here"))
    assert len(names) > 5
    assert sorted(os.listdir(tmp_path / "there")) == names
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_what_is_computed_is_computed_elsewhere_too(
    kind: str, sharded: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    statedict.edit(sharded, tmp_path / "here.safetensors", STEPS)
    statedict.edit(sharded, tmp_path / "there.safetensors", STEPS, executor=request.getfixturevalue(kind))
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


def _die(offset: int, buffer: memoryview) -> None:
    if offset + len(buffer) > 2 * MB:
        os.kill(os.getpid(), signal.SIGKILL)
    buffer[:] = bytes(len(buffer))


def deadly() -> dict[str, Any]:
    """A tree of which one tensor kills who reads it to its end."""
    storage = statedict.Storage(ComputedSource(4 * MB, _die), 0, 4 * MB)
    return {"good": numpy.zeros(MB), "bad": statedict.LazyTensor(statedict.dtype("uint8"), (4 * MB,), storage)}


def test_a_worker_that_dies_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"old")
    for path, options in (("a.pth", {}), ("shards", {"max_shard_size": "9MB"})):
        with (
            ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
            pytest.raises(WorkerError, match="a worker of the executor died; what was there is unchanged"),
        ):
            statedict.save(deadly(), tmp_path / path, executor=pool, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_bytes() == b"old"


def test_a_machine_of_dask_that_dies_leaves_nothing_half_written(tmp_path: Path) -> None:
    import dask
    from dask.distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50) as few,
        Client(few) as client,
        pytest.raises(WorkerError, match="a worker of the executor died"),
    ):
        statedict.save(deadly(), tmp_path / "a.pth", executor=client.get_executor())
    assert not list(tmp_path.iterdir())


def test_what_live_arrays_hold_goes_to_the_workers(processes: Executor, tmp_path: Path) -> None:
    tree = {"w": numpy.arange(3 * MB, dtype="uint8"), "v": numpy.ones((4, 4))}
    statedict.save(tree, tmp_path / "here.pth")
    statedict.save(tree, tmp_path / "there.pth", executor=processes)
    assert (tmp_path / "here.pth").read_bytes() == (tmp_path / "there.pth").read_bytes()


def test_a_job_is_small_however_large_the_file(sharded: Path) -> None:
    tensor = statedict.load(sharded)["large"]
    assert len(pickle.dumps(tensor)) < 1_000


def test_processes_made_by_fork_are_refused_for_what_is_far_away(tmp_path: Path) -> None:
    def fill(offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))

    far = ComputedSource(MB, fill, "far", remote=True)
    tensor = statedict.LazyTensor(statedict.dtype("uint8"), (MB,), statedict.Storage(far, 0, MB))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as forks:
        with pytest.raises(UnsupportedError, match=r'ProcessPoolExecutor\(mp_context=multi.*get_context\("spawn"\)\)'):
            statedict.save({"x": tensor}, tmp_path / "a.pth", executor=forks)
        with pytest.raises(UnsupportedError, match="made by fork cannot reach a URL"):
            location("s3://bucket/a").publish_folder({"x": lambda sink: None}, executor=forks)
    assert not list(tmp_path.iterdir())
