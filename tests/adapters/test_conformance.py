"""What every adapter keeps: the one suite that each row of the table runs."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.tensor.lazy import is_array

from ..same import assert_same
from .conftest import Subject

both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def same_state(subject: Subject, one: Any, other: Any) -> None:
    assert_same(subject.state(one), subject.state(other), flags=False)


def test_a_capture_is_a_snapshot(subject: Subject) -> None:
    live, twin = subject.make(1), subject.make(1)
    captured = statedict.capture(live)
    kept = copy.deepcopy(captured.torch(copy=True))
    subject.change(live)
    assert_same(captured, kept, flags=False)
    fresh = subject.make(2)
    statedict.restore(fresh, captured)
    same_state(subject, fresh, twin)


def test_a_capture_is_a_real_dict_of_data(subject: Subject) -> None:
    captured = statedict.capture(subject.make(1))
    assert type(captured) is statedict.StateDict
    assert captured.tensors()
    assert_same(captured.flatten().unflatten(), captured)


@both_formats
def test_capture_save_load_restore_gives_the_same_state(subject: Subject, suffix: str, tmp_path: Path) -> None:
    live, fresh = subject.make(1), subject.make(2)
    path = tmp_path / f"checkpoint{suffix}"
    statedict.save(statedict.capture(live), path)
    report = statedict.restore(fresh, statedict.load(path))
    same_state(subject, fresh, live)
    assert report.written
    assert set(report.counts()) == {"restored"}
    assert report.problems == ()


@both_formats
def test_live_objects_are_saved_and_restored_in_one_step_each(subject: Subject, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    live, fresh = subject.make(1), subject.make(2)
    statedict.save({"it": live, "epoch": 3, "more": [subject.make(5)]}, path)
    target = {"it": fresh, "epoch": 0, "more": [subject.make(6)]}
    statedict.restore(target, path)
    same_state(subject, target["it"], live)
    same_state(subject, target["more"][0], subject.make(5))
    assert target["it"] is fresh
    assert target["epoch"] == 3


@both_formats
def test_saving_live_objects_and_saving_their_capture_give_the_same_bytes(
    subject: Subject, suffix: str, tmp_path: Path
) -> None:
    live = subject.make(1)
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    statedict.save({"it": live}, one)
    statedict.save(statedict.capture({"it": live}), other)
    assert one.read_bytes() == other.read_bytes()


def test_restoring_leaves_the_state_that_it_was_given_alone(subject: Subject) -> None:
    captured = statedict.capture(subject.make(1))
    kept = copy.deepcopy(captured.torch(copy=True))
    fresh = subject.make(2)
    statedict.restore(fresh, captured)
    subject.change(fresh)
    assert_same(captured, kept, flags=False)


def test_an_unexpected_entry_is_an_error_before_anything_is_written(subject: Subject) -> None:
    live = subject.make(1)
    state = statedict.capture(subject.make(2))
    state["stranger"] = torch.ones(2)
    with pytest.raises(statedict.errors.RestoreError, match=r"nothing was written:\n.*1 unexpected: it\.stranger"):
        statedict.restore({"it": live}, {"it": state})
    same_state(subject, live, subject.make(1))


def test_nothing_is_written_where_another_part_of_the_tree_does_not_fit(subject: Subject) -> None:
    live, array = subject.make(1), torch.zeros(3)
    state = statedict.capture({"it": subject.make(2), "array": torch.ones(4)})
    with pytest.raises(statedict.errors.RestoreError, match=r"1 shape: array"):
        statedict.restore({"it": live, "array": array}, state)
    same_state(subject, live, subject.make(1))
    assert not array.any()


def test_a_dry_run_reports_and_writes_nothing(subject: Subject) -> None:
    live = subject.make(1)
    good, bad = statedict.capture(subject.make(2)), statedict.capture(subject.make(2))
    bad["stranger"] = 1
    report = statedict.restore(live, good, dry_run=True)
    assert not report.written
    assert report.problems == ()
    assert str(report).startswith("would restore ")
    report = statedict.restore(live, bad, dry_run=True)
    assert report.paths("unexpected") == ["stranger"]
    assert not report.written
    same_state(subject, live, subject.make(1))


def test_a_state_of_the_wrong_kind_is_an_error(subject: Subject) -> None:
    live = subject.make(1)
    for wrong in ([1, 2], 5, None, torch.ones(2)):
        with pytest.raises(statedict.errors.RestoreError):
            statedict.restore({"it": live}, {"it": wrong})
    same_state(subject, live, subject.make(1))


def test_a_state_without_a_single_entry_of_the_target_is_always_an_error(subject: Subject) -> None:
    live = subject.make(1)
    for state in ({}, {"other": torch.ones(1)}):
        with pytest.raises(statedict.errors.RestoreError):
            statedict.restore(live, state, allow_missing=["*"], allow_unexpected=["*"])
    same_state(subject, live, subject.make(1))


def test_the_report_names_every_tensor_of_the_state(subject: Subject) -> None:
    state = statedict.capture(subject.make(2))
    report = statedict.restore(subject.make(1), state)
    text = " ".join(entry.path for entry in report.entries)
    top = {path.split(".")[0] for path in state.tensors()}
    assert all(name in text for name in top)
    assert len(report.entries) >= len(top)
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


@pytest.mark.parametrize(
    "value", [threading.Lock(), open, print, iter([1]), (i for i in ()), int], ids=lambda v: type(v).__name__
)
def test_what_no_adapter_takes_is_refused_by_its_path(value: Any) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match=r"model\.parts\.1: cannot capture a .*state_dict\(\)"):
        statedict.capture({"model": {"parts": [1, value]}})


def test_a_tree_that_contains_itself_is_refused_by_its_path() -> None:
    tree: dict[str, Any] = {"a": {"b": []}}
    tree["a"]["b"].append(tree)
    with pytest.raises(statedict.errors.UnsupportedError, match=r"a\.b\.0: contains itself"):
        statedict.capture(tree)


def test_ties_across_objects_survive_a_capture() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    one, other = torch.nn.Module(), torch.nn.Module()
    one.weight = other.weight = weight
    captured = statedict.capture({"one": one, "other": other, "array": weight.detach().numpy()})
    captured["one"]["weight"].data.zero_()
    assert not captured["other"]["weight"].any()
    assert all(is_array(tensor) for tensor in captured.tensors().values())
