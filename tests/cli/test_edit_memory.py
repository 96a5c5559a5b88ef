"""What a command takes of memory, against the size of what goes through it.

The address space is capped not far above what the imports take, so nothing can be mapped or held whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import statedict

from ..hollow import hollow, run

MOST = 150_000  # kilobytes
ROOM = 640 << 20  # of address space: of each thread 64 MB for malloc, 8 MB of stack, its panel


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 GB in two tensors and some small ones."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    big = {f"big.{n}": ("F32", [8192, 16384], 4 * 8192 * 16384) for n in range(2)}
    hollow(path, big | {f"small.{n}": ("F32", [n], 4 * n) for n in range(9)})
    return path


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not stay, for its files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        ("--cast", "bf16"),
        ("--transpose", "big.*"),
        ("--transpose", "big.*", "--cast", "bf16"),
        ("--slice", "big.*=:,100:9000"),
        ("--transpose", "big.*", "--slice", "big.*=:,5:4000"),
        ("--split", "big.{n}=a{n},b{n}"),
        ("--split", "big.{n}=a{n},b{n}@1"),
        ("--fuse", "x=big.0,big.1", "--cast", "fp16"),
        ("--fuse", "x=big.0,big.1@1"),
        ("--transpose", "big.*", "--fuse", "x=big.0,big.1@1"),
        ("--pad", "big.*=8193,16400"),
        ("--reshape", "big.*=-1", "--slice", "big.*=5:60000000"),
    ],
    ids=" ".join,
)
def test_a_large_tensor_goes_through_in_blocks(large: Path, steps: tuple[str, ...], out: Path) -> None:
    taken = run("edit", large, out / "out.safetensors", *steps, room=ROOM)
    assert taken.kilobytes < MOST
    assert len(statedict.load(out / "out.safetensors").tensors()) >= 10


@pytest.mark.parametrize("target", [("out.pth",), ("out", "--max-shard-size", "300MB")], ids=" ".join)
def test_a_large_tensor_is_converted_in_blocks(large: Path, target: tuple[str, ...], out: Path) -> None:
    taken = run("convert", large, out / target[0], *target[1:], room=ROOM)
    assert taken.kilobytes < MOST
    assert len(statedict.load(out / target[0]).tensors()) == 11


def test_six_gigabytes_go_through_all_at_once(out: Path) -> None:
    hollow(
        out / "large.safetensors",
        {
            "embedding": ("F32", [128_000, 4096], 4 * 128_000 * 4096),
            "turned": ("F32", [20_480, 24_576], 4 * 20_480 * 24_576),
            "parts": ("F32", [24_576, 20_480], 4 * 24_576 * 20_480),
        },
    )
    taken = run(
        "edit", out / "large.safetensors", out / "out.pth",
        "--slice", "embedding=:,:2048", "--transpose", "turned",
        "--split", "parts=a,b@1", "--fuse", "both=a,b@0", "--cast", "bf16",
        room=ROOM,
    )  # fmt: skip
    assert taken.kilobytes < MOST
    shapes = {name: tensor.shape for name, tensor in statedict.load(out / "out.pth").items()}
    assert shapes == {"embedding": (128_000, 2048), "turned": (24_576, 20_480), "both": (49_152, 10_240)}
    (out / "out.pth").unlink()
    assert run("convert", out / "large.safetensors", out / "out.pth", room=ROOM).kilobytes < MOST
