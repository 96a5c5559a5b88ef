"""Core ML's packages; those in data/coreml are of coremltools 9.0, made by tests/peers/coreml.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, FormatError, LimitError, MissingFileError, UnsupportedError

from ..peers.coreml import WEIGHTS
from .protos import field

DATA = Path(__file__).parent / "data" / "coreml"
MODEL, BLOBS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_package_has_its_weights(name: str) -> None:
    state = statedict.load(DATA / f"{name}.mlpackage")
    parts = {path.rpartition("/")[2]: tensor for path, tensor in state.items()}
    weights: Any
    if name.startswith("uint"):
        indices, table = parts["indices"], parts["lut"]
        assert (indices.dtype.name, indices.quantization) == ("uint8", name)
        weights = table.numpy().reshape(-1)[indices.numpy()]
    elif name == "int4":
        assert (parts["data"].dtype.name, parts["data"].quantization) == ("int8", "int4")
        weights = parts["data"].numpy() * numpy.repeat(parts["scale"].numpy(), 4, axis=1)
    else:
        (weights,) = (tensor for path, tensor in state.items() if path.startswith("weight"))
        assert weights.dtype == name
        weights = weights.numpy()
    assert weights.tolist() == WEIGHTS[name]
    (bias,) = (tensor for path, tensor in state.items() if path.startswith("bias"))
    assert bias.tolist() == list(range(16))


def test_a_package_opens_by_its_folder_its_manifest_and_its_model(tmp_path: Path) -> None:
    package = DATA / "float16.mlpackage"
    for path in (package, package / "Manifest.json", package / MODEL):
        assert statedict.load(path)["bias_to_fp16"].shape == (16,)
        assert statedict.verify(path).unread == ()
    statedict.convert(package, tmp_path / "x.safetensors")
    assert statedict.diff(package, tmp_path / "x.safetensors").identical == 2
    assert statedict.scan(package / MODEL).verdict == "data"
    assert statedict.stats(package)["bias_to_fp16"].mean == 7.5


def value(code: int = 11, shape: tuple[int, ...] = (2,), rest: bytes = b"") -> bytes:
    dims = b"".join(field(3, field(1, field(1, n))) for n in shape)
    return field(2, field(1, field(1, code) + dims)) + rest


def blob(offset: int = 64, name: str = "@model_path/w.bin") -> bytes:
    return field(5, field(1, name) + field(2, offset))


def floats(count: int = 2) -> bytes:
    return field(3, field(1, field(1, field(1, numpy.arange(count, dtype="<f4").tobytes()))))


def pair(key: str, inner: bytes) -> bytes:
    return field(1, key) + field(2, inner)


def constant(inner: bytes, name: str = "w") -> bytes:
    return field(3, field(1, "const") + field(3, field(1, name)) + field(5, pair("val", inner)))


def model(*operations: bytes, functions: tuple[str, ...] = ("main",)) -> bytes:
    body = field(3, pair("CoreML7", b"".join(operations)))
    program = b"".join(field(2, pair(name, body)) for name in functions)
    return field(1, 8) + field(2, field(1, field(1, "x"))) + field(502, program)


def blobs(kind: int = 2, size: int = 8, begin: int = 128) -> bytes:
    words = [0xDEADBEEF, kind]
    head = b"".join(word.to_bytes(4, "little") for word in words)
    return bytes(64) + (head + size.to_bytes(8, "little") + begin.to_bytes(8, "little")).ljust(64, b"\0") + bytes(8)


def put(folder: Path, data: bytes, weights: bytes | None = None) -> Path:
    (folder / "x.mlmodel").write_bytes(data)
    (folder / "w.bin").write_bytes(blobs() if weights is None else weights)
    return folder / "x.mlmodel"


def test_small_weights_stand_in_the_model_itself(tmp_path: Path) -> None:
    scalar = constant(value(shape=(), rest=floats(1)), "scalar")
    axes = constant(value(23, (2,), field(3, field(1, field(2, field(1, b"\0\1"))))), "axes")
    state = statedict.load(put(tmp_path, model(constant(value(rest=floats())), scalar, axes)))
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"w": [0, 1]}


def test_several_functions_are_dicts_whose_weights_are_tied(tmp_path: Path) -> None:
    state = statedict.load(put(tmp_path, model(constant(value(rest=blob())), functions=("a", "b"))))
    assert list(state.flatten()) == ["a.w", "b.w"]
    assert state["a"]["w"].region == state["b"]["w"].region


def test_weights_in_blocks_and_inputs_are_found(tmp_path: Path) -> None:
    operation = field(3, field(1, "cond") + field(3, field(1, "out")) + field(4, constant(value(rest=blob()))) + field(
        2, pair("pred", field(1, field(2, value(rest=blob()))))))  # fmt: skip
    assert list(statedict.load(put(tmp_path, model(operation)))) == ["w", "out/pred"]


def nested(depth: int) -> bytes:
    block = b""
    for _ in range(depth):
        block = field(3, field(4, block))
    return model(block)


WRONG: dict[str, tuple[bytes, bytes | None, type[Exception], str]] = {
    "a neural network": (field(1, 4) + field(500, b""), None, UnsupportedError, "is a neural network and not an ML"),
    "nothing": (field(1, 4), None, UnsupportedError, "is a model of another kind"),
    "cut": (model(constant(value(rest=blob())))[:-3], None, CorruptFileError, "ends within a field"),
    "two programs": (model() + field(502, b""), None, CorruptFileError, "the program stands twice"),
    "type": (model(constant(value(99, rest=blob()))), None, UnsupportedError, "tensor 'w' has the type 99"),
    "unknown size": (
        model(constant(field(2, field(1, field(1, 11) + field(3, field(2, b"")))) + blob())), None, CorruptFileError,
        r"the shape \[-1\]",
    ),
    "huge": (model(constant(value(shape=(1 << 62, 4), rest=blob()))), None, CorruptFileError, "which no tensor has"),
    "two of a name": (
        model(constant(value(rest=blob())), constant(value(rest=floats()))), None, CorruptFileError, "are called 'w'",
    ),
    "unaligned": (model(constant(value(rest=blob(65)))), None, CorruptFileError, "does not fit into"),
    "beyond": (model(constant(value(rest=blob(1 << 40)))), None, CorruptFileError, "does not fit into"),
    "no blob": (model(constant(value(rest=blob(0)))), None, CorruptFileError, "has no blob of 8 bytes of type 2"),
    "another type": (model(constant(value(rest=blob()))), blobs(kind=1), CorruptFileError, "has no blob"),
    "another size": (model(constant(value(rest=blob()))), blobs(size=12), CorruptFileError, "has no blob"),
    "bytes beyond": (model(constant(value(rest=blob()))), blobs(begin=129), CorruptFileError, "has no blob"),
    "few floats": (model(constant(value(rest=floats(1)))), None, CorruptFileError, "has 4 bytes, expected 8"),
    "no value": (model(field(3, field(5, field(1, "val")))), None, CorruptFileError, "an attribute 'val' has no value"),
    "outside": (model(constant(value(rest=blob(name="../w.bin")))), None, FormatError, "outside of the folder"),
    "deep": (nested(20), None, LimitError, "nested over 16 deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_model_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, weights, kind, message = WRONG[name]
    path = put(tmp_path, data, weights)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(path, format="coreml")
    assert str(tmp_path) in str(caught.value)


def test_a_manifest_that_names_no_model_is_an_error(tmp_path: Path) -> None:
    package = shutil.copytree(DATA / "int4.mlpackage", tmp_path / "x.mlpackage")
    manifest = json.loads((package / "Manifest.json").read_text())
    (package / "Manifest.json").write_text(json.dumps(manifest | {"rootModelIdentifier": "?"}))
    with pytest.raises(CorruptFileError, match=r"Manifest\.json: names no model"):
        statedict.load(package)


def test_a_package_without_its_weights_names_them(tmp_path: Path) -> None:
    package = shutil.copytree(DATA / "int4.mlpackage", tmp_path / "x.mlpackage")
    (package / BLOBS).unlink()
    with pytest.raises(MissingFileError, match=r"weight\.bin"):
        statedict.load(package)
