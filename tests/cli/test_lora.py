from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import statedict

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def adapter(tmp_path: Path) -> None:
    """Of the example's last layer, in a folder of PEFT."""
    (tmp_path / "adapter").mkdir()
    rng = np.random.default_rng(17)
    tensors = {
        "base_model.model.fc3.lora_A.weight": rng.standard_normal((2, 84)).astype("f4"),
        "base_model.model.fc3.lora_B.weight": rng.standard_normal((10, 2)).astype("f4"),
    }
    statedict.save(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "a/model"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("adapter")
def test_an_adapter_is_shown(run: Run) -> None:
    done = run("lora", "show", "adapter", torch=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "adapter: LoRA (PEFT), 2 tensors, 752 B, for a/model",
        "  r: 2",
        "  lora_alpha: 4",
    ]
    assert "  fc3  rank 2  scale 2  norm " in done.stdout
    record = json.loads(run("lora", "show", "adapter/adapter_model.safetensors", "--json").stdout)
    assert record["modules"][0]["shapes"] == [[2, 84], [10, 2]]


@pytest.mark.usefixtures("adapter")
def test_an_adapter_is_applied_proved_and_taken_away(run: Run, tmp_path: Path) -> None:
    done = run("lora", "apply", "checkpoint.pth", "adapter", "-o", "out.pth", "--prove", torch=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model_state.fc3.weight  LoRA of rank 2  norm " in done.stdout
    assert "left out: optimizer_state (optimizer)" in done.stdout
    assert done.stdout.endswith("proof: 1 proved of 1 changes\n")
    before, after = (statedict.load(tmp_path / name)["model_state"] for name in ("checkpoint.pth", "out.pth"))
    assert [name for name in before if before[name].raw() != after[name].raw()] == ["fc3.weight"]
    again = run("lora", "apply", "out.pth", "adapter", "--weight", "-1", "-o", "back.pth", "--json")
    record = json.loads(again.stdout)
    assert record["targets"][0]["inexact"] > 0
    assert any("may differ by a rounding" in note for note in record["notes"])
    back = statedict.load(tmp_path / "back.pth")["model_state"]["fc3.weight"].numpy()
    assert np.allclose(back, before["fc3.weight"].numpy(), atol=1e-5)


@pytest.mark.usefixtures("adapter")
def test_what_rounding_hides_fails_the_proof(run: Run) -> None:
    done = run("lora", "apply", "checkpoint.pth", "adapter", "--weight", "1e-12", "-o", "out.pth", "--prove")
    assert done.returncode == 1
    assert "1 cannot tell of 1 changes; not proved" in done.stdout


@pytest.mark.usefixtures("adapter")
def test_shards_two_adapters_and_a_part(run: Run, tmp_path: Path) -> None:
    two = ("adapter", "adapter/adapter_model.safetensors", "--weight", "0.5,1.5", "--only", "fc3")
    done = run("lora", "apply", "checkpoint.pth", *two, "-o", "out", "--max-shard-size", "100kB", "--prove")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("proved") == 2
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.usefixtures("adapter")
def test_factors_are_mixed(run: Run) -> None:
    two = ("adapter", "adapter/adapter_model.safetensors", "--combination", "ties", "--density", "0.5", "--seed", "1")
    done = run("lora", "apply", "checkpoint.pth", *two, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["targets"][0]["rank"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("checkpoint.pth", "adapter"), "name a file by -o OUT, or use --dry-run"),
        (("checkpoint.pth", "adapter", "--dry-run", "--prove"), "name a file by -o OUT, or use --dry-run"),
        (("checkpoint.pth", "adapter", "--dry-run", "--weight", "x"), "--weight: 'x' is not a list of numbers"),
        (("checkpoint.pth", "adapter", "--dry-run", "--weight", "1,2"), "expected a number, or one for each of 1"),
        (("checkpoint.pth", "checkpoint.pth", "--dry-run"), "has no tensor of a low-rank adapter"),
        (("checkpoint.pth", "adapter", "--dry-run", "--only", "fc9"), "no module of 1 matches 'fc9'"),
    ],
)
@pytest.mark.usefixtures("adapter")
def test_mistakes_are_explained(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run("lora", "apply", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.usefixtures("adapter")
def test_an_adapter_is_extracted_again(run: Run, tmp_path: Path) -> None:
    assert run("lora", "apply", "checkpoint.pth", "adapter", "-o", "tuned.pth").returncode == 0
    done = run("lora", "extract", "checkpoint.pth", "tuned.pth", "--rank", "2", "-o", "again", torch=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fc3  rank 2  energy 1.0000",
        "1 module, 1.0000 of the change of its matrices, 752 B",
    ]
    both = (statedict.lora.apply(tmp_path / "checkpoint.pth", tmp_path / name) for name in ("adapter", "again"))
    one, other = (tree["model_state"]["fc3.weight"].numpy() for tree in both)
    assert np.allclose(one, other, atol=1e-5)
    again = run("lora", "extract", "checkpoint.pth", "tuned.pth", "--energy", "0.5", "-o", "again")
    assert again.returncode == 2
    record = json.loads(
        run("lora", "extract", "checkpoint.pth", "tuned.pth", "--energy", "0.5", "--dry-run", "--json").stdout
    )
    assert record["modules"][0][1] == 1
    extract = ("lora", "extract", "checkpoint.pth", "tuned.pth", "--rank", "2", "--dry-run", "--max-shard-size")
    sizes = {size: run(*extract, size) for size in ("752", "751")}
    assert sizes["752"].returncode == 0
    assert sizes["751"].returncode == 2
    assert "the adapter takes 752 bytes, more than 751, and peft loads adapters of one file" in sizes["751"].stderr
    assert "name a folder by -o OUT" in run("lora", "extract", "checkpoint.pth", "tuned.pth").stderr
    assert (
        "give either --rank R or --energy SHARE"
        in run("lora", "extract", "checkpoint.pth", "tuned.pth", "--dry-run").stderr
    )
