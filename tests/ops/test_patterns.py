"""One mistake, one error: a pattern that matches nothing, and steps that are no list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import AlterError, PathError, PatternError
from statedict.runs import blame

FILE = "examples/checkpoint.pth"


def blamed(folder: Path) -> None:
    with statedict.CheckpointManager(folder, background=False) as manager:
        manager.save(1, {"w": numpy.ones(3)})
    blame(folder, "nothing")


VERBS: dict[str, Callable[[Path], Any]] = {
    "stats": lambda folder: statedict.stats(FILE, only="nothing"),
    "report": lambda folder: statedict.report(FILE, only="nothing"),
    "report of two": lambda folder: statedict.report(FILE, FILE, only=["nothing"]),
    "diff": lambda folder: statedict.diff(FILE, FILE, only="nothing"),
    "convert": lambda folder: statedict.convert(FILE, folder / "x.pth", only="nothing"),
    "blame": blamed,
} | {
    f"edit {name}": lambda folder, step=step: statedict.edit(FILE, folder / "x.pth", [step])
    for name, step in {
        "keep": {"keep": "nothing"},
        "drop": {"drop": ["fc3", "nothing"]},
        "cast": {"cast": "bf16", "only": "nothing"},
        "prefix": {"prefix": "a.", "only": "nothing"},
        "transpose": {"transpose": "nothing"},
        "untie": {"untie": "nothing"},
        "split": {"split": "nothing", "into": ["a", "b"]},
        "fuse": {"fuse": ["nothing"], "into": "a"},
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_pattern_that_matches_nothing_is_one_error_everywhere(verb: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(PatternError, match=r"no (tensor|entry) of \d+ matches '.*'; fix or remove the pattern$"):
        verb(tmp_path)


def test_that_error_is_one_of_paths_and_one_of_alterations() -> None:
    assert issubclass(PatternError, PathError)
    assert issubclass(PatternError, AlterError)


def test_one_step_needs_no_list(tmp_path: Path) -> None:
    report = statedict.edit(FILE, tmp_path / "x.pth", {"drop": "epoch"})
    assert report.changes[0].removed == ("epoch",)
    assert "epoch" not in statedict.load(tmp_path / "x.pth")


@pytest.mark.parametrize("steps", ["drop", [("drop", "epoch")], [["drop"]]])
def test_what_is_no_step_is_an_error_that_shows_one(steps: Any, tmp_path: Path) -> None:
    with pytest.raises(AlterError, match=r"expected a dict such as \{'drop': 'head\.\*'\}"):
        statedict.edit(FILE, tmp_path / "x.pth", steps)
