"""ExecuTorch's files; those in data/executorch are of executorch 1.5.1, made by tests/peers/executorch.py."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, LimitError, TruncatedError, UnsupportedError
from statedict.io.flatbuffers import Buffer
from statedict.io.source import BytesSource

DATA = Path(__file__).parent / "data" / "executorch"
WEIGHTS = {"linear.weight": [[0, 1, 2], [3, 4, 5]], "linear.bias": [0.5, -0.5], "steps": [0, 1, 2, 3]}


def test_a_program_has_its_constants_by_the_number_of_their_values() -> None:
    state = statedict.load(DATA / "plain.pte")
    assert {name: tensor.tolist() for name, tensor in state.items()} == dict(
        zip("0124", [*WEIGHTS.values(), 1], strict=True)
    )
    assert state["2"].dtype == "int64"


def test_named_data_has_its_names(tmp_path: Path) -> None:
    path = DATA / "_default_external_constant.ptd"
    state = statedict.load(path)
    assert {name: tensor.tolist() for name, tensor in state.items()} == WEIGHTS
    statedict.convert(path, tmp_path / "x.safetensors")
    assert statedict.diff(path, tmp_path / "x.safetensors").identical == 3
    assert statedict.verify(path).ok
    assert statedict.scan(path).verdict == "data"
    assert statedict.stats(path)["steps"].max == 3


def test_tensors_in_another_file_are_named_and_inert() -> None:
    state = statedict.load(DATA / "apart.pte")
    assert [*state] == [*WEIGHTS, "4"]
    assert state["steps"].name == "a tensor in a .ptd file"
    assert state["4"].item() == 1


def test_what_a_backend_keeps_is_bytes() -> None:
    state = statedict.load(DATA / "lowered.pte")
    assert [*state["delegates"]] == ["forward.0.XnnpackBackend"]
    held = {tensor.numpy().tobytes() for tensor in state["named_data"].values()}
    assert held == {numpy.array(WEIGHTS[name], "f4").tobytes() for name in ("linear.weight", "linear.bias")}
    assert state["0"].tolist() == [0, 1, 2, 3]


def patch(at: int, form: str, value: Any) -> bytes:
    data = bytearray((DATA / "_default_external_constant.ptd").read_bytes())
    struct.pack_into("<" + form, data, at, value)
    return bytes(data)


WHOLE = patch(0, "I", 0x48)
WRONG: dict[str, tuple[bytes, type[Exception], str]] = {
    "the root": (patch(0, "I", 1 << 30), CorruptFileError, "does not fit"),
    "the size": (patch(24, "Q", 1 << 40), CorruptFileError, "lie outside the file"),
    "no header": (patch(8, "I", 0), TruncatedError, "has no header of named data"),
    "a vector": (patch(0x54, "I", 1 << 30), CorruptFileError, "does not fit"),
    "a type": (patch(0x113, "b", 99), UnsupportedError, "'linear.weight' has the scalar type 99"),
    "a size": (patch(0x128, "i", 1000), CorruptFileError, r"the shape \[1000, 3\]: 12,000 bytes, and there are 24"),
    "a negative size": (patch(0x128, "i", -2), CorruptFileError, "a negative size"),
    "the order": (patch(0x120, "B", 1), CorruptFileError, r"the order \(1, 1\) of 2 dimensions"),
    "a name": (patch(0x134, "B", 0xFF), CorruptFileError, "is not UTF-8"),
    "cut": (WHOLE[:-200], TruncatedError, "lies past the end"),
    "two of a name": (
        WHOLE.replace(b"\x0b\0\0\0linear.bias", b"\5\0\0\0steps\0\0\0\0\0\0"),
        CorruptFileError,
        "two entries are called 'steps'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_damaged_data_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, kind, message = WRONG[name]
    (tmp_path / "x.ptd").write_bytes(data)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(tmp_path / "x.ptd", format="executorch")
    assert str(tmp_path / "x.ptd") in str(caught.value)


def test_a_program_that_is_cut_names_its_segment(tmp_path: Path) -> None:
    (tmp_path / "x.pte").write_bytes((DATA / "plain.pte").read_bytes()[:-100])
    with pytest.raises(TruncatedError, match=r"x\.pte: segment 0, bytes .* lies past the end"):
        statedict.load(tmp_path / "x.pte")


def test_tables_without_end_are_refused() -> None:
    buffer = Buffer(BytesSource(bytes(100)), 0, 100)
    buffer.left = 0
    with pytest.raises(LimitError, match="too many entries"):
        buffer.root()


def test_another_order_of_dimensions_is_a_tensor_with_strides(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    data[0x120:0x122] = b"\1\0"
    (tmp_path / "x.ptd").write_bytes(data)
    found = statedict.load(tmp_path / "x.ptd")["linear.weight"]
    assert (found.shape, found.stride(), found.tolist()) == ((2, 3), (1, 2), [[0, 2, 4], [1, 3, 5]])
