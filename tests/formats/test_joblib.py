"""Files of joblib, which puts arrays between the opcodes of a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy
import pytest
from sklearn.linear_model import LogisticRegression

import statedict
from statedict.errors import CorruptFileError, StateDictError, TruncatedError

from ..work import bytes_read

W = numpy.arange(6.0).reshape(2, 3)
NUMBERS: dict[str, Any] = {
    "w": W, "turned": numpy.asfortranarray(W), "other order": W.astype(">f4"), "small": numpy.arange(3, dtype="i1"),
    "none": numpy.zeros((0, 3)), "scalar": numpy.array(3.5), "flags": numpy.array([True, False]),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_tensors_wherever_they_stand(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.joblib"
    joblib.dump({**NUMBERS, "epoch": 3, "list": [W, {"deep": W}]}, path, protocol=protocol)
    state = statedict.load(path)
    for name, array in NUMBERS.items():
        assert (state[name].shape, state[name].tolist()) == (array.shape, array.tolist()), name
    assert state["epoch"] == 3
    assert state["list"][1]["deep"].tolist() == W.tolist()
    assert state["turned"].stride() == (1, 2)
    assert statedict.verify(path).ok
    scan = statedict.scan(path)
    assert (scan.verdict, scan.damage) == ("data", ())
    statedict.convert(path, tmp_path / "x.safetensors")
    assert statedict.diff(path, tmp_path / "x.safetensors").identical == len(state.tensors())


def test_opening_reads_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.joblib"
    joblib.dump({f"w{index}": numpy.zeros(1_000_000) for index in range(5)}, path)
    assert bytes_read(lambda: statedict.load(path)) < 1 << 20
    assert statedict.load(path)["w4"].shape == (1_000_000,)


def test_an_estimator_of_scikit_learn_is_inert_and_its_arrays_are_tensors(tmp_path: Path) -> None:
    model = LogisticRegression().fit(numpy.arange(20.0).reshape(10, 2), [0, 1] * 5)
    path = tmp_path / "x.joblib"
    joblib.dump({"model": model}, path)
    state = statedict.load(path)
    assert state["model"].name == "sklearn.linear_model._logistic.LogisticRegression"
    assert numpy.array_equal(state.tensors()["model.coef_"].numpy(), model.coef_)
    assert statedict.scan(path).verdict == "opaque"


def test_arrays_of_other_things_are_inert_and_looked_into(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return eval, ("1",)

    path = tmp_path / "x.joblib"
    tree = {
        "texts": numpy.array(["a", "bc"]),
        "records": numpy.zeros(2, [("a", "f4"), ("b", "i2")]),
        "objects": numpy.array([None, {"w": 1}], dtype=object),
        "w": W,
    }
    joblib.dump(tree, path)
    state = statedict.load(path)
    assert {name: part.name for name, part in state.items() if name != "w"} == {
        "texts": "numpy.ndarray of U2", "records": "numpy.ndarray of V6", "objects": "numpy.ndarray of O8",
    }  # fmt: skip
    assert state["w"].tolist() == W.tolist()
    assert "eval" not in {finding.name for finding in statedict.scan(path).globals}
    joblib.dump(tree | {"objects": numpy.array([Evil()], dtype=object)}, path)
    assert "eval" in {finding.name for finding in statedict.scan(path).globals}


def forge(path: Path, **changes: Any) -> Path:
    """A file of an array whose description is changed."""
    from joblib.numpy_pickle import NumpyArrayWrapper

    wrapper = NumpyArrayWrapper(numpy.ndarray, (3,), "C", numpy.dtype("f4"))
    wrapper.__dict__.update(changes)
    data = pickle.dumps(wrapper, 4)
    path.write_bytes(data[:-1] + b"\1\xff" + bytes(12) + data[-1:])
    return path


def test_a_forged_file_reads_as_what_it_is_made_from(tmp_path: Path) -> None:
    assert statedict.load(forge(tmp_path / "x"), format="pickle")[""].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"shape": (4000,)}, TruncatedError, "an array of 16,000 bytes goes past the end"),
        ({"shape": (-3,)}, CorruptFileError, "whose shape is not made of sizes"),
        ({"shape": (1 << 62, 4)}, CorruptFileError, "over 8 exabytes"),
        ({"shape": [3]}, CorruptFileError, "without a dtype, a shape or an order"),
        ({"order": "K"}, CorruptFileError, "without a dtype, a shape or an order"),
        ({"dtype": "f4"}, CorruptFileError, "without a dtype, a shape or an order"),
        ({"numpy_array_alignment_bytes": None}, StateDictError, "opcode|malformed|ends"),
    ],
)
def test_an_array_that_makes_no_sense_is_refused(
    changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        statedict.load(forge(tmp_path / "x.joblib", **changes), format="pickle")
    assert str(tmp_path / "x.joblib") in str(caught.value)


def test_a_file_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.joblib"
    joblib.dump({"w": W, "v": W + 1}, path)
    whole = path.read_bytes()
    for length in range(40, len(whole), 23):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"x\.joblib"):
            statedict.load(path)
