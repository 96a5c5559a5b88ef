from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statedict

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CONFIG = """
merge_method: linear
models:
- model: a.safetensors
  parameters: {weight: 1}
- model: b.safetensors
  parameters: {weight: 3}
"""


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, value in (("a", 0.0), ("b", 4.0)):
        statedict.save({"w": torch.full((2, 2), value)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "merge.yml").write_text(CONFIG)
    return tmp_path


def test_a_configuration_is_merged(run: Run, models: Path) -> None:
    done = run("merge", "merge.yml", "-o", "out.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a.safetensors", "b.safetensors", "linear: 1 tensor, 16 B"]
    assert statedict.load(models / "out.safetensors")["w"].tolist() == [[3, 3], [3, 3]]
    record = json.loads(run("merge", "merge.yml", "--dry-run", "--json").stdout)
    assert (record["method"], record["sources"], record["written"]) == (
        "linear", [["a.safetensors", None], ["b.safetensors", None]], False,
    )  # fmt: skip


def test_models_are_found_beside_the_configuration(run: Run, models: Path) -> None:
    (models / "deep").mkdir()
    for name in ("a.safetensors", "b.safetensors", "merge.yml"):
        shutil.move(models / name, models / "deep" / name)
    assert run("merge", "deep/merge.yml", "-o", "out.pth").returncode == 0
    assert statedict.load(models / "out.pth")["w"].tolist() == [[3, 3], [3, 3]]


def test_a_part_of_a_file_is_a_model(run: Run, models: Path) -> None:
    trees = [statedict.load(models / f"{name}.safetensors") for name in "ab"]
    statedict.save({"one": trees[0], "two": trees[1]}, models / "both.pth")
    (models / "merge.yml").write_text(CONFIG.replace("a.saf", "both.pth::one # ").replace("b.saf", "both.pth::two # "))
    assert run("merge", "merge.yml", "-o", "out.pth").returncode == 0
    assert statedict.load(models / "out.pth")["w"].tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    "name",
    [
        "{model: model, lora: adapter, override_architecture: X}",
        "model+adapter",
        "{model: {path: model}, lora: {path: adapter}}",
    ],
)
def test_a_model_may_be_named_with_an_adapter(run: Run, tmp_path: Path, name: str) -> None:
    for folder, tensors in (
        ("model", {"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}),
        (
            "adapter",
            {f"base_model.model.fc.lora_{x}.weight": torch.ones(shape) for x, shape in (("A", (1, 4)), ("B", (3, 1)))},
        ),
    ):
        (tmp_path / folder).mkdir()
        statedict.save(tensors, tmp_path / folder / ("adapter_" * (folder == "adapter") + "model.safetensors"))
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    (tmp_path / "merge.yml").write_text(
        f"{{merge_method: linear, models: [{{model: model}}, {{model: {name}}}], parameters: {{weight: 1}}}}"
    )
    done = run("merge", "merge.yml", "-o", "out/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["model", name if "+" in name else "model + adapter", "adapter"]
    assert ("override_architecture has no effect" in done.stdout) == ("override" in name)
    made = statedict.load(tmp_path / "out")
    assert {name: tensor.unique().tolist() for name, tensor in made.torch().items()} == {
        "fc.weight": [2],
        "fc.bias": [0],
    }
    sources = json.loads(made.metadata["provenance"])["sources"]
    assert [[*source["files"]] for source in sources] == [
        ["model.safetensors"], ["model.safetensors"], ["adapter_model.safetensors"],
    ]  # fmt: skip


def test_the_dtype_is_an_option(run: Run, models: Path) -> None:
    done = run("merge", "--method", "linear", "a.safetensors", "b.safetensors", "--dtype", "bf16", "-o", "out.pth")
    assert done.returncode == 0, done.stderr
    assert str(statedict.load(models / "out.pth")["w"].dtype) == "bfloat16"


def test_parameters_may_be_given_by_pattern(run: Run, tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 8.0)):
        statedict.save({"x.w": torch.full((2,), value), "y.w": torch.full((2,), value)}, tmp_path / f"{name}.pth")
    models = ("--method", "linear", "a.pth", "b.pth", "--set", "normalize=y=false")
    done = run("merge", *models, "--weight", "1,1", "--weight", "x.*=1,3", "-o", "out.pth")
    assert done.returncode == 0, done.stderr
    assert [tensor.tolist()[0] for tensor in statedict.load(tmp_path / "out.pth").values()] == [6, 8]
    twice = run("merge", *models, "--weight", "x=1,1", "--weight", "x=1,3", "--dry-run")
    assert "'weight' is given twice for 'x'" in twice.stderr
    assert "no entry of 2 matches 'z'" in run("merge", *models, "--weight", "z=1,1", "--dry-run").stderr


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (CONFIG, ("merge.yml", "--weight", "1"), "--weight goes with --method; merge.yml has its own"),
        (CONFIG, ("merge.yml", "--base", "a"), "--base goes with --method"),
        (CONFIG, ("merge.yml", "merge.yml"), "name a method by --method, or one CONFIG.yml"),
        (CONFIG, ("a.safetensors",), "name a method by --method, or one CONFIG.yml"),
        (CONFIG, ("nothing.yml",), "nothing.yml: cannot open"),
        ("a: [", ("merge.yml",), "merge.yml: is not YAML"),
        ("\0", ("merge.yml",), "merge.yml: is not YAML"),
        (LAUGHS, ("merge.yml",), "merge.yml: has more than 1,048,576 entries when its aliases are followed"),
        ("merge_method: &a [*a]", ("merge.yml",), "has more than 1,048,576 entries when its aliases are followed"),
        ("a: *b", ("merge.yml",), "merge.yml: is not YAML"),
        (CONFIG + "---" + CONFIG, ("merge.yml",), "has several documents; put each merge into a file of its own"),
        ("merge_method: ties\nmerge_method: linear", ("merge.yml",), "line 2: has the key 'merge_method' twice"),
        (
            "merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: []}",
            ("merge.yml",),
            "parameters: t: expected a value, a list of values, or filters, got an empty list",
        ),
        ("!!python/name:os.system x", ("merge.yml",), "merge.yml: is not YAML: could not determine a constructor"),
        (CONFIG + "dtpye: 1", ("merge.yml",), "merge.yml: the configuration: the key 'dtpye' is not known"),
        (CONFIG.replace("b.saf", "c.saf"), ("merge.yml",), "there is no model 'c.safetensors', here or beside"),
        (
            CONFIG.replace("b.safetensors", "org/name"),
            ("merge.yml",),
            "has none; pass --download to read it from the hub",
        ),
        (
            CONFIG.replace("b.safetensors", "a.safetensors+org/adapter"),
            ("merge.yml",),
            "there is no model 'org/adapter', here or beside the configuration",
        ),
        (CONFIG, ("--method", "linear", "a.safetensors", "--download"), "--download goes with a CONFIG.yml"),
        (" " * (1 << 21), ("merge.yml",), "the configuration of a merge has at most 1,048,576"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,  # the whole would not fit the environment
)
def test_mistakes_are_explained(run: Run, models: Path, text: str, arguments: tuple[str, ...], message: str) -> None:
    (models / "merge.yml").write_text(text)
    done = run("merge", *arguments, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_without_pyyaml_the_error_says_how_to_install_it(models: Path) -> None:
    code = "import sys; sys.modules['yaml'] = None; from statedict.cli import main; main()"
    command = [sys.executable, "-c", code, "merge", "merge.yml", "--dry-run"]
    done = subprocess.run(command, cwd=models, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "statedict: a merge from YAML needs PyYAML; pip install 'statedict[merge]'\n"


def test_shards_that_are_read_are_replaced(run: Run, models: Path) -> None:
    for name, value in (("one", 0.0), ("two", 2.0)):
        tree = {f"w{n}": torch.full((40, 40), value + n) for n in range(4)}
        statedict.save(tree, models / name, max_shard_size="8kB")
    assert len([*(models / "one").iterdir()]) == 5
    refused = run("average", "one", "two", "-o", "one")
    assert (refused.returncode, "overwrite is off" in refused.stderr) == (2, True)
    assert len([*(models / "one").iterdir()]) == 5
    assert run("average", "one", "two", "-o", "one", "--overwrite").returncode == 0
    assert sorted(path.name for path in (models / "one").iterdir()) == ["README.md", "model.safetensors"]
    assert [tensor.tolist()[0][0] for tensor in statedict.load(models / "one").values()] == [1, 2, 3, 4]


def test_vocabularies_that_differ_name_the_option(run: Run, models: Path) -> None:
    statedict.save({"w": torch.full((3, 2), 8.0)}, models / "b.safetensors")
    done = run("merge", "merge.yml", "-o", "out.pth")
    assert done.returncode == 2
    assert (
        "w: has 2 rows in a.safetensors, 3 rows in b.safetensors; if that is the vocabulary, pass --vocabulary trun"
        in done.stderr
    )
    assert run("merge", "merge.yml", "-o", "out.pth", "--vocabulary", "pad").returncode == 0
    assert statedict.load(models / "out.pth")["w"].tolist() == [[6, 6], [6, 6], [8, 8]]
