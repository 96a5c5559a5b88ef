"""A published file is there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import statedict
from statedict.errors import ExistingFileError, FileError, MissingFileError
from statedict.io.disk import sync_directory
from statedict.io.location import Location
from statedict.io.pipeline import FileSink
from statedict.io.source import ComputedSource


def publish(path: str, write: Any, **options: Any) -> None:
    Location(path).publish(write, **options)


def content(data: bytes) -> Any:
    return lambda sink: os.write(sink.fd, data)


def failing(error: BaseException) -> Any:
    def write(sink: FileSink) -> None:
        os.write(sink.fd, b"half")
        raise error

    return write


@pytest.mark.parametrize("fsync", [False, True])
def test_the_file_appears_with_its_bytes_and_nothing_beside_it(tmp_path: Path, fsync: bool) -> None:
    publish(str(tmp_path / "a"), content(b"one"), fsync=fsync)
    publish(str(tmp_path / "a"), content(b"two"), fsync=fsync)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_bare_name_goes_into_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish("bare", content(b"x"))
    assert (tmp_path / "bare").read_bytes() == b"x"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError(), FileError("ours")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_what_was_there_and_no_temporary(tmp_path: Path, error: BaseException, existing: bool) -> None:
    if existing:
        (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        publish(str(tmp_path / "a"), failing(error))
    assert caught.value is error
    assert os.listdir(tmp_path) == ["a"] * existing
    assert not existing or (tmp_path / "a").read_bytes() == b"old"


def test_an_error_of_the_file_system_says_that_nothing_changed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"a: cannot write \(what was there is unchanged\): No space left on device"):
        publish(str(tmp_path / "a"), failing(OSError(28, "No space left on device")))
    assert not os.listdir(tmp_path)


def test_a_reader_meanwhile_sees_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    seen = []

    def write(sink: FileSink) -> None:
        os.write(sink.fd, b"new")
        seen.append((tmp_path / "a").read_bytes())
        seen.extend(name for name in os.listdir(tmp_path) if name != "a")

    publish(str(tmp_path / "a"), write)
    assert seen[0] == b"old"
    assert seen[1].startswith(".a.")
    assert seen[1].endswith(".tmp")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_process_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    script = (
        "import os, sys; from statedict.io.location import Location\n"
        "Location(sys.argv[1]).publish(lambda sink: (os.write(sink.fd, b'half'), os.kill(os.getpid(), 9)))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False).returncode == -9
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_existing_file_is_kept_where_overwriting_is_off(tmp_path: Path) -> None:
    publish(str(tmp_path / "a"), content(b"first"), overwrite=False)
    with pytest.raises(ExistingFileError, match="exists and overwrite is off; choose another name") as caught:
        publish(str(tmp_path / "a"), content(b"second"), overwrite=False)
    assert isinstance(caught.value, FileExistsError)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_appears_meanwhile_is_kept_too(tmp_path: Path) -> None:
    def write(sink: FileSink) -> None:
        (tmp_path / "a").write_bytes(b"theirs")

    with pytest.raises(ExistingFileError):
        publish(str(tmp_path / "a"), write, overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_the_mode_is_that_of_the_file_replaced_or_what_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish(str(tmp_path / "new"), content(b"x"))
    finally:
        os.umask(before)
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "old").chmod(0o604)
    publish(str(tmp_path / "old"), content(b"x"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_a_link_stays_a_link_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    publish(str(tmp_path / "link"), content(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(FileError, match="is not a regular file; name a file to write to"):
            publish(str(tmp_path / name), content(b"x"))


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"cannot write into .*nowhere: No such file or directory"):
        publish(str(tmp_path / "nowhere" / "a"), content(b"x"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="Not a directory"):
        publish(str(tmp_path / "file" / "a"), content(b"x"))


def test_long_names_leave_room_for_the_temporary(tmp_path: Path) -> None:
    name = "n" * 255
    publish(str(tmp_path / name), content(b"x"))
    assert os.listdir(tmp_path) == [name]


def test_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    writers = [
        threading.Thread(target=publish, args=(str(tmp_path / "a"), content(bytes([number]) * 10_000)))
        for number in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    data = (tmp_path / "a").read_bytes()
    assert data == data[:1] * 10_000
    assert os.listdir(tmp_path) == ["a"]


def test_a_directory_is_synced_and_a_missing_one_has_nothing_to_sync(tmp_path: Path) -> None:
    sync_directory(str(tmp_path))
    sync_directory(str(tmp_path / "nowhere"))
    assert not os.listdir(tmp_path)


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    def fill(offset: int, buffer: memoryview) -> None:
        raise AssertionError("nothing may be read")

    size = 1 << 60
    tensor = statedict.LazyTensor(
        statedict.dtype("uint8"), (size,), statedict.Storage(ComputedSource(size, fill), 0, size)
    )
    for name, options in (("x.pth", {}), ("x.safetensors", {}), ("x", {"max_shard_size": "1TB"})):
        with pytest.raises(
            statedict.errors.FileError, match=r"needs 1,152,921,504,606,84[678],... .* make room"
        ) as caught:
            statedict.save({"x": tensor}, tmp_path / name, **options)
        assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
