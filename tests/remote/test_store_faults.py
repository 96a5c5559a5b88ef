"""A store whose answers get lost: what was written is known to be, and what is another's stays so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from faults.proxy import Proxy

import statedict
from statedict import CheckpointManager
from statedict.errors import FileError, MissingFileError, RunError
from statedict.io.remote import connect
from statedict.runs import background as retry
from statedict.runs.lock import Lease
from statedict.testing.same import assert_same

RUN = "s3://bucket/run"
LOCK = "PUT /bucket/run/.lock"
FAULTS = ["answer lost", "request lost", "refused", "refused and done", "slow"]
TREE = {"w": numpy.arange(6, dtype="f4"), "step": 1}


@pytest.fixture
def proxy(s3: Any, moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    found = Proxy(moto)
    found.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    monkeypatch.setenv("STATEDICT_TIMEOUT", "1")
    monkeypatch.setenv("STATEDICT_RETRIES", "1")
    monkeypatch.setattr(retry, "_PAUSE", 0.001)
    yield found
    found.stop()


def body(s3: Any, key: str) -> bytes:
    return bytes(s3.get_object(Bucket="bucket", Key=key)["Body"].read())


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_conditional_write_has_written_is_known_whatever_becomes_of_the_answer(
    s3: Any, proxy: Proxy, fault: str
) -> None:
    one = connect("s3://bucket/one")
    proxy.arm(fault, 1, "")
    version = one.write_if(b"first", None)
    assert version is not None
    assert proxy.fired
    assert body(s3, "one") == b"first"
    assert one.write_if(b"other", None) is None
    proxy.arm(fault, 1, "")
    newer = one.write_if(b"second", version)
    assert newer is not None
    assert proxy.fired
    assert one.write_if(b"third", version) is None
    assert body(s3, "one") == b"second"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_is_not_locked_out_by_itself(s3: Any, proxy: Proxy, fault: str) -> None:
    proxy.arm(fault, 1, "", LOCK)
    with CheckpointManager(RUN, background=False) as manager:
        assert manager.save(1, TREE)
        assert json.loads(body(s3, "run/.lock"))["pid"] == os.getpid()
    assert proxy.fired
    assert body(s3, "run/.lock") == b""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_marker_whose_answer_is_lost_has_committed_its_step(s3: Any, proxy: Proxy, fault: str) -> None:
    proxy.arm(fault, 1, "", "PUT /bucket/run/1/COMMITTED")
    with CheckpointManager(RUN, background=False) as manager:
        assert manager.save(1, TREE)
        assert manager.latest() == 1
    assert proxy.fired


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [None, TREE, TREE | {"w": numpy.zeros(6, "f4")}])
def test_an_upload_whose_last_answer_is_late_or_lost_is_there(s3: Any, proxy: Proxy, fault: str, before: Any) -> None:
    if before is not None:
        statedict.save(before, "s3://bucket/a.safetensors")
    proxy.arm(fault, 1, "", "POST /bucket/a.safetensors?uploadId=")
    statedict.save(TREE, "s3://bucket/a.safetensors")
    assert proxy.fired
    assert_same(statedict.load("s3://bucket/a.safetensors"), TREE)


@pytest.mark.parametrize("before", [None, {"w": numpy.zeros(6, "f4"), "step": 1}])
def test_an_upload_that_the_server_has_forgotten_is_not_called_a_missing_bucket(
    s3: Any, proxy: Proxy, before: Any
) -> None:
    if before is not None:  # of the same size
        statedict.save(before, "s3://bucket/a.safetensors")

    class Forgets:
        def __contains__(self, upload: object) -> bool:
            return True

        def add(self, upload: object) -> None:
            pass

    proxy.completed = Forgets()  # type: ignore[assignment]
    with pytest.raises(FileError, match=r"the server has ended the upload \(404\)") as caught:
        statedict.save(TREE, "s3://bucket/a.safetensors")
    assert not isinstance(caught.value, MissingFileError)
    assert connect("s3://bucket/a.safetensors").exists() == (before is not None)


def test_codes_tell_a_missing_bucket_from_a_missing_upload(s3: Any, proxy: Proxy) -> None:
    with pytest.raises(MissingFileError, match="no such bucket"):
        statedict.save(TREE, "s3://nowhere/NoSuchUpload.safetensors")
    with pytest.raises(MissingFileError, match="no such object"):
        statedict.load("s3://bucket/NoSuchBucket.safetensors")
    with pytest.raises(MissingFileError, match="no such bucket"):
        connect("s3://nowhere/a").write_if(b"x", None)


def elsewhere(**more: Any) -> bytes:
    return json.dumps({"host": "elsewhere", "pid": 7, "id": "x", "time": time.time()} | more).encode()


def test_a_lease_that_was_stolen_is_noticed_before_anything_is_written_and_is_not_given_back(
    s3: Any, proxy: Proxy
) -> None:
    manager = CheckpointManager(RUN, background=False)
    manager.save(1, TREE)
    theirs = elsewhere()
    s3.put_object(Bucket="bucket", Key="run/.lock", Body=theirs)
    s3.put_object(Bucket="bucket", Key="run/2/checkpoint.safetensors", Body=b"theirs")
    with pytest.raises(RunError, match="process 7 on elsewhere"):
        manager.save(2, TREE)
    with pytest.raises(RunError, match="process 7 on elsewhere"):
        manager.save(2, TREE)
    manager.close()
    assert body(s3, "run/.lock") == theirs
    assert body(s3, "run/2/checkpoint.safetensors") == b"theirs"


def test_a_lease_that_another_has_given_back_is_taken_anew_and_what_they_saved_is_seen(s3: Any, proxy: Proxy) -> None:
    manager = CheckpointManager(RUN, background=False)
    manager.save(1, TREE)
    held = body(s3, "run/.lock")
    s3.delete_object(Bucket="bucket", Key="run/.lock")
    code = (
        "from statedict import CheckpointManager\n"
        f"with CheckpointManager({RUN!r}, existing='continue') as manager:\n"
        "    manager.save(7, {'s': 7})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert held != body(s3, "run/.lock") == b""
    with pytest.raises(RunError):
        manager.save(2, TREE)
    with pytest.raises(RunError, match="has step 7, which is not before step 2"):
        manager.save(2, TREE)
    assert manager.save(8, {"w": numpy.ones(6, "f4")})
    manager.close()
    assert manager.steps() == [1, 7, 8]


def test_of_several_who_want_a_lock_that_has_run_out_one_gets_it(s3: Any, proxy: Proxy) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def take(n: int) -> bool:
        try:
            Lease(f"{RUN}/.lock", {"host": f"host{n}", "pid": os.getpid(), "id": str(n)})
        except RunError:
            return False
        return True

    for _ in range(5):
        s3.put_object(Bucket="bucket", Key="run/.lock", Body=elsewhere(time=time.time() - 301))
        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(take, range(6))) == 1
