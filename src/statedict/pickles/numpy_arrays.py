"""numpy's arrays, scalars and dtypes as a pickle describes them.

    dtype("f4", False, True) with state (version, "<", …)             one of ours, where it has a counterpart
    scalar(dtype, bytes)                                               a Python number
    _reconstruct(ndarray, (0,), b"b") with state (version, shape, dtype, is_fortran, bytes)
    _frombuffer(bytes, dtype, shape, order, axes)                      since protocol 5; axes since numpy 2.4, for
                                                                       order "K": (2, 0, 1) as `transpose` takes them

A class may stand for the code of a dtype (ml_dtypes, records). An array of numbers becomes a LazyTensor over the bytes
in the pickle; any other stays an Opaque.
Source: numpy/_core/src/multiarray/methods.c and descriptor.c (numpy 2.4), `array_reduce` and `arraydescr_reduce`;
numpy/_core/numeric.py, `_frombuffer`.
"""

from __future__ import annotations

import struct

from statedict.dtypes import BY_NAME, DType, labelled_dtype
from statedict.errors import CorruptFileError
from statedict.io.source import BytesSource, swap_bytes
from statedict.pickles.budget import OBJECT
from statedict.pickles.constructors import Pending
from statedict.pickles.objects import Global
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

IN_PICKLE = "pickle"  # the name of the source of an array
# numpy's code → our dtype, the format of one element for `struct`
_CODES: dict[str, tuple[str, str]] = {
    "f2": ("float16", "e"), "f4": ("float32", "f"), "f8": ("float64", "d"), "b1": ("bool", "?"),
    "i1": ("int8", "b"), "i2": ("int16", "h"), "i4": ("int32", "i"), "i8": ("int64", "q"),
    "u1": ("uint8", "B"), "u2": ("uint16", "H"), "u4": ("uint32", "I"), "u8": ("uint64", "Q"),
    "c8": ("complex64", "ff"), "c16": ("complex128", "dd"),
}  # fmt: skip


class NumpyType(Opaque):
    """A numpy dtype: its code or its class, its byte order and, for numbers, our dtype."""

    __slots__ = ("code", "kind", "label", "order")

    def __init__(self, code: str, kind: DType | None = None) -> None:
        super().__init__("numpy.dtype", (code,))
        self.code, self.order = code, "<"
        self.kind = BY_NAME[_CODES[code][0]] if code in _CODES else kind
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
        made = array(raw, kind, shape, "F" if fortran else "C")
        return made if isinstance(made, Opaque) else self.become(made)


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
    return LazyTensor(kind.kind, shape, Storage(BytesSource(raw, IN_PICKLE), 0, len(raw)), 0, strides)


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
    made = array(raw, kind, shape, order)
    if order != "K" or axes is None or isinstance(made, Opaque):
        return made
    if type(axes) is not tuple or {*map(type, axes)} - {int} or sorted(axes) != [*range(len(shape))]:
        raise CorruptFileError("a numpy array whose axes are not a permutation")
    steps = contiguous_strides(shape)
    shape, strides = tuple(shape[axis] for axis in axes), tuple(steps[axis] for axis in axes)
    return made.replace(shape=shape, strides=None if strides == contiguous_strides(shape) else strides)


def _dtype(code: Any, align: Any = False, copy: Any = False) -> NumpyType:
    if type(code) is Global:
        found = BY_NAME.get(code.name.removeprefix("ml_dtypes."))
        return NumpyType(code.name, found if found is not None and found.itemsize else None)
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
    if kind.kind is None or kind.code not in _CODES or type(raw) is not bytes:
        kind.label = kind.label or f"numpy scalar of {kind.code}"
        return Opaque(kind.label, (raw,))
    if len(raw) != kind.kind.itemsize:
        raise CorruptFileError(f"a numpy scalar of dtype {kind.code} has {len(raw):,} bytes")
    numbers = struct.unpack(kind.order + _CODES[kind.code][1], raw)
    return complex(*numbers) if len(numbers) == 2 else numbers[0]


def _of_core(module: str, name: str, build: Callable[..., Any], cost: int = OBJECT) -> dict[str, Global]:
    """A function under the names of its module in numpy 1 and 2."""
    function = Global(f"numpy.core.{module}.{name}", build, cost=cost)
    return dict.fromkeys((f"numpy.{core}.{module} {name}" for core in ("core", "_core")), function)


NUMPY: dict[str, Any] = {
    "numpy dtype": Global("numpy.dtype", _dtype),
    "numpy ndarray": Global("numpy.ndarray"),
    **_of_core("multiarray", "_reconstruct", _reconstruct, 1024),
    **_of_core("multiarray", "scalar", _scalar),
    **_of_core("numeric", "_frombuffer", _frombuffer, 1024),
}
