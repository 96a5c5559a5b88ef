"""Arrays in a file of joblib, whose bytes lie between the opcodes of the pickle.

    an object of joblib.numpy_pickle.NumpyArrayWrapper, with its state: subclass, shape, order, dtype, and
    numpy_array_alignment_bytes since joblib 1.2
    u8       since then: bytes of padding, which follow
    bytes    the elements in that order; of an array of objects a pickle of its own instead

Source: joblib/numpy_pickle.py (joblib 1.6).
"""

from __future__ import annotations

import re
from functools import partial
from math import prod
from typing import Any

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, TruncatedError
from statedict.io.source import BytesSource, swap_bytes
from statedict.pickles.constructors import Pending
from statedict.pickles.machine import Interlude, load
from statedict.pickles.objects import Global
from statedict.pickles.tables import DATA, NumpyType, array
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource

_MOST = 1 << 20  # bytes of elements that are no numbers, which are kept
_SIZES = {"U": 4, "S": 1, "V": 1, "M": 1, "m": 1, "a": 1}


def make_constructors(source: ByteSource) -> dict[str, Global]:
    """The row of the table for the arrays in the pickle that a source is."""
    build = partial(_Wrapper, BY_NAME["uint8"], (0,), Storage(source, 0, 0))
    return {"joblib.numpy_pickle NumpyArrayWrapper": Global("joblib.numpy_pickle.NumpyArrayWrapper", build, cost=1024)}


class _Wrapper(Pending):
    __slots__ = ()

    def set_state(self, state: Any) -> Any:
        raise Interlude(partial(_read, self.storage.source, state))


def _read(source: ByteSource, state: Any, data: Any, position: int) -> tuple[Any, int]:
    """The array whose bytes begin at a position, and where the pickle goes on."""
    state = state if isinstance(state, dict) else {}
    kind, shape, order = state.get("dtype"), state.get("shape"), state.get("order")
    if not isinstance(kind, NumpyType) or type(shape) is not tuple or order not in ("C", "F"):
        raise CorruptFileError("an array of joblib without a dtype, a shape or an order")
    if any(type(n) is not int or n < 0 for n in shape):
        raise CorruptFileError("an array of joblib whose shape is not made of sizes")
    if kind.code.startswith("O"):
        items, end = load(data, DATA, None, source.name, position)
        return items, end
    if state.get("numpy_array_alignment_bytes") is not None:
        position += 1 + data[position]
    itemsize = kind.kind.itemsize if kind.kind else _measure(kind.code)
    if fault := find_shape_fault(shape, itemsize):
        raise CorruptFileError(f"an array of joblib of shape {str(shape)[:200]}: {fault}")
    end = position + prod(shape) * itemsize
    if end > len(data):
        raise TruncatedError(f"an array of {end - position:,} bytes goes past the end of the file")
    if kind.kind is None:
        raw = bytes(data[position:end]) if end - position <= _MOST else b""
        return array(raw, kind, shape, order), end
    storage = Storage(source, position, end - position)
    if kind.order == ">":
        storage = Storage(swap_bytes(source, position, end - position, kind.kind), 0, end - position)
    strides = contiguous_strides(shape[::-1])[::-1] if order == "F" and len(shape) > 1 and 0 not in shape else None
    return LazyTensor(kind.kind, shape, storage, 0, strides, ndarray=True), end


def _measure(code: str) -> int:
    """Bytes of an element that is no number."""
    found = re.fullmatch(r"([USVMma])(\d{1,9})", code)
    if not found:
        raise CorruptFileError(f"an array of joblib of the dtype {code:.40}, whose size is unknown")
    return _SIZES[found[1]] * int(found[2])


def list_arrays(data: bytes, name: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]], int]:
    """The ranges of the arrays between the opcodes, those among them that are pickles, and the end of the pickle."""
    places, pickles = list[tuple[int, int]](), list[tuple[int, int]]()
    source = BytesSource(data, name)

    def follow(state: Any, memory: Any, position: int) -> tuple[Any, int]:
        value, end = _read(source, state, memory, position)
        places.append((position, end))
        if str(getattr(state["dtype"], "code", "")).startswith("O"):
            pickles.append((position, end))
        return value, end

    class Noting(_Wrapper):
        __slots__ = ()

        def set_state(self, state: Any) -> Any:
            raise Interlude(partial(follow, state))

    build = partial(Noting, BY_NAME["uint8"], (0,), Storage(source, 0, 0))
    noting = {
        "joblib.numpy_pickle NumpyArrayWrapper": Global("joblib.numpy_pickle.NumpyArrayWrapper", build, cost=1024)
    }
    return places, pickles, load(data, DATA | noting, None, name)[1]


def find_memory(source: ByteSource) -> Any:
    """The file mapped, of which only what is used is read, if it begins as one of joblib."""
    head = bytes(source.read(0, min(source.size, 1 << 16)))
    view = source.view() if b"joblib.numpy_pickle" in head and not isinstance(source, BytesSource) else None
    return None if view is None or len(view) != source.size else view.obj
