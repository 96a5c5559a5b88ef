"""A pickle writer for data: protocol 2, and no global beyond those that `torch.load(weights_only=True)` accepts.

Tensors become the calls that PyTorch writes:

    _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, OrderedDict())
    _rebuild_tensor_v3(the same, dtype)              for dtypes younger than the typed storages, known or not
    _rebuild_parameter(tensor, requires_grad, OrderedDict())
    _rebuild_parameter_with_state(tensor, requires_grad, OrderedDict(), attributes)
    _rebuild_from_type_v2(_rebuild_tensor_v2, torch.Tensor, its arguments, attributes)
    storage = persistent id ("storage", torch.FloatStorage, key, "cpu", number of elements)

An `Opaque` is written only if the caller lists its name, as for the records in the index of a distributed checkpoint.

Source: torch/_tensor.py `_reduce_ex_internal`, torch/_weights_only_unpickler.py (PyTorch 2.13). Limits: integers of up
to 255 bytes; a shared value (the same list in two places) is written twice.
"""

from __future__ import annotations

import warnings
from collections import Counter
from struct import Struct

from statedict.dtypes import DType, is_torch_dtype
from statedict.errors import CorruptFileError, TreeError, UnsupportedError
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.attributes import data_of, left_out_note
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tree.walk import MAX_DEPTH
from statedict.values import Device, MemberFlags, MemberName, Opaque, Size, device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Place = tuple[str, int, int, tuple[int, ...]]

_I4, _U4, _F8 = Struct("<i"), Struct("<I"), Struct(">d")


def dumps(
    tree: Any, place: Callable[[LazyTensor], Place], path: str = "", records: frozenset[str] = frozenset()
) -> bytes:
    """The pickle of a tree.

    Args:
        tree: dicts, lists, tuples, LazyTensors and plain values.
        place: returns a tensor's storage key, the storage's size and the tensor's offset in bytes, and its strides.
        path: of the root, in messages.
        records: names of objects to write: with a state by `__newobj__` and BUILD, without one as a call.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse; the message names its path.
        TreeError: the tree contains itself or is nested deeper than 200.
    """
    writer = _Writer(place, records)
    writer.value(tree, path)
    if writer.left_out:
        warnings.warn(left_out_note(writer.left_out), stacklevel=2)
    return b"\x80\x02" + b"".join(writer.out) + b"."


class _Writer:
    def __init__(self, place: Callable[[LazyTensor], Place], records: frozenset[str]) -> None:
        self.place, self.records = place, records
        self.out: list[bytes] = []
        self.memo: dict[str, bytes] = {}
        self.shapes: dict[tuple[int, ...], bytes] = {}
        self.tensors: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
        self.written: dict[int, bytes] = {}
        self.left_out: list[str] = []  # attributes of tensors
        self.bare = False  # whether tensors are written without their attributes, as those in attributes are
        self.depth = 0

    def value(self, value: Any, path: str) -> None:
        write = _VALUES.get(type(value)) or next((w for kind, w in _SUBCLASSES if isinstance(value, kind)), None)
        if write is None:
            raise _refuse_object(value, path)
        nested = write in _NESTED
        self.depth += nested
        if self.depth > MAX_DEPTH:
            raise TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}, or the tree contains itself")
        write(self, value, path)
        self.depth -= nested

    def refer(self, name: str) -> bytes:
        """A global: in full the first time, then from the memo."""
        if name in self.memo:
            return self.memo[name]
        module, _, attribute = name.rpartition(".")
        return self.define(name, b"c" + module.encode() + b"\n" + attribute.encode() + b"\n")

    def define(self, name: str, out: bytes) -> bytes:
        """Something in full, with a place in the memo for later."""
        index = len(self.memo)
        self.memo[name] = b"h" + bytes([index]) if index < 256 else b"j" + _U4.pack(index)
        return out + (b"q" + bytes([index]) if index < 256 else b"r" + _U4.pack(index))

    def call(self, name: str, *args: Any) -> None:
        self.out.append(self.refer(name))
        self.sequence(args, "")
        self.out.append(b"R")

    def tensor(self, tensor: LazyTensor, path: str) -> None:
        key, size, offset, strides = self.place(tensor)
        kind = tensor.dtype
        if isinstance(tensor, Labelled):
            offset, strides = tensor.first, tensor.stride()
        noted = self.attributes(tensor, path) if tensor.attributes and not self.bare else {}
        alike = (kind.name, size, offset, tensor.shape, strides, tensor.requires_grad, tensor.parameter)
        known = self.tensors.get(alike)
        if known is not None and not noted:
            self.out += (known[0], _text(key), known[1])
            return
        if fault := find_shape_fault(tensor.shape, kind.itemsize or 1):
            raise _refusal(path, f"a tensor of {fault}; it could not be read again")
        later = kind.kind == "raw" and not kind.safetensors and (bool(kind.storage) or is_torch_dtype(kind.name))
        if not (kind.itemsize or isinstance(tensor, Labelled)) or (kind.kind == "raw" and not later):
            raise _refusal(path, f"PyTorch has no dtype {kind}; save it as .safetensors")
        if kind.kind == "quantized":
            raise _refusal(path, f"a bare {kind} tensor lacks its scale; save its integers, scale and zero point")
        refer, defined = self.refer, len(self.memo)
        grad, young, wrapper = b"\x88" if tensor.requires_grad else b"\x89", not kind.storage, ""
        if tensor.parameter:
            wrapper = "torch._utils._rebuild_parameter" + "_with_state" * bool(noted)
        elif noted:
            wrapper = "torch._tensor._rebuild_from_type_v2"
        typed = bool(noted) and not tensor.parameter
        head = (
            (refer(wrapper) + b"(" if wrapper else b"")
            + refer("torch._utils._rebuild_tensor_v3" if young else "torch._utils._rebuild_tensor_v2")
            + (refer("torch.Tensor") if typed else b"")
            + (b"((" + _text("storage"))
            + refer("torch.storage.UntypedStorage" if young else f"torch.{kind.storage}")
        )
        tail = (
            (_text("cpu") + _int(size if young else size // kind.itemsize) + b"tQ")
            + (_int(offset // (kind.itemsize or 1)) + self.ints(tensor.shape) + self.ints(strides))
            + (b"\x89" if tensor.parameter else grad)
            + (refer("collections.OrderedDict") + b")R")
            + (refer(f"torch.{kind.name}") if young else b"")
            + (b"t" if typed else b"tR")
            + (grad + refer("collections.OrderedDict") + b")R" if tensor.parameter else b"")
            + (b"tR" if tensor.parameter and not noted else b"")
        )
        self.out += (head, _text(key), tail)
        if noted:
            self.bare = True
            self.value(noted, path)
            self.bare = False
            self.out.append(b"tR")
        elif len(self.memo) == defined:  # no global is in full here
            self.tensors[alike] = head, tail

    def attributes(self, tensor: LazyTensor, path: str) -> dict[str, Any]:
        """The attributes that the file keeps: data that `torch.load(weights_only=True)` accepts."""
        assert tensor.attributes is not None
        data: dict[str, Any] = {}
        for name, value in data_of(tensor.attributes).items():
            trial = _Writer(self.place, frozenset())
            trial.bare = True
            try:
                trial.value(value, name)
            except (UnsupportedError, TreeError):
                continue
            data[name] = value
        self.left_out += [f"{path}.{name}" for name in tensor.attributes if name not in data]
        return data

    def ints(self, numbers: tuple[int, ...]) -> bytes:
        known = self.shapes.get(numbers)
        if known is None:
            begin, end = _tuple_ends(len(numbers))
            known = self.shapes[numbers] = begin + b"".join(map(_int, numbers)) + end
        return known

    def record(self, value: Opaque, path: str) -> None:
        if value.name not in self.records:
            raise _refuse_object(value, path)
        known = self.written.get(id(value))
        if known is not None:
            self.out.append(known)
            return
        start, defined = len(self.out), len(self.memo)
        self.out.append(self.refer(value.name))
        self.sequence(value.args, path)
        if type(value.state) is dict:
            self.out.append(b"\x81}(")
            for name, field in value.state.items():
                self.out.append(self.memo.get(name) or self.define(name, _text(name)))
                self.value(field, path)
            self.out.append(b"ub")
        elif value.state is not None:
            self.out.append(b"\x81")
            self.value(value.state, path)
            self.out.append(b"b")
        else:
            self.out.append(b"R")
        if len(self.memo) == defined:  # nothing is in full here
            whole = self.written[id(value)] = b"".join(self.out[start:])
            self.out[start:] = [whole]

    def dict(self, items: Any, path: str) -> None:
        metadata = getattr(items, "_metadata", None)
        self.out.append(b"}" if metadata is None else self.refer("collections.OrderedDict") + b")R")
        if items:
            self.out.append(b"(")
            dot = path + "." if path else ""
            for key, value in items.items():
                if type(key) is str:
                    self.out.append(_text(key))
                else:
                    self.value(key, f"{dot}{key} (the key)")
                self.value(value, f"{dot}{key}")
            self.out.append(b"u")
        if metadata is not None:
            self.value({"_metadata": metadata}, path)
            self.out.append(b"b")

    def sequence(self, items: Any, path: str) -> None:
        if type(items) is list:
            begin, end = (b"](", b"e") if items else (b"]", b"")
        else:
            begin, end = _tuple_ends(len(items))
        self.out.append(begin)
        dot = path + "." if path else ""
        for index, value in enumerate(items):
            self.value(value, f"{dot}{index}")
        self.out.append(end)

    def int(self, value: int, path: str) -> None:
        try:
            self.out.append(_int(value))
        except OverflowError:
            raise _refusal(path, "an integer of over 255 bytes; torch.load cannot read it") from None

    def dtype(self, value: DType, path: str) -> None:
        if value.kind == "raw" and not is_torch_dtype(value.name):
            raise _refusal(path, f"PyTorch has no dtype {value}; drop it, or save as .safetensors")
        self.out.append(self.refer(f"torch.{value.name}"))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + _U4.pack(len(raw)) + raw


def _int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + value.to_bytes(2, "little")
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + _I4.pack(value)
    raw = value.to_bytes(((value if value >= 0 else ~value).bit_length() >> 3) + 1, "little", signed=True)
    if len(raw) > 255:
        raise OverflowError
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple_ends(count: int) -> tuple[bytes, bytes]:
    return (b"", (b")", b"\x85", b"\x86", b"\x87")[count]) if count <= 3 else (b"(", b"t")


def _refusal(path: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{path or 'the root'}: {why}")


def _refuse_object(value: Any, path: str) -> UnsupportedError:
    what, remedy = f"a {type(value).__qualname__}", " after converting it"
    if isinstance(value, Opaque):
        what, remedy = f"an object of class {value.name}", ", which keeps it as a label"
    why = f"{what} is not data that torch.load(weights_only=True) accepts"
    return _refusal(path, f"{why}; drop it, or save as .safetensors{remedy}")


_VALUES: dict[type, Callable[[_Writer, Any, str], None]] = {
    type(None): lambda w, v, p: w.out.append(b"N"),
    bool: lambda w, v, p: w.out.append(b"\x88" if v else b"\x89"),
    int: _Writer.int,
    float: lambda w, v, p: w.out.append(b"G" + _F8.pack(v)),
    str: lambda w, v, p: w.out.append(_text(v)),
    MemberName: lambda w, v, p: w.out.append(_text(v)),
    MemberFlags: _Writer.int,
    bytes: lambda w, v, p: w.call("_codecs.encode", v.decode("latin1"), "latin1"),
    bytearray: lambda w, v, p: w.call("builtins.bytearray", bytes(v)),
    complex: lambda w, v, p: w.call("builtins.complex", v.real, v.imag),
    Size: lambda w, v, p: w.call("torch.Size", tuple(v)),
    Device: lambda w, v, p: w.call("torch.device", *_device_parts(v, p)),
    DType: _Writer.dtype,
    LazyTensor: _Writer.tensor,
    Opaque: _Writer.record,
    tuple: _Writer.sequence,
    list: _Writer.sequence,
    set: lambda w, v, p: w.call("builtins.set", sorted(v, key=repr)),
    Counter: lambda w, v, p: w.call("collections.Counter", dict(v)),
}
_SUBCLASSES: tuple[tuple[type, Callable[[_Writer, Any, str], None]], ...] = (
    (dict, _Writer.dict),
    (LazyTensor, _Writer.tensor),
)
_NESTED = {_Writer.dict, _Writer.sequence, _Writer.record}


def _device_parts(value: str, path: str) -> tuple[Any, ...]:
    try:
        kind, colon, index = str(device(value)).partition(":")  # a Device's partition would give Devices back
    except CorruptFileError as error:
        raise _refusal(path, str(error)) from error
    return (kind, int(index)) if colon else (kind,)
