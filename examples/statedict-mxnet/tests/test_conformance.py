"""The suites of statedict, for what this package adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
from statedict_mxnet.averages import RunningAverage
from statedict_mxnet.params import _KINDS

import statedict
from statedict.testing import AdapterTests, FileTests, Format, TensorTests


class TestParams(TensorTests, FileTests):
    format = Format("mxnet", ".params", dtypes=_KINDS)
    flat: ClassVar[dict[str, Any]] = {
        "w": numpy.arange(300, dtype="float32").reshape(20, 15),
        "b": numpy.ones(16, "int64"),
    }


class TestAverages(AdapterTests):
    def make(self, seed: int) -> RunningAverage:
        average = RunningAverage(3)
        for value in range(seed + 1):
            average.add(numpy.full(3, float(value * seed)))
        return average

    def change(self, value: RunningAverage) -> None:
        value.add(numpy.full(3, 99.0))

    def state(self, value: RunningAverage) -> Any:
        return {"mean": value.mean, "seen": value.seen}


FILE = Path(__file__).with_name("mxnet-1.9.1.params")


def test_a_file_of_mxnet_is_read() -> None:
    state = statedict.load(FILE)
    assert list(state) == ["arg:weight", "arg:bias", "aux:mean"]
    assert state["arg:weight"].numpy().tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (state["arg:bias"].dtype.name, state["arg:bias"].tolist()) == ("float16", [0.5, -1.5])
    assert (state["aux:mean"].dtype.name, state["aux:mean"].tolist()) == ("int64", [7])


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (24, b"\1", "older MXNet"),
        (28, b"\1", "sparse"),
        (32, b"\x40", "dimensions"),
        (36, b"\xff" * 8, "negative|damaged"),
    ],
)
def test_damage_is_named(at: int, data: bytes, match: str, tmp_path: Path) -> None:
    damaged = bytearray(FILE.read_bytes())
    damaged[at : at + len(data)] = data
    (tmp_path / "damaged.params").write_bytes(damaged)
    with pytest.raises(statedict.errors.StateDictError, match=match):
        statedict.load(tmp_path / "damaged.params")
