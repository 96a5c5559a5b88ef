"""The one dtype table agrees with PyTorch, numpy and safetensors."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.dtypes import BY_NAME, BY_SAFETENSORS, BY_STORAGE, DType, dtype
from statedict.errors import FormatError, UnsupportedError
from statedict.testing.same import in_numpy

ALL = list(BY_NAME.values())
IN_TORCH = [kind for kind in ALL if isinstance(getattr(torch, kind.name, None), torch.dtype)]
dtypes = st.sampled_from(ALL)


def test_every_dtype_that_torch_can_save_is_in_the_table() -> None:
    # numbers of 1 to 7 bits are names without an implementation: torch cannot make a tensor of them
    names = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert {name for name in names if not re.fullmatch(r"u?int[1-7]", name)} == {kind.name for kind in IN_TORCH}


@pytest.mark.parametrize("kind", IN_TORCH, ids=str)
def test_an_element_takes_the_bytes_that_torch_says(kind: DType) -> None:
    assert kind.itemsize == kind.torch.itemsize
    assert kind.bits == 8 * kind.itemsize


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.itemsize and in_numpy(kind)], ids=str)
def test_the_numpy_dtype_has_elements_of_the_same_size(kind: DType) -> None:
    assert kind.numpy.itemsize == kind.itemsize


@pytest.mark.parametrize(
    "kind",
    [k for k in IN_TORCH if k.kind in ("float", "int", "uint", "bool", "complex") and k.name[-1] != "2"],
    ids=str,
)
def test_torch_and_numpy_see_the_same_numbers_in_the_same_bytes(kind: DType) -> None:
    raw = bytes(range(0, 128, 2)) if kind.kind != "bool" else bytes([0, 1] * 32)
    by_numpy = np.frombuffer(raw, kind.numpy).astype(np.complex128)
    by_torch = torch.frombuffer(bytearray(raw), dtype=kind.torch).to(torch.complex128).numpy()
    assert np.array_equal(by_numpy, by_torch, equal_nan=True)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.storage], ids=str)
def test_the_typed_storage_is_the_one_of_torch(kind: DType) -> None:
    assert torch.storage._dtype_to_storage_type_map()[kind.torch] == kind.storage


def test_every_typed_storage_of_torch_is_in_the_table() -> None:
    assert {str(d).removeprefix("torch."): s for d, s in torch.storage._dtype_to_storage_type_map().items()} == {
        kind.name: storage for storage, kind in BY_STORAGE.items()
    }


def test_the_names_of_safetensors_are_those_of_its_library() -> None:
    theirs = {code: str(kind).removeprefix("torch.") for code, kind in safetensors.torch._TYPES.items()}
    assert {code: BY_SAFETENSORS[code].name for code in theirs} == theirs


@given(dtypes)
def test_a_dtype_is_found_by_each_of_its_names(kind: DType) -> None:
    names: list[object] = [kind, kind.name, f"torch.{kind.name}", str(kind)]
    names += [kind.safetensors] if kind.safetensors else []
    names += [kind.torch] if kind in IN_TORCH else []
    assert all(dtype(name) is kind for name in names)


@pytest.mark.parametrize("kind", [k for k in ALL if k.kind in ("float", "int", "uint", "bool", "complex")], ids=str)
def test_a_dtype_is_found_by_its_numpy_dtype_and_type(kind: DType) -> None:
    if kind.itemsize and not kind.name.endswith("x2") and in_numpy(kind):
        assert dtype(kind.numpy) is kind
        assert dtype(kind.numpy.type) is kind


def test_a_dtype_that_ml_dtypes_lacks_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ml_dtypes, "bcomplex32", raising=False)
    monkeypatch.setattr(BY_NAME["bcomplex32"], "_numpy", None)
    with pytest.raises(UnsupportedError, match=r"has no bcomplex32; pip install -U ml_dtypes, or .*\.raw\(\)"):
        _ = BY_NAME["bcomplex32"].numpy


def test_the_short_names_are_those_that_people_use() -> None:
    short = {"bf16": "bfloat16", "half": "float16", "fp32": "float32", "float": "float32", "double": "float64",
             "long": "int64", "int": "int32", "fp8": "float8_e4m3fn", "cfloat": "complex64"}  # fmt: skip
    assert {name: dtype(name).name for name in short} == short
    assert dtype(np.dtype(ml_dtypes.bfloat16)) is dtype("bf16")


@given(dtypes)
def test_there_is_one_object_for_each_dtype_also_after_copying_and_pickling(kind: DType) -> None:
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert copy.deepcopy(kind) is kind
    assert repr(kind) == f"dtype({kind.name!r})"


def test_a_dtype_that_is_in_no_table_keeps_its_row_when_pickled() -> None:
    kind = DType("F3_NEW", 3, "raw", "", "F3_NEW")
    again = pickle.loads(pickle.dumps(kind))
    assert (again.name, again.bits, again.kind, again.safetensors) == ("F3_NEW", 3, "raw", "F3_NEW")


@given(dtypes, st.integers(0, 1 << 40))
def test_bytes_are_elements_times_bits_rounded_up(kind: DType, numel: int) -> None:
    assert kind.nbytes(numel) == -(-numel * kind.bits // 8)


@pytest.mark.parametrize(
    "name", ["float7", "", "torch.", "Storage", np.dtype("U3"), np.dtype("M8[s]"), object, 3, None]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(FormatError, match=r"unknown dtype .*; known are float64, "):
        statedict.dtype(name)


def test_a_dtype_that_numpy_or_torch_lacks_says_what_to_do() -> None:
    with pytest.raises(
        UnsupportedError, match=r"numpy has no dtype for float6_e2m3fn \(6 bits an element\).*\.raw\(\)"
    ):
        _ = dtype("float6_e2m3fn").numpy
    with pytest.raises(UnsupportedError, match="has no dtype float6_e2m3fn"):
        _ = dtype("float6_e2m3fn").torch


# what it equals


@pytest.mark.parametrize("kind", IN_TORCH, ids=str)
def test_a_dtype_equals_the_one_of_torch_and_no_other(kind: DType) -> None:
    assert kind == kind.torch
    assert kind.torch == kind
    assert [other for other in IN_TORCH if other == kind.torch] == [kind]


NUMBERS = ("float", "int", "uint", "bool", "complex")


@pytest.mark.parametrize(
    "kind", [k for k in ALL if in_numpy(k) and k.kind in NUMBERS and k.name[-3:] != "_x2"], ids=str
)
def test_a_dtype_equals_the_one_of_numpy_and_its_scalar_type(kind: DType) -> None:
    assert kind == kind.numpy
    assert kind.numpy == kind
    assert kind == kind.numpy.type
    assert kind.numpy.type == kind
    assert [other for other in ALL if other == kind.numpy] == [kind]


def test_a_dtype_equals_its_name_and_no_alias() -> None:
    assert dtype("float32") == "float32"
    assert "float32" == dtype("float32")  # noqa: SIM300  # the other side is what is tested
    assert dtype("float32") not in ("fp32", "float", "torch.float32", "F32", "float64", None, 32, float, object)
    assert dtype("float32") != np.dtype(">f4")
    assert dtype("quint8") != np.uint8


@given(dtypes)
def test_equal_names_and_dtypes_find_one_another_in_dicts_and_sets(kind: DType) -> None:
    assert hash(kind) == hash(kind.name)
    assert {kind: 1}[kind.name] == {kind.name: 1}[kind] == 1  # type: ignore[index]
    assert len(dict.fromkeys(ALL)) == len(ALL)


def test_a_file_whose_dict_has_a_dtype_and_its_name_is_refused_and_no_entry_lost(tmp_path: Path) -> None:
    for keys in ([torch.float32, "float32"], ["float32", torch.float32]):
        torch.save(dict.fromkeys(keys, 1), tmp_path / "x.pth")
        with pytest.raises(FormatError, match=r"keys torch\.float32 and 'float32', which are equal"):
            statedict.load(tmp_path / "x.pth")
    torch.save({torch.float32: 1, "float64": 2}, tmp_path / "x.pth")
    assert list(statedict.load(tmp_path / "x.pth")) == [dtype("float32"), "float64"]
