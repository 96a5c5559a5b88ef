"""The one dtype table, from which all other vocabularies derive.

A row names a dtype as PyTorch does and says what others call it. `bits` is the size of one element. PyTorch's packed
dtypes count bytes: an element of `float4_e2m1fn_x2` is one byte that holds two numbers. A dtype without a row has the
kind `raw`: a label on bytes, made by `labelled_dtype`; if its `bits` are 0, a tensor covers its whole storage.

Sources: torch.storage._dtype_to_storage_type_map and _new_dtypes (PyTorch 2.15), the `Dtype` enum of safetensors 0.8,
ml_dtypes 0.6.
"""

from __future__ import annotations

import re
import sys
from weakref import WeakValueDictionary

from statedict.errors import FormatError, MissingExtraError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import numpy

# name                 bits kind       numpy                 safetensors    torch storage    other names
_ROWS: tuple[tuple[str, int, str, str, str, str, tuple[str, ...]], ...] = (
    ("float64", 64, "float", "float64", "F64", "DoubleStorage", ("double", "fp64")),
    ("float32", 32, "float", "float32", "F32", "FloatStorage", ("float", "fp32")),
    ("float16", 16, "float", "float16", "F16", "HalfStorage", ("half", "fp16")),
    ("bfloat16", 16, "float", "ml:bfloat16", "BF16", "BFloat16Storage", ("bf16",)),
    ("int64", 64, "int", "int64", "I64", "LongStorage", ("long",)),
    ("int32", 32, "int", "int32", "I32", "IntStorage", ("int",)),
    ("int16", 16, "int", "int16", "I16", "ShortStorage", ("short",)),
    ("int8", 8, "int", "int8", "I8", "CharStorage", ()),
    ("uint64", 64, "uint", "uint64", "U64", "", ()),
    ("uint32", 32, "uint", "uint32", "U32", "", ()),
    ("uint16", 16, "uint", "uint16", "U16", "", ()),
    ("uint8", 8, "uint", "uint8", "U8", "ByteStorage", ()),
    ("bool", 8, "bool", "bool", "BOOL", "BoolStorage", ()),
    ("complex128", 128, "complex", "complex128", "", "ComplexDoubleStorage", ("cdouble",)),
    ("complex64", 64, "complex", "complex64", "C64", "ComplexFloatStorage", ("cfloat",)),
    ("complex32", 32, "complex", "ml:complex32", "", "", ("chalf",)),
    ("bcomplex32", 32, "complex", "ml:bcomplex32", "", "", ()),
    ("float8_e4m3fn", 8, "float", "ml:float8_e4m3fn", "F8_E4M3", "", ("fp8", "fp8_e4m3")),
    ("float8_e5m2", 8, "float", "ml:float8_e5m2", "F8_E5M2", "", ("fp8_e5m2",)),
    ("float8_e4m3fnuz", 8, "float", "ml:float8_e4m3fnuz", "F8_E4M3FNUZ", "", ()),
    ("float8_e5m2fnuz", 8, "float", "ml:float8_e5m2fnuz", "F8_E5M2FNUZ", "", ()),
    ("float8_e8m0fnu", 8, "float", "ml:float8_e8m0fnu", "F8_E8M0", "", ("fp8_e8m0",)),
    ("float4_e2m1fn_x2", 8, "float", "uint8", "F4", "", ("fp4",)),
    ("float6_e2m3fn", 6, "float", "", "F6_E2M3", "", ()),
    ("float6_e3m2fn", 6, "float", "", "F6_E3M2", "", ()),
    ("qint8", 8, "quantized", "int8", "", "QInt8Storage", ()),
    ("quint8", 8, "quantized", "uint8", "", "QUInt8Storage", ()),
    ("qint32", 32, "quantized", "int32", "", "QInt32Storage", ()),
    ("quint4x2", 8, "quantized", "uint8", "", "QUInt4x2Storage", ()),
    ("quint2x4", 8, "quantized", "uint8", "", "QUInt2x4Storage", ()),
    ("bits8", 8, "bits", "uint8", "", "", ()),
    ("bits16", 16, "bits", "uint16", "", "", ()),
    ("bits1x8", 8, "bits", "uint8", "", "", ()),
    ("bits2x4", 8, "bits", "uint8", "", "", ()),
    ("bits4x2", 8, "bits", "uint8", "", "", ()),
)


def import_torch() -> Any:
    """Import PyTorch, or raise a MissingExtraError."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("this takes PyTorch; install it by: pip install 'statedict[torch]'") from error
    return torch


class DType:
    """One row of the dtype table.

    Attributes:
        name: PyTorch's name, `"bfloat16"`.
        bits: bits of one element; 0 if unknown.
        itemsize: bytes of one element; 0 if that is not a whole number.
        kind: `float`, `int`, `uint`, `bool`, `complex`, `quantized`, `bits`, or `raw` for a name without a row.
        safetensors: the code in a safetensors header; empty if that format has none.
        storage: PyTorch's typed storage class; empty for newer dtypes.

    There is one object for each dtype. It also equals its `name`, and the `torch.dtype`, numpy dtype and numpy scalar
    type of that name, but no alias such as `"fp32"`. It has the hash of its name, so in dicts and sets names find it;
    dtypes of PyTorch and numpy have other hashes: compare those by `==`.

    >>> import numpy, statedict
    >>> statedict.dtype("bf16").itemsize
    2
    >>> statedict.dtype("fp32") == "float32" == numpy.dtype("float32")
    True
    """

    __slots__ = ("__weakref__", "_numpy", "_numpy_name", "bits", "itemsize", "kind", "name", "safetensors", "storage")

    def __init__(
        self, name: str, bits: int, kind: str, numpy: str = "", safetensors: str = "", storage: str = ""
    ) -> None:
        self.name, self.bits, self.kind = name, bits, kind
        self.itemsize = bits // 8 if bits % 8 == 0 else 0
        self.safetensors, self.storage = safetensors, storage
        self._numpy_name = numpy
        self._numpy: Any = None

    @property
    def numpy(self) -> numpy.dtype[Any]:
        """The numpy dtype with the same bytes, from ml_dtypes where numpy has none.

        Raises:
            UnsupportedError: numpy cannot address elements of this size.
        """
        if self._numpy is None:
            import numpy

            if not self._numpy_name:
                size = f"{self.bits} bits an element" if self.bits else "elements of an unknown size"
                raise UnsupportedError(f"numpy has no dtype for {self.name} ({size}); read its bytes with .raw()")
            kind: Any = self._numpy_name
            if kind.startswith("ml:"):
                import ml_dtypes

                kind = getattr(ml_dtypes, kind[3:], None)
                if kind is None:
                    raise UnsupportedError(
                        f"ml_dtypes {ml_dtypes.__version__} has no {self.name}; "
                        "pip install -U ml_dtypes, or read its bytes with .raw()"
                    )
            self._numpy = numpy.dtype(kind)
        return self._numpy  # type: ignore[no-any-return]

    @property
    def component(self) -> DType:
        """The dtype of the real and the imaginary part; itself if it is not complex."""
        return BY_NAME[_COMPONENTS.get(self.name, self.name)] if self.kind == "complex" else self

    @property
    def torch(self) -> Any:
        """The `torch.dtype` of the same name (imports torch).

        Raises:
            UnsupportedError: this PyTorch does not have it.
        """
        torch = import_torch()
        found = getattr(torch, self.name, None)
        if not isinstance(found, torch.dtype):
            raise UnsupportedError(f"torch {torch.__version__} has no dtype {self.name}; read its bytes with .raw()")
        return found

    def nbytes(self, numel: int) -> int:
        """Bytes that `numel` elements take, rounded up."""
        return (numel * self.bits + 7) // 8

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, DType):
            return False
        name = other if isinstance(other, str) else _foreign_name(other)
        return NotImplemented if name is None else self.name == name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"dtype({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind == "raw":
            return labelled_dtype, (self.name, self.bits, self.safetensors, self.storage)
        return dtype, (self.name,)


def _foreign_name(value: object) -> str | None:
    """Our name for a dtype of PyTorch, or of numpy in native byte order; None for anything else."""
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ == "dtype":
        return str(value).removeprefix("torch.")
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.dtype):
        return value.name if value.isnative else None
    if isinstance(value, type) and issubclass(value, numpy.generic):
        return value.__name__.removesuffix("_")  # numpy.bool_ before numpy 2
    return None


_COMPONENTS = {"complex32": "float16", "bcomplex32": "bfloat16", "complex64": "float32", "complex128": "float64"}
_LABELLED: WeakValueDictionary[tuple[str, int, str, str], DType] = WeakValueDictionary()
MAX_NAME = 100  # characters of a name that a file may have for a dtype
LONG = {"float96": "f12", "float128": "f16", "complex192": "c24", "complex256": "c32"}
"""NumPy's names of the longer floats of a machine, which are labels here, and its codes of them."""
_TORCH_DTYPE = re.compile(r"[a-z][a-z_]{0,40}[0-9][a-z0-9_]{0,40}", re.ASCII)
_TORCH_STORAGE = re.compile(r"[A-Z][A-Za-z0-9]{0,40}Storage", re.ASCII)

BY_NAME: dict[str, DType] = {row[0]: DType(*row[:6]) for row in _ROWS}
BY_SAFETENSORS: dict[str, DType] = {d.safetensors: d for d in BY_NAME.values() if d.safetensors}
BY_CODE: dict[str, DType] = {  # numpy's codes of the dtypes that it has itself, such as "f4", without a byte order
    f"{row[2][0]}{row[1] // 8}": BY_NAME[row[0]] for row in _ROWS if row[3] == row[0]
}
BY_STORAGE: dict[str, DType] = {d.storage: d for d in BY_NAME.values() if d.storage}
_BY_ANY_NAME: dict[str, DType] = BY_NAME | {alias: BY_NAME[row[0]] for row in _ROWS for alias in row[6]}


def labelled_dtype(name: str, bits: int = 0, safetensors: str = "", storage: str = "") -> DType:
    """The `raw` dtype of a name that has no row; arguments as of `DType`.

    >>> labelled_dtype("float8_e3m4", 8) is labelled_dtype("float8_e3m4", 8)
    True
    """
    key = name, bits, safetensors, storage
    kind = _LABELLED.get(key)
    if kind is None:
        kind = _LABELLED[key] = DType(name, bits, "raw", "", safetensors, storage)
    return kind


def is_torch_dtype(name: str) -> bool:
    """Whether a later PyTorch may have a dtype of this name: `float8_e3m4`, not `load`."""
    return _TORCH_DTYPE.fullmatch(name) is not None and name not in LONG


def is_torch_storage(name: str) -> bool:
    """Whether a PyTorch may have a typed storage class of this name: `HalfStorage`, not `load`."""
    return _TORCH_STORAGE.fullmatch(name) is not None


def dtype(name: object) -> DType:
    """The DType of a name or dtype.

    Args:
        name: `"bfloat16"`, `"bf16"`, `"torch.bfloat16"`, `"BF16"`, `numpy.dtype("<f4")`, `torch.float32`, a DType.

    Raises:
        FormatError: the name is unknown, and not a `torch.dtype`.

    >>> import statedict
    >>> statedict.dtype("torch.float32").name
    'float32'
    """
    if isinstance(name, DType):
        return name
    text = str(getattr(name, "name", None) or name).removeprefix("torch.")
    found = _BY_ANY_NAME.get(text) or BY_SAFETENSORS.get(text)
    if found is None and isinstance(name, type):
        import numpy

        found = _BY_ANY_NAME.get(numpy.dtype(name).name)
    if found is None and type(name).__module__ == "torch" and hasattr(name, "itemsize"):  # a new torch.dtype
        found = labelled_dtype(text, 8 * name.itemsize)
    if found is None:
        raise FormatError(f"unknown dtype {name!r}; known are {', '.join(BY_NAME)}")
    return found
