"""numpy's arrays and scalars in pickles are what numpy unpickles."""

from __future__ import annotations

import itertools
import pickle
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from statedict.errors import CorruptFileError, StateDictError
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.lazy import LazyTensor
from statedict.values import Opaque

# what pickles of arrays name since numpy 1.17; its module has another name since 2.0
_frombuffer: Any = np.arange(2).__reduce_ex__(5)[0]

CODES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16", "?"]


def read(value: Any, protocol: int = 4) -> Any:
    return load(pickle.dumps(value, protocol), DATA)[0]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", CODES)
def test_arrays_of_every_dtype_and_byte_order_keep_their_values(code: str, order: str, protocol: int) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(code).astype(order + code)
    native = array.astype(array.dtype.newbyteorder("="))
    for value in (array, np.asfortranarray(array), array[::-1, 1:], array[:0], array[0, 0, :1].reshape(())):
        found = read(value, protocol)
        assert type(found) is LazyTensor
        assert found.dtype.numpy == native.dtype
        assert np.array_equal(found.numpy(), value)
        assert found.raw() == np.ascontiguousarray(value).astype(native.dtype).tobytes()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", CODES)
def test_scalars_become_the_numbers_of_python(code: str, order: str, protocol: int) -> None:
    value = np.array([1]).astype(order + code)[0]
    found = read(value, protocol)
    assert found == value.item()
    assert type(found) is type(value.item())


@given(
    arrays_of.arrays(
        arrays_of.scalar_dtypes() | arrays_of.array_dtypes(), arrays_of.array_shapes(min_dims=0, min_side=0)
    ),
    st.integers(0, 5),
)
def test_any_array_is_its_values_or_a_label(array: Any, protocol: int) -> None:
    found = read(array, protocol)
    if array.dtype.str[1:] in [np.dtype(code).str[1:] for code in CODES]:
        assert found.numpy().tobytes() == np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")).tobytes()
    else:
        assert isinstance(found, Opaque)
        assert found.name.startswith("numpy")


def test_an_array_that_stands_twice_is_one_tensor() -> None:
    array, objects = np.arange(3), np.array([1, "a", None], object)
    found = read([array, array, objects, objects])
    assert found[0] is found[1]
    assert found[2] is found[3]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_objects_strings_and_records_are_labels_that_keep_their_parts(protocol: int) -> None:
    found = read(np.array([1, {"w": np.arange(2)}], object), protocol)
    assert isinstance(found, Opaque)
    assert found.items[1]["w"].tolist() == [0, 1]
    for array in (np.array(["ab"]), np.zeros(2, [("a", "f4")]), np.array(["2020-01-01"], "M8[D]"), np.zeros(1, "V3")):
        assert isinstance(read(array, protocol), Opaque)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_with_their_axes_in_any_order_keep_their_values(protocol: int) -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    for axes in itertools.permutations(range(3)):
        for value in (array.transpose(axes), array[:, :0].transpose(axes)):
            assert np.array_equal(read(value, protocol).numpy(), value)


@pytest.mark.parametrize("axes", [b"K\x00K\x00", b"K\x00K\x02", b"K\x00N"])
def test_axes_in_no_order_are_refused(axes: bytes) -> None:
    class Axes:
        def __reduce__(self) -> Any:
            return _frombuffer, (b"1234", np.dtype("i1"), (2, 2), "K", (1, 0))

    whole = pickle.dumps(Axes(), 2)
    assert whole.count(b"K\x01K\x00") == 1
    with pytest.raises(CorruptFileError, match="axes"):
        load(whole.replace(b"K\x01K\x00", axes), DATA)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2fnuz"])
def test_arrays_of_ml_dtypes_keep_their_values(name: str, protocol: int) -> None:
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
    found = read(array, protocol)
    assert found.dtype.name == name
    assert found.raw() == array.tobytes()


@pytest.mark.parametrize("protocol", range(6))
def test_dtypes_that_are_named_by_a_class_or_made_by_a_function_are_labels(protocol: int) -> None:
    records = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    texts = [np.array(["a"], np.dtypes.StringDType())] if hasattr(np.dtypes, "StringDType") else []  # since numpy 2.0
    for value in (records, *texts, ml_dtypes.bfloat16(1), np.zeros(2, records.dtype)):
        found = read({"x": value, "w": np.arange(3)}, protocol)
        assert isinstance(found["x"], Opaque)
        assert found["w"].tolist() == [0, 1, 2]


def test_a_dtype_by_itself_is_a_label() -> None:
    assert read({"d": np.dtype("f4")})["d"].name == "numpy.dtype"


STATE = pickle.dumps(np.arange(3, dtype="<i4"), 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x03\x85", b"K\x04\x85", "has 12 bytes"),
        (b"K\x03\x85", b"J\xff\xff\xff\xff\x85", "shape"),
        (b"K\x03\x85", b"]", "without a dtype or a shape"),
    ],
)
def test_arrays_whose_numbers_disagree_are_refused(old: bytes, new: bytes, message: str) -> None:
    assert STATE.count(old) == 1
    with pytest.raises(CorruptFileError, match=message):
        load(STATE.replace(old, new), DATA)


def test_a_changed_byte_is_an_error_of_ours_or_no_error() -> None:
    for whole in (pickle.dumps([np.arange(3), np.float32(2)], p) for p in range(6)):
        for position in range(len(whole)):
            for flip in (1, 0x40, 0xFF):
                data = whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :]
                try:
                    load(data, DATA)
                except StateDictError:
                    pass


def test_a_scalar_of_another_length_than_its_dtype_is_an_error_of_ours() -> None:
    data = pickle.dumps(np.float64(1.5), 4)
    whole = b"C\x08" + struct.pack("<d", 1.5)
    assert whole in data
    with pytest.raises(StateDictError):
        load(data.replace(whole, b"C\x071234567"), DATA)
