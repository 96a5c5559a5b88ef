"""Checkpoints of 1 TB: what needs headers only reads them and takes little memory. The files have holes, no bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import statedict

from ..hollow import Taken, hollow, run

SHARDS, TENSORS = 100, 40
EACH = 250_000_000  # bytes of a tensor: 40 in a shard make 10 GB, 100 shards 1 TB


def of_one_size(path: Path, names: list[str]) -> None:
    hollow(path, {name: ("BF16", [EACH // 2], EACH) for name in names})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("huge")
    weight_map = {}
    for shard in range(SHARDS):
        names = [f"layers.{shard * TENSORS + n}.weight" for n in range(TENSORS)]
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        of_one_size(place / file, names)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": EACH * TENSORS * SHARDS}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def assert_little(taken: Taken) -> None:
    assert taken.read < 64 << 20  # the headers, and the modules of Python
    assert taken.kilobytes < 150_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "--depth", "1"), "4,000 tensors"),
        (("edit", "--dry-run", "--rename", "layers.{n}=blocks.{n+1}"), "4,000 removed"),
        (("edit", "--dry-run", "--keep", "layers.17.*"), "3,999 removed"),
        (("edit", "--dry-run", "--cast", "fp32"), "1.0 TB → 4,000 tensors, 2.0 TB"),
        (("edit", "--dry-run", "--split", "layers.{n}.weight=layers.{n}.a,layers.{n}.b"), "8,000 added"),
        (("verify", "--quick"), "fine (sharded, 4,000 tensors in 4,100 parts"),
    ],
    ids=lambda value: " ".join(value[:-1]) if isinstance(value, tuple) else "",
)
def test_a_terabyte_in_a_hundred_shards_costs_its_headers(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    taken = run(arguments[0], folder, *arguments[1:], room=400 << 20)
    assert says in taken.printed
    assert_little(taken)


def test_a_shard_that_was_cut_short_is_found_by_its_size(folder: Path) -> None:
    shard = folder / "model-00077-of-00100.safetensors"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)
    try:
        report = statedict.verify(folder, quick=True)
    finally:
        with shard.open("r+b") as file:
            file.truncate(size)
    assert [problem.part[:16] for problem in report.problems] == ["model-00077-of-0"]
    assert report.nbytes < 1 << 20


def test_one_tensor_of_a_terabyte_is_taken_out(folder: Path, tmp_path: Path) -> None:
    statedict.edit(folder, tmp_path / "out.safetensors", [{"keep": "layers.17.*"}, {"slice": "*", "index": "5:2000"}])
    assert statedict.load(tmp_path / "out.safetensors")["layers.17.weight"].shape == (1995,)


def test_a_terabyte_in_one_file_is_renamed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    of_one_size(path, [f"layers.{n}.weight" for n in range(4000)])
    size, blocks = path.stat().st_size, path.stat().st_blocks
    assert size > 10**12
    assert_little(run("edit", path, "--in-place", "--rename", "layers.{n}=h.{n}", room=400 << 20))
    assert path.stat().st_size == size
    assert path.stat().st_blocks < blocks + 100
    assert list(statedict.load(path))[3999] == "h.3999.weight"
