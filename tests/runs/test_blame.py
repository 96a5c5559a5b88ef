"""When tensors changed: against what was done to them, over our checkpoints and over plain files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict import CheckpointManager
from statedict.errors import PathError, RunError
from statedict.render.report_text import blame as lines
from statedict.runs import blame


def ours(path: Path | str, trees: dict[int, Any], format: str = "safetensors") -> None:
    with CheckpointManager(path, format=format, background=False) as manager:
        for step, tree in trees.items():
            manager.save(step, {"always": numpy.full(3, step, "float64"), **tree})


def plain(path: Path, trees: dict[int, Any]) -> None:
    path.mkdir(exist_ok=True)
    for step, tree in trees.items():
        statedict.save({"always": numpy.full(3, step, "float64"), **tree}, path / f"step_{step}.pt")


def changed(path: Path | str, pattern: str = "*") -> dict[str, list[int | None]]:
    return {one.path: [change.step for change in one.changes] for one in blame(path, pattern).histories}


@pytest.mark.parametrize("kind", ["safetensors", "torch", "plain"])
@given(history=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_a_tensor_changed_where_its_bytes_did(
    kind: str, history: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run")
    trees = {step: {"w": numpy.full(5, value, "float32")} for step, value in enumerate(history)}
    plain(path, trees) if kind == "plain" else ours(path, trees, kind)
    expected = [step for step in range(1, len(history)) if history[step] != history[step - 1]]
    assert changed(path, "w") == {"w": expected}


def test_how_much_is_the_norm_of_the_change_by_that_of_what_was_before(tmp_path: Path) -> None:
    before, after = numpy.random.default_rng(0).standard_normal((2, 40))
    ours(tmp_path, {1: {"w": before}, 2: {"w": after}})
    (change,) = blame(tmp_path, "w").histories[0].changes
    assert change.measures is not None
    assert change.measures.relative == pytest.approx(numpy.linalg.norm(after - before) / numpy.linalg.norm(before))
    assert (change.name, change.before, change.measures.share) == ("2", "1", 1.0)


def test_of_ours_nothing_is_read_whose_digest_stays(tmp_path: Path) -> None:
    ours(tmp_path, {1: {"frozen": numpy.ones(5)}, 2: {"frozen": numpy.ones(5)}})
    file = tmp_path / "2" / "checkpoint.safetensors"
    frozen = statedict.load(file)["frozen"]
    with file.open("r+b") as stream:
        stream.seek(frozen.storage.offset + frozen.offset)
        stream.write(b"\xff" * 8)
    assert changed(tmp_path, "frozen") == {"frozen": []}


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_the_first_step_with_nan_or_infinity_is_named(tmp_path: Path, kind: str) -> None:
    bad = numpy.array([1, numpy.nan, numpy.inf])
    trees = {
        1: {"w": numpy.ones(3), "early": bad, "never": numpy.ones(3)},
        2: {"w": numpy.ones(3), "early": bad, "never": numpy.ones(3)},
        3: {"w": bad, "early": bad + 1, "never": numpy.zeros(3)},
        4: {"w": bad + 1, "early": numpy.ones(3), "never": numpy.ones(3)},
    }
    (ours if kind == "ours" else plain)(tmp_path, trees)
    report = blame(tmp_path)
    found = {one.path: one.broken and (one.broken.step, one.broken.nan, one.broken.inf) for one in report.histories}
    assert found == {"always": None, "w": (3, 1, 1), "early": (1, 1, 1), "never": None}
    assert [one.path for one in report.broken] == ["early", "w"]
    first = "1" if kind == "ours" else "step_1.pt"
    assert f"first NaN or infinite at {first}: early" in str(report)


def test_another_shape_or_dtype_is_a_change_with_a_note(tmp_path: Path) -> None:
    ours(
        tmp_path,
        {
            1: {"w": numpy.ones((2, 3), "float32")},
            2: {"w": numpy.ones((3, 2), "float32")},
            3: {"w": numpy.array([[1, 1], [1, numpy.nan], [1, 1]], "float16")},
        },
    )
    (history,) = blame(tmp_path, "w").histories
    assert [change.note for change in history.changes] == [
        "float32 2×3 → float32 3×2",
        "float32 3×2 → float16 3×2",
    ]
    assert history.broken is not None
    assert history.broken.step == 3


def test_a_tensor_that_is_not_everywhere_is_compared_with_where_it_was_last(tmp_path: Path) -> None:
    ours(tmp_path, {1: {"w": numpy.ones(3)}, 2: {}, 3: {"w": numpy.ones(3)}, 4: {"w": numpy.zeros(3), "new": 1}})
    report = blame(tmp_path, "w")
    assert report.histories[0].there == ("1", "3", "4")
    assert [(change.step, change.before) for change in report.histories[0].changes] == [(4, "3")]
    assert "in 3 of 4 checkpoints" in str(report)


def test_damaged_ones_are_skipped_with_their_reason(tmp_path: Path) -> None:
    ours(tmp_path, {1: {"w": numpy.ones(3)}, 2: {"w": numpy.zeros(3)}, 3: {"w": numpy.zeros(3)}})
    (tmp_path / "2" / "checkpoint.safetensors").write_bytes(b"")
    report = blame(tmp_path, "w")
    assert changed(tmp_path, "w") == {"w": [3]}
    assert "has 0 bytes" in report.skipped["2"]
    assert "skipped 2:" in str(report)


def test_thousands_of_tensors_are_a_few_lines(tmp_path: Path) -> None:
    def tree(step: int) -> dict[str, Any]:
        moving = {f"layers.{n}.weight": numpy.full(2, step + n, "float32") for n in range(2000)}
        return moving | {f"embed.{n}": numpy.full(2, n, "float32") for n in range(1000)}

    ours(tmp_path, {step: tree(step) for step in (1, 2, 3)})
    report = blame(tmp_path)
    shown = str(report).splitlines()
    assert shown[0] == "3,001 tensors in 3 checkpoints, 1 to 3"
    assert shown[1] == "changed at every step: 2,001 tensors"
    assert "never changed: 1,000 tensors" in shown
    assert len(shown) < 50
    assert len([*lines(report, None)]) > 3000
    assert blame(tmp_path, ["embed.*", "layers.3.*"]).histories[0].path in ("embed.0", "layers.3.weight")


def test_the_report_is_strict_json(tmp_path: Path) -> None:
    ours(tmp_path, {1: {"w": numpy.zeros(3)}, 2: {"w": numpy.full(3, numpy.nan)}})
    record = json.loads(json.dumps(blame(tmp_path).to_json(), allow_nan=False))
    assert record["checkpoints"] == ["1", "2"]
    assert [one["name"] for one in record["tensors"]] == ["always", "w"]
    assert record["tensors"][1]["broken"] == {"checkpoint": "2", "step": 2, "nan": 3, "inf": 0, "elements": 3}


def test_a_pattern_without_a_match_and_a_run_without_steps_are_errors(tmp_path: Path) -> None:
    ours(tmp_path, {1: {}})
    with pytest.raises(PathError, match=r"no tensor of 1 matches 'x\.\*'"):
        blame(tmp_path, "x.*")
    (tmp_path / "other").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "other" / "best.pt")
    with pytest.raises(RunError, match="no checkpoint with a step"):
        blame(tmp_path / "other")


def test_folders_of_others_and_buckets_have_histories_too(tmp_path: Path, s3: Any) -> None:
    for step in (1, 2, 3):
        statedict.save({"w": torch.full((3,), float(step > 1))}, tmp_path / f"step-{step}", format="distributed")
    assert changed(tmp_path) == {"w": [2]}
    ours("s3://bucket/run", {1: {"w": numpy.ones(3)}, 2: {"w": numpy.zeros(3)}, 3: {"w": numpy.zeros(3)}})
    assert changed("s3://bucket/run") == {"always": [2, 3], "w": [2]}
