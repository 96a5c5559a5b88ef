"""The whole allow-list: everything that a pickle may name and that builds data.

`constructors` has plain tensors and Python's own types. Here are PyTorch's tensors beyond strided memory; each becomes
an Opaque whose parts have names, and so paths:

    torch.sparse_coo         indices, values, size, is_coalesced
    torch.sparse_csr/bsr     crow_indices, col_indices, values, size
    torch.sparse_csc/bsc     ccol_indices, row_indices, values, size
    torch.per_tensor_affine  int_repr, dtype, scale, zero_point       (also the other quantization schemes)
    torch.nested             values, sizes, strides, offsets
    torch.jagged             values, offsets, lengths …
    torch.meta               dtype, size, stride                      a shape without values
    a subclass               inner tensors and attributes under their own names

And numpy's arrays, scalars and dtypes:

    dtype("f4", False, True) with state (version, "<", …)             one of ours, where it has a counterpart
    scalar(dtype, bytes)                                               a Python number
    _reconstruct(ndarray, (0,), b"b") with state (version, shape, dtype, is_fortran, bytes)
    _frombuffer(bytes, dtype, shape, order, axes)                      since protocol 5; axes since numpy 2.4, for
                                                                       order "K": (2, 0, 1) as `transpose` takes them

A class may stand for the code of a dtype (ml_dtypes, records). An array of numbers becomes a LazyTensor over the bytes
in the pickle; any other stays an Opaque.

Sources: torch/_utils.py and torch/_tensor.py (PyTorch 2.13); numpy/_core/src/multiarray/methods.c and descriptor.c
(numpy 2.4), `array_reduce` and `arraydescr_reduce`; numpy/_core/numeric.py, `_frombuffer`.
"""

from __future__ import annotations

import struct
from math import prod

from statedict.dtypes import BY_CODE, BY_NAME, DType, labelled_dtype
from statedict.errors import CorruptFileError
from statedict.io.source import BytesSource, swap_bytes
from statedict.pickles import constructors
from statedict.pickles.constructors import Pending, TypedStorage, as_parameter, check_geometry, check_grad, tensor
from statedict.pickles.objects import Global, table
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.attributes import drop_compiler
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque
from statedict.values import device as check_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# bits in a quantized storage: the integers in it, how many a byte holds
_INTEGERS = {
    "qint8": ("int8", 1),
    "quint8": ("uint8", 1),
    "qint32": ("int32", 1),
    "quint4x2": ("uint8", 2),
    "quint2x4": ("uint8", 4),
}
_JAGGED = "torch.jagged"
_PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter")
SPARSE = {
    "torch.sparse_coo": ("indices", "values", "size", "is_coalesced"),
    **dict.fromkeys(("torch.sparse_csr", "torch.sparse_bsr"), ("crow_indices", "col_indices", "values", "size")),
    **dict.fromkeys(("torch.sparse_csc", "torch.sparse_bsc"), ("ccol_indices", "row_indices", "values", "size")),
}
_QSCHEMES = (
    "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric per_channel_affine_float_qparams"
)


def _parts(name: str, **parts: Any) -> Opaque:
    return Opaque(name, state=StateDict(parts))


def _layout(name: Any) -> Opaque:
    if type(name) is not str or len(name) > 40:
        raise CorruptFileError("a layout without a name")
    return Opaque(name if name.startswith("torch.") else f"torch.{name}")


def _sparse(layout: Any, data: Any) -> Opaque:
    names = SPARSE.get(getattr(layout, "name", ""))
    if names is None or type(data) is not tuple or not len(names) - 1 <= len(data) <= len(names):
        return Opaque("torch._utils._rebuild_sparse_tensor", (layout, data))
    return _parts(layout.name, **dict(zip(names, data, strict=False)))


def _make_quantized(
    storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, requires_grad: Any = False, hooks: Any = None
) -> Opaque:
    scheme = quantizer[0] if type(quantizer) is tuple and quantizer else None
    name = getattr(scheme, "name", "")
    if type(storage) is not TypedStorage or not name:
        raise CorruptFileError("a quantized tensor without a storage or a scheme")
    nbytes = storage.storage.nbytes
    integers, packed = _INTEGERS.get(storage.dtype.name, (storage.dtype.name, 1))
    kind = BY_NAME.get(integers, storage.dtype)
    if packed > 1:  # several elements a byte: the bytes as they are
        if not isinstance(size, tuple) or not all(type(n) is int and n >= 0 for n in size):
            raise CorruptFileError("a quantized tensor whose shape is not made of sizes")
        needed = -(-prod(size) // packed)
        parts = {"packed": tensor(storage.storage, kind, 0, (nbytes,), (1,)), "size": size, "stride": stride}
    else:
        numbers = tensor(storage.storage, kind, storage.place(offset), size, stride)
        needed, parts = numbers.nbytes, {"int_repr": numbers}
    if needed > nbytes:
        raise CorruptFileError(f"a quantized tensor of shape {size} in {nbytes:,} bytes")
    fields = _check_quantizer(name, quantizer[1:], size, requires_grad)
    return _parts(name, **parts, dtype=storage.dtype, **dict(zip(fields, quantizer[1:], strict=True)))


def _check_quantizer(name: str, numbers: tuple[Any, ...], size: Any, requires_grad: Any) -> tuple[str, ...]:
    """The names of a quantizer's numbers, which PyTorch's kernels do not check."""
    if requires_grad is True:
        raise CorruptFileError("a quantized tensor that requires a gradient, which PyTorch does not allow")
    if "per_channel" not in name:
        if len(numbers) not in (1, 2) or type(numbers[0]) is not float or not all(map(_is_small, numbers[1:])):
            raise CorruptFileError("a quantized tensor whose scale and zero point are not numbers")
        return ("scale", "zero_point")[: len(numbers)]
    axis = numbers[2] if len(numbers) == 3 else None
    if type(axis) is not int or not 0 <= axis < len(size):
        what = f"a quantized tensor of shape {tuple(size)}: expected an axis from 0 to {len(size) - 1}"
        raise CorruptFileError(f"{what}, got {str(axis)[:40]}")
    for part, values in zip(("scales", "zero_points"), numbers, strict=False):
        count = len(values) if type(values) is list else values.shape if type(values) is LazyTensor else None
        if count not in (size[axis], (size[axis],)):
            what = f"a quantized tensor of shape {tuple(size)}: expected {size[axis]:,} {part}"
            raise CorruptFileError(f"{what}, got {str(count)[:40]}")
        if type(values) is list and not all(type(n) is float or _is_small(n) for n in values):
            raise CorruptFileError(f"a quantized tensor whose {part} are not numbers")
    return "scales", "zero_points", "axis"


def _is_small(number: Any) -> bool:
    return type(number) is int and -(1 << 63) <= number < 1 << 63


def _make_jagged(parts: Any) -> Opaque:
    if not isinstance(parts, dict):
        raise CorruptFileError("a jagged tensor without its parts")
    return Opaque(_JAGGED, state=StateDict(parts))


def _meta(dtype: Any, size: Any, stride: Any, requires_grad: Any = False) -> Opaque:
    check_geometry(size, stride, dtype)
    if requires_grad is True:
        check_grad(dtype)
    return _parts("torch.meta", dtype=dtype, size=size, stride=stride)


def _wrapper(cls: Any, dtype: Any, size: Any, stride: Any, offset: Any, layout: Any, device: Any, grad: Any) -> Opaque:
    check_device(device)
    check_geometry(size, stride, dtype)
    return _parts(getattr(cls, "name", "torch.Tensor"), dtype=dtype, size=size, stride=stride)


def _of_device(data: Any, dtype: Any, device: Any, requires_grad: Any = False) -> Any:
    check_device(device)
    if not isinstance(data, LazyTensor) or (type(dtype) is DType and dtype is not data.dtype):
        return _parts("a tensor of another device", data=data, dtype=dtype, device=device)
    return data


def _parameter_with_state(data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None) -> Any:
    parameter = as_parameter(data, requires_grad is True)
    if parameter is None:
        return data
    return _with_attributes(parameter, _PLAIN[1], drop_compiler(attributes(state)))


def _with_attributes(tensor: LazyTensor, name: str, attributes: dict[Any, Any] | None) -> Any:
    """The tensor with its attributes, or a label for a part of a larger tensor."""
    if attributes and attributes.get("global_shape") is not None:
        return Opaque(name, state=StateDict({"data": tensor} | attributes))
    tensor.attributes = attributes
    return tensor


def attributes(state: Any) -> dict[Any, Any]:
    """The attributes in a state: a dict, or a pair of dicts for `__dict__` and `__slots__`."""
    parts = state if type(state) is tuple else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        return {"state": state}
    return {key: value for part in parts if part for key, value in part.items()}


def _from_type(function: Any, kind: Any, args: Any, state: Any = None) -> Any:
    """A tensor of a subclass: what its own class would be rebuilt from, and its attributes."""
    if type(args) is not tuple:
        raise CorruptFileError("a tensor subclass without arguments")
    build = function.build if type(function) is Global else None
    if build is not None and function.name not in _INNER:
        raise CorruptFileError(f"a tensor subclass rebuilt by {function.name}")
    inner = build(*args) if build is not None else Opaque(getattr(function, "name", "?"), args)
    name = getattr(kind, "name", "torch.Tensor")
    if isinstance(inner, Opaque) and inner.name == _JAGGED:
        return inner  # its attributes are its parts again
    noted = drop_compiler(attributes(state)) or {}
    if isinstance(inner, LazyTensor) and name in _PLAIN:
        return _with_attributes(inner.replace(), name, noted or None)
    if isinstance(inner, Opaque) and isinstance(inner.state, dict):
        return Opaque(name, state=StateDict(noted | dict(inner.state)))
    if name in _PLAIN and not noted:
        return inner
    return Opaque(name, state=StateDict({"data": inner} | noted))


IN_PICKLE = "pickle"  # the name of the source of an array
# numpy's code → the format of one element for `struct`
_FORMATS = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "c8": "ff", "c16": "dd",
}  # fmt: skip


class NumpyType(Opaque):
    """A numpy dtype: its code or its class, its byte order and, for numbers, our dtype."""

    __slots__ = ("code", "kind", "label", "order")

    def __init__(self, code: str, kind: DType | None = None) -> None:
        super().__init__("numpy.dtype", (code,))
        self.code, self.order = code, "<"
        self.kind = BY_CODE.get(code, kind)
        self.label = ""  # of its scalars, one text for all of them

    def set_state(self, state: Any) -> NumpyType:
        """Take the byte order; with fields or subarrays it is only a label."""
        if type(state) is not tuple or len(state) < 5:
            raise CorruptFileError("a numpy dtype without a valid state")
        if state[1] in ("<", ">", "|"):
            self.order = "<" if state[1] == "|" else state[1]
        if state[2] is not None or state[3] is not None:
            self.kind = None
        return self


class _Array(Pending):
    __slots__ = ()

    def set_state(self, state: Any) -> Any:
        if type(state) is not tuple or len(state) != 5:
            raise CorruptFileError("a numpy array without a valid state")
        _, shape, kind, fortran, raw = state
        result = array(raw, kind, shape, "F" if fortran else "C")
        return result if isinstance(result, Opaque) else self.become(result)


def array(raw: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    """The tensor, or an Opaque for elements other than numbers."""
    if not isinstance(kind, Opaque) or type(shape) is not tuple:
        raise CorruptFileError("a numpy array without a dtype or a shape")
    if isinstance(kind, NumpyType) and (kind.code[:10], kind.order) == ("ml_dtypes.", "<") and type(raw) is bytes:
        kind = NumpyType(kind.code, kind.kind or _of_ml_dtypes(kind.code, len(raw), shape))
    if not isinstance(kind, NumpyType) or kind.kind is None:
        label = kind.code if isinstance(kind, NumpyType) else kind.name
        return Opaque(f"numpy.ndarray of {label}", (shape,), items=raw if type(raw) is list else [raw])
    if type(raw) is str:  # Python 2 wrote bytes as text
        raw = raw.encode("latin-1")
    if type(raw) not in (bytes, bytearray):
        raise CorruptFileError(f"a numpy array whose bytes are a {type(raw).__name__}")
    if (numel := _count(shape, len(raw))) < 0:
        raise CorruptFileError("a numpy array whose shape is not made of sizes")
    if fault := find_shape_fault(shape, kind.kind.itemsize):
        raise CorruptFileError(f"a numpy array of shape {str(shape)[:200]}: {fault}")
    if numel * kind.kind.itemsize != len(raw):
        raise CorruptFileError(f"a numpy array of shape {shape} and dtype {kind.code} has {len(raw):,} bytes")
    if kind.order == ">":
        raw = swap_bytes(BytesSource(raw), 0, len(raw), kind.kind).read(0, len(raw))
    strides = contiguous_strides(shape[::-1])[::-1] if order == "F" and len(shape) > 1 and numel else None
    return LazyTensor(kind.kind, shape, Storage(BytesSource(raw, IN_PICKLE), 0, len(raw)), 0, strides, ndarray=True)


def _of_ml_dtypes(name: str, nbytes: int, shape: tuple[Any, ...]) -> DType | None:
    """A dtype of ml_dtypes that our table lacks: bytes under its name."""
    numel = _count(shape, nbytes)
    return labelled_dtype(name, nbytes // numel * 8) if numel > 0 and nbytes and nbytes % numel == 0 else None


def _count(shape: tuple[Any, ...], most: int) -> int:
    """The number of elements, or some number over `most`; -1 if the shape does not consist of sizes."""
    numel = 1
    for n in shape:
        if type(n) is not int or n < 0:
            return -1
        numel *= n if numel <= most else 1
    return 0 if 0 in shape else numel


def _reconstruct(kind: Any, shape: Any = (0,), code: Any = b"b") -> Any:
    if shape != (0,):  # the state brings the real one
        raise CorruptFileError("a numpy array made with a shape before its state")
    if type(kind) is not Global or kind.name != "numpy.ndarray":
        return Opaque("numpy.core.multiarray._reconstruct", (Opaque(getattr(kind, "name", "?")), shape, code))
    return _Array(BY_NAME["uint8"], (0,), Storage(BytesSource(b"", IN_PICKLE), 0, 0))


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any = "C", axes: Any = None) -> Any:
    result = array(raw, kind, shape, order)
    if order != "K" or axes is None or isinstance(result, Opaque):
        return result
    if type(axes) is not tuple or {*map(type, axes)} - {int} or sorted(axes) != [*range(len(shape))]:
        raise CorruptFileError("a numpy array whose axes are not a permutation")
    steps = contiguous_strides(shape)
    shape, strides = tuple(shape[axis] for axis in axes), tuple(steps[axis] for axis in axes)
    return result.replace(shape=shape, strides=None if strides == contiguous_strides(shape) else strides)


def _dtype(code: Any, align: Any = False, copy: Any = False) -> NumpyType:
    if type(code) is Global:
        known = BY_NAME.get(code.name.removeprefix("ml_dtypes."))
        return NumpyType(code.name, known if known is not None and known.itemsize else None)
    if type(code) is bytes:
        code = code.decode("ascii", "replace")
    if type(code) is not str or len(code) > 100:
        raise CorruptFileError("a numpy dtype without a name, or with one of over 100 characters")
    return NumpyType(code)


def _scalar(kind: Any, raw: Any = b"") -> Any:
    if not isinstance(kind, NumpyType):
        raise CorruptFileError("a numpy scalar without a dtype")
    if type(raw) is str:
        raw = raw.encode("latin-1")
    if kind.kind is None or kind.code not in _FORMATS or type(raw) is not bytes:
        kind.label = kind.label or f"numpy scalar of {kind.code}"
        return Opaque(kind.label, (raw,))
    if len(raw) != kind.kind.itemsize:
        raise CorruptFileError(f"a numpy scalar of dtype {kind.code} has {len(raw):,} bytes")
    numbers = struct.unpack(kind.order + _FORMATS[kind.code], raw)
    return complex(*numbers) if len(numbers) == 2 else numbers[0]


_NJT = "torch.nested._internal.nested_tensor _rebuild_njt"
# what a subclass may be rebuilt from: nothing that nests, or costs more than its arguments are charged with
_INNER = {_NJT.replace(" ", ".")} | {
    f"torch._utils._rebuild_{name}"
    for name in (
        "tensor_v2", "tensor_v3", "parameter", "sparse_tensor", "qtensor", "nested_tensor", "meta_tensor_no_storage",
        "wrapper_subclass", "device_tensor_from_cpu_tensor", "device_tensor_from_numpy",
    )
}  # fmt: skip
_TYPED = ("int", "tensor", "double", "bool")  # lists of TorchScript
_NUMPY = table({"numpy.core.multiarray scalar": _scalar}) | table(
    {"numpy.core.multiarray _reconstruct": _reconstruct, "numpy.core.numeric _frombuffer": _frombuffer}, cost=1024
)
DATA: dict[str, Any] = {
    **constructors.DATA,
    **table(
        {
            "torch._utils _rebuild_sparse_tensor": _sparse,
            "torch._utils _rebuild_qtensor": _make_quantized,
            "torch._utils _rebuild_nested_tensor": lambda values, sizes, strides, offsets: _parts(
                "torch.nested", values=values, sizes=sizes, strides=strides, offsets=offsets
            ),
            "torch._utils _rebuild_meta_tensor_no_storage": _meta,
            "torch._utils _rebuild_wrapper_subclass": _wrapper,
            "torch._utils _rebuild_device_tensor_from_cpu_tensor": _of_device,
            "torch._utils _rebuild_device_tensor_from_numpy": _of_device,
            "torch._utils _rebuild_xla_tensor": _of_device,
            "torch._utils _rebuild_parameter_with_state": _parameter_with_state,
            "torch._tensor _rebuild_from_type": _from_type,
            "torch._tensor _rebuild_from_type_v2": _from_type,
            _NJT: _make_jagged,
        },
        cost=1024,
    ),
    **{f"torch {scheme}": Global(f"torch.{scheme}") for scheme in _QSCHEMES.split()},  # a state would stay in an Opaque
    **table({"torch.serialization _get_layout": _layout, "numpy dtype": _dtype}),
    "numpy ndarray": Global("numpy.ndarray"),
    **_NUMPY,
    **{name.replace(".core.", "._core."): known for name, known in _NUMPY.items()},  # since numpy 2
    # TorchScript writes typed lists and tagged values through these
    **table(dict.fromkeys((f"torch.jit._pickle build_{kind}list" for kind in _TYPED), lambda items=(): items)),
    **table({"torch.jit._pickle restore_type_tag": lambda value, _="": value}),
}
