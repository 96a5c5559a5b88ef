"""Every source gives the same bytes in each of its ways, and trusts no range."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.errors import CorruptFileError, FileError, MissingFileError
from statedict.io.source import AddressSource, BytesSource, ComputedSource, FileSource, address_view, allocate
from statedict.io.zip import read_directory

from .archives import deflated, stored

DATA = bytes(range(256)) * 4


def computed(data: bytes) -> ComputedSource:
    def fill(offset: int, buffer: memoryview) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    return ComputedSource(len(data), fill)


def file(path: Path, data: bytes) -> FileSource:
    path.write_bytes(data)
    return FileSource(str(path))


@pytest.fixture(scope="module", params=["file", "bytes", "bytearray", "address", "computed", "stored", "deflated"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("source")
    array = np.frombuffer(DATA, "u1").copy()
    return {
        "file": lambda: file(folder / "data", DATA),
        "bytes": lambda: BytesSource(DATA),
        "bytearray": lambda: BytesSource(bytearray(DATA)),
        "address": lambda: AddressSource(array.ctypes.data, array.nbytes, array),
        "computed": lambda: computed(DATA),
        "stored": lambda: read_directory(file(folder / "a.zip", stored({"x": b"before", "r": DATA})))["r"],
        "deflated": lambda: read_directory(BytesSource(deflated({"r": DATA})))["r"],
    }[request.param]()


@given(st.data())
def test_every_way_gives_the_same_bytes(source: Any, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(DATA)))
    length = data.draw(st.integers(0, len(DATA) - offset))
    expected = DATA[offset : offset + length]
    assert source.size == len(DATA)
    assert source.read(offset, length) == expected
    buffer = bytearray(length)
    source.readinto(offset, memoryview(buffer))
    assert buffer == expected
    for private in (False, True):
        view = source.view(private)
        assert view is None or view[offset : offset + length] == expected
        assert not private or view is None or not view.readonly


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1025), (1024, 1), (1025, 0), (-1, 1), (5, -1), (1 << 62, 1), (0, 1 << 62)]
)
def test_a_range_outside_is_damage_and_named(source: Any, offset: int, length: int) -> None:
    with pytest.raises(CorruptFileError, match=f"bytes {offset:,} to {offset + length:,} lie outside"):
        source.read(offset, length)
    if 0 <= length < 10_000:
        with pytest.raises(CorruptFileError, match="lie outside"):
            source.readinto(offset, memoryview(bytearray(length)))


def test_a_message_says_file_range_size_and_remedy(tmp_path: Path) -> None:
    source = file(tmp_path / "model.pth", bytes(6000))
    with pytest.raises(CorruptFileError) as caught:
        source.read(4096, 4096)
    assert str(caught.value) == (
        f"{tmp_path}/model.pth: bytes 4,096 to 8,192 lie outside the file (6,000 bytes); "
        "it looks truncated or damaged, fetch it again"
    )


def test_a_private_view_is_written_without_touching_the_file(tmp_path: Path) -> None:
    source = file(tmp_path / "data", DATA)
    view = source.view(private=True)
    assert view is not None
    view[:3] = b"abc"
    assert source.read(0, 3) == (tmp_path / "data").read_bytes()[:3] == DATA[:3]
    shared = source.view()
    assert shared is not None
    assert shared.readonly


def test_an_empty_file_has_empty_views(tmp_path: Path) -> None:
    source = file(tmp_path / "empty", b"")
    assert (source.size, source.read(0, 0)) == (0, b"")
    assert [bytes(source.view(private) or b"?") for private in (False, True)] == [b"?", b"?"]
    assert all(len(source.view(private) or b"") == 0 for private in (False, True))


def test_an_open_file_outlives_its_replacement(tmp_path: Path) -> None:
    source = file(tmp_path / "data", DATA)
    (tmp_path / "new").write_bytes(b"other")
    (tmp_path / "new").replace(tmp_path / "data")
    assert source.read(0, 1024) == DATA


def test_a_file_that_is_shortened_while_open_is_named(tmp_path: Path) -> None:
    source = file(tmp_path / "data", DATA)
    os.truncate(tmp_path / "data", 100)
    with pytest.raises(CorruptFileError, match=r"data: was shortened or overwritten in place since it was loaded"):
        source.read(0, 1024)


def test_a_source_travels_to_another_process_unless_its_file_changed(tmp_path: Path) -> None:
    source = file(tmp_path / "data", DATA)
    packed = pickle.dumps(source)
    assert pickle.loads(packed).read(0, 1024) == DATA
    (tmp_path / "data").write_bytes(DATA + b"more")
    with pytest.raises(FileError, match="data: changed since it was loaded; load it again"):
        pickle.loads(packed)
    array = np.arange(3, dtype="u1")
    for other in (BytesSource(b"abc", "mine"), AddressSource(array.ctypes.data, 3, array, "mine")):
        again = pickle.loads(pickle.dumps(other))
        assert (again.read(0, 3), again.name) == (other.read(0, 3), "mine")


def test_what_cannot_be_opened_is_a_file_error_and_the_builtin_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing: cannot open: No such file or directory") as caught:
        FileSource(str(tmp_path / "nothing"))
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FileError, match="Is a directory"):
        FileSource(str(tmp_path))


def test_a_source_closes_its_file(tmp_path: Path) -> None:
    source = file(tmp_path / "data", DATA)
    descriptor = source.fileno()
    assert os.fstat(descriptor).st_size == 1024
    del source
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_memory_at_an_address_keeps_its_owner_alive() -> None:
    array = np.full(1000, 7, "u1")
    view = address_view(array.ctypes.data, 1000, array)
    del array
    gc.collect()
    assert bytes(view) == b"\7" * 1000
    view[0] = 1
    assert view[0] == 1
    assert len(address_view(0, 0, None)) == 0


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (4 << 20) + 1])
def test_allocated_memory_is_zero_writable_and_as_long_as_asked(size: int) -> None:
    memory = allocate(size)
    assert len(memory) == size
    assert not any(memory[:: max(1, size // 100)])
    memory[:1] = b"x"[: min(size, 1)]
    assert not memory.readonly


def test_a_file_that_is_overwritten_in_place_is_noticed_by_reads_and_by_views(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(64)))
    os.utime(path, ns=(0, 0))
    source = FileSource(str(path))
    path.write_bytes(bytes(64))
    for read in (lambda: source.read(0, 4), lambda: source.readinto(0, memoryview(bytearray(4))), source.view):
        with pytest.raises(CorruptFileError, match="overwritten in place since it was loaded; load it again"):
            read()


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is a pipe or a device"):
        FileSource(str(tmp_path / "pipe"))


def test_a_file_that_is_open_when_python_ends_is_closed_without_a_word() -> None:
    code = (
        "import statedict, statedict.io.source as module\n"
        "state = statedict.load('examples/checkpoint.pth')\n"
        "module.os = None  # as when Python clears modules one by one\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
