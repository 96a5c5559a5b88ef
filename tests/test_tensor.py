"""LazyTensor: what it is without reading, what it reads, and what numpy and torch make of it."""

from __future__ import annotations

import copy
import operator
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.dtypes import BY_NAME, dtype
from statedict.errors import UnsupportedError
from statedict.io.source import BytesSource, ComputedSource, FileSource
from statedict.io.zip import read_directory
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy, is_array
from statedict.tensor.segments import torch_tensors
from statedict.testing.same import in_numpy, in_torch
from statedict.values import human_bytes


class Counted:
    """Bytes that remember which of them were read."""

    in_memory = False
    remote = False
    name = "counted"

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.reads = data, len(data), list[tuple[int, int]]()

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.data[offset : offset + length]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def view(self, private: bool = False) -> memoryview | None:
        return None


SOURCES = ["bytes", "writable", "counted", "computed", "file"]


def source(kind: str, data: bytes, folder: Path) -> Any:
    if kind == "file":
        path = folder / "data"
        path.write_bytes(data)
        return FileSource(str(path))

    def fill(offset: int, buffer: memoryview) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    made = {"bytes": BytesSource(data), "writable": BytesSource(bytearray(data)), "counted": Counted(data)}
    return made.get(kind) or ComputedSource(len(data), fill)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor")


indices = st.one_of(
    st.integers(-4, 4),
    st.none(),
    st.just(...),
    st.slices(5).filter(lambda s: s.step is None or s.step > 0),
)


@given(
    st.sampled_from(SOURCES),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.lists(st.lists(indices, max_size=4).map(tuple) | indices, max_size=2),
)
def test_indexing_is_that_of_numpy_and_so_is_what_is_read(
    folder: Path, kind: str, shape: tuple[int, ...], steps: list[Any]
) -> None:
    expected = np.arange(np.prod(shape), dtype="<i4").reshape(shape)
    raw = b"\xff" * 8 + expected.tobytes() + b"\xff" * 4
    lazy = LazyTensor(dtype("int32"), shape, Storage(source(kind, raw, folder), 4, len(raw) - 4), 4)
    for index in steps:
        try:
            expected = np.asarray(expected[index])
        except IndexError:
            with pytest.raises(IndexError):
                lazy[index]
            return
        lazy = lazy[index]
    assert lazy.shape == expected.shape
    assert lazy.ndim == lazy.dim() == expected.ndim
    assert lazy.numel() == expected.size
    assert lazy.nbytes == expected.nbytes
    assert lazy.raw() == expected.tobytes()
    assert lazy.contiguous().raw() == expected.tobytes()
    for array in (lazy.numpy(), lazy.numpy(copy=True), lazy.torch().numpy(), lazy.torch(copy=True).numpy()):
        assert array.dtype == np.int32
        assert np.array_equal(array, expected)
    assert lazy.tolist() == expected.tolist()
    assert lazy.is_contiguous() == torch.empty_strided(lazy.shape, lazy.stride()).is_contiguous() or 0 in shape
    tensor = pickle.loads(pickle.dumps(lazy if kind != "computed" else as_lazy(lazy.numpy(copy=True))))
    assert tensor.raw() == expected.tobytes()


def test_a_slice_reads_only_the_bytes_it_needs() -> None:
    bytesource = Counted(bytes(400))
    lazy = LazyTensor(dtype("float32"), (10, 10), Storage(bytesource, 0, 400))
    assert lazy[3, 2:5][1:].shape == (2,)
    assert not bytesource.reads
    lazy[3].raw()
    lazy[3, 2:5].numpy()
    lazy[9, 9].item()
    assert bytesource.reads == [(120, 40), (128, 12), (396, 4)]


def test_what_it_is_costs_no_read() -> None:
    bytesource = Counted(bytes(24))
    lazy = LazyTensor(dtype("bf16"), (3, 4), Storage(bytesource, 0, 24))
    assert repr(lazy) == "LazyTensor(bfloat16, (3, 4), 24 B, 'counted')"
    assert "bfloat16 3×4, 24 B" in lazy._repr_html_()
    assert (len(lazy), lazy.size(), lazy.size(1), lazy.stride(), lazy.stride(0)) == (
        3,
        torch.Size((3, 4)),
        4,
        (4, 1),
        4,
    )
    assert [row.shape for row in lazy] == [(4,)] * 3
    assert copy.deepcopy(lazy) is lazy
    assert as_lazy(lazy) is lazy
    assert not bytesource.reads


@pytest.mark.parametrize("index", [(0, 0, 0), (..., ...), slice(None, None, -1), [0], 1.5, True, "a", np.array([0])])
def test_an_index_that_is_not_lazy_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError):
        as_lazy(np.zeros((2, 2)))[index]


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, k in BY_NAME.items()
        if k.itemsize and k.kind not in ("quantized", "bits") and in_torch(k) and in_numpy(k)
    ],
)
@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")  # torch's own, once a process
def test_every_dtype_is_the_same_in_numpy_and_torch(name: str) -> None:
    raw = bytes([0, 1] * 16)
    lazy = LazyTensor(dtype(name), (2, 1), Storage(BytesSource(raw), 0, 32))
    made = lazy.torch()
    assert made.dtype is dtype(name).torch
    assert bytes(made.untyped_storage())[: lazy.nbytes] == lazy.numpy().tobytes() == lazy.raw() == raw[: lazy.nbytes]
    assert lazy.numpy().dtype == dtype(name).numpy


def test_a_mapped_array_is_read_only_and_a_mapped_tensor_keeps_its_writes_to_this_process(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(np.arange(4, dtype="f4").tobytes())
    lazy = LazyTensor(dtype("float32"), (4,), Storage(FileSource(str(path)), 0, 16))
    with pytest.raises(ValueError, match="read-only"):
        lazy.numpy()[0] = 1
    mapped, owned = lazy.torch(), lazy.numpy(copy=True)
    mapped += 1
    owned += 1
    assert path.read_bytes() == np.arange(4, dtype="f4").tobytes()
    assert lazy.tolist() == [0, 1, 2, 3]
    assert mapped.tolist() == owned.tolist() == [1, 2, 3, 4]


def test_a_live_array_and_its_lazy_tensor_share_memory() -> None:
    for live in (torch.zeros(3), np.zeros(3, "f4")):
        lazy = as_lazy(live)
        live[1] = 5
        assert lazy.tolist() == [0, 5, 0]
        assert is_array(live)
    assert not is_array(np.float32(1))
    with pytest.raises(UnsupportedError, match="expected a tensor or an array, got int"):
        as_lazy(3)


def test_live_tensors_over_one_memory_have_one_storage_key() -> None:
    weight = torch.zeros(4, 3)
    assert as_lazy(weight).storage.key == as_lazy(weight.T).storage.key == as_lazy(weight[1:]).storage.key
    assert as_lazy(weight).storage.key != as_lazy(weight.clone()).storage.key
    assert as_lazy(torch.zeros(0)).storage.key != as_lazy(torch.zeros(0)).storage.key


# what numpy and torch ask it for


def lazy_floats() -> LazyTensor:
    return LazyTensor(dtype("float32"), (2, 3), Storage(BytesSource(np.arange(6, dtype="f4").tobytes()), 0, 24))


def test_numpy_takes_it_as_an_array() -> None:
    lazy = lazy_floats()
    assert np.asarray(lazy).sum() == 15
    assert np.array(lazy).flags.owndata or np.array(lazy).flags.writeable
    assert np.asarray(lazy, dtype="f8").dtype == np.float64
    assert (np.ones((2, 3)) + lazy).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match="another dtype needs a copy"):
        lazy.__array__("f8", copy=False)


def test_torch_functions_take_it_as_a_tensor() -> None:
    lazy = lazy_floats()
    assert torch.equal(torch.add(lazy, 1), torch.arange(6.0).reshape(2, 3) + 1)
    assert torch.stack([lazy, lazy]).shape == (2, 2, 3)
    assert torch.nn.functional.linear(torch.ones(1, 3), weight=lazy).tolist() == [[3, 12]]
    assert torch.equal(torch.from_dlpack(lazy), lazy.torch())
    assert np.from_dlpack(lazy).tolist() == lazy.tolist()
    assert torch.equal(torch.zeros(2, 3).add_(lazy), lazy.torch())
    assert torch.as_tensor(np.asarray(lazy.numpy(copy=True))).shape == (2, 3)


def test_nothing_writes_into_it() -> None:
    for write in (lambda t: torch.Tensor.add_(t, 1), lambda t: torch.add(torch.ones(2, 3), 1, out=t)):
        with pytest.raises((UnsupportedError, TypeError)):
            write(lazy_floats())
    assert lazy_floats().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_one_number_is_a_number_and_several_are_none() -> None:
    one = as_lazy(np.array([3], "i4"))
    assert (one.item(), int(one), float(one), bool(one), [0, 1, 2, 3][one]) == (3, 3, 3.0, True, 3)
    assert type(as_lazy(torch.tensor(1.5, dtype=torch.bfloat16)).item()) is float
    with pytest.raises(ValueError, match="size"):
        lazy_floats().item()
    with pytest.raises(TypeError, match="only one integer can be an index"):
        [0][as_lazy(np.array(1.0))]
    with pytest.raises(TypeError, match="0-d"):
        len(as_lazy(np.array(1)))


@pytest.mark.parametrize("kind", SOURCES)
def test_copying_into_a_tensor_moves_the_bytes_without_one_between(kind: str, folder: Path) -> None:
    data = np.arange(6, dtype="f4").tobytes()
    lazy = LazyTensor(dtype("float32"), (2, 3), Storage(source(kind, data, folder), 0, 24))
    whole = torch.zeros(3, 2, 3)
    assert lazy.copy_into(whole[1])
    assert whole.sum() == whole[1].sum() == 15
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    with torch.no_grad():
        parameter.copy_(lazy)
    assert torch.equal(parameter, lazy.torch())


def test_a_copy_that_takes_a_conversion_is_left_to_torch() -> None:
    lazy = lazy_floats()
    for target in (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2).T):
        assert not lazy.copy_into(target)
        assert target.sum() == 0
        target.copy_(lazy)
        assert target.tolist() == lazy.tolist()
    assert not lazy.copy_into(torch.zeros(3))
    broadcast = torch.zeros(4, 2, 3)
    broadcast.copy_(lazy)
    assert broadcast.sum() == 60
    assert not lazy[:, 1].copy_into(torch.zeros(2))


def test_autograd_notices_a_copy() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    product = (weight * weight).sum()
    with torch.no_grad():
        weight.copy_(lazy_floats())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_elements_that_are_no_bytes_are_read_raw_only() -> None:
    lazy = LazyTensor(dtype("float6_e2m3fn"), (4,), Storage(BytesSource(b"abc"), 0, 3))
    assert (lazy.nbytes, lazy.raw()) == (3, b"abc")
    for use in (lambda: lazy[0], lazy.numpy, lazy.torch, lambda: lazy.torch(copy=True)):
        with pytest.raises(UnsupportedError):
            use()


def test_a_tensor_at_an_odd_byte_of_a_file_is_aligned_for_torch(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    numbers = np.arange(4, dtype="f8").tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("odd", numbers)
    record = read_directory(FileSource(str(path)))["odd"]
    (tmp_path / "raw").write_bytes(b"x" + numbers)
    for storage in (Storage(record, 0, 32), Storage(FileSource(str(tmp_path / "raw")), 1, 32)):
        lazy = LazyTensor(dtype("float64"), (4,), storage)
        for made in (lazy.torch(), torch_tensors([lazy], copy=False)[0]):
            assert made.data_ptr() % 8 == 0
            assert made.tolist() == lazy.numpy().tolist() == [0, 1, 2, 3]


@given(st.integers(0, 10**16))
def test_sizes_for_people_have_four_digits_at_most(count: int) -> None:
    number, unit = human_bytes(count).split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(float(number) * factor - count) <= 0.0500001 * factor
    assert len(number) <= 5 or unit == "TB"


def test_a_few_bytes_that_claim_to_be_petabytes_are_seen_but_not_written_out(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).as_strided((1 << 30, 1 << 29), (0, 0))}, tmp_path / "w.pth")
    tensor = statedict.load(tmp_path / "w.pth")["w"]
    assert tensor.numpy()[5, 7] == 1
    assert tensor[3, :2].tolist() == [1, 1]
    statedict.convert(tmp_path / "w.pth", tmp_path / "again.pth")
    for write in (
        tensor.raw,
        tensor.tolist,
        lambda: tensor.numpy(copy=True),
        lambda: tensor.torch(copy=True),
        lambda: statedict.convert(tmp_path / "w.pth", tmp_path / "w.safetensors"),
    ):
        with pytest.raises(statedict.errors.LimitError, match=r"repeats 4 B to 2305843\.0 TB"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", "w.pth"]


# what it leaves to others


BINARY = [operator.add, operator.sub, operator.mul, operator.matmul, operator.truediv, operator.floordiv, operator.mod,
          operator.pow, operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift, operator.lt,
          operator.le, operator.gt, operator.ge, operator.iadd]  # fmt: skip


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
def test_an_operator_is_an_error_that_names_what_reads_the_tensor(function: Any) -> None:
    lazy = as_lazy(np.ones(3, "i4"))
    for pair in ((lazy, 2), (2, lazy), (lazy, lazy)):
        with pytest.raises(TypeError, match=r"use \.torch\(\) or \.numpy\(\)"):
            function(*pair)
    for function in (operator.neg, operator.pos, operator.invert, abs):
        with pytest.raises(TypeError, match=r"use \.torch\(\) or \.numpy\(\)"):
            function(lazy)


def test_arrays_and_torch_tensors_compute_with_a_lazy_tensor_as_before() -> None:
    lazy = as_lazy(np.ones(3, "f4"))
    assert (np.full(3, 2, "f4") * lazy).tolist() == [2, 2, 2]
    assert (np.float32(2) * lazy).tolist() == [2, 2, 2]
    assert (torch.full((3,), 2.0) - lazy).tolist() == [1, 1, 1]
    assert (torch.full((3,), 2.0) > lazy).all()


@pytest.mark.parametrize("name", ["mean", "to", "float", "T", "cuda", "data_ptr", "requires_grad_"])
def test_a_method_of_arrays_is_an_error_that_names_what_has_it(name: str) -> None:
    lazy = as_lazy(np.ones(3, "f4"))
    assert not hasattr(lazy, name)
    with pytest.raises(AttributeError, match=rf"use \.torch\(\)\.{name} or \.numpy\(\)\.{name}"):
        getattr(lazy, name)


def test_what_protocols_ask_for_is_missing_without_advice() -> None:
    lazy = as_lazy(np.ones(3, "f4"))
    with pytest.raises(AttributeError, match=r"has no attribute '__array_interface__'$"):
        getattr(lazy, "__array_interface__")  # noqa: B009  # as numpy asks
    assert copy.copy(lazy).tolist() == copy.deepcopy(lazy).tolist() == [1, 1, 1]


def test_the_dtype_of_a_tensor_is_that_of_torch_and_numpy() -> None:
    lazy = as_lazy(torch.ones(3))
    assert lazy.dtype == torch.float32 == as_lazy(np.ones(3, "f4")).dtype
    assert lazy.dtype == np.float32
    assert lazy.dtype == "float32"
    assert lazy.dtype != torch.float64
