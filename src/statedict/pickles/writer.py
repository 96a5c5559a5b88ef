"""A pickle writer for data: protocol 2, and no global beyond those that `torch.load(weights_only=True)` accepts.

Tensors become the calls that PyTorch writes:

    _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, OrderedDict())
    _rebuild_tensor_v3(the same, dtype)              for dtypes that are younger than the typed storages, known or not
    _rebuild_parameter(tensor, requires_grad, OrderedDict())
    _rebuild_parameter_with_state(tensor, requires_grad, OrderedDict(), attributes)   for one that has any
    _rebuild_from_type_v2(_rebuild_tensor_v2, torch.Tensor, its arguments, attributes)
    storage = persistent id ("storage", torch.FloatStorage, key, "cpu", number of elements)

An `Opaque` is written only where the caller lists its name: the index of a distributed checkpoint consists of such
records, and nothing else may have any.

Source: torch/_tensor.py `_reduce_ex_internal`, torch/_weights_only_unpickler.py (PyTorch 2.13). Limits: integers of up
to 255 bytes, and a value that is shared (the same list in two places) is written twice.
"""

from __future__ import annotations

import warnings
from collections import Counter
from struct import Struct

from statedict.dtypes import DType, is_torch_dtype
from statedict.errors import CorruptFileError, TreeError, UnsupportedError
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.attributes import data_of, left_out
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor
from statedict.tree.walk import MAX_DEPTH
from statedict.values import Device, Opaque, Size, device

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
        place: for each tensor its storage's key, the storage's size and the tensor's offset in bytes, its strides.
        path: what messages call the root.
        records: the names of objects that may be written: with a state as what `__newobj__` makes and BUILD fills,
            without one as a call.

    Raises:
        UnsupportedError: a value that `torch.load(weights_only=True)` would refuse; the message names its path.
        TreeError: the tree contains itself or is nested deeper than 200.
    """
    writer = _Writer(place, records)
    writer.value(tree, path)
    if writer.left_out:
        warnings.warn(left_out(writer.left_out), stacklevel=2)
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
        write = _VALUES.get(type(value))
        if write is None:
            for kind, candidate in _SUBCLASSES:
                if isinstance(value, kind):
                    write = candidate
                    break
            else:
                raise UnsupportedError(_refusal(value, path))
        if write in _NESTED:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise TreeError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}, or the tree contains itself")
            write(self, value, path)
            self.depth -= 1
        else:
            write(self, value, path)

    def named(self, name: str) -> bytes:
        """A global, spelled out at its first use and taken from the memo later."""
        known = self.memo.get(name)
        if known is not None:
            return known
        module, _, attribute = name.rpartition(".")
        return self.spelled(name, b"c" + module.encode() + b"\n" + attribute.encode() + b"\n")

    def spelled(self, name: str, out: bytes) -> bytes:
        """What is spelled out now, and taken from the memo by this name from now on."""
        index = len(self.memo)
        self.memo[name] = b"h" + bytes([index]) if index < 256 else b"j" + _U4.pack(index)
        return out + (b"q" + bytes([index]) if index < 256 else b"r" + _U4.pack(index))

    def call(self, name: str, *args: Any) -> None:
        self.out.append(self.named(name))
        self.tuple(args, "")
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
            raise UnsupportedError(f"{path}: a tensor of {fault}; it could not be read again")
        later = kind.kind == "raw" and not kind.safetensors and (bool(kind.storage) or is_torch_dtype(kind.name))
        if not (kind.itemsize or isinstance(tensor, Labelled)) or (kind.kind == "raw" and not later):
            raise UnsupportedError(f"{path}: PyTorch has no dtype {kind}; save it as .safetensors")
        if kind.kind == "quantized":
            raise UnsupportedError(
                f"{path}: a bare {kind} tensor lacks its scale; save its integers, scale and zero point"
            )
        named, globals_before = self.named, len(self.memo)
        young = not kind.storage
        out = []
        if tensor.parameter:
            out += [named("torch._utils._rebuild_parameter" + "_with_state" * bool(noted)), b"("]
        elif noted:
            out += [named("torch._tensor._rebuild_from_type_v2"), b"("]
        out.append(named("torch._utils._rebuild_tensor_v3" if young else "torch._utils._rebuild_tensor_v2"))
        typed = bool(noted) and not tensor.parameter
        out.append((named("torch.Tensor") if typed else b"") + b"((" + _text("storage"))
        out.append(named("torch.storage.UntypedStorage" if young else f"torch.{kind.storage}"))
        head, out = b"".join(out), [_text("cpu"), _int(size if young else size // kind.itemsize)]
        out.append(b"tQ" + _int(offset // (kind.itemsize or 1)) + self.ints(tensor.shape) + self.ints(strides))
        out.append(b"\x88" if tensor.requires_grad and not tensor.parameter else b"\x89")
        out.append(named("collections.OrderedDict"))
        out.append(b")R")
        if young:
            out.append(named(f"torch.{kind.name}"))
        out.append(b"t" if typed else b"tR")
        if tensor.parameter:
            out += (b"\x88" if tensor.requires_grad else b"\x89", named("collections.OrderedDict"), b")R")
            out += () if noted else (b"tR",)
        tail = b"".join(out)
        self.out += (head, _text(key), tail)
        if noted:
            self.bare = True
            self.value(noted, path)
            self.bare = False
            self.out.append(b"tR")
        elif len(self.memo) == globals_before:  # nothing here is spelled out for the first time
            self.tensors[alike] = head, tail

    def attributes(self, tensor: LazyTensor, path: str) -> dict[str, Any]:
        """What the file keeps of a tensor's attributes: data that `torch.load(weights_only=True)` accepts."""
        assert tensor.attributes is not None
        kept: dict[str, Any] = {}
        for name, value in data_of(tensor.attributes).items():
            trial = _Writer(self.place, frozenset())
            trial.bare = True
            try:
                trial.value(value, name)
            except (UnsupportedError, TreeError):
                continue
            kept[name] = value
        self.left_out += [f"{path}.{name}" for name in tensor.attributes if name not in kept]
        return kept

    def ints(self, numbers: tuple[int, ...]) -> bytes:
        known = self.shapes.get(numbers)
        if known is None:
            known = self.shapes[numbers] = _sequence([_int(n) for n in numbers])
        return known

    def record(self, value: Opaque, path: str) -> None:
        if value.name not in self.records:
            raise UnsupportedError(_refusal(value, path))
        known = self.written.get(id(value))
        if known is not None:
            self.out.append(known)
            return
        start, spelled_before = len(self.out), len(self.memo)
        self.out.append(self.named(value.name))
        self.tuple(value.args, path)
        if value.state is None:
            self.out.append(b"R")
        else:
            self.out.append(b"\x81")
            if type(value.state) is dict:
                self.fields(value.state, path)
            else:
                self.value(value.state, path)
            self.out.append(b"b")
        if len(self.memo) == spelled_before:  # nothing in it is spelled out for the first time
            whole = self.written[id(value)] = b"".join(self.out[start:])
            self.out[start:] = [whole]

    def fields(self, state: dict[str, Any], path: str) -> None:
        self.out.append(b"}(")
        for name, value in state.items():
            self.out.append(self.memo.get(name) or self.spelled(name, _text(name)))
            self.value(value, path)
        self.out.append(b"u")

    def dict(self, items: Any, path: str) -> None:
        metadata = getattr(items, "_metadata", None)
        self.out.append(b"}" if metadata is None else self.named("collections.OrderedDict") + b")R")
        self.pairs(items, path)
        if metadata is not None:
            self.value({"_metadata": metadata}, path)
            self.out.append(b"b")

    def pairs(self, items: Any, path: str) -> None:
        if not items:
            return
        self.out.append(b"(")
        dot = path + "." if path else ""
        for key, value in items.items():
            if type(key) is str:
                self.out.append(_text(key))
            else:
                self.value(key, f"{dot}{key} (the key)")
            self.value(value, f"{dot}{key}")
        self.out.append(b"u")

    def list(self, items: Any, path: str) -> None:
        self.out.append(b"]")
        if items:
            self.out.append(b"(")
            dot = path + "." if path else ""
            for index, value in enumerate(items):
                self.value(value, f"{dot}{index}")
            self.out.append(b"e")

    def tuple(self, items: Any, path: str) -> None:
        if len(items) > 3:
            self.out.append(b"(")
        dot = path + "." if path else ""
        for index, value in enumerate(items):
            self.value(value, f"{dot}{index}")
        self.out.append((b")", b"\x85", b"\x86", b"\x87")[len(items)] if len(items) <= 3 else b"t")

    def int(self, value: int, path: str) -> None:
        try:
            self.out.append(_int(value))
        except OverflowError:
            raise UnsupportedError(
                f"{path or 'the root'}: an integer of over 255 bytes; torch.load could not read it"
            ) from None

    def dtype(self, value: DType, path: str) -> None:
        if value.kind == "raw" and not is_torch_dtype(value.name):
            raise UnsupportedError(
                f"{path or 'the root'}: PyTorch has no dtype {value}; drop it, or save as .safetensors"
            )
        self.out.append(self.named(f"torch.{value.name}"))

    def set(self, items: Any, path: str) -> None:
        self.call("builtins.set", sorted(items, key=repr))


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


def _sequence(parts: list[bytes]) -> bytes:
    if len(parts) > 3:
        return b"(" + b"".join(parts) + b"t"
    return b"".join(parts) + (b")", b"\x85", b"\x86", b"\x87")[len(parts)]


def _refusal(value: Any, path: str) -> str:
    what = f"an object of class {value.name}" if isinstance(value, Opaque) else f"a {type(value).__qualname__}"
    return (
        f"{path or 'the root'}: {what} is not data that torch.load(weights_only=True) accepts; "
        "drop it, or save as .safetensors"
        + (", which keeps it as a label" if isinstance(value, Opaque) else " after converting it")
    )


_VALUES: dict[type, Callable[[_Writer, Any, str], None]] = {
    type(None): lambda w, v, p: w.out.append(b"N"),
    bool: lambda w, v, p: w.out.append(b"\x88" if v else b"\x89"),
    int: _Writer.int,
    float: lambda w, v, p: w.out.append(b"G" + _F8.pack(v)),
    str: lambda w, v, p: w.out.append(_text(v)),
    bytes: lambda w, v, p: w.call("_codecs.encode", v.decode("latin1"), "latin1"),
    bytearray: lambda w, v, p: w.call("builtins.bytearray", bytes(v)),
    complex: lambda w, v, p: w.call("builtins.complex", v.real, v.imag),
    Size: lambda w, v, p: w.call("torch.Size", tuple(v)),
    Device: lambda w, v, p: w.call("torch.device", *_device_parts(v, p)),
    DType: _Writer.dtype,
    LazyTensor: _Writer.tensor,
    Opaque: _Writer.record,
    tuple: _Writer.tuple,
    list: _Writer.list,
    set: _Writer.set,
    Counter: lambda w, v, p: w.call("collections.Counter", dict(v)),
}
_SUBCLASSES: tuple[tuple[type, Callable[[_Writer, Any, str], None]], ...] = (
    (dict, _Writer.dict),
    (LazyTensor, _Writer.tensor),
)
_NESTED = {_Writer.dict, _Writer.tuple, _Writer.list, _Writer.record}


def _device_parts(value: str, path: str) -> tuple[Any, ...]:
    try:
        kind, colon, index = str(device(value)).partition(":")  # a Device's partition would give Devices back
    except CorruptFileError as error:
        raise UnsupportedError(f"{path or 'the root'}: {error}") from error
    return (kind, int(index)) if colon else (kind,)
