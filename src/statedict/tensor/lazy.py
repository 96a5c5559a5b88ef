"""LazyTensor: dtype, shape and where the bytes are; reading it moves the bytes."""

from __future__ import annotations

import math

from statedict.dtypes import DType
from statedict.errors import LimitError, UnsupportedError
from statedict.io.pipeline import fill
from statedict.io.source import AddressSource, address_view, allocate
from statedict.tensor.arrays import (
    Strides,
    apply_index,
    contiguous_strides,
    is_dense,
    is_numpy,
    is_torch,
    mark_written,
    numpy_memory,
    numpy_view,
    part_of,
    torch_memory,
    torch_storage,
    torch_view,
    writable_memory,
)
from statedict.tensor.attributes import live_attributes
from statedict.tensor.boxes import find_present_boxes, gather
from statedict.tensor.operators import OperatorErrors, call_torch
from statedict.values import PLAIN, Size, human_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, Self

    from statedict.io.source import ByteSource
    from statedict.tensor.boxes import Box

EXPANDED = 1 << 30  # bytes up to which repeated elements are written out


class Storage:
    """The bytes behind one or more tensors: a range of a source.

    Tensors of one storage are tied (same `region`) or views (different regions).

    Attributes:
        source, offset, nbytes: where the bytes are.
        device: where PyTorch had it when it was saved, `"cpu"`, `"cuda:0"`.
    """

    __slots__ = ("_key", "device", "nbytes", "offset", "source")

    def __init__(self, source: ByteSource, offset: int, nbytes: int, device: str = "cpu", key: object = None) -> None:
        self.source, self.offset, self.nbytes, self.device = source, offset, nbytes, device
        self._key = key

    @property
    def key(self) -> object:
        """Equal for two Storage objects over the same memory."""
        return self if self._key is None else self._key

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.source, self.offset, self.nbytes, self.device)

    def view(self, private: bool = False) -> memoryview | None:
        """The bytes without a copy, or None if the source has no such view."""
        whole = self.source.view(private)
        return None if whole is None else whole[self.offset : self.offset + self.nbytes]


class LazyTensor(OperatorErrors):
    """A tensor whose bytes stay where they are until someone reads them.

    Attributes:
        dtype: its `DType`; `str(t.dtype)` is PyTorch's name.
        shape: tuple of ints.
        strides: in elements; None means contiguous.
        storage: the bytes that it shares with tied tensors and other views.
        offset: its first byte in the storage.
        requires_grad, parameter: as PyTorch recorded them.
        ndarray: whether it was a numpy array, in a pickle or in the state of an object, which gets one back.
        attributes: Python attributes (`weight.lr_scale = 0.5`) by name, or None. Formats keep those that are data.

    It works wherever PyTorch or numpy expect an array: `torch.add(t, 1)`, `model.load_state_dict({"w": t})`,
    `numpy.asarray(t)`. Indexing with integers, slices, `...` and `None` gives another LazyTensor and reads nothing.
    Operators such as `t * 2` raise a TypeError, missing methods an AttributeError; use `.torch()` or `.numpy()`.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> state["model_state"]["fc3.weight"]
    LazyTensor(float32, (10, 84), 3.4 kB, 'examples/checkpoint.pth')
    >>> state["model_state"]["fc3.weight"][0, :3].numpy().shape
    (3,)
    """

    __slots__ = (
        "attributes",
        "dtype",
        "ndarray",
        "offset",
        "parameter",
        "requires_grad",
        "shape",
        "storage",
        "strides",
    )

    is_meta = False  # Module.load_state_dict asks
    _slots: ClassVar[tuple[str, ...]] = __slots__

    def __init_subclass__(cls) -> None:
        cls._slots = (*cls._slots, *cls.__dict__.get("__slots__", ()))

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        storage: Storage,
        offset: int = 0,
        strides: Strides | None = None,
        requires_grad: bool = False,
        parameter: bool = False,
        attributes: dict[Any, Any] | None = None,
        ndarray: bool = False,
    ) -> None:
        self.dtype, self.shape, self.storage, self.offset, self.strides = dtype, shape, storage, offset, strides
        self.requires_grad, self.parameter, self.attributes = requires_grad, parameter, attributes
        self.ndarray = ndarray

    def replace(self, **changes: Any) -> Self:
        """A tensor of the same class with some attributes changed, such as `shape=(2, 3)`, without checks.

        Raises:
            AttributeError: the class has no such attribute.

        >>> import statedict
        >>> bias = statedict.load("examples/checkpoint.pth").at("model_state.fc3.bias")
        >>> bias.replace(shape=(2, 5)).shape
        (2, 5)
        """
        new = object.__new__(type(self))
        for slot in self._slots:
            setattr(new, slot, changes.pop(slot) if slot in changes else getattr(self, slot))
        if changes:
            raise AttributeError(f"{type(self).__name__} has no attribute {next(iter(changes))!r}")
        return new

    @property
    def region(self) -> tuple[object, ...]:
        """The identity of its bytes: which bytes of which storage it covers, in which dtype, shape and strides.

        Two tensors are tied if their regions are equal. The region of an empty tensor equals nothing, not even itself.
        """
        if 0 in self.shape:
            return (object(),)
        return self.storage.key, self.offset, self.shape, self.strides, self.dtype.name

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """`torch.Size`, or the size of one dimension, as `torch.Tensor.size`."""
        return Size(self.shape) if dim is None else self.shape[dim]

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements, as `torch.Tensor.stride`."""
        strides = contiguous_strides(self.shape) if self.strides is None else self.strides
        return strides if dim is None else strides[dim]

    def dim(self) -> int:
        """Number of dimensions, as `torch.Tensor.dim`."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements; the storage may hold more."""
        return (math.prod(self.shape) * self.dtype.bits + 7) >> 3

    @property
    def span(self) -> int:
        """Bytes from its first element to the end of its last one in the storage."""
        if self.strides is None:
            return self.nbytes
        if 0 in self.shape:
            return 0
        return (sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1) * self.dtype.itemsize

    @property
    def present_boxes(self) -> tuple[Box, ...] | None:
        """The boxes (corner, sizes) that an incomplete checkpoint has of it; None if it is complete."""
        return find_present_boxes(self.storage.source, self.storage.offset + self.offset, self.stride(), self.shape)

    def is_contiguous(self) -> bool:
        """Whether the elements lie row-major without gaps."""
        return self.strides is None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[LazyTensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shape, size = tuple(self.shape), human_bytes(self.nbytes)
        return f"LazyTensor({self.dtype}, {shape}, {size}, {self.storage.source.name!r})"

    def __deepcopy__(self, memo: object) -> LazyTensor:
        return self  # immutable, like the file behind it

    def __getitem__(self, index: Any) -> LazyTensor:
        shape, strides, start = apply_index(self.shape, self.stride(), index)
        if not self.dtype.itemsize:
            raise UnsupportedError(f"{self!r}: elements of {self.dtype.bits} bits cannot be sliced; read .raw()")
        numel = math.prod(shape)
        contiguous = not numel or all(
            n == 1 or s == c for n, s, c in zip(shape, strides, contiguous_strides(shape), strict=True)
        )
        offset = self.offset if not numel else self.offset + start * self.dtype.itemsize
        return LazyTensor(self.dtype, shape, self.storage, offset, None if contiguous else strides, self.requires_grad)

    def raw(self) -> bytes | bytearray:
        """The bytes of its elements in row-major order, little-endian, as a copy."""
        contiguous = self.contiguous()
        return contiguous.storage.source.read(contiguous.storage.offset + contiguous.offset, contiguous.nbytes)

    def numpy(self, copy: bool = False) -> Any:
        """As a `numpy.ndarray`.

        Args:
            copy: False maps the file if possible: the array is read-only and read when it is touched. True gives owned,
                writable memory.

        Raises:
            UnsupportedError: numpy has no such dtype.
        """
        if copy:
            return numpy_view(self._read_copy(), self.dtype, self.shape, None)
        data = self.storage.view()
        if data is None and self.strides is not None and self.nbytes <= self.span:
            return self.contiguous().numpy()
        if data is None:
            data = memoryview(self.storage.source.read(self.storage.offset + self.offset, self.span))
        else:
            data = data[self.offset : self.offset + self.span]
        result = numpy_view(data, self.dtype, self.shape, self.strides)
        result.flags.writeable = False
        return result

    def torch(self, copy: bool = False) -> Any:
        """As a `torch.Tensor` on the CPU (imports torch).

        Args:
            copy: False maps the file if possible; writes into the tensor stay in this process. True gives owned memory,
                as `load_state_dict(..., assign=True)` and optimizers want, since they keep it.
        """
        data = None if copy else self.storage.view(private=True)
        if data is not None and self.dtype.itemsize:
            mapped = torch_storage(data[self.offset : self.offset + self.span])
            if mapped.data_ptr() % self.dtype.itemsize == 0:
                return torch_view(mapped, self.dtype, self.shape, self.strides, 0)
        strides = self.strides if self.is_dense() else None
        return torch_view(torch_storage(self._read_copy(strides is not None)), self.dtype, self.shape, strides, 0)

    def _read_copy(self, as_it_lies: bool = False) -> memoryview:
        tensor, buffer = self if as_it_lies else self.contiguous(), allocate(self.nbytes)
        fill([(tensor.storage.source, tensor.storage.offset + tensor.offset, buffer)])
        return buffer

    def item(self) -> Any:
        """The only element as a Python number.

        Raises:
            ValueError: there is not exactly one element.
        """
        return self.numpy().item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return self.contiguous().numpy().tolist()

    def contiguous(self) -> LazyTensor:
        """The same elements row-major; reading it gathers them in bounded memory.

        Raises:
            LimitError: it repeats a few bytes more often than memory could hold.
        """
        if self.strides is None:
            return self
        if self.nbytes > max(EXPANDED, 1024 * self.span):
            raise LimitError(
                f"{self!r}: repeats {human_bytes(self.span)} to {human_bytes(self.nbytes)}; "
                "a view by .numpy() or an index takes no memory"
            )
        base = self.storage
        rows, strides = getattr(base.source, "origin", None) or (self, None)
        if strides == self.strides and rows.shape == self.shape and base.offset == self.offset == 0:
            return self.replace(storage=rows.storage, offset=rows.offset, strides=None)
        source = gather(base.source, self.dtype, base.offset + self.offset, self.shape, self.strides)
        storage = Storage(source, 0, self.nbytes, base.device)
        return self.replace(storage=storage, offset=0, strides=None)

    def is_dense(self) -> bool:
        """Whether its elements have other strides than row-major ones, and are all that lies between them."""
        return self.strides is not None and bool(self.dtype.itemsize) and is_dense(self.shape, self.strides)

    def lay_out(self, strides: Strides) -> LazyTensor:
        """A row-major tensor with other strides, computed when it is read; ValueError if they are not dense."""
        known = len(strides) == self.ndim and all(type(n) is int and 0 <= n < 1 << 63 for n in strides)
        if self.strides is not None or 0 in self.shape or not known or not self.replace(strides=strides).is_dense():
            raise ValueError(f"a tensor of shape {self.shape} cannot have the strides {strides}")
        order = sorted(range(self.ndim), key=lambda axis: -strides[axis])
        shape, steps = (tuple(some[axis] for axis in order) for some in (self.shape, self.stride()))
        source = gather(self.storage.source, self.dtype, self.storage.offset + self.offset, shape, steps)
        source.origin = self, strides
        return self.replace(storage=Storage(source, 0, self.nbytes, self.storage.device), offset=0, strides=strides)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call_torch(LazyTensor, func, args, kwargs or {})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.numpy(copy=bool(copy))
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"{self!r}: another dtype needs a copy")
            array = array.astype(dtype)
        return array

    def __dlpack__(self, **options: Any) -> Any:
        import sys

        # numpy does not export read-only memory
        array = self.numpy(copy=True) if sys.modules.get("torch") is None else self.torch()
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __index__(self) -> int:
        if self.dtype.kind not in ("int", "uint", "bool") or self.numel() != 1:
            raise TypeError(f"{self!r}: only one integer can be an index")
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def copy_into(self, target: Any) -> bool:
        """Fill a torch tensor straight from the source; False if it needs a conversion, and nothing was written."""
        memory = writable_memory(target)
        if memory is None or self.strides is not None or memory.dtype is not self.dtype or memory.shape != self.shape:
            return False
        view = address_view(memory.address + memory.offset, self.nbytes, target)
        fill([(self.storage.source, self.storage.offset + self.offset, view)])
        mark_written(target)
        return True


def as_lazy(value: Any, parts: bool = False) -> LazyTensor:
    """A LazyTensor over the memory of a live array, or the LazyTensor itself.

    Raises:
        UnsupportedError: the value is not an array, has no plain memory, or (unless `parts`) is part of a larger one.
    """
    if isinstance(value, LazyTensor):
        return value
    if is_torch(value):
        if not parts and (part := part_of(value)) is not None:
            raise part.error()
        memory, attributes = torch_memory(value), live_attributes(value)
    elif is_numpy(value):
        memory, attributes = numpy_memory(value), None
    else:
        raise UnsupportedError(f"expected a tensor or an array, got {type(value).__name__}")
    source = AddressSource(memory.address, memory.nbytes, memory.owner)
    key = (memory.address, memory.nbytes) if memory.nbytes else None
    storage = Storage(source, 0, memory.nbytes, memory.device, key)
    flags = memory.requires_grad, memory.parameter
    return LazyTensor(memory.dtype, memory.shape, storage, memory.offset, memory.strides, *flags, attributes)


def is_array(value: object) -> bool:
    """Whether the value is a tensor leaf: LazyTensor, `torch.Tensor` or `numpy.ndarray` (not a numpy scalar)."""
    return type(value) not in PLAIN and (isinstance(value, LazyTensor) or is_torch(value) or is_numpy(value))
