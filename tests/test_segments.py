"""The bytes that a set of tensors needs, and the tensors over a copy of just those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import dtype
from statedict.errors import UnsupportedError
from statedict.io.source import BytesSource
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy
from statedict.tensor.segments import copy_segments, copy_tensors, numpy_arrays, plan, torch_tensors

KINDS = ["uint8", "int16", "float32", "complex64", "complex128", "bool"]


@st.composite
def tensors(draw: st.DrawFn) -> list[LazyTensor]:
    """Tensors of several dtypes and layouts over one or two storages, many of which overlap."""
    storages = [Storage(BytesSource(bytes(n % 2 for n in range(start, start + 160))), 0, 160) for start in range(2)]
    made = []
    for _ in range(draw(st.integers(0, 8))):
        kind = dtype(draw(st.sampled_from(KINDS)))
        room = 160 // kind.itemsize
        offset = draw(st.integers(0, room))
        shape, strides, last = [], [], 0
        for _ in range(draw(st.integers(0, 3))):
            n, stride = draw(st.integers(0, 4)), draw(st.integers(0, 3))
            if offset + last + max(n - 1, 0) * stride < room:
                shape.append(n)
                strides.append(stride)
                last += max(n - 1, 0) * stride
        if offset + last >= room:
            offset, shape, strides = 0, [], []
        storage = draw(st.sampled_from(storages))
        flat = LazyTensor(kind, (room,), storage)
        probe = np.lib.stride_tricks.as_strided(flat.numpy()[offset:], shape, [s * kind.itemsize for s in strides])
        contiguous = probe.flags.c_contiguous
        made.append(
            LazyTensor(kind, tuple(shape), storage, offset * kind.itemsize, None if contiguous else tuple(strides))
        )
    return made


def overlap(one: LazyTensor, other: LazyTensor) -> bool:
    return (
        one.storage is other.storage
        and min(one.span, other.span) > 0
        and one.offset < other.offset + other.span
        and other.offset < one.offset + one.span
    )


@given(tensors())
def test_every_way_of_copying_gives_the_same_elements(state: list[LazyTensor]) -> None:
    expected = [tensor.raw() for tensor in state]
    assert [bytes(tensor.raw()) for tensor in copy_tensors(state)] == expected
    for copy in (False, True):
        assert [array.tobytes() for array in numpy_arrays(state, copy)] == expected
        made = torch_tensors(state, copy)
        assert [tensor.contiguous().numpy().tobytes() for tensor in made] == expected
        assert [tuple(tensor.shape) for tensor in made] == [tensor.shape for tensor in state]


@given(tensors())
def test_tensors_that_share_bytes_share_a_segment_and_bytes_that_none_sees_are_left_behind(
    state: list[LazyTensor],
) -> None:
    segments, places = plan(state)
    for i, one in enumerate(state):
        for j, other in enumerate(state):
            tied = (one.offset, one.shape, one.strides) == (other.offset, other.shape, other.strides)
            if overlap(one, other) and ((tied and one.dtype is other.dtype) or all(t.is_contiguous() for t in state)):
                assert places[i].segment == places[j].segment
                assert places[i].offset - places[j].offset == one.offset - other.offset
    seen = {(id(t.storage), b) for t in state for b in range(t.offset, t.offset + t.span)}
    assert sum(segment.size for segment in segments) <= len(seen) + 16 * len(state)
    assert {place.segment for place in places} == set(range(len(segments)))
    for tensor, place in zip(state, places, strict=True):
        assert place.offset % tensor.dtype.itemsize == 0
        assert place.offset + (tensor.nbytes if place.strides is None else tensor.span) <= segments[place.segment].size


def test_an_empty_tensor_between_two_that_overlap_does_not_part_them() -> None:
    storage = Storage(BytesSource(bytes(100)), 0, 100)
    u1 = dtype("uint8")
    state = [LazyTensor(u1, (100,), storage), LazyTensor(u1, (0,), storage, 50), LazyTensor(u1, (20,), storage, 60)]
    segments, places = plan(state)
    assert places[0].segment == places[2].segment
    assert sorted(segment.size for segment in segments) == [0, 100]


def test_a_small_view_of_a_huge_storage_costs_what_it_shows() -> None:
    huge = torch.zeros(1_000_000)
    segments, _ = plan([as_lazy(huge[10:20]), as_lazy(huge[500_000:].view(2, -1)[:, 7])])
    assert [segment.size for segment in segments] == [40, 8]


def test_a_strided_view_alone_is_stored_without_its_gaps_and_an_expanded_one_without_its_copies() -> None:
    base = torch.arange(1000.0)
    (segment,), (place,) = plan([as_lazy(base[::100])])
    assert (segment.size, place.strides) == (40, None)
    (segment,), (place,) = plan([as_lazy(base[:3].expand(1000, 3))])
    assert (segment.size, place.strides) == (12, (0, 1))
    (array,) = numpy_arrays([as_lazy(base[:3].expand(1000, 3))], copy=True)
    assert array.shape == (1000, 3)
    assert array[999].tolist() == [0, 1, 2]


def test_tied_tensors_are_copied_once_and_stay_tied() -> None:
    weight = torch.arange(6.0)
    for made in (torch_tensors([as_lazy(weight), as_lazy(weight[2:]), as_lazy(weight)], copy=True),
                 numpy_arrays([as_lazy(weight), as_lazy(weight[2:]), as_lazy(weight)], copy=True)):  # fmt: skip
        made[0][3] = 99
        assert made[1][1] == made[2][3] == 99
    assert weight[3] == 3


@given(st.lists(st.sampled_from([0, 1, 3, 100, 1000, 70_000, 1_100_000]), max_size=12))
def test_owned_buffers_hold_their_bytes_whatever_their_sizes_and_do_not_touch(sizes: list[int]) -> None:
    data = np.random.default_rng(0).integers(0, 255, max(sizes, default=0), "u1")
    state = [LazyTensor(dtype("uint8"), (n,), Storage(BytesSource(data), 0, n)) for n in sizes]
    buffers, _ = copy_segments(state)
    assert [bytes(b) for b in buffers] == [data[:n].tobytes() for n in sizes]
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
    assert [bytes(b) for b in copy_segments(state)[0]] == [data[:n].tobytes() for n in sizes]


def test_what_no_framework_can_hold_is_refused() -> None:
    state = [LazyTensor(dtype("float6_e2m3fn"), (4,), Storage(BytesSource(b"abc"), 0, 3))]
    assert bytes(copy_tensors(state)[0].raw()) == b"abc"
    calls: list[Any] = [numpy_arrays, torch_tensors]
    for call in calls:
        for copy in (False, True):
            with pytest.raises(UnsupportedError):
                call(state, copy)
