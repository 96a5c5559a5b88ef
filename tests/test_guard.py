"""`convert` and `edit` never pass on bytes that differ from what their file says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import statedict
from statedict import CheckpointManager
from statedict.api.combine import average_files
from statedict.cli import cli
from statedict.errors import CorruptFileError
from statedict.testing.same import assert_same

from .work import bytes_read

RANDOM = np.random.default_rng(0)
TREE = {
    "model": {"w": RANDOM.standard_normal((300, 500)).astype("f4"), "b": RANDOM.standard_normal(40).astype("f4")},
    "optimizer": {"m": RANDOM.standard_normal((300, 500)).astype("f4")},
    "step": 3,
}
MAKERS: dict[str, Callable[[Path], Path]] = {}


def maker(work: Callable[[Path], Path]) -> Callable[[Path], Path]:
    MAKERS[work.__name__] = work
    return work


@maker
def ours(folder: Path) -> Path:
    statedict.save(TREE, folder / "x.safetensors")
    return folder / "x.safetensors"


@maker
def ours_as_torch(folder: Path) -> Path:
    statedict.save(TREE, folder / "x.pth")
    return folder / "x.pth"


@maker
def torchs(folder: Path) -> Path:
    """Which has CRC-32 only."""
    torch.save({"model": {key: torch.from_numpy(value) for key, value in TREE["model"].items()}}, folder / "x.pth")
    return folder / "x.pth"


@maker
def shards(folder: Path) -> Path:
    statedict.save(TREE, folder / "x", max_shard_size="700kB")
    return folder / "x"


@maker
def compressed(folder: Path) -> Path:
    with CheckpointManager(folder / "run", compress="planes", background=False) as manager:
        manager.save(1, TREE)
    return folder / "run" / "1" / "checkpoint.safetensors"


def flip(path: Path, of: str) -> None:
    """Flip a bit in the bytes of a tensor."""
    wanted = next(value for key, value in flat().items() if key == of).tobytes()[:8]
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    for file in files:
        data = bytearray(file.read_bytes())
        at = data.find(wanted)
        if at >= 0:
            data[at + 5] ^= 1
            file.write_bytes(data)
            return
    data = bytearray(files[0].read_bytes())  # coded
    data[-200_000] ^= 1
    files[0].write_bytes(data)


def flat() -> dict[str, Any]:
    return {f"{above}.{key}": value for above in ("model", "optimizer") for key, value in TREE[above].items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", MAKERS)
def test_damage_is_not_converted(name: str, suffix: str, tmp_path: Path) -> None:
    source, target = MAKERS[name](tmp_path), tmp_path / f"out{suffix}"
    statedict.convert(source, target)
    wanted = target.read_bytes()
    flip(source, "model.w")
    with pytest.raises(CorruptFileError, match=r"its (digest|CRC-32) differs, so its bytes.*pass verify=False"):
        statedict.convert(source, target)
    assert target.read_bytes() == wanted
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    statedict.convert(source, target, verify=False)
    assert target.read_bytes() != wanted


STEPS: dict[str, list[dict[str, Any]]] = {
    "rename": [{"rename": {"model.w": "model.v"}}],
    "cast": [{"cast": "bf16"}],
    "strip, then cast": [{"strip": True}, {"cast": "bf16"}],
    "split": [{"split": "model.w", "into": ["model.p", "model.q"]}],
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["ours", "ours_as_torch", "torchs", "shards"])
def test_damage_is_not_edited(name: str, steps: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path)
    statedict.edit(source, tmp_path / "a.pth", STEPS[steps])
    flip(source, "model.w")
    with pytest.raises(CorruptFileError, match=r"(digest|CRC-32) differ.*damaged"):
        statedict.edit(source, tmp_path / "b.pth", STEPS[steps])
    assert not (tmp_path / "b.pth").exists()
    statedict.edit(source, tmp_path / "b.pth", STEPS[steps], verify=False)


def test_what_is_dropped_may_be_damaged(tmp_path: Path) -> None:
    source = ours(tmp_path)
    flip(source, "optimizer.m")
    statedict.convert(source, tmp_path / "a.pth", only="model")
    statedict.edit(source, tmp_path / "b.pth", [{"drop": "optimizer"}, {"cast": "float16"}])
    assert_same(statedict.load(tmp_path / "a.pth"), {"model": TREE["model"]})


def test_a_view_is_checked_with_all_that_lies_behind_it(tmp_path: Path) -> None:
    whole = torch.randn(1000, 10)
    torch.save({"head": whole[:100]}, tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    data[data.find(whole[:1].numpy().tobytes()) + 2] ^= 4
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CorruptFileError, match="CRC-32"):
        statedict.convert(tmp_path / "x.pth", tmp_path / "x.safetensors")


def test_other_processes_and_folders_are_guarded_too(tmp_path: Path) -> None:
    source = ours(tmp_path)
    flip(source, "model.w")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(CorruptFileError):
        statedict.convert(source, tmp_path / "out.pth", executor=pool)
    for options in ({"max_shard_size": "700kB"}, {"format": "distributed"}):
        with pytest.raises(CorruptFileError, match=r"model\.w"):
            statedict.convert(source, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not os.path.lexists(tmp_path / "out")


def test_what_is_copied_is_read_once(tmp_path: Path) -> None:
    source = ours(tmp_path)
    assert bytes_read(lambda: statedict.convert(source, tmp_path / "a.pth")) < 1.1 * source.stat().st_size


def test_the_command_line_refuses_and_goes_on_if_told(tmp_path: Path) -> None:
    source = ours(tmp_path)
    flip(source, "model.w")
    for command in (["convert"], ["edit", "--drop", "step"]):
        arguments = [command[0], str(source), str(tmp_path / "out.pth"), *command[1:], "--json"]
        failed = subprocess.run([sys.executable, "-m", "statedict", *arguments], capture_output=True, text=True)
        assert failed.returncode == 2
        assert "tensor 'model.w': its digest differs" in failed.stderr
        assert "add --no-verify" in failed.stderr
        done = CliRunner().invoke(cli, [*arguments, "--no-verify"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)
        (tmp_path / "out.pth").unlink()


def test_no_delta_is_made_of_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = ours(tmp_path / "one"), ours_as_torch(tmp_path / "other")
    flip(one, "model.w")
    for base, tuned in ((one, other), (other, one)):
        with pytest.raises(CorruptFileError, match=r"model\.w.*damaged"):
            statedict.delta.make(base, tuned, tmp_path / "x.delta")
    assert not (tmp_path / "x.delta").exists()
    assert statedict.delta.make(other, one, tmp_path / "x.delta", verify=False).deltas == 2


def test_damage_of_a_delta_s_base_is_not_converted(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run", compress="delta", background=False) as manager:
        for step in (1, 2):
            manager.save(step, {"w": TREE["model"]["w"] * np.float32(1 + step * 1e-6)})  # type: ignore[index]
    data = bytearray((tmp_path / "run" / "1" / "checkpoint.safetensors").read_bytes())
    data[-200_000] ^= 1
    (tmp_path / "run" / "1" / "checkpoint.safetensors").write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"safetensors: tensor 'w': its digest differs, so its bytes or step 1"):
        statedict.convert(tmp_path / "run" / "2", tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["ours", "ours_as_torch", "torchs", "shards", "compressed"])
def test_damage_goes_into_no_average_and_no_merge(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path)
    statedict.convert(source, tmp_path / "sound.safetensors", only="model")
    average_files([source, tmp_path / "sound.safetensors"], tmp_path / "out.safetensors")
    (tmp_path / "out.safetensors").unlink()
    flip(source, "model.w")
    with pytest.raises(CorruptFileError, match=r"(digest|CRC-32) differs, so its bytes are damaged"):
        average_files([source, tmp_path / "sound.safetensors"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
