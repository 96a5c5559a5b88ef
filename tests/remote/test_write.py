"""What is written to a URL appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, ExistingFileError, FileError, UnsupportedError
from statedict.io.source import ComputedSource
from statedict.testing.same import assert_same

from .servers import Server

MB = 1 << 20


def keys(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]


def body(s3: Any, key: str) -> bytes:
    data: bytes = s3.get_object(Bucket="bucket", Key=key)["Body"].read()
    return data


def unfinished(s3: Any) -> list[Any]:
    found: list[Any] = s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    return found


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_saved_to_s3_has_the_bytes_of_the_file(files: Path, s3: Any, state: dict[str, Any], name: str) -> None:
    statedict.save(state, f"s3://bucket/deep/{name}")
    assert body(s3, f"deep/{name}") == (files / name).read_bytes()
    assert statedict.verify(f"s3://bucket/deep/{name}").ok


def test_large_ones_go_up_in_parts(s3: Any, tmp_path: Path) -> None:
    large = {f"w{i}": numpy.full(5 * MB, i, "uint8") for i in range(8)}
    for name in ("x.pth", "x.safetensors"):
        statedict.save(large, f"s3://bucket/{name}")
        statedict.save(large, tmp_path / name)
        assert body(s3, name) == (tmp_path / name).read_bytes()
        assert "-" in s3.head_object(Bucket="bucket", Key=name)["ETag"]  # of several parts


def test_shards_are_written_below_a_url(files: Path, s3: Any, state: dict[str, Any]) -> None:
    with ThreadPoolExecutor(2) as pool:
        statedict.save(state, "s3://bucket/one", max_shard_size="1MB", executor=pool)
    statedict.save(state, "s3://bucket/two", max_shard_size="1MB")
    names = sorted(os.listdir(files / "shards"))
    assert keys(s3) == [f"{folder}/{name}" for folder in ("one", "two") for name in names]
    for key in keys(s3):
        assert body(s3, key) == (files / "shards" / key.split("/")[1]).read_bytes()


def test_from_one_url_to_another_and_onto_itself(files: Path, s3: Any, web: Server) -> None:
    statedict.convert(f"{web.url}/a.pth", "s3://bucket/a.safetensors")
    assert body(s3, "a.safetensors") == (files / "a.safetensors").read_bytes()
    statedict.edit("s3://bucket/a.safetensors", None, [{"keep": "model.*"}])
    assert list(statedict.load("s3://bucket/a.safetensors")) == ["model"]
    state = statedict.load("s3://bucket/a.safetensors")
    statedict.save(state, "s3://bucket/a.safetensors")
    assert_same(statedict.load("s3://bucket/a.safetensors"), state)


def test_what_is_there_is_replaced_only_if_it_may_be(files: Path, s3: Any, state: dict[str, Any]) -> None:
    s3.put_object(Bucket="bucket", Key="a.pth", Body=b"old")
    with pytest.raises(ExistingFileError, match=r"s3://bucket/a.pth: exists and overwrite is off"):
        statedict.save(state, "s3://bucket/a.pth", overwrite=False)
    assert body(s3, "a.pth") == b"old"
    statedict.save(state, "s3://bucket/a.pth")
    assert body(s3, "a.pth") == (files / "a.pth").read_bytes()
    s3.put_object(Bucket="bucket", Key="one/model.safetensors.index.json", Body=b"old")
    with pytest.raises(ExistingFileError, match=r"index.json: exists and overwrite is off"):
        statedict.save(state, "s3://bucket/one", max_shard_size="1MB", overwrite=False)
    assert keys(s3) == ["a.pth", "one/model.safetensors.index.json"]


def failing(size: int, at: int) -> statedict.LazyTensor:
    def fill(offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > at:
            raise CorruptFileError("the source broke off")
        buffer[:] = bytes(len(buffer))

    return statedict.LazyTensor(
        statedict.dtype("uint8"), (size,), statedict.Storage(ComputedSource(size, fill), 0, size)
    )


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_write_that_fails_leaves_the_old_object_and_no_parts(s3: Any, name: str) -> None:
    s3.put_object(Bucket="bucket", Key=name, Body=b"old")
    with pytest.raises(CorruptFileError, match="the source broke off"):
        statedict.save({"x": failing(40 * MB, 30 * MB)}, f"s3://bucket/{name}")
    assert keys(s3) == [name]
    assert body(s3, name) == b"old"
    assert not unfinished(s3)


def test_shards_of_which_one_fails_are_taken_away_again(s3: Any) -> None:
    tree = {"a": numpy.zeros(MB), "x": failing(40 * MB, 30 * MB), "b": numpy.zeros(MB)}
    with pytest.raises(CorruptFileError, match="the source broke off"):
        statedict.save(tree, "s3://bucket/one", max_shard_size="10MB")
    assert not keys(s3)
    assert not unfinished(s3)


def test_a_failure_leaves_no_index_of_old_and_new_shards(s3: Any) -> None:
    statedict.save({"a": numpy.zeros(9 * MB, "uint8"), "b": numpy.zeros(MB)}, "s3://bucket/one", max_shard_size="10MB")
    assert "one/model.safetensors.index.json" in keys(s3)
    tree = {"a": numpy.ones(9 * MB, "uint8"), "x": failing(9 * MB, 3 * MB)}
    with pytest.raises(CorruptFileError, match="the source broke off"):
        statedict.save(tree, "s3://bucket/one", max_shard_size="10MB")
    assert "one/model.safetensors.index.json" not in keys(s3)
    statedict.save({"a": tree["a"], "b": numpy.ones(MB)}, "s3://bucket/one", max_shard_size="10MB")
    assert statedict.verify("s3://bucket/one").ok


def test_to_a_bucket_itself_nothing_is_written(s3: Any) -> None:
    with pytest.raises(FileError, match="s3://bucket: is a bucket; name an object in the bucket"):
        statedict.save({"x": numpy.zeros(3)}, "s3://bucket")
    assert not keys(s3)


@pytest.mark.parametrize("key", ["a//b", "a/./b", "a/../b"])
def test_a_key_that_cannot_be_used_is_named(s3: Any, key: str) -> None:
    for use in (statedict.load, lambda url: statedict.save({"x": numpy.zeros(3)}, url)):
        with pytest.raises(FileError, match=f"{key}.*: the key cannot be used: a part between its slashes is empty"):
            use(f"s3://bucket/{key}.pth")


def test_a_source_that_changes_between_its_two_readings_is_noticed(s3: Any) -> None:
    count = iter(range(1_000_000))

    def fill(offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes([next(count) % 251]) * len(buffer)

    tensor = statedict.LazyTensor(
        statedict.dtype("uint8"), (3 * MB,), statedict.Storage(ComputedSource(3 * MB, fill, "moving"), 0, 3 * MB)
    )
    with pytest.raises(CorruptFileError, match="moving: changed while it was read; nothing was written"):
        statedict.save({"x": tensor}, "s3://bucket/x.safetensors")
    assert not keys(s3)


def test_an_upload_that_the_server_refuses_says_so(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"s3://no-such-bucket/x.pth: there is no such bucket .*make it first"):
        statedict.save({"x": numpy.zeros(9 * MB)}, "s3://no-such-bucket/x.pth")


def test_to_a_plain_server_nothing_is_written(web: Server, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is read, not written; name a file, or an object of s3://"):
        statedict.save({"x": numpy.zeros(3)}, f"{web.url}/x.pth")
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(s3: Any, tmp_path: Path) -> None:
    code = (
        "import time, statedict\n"
        "from statedict.io.source import ComputedSource\n"
        "def fill(offset, buffer):\n"
        "    time.sleep(0.05); print(offset, flush=True); buffer[:] = bytes(len(buffer))\n"
        "size = 200 << 20\n"
        "kind = statedict.dtype('uint8')\n"
        "x = statedict.LazyTensor(kind, (size,), statedict.Storage(ComputedSource(size, fill), 0, size))\n"
        "statedict.save({'x': x}, 's3://bucket/x.pth')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    for _ in range(30):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    went_on, said = process.communicate(timeout=30)
    assert len(went_on.splitlines()) < 100  # of the 200 MB, which it does not compute to their end
    assert "KeyboardInterrupt" in said
    assert not keys(s3)
    assert not unfinished(s3)


def test_secrets_stand_in_no_error_and_no_pickle(
    s3: Any, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "v3ry-s3cr3t")
    statedict.save(state, "s3://bucket/a.pth")
    tensor = statedict.load("s3://bucket/a.pth")["big"]
    assert b"v3ry-s3cr3t" not in pickle.dumps(tensor)
    s3.delete_object(Bucket="bucket", Key="a.pth")
    with pytest.raises(FileError) as caught:
        tensor.numpy()
    assert "v3ry-s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_shards_in_a_store_are_not_written_over_what_they_are_read_from(s3: Any) -> None:
    statedict.save({f"w{i}": numpy.full(30_000, i) for i in range(4)}, "s3://bucket/one", max_shard_size="500kB")
    before = {key: body(s3, key) for key in keys(s3)}
    for options in ({"max_shard_size": "400kB"}, {"format": "distributed"}):
        with pytest.raises(UnsupportedError, match="is read while it is written, file by file; name another folder"):
            statedict.convert("s3://bucket/one", "s3://bucket/one", **options)
    assert {key: body(s3, key) for key in keys(s3)} == before
