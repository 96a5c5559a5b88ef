"""A run in an object store: committed by the marker, which is put there only if there is none."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from statedict import CheckpointManager, LazyTensor, Storage, dtype
from statedict.errors import MissingFileError, RunError
from statedict.io.source import ComputedSource
from statedict.runs.directory import Directory
from statedict.runs.manifest import Manifest
from statedict.testing.same import assert_same

At = Callable[[int], dict[str, Any]]
RUN = "s3://bucket/run"


def keys(s3: Any) -> list[str]:
    """All but the lock, which is left empty."""
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return [one["Key"] for one in found if one["Key"] != "run/.lock" or one["Size"]]


def saved(at: At, steps: Any, **options: Any) -> None:
    with CheckpointManager(RUN, **options) as manager:
        for step in steps:
            manager.save(step, at(step), {"loss": abs(step - 3)})


def test_what_was_saved_is_restored_from_a_store(s3: Any, at: At) -> None:
    saved(at, (1, 2, 10), keep=[2, 5])
    manager = CheckpointManager(RUN)
    assert manager.steps() == [1, 2, 10]
    assert (manager.latest(), manager.best("loss")) == (10, 2)
    tree = at(0)
    assert manager.restore(tree).step == 10
    assert_same(tree, at(10))
    assert keys(s3) == sorted(
        f"run/{step}/{name}" for step in (1, 2, 10) for name in ("COMMITTED", "checkpoint.safetensors", "manifest.json")
    )


def test_what_a_policy_does_not_keep_goes_from_a_store(s3: Any, at: At) -> None:
    saved(at, range(6), keep=2)
    assert CheckpointManager(RUN).steps() == [4, 5]
    assert len(keys(s3)) == 6


def test_what_has_no_marker_is_no_checkpoint_and_is_cleaned_by_who_writes_next(s3: Any, at: At) -> None:
    saved(at, (1, 2))
    s3.delete_object(Bucket="bucket", Key="run/2/COMMITTED")
    s3.put_object(Bucket="bucket", Key="run/9/mine", Body=b"1")
    manager = CheckpointManager(RUN)
    assert (manager.steps(), manager.latest()) == ([1], 1)
    with pytest.raises(MissingFileError, match="step 2 is not committed there"):
        manager.restore(at(0), step=2)
    with manager:
        manager.save(3, at(3))
    assert manager.steps() == [1, 3]
    assert "run/9/mine" in keys(s3)
    assert not any(key.startswith("run/2/") for key in keys(s3))


def test_damage_in_a_store_is_found_and_passed_over(s3: Any, at: At) -> None:
    saved(at, (1, 2))
    body = s3.get_object(Bucket="bucket", Key="run/2/checkpoint.safetensors")["Body"].read()
    s3.put_object(Bucket="bucket", Key="run/2/checkpoint.safetensors", Body=body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.warns(UserWarning, match="step 2 is passed over, it is damaged"):
        assert CheckpointManager(RUN).latest() == 1


def test_a_step_that_another_process_commits_meanwhile_is_not_replaced(s3: Any, at: At) -> None:
    saved(at, (1,))
    body = s3.get_object(Bucket="bucket", Key="run/1/COMMITTED")["Body"].read()

    def fill(start: int, buffer: memoryview) -> None:
        s3.put_object(Bucket="bucket", Key="run/2/COMMITTED", Body=body)
        buffer[:] = bytes(len(buffer))

    late = LazyTensor(dtype("uint8"), (8,), Storage(ComputedSource(8, fill), 0, 8))
    with pytest.raises(RunError, match="another process committed this step"):
        Directory(RUN).commit({"late": late}, Manifest(2, 0.0), "safetensors")
    assert s3.get_object(Bucket="bucket", Key="run/2/COMMITTED")["Body"].read() == body


def test_one_process_writes_into_a_store_at_a_time(s3: Any, at: At) -> None:
    saved(at, (1,))
    owner = {"host": "elsewhere", "pid": 7, "id": "x", "time": time.time()}
    s3.put_object(Bucket="bucket", Key="run/.lock", Body=json.dumps(owner).encode())
    manager = CheckpointManager(RUN, existing="continue")
    with pytest.raises(RunError, match="process 7 on elsewhere writes into this directory"):
        manager.save(2, at(2))
    s3.put_object(Bucket="bucket", Key="run/.lock", Body=json.dumps(owner | {"time": time.time() - 301}).encode())
    assert manager.save(2, at(2))
    found = json.loads(s3.get_object(Bucket="bucket", Key="run/.lock")["Body"].read())
    assert found["pid"] == os.getpid()
    manager.close()
    assert "run/.lock" not in keys(s3)


def test_a_rehearsal_in_a_store_leaves_nothing(s3: Any, at: At) -> None:
    CheckpointManager(RUN, check=at(1)).close()
    assert keys(s3) == []


def test_a_store_that_is_not_there_is_an_error_that_says_so(s3: Any, at: At) -> None:
    manager = CheckpointManager("s3://nowhere/run", background=False)
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        manager.save(1, at(1))


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"id": "before"}, True),  # of the process that had this number before its container was started again
        ({"host": "elsewhere", "time": 1e6}, True),
        ({"host": "elsewhere", "time": -301}, True),
        ({"host": "elsewhere", "time": 200}, False),
        ({"host": "elsewhere", "time": -200}, False),
        ({"pid": os.getppid(), "id": "another"}, False),
    ],
)
def test_a_lock_of_a_process_that_must_be_dead_locks_nobody_out(
    s3: Any, at: At, change: dict[str, Any], free: bool
) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": "another"} | change
    owner["time"] = time.time() + change.get("time", 0)
    s3.put_object(Bucket="bucket", Key="run/.lock", Body=json.dumps(owner).encode())
    with CheckpointManager(RUN) as manager:
        if free:
            assert manager.save(1, at(1))
        else:
            with pytest.raises(RunError, match=f"process {owner['pid']} on {owner['host']} writes into this directory"):
                manager.save(1, at(1))
