"""Structured arrays of numpy: their fields, by name."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

import statedict
from statedict.errors import RestoreError

KIND = [("x", "<f4"), ("n", "i4", (2,)), ("inner", [("q", "f8")])]


def make(scale: int) -> numpy.ndarray:
    array = numpy.zeros(3, KIND)
    array["x"], array["n"], array["inner"]["q"] = [scale] * 3, scale + 1, scale + 2
    return array


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("kind", [numpy.ndarray, numpy.recarray])
def test_fields_are_saved_by_name_and_restored_in_place(suffix: str, kind: type, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    statedict.save({"a": make(1).view(kind)}, path)
    assert [*statedict.load(path).tensors()] == ["a.x", "a.n", "a.inner.q"]
    target = {"a": make(5).view(kind)}
    held = target["a"]
    assert str(statedict.restore(target, path)) == "restored 3 of 3 entries"
    assert target["a"] is held
    assert (held == make(1)).all()
    statedict.restore(target, {"a": make(7)})
    assert (held == make(7)).all()


def test_a_field_that_is_missing_stops_all() -> None:
    state = statedict.capture({"a": make(1)})
    del state["a"]["inner"]
    target = {"a": make(5)}
    with pytest.raises(RestoreError, match=r"1 missing: a\.inner"):
        statedict.restore(target, state)
    assert (target["a"] == make(5)).all()
