"""ONNX models, as onnx 1.23.2 makes and reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import statedict
from statedict import alter
from statedict.errors import CorruptFileError, FormatError, LimitError, StateDictError, TruncatedError, UnsupportedError
from statedict.tensor.blocks import find_blocks

from ..work import bytes_read
from .protos import field

TYPES = {
    name: code for name, code in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
}  # those of the release that is installed
SHAPE = (3, 5)
NODE = [helper.make_node("Identity", ["a"], ["b"])]
IN, OUT = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab")


def graph(tensors: Any = (), nodes: Any = NODE, sparse: Any = ()) -> Any:
    return helper.make_graph(nodes, "g", [IN], [OUT], tensors, sparse_initializer=sparse)


def write(path: Path, tensors: Any = (), nodes: Any = NODE, sparse: Any = (), **options: Any) -> Path:
    path.write_bytes(helper.make_model(graph(tensors, nodes, sparse), **options).SerializeToString())
    return path


def tensor(name: str, values: Any, kind: str = "float32") -> Any:
    return numpy_helper.from_array(numpy.array(values, kind), name)


def same(found: Any, proto: Any) -> bool:
    """Whether a tensor has the elements that onnx finds; those of fewer than 8 bits as numbers."""
    array = numpy_helper.to_array(proto)
    if find_blocks(found) is not None:
        array = array.astype(found.dtype.numpy)
    return (found.shape, bytes(found.raw())) == (array.shape, array.tobytes())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_a_tensor_of_every_type_has_the_elements_that_onnx_finds(name: str, raw: bool, tmp_path: Path) -> None:
    array = (numpy.arange(15) % 2).reshape(SHAPE).astype(helper.tensor_dtype_to_np_dtype(TYPES[name]))
    protos = {}
    for size in (15, 13, 0):
        part = array.reshape(-1)[:size]
        shape = SHAPE if size == 15 else (size,)
        proto = numpy_helper.from_array(part.reshape(shape), f"n{size}")
        if not raw:
            proto = helper.make_tensor(f"n{size}", TYPES[name], shape, part.tolist())
        protos[proto.name] = proto
    state = statedict.load(write(tmp_path / "x.onnx", [*protos.values()]))
    assert state.keys() == protos.keys()
    assert all(same(state[key], proto) for key, proto in protos.items()), state
    assert statedict.verify(tmp_path / "x.onnx").ok


def test_numbers_of_four_bits_are_listed_as_they_are_stored(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.INT4, (2, 4), [-8, -1, 0, 7, 1, 2, 3, 4])
    path = write(tmp_path / "x.onnx", [weight])
    found = statedict.load(path)["w"]
    assert (found.dtype.name, found.quantization, found.tolist()) == ("int8", "int4", [[-8, -1, 0, 7], [1, 2, 3, 4]])
    (info,) = statedict.inspect(path).tensors
    assert (info.dtype, info.shape, info.nbytes, info.elements) == ("int4", (2, 4), 4, 8)
    statedict.convert(path, tmp_path / "x.safetensors")
    assert statedict.load(tmp_path / "x.safetensors")["w"].tolist() == found.tolist()
    statedict.convert(path, tmp_path / "x.gguf")
    assert statedict.load(tmp_path / "x.gguf")["w"].tolist() == found.tolist()
    assert statedict.diff(path, tmp_path / "x.safetensors").identical == len(statedict.load(path).tensors())


def test_negative_and_large_numbers_stand_in_their_fields(tmp_path: Path) -> None:
    values = {
        "INT32": [-(2**31), -1, 2**31 - 1], "INT8": [-128, -1, 127], "INT16": [-(2**15), 0, 5],
        "INT64": [-(2**63), -1, 2**63 - 1], "UINT64": [2**64 - 1, 0, 1], "UINT32": [2**32 - 1, 0, 1],
        "FLOAT": [-0.0, float("inf"), 1e-45], "DOUBLE": [0.1, -0.0, 5e-324], "COMPLEX64": [1 + 2j, -1j, 0],
        "FLOAT16": [65504.0, -0.0, 6e-8], "BFLOAT16": [3e38, -0.0, 1.0], "FLOAT8E5M2": [57344.0, -0.0, 1.0],
    }  # fmt: skip
    protos = [helper.make_tensor(name, TYPES[name], (3,), numbers) for name, numbers in values.items()]
    state = statedict.load(write(tmp_path / "x.onnx", protos))
    assert all(same(state[proto.name], proto) for proto in protos)


def test_many_varints_are_decoded_in_parts(tmp_path: Path) -> None:
    values = numpy.arange(-100_000, 100_000) ** 3
    proto = helper.make_tensor("w", TensorProto.INT64, values.shape, values)
    found = statedict.load(write(tmp_path / "x.onnx", [proto]))["w"]
    assert numpy.array_equal(found.numpy(), values)
    assert found[123_456].item() == values[123_456]
    assert found[199_990:].tolist() == values[199_990:].tolist()


def test_elements_that_are_not_packed_are_the_same(tmp_path: Path) -> None:
    floats = b"".join(field(4, numpy.float32(value).tobytes(), 5) for value in (1, 2, 3))
    numbers = field(5, -1) + field(5, b"\x02\x03") + field(5, 200)
    dims = field(1, b"\x03")
    model = field(1, 8) + field(7, b"".join(
        field(5, part) for part in (
            dims + field(2, 1) + floats + field(8, "f"), field(1, 4) + field(2, 6) + numbers + field(8, "i"),
        )))  # fmt: skip
    (tmp_path / "x.onnx").write_bytes(model)
    expected = {
        one.name: numpy_helper.to_array(one).tolist() for one in onnx.load(tmp_path / "x.onnx").graph.initializer
    }
    state = statedict.load(tmp_path / "x.onnx", format="onnx")
    assert {key: one.tolist() for key, one in state.items()} == expected == {"f": [1, 2, 3], "i": [-1, 2, 3, 200]}


def test_texts_are_lists(tmp_path: Path) -> None:
    protos = [
        numpy_helper.from_array(numpy.array([["a", "λ"], ["", "b"]], object), "texts"),
        helper.make_tensor("one", TensorProto.STRING, (), [b"x"]),
        helper.make_tensor("bytes", TensorProto.STRING, (1,), [b"\xff"]),
    ]
    state = statedict.load(write(tmp_path / "x.onnx", protos))
    assert state == {"texts": [["a", "λ"], ["", "b"]], "one": "x", "bytes": [b"\xff"]}


def test_the_tensors_of_nodes_subgraphs_and_functions_have_their_places(tmp_path: Path) -> None:
    body = graph([tensor("inner", [1, 2])], [helper.make_node("Constant", [], ["c"], value=tensor("", [3]))])
    nodes = [
        helper.make_node("Constant", [], ["top"], value=tensor("ignored", [4.5])),
        helper.make_node("Constant", [], ["number"], value_int=3),
        helper.make_node("ConstantOfShape", ["a"], ["z"], name="zeros", value=tensor("", [7], "int64")),
        helper.make_node("If", ["a"], ["y"], then_branch=body, else_branch=graph()),
        helper.make_node("If", ["a"], ["x"], "deep", then_branch=graph((), [
            helper.make_node("Loop", ["a"], ["l"], body=body)])),
    ]  # fmt: skip
    function = helper.make_function("lab", "F", ["a"], ["b"], [nodes[0]], [helper.make_opsetid("", 20)])
    path = write(tmp_path / "x.onnx", [tensor("w", [0])], nodes, functions=[function])
    state = statedict.load(path)
    assert list(state.flatten()) == [
        "w", "constants.top", "constants.zeros/value", "subgraphs.y/then_branch.inner",
        "subgraphs.y/then_branch.constants.c", "subgraphs.deep/then_branch.subgraphs.l/body.inner",
        "subgraphs.deep/then_branch.subgraphs.l/body.constants.c", "functions.lab::F.constants.top",
    ]  # fmt: skip
    assert state["constants"]["top"].tolist() == [4.5]
    assert statedict.verify(path).ok
    assert statedict.scan(path).verdict == "data"
    statedict.convert(path, tmp_path / "x.safetensors")
    assert statedict.diff(path, tmp_path / "x.safetensors").identical == len(statedict.load(path).tensors())


def test_the_tensors_of_training_are_beside_those_of_the_model(tmp_path: Path) -> None:
    model = helper.make_model(graph([tensor("w", [1])]))
    info = model.training_info.add()
    info.algorithm.CopyFrom(graph([tensor("rate", [0.1])]))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert list(statedict.load(tmp_path / "x.onnx").flatten()) == ["w", "training.0/algorithm.rate"]


def test_a_sparse_tensor_is_its_parts(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(tensor("s", [1.5, 2.5]), tensor("", [[0, 1], [2, 0]], "int64"), [3, 4])
    (found,) = statedict.load(write(tmp_path / "x.onnx", sparse=[sparse])).values()
    assert {key: getattr(part, "tolist", lambda p=part: p)() for key, part in found.items()} == {
        "indices": [[0, 1], [2, 0]], "values": [1.5, 2.5], "size": [3, 4],
    }  # fmt: skip


def test_properties_are_the_metadata(tmp_path: Path) -> None:
    model = helper.make_model(graph(), producer_name="lab", ir_version=9, opset_imports=[
        helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)])  # fmt: skip
    helper.set_model_props(model, {"author": "A"})
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert statedict.load(tmp_path / "x.onnx").metadata == {
        "ir_version": "9", "producer_name": "lab", "opset": "20", "opset ai.onnx.ml": "3", "author": "A",
    }  # fmt: skip


def beside(folder: Path, *, offset: int = 0, length: int | None = 12, location: str = "w.bin", size: int = 20) -> Path:
    """A model whose only tensor, three floats, lies in another file."""
    proto = tensor("w", [1, 2, 3])
    (folder / "w.bin").write_bytes((bytes(offset) + proto.raw_data + bytes(8))[:size])
    onnx.external_data_helper.set_external_data(proto, location, offset, length)
    proto.ClearField("raw_data")
    return write(folder / "x.onnx", [proto])


def test_tensors_in_other_files_lie_at_any_offset(tmp_path: Path) -> None:
    assert statedict.load(beside(tmp_path, offset=3))["w"].tolist() == [1, 2, 3]
    assert statedict.load(beside(tmp_path, length=None))["w"].tolist() == [1, 2, 3]
    protos = [tensor(f"w{index}", numpy.arange(index), "int8") for index in range(1, 5)]
    model = helper.make_model(graph(protos))
    onnx.save(model, tmp_path / "y.onnx", save_as_external_data=True, size_threshold=0, location="all.bin")
    state = statedict.load(tmp_path / "y.onnx")
    assert [state[f"w{index}"].tolist() for index in range(1, 5)] == [list(range(index)) for index in range(1, 5)]
    assert {one.storage.source.name for one in state.values()} == {str(tmp_path / "all.bin")}
    assert statedict.verify(tmp_path / "y.onnx").ok


def test_a_folder_opens_by_its_only_model(tmp_path: Path) -> None:
    beside(tmp_path)
    assert statedict.load(tmp_path)["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "https://example.org/w.bin"])
def test_a_tensor_never_lies_outside_of_the_model_s_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = beside(tmp_path / "model", location=location)
    with pytest.raises(FormatError, match=r"lies outside of the folder; refused"):
        statedict.load(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = beside(tmp_path / "model")
    os.rename(tmp_path / "model" / "w.bin", tmp_path / "w.bin")
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(FormatError, match=r"lies outside of the folder; refused"):
        statedict.load(path)


def test_a_file_that_lacks_or_is_short_is_named_with_the_tensor(tmp_path: Path) -> None:
    path = beside(tmp_path, size=11)
    with pytest.raises(CorruptFileError, match=r"tensor 'w': bytes 0 to 12 lie outside .*w\.bin \(11 bytes\)"):
        statedict.load(path)
    with pytest.raises(CorruptFileError, match="tensor 'w' has 8 bytes, its shape and type take 12"):
        statedict.load(beside(tmp_path, length=8))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(statedict.errors.MissingFileError, match=r"w\.bin"):
        statedict.load(path)


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    protos = [tensor(f"w{index}", numpy.zeros(2_000_000)) for index in range(5)]
    path = write(tmp_path / "x.onnx", protos)
    assert bytes_read(lambda: statedict.load(path)) < 1 << 20


def test_a_model_is_altered_like_any_other_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", [tensor("w", [[1, 2], [3, 4]])])
    state = alter.cast(statedict.load(path), "float16")
    statedict.save(state, tmp_path / "y.safetensors")
    assert statedict.load(tmp_path / "y.safetensors")["w"].tolist() == [[1, 2], [3, 4]]
    assert statedict.stats(path).tensors[0].mean == 2.5


def proto(*, dims: bytes = field(1, 3), code: int = 1, data: bytes = field(9, bytes(12)), name: str = "w") -> bytes:
    return field(5, dims + field(2, code) + data + field(8, name))


def model(*parts: bytes) -> bytes:
    return field(1, 8) + field(2, "lab") + field(7, b"".join(parts))


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = field(1, field(2, "o") + field(5, field(1, "body") + field(6, inner)))
    return model(inner)


DAMAGE: dict[str, tuple[bytes, type[Exception], str]] = {
    "cut": (model(proto())[:-1], TruncatedError, "ends within a field"),
    "cut in a number": (model(proto()) + b"\x80", TruncatedError, "ends within a field"),
    "no graph": (field(1, 8) + field(2, "lab"), CorruptFileError, "has no graph"),
    "two graphs": (model() + field(7, b""), CorruptFileError, "the graph stands twice"),
    "a graph as a number": (field(1, 8) + field(7, 1), CorruptFileError, "the graph is a field of the kind 0"),
    "kind 3": (model() + b"\x0b", CorruptFileError, "has the kind 3"),
    "number 0": (model() + b"\0\0", CorruptFileError, "does not fit into its message"),
    "a long varint": (model() + b"\x08" + b"\xff" * 10 + b"\1", CorruptFileError, "has more than 10 bytes"),
    "beyond its message": (
        model(b"\x2a\x04" + b"\x4a\x7f") + bytes(200), CorruptFileError, "does not fit into its message|kind",
    ),
    "two of a name": (model(proto(), proto()), CorruptFileError, "two tensors or graphs are called 'w'"),
    "raw_data twice": (model(proto(data=field(9, bytes(12)) * 2)), CorruptFileError, "raw_data stands twice"),
    "size": (model(proto(dims=field(1, 4))), CorruptFileError, "tensor 'w' has 12 bytes, its shape and type take 16"),
    "negative": (model(proto(dims=field(1, -3))), CorruptFileError, r"the shape \[-3\]: a negative size"),
    "huge": (model(proto(dims=field(1, 1 << 62) * 2)), CorruptFileError, "over 8 exabytes"),
    "dimensions": (model(proto(dims=field(1, 1) * 65)), CorruptFileError, "65 dimensions"),
    "type": (model(proto(code=99)), UnsupportedError, "has the data_type 99"),
    "no elements": (model(proto(data=b"")), CorruptFileError, "tensor 'w' has 0 bytes"),
    "few numbers": (model(proto(code=7, data=field(7, b"\1\1"))), CorruptFileError, "has 2 bytes of int64_data"),
    "floats as numbers": (model(proto(data=field(4, 3))), CorruptFileError, "float_data at byte .* of the kind 0"),
    "segments": (model(proto(data=field(3, b""))), UnsupportedError, "in segments"),
    "name": (model(field(5, field(8, b"\xff"))), CorruptFileError, "is not UTF-8"),
    "no place": (model(proto(data=field(14, 1))), CorruptFileError, "which is no place"),
    "offset": (
        model(proto(data=field(14, 1) + field(13, field(1, "location") + field(2, "f")) + field(
            13, field(1, "offset") + field(2, "-1")))), CorruptFileError, "which is no place",
    ),
    "sparse": (model(field(15, field(3, 4))), CorruptFileError, "has no values or no indices"),
    "deep": (nested(40), LimitError, "nested over 32 deep"),
    "a part's name": (
        model(proto(name="constants"), field(1, field(2, "o") + field(4, "Constant") + field(5, field(5, field(
            1, 0) + field(2, 1))))), CorruptFileError, "a tensor is called 'constants'",
    ),
    "texts": (model(proto(code=8, data=field(6, "a"))), CorruptFileError, "has 1 texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, kind, message = DAMAGE[name]
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(tmp_path / "x.onnx", format="onnx")
    assert str(tmp_path / "x.onnx") in str(caught.value)


@pytest.mark.parametrize("data", [b"\1\1\1\1", b"\xff\1\1", b"\1" * 4 + b"\xff" * 12 + b"\1", b"\1\1\xff"])
def test_numbers_that_are_wrong_are_found_when_they_are_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(model(proto(code=7, data=field(7, data))))
    try:
        found = statedict.load(tmp_path / "x.onnx", format="onnx")["w"]
    except StateDictError:
        return
    with pytest.raises(CorruptFileError, match=r"tensor 'w': (has|a number has)"):
        found.numpy()
    assert not statedict.verify(tmp_path / "x.onnx", format="onnx").ok
