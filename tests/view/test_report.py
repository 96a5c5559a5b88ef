"""`statedict.report` without a browser: what is in the page's file, and the errors."""

from __future__ import annotations

import builtins
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.view.report import render as rendered
from statedict.view.source import place

from ..pages import parsed
from .conftest import training


class Reader(HTMLParser):
    """The scripts, and the text of the title, as a parser of HTML sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.title = ""
        self._in = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in == "title":
            self.title += data


@given(st.text() | st.sampled_from(["</script>", "<!--", "]]>", "{{data}}", "\u2028"]), st.text())
def test_what_is_in_the_page_is_what_was_put_in(title: str, value: str) -> None:
    found = Reader()
    whole = rendered(title, json.dumps({value: [value]}))
    head = whole.partition("<script>")[0]  # without plotly's program, which takes a while
    found.feed(head)
    assert json.loads(found.scripts[0]) == {value: [value]}
    assert found.title == title.replace("\r\n", "\n") or "\r" in title or "\0" in title
    assert head.count("<script") == 1


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    statedict.save(training(3), tmp_path / "a.pth")
    pages = [statedict.report(tmp_path / "a.pth").html() for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0].isascii() or "data" in pages[0]
    assert not re.search(r"20\d\d-\d\d-\d\d", pages[0].partition("<script>")[0])


def test_a_page_of_a_thousand_tensors_is_below_ten_megabytes(tmp_path: Path) -> None:
    make = numpy.random.default_rng(1)
    name = "model.transformer.layers.{}.self_attention.projection_{}.weight"
    state = {name.format(at // 10, at % 10): make.standard_cauchy((32, 32)) for at in range(1000)}
    statedict.report(state, {key: value * 2 for key, value in state.items()}).save(tmp_path / "page.html")
    assert 4 << 20 < (tmp_path / "page.html").stat().st_size < 10_000_000


def test_the_policy_of_the_page_forbids_the_network_and_foreign_programs() -> None:
    text = rendered("t", "{}")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "http" not in policy
    assert "connect-src" not in policy


def test_patterns_choose_tensors_and_one_without_a_match_is_an_error(tmp_path: Path) -> None:
    state = training(1)
    page = statedict.report(state, only="model.h.0.*")
    assert [row[0] for row in page.data["tensors"]] == [
        f"model.h.0.{name}" for name in ("attn.weight", "attn.bias", "mlp.weight", "norm.running_mean")
    ]
    pair = statedict.report(state, training(2), only=["optimizer.state.0", "model.wte.weight"])
    assert len(pair.data["tensors"]) == 3
    assert {change["kind"] for change in pair.data["change"]["rows"].values()} == {"changed"}
    one_side = statedict.report({"a": numpy.ones(2)}, {"b": numpy.ones(3)}, only=["b"])
    assert [change["kind"] for change in one_side.data["change"]["rows"].values()] == ["added"]
    with pytest.raises(statedict.errors.PathError, match=r"no tensor of \d+ matches 'nothing'"):
        statedict.report(state, only="nothing")
    with pytest.raises(TypeError, match="got none"):
        statedict.report()


def test_a_page_is_written_whole_and_replaces_only_what_it_may(tmp_path: Path) -> None:
    page = statedict.report({"w": numpy.ones(3)})
    page.save(tmp_path / "page.html")
    page.save(tmp_path / "page.html")
    with pytest.raises(statedict.errors.ExistingFileError):
        page.save(tmp_path / "page.html", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *rest)

    page = statedict.report({"w": numpy.ones(3)})
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(statedict.errors.MissingExtraError, match=r"pip install 'statedict\[view\]'"):
        page.html()


def test_steps_are_ordered_by_number_if_all_have_one(tmp_path: Path) -> None:
    for step in (2, 10, 1):
        statedict.save({"w": numpy.full(4, step, "f4")}, tmp_path / f"run3-step{step}.pth")
    files = [tmp_path / f"run3-step{step}.pth" for step in (2, 10, 1)]
    run = statedict.report(*files).data["run"]
    assert [step["step"] for step in run["steps"]] == [1, 2, 10]
    assert [step["l2"] for step in run["steps"]] == [2, 4, 20]
    run = statedict.report(*files, {"w": numpy.ones(4)}).data["run"]
    assert [step["step"] for step in run["steps"]] == [0, 1, 2, 3]
    assert not run["numbered"]


def test_a_loss_in_a_name_is_a_metric_and_not_the_step(tmp_path: Path) -> None:
    losses = {2: 0.125, 10: 0.5, 1: 9.75}
    files = [tmp_path / f"epoch={step}-step={step}-val_loss={loss}.ckpt" for step, loss in losses.items()]
    for file, step in zip(files, losses, strict=True):
        torch.save({"w": torch.full((4,), step)}, file)
    folders = [tmp_path / f"checkpoint-{step}" / "loss0.3.safetensors" for step in losses]
    for folder, step in zip(folders, losses, strict=True):
        folder.parent.mkdir()
        statedict.save({"w": numpy.full(4, step, "f4")}, folder)
    listed = [one.step for one in statedict.runs.listing(tmp_path) if one.name.endswith(".ckpt")]
    run = statedict.report(*files).data["run"]["steps"]
    assert [one["step"] for one in run] == listed == [1, 2, 10]
    assert [one["metrics"] for one in run] == [{"val_loss": losses[step]} for step in (1, 2, 10)]
    assert [one["step"] for one in statedict.report(*folders).data["run"]["steps"]] == [1, 2, 10]


def test_the_metrics_of_a_run_are_those_of_its_manifests(tmp_path: Path) -> None:
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 10, 100):
            manager.save(
                step, {"w": numpy.full(4, step)}, metrics={"loss": 1 / step} | ({"nan": math.nan} if step > 5 else {})
            )
    steps = statedict.report(tmp_path / "run").data["run"]["steps"]
    assert [one["metrics"]["loss"] for one in steps] == [0.2, 0.1, 0.01]
    assert [one["metrics"].get("nan") for one in steps] == [None, "nan", "nan"]


def test_states_of_generators_are_in_no_norm(tmp_path: Path) -> None:
    """Those of this library, and what transformers, accelerate and Lightning save."""
    generator = torch.Generator()
    twister = numpy.random.RandomState(0).get_state()
    tree = statedict.capture({"rng": statedict.rng(), "sampler": generator, "draw": numpy.random.default_rng()})
    tree |= {
        "philox": numpy.random.Generator(numpy.random.Philox(0)).bit_generator.state,
        "rng_state": {"cpu": torch.get_rng_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)], "numpy": twister},
        "torch_manual_seed": torch.get_rng_state(),
        "gpu": {"device": "cuda", "state": torch.full((16,), 255, dtype=torch.uint8)},
    }
    model = {"w": numpy.full(4, 2, "f4"), "image": numpy.full(16, 2, "u1"), "codes": numpy.full(625, 2, "u1")}
    statedict.save({"model": model, "other": tree}, tmp_path / "a.pth")
    stats = statedict.stats(tmp_path / "a.pth")
    assert stats.total.elements == 4 + 16 + 625
    assert {one.name.split(".")[0] for one in stats.modules} == {"model"}
    assert stats.total.l2 == stats["model"].l2
    roles = {one.path: one.role for one in statedict.inspect(tmp_path / "a.pth").tensors}
    found = {path for path, role in roles.items() if role == "generator"}
    assert found == {path for path in roles if path.startswith("other.")}
    assert {"other.rng.torch.state", "other.rng.numpy.state.key", "other.sampler.state", "other.gpu.state"} <= found
    assert {flag.name for flag in stats.flags if flag.name.startswith("other")} == set()


def test_a_directory_of_plain_files_stands_for_its_steps_too(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        statedict.save({"w": numpy.full((2, 2), step, "f4")}, tmp_path / f"step_{step}.pt")
    (tmp_path / "notes.txt").write_text("mine")
    page = statedict.report(tmp_path)
    assert [step["step"] for step in page.data["run"]["steps"]] == [5, 20, 100]


def test_the_directory_of_a_run_stands_for_its_steps(tmp_path: Path) -> None:
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 10, 100):
            manager.save(step, {"w": numpy.full(4, step, "f4")})
        manager.wait()
    page = statedict.report(tmp_path / "run")
    assert [step["step"] for step in page.data["run"]["steps"]] == [5, 10, 100]
    assert page.title == "5/checkpoint.safetensors → 100/checkpoint.safetensors"


@pytest.mark.parametrize(
    ("path", "series", "depth"),
    [
        ("h.3.attn.c_attn.weight", "h.*.attn.c_attn.weight", (3,)),
        ("layer3.0.conv2.weight", "layer*.*.conv2.weight", (3, 0)),
        ("layer3.0.downsample.1.weight", "layer*.*.downsample.1.weight", (3, 0)),
        ("layers.0.experts.7.w1.weight", "layers.*.experts.*.w1.weight", (0, 7)),
        ("0.weight", "*.weight", (0,)),
        ("conv2.weight", "conv*.weight", (2,)),
        ("fc.weight", "", ()),
        ("weight2", "", ()),
        ("h.99999999999.w", "", ()),
    ],
)
def test_the_numbers_in_a_path_are_its_depth(path: str, series: str, depth: tuple[int, ...]) -> None:
    assert place(path) == (series, depth)


def test_a_report_shows_itself_in_a_notebook_and_is_inert(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with statedict.CheckpointManager(tmp_path / "run", keep=9) as manager:
        for step in (5, 10, 100):
            tree = {evil: numpy.full(4, math.nan if step > 5 else 1.0), "w": numpy.full(4, float(step))}
            manager.save(step, tree, metrics={evil: step, "loss": math.nan})
    shown = parsed(statedict.report(tmp_path / "run")._repr_html_()).text
    assert shown.count(evil) >= 2
    assert "steps" in shown
    assert "deserves a look: 2" in shown
    pair = statedict.report({"w": numpy.ones(2)}, {"w": numpy.zeros(2)})
    assert "1 tensor changed" in parsed(pair._repr_html_()).text
