r"""A `.npy` file: one array of NumPy, or several that were saved one after the other.

    6 bytes    \x93NUMPY
    2 bytes    version: 1.0, 2.0 or 3.0
    u16        length of the header, of version 1; u32 of the others; little-endian
    header     a dict in Python's syntax: descr, fortran_order, shape; Latin-1, of version 3 UTF-8; then spaces, \n
    data       the elements row-major, or column-major

`descr` is a code (`<f4`: byte order, kind, bytes of an element), or a list of fields: (name, descr, shape). What an
array becomes:

    numbers                a tensor
    several fields         a dict with a tensor for each
    text, bytes (U, S)     nested lists
    bytes of a size (V2)   a tensor of `raw` elements: NumPy writes the dtypes of ml_dtypes so, and drops their names
    dates and objects      an `Opaque`; an array of objects is a pickle, which is not read

One array is under the empty key, several are `arr_0`, `arr_1` …, as in an archive.

Source: numpy/lib/_format_impl.py (NumPy 2.4). Limits: a header of 64 KiB (NumPy's own default is 10,000 characters);
text of 64 MiB.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from math import prod

from statedict.dtypes import BY_CODE, LONG, labelled_dtype
from statedict.errors import CorruptFileError, FormatError, LimitError, TruncatedError, UnsupportedError
from statedict.formats.numpy.literal import parse_literal
from statedict.io.source import ComputedSource, swap_bytes
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.checks import Check, Problem, tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

MAGIC = b"\x93NUMPY"
_LENGTHS = {1: 2, 2: 4, 3: 4}  # version → bytes of the length of the header
_FIRST = 256  # bytes that mostly hold a header
_MAX_HEADER = 1 << 16
_MAX_TEXT = 64 << 20
_CODE = re.compile(r"([<>|=]?)([a-zA-Z?])(\d*)(\[\w+\])?")
_NAMES = {"M": "datetime64", "m": "timedelta64", "O": "objects"}


def read(source: ByteSource) -> Any:
    """Read the arrays in a file lazily."""
    arrays = [array for _, array, _ in _read_all(source)]
    if len(arrays) > 1:
        return StateDict({f"arr_{index}": array for index, array in enumerate(arrays)})
    return arrays[0] if isinstance(arrays[0], StateDict) else StateDict({"": arrays[0]})


def checks(source: ByteSource) -> Iterator[Found]:
    """List the arrays, and what follows them."""
    tree = read(source)
    paths = {id(tensor): path for path, tensor in tensors_of(tree)}
    end = 0
    for index, (begin, array, end) in enumerate(_read_all(source)):
        found = tuple((paths.get(id(t), name), t) for name, t in tensors_of(array))
        yield Check(f"arr_{index}" if begin or end < source.size else "array", source, begin, end - begin, found)
    if end < source.size:
        what = f"{source.size - end:,} bytes follow the array, which NumPy ignores"
        yield Problem("", what, remedy="save the array again to drop them")


def _read_all(source: ByteSource) -> Iterator[tuple[int, Any, int]]:
    """Begin, array and end of each array in a file."""
    end, more = 0, True
    while more:
        begin = end
        array, end = read_array(source, begin)
        yield begin, array, end
        more = source.size - end > len(MAGIC) and bytes(source.read(end, len(MAGIC))) == MAGIC


def read_array(source: ByteSource, begin: int = 0, head: bytes = b"", where: str = "") -> tuple[Any, int]:
    """What the array at a byte of a source becomes, and where its data end.

    Args:
        source: the file, or the member of an archive.
        begin: the byte.
        head: bytes from there on, if they were read before.
        where: names the array in messages; by default the source.

    Raises:
        CorruptFileError: it is damaged, or cut short.
        LimitError: its header is too long.
    """
    where = where or source.name
    header, start = _read_header(source, begin, head, where)
    try:
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{where}: its header has no {error}; the file is damaged") from error
    if type(fortran) is not bool or type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise CorruptFileError(f"{where}: its header has fortran_order={fortran!r:.40} and shape={shape!r:.80}")
    if type(descr) is str and _CODE.fullmatch(descr) and _CODE.fullmatch(descr)[2] == "O":  # type: ignore[index]
        return Opaque(f"numpy.ndarray of {_NAMES['O']}", (shape,)), source.size
    size = _count_bytes(descr, where)
    if fault := find_shape_fault(shape, size):
        raise CorruptFileError(f"{where}: an array of shape {str(shape)[:100]}: {fault}")
    nbytes = prod(shape) * size
    if start + nbytes > source.size:
        raise TruncatedError(
            f"{where}: its data, bytes {start:,} to {start + nbytes:,}, lie past the end ({source.size:,} bytes); "
            "the file looks truncated, fetch it again"
        )
    strides = contiguous_strides(shape[::-1])[::-1] if fortran and len(shape) > 1 and nbytes else None
    if type(descr) is list:
        return _split_fields(source, start, descr, shape, strides, where), start + nbytes
    return _make(source, start, nbytes, descr, shape, strides, where), start + nbytes


def _read_header(source: ByteSource, begin: int, head: bytes, where: str) -> tuple[Any, int]:
    """The header, and where the data begin."""
    head = head or bytes(source.read(begin, min(_FIRST, source.size - begin)))
    width = _LENGTHS.get(head[6], 0) if len(head) > 7 else 0
    if not width or head[7]:
        if len(head) > 7:
            version = f"{head[6]}.{head[7]}"
            raise FormatError(f"{where}: a .npy file of version {version}; a newer version of statedict may read it")
        raise TruncatedError(f"{where}: ends within its header; the file looks truncated, fetch it again")
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = begin + 8 + width + length
    if length > _MAX_HEADER:
        raise LimitError(f"{where}: a header of {length:,} bytes, over {_MAX_HEADER:,}; the file is damaged or forged")
    if start > source.size:
        raise TruncatedError(f"{where}: ends within its header; the file looks truncated, fetch it again")
    if len(head) < start - begin:
        head = bytes(source.read(begin, start - begin))
    text = head[8 + width : start - begin]
    try:
        return parse_literal(text.decode("utf-8" if head[6] == 3 else "latin-1")), start
    except (ValueError, TypeError, OverflowError) as error:
        why = f"is not a dict of Python ({error})"
        raise CorruptFileError(f"{where}: its header {text[:60]!r} {why}; the file is damaged") from error


def _parse_code(code: Any, where: str) -> tuple[str, str, int]:
    """Byte order, kind and size of the elements of a code."""
    match = _CODE.fullmatch(code) if type(code) is str else None
    if match is None or len(match[3]) > 9:
        raise CorruptFileError(f"{where}: no dtype of NumPy is called {code!r:.60}; the file is damaged")
    order, kind, size = match[1], match[2], int(match[3] or 1)
    return ("<" if order in ("", "=", "|") else order), kind, 4 * size if kind == "U" else size


def _count_bytes(descr: Any, where: str, depth: int = 0) -> int:
    """Bytes of an element."""
    if type(descr) is not list:
        return _parse_code(descr, where)[2]
    if depth > 20:
        raise LimitError(f"{where}: fields within fields, over 20 deep; the file is damaged or forged")
    return sum(_count_bytes(below, where, depth + 1) * prod(sizes) for _, below, sizes in _fields(descr, where))


def _fields(descr: list[Any], where: str) -> list[tuple[str, Any, tuple[int, ...]]]:
    """Name, descr and shape of each field; names that are empty stand for gaps."""
    found: list[tuple[str, Any, tuple[int, ...]]] = []
    for field in descr:
        if type(field) is not tuple or len(field) not in (2, 3):
            raise CorruptFileError(f"{where}: {field!r:.60} is no field of a dtype; the file is damaged")
        name, below, shape = (*field, ())[:3]
        name = name[1] if type(name) is tuple and len(name) == 2 else name  # with a title before it
        shape = (shape,) if type(shape) is int else shape
        sizes = type(shape) is tuple and all(type(n) is int and 0 <= n < 1 << 40 for n in shape) and len(shape) < 64
        if type(name) is not str or not sizes or type(below) not in (str, list):
            raise CorruptFileError(f"{where}: {field!r:.60} is no field of a dtype; the file is damaged")
        found.append((name, below, shape))
    names = [name for name, *_ in found if name]
    if len(set(names)) != len(names):
        raise CorruptFileError(f"{where}: two of its fields have one name; the file is damaged")
    return found


def _split_fields(
    source: ByteSource, start: int, descr: list[Any], shape: Any, strides: Any, where: str, above: Any = None
) -> StateDict:
    """A dict with what each field becomes; `above` is the size of a record around it, and where the fields begin."""
    step, at = above or (_count_bytes(descr, where), 0)
    tree = StateDict()
    for name, below, sizes in _fields(descr, where):
        size = _count_bytes(below, where)
        if type(below) is list and not sizes:
            tree[name] = _split_fields(source, start, below, shape, strides, where, (step, at))
        elif type(below) is list:
            tree[name] = Opaque("numpy.ndarray of fields in fields", ((*shape, *sizes),))
        elif name or _parse_code(below, where)[1] != "V":
            length = size * prod(sizes)
            nbytes = prod(shape) * length
            column = ComputedSource(nbytes, partial(_copy_column, source, start + at, step, length), where)
            inner = contiguous_strides(sizes)
            laid = None if strides is None else (*(n * prod(sizes) for n in strides), *inner)
            tree[name] = _make(column, 0, nbytes, below, (*shape, *sizes), laid, f"{where}: field {name!r}")
        at += size * prod(sizes)
    return tree


def _copy_column(source: ByteSource, start: int, step: int, length: int, offset: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes from an offset on of what lies in each record at one place."""
    import numpy

    if not len(buffer):
        return
    first, within = divmod(offset, length)
    count = -(-(within + len(buffer)) // length)
    data = source.read(start + first * step, (count - 1) * step + length)
    rows = numpy.ndarray((count, length), "u1", data, 0, (step, 1))
    buffer[:] = numpy.ascontiguousarray(rows).reshape(-1)[within : within + len(buffer)].data


def _make(source: ByteSource, start: int, nbytes: int, code: Any, shape: Any, strides: Any, where: str) -> Any:
    """What an array of one dtype becomes."""
    order, kind, size = _parse_code(code, where)
    known = find_dtype(kind, size)
    if kind in "SU":
        return _make_text(source, start, nbytes, order, kind, size, shape, strides, where)
    if known is None or not size:
        return Opaque(f"numpy.ndarray of {_NAMES.get(kind, code)}", (shape,))
    if order == ">":
        source, start = swap_bytes(source, start, nbytes, known), 0
    return LazyTensor(known, shape, Storage(source, start, nbytes), 0, strides)


def find_dtype(kind: str, size: int) -> DType | None:
    """The dtype of a kind and size of NumPy's; None if its elements are not numbers or bytes.

    >>> find_dtype("f", 4), find_dtype("M", 8)
    (dtype('float32'), None)
    """
    code = f"{kind}{size}".replace("?1", "b1")
    if code in BY_CODE:
        return BY_CODE[code]
    if kind in "fcV" and size:  # the longer floats of a machine, and bytes without a name
        return labelled_dtype({"V": f"V{size}", "f": f"float{8 * size}", "c": f"complex{8 * size}"}[kind], 8 * size)
    return None


def _make_text(
    source: ByteSource, start: int, nbytes: int, order: str, kind: str, size: int, shape: Any, strides: Any, where: str
) -> Any:
    """Text as nested lists; an Opaque if it is long."""
    import numpy

    if nbytes > _MAX_TEXT:
        return Opaque(f"numpy.ndarray of text, {nbytes:,} bytes", (shape,))
    if not size:  # only empty texts
        array = numpy.zeros(prod(shape), f"{kind}1")
    elif kind == "S":
        array = numpy.frombuffer(bytes(source.read(start, nbytes)), f"S{size}")
    else:
        points = numpy.frombuffer(source.read(start, nbytes), f"{order}u4")
        if nbytes and points.max() > sys.maxunicode:
            raise CorruptFileError(f"{where}: its text has a character {points.max():#x}; the file is damaged")
        array = points.astype("u4").view(f"U{size // 4}")
    return (array.reshape(shape) if strides is None else array.reshape(shape[::-1]).transpose()).tolist()


def encode_header(tensor: LazyTensor) -> bytes:
    """What stands before the data of a row-major tensor; the data begin at a multiple of 64 bytes.

    Raises:
        UnsupportedError: its elements are not whole numbers of bytes.
    """
    kind = tensor.dtype
    if not kind.itemsize:
        raise UnsupportedError(f"{tensor!r}: NumPy has no elements of {kind.bits} bits; convert it first")
    code = CODES.get(kind.name, f"V{kind.itemsize}")
    order = "|" if code[0] == "V" or code[1:] == "1" else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {tensor.shape}, }}".encode()
    width, version = (2, 1) if len(text) < 65_000 else (4, 2)
    text += b" " * (-(8 + width + len(text) + 1) % 64) + b"\n"
    return MAGIC + bytes((version, 0)) + len(text).to_bytes(width, "little") + text


CODES = {kind.name: code for code, kind in BY_CODE.items()} | LONG
"""The dtypes that NumPy has itself, and their codes."""
