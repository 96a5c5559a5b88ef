"""Folders as accelerate and transformers' Trainer leave them: everything in them is read, or named."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import statedict
from statedict.formats.beside import list_others
from statedict.render.report_text import verified, verify
from statedict.runs import verify_run

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from tests import operators
import torch
from accelerate import Accelerator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

accelerator = Accelerator(cpu=True)
one, other = nn.Linear(4, 3), nn.Linear(3, 1)
optimizers = torch.optim.AdamW(one.parameters()), torch.optim.AdamW(other.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizers[0], 1)
one, other, *optimizers, scheduler = accelerator.prepare(one, other, *optimizers, scheduler)
other(one(torch.ones(2, 4))).sum().backward()
for part in (*optimizers, scheduler):
    part.step()
accelerator.save_state(sys.argv[1] + "/checkpoint_3")

sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
model = LlamaForCausalLM(LlamaConfig(**sizes))
data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
how = dict(max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, per_device_train_batch_size=1)
Trainer(model, TrainingArguments(sys.argv[1], **how), train_dataset=data).train()
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=240)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


FILES = {
    "checkpoint_3": ["model_1.safetensors", "optimizer.bin", "optimizer_1.bin", "random_states_0.pkl", "scheduler.bin"],
    "checkpoint-2": [
        "config.json", "generation_config.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
        "training_args.bin",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_folder_is_read(name: str, run: Path) -> None:
    assert list_others(str(run / name)) == FILES[name]
    report = statedict.verify(run / name)
    assert report.ok
    assert not report.unread
    assert report.nbytes > sum((run / name / file).stat().st_size for file in FILES[name] if file.endswith(".json"))
    assert next(verify(report)).startswith(f"{run / name}: fine (safetensors, ")
    assert "no damage found" not in str(report)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in FILES for file in FILES[name]])
@pytest.mark.parametrize("damage", ["garbage", "cut", "empty"])
def test_damage_in_any_file_is_found(name: str, file: str, damage: str, run: Path) -> None:
    path = run / name / file
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes({"garbage": b"\x91\x02garbage\xff" * 40, "cut": half, "empty": b""}[damage])
    report = statedict.verify(run / name)
    assert any(problem.part.startswith(file) for problem in report.problems), report
    damaged = verify_run(run)
    assert file in damaged.damage[name]
    assert not damaged.damage[next(other for other in FILES if other != name)]


def test_what_is_not_looked_at_is_named_and_the_folder_is_not_called_fine(run: Path) -> None:
    folder = run / "checkpoint-2"
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (folder / ".cache").mkdir()
    (folder / "README.md").write_text("# A model\n")
    report = statedict.verify(folder)
    assert report.ok
    assert report.unread == (".cache/", "tokenizer.model")
    first, *rest = verify(report)
    assert ": no damage found (safetensors, " in first
    assert rest[-1] == "  not looked at: .cache/, tokenizer.model"
    (run / "optimizer-7.pt").write_bytes(b"")
    lines = list(verified(verify_run(run)))
    assert lines[0].endswith(": 2 checkpoints, none damaged as far as looked at")
    assert "  checkpoint-2  no damage found" in lines
    assert lines[-1] == "  not looked at: optimizer-7.pt"
    assert json.loads(json.dumps(verify_run(run).to_json()))["unread"] == ["optimizer-7.pt"]


def test_shards_beside_the_model_are_read_once(run: Path) -> None:
    folder = run / "checkpoint-2"
    statedict.convert(folder / "model.safetensors", run / "apart/", max_shard_size="2kB")
    for path in (run / "apart").iterdir():
        shutil.move(path, folder / path.name)
    report = statedict.verify(folder)
    assert report.ok, report
    shards = [file for file in list_others(str(folder)) if file.startswith("model-")]
    assert len(shards) > 1
    (folder / shards[1]).write_bytes(b"x" * 100)
    assert len(statedict.verify(folder).problems) == 1


def test_folders_differ_where_any_checkpoint_in_them_does(run: Path) -> None:
    a, b = run / "checkpoint_3", Path(shutil.copytree(run / "checkpoint_3", run / "copy"))
    assert statedict.diff(a, b).same
    state = statedict.load(b / "model_1.safetensors")
    statedict.save({**state, "bias": state["bias"].numpy() + 1}, b / "model_1.safetensors")
    found = statedict.diff(a, b)
    assert [tensor.path for tensor in found.changed] == ["model_1.safetensors.bias"]
    (b / "model_1.safetensors").write_bytes(b"\x91\x02garbage\xff" * 40)
    with pytest.raises(statedict.errors.UnknownFormatError, match=r"model_1\.safetensors: no known checkpoint"):
        statedict.diff(a, b)
    (b / "model_1.safetensors").unlink()
    found = statedict.diff(a, b)
    assert found.unread == ("model_1.safetensors (only in the first)",)
    assert found.to_json()["unread"] == list(found.unread)
    first, *_, last = str(found).splitlines()
    assert first.startswith("same as far as compared: ")
    assert last == "not compared: model_1.safetensors (only in the first)"


def test_a_pickle_of_plain_values_is_no_damage_and_named(run: Path) -> None:
    (run / "checkpoint_3" / "seen.pkl").write_bytes(pickle.dumps([1, 2, 3]))
    report = statedict.verify(run / "checkpoint_3")
    assert report.ok
    assert report.unread == ("seen.pkl",)
