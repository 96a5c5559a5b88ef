"""What the writer writes, `torch.load(weights_only=True)` and our own machine read as the same."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.dtypes import BY_NAME, dtype
from statedict.errors import TreeError, UnsupportedError
from statedict.io.source import BytesSource
from statedict.pickles.constructors import DATA, TypedStorage
from statedict.pickles.machine import load
from statedict.pickles.writer import dumps
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import in_torch
from statedict.tree.state_dict import StateDict
from statedict.values import Device, Opaque, Size

BYTES = bytes(range(1, 65))
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 2039), (1 << 2039) - 1)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
    | st.sets(st.integers() | st.text(), max_size=4)
    | st.dictionaries(st.text(), st.integers(), max_size=4).map(Counter)
)
keys = st.text() | st.integers(-(1 << 63), (1 << 64) - 1) | st.booleans() | st.tuples(st.text(), st.integers(0, 9))
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=15,
)


def no_tensors(tensor: LazyTensor) -> Any:
    raise AssertionError


def whole(tensor: LazyTensor) -> Any:
    return "0", tensor.storage.nbytes, tensor.offset, tensor.stride()


def by_torch(data: bytes) -> Any:
    """The pickle in the smallest archive that torch takes, with one storage of 64 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", data), ("data/0", BYTES), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_us(data: bytes) -> Any:
    def storage(identifier: Any) -> TypedStorage:
        _, kind, _, _, numel = identifier
        return TypedStorage(Storage(BytesSource(BYTES), 0, numel * kind.dtype.itemsize), kind.dtype)

    return load(data, DATA, storage)[0]


@given(trees)
def test_our_machine_reads_what_was_written(tree: Any) -> None:
    assert by_us(dumps(tree, no_tensors)) == tree


@given(trees)
def test_torch_reads_what_was_written_without_trusting_us(tree: Any) -> None:
    assert by_torch(dumps(tree, no_tensors)) == tree


@given(trees)
def test_the_same_tree_makes_the_same_valid_pickle_of_protocol_2(tree: Any) -> None:
    data = dumps(tree, no_tensors)
    assert data == dumps(tree, no_tensors)
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(data)) <= 2
    pickletools.dis(data, out=io.StringIO())


def test_sizes_dtypes_devices_and_module_versions_become_those_of_torch() -> None:
    state = StateDict({"weight": 1})
    state._metadata = OrderedDict({"": {"version": 2}})
    tree = {
        "size": Size((2, 3)),
        "dtype": dtype("bf16"),
        "device": Device("cuda:1"),
        "cpu": Device("cpu"),
        "state": state,
    }
    data = dumps(tree, no_tensors)
    found = by_torch(data)
    assert found["size"] == torch.Size((2, 3))
    assert type(found["size"]) is torch.Size
    assert found["dtype"] is torch.bfloat16
    assert (found["device"], found["cpu"]) == (torch.device("cuda:1"), torch.device("cpu"))
    assert type(found["state"]) is OrderedDict
    assert found["state"]._metadata == state._metadata
    again = by_us(data)
    assert again == tree
    assert [type(value) for value in again.values()] == [type(value) for value in tree.values()]
    assert again["state"]._metadata == state._metadata


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")  # torch's own, once a process
@pytest.mark.parametrize(
    "name", [n for n, kind in BY_NAME.items() if kind.itemsize and kind.kind != "quantized" and in_torch(kind)]
)
@pytest.mark.parametrize("parameter", [False, True])
def test_tensors_of_every_dtype_are_read_by_torch_bit_by_bit(name: str, parameter: bool) -> None:
    kind = dtype(name)
    grad = parameter and kind.kind in ("float", "complex")
    tensor = LazyTensor(kind, (2, 1), Storage(BytesSource(BYTES), 0, 64), kind.itemsize, None, grad, parameter)
    data = dumps({"a": tensor, "b": tensor}, whole)
    found = by_torch(data)["b"]
    assert (found.dtype, tuple(found.shape), found.storage_offset()) == (kind.torch, (2, 1), 1)
    assert (type(found) is torch.nn.Parameter, found.requires_grad) == (parameter, grad)
    start = found.untyped_storage()
    assert bytes(start) == BYTES
    again = by_us(data)["a"]
    assert (again.dtype, again.shape, again.offset, again.parameter) == (kind, (2, 1), kind.itemsize, parameter)
    assert again.raw() == BYTES[kind.itemsize : 3 * kind.itemsize]


def test_strides_are_kept() -> None:
    tensor = LazyTensor(dtype("float32"), (2, 3), Storage(BytesSource(BYTES), 0, 64), 4, (1, 2))
    for found in (by_torch(dumps(tensor, whole)), by_us(dumps(tensor, whole))):
        assert tuple(found.stride()) == (1, 2)
        assert tuple(found.shape) == (2, 3)


def test_many_globals_outgrow_the_short_memo_opcodes() -> None:
    tree = [kind for kind in BY_NAME.values() if kind.itemsize] * 3
    assert by_us(dumps(tree, no_tensors)) == tree
    assert dumps(tree, no_tensors).count(b"ctorch\n") == len(set(tree))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "a object is not data"),
        (Opaque("omegaconf.DictConfig"), r"an object of class omegaconf.DictConfig .* keeps it as a label"),
        (frozenset(), "a frozenset is not data"),
        (range(3), "a range is not data"),
        (1 << 2040, "an integer of over 255 bytes"),
    ],
)
def test_a_value_that_torch_would_refuse_is_named_by_its_path(value: Any, what: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^config\.0\.x: {what}"):
        dumps({"config": ({"x": value},)}, no_tensors)
    with pytest.raises(UnsupportedError, match=rf"^2: {what}"):
        dumps([0, 1, value], no_tensors)
    with pytest.raises(UnsupportedError, match=rf"^the root: {what}"):
        dumps(value, no_tensors)


def test_a_key_that_torch_would_refuse_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"^a\..* \(the key\): a frozenset"):
        dumps({"a": {frozenset(): 1}}, no_tensors)


def test_tensors_that_torch_has_no_dtype_for_are_named_by_their_path() -> None:
    storage = Storage(BytesSource(BYTES), 0, 64)
    for name, what in (("float6_e2m3fn", "no dtype float6_e2m3fn"), ("qint8", "lacks its scale")):
        with pytest.raises(UnsupportedError, match=rf"^layers\.0: .*{what}"):
            dumps({"layers": [LazyTensor(dtype(name), (4,), storage)]}, whole)


def test_a_tree_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    with pytest.raises(TreeError, match="nested deeper than 200, or the tree contains itself"):
        dumps(loop, no_tensors)


def test_a_device_of_a_name_of_its_own_is_written_as_it_is() -> None:
    for name in ("cuda", "mps:0", "weird", "npu_2:127"):
        assert by_us(dumps(Device(name), no_tensors)) == Device(name)


@pytest.mark.parametrize("name", ["weird:name", "a:b:1", "", "cuda:", "cuda:128", "cuda:-1", "cuda:01", "1", "\ud800"])
def test_a_device_that_could_not_be_read_again_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"is not a device; expected a type and an index, as cuda:0"):
        dumps(Device(name), no_tensors)
    with pytest.raises(UnsupportedError, match=r"^d: .* is not a device"):
        statedict.save({"d": Device(name)}, tmp_path / "x.safetensors")
