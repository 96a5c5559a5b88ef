"""The constructors build data from data, and check every number."""

from __future__ import annotations

import collections
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import dtype
from statedict.errors import CorruptFileError, StateDictError
from statedict.io.source import BytesSource
from statedict.pickles.constructors import TypedStorage, tensor
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.values import Opaque

FLOATS = Storage(BytesSource(np.arange(16, dtype="f4").tobytes()), 0, 64)
F4 = dtype("float32")


def read(data: bytes) -> Any:
    """The pickle; every persistent id is the storage of 16 floats."""
    return load(data, DATA, lambda _: TypedStorage(FLOATS, F4))[0]


def test_old_tensors_are_made_from_their_state_alone() -> None:
    found = read(b"ctorch\nFloatTensor\n)R(NQK\x02K\x03\x85K\x01\x85tb.")
    assert found.numpy().tolist() == [2, 3, 4]
    with pytest.raises(CorruptFileError, match="made from arguments"):
        read(b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.")
    with pytest.raises(CorruptFileError, match="a tensor without a valid state"):
        read(b"ctorch\nFloatTensor\n)RNb.")


def rebuild(arguments: bytes) -> Any:
    return read(b"ctorch._utils\n_rebuild_tensor_v2\n(NQ" + arguments + b"tR.")


@given(
    st.integers(-2, 20),
    st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 8)), max_size=4),
)
def test_a_tensor_is_taken_exactly_where_torch_would_take_it(offset: int, axes: list[tuple[int, int]]) -> None:
    shape, strides = tuple(n for n, _ in axes), tuple(s for _, s in axes)
    base = torch.arange(16, dtype=torch.float32)
    last = sum((n - 1) * s for n, s in axes)
    sound = offset >= 0 and min((*shape, *strides), default=0) >= 0 and (0 in shape or offset + last < 16)
    if sound:
        expected = base.as_strided(shape, strides, 0 if 0 in shape else offset)
        found = tensor(FLOATS, F4, offset, shape, strides)
        assert found.shape == shape
        assert found.raw() == expected.contiguous().numpy().tobytes()
        assert found.is_contiguous() == expected.is_contiguous()
    elif 0 not in shape or min((*shape, *strides)) < 0:
        with pytest.raises(CorruptFileError):
            tensor(FLOATS, F4, offset, shape, strides)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "message"),
    [
        (0, (17,), (1,), "ends at byte 68 of a storage of 64 bytes"),
        (-1, (1,), (1,), "from element -1"),
        (0, (2,), (1, 1), "1 sizes and 2 strides"),
        (0, (1,) * 65, (1,) * 65, "65 sizes"),
        (0, (1 << 59, 2), (0, 0), "ends at byte 4"),
        (0, (1 << 60,), (0,), "axis 0 has a size"),
        (0, (True,), (1,), "axis 0 has a size"),
        (0, (2,), (1 << 60,), "axis 0 has a size"),
        (0, [2], (1,), "not numbers"),
        (0.0, (2,), (1,), "not numbers"),
        (0, None, (1,), "not numbers"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(offset: Any, shape: Any, strides: Any, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        tensor(FLOATS, F4, offset, shape, strides)


def test_lazy_conjugation_and_negation_are_applied() -> None:
    storage = Storage(BytesSource(np.array([1 + 2j, 3 - 4j, -5j, 6], "c8").tobytes()), 0, 32)
    for bits, expected in (
        (b"}X\x04\x00\x00\x00conj\x88s", [1 - 2j, 3 + 4j, 5j, 6]),
        (b"}X\x03\x00\x00\x00neg\x88s", [-1 - 2j, -3 + 4j, 5j, -6]),
        (b"}(X\x04\x00\x00\x00conj\x88X\x03\x00\x00\x00neg\x88u", [-1 + 2j, -3 - 4j, -5j, -6]),
        (b"}", [1 + 2j, 3 - 4j, -5j, 6]),
    ):
        data = b"ctorch._utils\n_rebuild_tensor_v2\n(NQK\x00K\x04\x85K\x01\x85\x89N" + bits + b"tR."
        found, _ = load(data, DATA, lambda _: TypedStorage(storage, dtype("complex64")))
        assert found.tolist() == expected
        assert found[1:3].tolist() == expected[1:3]
        assert found[::2].tolist() == expected[::2]


def test_metadata_that_is_no_dict_is_refused_before_any_tensor_is_read() -> None:
    with pytest.raises(CorruptFileError, match="a tensor's metadata is a LazyTensor"):
        rebuild(b"K\x00K\x04\x85K\x01\x85\x89Nctorch._utils\n_rebuild_tensor_v2\n(NQK\x00))\x89NtR")


def test_a_tensor_without_a_storage_is_opaque() -> None:
    found = read(b"ctorch._utils\n_rebuild_tensor_v2\n(]K\x00))\x89NtR.")
    assert found.name == "torch._utils._rebuild_tensor_v2"
    assert read(b"ctorch._utils\n_rebuild_parameter\n(]\x88NtR.").name == "torch._utils._rebuild_parameter"


def test_a_parameter_is_its_tensor_and_says_so() -> None:
    found = read(b"ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v2\n(NQK\x00))\x89NtR\x88NtR.")
    assert type(found) is LazyTensor
    assert (found.parameter, found.requires_grad, found.item()) == (True, True, 0.0)


@pytest.mark.parametrize("name", ["collections OrderedDict", "builtins set", "builtins frozenset", "torch Size"])
def test_a_container_made_from_a_tensor_is_refused_however_long_the_tensor_claims_to_be(name: str) -> None:
    shape = b"\x8a\x08" + (1 << 58).to_bytes(8, "little") + b"K\x02\x86"
    expanded = b"ctorch._utils\n_rebuild_tensor_v2\n(NQK\x00" + shape + b"K\x00K\x00\x86\x89NtR"
    with pytest.raises(CorruptFileError, match="a container made from a LazyTensor"):
        read(b"c" + name.replace(" ", "\n").encode() + b"\n(" + expanded + b"tR.")
    with pytest.raises(CorruptFileError, match="a call whose arguments are not a tuple"):
        read(b"ca\nb\n" + expanded + b"}K\x01K\x01s\x92.")


@pytest.mark.parametrize("protocol", range(6))
def test_a_counter_keeps_every_count(protocol: int) -> None:
    for counts in ({"a": 2, "b": -1}, {"a": 0.5, 3: True}, {"a": math.inf}, {}):
        assert read(pickle.dumps(collections.Counter(counts), protocol)) == collections.Counter(counts)
    strange = read(pickle.dumps(collections.Counter(a=[1]), protocol))  # type: ignore[arg-type]
    assert strange == Opaque("collections.Counter", ({"a": [1]},))


def test_a_storage_or_its_class_on_its_own_is_a_label() -> None:
    assert repr(read(b"ctorch\nFloatStorage\n.")) == "Opaque('torch.FloatStorage')"
    assert repr(read(b"(ctorch.storage\nUntypedStorage\nt.")) == "(Opaque('torch.storage.UntypedStorage'),)"


arguments = [
    b"N",
    b"K\1",
    b"U\1a",
    b"C\1a",
    b"]",
    b"}",
    b")",
    b"F1\n",
    b"NQ",
    b"K\1\x85",
    b"\x8f",
    b"cos\nsystem\n",
    b"\x88",
]


@given(st.sampled_from(sorted(DATA)), st.lists(st.sampled_from(arguments), max_size=9))
def test_any_constructor_takes_or_refuses_any_arguments(name: str, arguments: list[bytes]) -> None:
    call = b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR."
    try:
        message = repr(read(call))
    except StateDictError as error:
        message = str(error)
    assert len(message) < 1000
