"""Directories of HuggingFaceStorageWriter: parts of tensors in safetensors, a file or more of each rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp_of_torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import statedict
from statedict.cli import cli
from statedict.errors import CorruptFileError, FormatError, UnsupportedError
from statedict.testing.same import assert_same, raw

from .. import dcp

Box = tuple[tuple[int, int], ...]
"""Begin and end along each dimension."""


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)


WHOLE = {
    "rows": tensor(7, 5),
    "columns": tensor(6, 9, dtype=torch.bfloat16),
    "deep.middle": tensor(3, 5, 2, dtype=torch.int64),
    "same": tensor(4),
    "few": tensor(2, 3),
    "grid": tensor(7, 9),
    "both": tensor(13, 2),
    "half": tensor(5, 6),
    "small": tensor(8, 2).to(torch.float8_e4m3fn),
    "mask": tensor(8, 2) > 3,
    "plain": tensor(3, 3, dtype=torch.float64),
    "scalar": torch.tensor(2.5),
}
# how each is cut along its dimensions
CUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "rows": ((2, 2, 2, 1), (5,)),
    "columns": ((6,), (3, 3, 3, 0)),
    "deep.middle": ((3,), (2, 2, 1, 0), (2,)),
    "few": ((1, 1, 0), (3,)),
    "grid": ((4, 3), (5, 4)),
    "both": ((4, 3, 3, 3), (2,)),
    "half": ((5,), (3, 3)),
    "small": ((2, 2, 2, 2), (2,)),
    "mask": ((2, 2, 2, 2), (2,)),
}

RANK = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/.rendezvous", rank=rank, world_size=4)
line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
def tensor(*shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)
def cut(whole, mesh, *how):
    return distribute_tensor(whole, mesh, how, src_data_rank=None)
state = {
    "rows": cut(tensor(7, 5), line, Shard(0)),
    "columns": cut(tensor(6, 9, dtype=torch.bfloat16), line, Shard(1)),
    "deep": {"middle": cut(tensor(3, 5, 2, dtype=torch.int64), line, Shard(1))},
    "same": cut(tensor(4), line, Replicate()),
    "few": cut(tensor(2, 3), line, Shard(0)),
    "grid": cut(tensor(7, 9), grid, Shard(0), Shard(1)),
    "both": cut(tensor(13, 2), grid, Shard(0), Shard(0)),
    "half": cut(tensor(5, 6), grid, Replicate(), Shard(1)),
    "small": cut(tensor(8, 2).to(torch.float8_e4m3fn), line, Shard(0)),
    "mask": cut(tensor(8, 2) > 3, line, Shard(0)),
    "plain": tensor(3, 3, dtype=torch.float64),
    "scalar": torch.tensor(2.5),
}
def save(state, name, **options):
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(f"{folder}/{name}", save_distributed=True, **options))
save(state, "one")
names = [name.replace("deep", "deep.middle") for name in state]
numbers = {name: 1 + (name in ("rows", "same", "grid")) for name in names}
save(state | {"tied": state["rows"]}, "two", fqn_to_index_mapping=numbers | {"tied": 1})
for name in ("deep", "mask", "scalar"):  # integers cannot be consolidated, a scalar becomes 0
    del state[name]
save(state, "consolidated", enable_consolidation=True)
dist.barrier()
dist.destroy_process_group()
import os
os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
"""


def imitate(folder: Path) -> None:
    """Write what four ranks write, without them, for a PyTorch that has no such writer."""
    boxes: list[dict[str, Box]] = [{} for _ in range(4)]
    for name, whole in WHOLE.items():
        for rank, box in enumerate(cut_boxes(whole, CUTS.get(name, [(n,) for n in whole.shape]))):
            boxes[rank][name] = box
    for rank, held in enumerate(boxes, 1):
        write_part(folder / f"shard-{rank:05}-model-00001-of-00001.safetensors", held)


def cut_boxes(whole: torch.Tensor, sizes: Any) -> Iterator[Box]:
    ends = [[sum(some[: at + 1]) for at in range(len(some))] for some in sizes]
    yield from product(*[list(zip([0, *end[:-1]], end, strict=True)) for end in ends])


def write_part(path: Path, boxes: dict[str, Box], whole: dict[str, torch.Tensor] = WHOLE) -> None:
    parts = {name: whole[name][tuple(slice(*ends) for ends in box)].clone() for name, box in boxes.items()}
    info = {name: {"saved_offsets": [begin for begin, _ in box]} for name, box in boxes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(parts, path, {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"})


IN_TORCH = hasattr(dcp_of_torch, "HuggingFaceStorageWriter")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    imitate(folder / "imitated")
    if IN_TORCH:
        dcp.run_ranks(RANK, 4, folder)
    else:
        imitate(folder / "consolidated" / "sharded")
        save_file(WHOLE, folder / "consolidated" / "model-00001-of-00001.safetensors")
    return folder


FOLDERS = ["imitated", *["one", "two"] * IN_TORCH]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_parts_of_four_ranks_are_assembled_into_the_whole_tensors(saved: Path, name: str) -> None:
    state = statedict.load(saved / name)
    assert state.metadata == {}
    expected = WHOLE | ({"tied": WHOLE["rows"]} if name == "two" else {})
    assert {*state} == {*expected}
    for key, whole in expected.items():
        assert_same(state[key], whole, key)
        if whole.ndim and key != "same":
            assert_same(state[key][1:3], whole[1:3], key)


def read_by_torch(folder: Path) -> dict[str, torch.Tensor]:
    if not IN_TORCH:
        return WHOLE
    reader = dcp_of_torch.HuggingFaceStorageReader(str(folder))
    described = reader.read_metadata().state_dict_metadata
    state = {key: torch.empty(one.size, dtype=one.properties.dtype) for key, one in described.items()}
    dcp.load(state, None, storage_reader=reader)
    return state


@pytest.mark.parametrize("name", FOLDERS)
def test_they_are_bit_for_bit_what_the_reader_of_pytorch_returns(saved: Path, name: str) -> None:
    state, theirs = statedict.load(saved / name), read_by_torch(saved / name)
    assert {*state} == {*theirs}
    assert all((state[key].shape, raw(state[key])) == (theirs[key].shape, raw(theirs[key])) for key in theirs)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_verb_takes_such_a_folder(saved: Path, name: str, tmp_path: Path) -> None:
    folder = saved / name
    report = statedict.verify(folder, values=True)
    assert report.ok, report
    assert report.tensors == len(statedict.load(folder))
    assert "whether those of the last ranks are missing" in str(report)
    assert statedict.inspect(folder).total.tensors == report.tensors
    statedict.convert(folder, tmp_path / "w.safetensors")
    assert statedict.diff(folder, tmp_path / "w.safetensors").same
    assert {key: raw(value) for key, value in load_file(tmp_path / "w.safetensors").items()} == {
        key: raw(value) for key, value in statedict.load(folder).items()
    }
    statedict.edit(folder, tmp_path / "m.pth", {"prefix": "model."})
    assert_same(statedict.load(tmp_path / "m.pth")["model.grid"], WHOLE["grid"])
    with pytest.raises(UnsupportedError, match="not altered in place; name another file or folder"):
        statedict.edit(folder, None, {"cast": "bf16"})
    shown = CliRunner().invoke(cli, ["show", str(folder)])
    assert shown.exit_code == 0
    assert "7×9" in shown.output


@pytest.mark.parametrize("rank", [1, 3])
def test_one_file_of_a_rank_says_that_it_is_a_part_and_of_what(saved: Path, rank: int, tmp_path: Path) -> None:
    path = saved / "imitated" / f"shard-{rank:05}-model-00001-of-00001.safetensors"
    part = {1: r"\[0:4, 0:2\]", 3: r"\[7:10, 0:2\]"}[rank]
    with pytest.raises(FormatError, match=rf"holds the parts of .* tensors that one rank saved: .*{part} of 'both'"):
        statedict.load(path)
    with pytest.raises(FormatError, match=r'name the folder, .* or load it with format="safetensors"'):
        statedict.convert(path, tmp_path / "x.pth")
    assert statedict.load(path, format="safetensors")["rows"].shape == (2, 5)
    report = statedict.verify(path)
    assert report.ok
    assert "that one rank saved" in str(report)


def test_a_part_under_another_name_is_a_part_by_its_corners(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((saved / "imitated" / "shard-00002-model-00001-of-00001.safetensors").read_bytes())
    for name in (path, tmp_path):
        with pytest.raises(FormatError, match="that one rank saved"):
            statedict.load(name)


def test_a_file_of_whole_tensors_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.safetensors"
    boxes = {name: tuple((0, n) for n in whole.shape) for name, whole in WHOLE.items()}
    write_part(path, boxes)
    for name in (path, tmp_path):
        state = statedict.load(name)
        assert state.metadata == {"format": "pt"}  # what describes the file would be wrong of the next one
        assert all(raw(state[key]) == raw(whole) for key, whole in WHOLE.items())
    statedict.edit(path, None, {"prefix": "model."})
    assert "model.rows" in statedict.load(tmp_path)
    assert "DCP" not in path.read_bytes()[:900].decode("latin1")


def test_consolidated_output_and_the_parts_beside_it_are_the_same(saved: Path) -> None:
    whole, parts = statedict.load(saved / "consolidated"), statedict.load(saved / "consolidated" / "sharded")
    assert statedict.diff(whole, parts).same
    assert_same(whole["both"], WHOLE["both"])
    assert statedict.verify(saved / "consolidated").ok


def test_tensors_that_another_program_renamed_in_a_whole_file_are_read(tmp_path: Path) -> None:
    info = {"old.rows": {"saved_offsets": [0, 0]}}
    save_file({"rows": WHOLE["rows"]}, tmp_path / "m.safetensors", {"DCP_SHARDING_INFO": json.dumps(info)})
    assert_same(statedict.load(tmp_path / "m.safetensors")["rows"], WHOLE["rows"])
    assert statedict.verify(tmp_path / "m.safetensors").ok


def test_what_the_files_of_missing_ranks_held_is_known_and_the_rest_is_read(saved: Path, tmp_path: Path) -> None:
    imitate(tmp_path / "d")
    (tmp_path / "d" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    state = statedict.load(tmp_path / "d")
    assert state["rows"].present_boxes == (((0, 0), (2, 5)), ((4, 0), (2, 5)), ((6, 0), (1, 5)))
    assert_same(state["rows"][4:], WHOLE["rows"][4:])
    with pytest.raises(CorruptFileError, match=r"'rows': \[0:7, 0:5\] is not all there"):
        state["rows"].numpy()
    report = statedict.verify(tmp_path / "d")
    assert {problem.part for problem in report.problems} == {*CUTS} - {"half"}
    assert state["half"].shape == (5, 3)  # its last part was there; that nobody can know, and verify says so
    assert "whether those of the last ranks are missing" in str(report)


def part(**boxes: Box) -> dict[str, Box]:
    return boxes


FAULTS: dict[str, tuple[list[dict[str, Box]], str]] = {
    "of two saves": ([part(rows=((0, 4), (0, 5))), part(rows=((2, 7), (0, 5)))], "overlap; they are of different"),
    "the same twice": ([part(rows=((0, 7), (0, 5))), part(rows=((0, 7), (0, 5)))], "overlap; they are of different"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_parts_that_contradict_one_another_are_refused(name: str, tmp_path: Path) -> None:
    boxes, message = FAULTS[name]
    for rank, held in enumerate(boxes, 1):
        write_part(tmp_path / f"shard-{rank:05}-model-00001-of-00001.safetensors", held)
    with pytest.raises(CorruptFileError, match=message):
        statedict.load(tmp_path)
    assert message in str(statedict.verify(tmp_path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"DCP_SHARDING_INFO": "{}"}, "does not say which part of 'rows' it is"),
        ({"DCP_SHARDING_INFO": '{"rows": {"saved_offsets": [0]}}'}, r"no corner of 'rows': \(0,\)"),
        ({"DCP_SHARDING_INFO": '{"rows": {"saved_offsets": [-1, 0]}}'}, "no corner of 'rows'"),
        ({"DCP_SHARDING_INFO": '{"rows": {"saved_offsets": 3}}'}, "does not say which part"),
        ({"DCP_SHARDING_INFO": '{"rows": {"saved_offsets": [4611686018427387904, 0]}}'}, "that no tensor has"),
        ({"DCP_SHARDING_INFO": "[1"}, "DCP_SHARDING_INFO"),
        ({}, "does not say which part of 'rows' it is"),
    ],
)
def test_wrong_corners_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    write_part(tmp_path / "shard-00001-model-00001-of-00001.safetensors", part(rows=((0, 7), (0, 5))))
    save_file({"rows": WHOLE["rows"]}, tmp_path / "shard-00002-model-00001-of-00001.safetensors", metadata)
    with pytest.raises(CorruptFileError, match=message):
        statedict.load(tmp_path)
    assert not statedict.verify(tmp_path).ok


def test_parts_of_different_dtypes_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "shard-00001-model-00001-of-00001.safetensors", part(rows=((0, 4), (0, 5))))
    other = {"rows": WHOLE["rows"].half()}
    write_part(tmp_path / "shard-00002-model-00001-of-00001.safetensors", part(rows=((4, 7), (0, 5))), other)
    with pytest.raises(CorruptFileError, match="'rows': its parts differ in dtype"):
        statedict.load(tmp_path)


def test_a_folder_of_parts_loads_from_s3(saved: Path, s3: Any) -> None:
    for path in (saved / "imitated").iterdir():
        s3.upload_file(str(path), "bucket", f"step/{path.name}")
    for name in ("step", "step/"):
        state = statedict.load(f"s3://bucket/{name}")
        assert all(raw(state[key]) == raw(whole) for key, whole in WHOLE.items())
