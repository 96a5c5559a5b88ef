"""The allow-list of data: constructors of plain data from plain data, by "module name" as GLOBAL spells them."""

from __future__ import annotations

from collections import Counter
from functools import partial

from statedict.dtypes import BY_NAME, BY_STORAGE, DType, is_torch_dtype, is_torch_storage, labelled_dtype
from statedict.errors import CorruptFileError, FormatError
from statedict.io.source import BytesSource
from statedict.pickles.budget import DICT, OBJECT
from statedict.pickles.objects import Global, Keys, table
from statedict.tensor.arrays import MAX_DIMS, find_shape_fault
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.values import Device, Opaque, Size, device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_MAX_SIZE = 1 << 60


class TypedStorage(LazyTensor):
    """A storage as a pickle refers to it, or `numel` elements of it from `shift` on: a tensor of one dimension."""

    __slots__ = ()

    def __init__(self, storage: Storage, dtype: DType, shift: int = 0, numel: int = -1) -> None:
        itemsize = dtype.itemsize
        self.dtype, self.storage, self.strides, self.offset = dtype, storage, None, shift * itemsize
        self.shape = (storage.nbytes // itemsize - shift if numel < 0 else numel,)
        self.requires_grad, self.parameter, self.attributes, self.ndarray = False, False, None, False

    def place(self, offset: Any) -> Any:
        """The element of the underlying storage that is element `offset` here."""
        return offset + self.offset // self.dtype.itemsize if self.offset and type(offset) is int else offset


class StorageType(Opaque):
    """A storage class, `torch.FloatStorage`, as the pickle names it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: DType, name: str) -> None:
        super().__init__(name)
        self.dtype = dtype


def storage_type(kind: Any, numel: int, nbytes: int) -> StorageType | None:
    """The storage class that a pickle names as `kind`; the size of an element tells one that no table has."""
    if type(kind) is StorageType:
        return kind
    module, _, name = kind.name.rpartition(".") if type(kind) is Global else ("", "", "")
    if module not in ("torch", "torch.cuda") or not is_torch_storage(name):
        return None
    if numel and (nbytes < numel or nbytes % numel):
        raise CorruptFileError(f"a {name} of {numel:,} elements in {nbytes:,} bytes")
    return StorageType(labelled_dtype(name, nbytes // numel * 8 if numel else 8, storage=name), kind.name)


def tensor(
    storage: Storage, dtype: DType, offset: Any, shape: Any, strides: Any, requires_grad: object = False
) -> LazyTensor:
    """A LazyTensor from numbers in a file, all checked; offset and strides count elements."""
    if not dtype.bits:
        return _of_unknown_size(storage, dtype, offset, shape, strides, requires_grad)
    if type(shape) not in (tuple, Size) or type(strides) is not tuple or type(offset) is not int:
        raise CorruptFileError("a tensor whose shape, strides or offset are not numbers")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise CorruptFileError(
            f"a tensor of {len(shape):,} sizes and {len(strides):,} strides, over {MAX_DIMS} or unequal"
        )
    numel, last, expected, contiguous = 1, 0, 1, True
    for axis in range(len(shape) - 1, -1, -1):
        n, stride = shape[axis], strides[axis]
        if type(n) is not int or type(stride) is not int or not (0 <= n < _MAX_SIZE and 0 <= stride < _MAX_SIZE):
            raise CorruptFileError(f"a tensor whose axis {axis} has a size or a stride that is not valid")
        if n != 1:
            if stride != expected:
                contiguous = False
            last += (n - 1) * stride
            numel *= n
            expected *= n
    itemsize = dtype.itemsize
    if numel:
        end = (offset + last + 1) * itemsize
        if offset < 0 or end > storage.nbytes or numel >= _MAX_SIZE:
            raise CorruptFileError(
                f"a {dtype} tensor of shape {tuple(shape)} and strides {strides} from element {offset:,} "
                f"ends at byte {end:,} of a storage of {storage.nbytes:,} bytes"
            )
    else:
        if not 0 <= offset < _MAX_SIZE or find_shape_fault(shape, itemsize):
            raise CorruptFileError(f"a {dtype} tensor of shape {tuple(shape)} from element {offset:,}")
        offset, contiguous = 0, True
    if requires_grad is True:
        check_grad(dtype)
    # the shape itself and no copy, which would cost more than a tensor is charged with
    return LazyTensor(dtype, shape, storage, offset * itemsize, None if contiguous else strides, requires_grad is True)


def check_grad(dtype: DType) -> None:
    """Raise CorruptFileError unless a tensor of this dtype can require a gradient."""
    if dtype.kind not in ("float", "complex", "raw"):  # what a dtype of no table is cannot be told
        raise CorruptFileError(f"a tensor of {dtype} that requires a gradient; only floating point tensors can")


def check_geometry(size: Any, stride: Any, dtype: Any) -> None:
    """Raise CorruptFileError unless PyTorch can make a tensor of this shape, whose bytes are elsewhere or nowhere."""
    if type(dtype) is not DType:
        raise CorruptFileError(f"a tensor whose dtype is a {type(dtype).__name__}")
    for name, numbers in (("size", size), ("stride", stride)):
        if type(numbers) not in (tuple, Size) or not all(type(n) is int and 0 <= n < _MAX_SIZE for n in numbers):
            raise CorruptFileError(f"a tensor whose {name} is not a tuple of numbers from 0 to 2**60")
    if len(size) != len(stride):
        raise CorruptFileError(f"a tensor of {len(size):,} sizes and {len(stride):,} strides")
    reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True) if n) + 1
    fault = find_shape_fault(size, dtype.itemsize) or find_shape_fault((reach,), dtype.itemsize)
    if fault:
        raise CorruptFileError(f"a tensor of shape {tuple(size)} and strides {tuple(stride)}: {fault}")


def _of_unknown_size(
    storage: Storage, dtype: DType, offset: Any, shape: Any, strides: Any, requires_grad: object
) -> Labelled:
    """A tensor whose elements have an unknown size of at least one bit."""
    try:
        bits = tensor(Storage(storage.source, 0, 8 * storage.nbytes), BY_NAME["uint8"], offset, shape, strides)
    except CorruptFileError as error:
        what = f"a {dtype} tensor in a storage of {storage.nbytes:,} bytes, as if its elements were bits"
        raise CorruptFileError(f"{what}: {error}") from error
    if not bits.numel():
        storage = Storage(storage.source, 0, 0, storage.device)
    elif bits.offset or bits.strides is not None:
        storage = Storage(storage.source, storage.offset, storage.nbytes, storage.device)
    return Labelled(dtype, bits.shape, storage, bits.offset, bits.strides, requires_grad is True)


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None, bits: Any = None
) -> Any:
    if type(storage) is not TypedStorage:
        return Opaque("torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, requires_grad, hooks, bits))
    if storage.offset:
        offset = storage.place(offset)
    result = tensor(storage.storage, storage.dtype, offset, size, stride, requires_grad)
    return _with_bits(result, bits) if bits is not None else result


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, bits: Any = None
) -> Any:
    name = dtype.name.removeprefix("torch.") if type(dtype) is Global else ""
    known = labelled_dtype(name) if is_torch_dtype(name) else dtype
    if type(storage) is not TypedStorage or type(known) is not DType:
        return Opaque("torch._utils._rebuild_tensor_v3", (storage, offset, size, stride, requires_grad, hooks, dtype))
    result = tensor(storage.storage, known, offset, size, stride, requires_grad)
    return _with_bits(result, bits) if bits is not None else result


def _with_bits(tensor: LazyTensor, metadata: Any) -> LazyTensor:
    """Apply the lazy conjugation and negation that PyTorch records as bits."""
    if not isinstance(metadata, dict):
        raise CorruptFileError(f"a tensor's metadata is a {type(metadata).__name__}")
    conj, neg = metadata.get("conj") is True, metadata.get("neg") is True
    if not (conj or neg):
        return tensor
    if tensor.dtype.kind == "raw":
        raise FormatError(f"a {tensor.dtype} tensor needs a known dtype to be conjugated or negated when it is read")
    if (conj and tensor.dtype.kind != "complex") or (neg and tensor.dtype.name not in _NEGATED):
        raise CorruptFileError(f"a tensor of {tensor.dtype} that is conjugated or negated")
    from statedict.tensor.assembled import map_elements

    return map_elements(tensor, tensor.dtype, partial(_as_bits, conj, neg))


# what PyTorch negates by a bit: complex numbers, and the imaginary parts of them
_NEGATED = ("float16", "bfloat16", "float32", "float64", "complex32", "bcomplex32", "complex64", "complex128")


def _as_bits(conj: bool, neg: bool, values: Any, out: Any) -> None:
    import numpy

    if conj:
        values = numpy.conjugate(values, out=out)
    if neg:
        numpy.negative(values, out=out)


class Pending(LazyTensor):
    """A tensor whose state is still to come; it becomes a LazyTensor in place, for the memo may hold it."""

    __slots__ = ()

    def become(self, other: LazyTensor) -> LazyTensor:
        """Take all attributes of a tensor."""
        for slot in LazyTensor.__slots__:
            setattr(self, slot, getattr(other, slot))
        self.__class__ = LazyTensor  # type: ignore[assignment]
        return self


class _OldTensor(Pending):
    """A tensor as PyTorch pickled it before `_rebuild_tensor`."""

    __slots__ = ()

    def set_state(self, state: Any) -> LazyTensor:
        if type(state) is not tuple or len(state) != 4 or type(state[0]) is not TypedStorage:
            raise CorruptFileError("a tensor without a valid state")
        return self.become(_tensor_v2(*state))


_NOTHING = Storage(BytesSource(b""), 0, 0)  # shared, for one each would cost more than the tensor


def _old_tensor(*args: Any) -> LazyTensor:
    if args:
        raise CorruptFileError("a tensor made from arguments, not from its state")
    return _OldTensor(BY_NAME["float32"], (0,), _NOTHING)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None) -> Any:
    parameter = as_parameter(data, requires_grad is True)
    return Opaque("torch._utils._rebuild_parameter", (data, requires_grad, hooks)) if parameter is None else parameter


def as_parameter(data: Any, requires_grad: bool) -> LazyTensor | None:
    """The tensor as a `torch.nn.Parameter`; None for anything else."""
    if type(data) not in (LazyTensor, Labelled):
        return None
    if requires_grad:
        check_grad(data.dtype)
    return data.replace(requires_grad=requires_grad, parameter=True)  # type: ignore[no-any-return]


def _ordered_dict(items: Any = ()) -> StateDict:
    state = StateDict()
    if items == ():  # the hooks of every tensor
        return state
    keys = Keys()
    for pair in items.items() if isinstance(items, dict) else _sequence(items):
        key, value = _sequence(pair)
        state[keys.check(key)] = value
    return state


def _counter(counts: Any = ()) -> Any:
    if not isinstance(counts, dict) and counts != ():
        raise CorruptFileError("a Counter of something other than a dict")
    if any(type(count) not in (int, float, bool) for count in dict(counts).values()):
        return Opaque("collections.Counter", (counts,))
    return Counter(dict(counts))


def _set(kind: type, items: Any = ()) -> Any:
    return kind(map(Keys().check, _sequence(items)))


def _sequence(items: Any) -> Any:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise CorruptFileError(f"a container made from a {type(items).__name__}")
    return items


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise CorruptFileError("bytes in an encoding that pickle does not use")
    return text.encode(encoding)


def _bytes(data: Any = b"") -> bytes:
    if type(data) is not bytes:
        raise CorruptFileError(f"bytes of a {type(data).__name__}")
    return data


def _bytearray(data: Any = b"", encoding: Any = "latin-1") -> bytearray:
    if type(data) is str:
        data = _encode(data, encoding)
    if type(data) not in (bytes, bytearray):
        raise CorruptFileError(f"a bytearray of a {type(data).__name__}")
    return bytearray(data)


def _complex(real: Any, imag: Any = 0.0) -> complex:
    if type(real) not in (int, float) or type(imag) not in (int, float):
        raise CorruptFileError("a complex number of something other than numbers")
    return complex(real, imag)


def _size(items: Any = ()) -> Size:
    if not all(type(item) is int and -(1 << 63) <= item < 1 << 63 for item in _sequence(items)):
        raise CorruptFileError("a torch.Size of something other than 64 bit integers")
    return Size(items)


def _device(kind: Any, index: Any = None) -> Device:
    if type(kind) is not str or not (index is None or (type(index) is int and 0 <= index < 1000)):
        raise CorruptFileError("a device without a valid name and index")
    return device(kind if index is None else f"{kind}:{index}")


def _both(name: str, build: Callable[..., Any], bulk: int = 1, cost: int = OBJECT) -> dict[str, Global]:
    """A builtin under Python 3's and Python 2's name of its module."""
    return dict.fromkeys((f"builtins {name}", f"__builtin__ {name}"), Global(name, build, bulk, cost))


DATA: dict[str, Any] = {
    **table(
        {
            "collections OrderedDict": _ordered_dict,
            "collections defaultdict": lambda factory=None, items=(): _ordered_dict(items),
            "collections Counter": _counter,
            "_codecs encode": _encode,
            "torch Size": _size,
            "torch device": _device,
        }
    ),
    **table(
        {
            "torch._utils _rebuild_tensor": lambda held, offset, size, stride: _tensor_v2(held, offset, size, stride),
            "torch._utils _rebuild_parameter": _parameter,
        },
        bulk=8,
    ),
    **table({"torch._utils _rebuild_tensor_v2": _tensor_v2}, bulk=7, cost=2048),
    **table({"torch._utils _rebuild_tensor_v3": _tensor_v3}, bulk=8, cost=2048),
    **_both("set", partial(_set, set), bulk=0, cost=DICT),
    **_both("frozenset", partial(_set, frozenset), bulk=0, cost=DICT),
    **_both("complex", _complex),
    **_both("bytearray", _bytearray),
    **_both("bytes", _bytes),
    **{f"torch {name}": kind for name, kind in BY_NAME.items()},
    "torch.storage UntypedStorage": StorageType(BY_NAME["uint8"], "torch.storage.UntypedStorage"),
    **{
        f"{module} {name}": StorageType(kind, f"{module}.{name}")
        for module in ("torch", "torch.cuda")
        for name, kind in BY_STORAGE.items()
    },
    **table(
        {
            f"{module} {name}": _old_tensor
            for module in ("torch", "torch.cuda")
            for name in ("Tensor", *(kind.replace("Storage", "Tensor") for kind in BY_STORAGE))
        }
    ),
}
