"""What the operations make of torch.bcomplex32: two bfloat16. ml_dtypes has it from 0.6 on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest

import statedict
from statedict import alter
from statedict.dtypes import BY_NAME
from statedict.io.source import BytesSource
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import in_numpy

NUMBERS = numpy.array([1.5 - 2j, 0, 3, -0.25j])
KIND = BY_NAME["bcomplex32"]


def made(numbers: numpy.ndarray = NUMBERS) -> statedict.StateDict:
    data = numbers.view(float).astype(ml_dtypes.bfloat16).tobytes()
    return statedict.StateDict(w=LazyTensor(KIND, (4,), Storage(BytesSource(data), 0, len(data))))


def refused_where_ml_dtypes_lacks_it() -> AbstractContextManager[Any]:
    if in_numpy(KIND):
        return nullcontext()
    return pytest.raises(statedict.StateDictError, match=r"has no b?complex32; pip install -U ml_dtypes")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_it_is_saved_and_loaded_bit_by_bit(suffix: str, tmp_path: Path) -> None:
    statedict.save(made(), tmp_path / f"w{suffix}")
    loaded = statedict.load(tmp_path / f"w{suffix}")["w"]
    assert (str(loaded.dtype), loaded.shape, loaded.dtype.itemsize) == ("bcomplex32", (4,), 4)
    assert loaded.raw() == made()["w"].raw()
    with refused_where_ml_dtypes_lacks_it():
        assert numpy.array_equal(loaded.numpy().astype(complex), NUMBERS)


@pytest.mark.parametrize("other", ["complex32", "complex64", "complex128"])
def test_it_is_cast_to_the_other_complex_dtypes_and_back(other: str) -> None:
    with refused_where_ml_dtypes_lacks_it():
        there = alter.cast(made(), other, "w")
        assert numpy.array_equal(there["w"].numpy().astype(complex), NUMBERS)
        assert numpy.array_equal(alter.cast(there, "bcomplex32", "w")["w"].numpy().astype(complex), NUMBERS)


def test_a_tensor_that_differs_in_its_imaginary_part_is_measured() -> None:
    other = made(numpy.array([1.5 - 2j, 2j, 3, -0.25j]))
    with refused_where_ml_dtypes_lacks_it():
        (found,) = statedict.diff(made(), other).tensors
        assert found.measures is not None
        assert (found.measures.changed, found.measures.max_abs) == (1, 2)
    assert statedict.diff(made(), made()).same


def test_its_parts_are_bfloat16() -> None:
    assert BY_NAME["bcomplex32"].component is BY_NAME["bfloat16"]
    assert BY_NAME["float32"].component is BY_NAME["float32"]
