"""A file is written into, or is as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statedict.errors import CorruptFileError, FileError
from statedict.io import disk
from statedict.io.disk import overwrite, same_file
from statedict.io.source import BytesSource, FileSource

OLD = bytes(range(200))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


@pytest.mark.parametrize(("offset", "data"), [(0, b"new"), (200, b"x" * 100), (190, b"y" * 50), (200, b"")])
def test_bytes_are_put_over_those_that_are_there_and_after_the_end(path: Path, offset: int, data: bytes) -> None:
    inode = path.stat().st_ino
    overwrite(FileSource(str(path)), offset, data)
    assert path.read_bytes() == OLD[:offset] + data + OLD[offset + len(data) :]
    assert path.stat().st_ino == inode


_LIMITED = """
import resource, sys
from statedict.io.disk import overwrite
from statedict.io.source import FileSource
source = FileSource(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    overwrite(source, int(sys.argv[3]), b"n" * 1000)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "offset"), [(700, 200), (200, 200), (700, 0), (100, 0)])
def test_a_write_that_the_system_cuts_short_is_undone(path: Path, limit: int, offset: int) -> None:
    arguments = [sys.executable, "-c", _LIMITED, str(path), str(limit), str(offset)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot write (what was there is unchanged): {os.strerror(errno.EFBIG)}\n"
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("offset", [0, 150, 200])
def test_whatever_stops_it_is_undone(
    path: Path, offset: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def fsync(fd: int) -> None:
        done.append(fd)
        if len(done) == 1:
            raise error

    monkeypatch.setattr(disk.os, "fsync", fsync)
    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
        overwrite(FileSource(str(path)), offset, b"n" * 100)
    assert path.read_bytes() == OLD


def test_what_cannot_be_undone_is_said_with_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk.os, "fsync", fails)
    with pytest.raises(FileError, match=r"could not be put back .*; cut it to 200 bytes"):
        overwrite(FileSource(str(path)), 200, b"n" * 100)


def test_a_disk_that_is_too_small_is_noticed_before_a_byte_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, nbytes: int) -> None:
        assert nbytes == 70
        raise OSError(errno.ENOSPC, "needs more")

    monkeypatch.setattr(disk, "check_space", no_room)
    before = path.stat().st_mtime_ns
    with pytest.raises(FileError, match=r"cannot write \(what was there is unchanged\): needs more"):
        overwrite(FileSource(str(path)), 180, b"n" * 90)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (OLD, before)


def test_a_file_that_is_another_one_by_now_is_left_alone(path: Path) -> None:
    source = FileSource(str(path))
    (path.parent / "other").write_bytes(OLD)
    os.replace(path.parent / "other", path)
    with pytest.raises(FileError, match="was replaced since it was loaded; load it again"):
        overwrite(source, 0, b"new")
    source = FileSource(str(path))
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptFileError, match="overwritten in place since it was loaded"):
        overwrite(source, 200, b"new")
    assert path.read_bytes() == OLD + b"more"


def test_one_file_is_told_from_another_and_from_what_it_was(path: Path) -> None:
    source, other = FileSource(str(path)), FileSource(str(path))
    assert same_file(source, other)
    path.write_bytes(OLD[::-1] + b"1")
    assert not same_file(source, FileSource(str(path)))
    assert not same_file(source, BytesSource(OLD))
