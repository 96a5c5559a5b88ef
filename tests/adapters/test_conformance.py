"""The suite of statedict.testing for each adapter of the table, and what concerns all of them together."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.adapters.collect import ADAPTERS
from statedict.tensor.lazy import is_array
from statedict.testing import AdapterTests

from .conftest import SUBJECTS, Subject


def _suite(module: str) -> type[AdapterTests]:
    """The suite of one adapter; one of the table without an entry in SUBJECTS fails."""
    subject = SUBJECTS[module]
    members = {name: staticmethod(getattr(subject, name)) for name in ("make", "change", "state")}
    return type(module.rpartition(".")[2], (AdapterTests,), {"__test__": True, **members})


for _, _module in ADAPTERS:
    globals()[f"Test_{_module.rpartition('.')[2]}"] = _suite(_module)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saving_live_objects_and_saving_their_capture_give_the_same_bytes(
    subject: Subject, suffix: str, tmp_path: Path
) -> None:
    live = subject.make(1)
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    statedict.save({"it": live}, one)
    statedict.save(statedict.capture({"it": live}), other)
    assert one.read_bytes() == other.read_bytes()


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
