"""Boxes against numpy: whatever the layout, the sizes of pieces and panels, and the order of what is done."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import dtype
from statedict.io.pipeline import blocks
from statedict.io.source import ByteSource, BytesSource, ComputedSource, FileSource
from statedict.tensor import assembled, boxes
from statedict.tensor.arrays import contiguous_strides
from statedict.tensor.assembled import assemble, map_elements
from statedict.tensor.lazy import LazyTensor, Storage

from .work import steps

KIND = dtype("int16")
NUMBERS = np.arange(6000, dtype="i2")


class Opened(ByteSource):
    """A source over the numbers that is not in memory, and what was read of it."""

    in_memory = False
    remote = False
    name, size = "opened", NUMBERS.nbytes

    def __init__(self) -> None:
        self.calls, self.bytes, self.largest = 0, 0, 0

    def read(self, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return buffer

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.calls, self.bytes = self.calls + 1, self.bytes + len(buffer)
        self.largest = max(self.largest, len(buffer))
        buffer[:] = NUMBERS.view("u1").data[offset : offset + len(buffer)]

    def view(self, private: bool = False) -> None:
        return None


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    path = tmp_path_factory.mktemp("boxes") / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    return FileSource(str(path))


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """Panels, pieces and gaps so small that tensors of some thousand elements have many."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"PANEL": 400, "PIECE": 256, "_ROW": 32, "_GAP": 6, "_GAP_COMPUTED": 24}.items():
            patch.setattr(boxes, name, size)
        patch.setattr(assembled, "PANEL", 400)
        patch.setattr(assembled, "_MAPPED", 60)
        patch.setattr(boxes, "_THREAD", threading.local())
        yield


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and first element of a view of the numbers: any order, gaps, overlaps, repetition."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    kind = draw(st.sampled_from(["any", "permuted"]))
    if kind == "any":
        strides = tuple(draw(st.integers(0, 90)) for _ in shape)
    else:
        order = draw(st.permutations(range(len(shape))))
        dense = contiguous_strides(tuple(shape[d] for d in order))
        strides = tuple(dense[order.index(d)] * draw(st.sampled_from([1, 1, 2])) for d in range(len(shape)))
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if 0 not in shape else 0
    return shape, strides, draw(st.integers(0, len(NUMBERS) - span)) if span <= len(NUMBERS) else 0


def tensor_of(source: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None, start: int) -> LazyTensor:
    return LazyTensor(KIND, shape, Storage(source, 0, source.size), 2 * start, strides)


def view(shape: tuple[int, ...], strides: tuple[int, ...], start: int) -> Any:
    return np.lib.stride_tricks.as_strided(NUMBERS[start:], shape, [2 * s for s in strides])


def in_blocks(tensor: LazyTensor, size: int) -> bytes:
    """Its bytes as a writer asks for them."""
    source, start = tensor.storage.source, tensor.storage.offset + tensor.offset
    return b"".join(
        bytes(source.read(start + at, min(size, tensor.nbytes - at))) for at in range(0, tensor.nbytes, size)
    )


@given(layouts(), st.integers(1, 500), st.sampled_from(["file", "opened", "memory", "computed"]))
def test_a_strided_tensor_is_gathered_whatever_its_layout(
    file: FileSource, layout: tuple[Any, Any, int], size: int, kind: str
) -> None:
    base = Opened()
    source = {
        "file": file,
        "opened": base,
        "memory": BytesSource(NUMBERS.tobytes()),
        "computed": ComputedSource(base.size, base.readinto),
    }[kind]
    rows = tensor_of(source, *layout).contiguous()
    assert in_blocks(rows, size) == view(*layout).tobytes()
    assert bytes(rows.raw()) == view(*layout).tobytes()


@pytest.mark.parametrize("kind", ["file", "opened"])
@pytest.mark.parametrize("count", range(60, 140))
def test_a_piece_of_one_element_is_read(file: FileSource, count: int, kind: str) -> None:
    rows = tensor_of(file if kind == "file" else Opened(), (count,), (2,), 0)
    assert bytes(rows.raw()) == view((count,), (2,), 0).tobytes()


def _next(values: Any, out: Any = None) -> Any:
    return np.add(values, np.int16(1), out=out)


@given(st.data(), st.integers(1, 700))
def test_operations_on_operations_are_those_of_numpy(file: FileSource, data: st.DataObject, size: int) -> None:
    tensor, array = tensor_of(file, (10, 20, 30), None, 0), NUMBERS.reshape(10, 20, 30)
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(["permute", "slice", "map", "add", "join", "pad", "reshape"]))
        axis = data.draw(st.integers(0, array.ndim - 1))
        if step == "permute":
            order = data.draw(st.permutations(range(array.ndim)))
            strides = tuple(tensor.stride()[d] for d in order)
            shape = tuple(tensor.shape[d] for d in order)
            tensor = LazyTensor(KIND, shape, tensor.storage, tensor.offset, strides)
            tensor, array = tensor.contiguous() if data.draw(st.booleans()) else tensor, array.transpose(order)
        elif step == "slice":
            first = data.draw(st.integers(0, array.shape[axis] - 1))
            last = data.draw(st.integers(first + 1, array.shape[axis]))
            index = (*[slice(None)] * axis, slice(first, last, data.draw(st.sampled_from([1, 1, 2]))))
            tensor, array = tensor[index], array[index]
        elif step == "map":
            tensor, array = map_elements(tensor, KIND, _next), _next(array)
        elif step == "add":
            tensor, array = map_elements(tensor, KIND, np.add, map_elements(tensor, KIND, _next)), array + _next(array)
        elif step == "join":
            start = (*[0] * axis, array.shape[axis], *[0] * (array.ndim - axis - 1))
            wide = tuple(n * (1 + (d == axis)) for d, n in enumerate(array.shape))
            parts: list[Any] = [((0,) * array.ndim, tensor), (start, partial(_itself, tensor))]
            tensor, array = assemble(KIND, wide, parts, "join"), np.concatenate([array, array], axis)
        elif step == "pad":
            wide = tuple(n + (d == axis) * 3 for d, n in enumerate(array.shape))
            tensor = assemble(KIND, wide, [((0,) * array.ndim, tensor)], "pad", 7)
            array = np.pad(array, [(0, w - n) for w, n in zip(wide, array.shape, strict=True)], constant_values=7)
        else:
            tensor = tensor.contiguous()
            tensor, array = LazyTensor(KIND, (array.size,), tensor.storage, tensor.offset), array.reshape(-1)
    assert np.array_equal(tensor.numpy(), array)
    assert in_blocks(tensor.contiguous(), size) == array.tobytes()


def _itself(tensor: LazyTensor) -> LazyTensor:
    return tensor


def test_in_blocks_a_transposed_tensor_costs_one_pass_a_panel() -> None:
    base = Opened()
    rows = tensor_of(base, (100, 60), (1, 100), 0).contiguous()
    in_blocks(rows, 10)
    assert base.bytes == 12000  # not what lies between the runs of three elements
    assert base.calls == 60 * 34  # runs of a panel, panels


def test_what_is_in_memory_takes_no_panel() -> None:
    rows = tensor_of(BytesSource(NUMBERS.tobytes()), (100, 60), (1, 100), 0).contiguous()
    assert isinstance(rows.storage.source, boxes.BoxSource)
    assert rows.storage.source.panel == map_elements(rows, KIND, _next).storage.source.panel == 0  # type: ignore[attr-defined]
    assert in_blocks(rows, 10) == NUMBERS.reshape(60, 100).T.tobytes()


def test_of_many_chunks_few_are_looked_at_for_a_block() -> None:
    one = tensor_of(Opened(), (1, 60), None, 0)
    whole = assemble(KIND, (3000, 60), [((row, 0), one) for row in range(3000)], "chunks")
    assert whole.storage.source.read(120 * 2000, 1200) == NUMBERS[:60].tobytes() * 10
    assert steps(lambda: whole.storage.source.read(120 * 2000, 1200)) < 15 * 3000


def test_what_lies_in_order_is_read_once_in_pieces() -> None:
    base = Opened()
    in_blocks(tensor_of(base, (60, 90), (100, 1), 0).contiguous(), 200)
    assert base.largest <= 256
    assert base.bytes < 1.2 * 60 * 90 * 2


def test_a_source_of_another_order_is_not_asked_for_every_element_again() -> None:
    base = Opened()
    twice = tensor_of(base, (60, 100), None, 0)
    for _ in range(4):
        twice = LazyTensor(KIND, twice.shape[::-1], twice.storage, 0, twice.stride()[::-1]).contiguous()
    assert in_blocks(twice, 64) == NUMBERS.tobytes()
    assert base.bytes < 2 * NUMBERS.nbytes


def test_threads_read_different_parts_of_one_tensor_and_get_what_they_asked_for(file: FileSource) -> None:
    rows = tensor_of(file, (100, 60), (1, 100), 0).contiguous()
    expected, wrong = NUMBERS.reshape(60, 100).T.tobytes(), list[int]()

    def read(start: int) -> None:
        for at in range(start, 12000, 7):
            if bytes(rows.storage.source.read(at, min(7, 12000 - at))) != expected[at : at + 7]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 3000, 6000, 11000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_panel_is_given_back_with_the_last_block(file: FileSource) -> None:
    rows = tensor_of(file, (100, 60), (1, 100), 0).contiguous()
    list(blocks(rows.storage.source, 0, rows.nbytes))
    in_blocks(rows, 10)
    assert boxes._THREAD.last is None


@pytest.mark.parametrize("name", ["bfloat16", "complex128", "float8_e5m2", "bool", "float64"])
def test_elements_of_every_size_are_moved_as_they_are(tmp_path: Path, name: str) -> None:
    kind = dtype(name)
    data = np.random.default_rng(0).integers(0, 2 if name == "bool" else 256, 480 * kind.itemsize, "u1")
    (tmp_path / "x").write_bytes(data.tobytes())
    source = FileSource(str(tmp_path / "x"))
    turned = LazyTensor(kind, (24, 20), Storage(source, 0, source.size), 0, (1, 24)).contiguous()
    expected = data.reshape(20, 24, kind.itemsize).transpose(1, 0, 2).tobytes()
    assert (bytes(turned.raw()), in_blocks(turned, 50)) == (expected, expected)
