"""A split GGUF model is one model, whichever of its files is named."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict

from . import ggufs
from .ggufs import pair
from .test_gguf import FLOATS, PAIRS

TENSORS = {f"blk.{n}.w": FLOATS + n for n in range(5)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The first of three files of a model."""
    ggufs.write(tmp_path / "m.gguf", TENSORS, PAIRS, split_max_tensors=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return tmp_path / "m-00001-of-00003.gguf"


@pytest.mark.parametrize("number", [1, 2, 3, 0])
def test_any_file_and_the_folder_open_the_whole(number: int, model: Path, tmp_path: Path) -> None:
    whole = statedict.load(ggufs.write(tmp_path.parent / f"{tmp_path.name}.gguf", TENSORS, PAIRS))
    state = statedict.load(model.with_name(f"m-0000{number}-of-00003.gguf") if number else tmp_path)
    assert state["metadata"] == whole["metadata"]
    assert state.metadata == whole.metadata
    assert list(state) == list(whole)
    assert all(numpy.array_equal(state[name].numpy(), array) for name, array in TENSORS.items())


def test_verify_reads_every_file(model: Path) -> None:
    report = statedict.verify(model)
    assert (report.tensors, report.parts, report.problems) == (5, 8, ())


def test_a_missing_file_is_named(model: Path) -> None:
    model.with_name("m-00002-of-00003.gguf").unlink()
    with pytest.raises(statedict.errors.MissingFileError, match=r"m-00002-of-00003\.gguf"):
        statedict.load(model)


def test_a_file_of_another_name_says_what_it_should_be(model: Path) -> None:
    renamed = model.rename(model.with_name("x.gguf"))
    with pytest.raises(statedict.errors.CorruptFileError, match=r"one of 3 files .* name it NAME-00001-of-00003\.gguf"):
        statedict.load(renamed)


def test_a_file_in_the_place_of_another_is_damage(model: Path) -> None:
    second = model.with_name("m-00002-of-00003.gguf")
    second.write_bytes(model.with_name("m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(statedict.errors.CorruptFileError, match=r"expected file 2 of 3 .* say 2, 3"):
        statedict.load(model)


def _part(path: Path, number: Any, names: list[str], total: int, count: int = 2) -> None:
    pairs = [pair(f"split.{key}", 4, struct.pack("<I", n)) for key, n in (("no", number), ("count", count))]
    pairs.append(pair("split.tensors.count", 4, struct.pack("<I", total)))
    ggufs.forge(path, pairs, [ggufs.tensor(name, (1,), offset=32 * at) for at, name in enumerate(names)], bytes(64))


def test_files_that_do_not_belong_together_are_damage(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    for names, total, message in ((["a"], 2, "'a' is in another file too"), (["b"], 3, "have 2 tensors, .* says 3")):
        _part(first, 0, ["a"], total)
        _part(second, 1, names, total)
        with pytest.raises(statedict.errors.CorruptFileError, match=message):
            statedict.load(first)
    huge = tmp_path / "m-00001-of-99999.gguf"
    _part(huge, 0, ["a"], 1, 99_999)
    with pytest.raises(statedict.errors.CorruptFileError, match="one of 99,999 files"):
        statedict.load(huge)


def test_a_split_model_is_not_altered_in_place_and_is_written_whole(model: Path, tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match="is a part of a split model"):
        statedict.edit(model, None, {"drop": "blk.0"})
    statedict.edit(model, tmp_path / "whole.gguf", {"drop": "blk.0"})
    ours = ggufs.write(tmp_path / "expected.gguf", {n: t for n, t in TENSORS.items() if n != "blk.0.w"}, PAIRS)
    assert (tmp_path / "whole.gguf").read_bytes() == ours.read_bytes()


def test_a_folder_of_several_models_lists_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ggufs.write(tmp_path / f"{name}.gguf", {"w": FLOATS})
    with pytest.raises(statedict.errors.UnknownFormatError, match=r"has several: a\.gguf, b\.gguf"):
        statedict.load(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert list(statedict.load(tmp_path)) == ["metadata", "w"]
