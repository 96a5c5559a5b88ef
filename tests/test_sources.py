"""One rule for sources: every verb takes a path, a URL, `file::path`, a tree or live objects, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict.errors import AlterError, FileError, FormatError, MissingFileError, PathError, UnsupportedError

VERBS: dict[str, Callable[[Any, Path], list[str]]] = {
    "inspect": lambda source, _: [tensor.path for tensor in statedict.inspect(source).tensors],
    "stats": lambda source, _: [tensor.name for tensor in statedict.stats(source).tensors],
    "diff": lambda source, _: [tensor.after or "" for tensor in statedict.diff({}, source).added],
    "report": lambda source, _: [row[0] for row in statedict.report(source).data["tensors"]],
    "save": lambda source, to: listed(statedict.save(source, to), to),
    "convert": lambda source, to: listed(statedict.convert(source, to), to),
    "edit": lambda source, to: listed(statedict.edit(source, to, []), to),
}
LIVE = torch.nn.Linear(3, 2)
NAMES = ["weight", "bias"]
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
taking_files = pytest.mark.parametrize("verb", [VERBS[name] for name in VERBS if name != "save"])


def listed(_: Any, path: Path) -> list[str]:
    return list(statedict.load(path).tensors())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    statedict.save({"model": LIVE, "epoch": 3}, tmp_path / "source.pth")
    return tmp_path / "source.pth"


@every_verb
@pytest.mark.parametrize("source", [LIVE, LIVE.state_dict(), statedict.capture(LIVE)], ids=["live", "dict", "tree"])
def test_a_tree_and_live_objects_serve_as_a_source(verb: Any, source: Any, tmp_path: Path) -> None:
    assert verb(source, tmp_path / "x.pth") == NAMES


@taking_files
def test_a_path_and_a_url_serve_as_a_source(verb: Any, file: Path, tmp_path: Path) -> None:
    for source in (file, str(file), file.as_uri()):
        assert verb(source, tmp_path / "x.pth") == [f"model.{name}" for name in NAMES]


@taking_files
def test_what_stands_at_a_path_in_a_file_serves_as_a_source(verb: Any, file: Path, tmp_path: Path) -> None:
    for source in (f"{file}::model", Path(f"{file}::model"), f"{file.as_uri()}::model"):
        assert verb(source, tmp_path / "x.pth") == NAMES


def test_what_stands_in_a_list_that_is_the_whole_file_serves_as_a_source(tmp_path: Path) -> None:
    torch.save([LIVE.state_dict(), {"epoch": 3}], tmp_path / "list.pt")
    assert list(statedict.load(f"{tmp_path / 'list.pt'}::0")) == NAMES
    assert list(statedict.load(f"{tmp_path / 'list.pt'}::0.bias")) == [""]
    assert statedict.load(f"{tmp_path / 'list.pt'}::1.epoch") == {"": 3}
    with pytest.raises(PathError, match="no entry '2'"):
        statedict.load(f"{tmp_path / 'list.pt'}::2")


def test_a_tensor_at_a_path_is_a_bare_root(file: Path) -> None:
    assert list(statedict.load(f"{file}::model.bias")) == [""]
    assert statedict.load(f"{file}::epoch") == {"": 3}


def test_a_path_that_is_not_in_the_file_names_the_file_and_the_nearest(file: Path) -> None:
    with pytest.raises(PathError, match=r"source\.pth: no entry 'model.wight' among 3; did you mean model\.weight"):
        statedict.load(f"{file}::model.wight")


def test_a_file_with_colons_in_its_name_is_that_file(tmp_path: Path) -> None:
    statedict.save({"w": numpy.ones(2)}, tmp_path / "a::b.pth")
    assert list(statedict.load(tmp_path / "a::b.pth")) == ["w"]
    with pytest.raises(MissingFileError, match=r"nothing\.pth: cannot open"):
        statedict.load(tmp_path / "nothing.pth::model")


def test_objects_are_restored_from_a_file_a_part_of_it_a_tree_and_live_objects(file: Path) -> None:
    for source in (f"{file}::model", LIVE.state_dict(), LIVE):
        target = torch.nn.Linear(3, 2)
        statedict.restore(target, source)
        assert torch.equal(target.weight, LIVE.weight)


@pytest.mark.parametrize("verb", [statedict.verify, statedict.scan])
def test_verbs_that_check_bytes_say_why_they_take_files_only(verb: Any, file: Path) -> None:
    for source in (LIVE, {"w": numpy.ones(2)}, statedict.load(file)):
        with pytest.raises(UnsupportedError, match=f"{verb.__name__} checks the bytes of a file, and a .* has none"):
            verb(source)
    with pytest.raises(UnsupportedError, match=f"{verb.__name__} checks a whole file; name .*source.pth alone"):
        verb(f"{file}::model")


def test_what_is_no_whole_file_is_not_edited_in_place(file: Path) -> None:
    for source in (f"{file}::model", statedict.load(file)):
        with pytest.raises(UnsupportedError, match="only a whole file is edited in place; name a file to write"):
            statedict.edit(source, None, [{"drop": "bias"}])


@pytest.mark.parametrize("source", [LIVE, {"w": numpy.ones(2)}, statedict.StateDict(), None, 3, b"ck.pth"], ids=repr)
def test_load_says_why_it_takes_paths_only(source: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"load opens a file, and a {type(source).__name__} is not a path; "):
        statedict.load(source)


@taking_files
def test_bytes_are_not_taken_for_a_tree(verb: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="bytes are neither a path nor a tree; name a file by a str"):
        verb(b"source.pth", tmp_path / "x.pth")


def test_a_folder_with_colons_in_its_name_holds_files_with_parts(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x::y"
    folder.mkdir()
    file.rename(folder / "f.pth")
    assert list(statedict.load(f"{folder}/f.pth::model")) == NAMES
    assert statedict.inspect(f"{folder}/f.pth::model").total.tensors == 2
    with pytest.raises(MissingFileError, match=r"x: cannot open"):
        statedict.load(f"{folder}/nothing.pth::model")


@pytest.mark.parametrize("steps", [None, 3, True])
def test_steps_that_are_no_list_are_an_error_that_shows_one(steps: Any, file: Path, tmp_path: Path) -> None:
    with pytest.raises(AlterError, match=r"expected a dict such as \{'drop': 'head\.\*'\}"):
        statedict.edit(file, tmp_path / "x.pth", steps)


@pytest.mark.parametrize("verb", [VERBS[name] for name in ("save", "convert", "edit")])
def test_a_nul_in_the_name_of_a_target_is_an_error_of_files(verb: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a name cannot hold a NUL"):
        verb(LIVE, f"{tmp_path}/a\0b.pth")


def test_an_unknown_format_lists_those_that_are_written_or_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FormatError,
        match=r"no format 'xyz'; there are torch, safetensors, npz, distributed, gguf, hdf5, keras-weights, flax$",
    ):
        statedict.save(LIVE, tmp_path / "x.pth", format="xyz")
    with pytest.raises(FormatError, match=r"no format 'xyz'; there are .*torch-export"):
        statedict.load(file, format="xyz")
