"""Live arrays as raw memory, and raw memory as arrays."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import dtype
from statedict.errors import UnsupportedError
from statedict.io.source import address_view
from statedict.tensor.arrays import (
    Memory,
    contiguous_strides,
    is_numpy,
    is_torch,
    mark_written,
    numpy_memory,
    numpy_view,
    torch_memory,
    torch_storage,
    torch_view,
    writable_memory,
)

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def views(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """A numpy array and what slicing, transposing and broadcasting make of it."""
    shape = draw(shapes)
    kind = draw(st.sampled_from(["u1", "<i2", ">i2", "<f4", ">f8", "c8", "?", ml_dtypes.bfloat16]))
    array = np.arange(int(np.prod(shape)), dtype="f4").reshape(shape).astype(kind)
    for axis in range(array.ndim):
        step = draw(st.sampled_from([1, 1, 2, -1, -2]))
        array = array[(slice(None),) * axis + (slice(draw(st.integers(0, 2)) if step > 0 else None, None, step),)]
    if draw(st.booleans()):
        array = array.T
    if draw(st.booleans()):
        array = np.broadcast_to(array, (2, *array.shape))
    return array


def rebuilt(memory: Memory) -> Any:
    storage = address_view(memory.address, memory.nbytes, memory.owner)
    return numpy_view(storage[memory.offset :], memory.dtype, memory.shape, memory.strides)


@given(views())
def test_any_numpy_array_lies_where_its_memory_says(array: np.ndarray[Any, Any]) -> None:
    memory = numpy_memory(array)
    assert memory.dtype.numpy == array.dtype.newbyteorder("=")
    assert memory.shape == array.shape
    assert (memory.strides is None) == (array.size == 0 or rebuilt(memory).flags.c_contiguous)
    assert np.array_equal(rebuilt(memory), array)


@given(views())
def test_any_torch_tensor_lies_where_its_memory_says(array: np.ndarray[Any, Any]) -> None:
    tensor = torch.from_numpy(np.ascontiguousarray(array.astype("c8").real).reshape(array.shape))
    tensor = tensor.permute(tuple(reversed(range(tensor.ndim))))
    memory = torch_memory(tensor)
    assert np.array_equal(rebuilt(memory), tensor.numpy())
    assert (memory.strides is None) == tensor.is_contiguous()


@given(views())
def test_a_tensor_made_over_memory_is_the_array(array: np.ndarray[Any, Any]) -> None:
    memory = numpy_memory(np.array(array))
    storage = torch_storage(address_view(memory.address, memory.nbytes, memory.owner))
    tensor = torch_view(storage, memory.dtype, memory.shape, memory.strides, memory.offset // memory.dtype.itemsize)
    assert np.array_equal(tensor.to(torch.complex64).numpy(), array.astype("c8"))


@given(shapes)
def test_contiguous_strides_are_those_of_torch(shape: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == torch.empty(shape).stride()


def test_two_views_of_one_array_share_its_storage() -> None:
    base = np.arange(24, dtype="f4").reshape(4, 6)
    one, other = numpy_memory(base[1:3, 2:]), numpy_memory(base.T)
    assert (one.address, one.nbytes) == (other.address, other.nbytes) == (base.ctypes.data, 96)
    assert (one.offset, other.offset) == (32, 0)
    weight = torch.arange(6.0)
    a, b = torch_memory(weight[1:]), torch_memory(weight)
    assert (a.address, a.nbytes, a.offset) == (b.address, b.nbytes, 4)


def test_a_view_that_begins_between_the_elements_of_its_base_is_its_own_storage() -> None:
    raw = np.zeros(64, "u1")[1:]
    base = np.frombuffer(raw.data, "u1")
    skip = -base.ctypes.data % 4
    array = base[skip : skip + 40].view("f4")
    memory = numpy_memory(array)
    assert skip == 3
    assert memory.offset % 4 == 0
    assert np.array_equal(rebuilt(memory), array)


@pytest.mark.parametrize("kind", ["O", "U3", "S3", "M8[s]", "m8[s]", "f4,i4", "V3"])
def test_arrays_that_are_no_numbers_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="has no counterpart in PyTorch"):
        numpy_memory(np.zeros(3, kind))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, on making such tensors
def test_tensors_without_plain_memory_are_refused_with_a_remedy() -> None:
    weight = torch.ones(2, 2)
    for tensor, remedy in (
        (weight.to_sparse(), r"torch.sparse_coo; save its parts"),
        (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), r"quantized; save .int_repr\(\)"),
        (torch.nested.nested_tensor([weight[0], weight[1]]), r"nested; save .values\(\)"),
        (weight.to("meta"), r"on the meta device and has no values; materialise"),
    ):
        with pytest.raises(UnsupportedError, match=remedy):
            torch_memory(tensor)


def test_lazily_conjugated_and_negated_tensors_give_their_values() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert np.array_equal(rebuilt(torch_memory(tensor.conj())), [1 - 2j, 3 + 4j])
    assert np.array_equal(rebuilt(torch_memory(tensor.conj().imag)), [-2, 4])


def test_a_parameter_is_told_from_a_tensor() -> None:
    for tensor, expected in (
        (torch.ones(1), (False, False)),
        (torch.ones(1, requires_grad=True), (True, False)),
        (torch.nn.Parameter(torch.ones(1)), (True, True)),
        (torch.nn.Parameter(torch.ones(1), requires_grad=False), (False, True)),
    ):
        memory = torch_memory(tensor)
        assert (memory.requires_grad, memory.parameter) == expected


def test_only_plain_contiguous_tensors_outside_autograd_are_written_in_place() -> None:
    plain, parameter = torch.zeros(2, 3), torch.nn.Parameter(torch.zeros(2, 3))
    assert writable_memory(plain) is not None
    assert writable_memory(parameter) is None
    with torch.no_grad():
        assert writable_memory(parameter) is not None
    conjugated = torch.zeros(2, dtype=torch.complex64).conj()
    for tensor in (plain.T, plain.to_sparse(), plain.to("meta"), conjugated, np.zeros(3)):
        assert writable_memory(tensor) is None


def test_autograd_notices_memory_that_was_written() -> None:
    weight = torch.ones(3, requires_grad=True)
    product = (weight * weight).sum()
    mark_written(weight.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_kinds_are_told_without_importing_a_framework() -> None:
    assert is_torch(torch.ones(1))
    assert is_numpy(np.ones(1))
    assert not is_torch(np.ones(1))
    assert not is_numpy(np.float32(1))
    script = (
        "import sys; from statedict.tensor.arrays import is_numpy, is_torch\n"
        "assert not is_torch(1) and not is_numpy(1) and not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_dtype_of_numpy_that_is_strided_over_odd_bytes_is_viewed() -> None:
    data = memoryview(bytearray(range(15)))
    assert numpy_view(data[1:], dtype("int16"), (3,), (2,)).tolist() == [0x0201, 0x0605, 0x0A09]
    assert numpy_view(data, dtype("bf16"), (2, 2), (1, 2)).shape == (2, 2)
