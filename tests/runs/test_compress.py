"""Checkpoints of a run that are compressed, or deltas to earlier ones."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xxhash import xxh3_128_hexdigest

import statedict
from statedict import CheckpointManager
from statedict.errors import ArgumentError, CorruptFileError, MissingExtraError, RunError
from statedict.runs import BestN, LatestN, blame, listing, pin, prune, verify_run
from statedict.runs.directory import Directory
from statedict.runs.look.listing import about
from statedict.testing.same import assert_same


def tree(step: int) -> dict[str, Any]:
    """What training makes of the same weights after some steps."""
    start = np.random.default_rng(0).standard_normal(20_000).astype("f4")
    moved = start + np.random.default_rng(step).standard_normal(start.size).astype("f4") * np.float32(1e-5)
    return {"model": {"w": moved, "frozen": start[:5000]}, "state": np.full(50, step), "step": step}


def fill(run: Path, steps: Any, **options: Any) -> None:
    options = {"compress": "delta", "full_every": 3, "background": False} | options
    with CheckpointManager(run, **options) as manager:
        for step in steps:
            manager.save(step, tree(step), {"loss": 1 / (step + 1)})


def bases(run: Path) -> dict[int, int]:
    return Directory(str(run)).bases(Directory(str(run)).steps())


def damage(run: Path, step: int) -> None:
    file = run / str(step) / "checkpoint.safetensors"
    data = bytearray(file.read_bytes())
    data[-3000] ^= 1
    file.write_bytes(data)


def test_most_are_deltas_to_the_last_whole_one_and_all_come_back(run: Path) -> None:
    fill(run, range(1, 8))
    assert bases(run) == {2: 1, 3: 1, 5: 4, 6: 4}
    manager = CheckpointManager(run)
    for step in range(1, 8):
        assert_same(manager.load(step), tree(step))
        target = tree(0)
        manager.restore(target, step)
        assert_same(target, tree(step))
    assert manager.latest() == 7
    assert set(verify_run(run).damage.values()) == {""}
    sizes = {step: (run / str(step) / "checkpoint.safetensors").stat().st_size for step in range(1, 4)}
    assert sizes[2] < 0.7 * sizes[1]


@pytest.mark.parametrize("compress", ["planes", "delta"])
def test_saving_in_the_background_holds_what_was_there_at_the_time(run: Path, compress: str) -> None:
    model = torch.nn.Linear(200, 100)
    wanted = {}
    with CheckpointManager(run, compress=compress, in_flight=2) as manager:
        for step in range(6):
            with torch.no_grad():
                model.weight += 1e-4
            wanted[step] = model.weight.detach().clone()
            manager.save(step, {"model": model})
    for step, weight in wanted.items():
        assert_same(statedict.load(run / str(step))["model"]["weight"], weight, flags=False)
    assert (compress == "delta") == bool(bases(run))


def test_a_damaged_file_costs_at_most_its_own_chain(run: Path) -> None:
    fill(run, range(1, 7))
    damage(run, 1)
    found = verify_run(run).damage
    assert [step for step, what in found.items() if what] == ["1", "2", "3"]
    damage(run, 6)
    with pytest.warns(UserWarning, match="step 6 is passed over"):
        assert CheckpointManager(run).latest() == 5


def test_a_base_that_is_gone_or_another_is_named(run: Path) -> None:
    fill(run, [1, 2])
    aside = run.parent / "aside"
    shutil.move(run / "1", aside)
    assert [(one.step, one.state) for one in listing(run)] == [(2, "damaged")]
    assert "is a delta to step 1, which is gone" in listing(run)[0].damage
    with pytest.raises(CorruptFileError, match="is a delta to step 1, which is gone"):
        CheckpointManager(run).load(2)
    with pytest.raises(statedict.StateDictError, match="is a delta to step 1 of its run, which cannot be read"):
        statedict.load(run / "2")["model"]["w"].numpy()
    shutil.rmtree(run / "1", ignore_errors=True)
    fill(run.parent / "other", [1], compress="planes")
    shutil.copytree(run.parent / "other" / "1", run / "1")
    assert CheckpointManager(run).load(2)["step"] == 2  # the same values make the same base
    shutil.rmtree(run / "1")
    with CheckpointManager(run.parent / "third", compress="planes") as manager:
        manager.save(1, tree(9))
    shutil.copytree(run.parent / "third" / "1", run / "1")
    with pytest.raises(CorruptFileError, match="is a delta to step 1 with the digest"):
        CheckpointManager(run).load(2)


def test_pruning_keeps_what_a_kept_delta_needs(run: Path) -> None:
    fill(run, range(1, 9), keep=LatestN(1), full_every=4)
    assert Directory(str(run)).steps() == [5, 8]
    found = prune(run, keep=1, dry_run=True)
    assert (found.kept[5], found.removed) == ("step 8 is a delta to it", ())
    assert_same(CheckpointManager(run).load(8), tree(8))


def test_a_policy_may_keep_a_delta_far_back(run: Path) -> None:
    with CheckpointManager(run, compress="delta", full_every=3, keep=[LatestN(1), BestN("loss", 1)]) as manager:
        for step in range(1, 9):
            manager.save(step, tree(step), {"loss": abs(step - 5)})
    assert Directory(str(run)).steps() == [4, 5, 7, 8]
    assert_same(CheckpointManager(run).load(5), tree(5))


def test_a_pin_keeps_the_base_until_it_goes(run: Path) -> None:
    fill(run, range(1, 7))
    pin(run, [2])
    assert prune(run, keep=1).removed == (3, 5)
    assert Directory(str(run)).steps() == [1, 2, 4, 6]
    pin(run, [2], pinned=False)
    assert prune(run, keep=1).removed == (1, 2)


def test_a_run_begun_anew_keeps_the_base_of_a_pinned_step(run: Path) -> None:
    fill(run, [10, 20, 30])
    pin(run, [20])
    fill(run, [5], existing="replace")
    assert Directory(str(run)).steps() == [5, 10, 20]
    assert_same(statedict.load(run / "20"), tree(20))
    with pytest.raises(RunError, match="pinned step 20 is a delta to step 10, which would be replaced"):
        fill(run, [10], existing="continue")
    assert_same(statedict.load(run / "20"), tree(20))


def test_what_has_nothing_worth_a_difference_needs_no_base(run: Path) -> None:
    with CheckpointManager(run, compress="delta", background=False) as manager:
        for step in (1, 2):
            manager.save(step, {"few": np.full(3, step)})
    assert bases(run) == {}
    shutil.rmtree(run / "1")
    assert CheckpointManager(run).load(2)["few"].tolist() == [2, 2, 2]


def test_a_manager_that_goes_on_begins_with_a_whole_one(run: Path) -> None:
    fill(run, [1, 2])
    fill(run, [3, 4], existing="continue")
    assert bases(run) == {2: 1, 4: 3}


def test_a_base_that_is_removed_or_damaged_meanwhile_costs_no_save(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(run, compress="delta", background=False) as manager:
        manager.save(1, tree(1))
        shutil.rmtree(run / "1")
        manager.save(2, tree(2))
        file = run / "2" / "checkpoint.safetensors"
        data = bytearray(file.read_bytes())
        at = data.index(b"\x28\xb5\x2f\xfd")
        data[at : at + 4] = b"junk"
        file.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            manager.save(3, tree(3))
    assert "step 3 is stored whole, as the base of a delta cannot be read" in caplog.text
    assert bases(run) == {}
    assert_same(statedict.load(run / "3"), tree(3))


def test_a_base_that_the_disk_cannot_read_costs_no_save(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, broken = os.preadv, run / "1" / "checkpoint.safetensors"

    def fail(fd: int, buffers: Any, offset: int) -> int:
        if offset > 3000 and broken.exists() and os.path.samestat(os.fstat(fd), os.stat(broken)):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    def fail_too(fd: int, size: int, offset: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: fail(fd, [data], offset)])

    with CheckpointManager(run, compress="delta", background=False, retries=0) as manager:
        manager.save(1, tree(1))
        monkeypatch.setattr(os, "preadv", fail)
        monkeypatch.setattr(os, "pread", fail_too)
        with caplog.at_level(logging.WARNING):
            manager.save(2, tree(2))
        manager.save(3, tree(3))
    assert "step 2 is stored whole, as the base of a delta cannot be read" in caplog.text
    assert bases(run) == {3: 2}
    assert_same(CheckpointManager(run).load(3), tree(3))


def test_the_step_before_the_base_and_the_base_itself_are_saved_whole(run: Path) -> None:
    with CheckpointManager(run, compress="delta", background=False) as manager:
        manager.save(5, tree(5))
        manager.save(5, tree(6), overwrite=True)
        manager.save(7, tree(7))
    assert bases(run) == {7: 5}
    assert_same(statedict.load(run / "7"), tree(7))


@pytest.mark.parametrize("background", [True, False])
def test_what_a_delta_needs_is_not_overwritten(run: Path, background: bool) -> None:
    with CheckpointManager(run, compress="delta", background=background) as manager:
        for step in (1, 2):
            manager.save(step, tree(step))
        with pytest.raises(RunError, match="step 2 is a delta to step 1, which would be replaced; write that out by"):
            manager.save(1, tree(9), overwrite=True)
        manager.save(2, tree(3), overwrite=True)
    assert_same(CheckpointManager(run).load(1), tree(1))
    assert_same(CheckpointManager(run).load(2), tree(3))


def test_a_damaged_delta_does_not_keep_its_base_from_being_overwritten(run: Path) -> None:
    fill(run, [1, 2])
    damage(run, 2)
    with CheckpointManager(run, compress="delta", existing="continue") as manager:
        manager.save(1, tree(9), overwrite=True)
    assert_same(CheckpointManager(run).load(1), tree(9))


def test_damage_of_the_base_is_not_said_to_be_that_of_the_delta(run: Path) -> None:
    fill(run, [1, 2])
    damage(run, 1)
    problems = statedict.verify(run / "2").problems
    assert [one.part for one in problems] == ["model.frozen"]
    assert "its coded bytes or step 1 are damaged" in str(problems[0])
    assert str(problems[0]).endswith("verify step 1 first")


def test_a_link_to_a_step_or_its_file_finds_the_base(run: Path, tmp_path: Path) -> None:
    fill(run, [1, 2])
    links = tmp_path / "elsewhere"
    links.mkdir()
    (links / "latest").symlink_to(run / "2")
    (links / "latest.safetensors").symlink_to(run / "2" / "checkpoint.safetensors")
    (run / "latest").symlink_to("2")
    for path in (links / "latest", links / "latest.safetensors", run / "latest"):
        assert_same(statedict.load(path), tree(2))
        assert statedict.verify(path).ok


def test_a_run_in_a_cache_of_the_hub_finds_the_base(run: Path, tmp_path: Path) -> None:
    fill(run, [1, 2])
    blobs, there = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc" / "run"
    blobs.mkdir(parents=True)
    for step in ("1", "2"):
        shutil.copy(run / step / "checkpoint.safetensors", blobs / step)
        (there / step).mkdir(parents=True)
        (there / step / "checkpoint.safetensors").symlink_to(blobs / step)
    assert_same(statedict.load(there / "2"), tree(2))


def test_blame_reads_the_digests_of_what_deltas_decode_to(run: Path) -> None:
    fill(run, range(1, 5))
    found = {one.path: len(one.changes) for one in blame(run).histories}
    assert found == {"model.w": 3, "model.frozen": 0, "state": 3}
    frozen = {
        e.digest for step in range(1, 5) for e in Directory(str(run)).manifest(step).entries if "frozen" in e.path
    }
    assert frozen == {xxh3_128_hexdigest(tree(0)["model"]["frozen"].tobytes())}


def test_a_delta_is_written_out_as_plain_files(run: Path, tmp_path: Path) -> None:
    fill(run, [1, 2])
    statedict.convert(run / "2", tmp_path / "plain.safetensors")
    shutil.rmtree(run)
    assert_same(statedict.load(tmp_path / "plain.safetensors"), tree(2))
    with safe_open_of(tmp_path / "plain.safetensors") as file:
        assert file.get_tensor("model.w").dtype == torch.float32


def safe_open_of(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, "pt")  # type: ignore[no-untyped-call]


def test_a_process_elsewhere_reads_the_run_by_relative_names(run: Path) -> None:
    fill(run, [1, 2])
    code = "import statedict; print(statedict.load('checkpoint.safetensors')['model']['w'].numpy()[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=run / "2", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tree(2)["model"]["w"][0])


def test_a_run_in_a_bucket_is_compressed_too(s3: Any) -> None:
    with CheckpointManager("s3://bucket/run", compress="delta", full_every=3, keep=1) as manager:
        for step in range(1, 6):
            manager.save(step, tree(step))
    assert Directory("s3://bucket/run").steps() == [4, 5]
    assert_same(CheckpointManager("s3://bucket/run").load(), tree(5))


def test_the_manifest_and_about_name_the_base(run: Path) -> None:
    fill(run, [1, 2])
    assert json.loads((run / "2" / "manifest.json").read_text())["base"] == 1
    assert "base" not in json.loads((run / "1" / "manifest.json").read_text())
    assert (about(run, 2).base, about(run, 1).base) == (1, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compress": "zip"}, r"compress='zip': expected 'planes' or 'delta'"),
        ({"compress": "delta", "full_every": 0}, r"full_every=0: expected a number of checkpoints, 1 or more"),
        ({"compress": "planes", "format": "torch"}, r"only safetensors are compressed, not format='torch'"),
    ],
)
def test_an_argument_that_does_not_fit_is_an_error(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CheckpointManager(run, **options)
    assert not run.exists()


def test_without_the_library_no_training_begins(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'statedict\[compress\]'"):
        CheckpointManager(run, compress="planes")
