"""The identity of a tensor's bytes: one region, which every part of the library asks for."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict.dtypes import labelled_dtype
from statedict.errors import FileError
from statedict.io.source import BytesSource
from statedict.runs import CheckpointManager
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy
from statedict.tensor.segments import covered_bytes, origin, storage_bytes, unseen_bytes

ROOT = Path(str(statedict.__file__)).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "tensor")


def test_tied_tensors_have_one_region_and_views_of_a_storage_have_several() -> None:
    whole = torch.zeros(4, 4)
    views = [whole, whole[:2], whole[2:], whole.T, whole.view(16), whole.view(torch.int32)]
    assert as_lazy(whole).region == as_lazy(whole.detach()).region == as_lazy(torch.nn.Parameter(whole)).region
    assert len({as_lazy(view).region for view in views}) == len(views)
    assert len({as_lazy(view).storage.key for view in views}) == 1
    assert as_lazy(whole).region != as_lazy(whole.clone()).region


def test_a_tensor_without_elements_shares_no_bytes_with_any() -> None:
    empty = as_lazy(torch.zeros(0))
    assert empty.region != empty.region
    assert statedict.inspect({"a": empty, "b": empty}).tensors[1].tied is None


def test_views_of_bytes_of_no_known_size_are_told_apart_by_where_they_begin() -> None:
    storage = Storage(BytesSource(bytes(8)), 0, 8)
    kind = labelled_dtype("float5_e2m2")
    whole, again, later = (Labelled(kind, (4,), storage, first) for first in (0, 0, 4))
    assert whole.region == again.region != later.region


def regions_of_reports(state: dict[str, Any]) -> Iterator[tuple[str, list[str | None]]]:
    yield "inspect", [tensor.tied for tensor in statedict.inspect(state).tensors]
    yield "stats", [tensor.tied for tensor in statedict.stats(state).tensors]


@pytest.mark.parametrize(
    ("make", "tied"),
    [
        (lambda a: a, "a"),
        (lambda a: a[:], "a"),
        (lambda a: a.view("i4"), None),
        (lambda a: a.reshape(2, 3), None),
        (lambda a: a[:3], None),
        (lambda a: a.copy(), None),
    ],
    ids=["itself", "all of it", "another dtype", "another shape", "a part", "a copy"],
)
def test_all_reports_agree_on_what_is_tied(make: Callable[[Any], Any], tied: str | None, tmp_path: Path) -> None:
    a = numpy.arange(1, 7, dtype="f4")
    state = {"a": a, "b": make(a)}
    assert dict(regions_of_reports(state)) == {"inspect": [None, tied], "stats": [None, tied]}
    statedict.save(state, tmp_path / "x.safetensors")
    assert dict(regions_of_reports(statedict.load(tmp_path / "x.safetensors")))["inspect"] == [None, tied]


def test_tied_tensors_need_their_bytes_once_and_views_what_they_cover_together() -> None:
    whole = numpy.zeros(100, "f4")
    assert covered_bytes([as_lazy(whole), as_lazy(whole)]) == 400
    assert covered_bytes([as_lazy(whole), as_lazy(whole[:10]), as_lazy(whole.view("i4"))]) == 400
    assert covered_bytes([as_lazy(whole[:10]), as_lazy(whole[50:60])]) == 80
    assert covered_bytes([as_lazy(whole[:10]), as_lazy(whole[:10].copy())]) == 80
    parts = [as_lazy(whole[:10]), as_lazy(whole[5:20])]
    assert (covered_bytes(parts), unseen_bytes(parts), storage_bytes(parts)) == (80, 320, 400)


@pytest.fixture
def large(tmp_path: Path) -> Any:
    """A sparse file of two times the bytes that are free, in memory as far as it is touched."""
    disk = os.statvfs(tmp_path)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2 * disk.f_bavail * disk.f_frsize)
    return numpy.memmap(tmp_path / "sparse", "u1", "r")


@pytest.mark.parametrize("order", [1, -1])
def test_a_folder_needs_the_bytes_of_tied_tensors_and_of_views_once(large: Any, tmp_path: Path, order: int) -> None:
    state = {"embed": large, "head": large[:], "part": large[:1000]}
    state = dict([*state.items()][::order])
    with pytest.raises(FileError, match=f"needs {large.nbytes:,} bytes"):
        statedict.save(state, tmp_path / "model", max_shard_size="5GB")


@pytest.mark.parametrize("order", [1, -1])
def test_a_rehearsal_needs_the_bytes_of_tied_tensors_and_of_views_once(large: Any, tmp_path: Path, order: int) -> None:
    state = {"embed": large, "head": large[:], "part": large[:1000]}
    state = dict([*state.items()][::order])
    with pytest.raises(FileError, match=f"2 checkpoints of {large.nbytes:,} bytes"):
        CheckpointManager(tmp_path / "run", keep=1, check=state)


def test_a_rehearsal_counts_all_views_of_one_storage(large: Any, tmp_path: Path) -> None:
    half = large.nbytes // 2
    state = {"low": large[:half], "high": large[half:], "few": large[:1000]}
    statedict.save({"w": large[:8]}, tmp_path / "w.pth")
    with pytest.raises(FileError, match=f"{large.nbytes:,} bytes"):
        CheckpointManager(tmp_path / "run", keep=1, check=state)


def test_origins_are_equal_between_two_loads_of_a_file_and_regions_are_not(tmp_path: Path) -> None:
    statedict.save({"a": numpy.zeros(3), "b": numpy.ones(3)}, tmp_path / "x.pth")
    one, other = (statedict.load(tmp_path / "x.pth") for _ in range(2))
    assert origin(one["a"]) == origin(other["a"]) != origin(one["b"])
    assert one["a"].region != other["a"].region


# replace


def test_replace_changes_what_it_is_told_and_keeps_the_rest() -> None:
    storage = Storage(BytesSource(bytes(24)), 0, 24)
    old = LazyTensor(statedict.dtype("float32"), (2, 3), storage, 0, (1, 2), True, True)
    new = old.replace(shape=(3, 2), strides=None)
    assert (new.shape, new.strides, new.storage, new.requires_grad, new.parameter) == (
        (3, 2),
        None,
        storage,
        True,
        True,
    )
    assert (old.shape, old.strides) == ((2, 3), (1, 2))
    assert old.replace().region == old.region


def test_replace_keeps_the_class_and_what_only_that_has() -> None:
    view = Labelled(labelled_dtype("float5_e2m2"), (2,), Storage(BytesSource(bytes(8)), 0, 8), 4, (2,))
    new = view.replace(requires_grad=True, parameter=True)
    assert type(new) is Labelled
    assert (new.first, new.steps, new.requires_grad, new.parameter) == (4, (2,), True, True)
    with pytest.raises(AttributeError):
        view.replace(no_such_attribute=1)


# the source


PAIRS = ({"shape", "strides"}, {"offset", "shape"}, {"offset", "strides"}, {"storage", "offset"})


def keys_of_bytes(code: str) -> Iterator[int]:
    """The lines where a key for the bytes of a tensor is built: from a storage's identity, or storage and offset."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr == "key" and ends_in_storage(node.value):
            yield node.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "id" and any(map(ends_in_storage, node.args)):
            yield node.lineno
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
            names = {part.attr for part in node.elts if isinstance(part, ast.Attribute)}
            if any(pair <= names for pair in PAIRS):
                yield node.lineno


def ends_in_storage(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name == "storage"


# of PyTorch's storages, whose objects it numbers as PyTorch does; and how far tensors that share bytes lie apart
MAKES_STORAGES = {"torch/saving.py", "testing/same.py"}


def test_only_the_module_of_tensors_says_what_bytes_are_the_same() -> None:
    found = {str(path.relative_to(ROOT)) for path in MODULES for _ in keys_of_bytes(path.read_text())}
    assert found == MAKES_STORAGES


def test_the_reader_of_the_source_sees_every_kind_of_key() -> None:
    def seen(code: str) -> bool:
        return any(keys_of_bytes(code))

    assert seen("key = t.storage.key, t.offset")
    assert seen("d[id(tensor.storage)] = 1")
    assert seen("{id(storage): name for name, storage in all}")
    assert seen("key = (t.offset, t.shape, t.strides)")
    assert seen("key = record, t.offset, t.shape")
    assert seen("return place, t.dtype.name, t.shape, t.strides")
    assert not seen("key = t.region")
    assert not seen("at = t.storage.offset + t.offset")
