"""The suites of statedict.testing for each format of the table, and what takes its own library or huge files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import statedict
from statedict.formats import WRITABLE
from statedict.testing import FileTests, TensorTests, TreeTests
from statedict.testing.files import FLAT
from statedict.testing.trees import TREE

from ..work import bytes_read
from .conftest import ANY_TREE, SUBJECTS, Subject, of_any_file


def _suite(name: str) -> type[TensorTests]:
    """The suite of one format; one of the table without an entry in SUBJECTS fails."""
    kinds = [TensorTests, *[FileTests] * (not SUBJECTS[name].folder), *[TreeTests] * (name in ANY_TREE)]
    return type(name, tuple(kinds), {"format": SUBJECTS[name], "flat": TREE if name in ANY_TREE else FLAT})


for _name in WRITABLE:
    globals()[f"Test_{_name}"] = _suite(_name)


def test_a_flat_dict_of_tensors_opens_in_the_format_s_own_library(any_subject: Subject, tmp_path: Path) -> None:
    tree = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3).bfloat16(), "steps": torch.tensor(5)}
    any_subject.round_trip(tree, tmp_path)
    theirs = any_subject.peer(tmp_path / f"round-trip{any_subject.suffix}")
    assert sorted(theirs) == sorted(tree)
    for name, tensor in tree.items():
        assert torch.equal(theirs[name], tensor)


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
