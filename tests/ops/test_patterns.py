"""One mistake, one error: a pattern that matches nothing, and steps that are no list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import alter
from statedict.errors import AlterError, PathError, PatternError, UnsupportedError
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


TAKING_PATTERNS: dict[str, Callable[[Path, Any], Any]] = {
    "stats": lambda folder, given: statedict.stats(FILE, only=given),
    "report": lambda folder, given: statedict.report(FILE, only=given),
    "diff": lambda folder, given: statedict.diff(FILE, FILE, only=given),
    "convert": lambda folder, given: statedict.convert(FILE, folder / "x.pth", only=given),
    "select": lambda folder, given: alter.select(statedict.load(FILE), given),
    "drop": lambda folder, given: alter.drop(statedict.load(FILE), given),
    "cast": lambda folder, given: alter.cast(statedict.load(FILE), "bf16", given),
    "blame": lambda folder, given: blame(folder, given),
    "edit keep": lambda folder, given: statedict.edit(FILE, folder / "x.pth", [{"keep": given}]),
    "edit drop": lambda folder, given: statedict.edit(FILE, folder / "x.pth", [{"drop": given}]),
    "edit cast": lambda folder, given: statedict.edit(FILE, folder / "x.pth", [{"cast": "bf16", "only": given}]),
}


@pytest.mark.parametrize("verb", TAKING_PATTERNS.values(), ids=TAKING_PATTERNS.keys())
@pytest.mark.parametrize("given", [[], (), 3, ["fc3", 3], [None], b"fc3"], ids=repr)
def test_what_is_no_pattern_is_one_error_everywhere(
    verb: Callable[[Path, Any], Any], given: Any, tmp_path: Path
) -> None:
    with pytest.raises(PatternError, match=r"expected a pattern or a list of one or more, got ") as error:
        verb(tmp_path, given)
    assert repr(given) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [["epoch"], ("epoch",), {"epoch"}, {"epoch": 1}, iter(["epoch"])], ids=lambda x: str(type(x))
)
def test_patterns_are_any_iterable_of_texts(given: Any) -> None:
    assert list(alter.select(statedict.load(FILE), given)) == ["epoch"]


LIVE = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("ck.pth", r"alter.drop takes a state_dict, not a str; call statedict.load\(path\) first"),
        (Path("ck.pth"), r"alter.drop takes a state_dict, not a PosixPath; call statedict.load\(path\) first"),
        (LIVE, r"alter.drop takes a state_dict, not a Linear; call statedict.capture\(objects\) first"),
        ([LIVE], r"alter.drop takes a state_dict, not a list; call statedict.capture\(objects\) first"),
        (None, r"alter.drop takes a state_dict, not a NoneType; call "),
        ({"a": {"m": LIVE}}, r"'a.m': alter.drop takes a state_dict, not a Linear; call statedict.capture"),
        (
            {"a": [1, torch.optim.SGD(LIVE.parameters())]},
            r"'a.1': alter.drop takes a state_dict, not a SGD; call statedict.capture",
        ),
    ],
    ids=["a path", "a Path", "a module", "a list", "None", "a module in a dict", "an optimizer in a list"],
)
def test_a_verb_that_alters_takes_a_state_dict_or_says_what_to_call(source: Any, remedy: str) -> None:
    with pytest.raises(UnsupportedError, match=remedy):
        alter.drop(source, "a")


@pytest.mark.parametrize("name", alter.__all__)
def test_every_verb_that_alters_names_itself_where_it_gets_a_file(name: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "strip": (), "untie": (), "transpose": ("w",), "select": ("w",), "drop": ("w",), "fuse": (["a"], "b"),
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match=rf"^alter.{name} takes a state_dict, not a str"):
        getattr(alter, name)("ck.pth", *arguments.get(name, ("w", [1])))
