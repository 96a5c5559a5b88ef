"""The conformance suite of adapters: what everything that connects live objects to state_dicts keeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.testing.same import assert_same

both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


class AdapterTests:
    """What an adapter keeps, for a class of tests that says what its objects are."""

    def make(self, seed: int) -> Any:
        """Build an object whose state depends on the seed."""
        raise NotImplementedError

    def change(self, value: Any) -> None:
        """Alter the state of an object in place."""
        raise NotImplementedError

    def state(self, value: Any) -> Any:
        """What the owner of an object sees of its state, to compare by."""
        raise NotImplementedError

    def assert_state(self, one: Any, other: Any) -> None:
        """Fail unless two objects have the same state."""
        assert_same(self.state(one), self.state(other), flags=False)

    def test_a_capture_is_a_snapshot(self) -> None:
        live, twin = self.make(1), self.make(1)
        captured = statedict.capture(live)
        kept = copy.deepcopy(captured.torch(copy=True))
        self.change(live)
        assert_same(captured, kept, flags=False)
        fresh = self.make(2)
        statedict.restore(fresh, captured)
        self.assert_state(fresh, twin)

    def test_a_capture_is_a_real_dict_of_data(self) -> None:
        captured = statedict.capture(self.make(1))
        assert type(captured) is statedict.StateDict
        assert captured.tensors()
        assert_same(captured.flatten().unflatten(), captured)

    @both_formats
    def test_capture_save_load_restore_gives_the_same_state(self, suffix: str, tmp_path: Path) -> None:
        live, fresh = self.make(1), self.make(2)
        path = tmp_path / f"checkpoint{suffix}"
        statedict.save(statedict.capture(live), path)
        report = statedict.restore(fresh, statedict.load(path))
        self.assert_state(fresh, live)
        assert report.written
        assert set(report.counts()) == {"restored"}
        assert report.problems == ()

    @both_formats
    def test_live_objects_are_saved_and_restored_in_one_step_each(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"checkpoint{suffix}"
        live, fresh = self.make(1), self.make(2)
        statedict.save({"it": live, "epoch": 3, "more": [self.make(5)]}, path)
        target = {"it": fresh, "epoch": 0, "more": [self.make(6)]}
        statedict.restore(target, path)
        self.assert_state(target["it"], live)
        self.assert_state(target["more"][0], self.make(5))
        assert target["it"] is fresh
        assert target["epoch"] == 3

    def test_restoring_leaves_the_state_that_it_was_given_alone(self) -> None:
        captured = statedict.capture(self.make(1))
        kept = copy.deepcopy(captured.torch(copy=True))
        fresh = self.make(2)
        statedict.restore(fresh, captured)
        self.change(fresh)
        assert_same(captured, kept, flags=False)

    def test_an_unexpected_entry_is_an_error_before_anything_is_written(self) -> None:
        live = self.make(1)
        state = statedict.capture(self.make(2))
        state["stranger"] = torch.ones(2)
        with pytest.raises(statedict.errors.RestoreError, match=r"nothing was written:\n.*1 unexpected: it\.stranger"):
            statedict.restore({"it": live}, {"it": state})
        self.assert_state(live, self.make(1))

    def test_nothing_is_written_where_another_part_of_the_tree_does_not_fit(self) -> None:
        live, array = self.make(1), torch.zeros(3)
        state = statedict.capture({"it": self.make(2), "array": torch.ones(4)})
        with pytest.raises(statedict.errors.RestoreError, match=r"1 shape: array"):
            statedict.restore({"it": live, "array": array}, state)
        self.assert_state(live, self.make(1))
        assert not array.any()

    def test_a_dry_run_reports_and_writes_nothing(self) -> None:
        live = self.make(1)
        good, bad = statedict.capture(self.make(2)), statedict.capture(self.make(2))
        bad["stranger"] = 1
        report = statedict.restore(live, good, dry_run=True)
        assert not report.written
        assert report.problems == ()
        assert str(report).startswith("would restore ")
        report = statedict.restore(live, bad, dry_run=True)
        assert report.paths("unexpected") == ["stranger"]
        assert not report.written
        self.assert_state(live, self.make(1))

    def test_a_state_of_the_wrong_kind_is_an_error(self) -> None:
        live = self.make(1)
        for wrong in ([1, 2], 5, None, torch.ones(2)):
            with pytest.raises(statedict.errors.RestoreError):
                statedict.restore({"it": live}, {"it": wrong})
        self.assert_state(live, self.make(1))

    def test_a_state_without_a_single_entry_of_the_target_is_always_an_error(self) -> None:
        live = self.make(1)
        for state in ({}, {"other": torch.ones(1)}):
            with pytest.raises(statedict.errors.RestoreError):
                statedict.restore(live, state, allow_missing=["*"], allow_unexpected=["*"])
        self.assert_state(live, self.make(1))

    def test_the_report_names_every_tensor_of_the_state(self) -> None:
        state = statedict.capture(self.make(2))
        report = statedict.restore(self.make(1), state)
        text = " ".join(entry.path for entry in report.entries)
        top = {path.split(".")[0] for path in state.tensors()}
        assert all(name in text for name in top)
        assert len(report.entries) >= len(top)
        assert json.loads(json.dumps(report.to_json())) == report.to_json()
