"""When two trees are the same: keys, types and order, and tensors bit by bit. For tests."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import torch

from statedict.adapters import leaf
from statedict.dtypes import DType
from statedict.errors import UnsupportedError
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.state_dict import StateDict
from statedict.values import Member, Opaque


def assert_same(one: Any, other: Any, path: str = "root", *, flags: bool = True) -> None:
    """Fail, naming the path, unless the two trees are the same; `flags` are requires_grad and Parameter."""
    if is_array(one) or is_array(other):
        assert is_array(one), f"{path}: {one!r} is no array"
        assert is_array(other), f"{path}: {other!r} is no array"
        a, b = as_lazy(one), as_lazy(other)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.raw() == b.raw(), path
        if flags:
            assert (a.requires_grad, a.parameter) == (b.requires_grad, b.parameter), path
    elif isinstance(one, dict) and not isinstance(one, Counter):
        assert isinstance(other, dict), f"{path}: {other!r} is no dict"
        assert not isinstance(other, Counter), path
        assert [(type(key), _key(key)) for key in one] == [(type(key), _key(key)) for key in other], path
        assert getattr(one, "_metadata", None) == getattr(other, "_metadata", None), f"{path}: _metadata"
        for a, b in zip(one.values(), other.values(), strict=True):
            assert_same(a, b, f"{path}.{_key(next(k for k, v in one.items() if v is a))}", flags=flags)
    elif type(one) in (list, tuple):
        assert type(one) is type(other), path
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}.{index}", flags=flags)
    elif isinstance(one, Opaque):
        assert isinstance(other, Opaque), path
        for slot in Opaque.__slots__:
            assert_same(getattr(one, slot), getattr(other, slot), f"{path}.{slot}", flags=flags)
    else:
        one, other = leaf(one), leaf(other)
        assert type(one) is type(other), f"{path}: {one!r}, {other!r}"
        if isinstance(one, float | complex | Member):
            assert repr(one) == repr(other), path  # tells -0.0 from 0.0, and classes, and takes nan for nan
        else:
            assert one == other, path


def _key(key: Any) -> str:
    return repr(leaf(key))


def overlaps(tree: Any) -> dict[tuple[str, str], int]:
    """Pairs of tensors that share bytes → how many bytes the second begins after the first."""
    spans = {
        path: (t.storage.key, t.storage.offset + t.offset, t.span)
        for path, t in StateDict({"": tree}).tensors().items()
        if t.span
    }
    return {
        (a, b): start_b - start_a
        for (a, (key_a, start_a, n_a)), (b, (key_b, start_b, n_b)) in combinations(spans.items(), 2)
        if key_a == key_b and start_a < start_b + n_b and start_b < start_a + n_a
    }


def in_torch(kind: DType) -> bool:
    """Whether the installed PyTorch has the dtype."""
    return isinstance(getattr(torch, kind.name, None), torch.dtype)


def in_numpy(kind: DType) -> bool:
    """Whether numpy, or the installed ml_dtypes, has the dtype."""
    try:
        return kind.numpy.itemsize == kind.itemsize
    except UnsupportedError:
        return False


def patterned(kind: DType, *shape: int) -> torch.Tensor:
    """A tensor of any dtype whose bytes are all different (0 and 1 for bool), made without arithmetic."""
    count = kind.itemsize
    for n in shape:
        count *= n
    data = bytes((7 * i + 3) % 256 for i in range(count))
    if kind.name == "bool":
        data = bytes(byte & 1 for byte in data)
    storage = torch.empty(0).untyped_storage()
    if data:
        storage = torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(n, 1))
    return torch.empty(0, dtype=kind.torch).set_(storage, 0, shape, strides[: len(shape)])


def raw(value: Any) -> bytes:
    """The bytes of an array's elements, row-major, taken by the framework that it belongs to."""
    if isinstance(value, LazyTensor):
        return bytes(value.raw())
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg()
        if value.element_size() == 1 and value.dtype.is_floating_point:
            value = value.view(torch.uint8)  # before PyTorch 2.10 elements of 4 bits cannot be copied
        value = value.contiguous()
        if not value.numel():
            return b""
        return (
            value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
            if value.element_size() > 1
            else _bytes(value)
        )
    return bytes(value.tobytes())


def _bytes(value: torch.Tensor) -> bytes:
    storage = torch.empty(0, dtype=torch.uint8).set_(
        value.untyped_storage(), value.storage_offset(), (value.numel(),), (1,)
    )
    return storage.numpy().tobytes()
