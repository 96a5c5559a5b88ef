"""What is in a directory of checkpoints: ours, and what other libraries really write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import CheckpointManager
from statedict.errors import FileError, MissingFileError, RunError, UnsupportedError
from statedict.runs.look.foreign import metrics_of, step_of
from statedict.runs.look.listing import find, listing

OTHERS = Path(__file__).with_name("others.py")


def run(path: Path | str, steps: tuple[int, ...] = (1, 2, 3)) -> None:
    with CheckpointManager(path) as manager:
        for step in steps:
            manager.save(step, {"w": numpy.full(100, step, "float32")}, metrics={"loss": 1 / step})


def shown(path: Path | str) -> list[tuple[int | None, str, str, str]]:
    return [(one.step, one.name, one.kind, one.state) for one in listing(path)]


def test_ours_come_in_order_with_what_their_manifests_say(tmp_path: Path) -> None:
    run(tmp_path, (2, 10, 100))
    found = listing(tmp_path)
    assert [(one.step, one.kind, one.state, dict(one.metrics)) for one in found] == [
        (2, "statedict", "committed", {"loss": 0.5}),
        (10, "statedict", "committed", {"loss": 0.1}),
        (100, "statedict", "committed", {"loss": 0.01}),
    ]
    assert found[0].path == f"{tmp_path}/2/checkpoint.safetensors"
    assert found[0].nbytes == os.path.getsize(found[0].path)
    assert statedict.load(found[1].path)["w"].numpy()[0] == 10


def test_a_listing_is_ready_for_json(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"w": numpy.ones(3)}, metrics={"loss": float("nan")})
    record = json.loads(json.dumps(listing(tmp_path)[0].to_json(), allow_nan=False))
    assert record["metrics"] == {"loss": None}
    assert record["time"].endswith("+00:00")


def test_a_missing_marker_is_unfinished_and_a_changed_size_is_damage(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "1" / "COMMITTED").unlink()
    with open(tmp_path / "2" / "checkpoint.safetensors", "r+b") as file:
        file.truncate(100)
    (tmp_path / "3" / "manifest.json").write_text("{}")
    (tmp_path / ".4.0123abcd.tmp").mkdir()
    found = listing(tmp_path)
    assert [(one.step, one.state) for one in found] == [
        (1, "unfinished"),
        (2, "damaged"),
        (3, "damaged"),
        (4, "unfinished"),
    ]
    assert "has 100 bytes, committed were" in found[1].damage
    assert "COMMITTED has another digest" in found[2].damage


def test_pinned_steps_are_marked(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "pins.json").write_text('{"pinned": [2]}')
    assert [one.pinned for one in listing(tmp_path)] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=3-step=500.ckpt", 500),
        ("epoch=3-step=500-v1.ckpt", 500),
        ("best-epoch=03-step=0500-val_loss=0.12.ckpt", 500),
        ("epoch=07-val_loss=0.55.ckpt", 7),
        ("last.ckpt", None),
        ("last-v1.ckpt", None),
        ("best.pt", None),
        ("best_model_3.pt", None),
        ("step_500.pt", 500),
        ("ckpt-500.pth", 500),
        ("ckpt500.pth", 500),
        ("model_500.safetensors", 500),
        ("500.pt", 500),
        ("Model-500_ema.pt", 500),
        ("globalstep500", 500),
        ("footstep3.pt", None),
        ("unet_ckpt_500.pt", 500),
        ("resnet50.pth", None),
        ("yolov8.pt", None),
        ("vgg-16.pth", None),
        ("2024-11-22.pt", None),
        ("llama-7b-v2.safetensors", None),
        ("bert_L12_H768.bin", None),
        ("epoch_3.pt", 3),
        ("model_epoch3_loss=0.5.pt", 3),
        ("resnet50-step120.pth", 120),
        ("iter_0000500", 500),
        ("global_step500", 500),
        ("checkpoint-500", 500),
        ("step-500", 500),
        ("checkpoint_3", 3),
        ("model.safetensors", None),
        ("weights-f37072fd.pth", None),
    ],
)
def test_the_step_is_in_the_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_the_metrics_are_in_the_name_where_it_has_them() -> None:
    assert metrics_of("epoch=3-step=500-val_loss=0.12-val/acc=0.9.ckpt") == {"val_loss": 0.12, "val/acc": 0.9}
    assert metrics_of("epoch=3-step=500.ckpt") == {}
    assert metrics_of("loss=-1.5e-3_5.pt") == {"loss": -0.0015}


def test_plain_files_are_listed_by_their_steps_and_unknown_ones_are_not(tmp_path: Path) -> None:
    for name in ("step_500.pt", "ckpt-20.pth", "best.pt", "step_500.ckpt", "epoch_3.pt"):
        torch.save({"w": torch.ones(3)}, tmp_path / name)
    statedict.save({"w": torch.ones(3)}, tmp_path / "model_7.safetensors")
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    (tmp_path / "notes_3.txt").write_text("no checkpoint")
    (tmp_path / "tokens_3.bin").write_bytes(b"no checkpoint")
    (tmp_path / "step_600.pt").write_bytes(b"")
    (tmp_path / "logs_4").mkdir()
    assert shown(tmp_path) == [
        (3, "epoch_3.pt", "torch", "foreign"),
        (7, "model_7.safetensors", "safetensors", "foreign"),
        (20, "ckpt-20.pth", "torch", "foreign"),
        (500, "step_500.ckpt", "torch", "foreign"),
        (500, "step_500.pt", "torch", "foreign"),
        (600, "step_600.pt", "file", "damaged"),
        (None, "best.pt", "torch", "foreign"),
    ]


def test_folders_of_others_that_were_not_finished_are_damaged(tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(3)}, tmp_path / "step-5", format="distributed")
    (tmp_path / "step-5" / ".metadata").unlink()
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"log_history": []}')
    (tmp_path / "checkpoint-7").mkdir()
    statedict.save({"w": torch.ones(3)}, tmp_path / "checkpoint-7" / "model.safetensors")
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text("half")
    assert shown(tmp_path) == [
        (5, "step-5", "distributed", "damaged"),
        (6, "checkpoint-6", "transformers", "damaged"),
        (7, "checkpoint-7", "transformers", "damaged"),
    ]
    assert all(one.damage for one in listing(tmp_path))


def test_shards_are_listed_once_by_their_index(tmp_path: Path) -> None:
    statedict.save({f"w{n}": torch.ones(1000) for n in range(4)}, tmp_path, max_shard_size="5KB")
    (found,) = listing(tmp_path)
    assert (found.step, found.name, found.kind) == (None, "model.safetensors.index.json", "sharded")
    assert found.nbytes == sum(one.stat().st_size for one in tmp_path.glob("*.safetensors"))


def wrote(library: str, work: Path) -> Path:
    """The directory in which a library has written its checkpoints."""
    done = subprocess.run([sys.executable, str(OTHERS), library], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work


def test_what_the_trainer_of_transformers_wrote(tmp_path: Path) -> None:
    work = wrote("transformers", tmp_path)
    found = listing(work / "transformers")
    assert [(one.step, one.name, one.kind, one.state) for one in found] == [
        (step, f"checkpoint-{step}", "transformers", "foreign") for step in (2, 4, 6)
    ]
    for one in found:
        assert set(one.metrics) == {"loss", "eval_loss", "learning_rate", "grad_norm"}
        assert one.nbytes > os.path.getsize(os.path.join(one.path, "optimizer.pt"))
        assert "classifier.weight" in statedict.load(one.path)
    history = json.loads((work / "transformers" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [one.metrics["eval_loss"] for one in found] == [row["eval_loss"] for row in history if "eval_loss" in row]


@pytest.mark.parametrize("score", [10**400, "high", None, torch.ones(3), [1]], ids=range(5))
def test_a_score_of_lightning_that_is_no_number_is_none(tmp_path: Path, score: object) -> None:
    for step, given in ((5, torch.tensor(0.5)), (10, score)):
        name = f"epoch=0-step={step}.ckpt"
        chosen = {"monitor": "loss", "best_model_path": name, "best_model_score": given}
        callbacks = {"a": chosen, "b": {"monitor": "loss", "best_model_path": 1, "best_k_models": {(1,): 1}}}
        tree = {"pytorch-lightning_version": "2.0", "callbacks": callbacks, "state_dict": {"w": torch.ones(2)}}
        torch.save(tree, tmp_path / name)
    assert [(one.step, one.metrics, one.state) for one in listing(tmp_path)] == [
        (5, {"loss": 0.5}, "foreign"),
        (10, {}, "foreign"),
    ]


def test_what_lightning_wrote(tmp_path: Path) -> None:
    work = wrote("lightning", tmp_path)
    found = listing(work / "lightning")
    assert [(one.step, one.kind) for one in found] == [(step, "lightning") for step in (2, 4, 6)]
    for one in found:
        assert f"val_loss={one.metrics['val_loss']:.3f}.ckpt" in one.name
    plain = listing(work / "plain")
    assert [(one.step, one.name) for one in plain][-1] == (None, "last.ckpt")
    scores = {one.step: one.metrics["val_loss"] for one in found}
    assert [round(one.metrics["val_loss"], 3) for one in plain[:-1]] == [scores[one.step] for one in plain[:-1]]


def test_what_accelerate_wrote(tmp_path: Path) -> None:
    assert shown(wrote("accelerate", tmp_path) / "accelerate" / "checkpoints") == [
        (0, "checkpoint_0", "accelerate", "foreign"),
        (1, "checkpoint_1", "accelerate", "foreign"),
    ]


def test_what_torch_distributed_wrote_as_torchtitan_does(tmp_path: Path) -> None:
    work = wrote("torchtitan", tmp_path)
    found = listing(work / "torchtitan")
    assert shown(work / "torchtitan") == [
        (5, "step-5", "distributed", "foreign"),
        (10, "step-10", "distributed", "foreign"),
    ]
    assert statedict.load(found[1].path)["step"].item() == 10


def test_ours_and_those_of_others_stand_beside_one_another(tmp_path: Path) -> None:
    run(tmp_path, (1, 3))
    torch.save({"w": torch.ones(1)}, tmp_path / "step_2.pt")
    statedict.save({"w": torch.ones(1)}, tmp_path / "step_3.safetensors")
    found = listing(tmp_path)
    assert [(one.step, one.state) for one in found] == [
        (1, "committed"),
        (2, "foreign"),
        (3, "committed"),
        (3, "foreign"),
    ]


def test_a_folder_that_another_named_by_a_step_is_listed_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "5" / "pytorch_model.bin")
    (tmp_path / "6").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "6" / "checkpoint.pth")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "notes.txt").write_text("precious")
    run(tmp_path, (1,))
    assert shown(tmp_path)[:2] == [(1, "1", "statedict", "committed"), (5, "5", "folder", "foreign")]
    assert (tmp_path / "6" / "checkpoint.pth").exists()
    manager = CheckpointManager(tmp_path, existing="continue", background=False)
    with manager, pytest.raises(RunError, match="not a checkpoint of ours"):
        manager.save(7, {"w": numpy.ones(1)})
    assert (tmp_path / "7" / "notes.txt").read_text() == "precious"


def test_what_is_no_directory_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert listing(tmp_path / "empty") == []
    with pytest.raises(FileError, match="is a file, not the directory of a run"):
        listing(tmp_path / "file")
    with pytest.raises(MissingFileError, match="no such directory"):
        listing(tmp_path / "missing")
    with pytest.raises(UnsupportedError, match="does not list"):
        listing("http://localhost:1/run")


@pytest.mark.parametrize(
    ("which", "step"), [("latest", 3), ("best:loss", 3), ("best:loss:max", 1), ("2", 2), (2, 2), ("best:loss:min", 3)]
)
def test_a_checkpoint_is_found_by_what_it_is_called(tmp_path: Path, which: str | int, step: int) -> None:
    run(tmp_path)
    assert find(listing(tmp_path), which).step == step


def test_what_is_not_found_names_what_there_is(tmp_path: Path) -> None:
    run(tmp_path)
    found = listing(tmp_path)
    with pytest.raises(RunError, match="run: has no checkpoint '4'; it has 1, 2, 3"):
        find(found, 4, "run")
    with pytest.raises(RunError, match="no checkpoint has the metric 'acc'; there are loss"):
        find(found, "best:acc")
    for name in ("step_9.pt", "ckpt_9.pt"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(RunError, match=r"ckpt_9.pt, step_9.pt have step 9; give the name"):
        find(listing(tmp_path), "9")
    assert find(listing(tmp_path), "ckpt_9.pt").kind == "torch"


def test_the_newest_by_name_is_none_that_is_damaged_or_has_no_step(tmp_path: Path) -> None:
    run(tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "last.pt")
    (tmp_path / "3" / "checkpoint.safetensors").unlink()
    assert find(listing(tmp_path), "latest").step == 2


def test_a_bucket_is_listed_as_a_directory_is(s3: Any, tmp_path: Path) -> None:
    run("s3://bucket/run")
    torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    s3.upload_file(str(tmp_path / "x.pt"), "bucket", "run/step_7.pt")
    s3.put_object(Bucket="bucket", Key="run/8/checkpoint.safetensors", Body=b"half")
    s3.put_object(Bucket="bucket", Key="run/9/precious.txt", Body=b"not ours")
    found = listing("s3://bucket/run")
    assert [(one.step, one.kind, one.state) for one in found] == [
        (1, "statedict", "committed"),
        (2, "statedict", "committed"),
        (3, "statedict", "committed"),
        (7, "torch", "foreign"),
        (8, "statedict", "unfinished"),
    ]
    assert found[0].path == "s3://bucket/run/1/checkpoint.safetensors"
    assert found[3].nbytes == (tmp_path / "x.pt").stat().st_size
    assert all(one.time > 1e9 for one in found)
    with pytest.raises(MissingFileError):
        listing("s3://bucket/nothing")


def test_a_folder_with_zeros_before_its_number_is_not_taken_for_a_step_of_ours(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(7, {"w": numpy.ones(3)})
    (tmp_path / "007").mkdir()
    statedict.save({"w": numpy.ones(3)}, tmp_path / "007" / "model.safetensors")
    assert [(one.name, one.kind, one.step) for one in listing(tmp_path)] == [
        ("007", "folder", 7),
        ("7", "statedict", 7),
    ]
