"""What the operations make of torch.bcomplex32: two bfloat16."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy
import pytest

import statedict
from statedict.dtypes import BY_NAME
from statedict.ops.alter import verbs as alter

NUMBERS = numpy.array([1.5 - 2j, 0, 3, -0.25j])


def made() -> statedict.StateDict:
    return statedict.StateDict(w=NUMBERS.astype(ml_dtypes.bcomplex32))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_it_is_saved_and_loaded_bit_by_bit(suffix: str, tmp_path: Path) -> None:
    statedict.save(made(), tmp_path / f"w{suffix}")
    loaded = statedict.load(tmp_path / f"w{suffix}")["w"]
    assert (str(loaded.dtype), loaded.shape, loaded.dtype.itemsize) == ("bcomplex32", (4,), 4)
    assert loaded.raw() == made()["w"].tobytes()
    assert numpy.array_equal(loaded.numpy().astype(complex), NUMBERS)


@pytest.mark.parametrize("other", ["complex32", "complex64", "complex128"])
def test_it_is_cast_to_the_other_complex_dtypes_and_back(other: str) -> None:
    there = alter.cast(statedict.capture(made()), other, "w")
    assert numpy.array_equal(there["w"].numpy().astype(complex), NUMBERS)
    assert numpy.array_equal(alter.cast(there, "bcomplex32", "w")["w"].numpy().astype(complex), NUMBERS)


def test_a_tensor_that_differs_in_its_imaginary_part_is_measured() -> None:
    other = made()
    other["w"][1] = 2j
    (found,) = statedict.diff(made(), other).tensors
    assert found.measures is not None
    assert (found.measures.changed, found.measures.max_abs) == (1, 2)


def test_its_parts_are_bfloat16() -> None:
    assert BY_NAME["bcomplex32"].component is BY_NAME["bfloat16"]
    assert BY_NAME["float32"].component is BY_NAME["float32"]
