"""numpy and torch arrays as raw memory, and raw memory as arrays.

It imports a framework only for a caller that has its object or asks for one. Strides count elements, as in torch.
"""

from __future__ import annotations

import math
import sys

from statedict.dtypes import DType, dtype, import_torch
from statedict.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

Strides = tuple[int, ...]

MAX_DIMS = 64  # of numpy, and of PyTorch's operations
_MAX_BYTES = 1 << 63


def find_shape_fault(shape: tuple[int, ...], itemsize: int) -> str:
    """Why neither numpy nor PyTorch can hold a tensor of a shape; "" if they can.

    They compute strides as if no size were 0, so even strides of empty tensors can overflow.

    >>> find_shape_fault((2, 0), 4), find_shape_fault((0, 1 << 40, 1 << 40), 4)
    ('', 'strides of over 8 exabytes')
    """
    if len(shape) > MAX_DIMS:
        return f"{len(shape):,} dimensions, over {MAX_DIMS}"
    extent = itemsize or 1
    for n in shape:
        extent *= n or 1
        if extent >= _MAX_BYTES:
            return "strides of over 8 exabytes"
    return ""


def is_torch(value: object) -> bool:
    """Whether the value is a `torch.Tensor`, without importing torch."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def is_numpy(value: object) -> bool:
    """Whether the value is a `numpy.ndarray`, without importing numpy."""
    return isinstance(value, getattr(sys.modules.get("numpy"), "ndarray", ()))


def contiguous_strides(shape: tuple[int, ...]) -> Strides:
    """Row-major strides in elements; a dimension of size 0 counts as 1, as in torch.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def is_dense(shape: tuple[int, ...], strides: Strides) -> bool:
    """Whether the elements are all that lies between the first and the last one, each once.

    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (6, 2)), is_dense((2, 3), (0, 1))
    (True, False, False)
    """
    size = 1
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


class Memory:
    """A live array: the address and size of its storage, which `owner` keeps alive, and its first byte there."""

    __slots__ = (
        "address",
        "device",
        "dtype",
        "nbytes",
        "offset",
        "owner",
        "parameter",
        "requires_grad",
        "shape",
        "strides",
    )

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        strides: Strides | None,
        address: int,
        nbytes: int,
        offset: int,
        owner: object,
        device: str = "cpu",
        requires_grad: bool = False,
        parameter: bool = False,
    ) -> None:
        self.dtype, self.shape, self.strides = dtype, shape, strides
        self.address, self.nbytes, self.offset, self.owner = address, nbytes, offset, owner
        self.device, self.requires_grad, self.parameter = device, requires_grad, parameter


class Part:
    """A torch tensor that is part of a larger one of a shape: corner in the whole, corner in the tensor, sizes."""

    __slots__ = ("pieces", "shape")

    def __init__(self, shape: Strides, pieces: tuple[tuple[Strides, Strides, Strides], ...]) -> None:
        self.shape, self.pieces = shape, pieces

    def __str__(self) -> str:
        return f"{format_boxes([(begin, sizes) for begin, _, sizes in self.pieces])} of a tensor of shape {self.shape}"

    def error(self) -> UnsupportedError:
        """The error for saving it as if it were the whole."""
        return UnsupportedError(
            f"the tensor is a part ({self}), and would be saved as if it were the whole; save with "
            "torch.distributed.checkpoint.save, which handles parts, or gather it first"
        )


_PARTS = ("global_shape", "global_offsets", "local_offsets", "local_sizes")


def part_of(tensor: Any) -> Part | None:
    """Read the four attributes of a `torch.distributed.checkpoint.CheckpointableTensor`; None for a whole tensor.

    Source: torch/distributed/checkpoint/protocol.py (PyTorch 2.14).

    Raises:
        UnsupportedError: they contradict one another, or the tensor.
    """
    if getattr(tensor, "global_shape", None) is None:
        return None
    values: list[Any] = [getattr(tensor, name, None) for name in _PARTS]
    if any(value is None for value in values):
        return None
    try:
        whole = tuple(map(int, values[0]))
        corners, places, sizes = (tuple(tuple(map(int, item)) for item in value) for value in values[1:])
        pieces = tuple(zip(corners, places, sizes, strict=True))
        fits = all(
            _is_inside(corner, size, whole) and _is_inside(place, size, tuple(tensor.shape))
            for corner, place, size in pieces
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UnsupportedError(f"the tensor's {', '.join(_PARTS)} describe no part of a tensor; fix or remove them")
    if whole == tuple(tensor.shape) and pieces == (((0,) * len(whole), (0,) * len(whole), whole),):
        return None
    return Part(whole, pieces)


def _is_inside(corner: Strides, sizes: Strides, whole: Strides) -> bool:
    return all(c >= 0 and n >= 0 and c + n <= most for c, n, most in zip(corner, sizes, whole, strict=True))


def format_boxes(boxes: Sequence[tuple[Strides, Strides]]) -> str:
    """Boxes (corner, sizes) as one would index them, at most four.

    >>> format_boxes([((0, 4), (2, 4))])
    '[0:2, 4:8]'
    """
    texts = [", ".join(f"{c}:{c + n}" for c, n in zip(corner, sizes, strict=True)) for corner, sizes in boxes[:4]]
    shown = ", ".join(f"[{text}]" for text in texts) or "nothing"
    return shown + f" and {len(boxes) - 4:,} more" * (len(boxes) > 4)


_TORCH_DTYPES: dict[object, DType] = {}


def torch_memory(tensor: Any) -> Memory:
    """Take a torch tensor apart, after copying it to the CPU if needed.

    Raises:
        UnsupportedError: the tensor has no plain strided memory (sparse, quantized, nested, meta).
    """
    import torch

    what = None
    if tensor.layout is not torch.strided:
        what = f"layout {tensor.layout}; save its parts, or .to_dense()"
    elif tensor.is_quantized:
        what = "quantized; save .int_repr(), .q_scale() and .q_zero_point()"
    elif tensor.is_nested:
        what = "nested; save .values() and .offsets()"
    elif tensor.is_meta:
        what = "on the meta device and has no values; materialise it first"
    if what:
        raise UnsupportedError(f"the tensor is {what}")
    device, whole = "cpu", tensor
    if not tensor.is_cpu or tensor.is_conj() or tensor.is_neg():
        device = str(tensor.device)
        whole = tensor.detach().resolve_conj().resolve_neg().cpu()
    kind = _TORCH_DTYPES.get(whole.dtype)
    if kind is None:
        kind = _TORCH_DTYPES[whole.dtype] = dtype(whole.dtype)
    storage = whole.untyped_storage()
    try:
        address = storage.data_ptr()
    except RuntimeError:
        raise UnsupportedError(
            f"the tensor is a {type(tensor).__qualname__}, which has no memory of its own, such as a part of one that "
            "lies on several ranks; save with torch.distributed.checkpoint, or gather it first (full_tensor())"
        ) from None
    return Memory(
        kind,
        tuple(whole.shape),
        None if whole.is_contiguous() else tuple(whole.stride()),
        address,
        storage.nbytes(),
        whole.storage_offset() * kind.itemsize,
        storage,
        device,
        tensor.requires_grad,
        type(tensor) is not torch.Tensor and isinstance(tensor, torch.nn.Parameter),
    )


def writable_memory(target: Any) -> Memory | None:
    """A torch tensor taken apart for writing; None unless its elements are plain row-major CPU memory."""
    import torch

    if type(target) not in (torch.Tensor, torch.nn.Parameter) or target.device.type != "cpu":
        return None
    if target.layout is not torch.strided or target.is_quantized or target.is_conj() or target.is_neg():
        return None
    if not target.is_contiguous() or (target.requires_grad and torch.is_grad_enabled()):
        return None
    return torch_memory(target)


def live_region(tensor: Any) -> object:
    """The region of a live torch tensor, on any device: equal for tied tensors, as `LazyTensor.region`."""
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def mark_written(target: Any) -> None:
    """Tell autograd that a tensor's memory was written, as an in-place operation would."""
    import torch

    torch.autograd.graph.increment_version(target)


def numpy_memory(array: Any) -> Memory:
    """Take a numpy array apart; its storage is the memory of the array that it is a view of.

    Raises:
        UnsupportedError: no PyTorch dtype has these elements (objects, strings, records, dates).
    """
    import numpy

    native = array.dtype
    if not native.isnative:
        array = array.astype(native.newbyteorder("="))
    try:
        kind = dtype(array.dtype.name)
    except ValueError as error:
        raise UnsupportedError(
            f"numpy dtype {native} has no counterpart in PyTorch; convert it to numbers first"
        ) from error
    item = kind.itemsize
    if any(s < 0 or s % item for s in array.strides) or (item and array.ctypes.data % item):
        array = numpy.ascontiguousarray(array)
    address = array.ctypes.data
    base = array
    while isinstance(base.base, numpy.ndarray) and base.base.flags.c_contiguous:
        base = base.base
    start, nbytes = base.ctypes.data, base.nbytes
    strides = None if array.flags.c_contiguous else tuple(s // item for s in array.strides)
    if array.size == 0:
        start, nbytes, strides = address, 0, None
    elif not base.flags.c_contiguous or (address - start) % item:
        # a view of foreign memory, or between the elements of its base: its storage is the span that it covers
        start, nbytes = address, sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + item
    return Memory(kind, array.shape, strides, start, nbytes, address - start, array)


def numpy_view(data: memoryview, kind: DType, shape: tuple[int, ...], strides: Strides | None) -> Any:
    """An array over `data`, which begins with its first element."""
    import numpy

    native = kind.numpy
    numel = math.prod(shape)
    if strides is None or not numel:
        return numpy.frombuffer(data, native, numel).reshape(shape) if numel else numpy.empty(shape, native)
    # not as_strided, which rebuilds the dtype from its character code: dtypes of ml_dtypes share theirs
    return numpy.ndarray(shape, native, data, 0, tuple(s * native.itemsize for s in strides))


def torch_storage(data: memoryview) -> Any:
    """A `torch.UntypedStorage` over writable memory, without a copy."""
    torch = import_torch()
    if not len(data):
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()


def torch_view(storage: Any, kind: DType, shape: tuple[int, ...], strides: Strides | None, offset: int) -> Any:
    """A tensor over a `torch.UntypedStorage`; `offset` in elements."""
    torch = import_torch()
    empty = torch.empty(0, dtype=kind.torch)
    return empty.set_(storage, offset, shape, contiguous_strides(shape) if strides is None else strides)


def apply_index(shape: tuple[int, ...], strides: Strides, index: Any) -> tuple[tuple[int, ...], Strides, int]:
    """Shape, strides and first element of `array[index]` for integers, slices, `...` and `None`."""
    items = index if isinstance(index, tuple) else (index,)
    dims = sum(item is not None and item is not Ellipsis for item in items)
    dots = sum(item is Ellipsis for item in items)
    if dims > len(shape) or dots > 1:
        raise IndexError(f"too many indices for a tensor of shape {shape}")
    if not dots:
        items = (*items, Ellipsis)
    new_shape: list[int] = []
    new_strides: list[int] = []
    start = axis = 0
    for item in items:
        if item is None:
            new_shape.append(1)
            new_strides.append(1)
        elif item is Ellipsis:
            skipped = len(shape) - dims
            new_shape += shape[axis : axis + skipped]
            new_strides += strides[axis : axis + skipped]
            axis += skipped
        elif isinstance(item, slice):
            first, last, step = item.indices(shape[axis])
            if step < 0:
                raise IndexError("slices with a negative step are not lazy; use .numpy()[...]")
            count = len(range(first, last, step))
            new_shape.append(count)
            new_strides.append(strides[axis] * step)
            start += first * strides[axis] if count else 0
            axis += 1
        elif hasattr(item, "__index__") and not isinstance(item, bool):
            try:
                position = item.__index__()
            except TypeError:
                raise IndexError(f"an index of several elements is not lazy; use .numpy()[...], not {item!r}") from None
            if not -shape[axis] <= position < shape[axis]:
                raise IndexError(f"index {position} is out of range for axis {axis} of size {shape[axis]}")
            start += (position % shape[axis]) * strides[axis]
            axis += 1
        else:
            raise IndexError(f"a LazyTensor takes integers, slices, ... and None, not {item!r}; use .numpy()[...]")
    return tuple(new_shape), tuple(new_strides), start
