"""Modules are listed once, with all that is in them, wherever a file keeps it, and layers by number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import operators as operators  # before transformers, which imports torchvision
from transformers import LlamaConfig, LlamaForCausalLM

import statedict
from statedict.tree.walk import nest, sort_by_module

from ..work import assert_linear, steps

Run = Callable[..., subprocess.CompletedProcess[str]]
LAYERS = 12


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that transformers writes: safetensors keeps the norms, which are float32, before the rest in bfloat16."""
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2, vocab_size=16
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    names = [*statedict.load(folder / "model.safetensors")]
    assert names.index("model.norm.weight") < names.index("model.embed_tokens.weight")  # as safetensors sorts
    return folder / "model.safetensors"


def first(lines: Iterable[str]) -> list[str]:
    """The first word of each line, without the branches of a tree."""
    return [words[0] for line in lines if (words := line.replace("├─", "").replace("└─", "").replace("│", "").split())]


def test_show_has_one_line_a_module_with_its_whole_total(run: Run, llama: Path) -> None:
    shown = run("show", str(llama), "--depth", "3").stdout.splitlines()
    assert first(shown).count("model") == first(shown).count("layers") == 1
    numbers = [word for word in first(shown) if word.isdecimal()]
    assert numbers == [*map(str, range(LAYERS))]
    layer = next(line for line in shown if first([line]) == ["10"])
    assert "9 tensors" in layer
    everything = run("show", str(llama)).stdout.splitlines()
    assert sum("layernorm" in line for line in everything) == 2 * LAYERS
    assert max(first(everything).count(word) for word in ("embed_tokens", "lm_head.weight", "norm")) == 1


def test_stats_lists_tensors_and_modules_of_a_tree(run: Run, llama: Path) -> None:
    for depth in ([], ["--depth", "3"]):
        shown = run("stats", str(llama), *depth).stdout.splitlines()
        layers = [line.split()[0].split(".")[2] for line in shown if line.startswith("model.layers.")]
        assert layers == sorted(layers, key=int)
        assert len(layers) == LAYERS * (1 if depth else 9)
    modules = json.loads(run("stats", str(llama), "--json").stdout)["modules"]
    assert [m["name"] for m in modules if m["name"].count(".") == 2] == [f"model.layers.{i}" for i in range(LAYERS)]
    assert {m["tensors"] for m in modules if m["name"].count(".") == 2} == {9}


def test_json_csv_and_recipe_keep_the_order_of_the_file(run: Run, llama: Path) -> None:
    order = [*statedict.load(llama)]
    for command in ("show", "stats"):
        assert [one["name"] for one in json.loads(run(command, str(llama), "--json").stdout)["tensors"]] == order
    assert [line.split(",")[0] for line in run("stats", str(llama), "--csv").stdout.splitlines()[1:]] == order
    assert [line.split(" ")[0] for line in run("show", "--recipe", str(llama)).stdout.splitlines()[1:]] == order


def test_views_for_notebooks_have_one_row_a_module(llama: Path) -> None:
    for page in (statedict.load(llama)._repr_html_(), statedict.inspect(llama)._repr_html_()):
        assert page.count("<b>layers</b>") == page.count("<b>model</b>") == 1
        rows = [page.index(f"<b>{layer}</b>") for layer in range(LAYERS)]
        assert rows == sorted(rows)
        assert f"<b>layers</b> <small>{9 * LAYERS} tensors" in page


def test_the_page_of_a_report_lists_modules_as_a_tree(llama: Path) -> None:
    rows = [row[0] for row in statedict.report(llama).data["tensors"]]
    assert rows == sort_by_module([*statedict.load(llama)], str)
    layers = [int(row.split(".")[2]) for row in rows if row.startswith("model.layers.")]
    assert layers == sorted(layers)


def test_state_of_an_optimizer_is_listed_by_number(run: Run, tmp_path: Path) -> None:
    entries = {at: {"exp_avg": numpy.ones(1)} for at in (0, 1, 10, 11, 2)}
    group = {"lr": 0.1, "params": [*entries]}
    statedict.save({"state": entries, "param_groups": [group]}, tmp_path / "optimizer.safetensors")
    shown = first(run("show", "optimizer.safetensors", "--depth", "2").stdout.splitlines())
    assert [word for word in shown if word.isdecimal()][:5] == ["0", "1", "2", "10", "11"]


def test_diff_lists_what_is_added_as_a_tree(run: Run, tmp_path: Path) -> None:
    statedict.save({f"layers.{i}.w": numpy.full(2, i, "f4") for i in (0, 1, 10, 11, 2)}, tmp_path / "b.pth")
    statedict.save({"x": numpy.full(2, 99, "f4")}, tmp_path / "a.pth")
    shown = run("diff", "a.pth", "b.pth").stdout.splitlines()
    assert first(line for line in shown if "layers" in line) == [f"layers.{i}.w" for i in (0, 1, 2, 10, 11)]


def test_numbers_of_any_length_are_compared(run: Run, tmp_path: Path) -> None:
    names = ["9" * 6000, "1" + "0" * 6000, "007", "8"]
    assert [row for row, _ in nest([(name, 0) for name in names], dict)] == ["007", "8", names[0], names[1]]


PARTS = ["a", "b", "0", "1", "10", "2", "w", "conv1", "conv10", "conv2"]
KEYS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4)


@given(st.lists(KEYS.map(".".join), unique=True))
def test_sorted_by_module_nothing_is_lost_and_the_order_of_the_file_does_not_split_modules(paths: list[str]) -> None:
    found = sort_by_module(paths, str)
    assert sorted(found) == sorted(paths)
    leaves = {path for path in paths for other in paths if other.startswith(f"{path}.")}
    for module in {path.rpartition(".")[0] for path in paths}:
        if module and not any(module == leaf or module.startswith(f"{leaf}.") for leaf in leaves):
            places = [at for at, path in enumerate(found) if path.startswith(f"{module}.")]
            assert places == [*range(places[0], places[-1] + 1)]
    assert sort_by_module(found, str) == found


def test_the_work_grows_with_the_layers_wherever_they_lie() -> None:
    def cost(count: int) -> int:
        norms = {f"model.layers.{i}.norm.weight": numpy.zeros(1, "f4") for i in range(count)}
        rest = {f"model.layers.{i}.mlp.weight": numpy.zeros(1, "f2") for i in range(count)}
        state = statedict.StateDict(norms | rest)
        return steps(lambda: (statedict.inspect(state), str(statedict.stats(state)), state._repr_html_()))

    assert_linear(cost, 1_000, 4_000)
