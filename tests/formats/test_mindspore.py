"""MindSpore's checkpoints; those in data/mindspore are of 2.10.0, made by tests/peers/mindspore.py."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, TruncatedError, UnsupportedError

from ..work import bytes_read
from .protos import field

DATA = Path(__file__).parent / "data" / "mindspore"
W = numpy.arange(6, dtype="f4").reshape(2, 3)


def value(tag: str, content: bytes, kind: str, *dims: int) -> bytes:
    tensor = b"".join(field(1, n) for n in dims) + field(2, kind) + field(3, content)
    return field(1, field(1, tag) + field(2, tensor))


WEIGHT = value("w", W.tobytes(), "Float32", 2, 3)


def put(folder: Path, data: bytes, crc: bool = False) -> Path:
    tail = b"crc_num" + zlib.crc32(data).to_bytes(10, "big") if crc else b""
    (folder / "x.ckpt").write_bytes(data + tail)
    return folder / "x.ckpt"


def test_tensors_of_every_kind_have_their_tags(tmp_path: Path) -> None:
    half = (numpy.ones(3, "f4").view("u4") >> 16).astype("u2").tobytes()
    data = WEIGHT + value("layer.half", half, "BFloat16", 3) + value("n", b"\7" + bytes(7), "Int64", 0)
    data += value("flags", b"\1\0", "Bool", 2) + value("note", "text".encode("utf-32-le"), "str", 0)
    path = put(tmp_path, data)
    state = statedict.load(path)
    assert state["note"] == "text"
    assert {name: (t.dtype.name, t.tolist()) for name, t in state.tensors().items()} == {
        "w": ("float32", W.tolist()), "layer.half": ("bfloat16", [1, 1, 1]), "n": ("int64", 7),
        "flags": ("bool", [True, False]),
    }  # fmt: skip
    assert statedict.verify(path).ok
    assert statedict.scan(path).verdict == "data"
    statedict.convert(path, tmp_path / "x.safetensors")
    assert statedict.diff(path, tmp_path / "x.safetensors").identical == 4


@pytest.mark.parametrize("name", ["plain", "summed", "appended"])
def test_a_checkpoint_of_mindspore_has_what_was_saved(name: str) -> None:
    state = statedict.load(DATA / f"{name}.ckpt")
    tensors = {path: (tensor.dtype.name, tensor.tolist()) for path, tensor in state.tensors().items()}
    appended = {"epoch": ("int64", 3), "rate": ("float32", 0.5)} if name == "appended" else {}
    assert tensors == appended | {
        "w": ("float32", W.tolist()), "layer.half": ("bfloat16", [1, 1, 1]), "n": ("int64", 7),
        "flags": ("bool", [True, False]), "small": ("float16", [0, 1, 2]),
    }  # fmt: skip
    assert state.get("note") == ("λx" if appended else None)
    report = statedict.verify(DATA / f"{name}.ckpt")
    assert (report.ok, report.crcs) == (True, int(name == "summed"))


def test_a_tensor_in_several_values_is_one(tmp_path: Path) -> None:
    raw = W.tobytes()
    path = put(tmp_path, value("w", raw[:8], "Float32", 2, 3) + value("w", raw[8:], "Float32", 2, 3))
    assert statedict.load(path)["w"].tolist() == W.tolist()


def test_the_sum_of_a_file_is_compared(tmp_path: Path) -> None:
    path = put(tmp_path, WEIGHT, crc=True)
    report = statedict.verify(path)
    assert (report.ok, report.crcs, report.tensors) == (True, 1, 1)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    (problem,) = statedict.verify(path).problems
    assert "CRC-32 differs" in problem.what
    assert problem.tensors == ("w",)


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    path = put(tmp_path, b"".join(value(f"w{n}", bytes(4_000_000), "Float32", 1_000_000) for n in range(3)))
    assert bytes_read(lambda: statedict.load(path)) < 1 << 20


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (WEIGHT[:-1], TruncatedError, "ends within a field"),
        (WEIGHT * 2 + value("v", b"", "Float32", 0) + WEIGHT, CorruptFileError, "called 'w'|and there are 48"),
        (value("w", W.tobytes(), "Float32", 7), CorruptFileError, "28 bytes, and there are 24"),
        (value("w", W.tobytes(), "Float32", -6), CorruptFileError, "a negative size"),
        (value("w", W.tobytes(), "Float32", 1 << 62, 4), CorruptFileError, "over 8 exabytes"),
        (value("w", W.tobytes(), "Float9", 6), UnsupportedError, "the type 'Float9'"),
        (field(1, field(1, "w")), CorruptFileError, "'w' has no tensor"),
        (field(1, field(1, "w") + field(3, b"")), UnsupportedError, "is a hash table"),
        (WEIGHT + field(2, 1), CorruptFileError, "has a field 2"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_says_what_is_wrong(
    data: bytes, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        statedict.load(put(tmp_path, data), format="mindspore")
    assert str(tmp_path / "x.ckpt") in str(caught.value)
