"""Checkpoints of 1 TB: what needs headers only takes seconds and little memory. The files have holes, no bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import statedict

SHARDS, TENSORS = 100, 40
EACH = 250_000_000  # bytes of a tensor: 40 in a shard make 10 GB, 100 shards 1 TB

_RUN = """
import sys
from statedict.cli import main
try:
    main(sys.argv[1:])
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
"""


def hollow(path: Path, names: list[str]) -> None:
    """A safetensors file whose tensors are holes."""
    header: dict[str, Any] = {
        name: {"dtype": "BF16", "shape": [EACH // 2], "data_offsets": [n * EACH, (n + 1) * EACH]}
        for n, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + EACH * len(names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("huge")
    weight_map = {}
    for shard in range(SHARDS):
        names = [f"layers.{shard * TENSORS + n}.weight" for n in range(TENSORS)]
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        hollow(place / file, names)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": EACH * TENSORS * SHARDS}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def run(*arguments: str) -> tuple[str, float, int]:
    """What is printed, the seconds and the kilobytes."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start, int(done.stderr.split()[-1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "--depth", "1"), "4,000 tensors"),
        (("edit", "--dry-run", "--rename", "layers.{n}=blocks.{n+1}"), "4,000 removed"),
        (("edit", "--dry-run", "--keep", "layers.17.*"), "3,999 removed"),
        (("edit", "--dry-run", "--cast", "fp32"), "1.0 TB → 4,000 tensors, 2.0 TB"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_terabyte_in_a_hundred_shards_takes_seconds(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    printed, seconds, kilobytes = run(arguments[0], str(folder), *arguments[1:])
    assert says in printed
    assert seconds < 20  # a second or two; much of the rest is other tests on this machine
    assert kilobytes < 150_000


def test_one_tensor_of_a_terabyte_is_taken_out(folder: Path, tmp_path: Path) -> None:
    statedict.edit(folder, tmp_path / "out.safetensors", [{"keep": "layers.17.*"}, {"slice": "*", "index": "5:2000"}])
    assert statedict.load(tmp_path / "out.safetensors")["layers.17.weight"].shape == (1995,)


def test_a_terabyte_in_one_file_is_renamed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    hollow(path, [f"layers.{n}.weight" for n in range(4000)])
    size, blocks = path.stat().st_size, path.stat().st_blocks
    assert size > 10**12
    _, seconds, kilobytes = run("edit", str(path), "--in-place", "--rename", "layers.{n}=h.{n}")
    assert (path.stat().st_size, seconds < 20, kilobytes < 150_000) == (size, True, True)
    assert path.stat().st_blocks < blocks + 100
    assert list(statedict.load(path))[3999] == "h.3999.weight"
