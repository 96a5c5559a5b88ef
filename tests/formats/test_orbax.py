"""Orbax directories; those of the archive are of orbax-checkpoint 0.12.8, made by tests/peers/orbax.py."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest

import statedict
from statedict.errors import (
    CorruptFileError,
    FormatError,
    LimitError,
    MissingExtraError,
    MissingFileError,
    RestoreError,
    UnknownFormatError,
    UnsupportedError,
)
from statedict.io.location import location
from statedict.runs.look.listing import listing
from statedict.values import Opaque

from ..peers.orbax import ARRAYS, PIECES, SHARED
from ..work import bytes_read
from .orbaxes import orbax as orbax
from .orbaxes import unpack

LAYOUTS = pytest.mark.parametrize("layout", ["store", "folders", "folders3"])


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@LAYOUTS
def test_the_tree_has_the_keys_of_its_leaves_and_what_only_the_metadata_has(orbax: Path, layout: str) -> None:
    state = statedict.load(orbax / layout)
    assert [*state] == [
        "arrays", "bool", "empty", "float", "int", "list", "no entries", "none", "numpy",
    ]  # fmt: skip
    assert (state["none"], state["empty"], state["no entries"]) == (None, {}, [])
    assert (state["int"], state["float"], state["bool"]) == (5, 2.5, True)
    first, second, third = state["list"]
    assert first.tolist() == [0.0, 1.0, 2.0]
    assert (second["a"].tolist(), third[0].tolist(), third[1]) == (7, [1.0], None)
    assert state["numpy"].tolist() == [0, 1, 2, 3]


@LAYOUTS
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_dtype_have_the_bits_that_were_saved(orbax: Path, layout: str, kind: str) -> None:
    tensor = statedict.load(orbax / layout)["arrays"][kind]
    array = (numpy.arange(6) % 2).astype(getattr(ml_dtypes, kind, kind)).reshape(2, 3)
    assert (tensor.dtype.name, tensor.shape) == (kind, (2, 3))
    assert tensor.raw() == array.tobytes()


@pytest.mark.parametrize("name", ["pieces", "pieces3"])
def test_an_array_in_pieces_is_read_by_region(orbax: Path, name: str) -> None:
    tensor, array = statedict.load(orbax / name)["w"], numpy.arange(30, dtype="float32").reshape(PIECES)
    assert numpy.array_equal(tensor.numpy(), array)
    assert numpy.array_equal(tensor[1:4, ::2].numpy(), array[1:4, ::2])
    assert numpy.array_equal(tensor[4].numpy(), array[4])


def test_an_array_that_two_processes_wrote_is_one(orbax: Path) -> None:
    tensor = statedict.load(orbax / "processes")["w"]
    assert numpy.array_equal(tensor.numpy(), numpy.arange(24, dtype="float32").reshape(SHARED))


@pytest.mark.parametrize("place", ["run/3", "run/3/default", "v1", "v1/state"])
def test_a_step_with_one_item_is_the_tree_of_that(orbax: Path, place: str) -> None:
    state = statedict.load(orbax / place)
    assert [*state] == ["opt_state", "params", "step"]
    assert state["step"].tolist() == 3
    assert state["params"]["dense"]["kernel"].tolist() == [[1.0] * 3] * 2
    adam, nothing, none = state["opt_state"]
    assert [*adam] == ["count", "mu", "nu"]
    assert (nothing, none) == (None, None)


def test_a_step_of_items_has_an_entry_for_each(orbax: Path) -> None:
    state = statedict.load(orbax / "items/7")
    assert state["settings"] == {"lr": 0.1}
    assert state.at("state.params.dense.bias").tolist() == [0.0] * 3
    assert statedict.load(orbax / "v1 items")["settings"] == {"lr": 0.1}
    assert statedict.load(f"{orbax}/items/7::state.params").tensors().keys() == {"dense.bias", "dense.kernel"}


def test_metrics_beside_the_only_item_are_metadata(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "run") / "3"
    (folder / "metrics").mkdir()
    (folder / "metrics" / "metrics").write_text('{"loss": 0.5}')  # as with `manager.save(…, metrics=…)`
    state = statedict.load(folder)
    assert [*state] == ["opt_state", "params", "step"]
    assert state.metadata == {"metrics": '{"loss": 0.5}'}
    assert statedict.verify(folder).unread == ()
    folder.with_name("4.orbax-checkpoint-tmp").mkdir()
    shutil.copy(folder / "_CHECKPOINT_METADATA", folder.with_name("4.orbax-checkpoint-tmp"))
    good, bad = sorted(listing(folder.parent), key=lambda one: one.name)
    assert (good.step, good.kind, good.metrics) == (3, "orbax", {"loss": 0.5})
    assert "did not commit" in bad.damage


def test_a_run_says_that_its_steps_are_named_one_by_one(orbax: Path) -> None:
    with pytest.raises(UnknownFormatError, match="run: holds the checkpoints of a run, each in a folder of its own"):
        statedict.load(orbax / "run")


def test_texts_and_a_bare_array_are_leaves(orbax: Path) -> None:
    assert statedict.load(orbax / "texts")["text"] == "words"
    assert statedict.load(orbax / "array")[""].tolist() == [0.0, 1.0, 2.0]


def test_leaves_that_share_an_array_are_labels_and_a_problem(orbax: Path) -> None:
    state = statedict.load(orbax / "shared")
    assert [state["a.b"], state["a"]["b"]] == [Opaque("one of 2 leaves that Orbax wrote as one array, 'a.b'")] * 2
    assert state["c"].tolist() == [1.0]
    with pytest.raises(RestoreError, match="nothing was written"):
        statedict.restore(
            {"a.b": numpy.zeros(2, "f4"), "a": {"b": numpy.zeros(2, "f4")}, "c": numpy.zeros(1, "f4")}, state
        )
    (problem,) = statedict.verify(orbax / "shared").problems
    assert "2 leaves are one array, so Orbax wrote one over the other: ('a', 'b') and ('a.b',)" in problem.what


@pytest.mark.parametrize("name", ["store", "folders", "pieces3", "processes", "run/3", "items/7", "v1", "many"])
def test_a_whole_directory_is_fine_and_all_its_files_are_its_own(orbax: Path, name: str) -> None:
    report = statedict.verify(orbax / name)
    assert (report.ok, report.unread, report.format) == (True, (), "orbax")
    assert report.tensors == len(statedict.load(orbax / name).tensors())


def test_the_same_tree_in_two_layouts_is_equal(orbax: Path) -> None:
    assert statedict.diff(orbax / "store", orbax / "folders3").same


def test_the_size_of_a_directory_is_that_of_all_its_files(orbax: Path) -> None:
    folder = orbax / "run" / "3"
    assert location(str(folder)).size() == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_opening_reads_no_chunk(orbax: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(orbax / "folders", folder)
    for chunk in folder.glob("arrays.*/0.0"):
        chunk.unlink()
    assert len(statedict.load(folder)["arrays"]) == len(ARRAYS)
    assert bytes_read(lambda: statedict.load(orbax / "many")) < 100_000


def test_it_converts_to_safetensors_and_torch(orbax: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pth"):
        statedict.convert(orbax / "run/3", tmp_path / name)
        assert statedict.diff(orbax / "run/3", tmp_path / name).same


# what is wrong


def test_without_zstandard_the_error_says_what_to_install(orbax: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        MissingExtraError, match=r"Orbax checkpoints take zstandard; .*pip install 'statedict\[orbax\]'"
    ):
        statedict.load(orbax / "store")


def test_a_directory_that_was_not_committed_is_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "run")
    edit(folder / "3" / "_CHECKPOINT_METADATA", {"commit_timestamp_nsecs": None})
    for place in ("3", "3/default"):
        with pytest.raises(
            CorruptFileError, match=r"did not commit this checkpoint \(_CHECKPOINT_METADATA has no commit"
        ):
            statedict.load(folder / place)
    temporary = (folder / "3").rename(folder / "3.orbax-checkpoint-tmp-17")
    for place in (temporary, temporary / "default"):
        with pytest.raises(
            CorruptFileError, match=r"not commit .*its name has .orbax-checkpoint-tmp\).*open an earlier"
        ):
            statedict.load(place)


def test_a_missing_index_or_document_says_what_to_fetch(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "store")
    (folder / "manifest.ocdbt").rename(tmp_path / "manifest")
    with pytest.raises(MissingFileError, match=r"manifest\.ocdbt"):
        statedict.load(folder)
    (tmp_path / "manifest").rename(folder / "manifest.ocdbt")
    (folder / "_METADATA").unlink()
    with pytest.raises(FormatError, match="_METADATA is missing, in which the tree stands"):
        statedict.load(folder)
    (folder / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(UnknownFormatError, match="is an Orbax checkpoint without _METADATA"):
        statedict.load(folder)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "processes")
    for file in (folder / "ocdbt.process_1" / "d").iterdir():
        file.unlink()
    for file in (folder / "d").iterdir():
        file.rename(folder / "d" / "other")
    with pytest.raises(MissingFileError, match=r"processes/d/"):
        statedict.load(folder)


def test_a_missing_array_and_a_missing_chunk_are_named(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "folders")
    (folder / "arrays.int8" / "0.0").unlink()
    state = statedict.load(folder)
    with pytest.raises(CorruptFileError, match=r"array 'arrays\.int8': its chunk 0\.0 is missing; fetch or save"):
        state["arrays"]["int8"].raw()
    (problem,) = statedict.verify(folder).problems
    assert problem.tensors == ("arrays.int8",)
    edit(folder / "_METADATA", {"store_array_data_equal_to_fill_value": False})  # as before 0.5: zeros were left out
    assert statedict.load(folder)["arrays"]["int8"].tolist() == [[0] * 3] * 2
    shutil.rmtree(folder / "arrays.int8")
    with pytest.raises(CorruptFileError, match=r"the array 'arrays\.int8', which _METADATA names, is missing"):
        statedict.load(folder)


def test_damage_of_a_chunk_and_of_the_index_is_found(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "folders")
    chunk = folder / "arrays.float32" / "0.0"
    data = chunk.read_bytes()
    for damaged, what in ((data[:-3], "ends at byte|cannot be unpacked"), (b"\0" + data[1:], "cannot be unpacked")):
        chunk.write_bytes(damaged)
        (problem,) = statedict.verify(folder).problems
        assert problem.tensors == ("arrays.float32",)
        with pytest.raises(CorruptFileError, match=what):
            statedict.load(folder)["arrays"]["float32"].raw()
    folder = unpack(tmp_path, "many")
    manifest = bytearray((folder / "manifest.ocdbt").read_bytes())
    manifest[-1] ^= 1
    (folder / "manifest.ocdbt").write_bytes(manifest)
    (problem,) = statedict.verify(folder).problems
    assert (problem.part, problem.what) == (
        "manifest.ocdbt",
        "the CRC-32C of the index of its arrays differs, so it is damaged",
    )


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"chunks": [2]}, CorruptFileError, r"describes no array .*chunks of \(2,\)"),
        ({"chunks": [0, 3]}, CorruptFileError, "describes no array"),
        ({"chunks": [-1, 3]}, CorruptFileError, "is not a shape"),
        ({"shape": [2, 1 << 62]}, CorruptFileError, "strides of over 8 exabytes"),
        ({"shape": "2"}, CorruptFileError, "describes no array"),
        ({"dtype": ">f4"}, UnsupportedError, r"dtype '>f4', which is not read; open it with orbax-checkpoint"),
        ({"dtype": 4}, CorruptFileError, "describes no array"),
        ({"compressor": {"id": "blosc"}}, UnsupportedError, r"coded by \['blosc'\]"),
        ({"filters": [{"id": "delta"}]}, UnsupportedError, r"coded by \['delta', 'zstd'\]"),
        ({"order": "F"}, UnsupportedError, "another order"),
        ({"zarr_format": 4}, CorruptFileError, "describes no array"),
    ],
    ids=str,
)
def test_a_document_that_describes_no_array_we_read(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], what: str
) -> None:
    folder = unpack(tmp_path, "folders")
    edit(folder / "arrays.float32" / ".zarray", change)
    with pytest.raises(error, match=rf"array 'arrays\.float32': .*{what}"):
        statedict.load(folder)


def test_sizes_that_a_chunk_cannot_have_fail_fast(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "folders")
    document = folder / "arrays.float32" / ".zarray"
    edit(document, {"chunks": [1 << 20, 1 << 20]})
    with pytest.raises(LimitError, match=r"chunk 0\.0: [0-9,]+ bytes claim to unpack to 4,398,046,511,104"):
        statedict.load(folder)["arrays"]["float32"].numpy()
    edit(document, {"chunks": [2, 2], "shape": [2, 2]})
    with pytest.raises(CorruptFileError, match="unpacks to more bytes than its shape has"):
        statedict.load(folder)["arrays"]["float32"].numpy()
    edit(document, {"chunks": [2, 3], "compressor": None})
    with pytest.raises(CorruptFileError, match=r"has [0-9]+ bytes, and its shape 24"):
        statedict.load(folder)["arrays"]["float32"].numpy()


def entry(*keys: tuple[str, int], kind: str = "None") -> dict[str, Any]:
    names = [{"key": key, "key_type": of} for key, of in keys]
    return {"key_metadata": names, "value_metadata": {"value_type": kind, "skip_deserialize": True}}


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([entry(("a", 2)), entry(("a", 2), ("b", 2))], "lead through a leaf"),
        ([entry(("a", 2), ("b", 2)), entry(("a", 2))], "those of a leaf and of a container"),
        ([entry(("a", 2)), entry(("a", 2))], "have the same keys"),
        ([entry(("a", 2), ("0", 1)), entry(("a", 2), ("2", 1))], "a sequence with the keys"),
        ([entry(("a", 2), ("0", 1)), entry(("a", 2), ("b", 2))], "a sequence with the keys"),
        ([entry(("a", 2), ("x", 1))], "the index 'x'"),
        ([entry(("a", 2), ("9" * 30, 1))], "the index '999"),
        ([entry(("a", 3))], "of type 3"),
        ([entry(*[("a", 2)] * 300)], "nested over 200 deep"),
        ([{}], "does not describe a tree"),
        ([5], "does not describe a tree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keys_that_make_no_tree_are_errors(tmp_path: Path, entries: list[Any], what: str) -> None:
    folder = unpack(tmp_path, "array")
    edit(folder / "_METADATA", {"tree_metadata": {str(index): one for index, one in enumerate(entries)}})
    with pytest.raises(FormatError, match=what):
        statedict.load(folder)


def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "folders")
    edit(folder / "_METADATA", {"tree_metadata": {"x": entry(("/../../secret", 2), kind="jax.Array")}})
    with pytest.raises(FormatError, match="outside of the folder"):
        statedict.load(folder)


def test_an_item_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "items") / "7"
    edit(folder / "_CHECKPOINT_METADATA", {"item_handlers": {"../../secret": "a handler"}})
    with pytest.raises(FormatError, match="outside of the folder"):
        statedict.load(folder)


def test_an_item_of_another_handler_is_named_and_not_read(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "items") / "7"
    (folder / "proto").mkdir()
    (folder / "proto" / "data").write_bytes(b"\1\2")
    assert statedict.load(folder)["proto"] == Opaque("an item of no known handler")
    assert statedict.verify(folder).unread == ("proto",)
