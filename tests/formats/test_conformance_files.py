"""How every format behaves as a file: laziness, atomic writing, damage. The other half of the conformance suite."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import statedict
from statedict.io.source import ComputedSource
from statedict.tensor.lazy import LazyTensor, Storage

from ..same import assert_same
from ..work import bytes_read
from .conftest import Subject, of_any_file

TREE = {
    "model": {"w": torch.arange(300.0).reshape(20, 15), "b": torch.ones(15, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
}


FLAT = {"w": torch.arange(300.0).reshape(20, 15), "b": torch.ones(16, dtype=torch.bfloat16)}  # and no padding


@pytest.fixture
def any_path(any_subject: Subject, tmp_path: Path) -> Path:
    """A saved TREE, or what the format holds of it."""
    path = tmp_path / f"checkpoint{any_subject.suffix}"
    any_subject.save(FLAT if any_subject.dtypes else TREE, path)
    return path


@pytest.fixture
def path(subject: Subject, tmp_path: Path) -> Path:
    """A saved TREE."""
    path = tmp_path / f"checkpoint{subject.suffix}"
    subject.save(TREE, path)
    return path


@of_any_file
def test_loading_costs_the_header_whatever_the_size_of_the_file(any_subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / f"sparse{any_subject.suffix}"
    any_subject.sparse(path, {f"layers.{i}.weight": (1 << 15, 1 << 16) for i in range(50)})
    assert path.stat().st_size > 200 << 30

    def look() -> None:
        state = statedict.load(path)
        assert state["layers.49.weight"].nbytes == 1 << 32
        assert state["layers.49.weight"][5, 100:110].numpy().tolist() == [0] * 10

    assert bytes_read(look) < 1 << 20


@of_any_file
def test_files_over_4_gib_are_read_at_the_right_place(
    any_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"large{any_subject.suffix}"
    begins = any_subject.sparse(path, {"large": (5, 1 << 29), "after": (3,), "last": (2, 2)})
    with path.open("r+b") as file:
        for name, elements, code in (("large", 5 * (1 << 29) - 2, 0x4000), ("after", 1, 0x4040), ("last", 3, 0x4080)):
            os.pwrite(file.fileno(), code.to_bytes(2, "little"), begins[name] + 2 * elements)
    state = statedict.load(path)
    assert state["large"].nbytes == 5 << 30
    assert state["large"][4, -3:].tolist() == [0, 2, 0]
    assert state["after"].tolist() == [0, 3, 0]
    assert state["last"].torch().tolist() == [[0, 0], [0, 4]]
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda *_: None)  # the file has none for its holes
    theirs = torch.load(path, mmap=True, weights_only=True) if any_subject.name == "torch" else any_subject.peer(path)
    assert theirs["large"][4, -3:].tolist() == [0, 2, 0]
    assert theirs["last"].tolist() == [[0, 0], [0, 4]]


def test_a_state_is_saved_over_the_file_that_it_was_lazily_loaded_from(subject: Subject, path: Path) -> None:
    state = statedict.load(path)
    state["model"]["renamed"] = state["model"].pop("w")
    del state["optimizer"]
    subject.save(state, path)
    expected = {"model": {"b": TREE["model"]["b"], "renamed": TREE["model"]["w"]}}
    assert_same(statedict.load(path), expected)
    assert_same(state, expected)  # the file that was replaced stays readable for whom holds it


def test_mapped_arrays_keep_their_values_when_their_file_is_saved_over(subject: Subject, path: Path) -> None:
    mapped, tensor = statedict.load(path)["model"]["w"].numpy(), statedict.load(path)["model"]["w"].torch()
    subject.save({"model": {"w": torch.zeros(20, 15)}}, path)
    assert numpy.array_equal(mapped, TREE["model"]["w"].numpy())
    assert torch.equal(tensor, TREE["model"]["w"])


def test_what_is_written_into_a_mapped_tensor_does_not_reach_the_file(subject: Subject, path: Path) -> None:
    state = statedict.load(path)
    state["model"]["w"].torch().zero_()
    assert_same(statedict.load(path), TREE)
    assert_same(state, TREE)


@of_any_file
def test_an_existing_file_is_kept_where_overwriting_is_off(any_subject: Subject, any_path: Path) -> None:
    before = any_subject.content(any_path)
    with pytest.raises(FileExistsError, match="exists and overwrite is off"):
        any_subject.save({"w": torch.ones(2)}, any_path, overwrite=False)
    assert any_subject.content(any_path) == before
    assert os.listdir(any_path.parent) == [any_path.name]
    fresh = any_path.with_stem("fresh")
    any_subject.save(FLAT if any_subject.dtypes else TREE, fresh, overwrite=False)
    assert any_subject.content(fresh) == before


def test_a_new_file_has_the_mode_of_the_umask_and_a_replaced_one_keeps_its_own(
    subject: Subject, tmp_path: Path
) -> None:
    path = tmp_path / f"new{subject.suffix}"
    before = os.umask(0o027)
    try:
        statedict.save(TREE, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        statedict.save(TREE, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def _failing(fail: Any) -> LazyTensor:
    """A tensor of 40 MB whose reading fails somewhere in the middle."""
    size = 40_000_000

    def fill(offset: int, buffer: memoryview) -> None:
        if offset > size // 2:
            fail()
        buffer[:] = bytes(len(buffer))

    return LazyTensor(statedict.dtype("uint8"), (size,), Storage(ComputedSource(size, fill), 0, size))


def test_a_save_that_fails_midway_leaves_the_old_file_and_nothing_else(subject: Subject, path: Path) -> None:
    before = subject.content(path)

    def fail() -> None:
        raise RuntimeError("the disk it came from is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        subject.save({"a": torch.ones(3), "w": _failing(fail)}, path)
    with pytest.raises(statedict.errors.UnsupportedError, match=r"model\.what"):
        subject.save({"model": {"what": threading.Lock()}}, path)
    assert subject.content(path) == before
    assert os.listdir(path.parent) == [path.name]


def test_a_save_that_is_killed_leaves_the_old_file(subject: Subject, path: Path) -> None:
    before = subject.content(path)
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import statedict
from statedict.io.source import ComputedSource
from statedict.tensor.lazy import LazyTensor, Storage
size = 40_000_000
def fill(offset, buffer):
    if offset > size // 2:
        os.kill(os.getpid(), signal.SIGKILL)
    buffer[:] = bytes(len(buffer))
tensor = LazyTensor(statedict.dtype("uint8"), (size,), Storage(ComputedSource(size, fill), 0, size))
statedict.save({{"w": tensor}}, {str(path)!r}, format={subject.name!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = subject.content(path)
    assert {name: after[name] for name in before} == before
    assert_same(statedict.load(path), TREE)
    where, files = (path, list(before)) if subject.folder else (path.parent, [path.name])
    left = [name for name in os.listdir(where) if name not in files]
    assert all(name.endswith(".tmp") and any(f".{file}." in name for file in files) for name in left)


@of_any_file
def test_a_file_cut_short_anywhere_is_an_error_that_names_it(any_subject: Subject, any_path: Path) -> None:
    whole = any_path.read_bytes()
    cut = any_path.with_stem("cut")
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(statedict.errors.FormatError, match=r"cut\."):
            statedict.load(cut)


@of_any_file
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_loads_or_fails_with_a_format_error_and_nothing_else(
    any_subject: Subject, any_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(any_path.read_bytes())
    at = data.draw(
        st.integers(0, len(damaged) - 1) | st.integers(0, 1200) | st.integers(len(damaged) - 800, len(damaged) - 1)
    )
    length = data.draw(st.integers(0, 4))
    damaged[at : at + length] = data.draw(st.binary(max_size=6))
    broken = any_path.with_stem("broken")
    broken.write_bytes(damaged)
    with contextlib.suppress(
        statedict.errors.FormatError, statedict.errors.TreeError, statedict.errors.UnsupportedError
    ):
        for tensor in statedict.load(broken).tensors().values():
            tensor.raw()
