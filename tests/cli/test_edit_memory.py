"""What `edit` takes of memory, against the size of what goes through it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import statedict

_EDIT = """
import sys
from statedict.cli import main
try:
    main(sys.argv[1:])
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)  # unlike ru_maxrss it does not count what the parent had
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 MB in two tensors and some small ones."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    tensors = {f"big.{n}": torch.full((8192, 8192), n, dtype=torch.float32) for n in range(2)}
    statedict.save(tensors | {f"small.{n}": torch.ones(n) for n in range(9)}, path, fsync=False)
    return path


@pytest.mark.parametrize(
    "steps",
    [
        ("--rename", "big.{n}=b{n}"),
        ("--cast", "bf16"),
        ("--split", "big.{n}=a{n},b{n}"),
        ("--fuse", "x=big.0,big.1", "--cast", "fp64"),
        ("--pad", "big.*=8193,8200"),
        ("--reshape", "big.*=-1", "--slice", "big.*=5:60000000"),
    ],
    ids=lambda steps: steps[0],
)
def test_a_large_tensor_goes_through_in_blocks(large: Path, steps: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EDIT, "edit", str(large), str(tmp_path / "out.safetensors"), *steps],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stderr.split()[-1]) < 100_000  # kilobytes; the tensors have 512 MB
    assert len(statedict.load(tmp_path / "out.safetensors").tensors()) >= 10
