"""What each constructor takes and what it is charged with, when a small program calls it again and again.

Run as `python constructions.py`, which prints a line for each program: its name, bytes of memory, bytes charged.
"""

from __future__ import annotations

import gc
import os
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

from statedict.dtypes import dtype
from statedict.errors import LimitError
from statedict.io.source import BytesSource
from statedict.pickles.budget import FACTOR, MEMO
from statedict.pickles.constructors import TypedStorage
from statedict.pickles.machine import _Machine
from statedict.pickles.objects import Global
from statedict.pickles.tables import DATA
from statedict.tensor.lazy import Storage

SIZE = 80_000  # bytes of each program


class Raw(bytes):
    """Operations that push something."""


def push(value: Any) -> bytes:
    """The operations that push a value."""
    match value:
        case Raw():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"
        case list():
            return b"](" + b"".join(map(push, value)) + b"e"
        case dict():
            return b"}(" + b"".join(push(key) + push(held) for key, held in value.items()) + b"u"
    raise TypeError(value)


def named(name: str) -> Raw:
    return Raw(b"c" + name.replace(" ", "\n").encode() + b"\n")


def call(name: str, *args: Any) -> Raw:
    return Raw(named(name) + push(args) + b"R")


FLOATS, BYTES, F32 = Raw(b"X\1\0\0\0fQ"), Raw(b"X\1\0\0\0iQ"), named("torch float32")
WIDE, LONG, MANY = "\U0001f600", 30_000, 3000
ONES = {n: (1,) * n for n in (1, 8, 64)}
HOOKS = call("collections OrderedDict")
NAMES = {str(n): 1 for n in range(MANY)}
U = "torch._utils _rebuild_"
_TENSOR = call(f"{U}tensor_v2", FLOATS, 0, (2,), (1,), False, HOOKS)
_LAYOUT = call("torch.serialization _get_layout", "torch.sparse_coo")
_SHAPES = [ones if plain else call("torch Size", list(ones)) for ones in ONES.values() for plain in (True, False)]
_DTYPES = [call("numpy dtype", code) for code in ("f4", ">f4", "x" * 100, WIDE * 100)]
_BIG_ENDIAN = Raw(_DTYPES[0] + push((3, ">", None, None, None, -1, -1, 0)) + b"b")
_ITEMS = [(), [], {}, [("a", 1), ("b", 2)], {"a": 1}, NAMES, [(str(n), 1) for n in range(MANY)]]
_LISTS = [(), [], [1], [1, 2, 3, 4, 5], (1, 2, 3), list(range(MANY)), [(n % 200, n // 200) for n in range(MANY)]]
_TEXTS = ["ab", "a" * LONG, WIDE * LONG, "a" * LONG + WIDE]


def _tensors(name: str, storage: Raw, *rest: Any) -> list[tuple[Any, ...]]:
    return [(storage, 0, shape, ONES[n], *rest) for shape, n in zip(_SHAPES, (1, 1, 8, 8, 64, 64), strict=True)]


def _arrays() -> Iterator[tuple[Any, ...]]:
    yield from ((b"abcd", kind, (1,), "C") for kind in _DTYPES)
    yield from ((b"abcd", _DTYPES[0], shape, "F") for shape in ONES.values())
    yield from ((b"abcd" * 16, _DTYPES[0], (2,) * 4 + ONES[8], "K", tuple(range(12))[::-1]) for _ in range(1))
    yield from (("\xff" * LONG, _DTYPES[0], (LONG // 4,)), (b"\0" * LONG, _BIG_ENDIAN, (LONG // 4,)))


_PER_TENSOR, _PER_CHANNEL = named("torch per_tensor_affine"), named("torch per_channel_affine")
_ATTRIBUTES = [None, {"a": 1}, (None, {"a": 1}), NAMES, (NAMES, {f"{name}x": 1 for name in NAMES})]
# constructor → arguments that make it take much
ARGUMENTS: dict[str, list[tuple[Any, ...]]] = {
    "collections OrderedDict": [(), *((items,) for items in _ITEMS)],
    "collections defaultdict": [(), (None,), *((None, items) for items in _ITEMS)],
    "collections Counter": [(), ({},), ({"a": 1},), ({"a": None},), (NAMES,)],
    "_codecs encode": [("ab",), *((text, "utf-8") for text in _TEXTS), ("\xff" * LONG, "latin1")],
    "builtins set": [(), *((items,) for items in _LISTS)],
    "builtins frozenset": [(), *((items,) for items in _LISTS)],
    "builtins bytes": [(b"ab",), (b"a" * LONG,)],
    "builtins bytearray": [(), (b"a" * LONG,), ("\xff" * LONG, "latin-1")],
    "builtins complex": [(1.0,), (1.0, 2.0)],
    "torch Size": [(), *((items,) for items in _LISTS[:-1]), (call("torch Size", list(range(MANY))),)],
    "torch device": [("cpu",), ("cuda:0",), ("cuda", 1), ("a" * 90,), ("a" * 90, 1)],
    "torch FloatTensor": [()],
    f"{U}tensor": _tensors("tensor", FLOATS),
    f"{U}tensor_v2": [
        *_tensors("tensor_v2", FLOATS, False, HOOKS), *_tensors("tensor_v2", FLOATS, False, HOOKS, {"neg": True}),
    ],
    f"{U}tensor_v3": _tensors("tensor_v3", FLOATS, False, HOOKS, F32),
    f"{U}parameter": [(_TENSOR, True, HOOKS), (None, True, HOOKS)],
    f"{U}parameter_with_state": [(_TENSOR, True, HOOKS, state) for state in _ATTRIBUTES],
    f"{U}sparse_tensor": [(_LAYOUT, (None, None, None, True)), (None, None)],
    f"{U}qtensor": [
        *_tensors("qtensor", BYTES, (_PER_TENSOR, 1.0, 1), False, HOOKS),
        (BYTES, 0, (1,), (1,), (_PER_CHANNEL, [1.0], [1], 0), False, HOOKS),
    ],
    f"{U}nested_tensor": [(None, None, None, None)],
    f"{U}meta_tensor_no_storage": [(F32, *shape[2:]) for shape in _tensors("", FLOATS)],
    f"{U}wrapper_subclass": [(named("a b"), F32, (1,), (1,), 0, None, "cpu", False)],
    f"{U}device_tensor_from_cpu_tensor": [(_TENSOR, F32, "cpu", False), (None, F32, "cpu", False)],
    "torch.nested._internal.nested_tensor _rebuild_njt": [({},), ({"values": 1, "offsets": 2},), (NAMES,)],
    "torch._tensor _rebuild_from_type_v2": [
        *((named(f"{U}tensor_v2"), named("a b"), (FLOATS, 0, shape, ONES[n], False, HOOKS), state)
          for shape, n in ((ONES[1], 1), (_SHAPES[5], 64)) for state in _ATTRIBUTES),
        (named("c d"), named("a b"), tuple(range(MANY)), {"a": 1}),
        (named(f"{U}meta_tensor_no_storage"), named("a b"), (F32, _SHAPES[5], ONES[64], False), NAMES),
        (named("torch.nested._internal.nested_tensor _rebuild_njt"), named("a b"), (NAMES,), {"a": 1}),
    ],
    "torch.serialization _get_layout": [("torch.strided",), ("x" * 39,), (WIDE * 39,)],
    "numpy dtype": [("f4",), ("x" * 100, False, True), (WIDE * 100, False, True), (b"x" * 100,)],
    "numpy.core.multiarray _reconstruct": [(named("numpy ndarray"), (0,), b"b"), (None, (0,), b"b")],
    "numpy.core.multiarray scalar": [
        *((kind, b"abcd") for kind in _DTYPES), (_DTYPES[2],), (_DTYPES[2], "\xff" * LONG),
    ],
    "numpy.core.numeric _frombuffer": list(_arrays()),
    "torch.jit._pickle build_intlist": [([1],), (list(range(MANY)),)],
    "torch.jit._pickle restore_type_tag": [([1], "")],
    "some class": [(), (1, 2, 3), tuple(range(MANY))],
    "\U0001f600" * 450 + " " + "\U0001f600" * 450: [()],
}  # fmt: skip
# constructor → its arguments, and the state that it then gets
STATES: list[tuple[str, tuple[Any, ...], Any]] = [
    *(("torch FloatTensor", (), (FLOATS, 0, shape, ONES[n])) for shape, n in ((ONES[1], 1), (_SHAPES[5], 64))),
    *(("numpy.core.multiarray _reconstruct", (named("numpy ndarray"), (0,), b"b"), state)
      for state in ((1, ONES[64], _DTYPES[0], True, b"abcd"), (1, (LONG // 4,), _BIG_ENDIAN, False, b"\0" * LONG),
                    (1, (LONG // 4,), _DTYPES[0], False, "\xff" * LONG))),
    ("numpy dtype", (WIDE * 100, False, True), (3, "<", None, None, None, -1, -1, 0)),
    ("collections OrderedDict", (), {"_metadata": {"a": 1}}),
    ("collections OrderedDict", (), {"_metadata": NAMES}),
    ("some class", (), {"a": 1}),
    ("some class", (), {"_parameters": NAMES, "_buffers": {}, "_modules": {}}),
]  # fmt: skip


def programs() -> Iterator[tuple[str, bytes]]:
    """Each constructor with each of its arguments, made once and called again and again."""
    for name, choices in ARGUMENTS.items():
        for index, args in enumerate(choices):
            yield f"{name[:60]} {index}", _again(named(name), push(args), b"")
    for index, (name, args, state) in enumerate(STATES):
        yield f"{name} with state {index}", _again(named(name), push(args), push(state))
    for operation in (b"h\0h\1\x81", b"h\0h\1h\2\x92", b"(h\0o"):
        yield f"a tensor by {operation!r}", _again(named("torch FloatTensor"), b")", b"}", operation)


def _again(function: bytes, args: bytes, state: bytes, operation: bytes = b"") -> bytes:
    start = function + b"q\x000" + args + b"q\x010" + (state + b"q\x020" if state else b"")
    operation = operation or (b"h\0h\1Rh\2b" if state else b"h\0h\1R")
    return start + operation * (SIZE // len(operation)) + b"."


def covered(name: str) -> bool:
    """Whether a constructor stands in the table, or its twin by another name does."""
    found = DATA[name]
    builds = {DATA[known].build for known in ARGUMENTS if known in DATA}
    return not isinstance(found, Global) or found.build is None or found.build in builds


def measure(program: bytes) -> tuple[int, int]:
    """Bytes that reading a program took, and bytes that it was charged with, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        gc.disable()
        storage = Storage(BytesSource(bytes(64)), 0, 64)
        kinds = {"f": TypedStorage(storage, dtype("float32")), "i": TypedStorage(storage, dtype("qint8"))}
        machine = _Machine(program, DATA, kinds.__getitem__, 0, FACTOR)
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            kept = machine.run()
        except LimitError as error:
            kept = error  # type: ignore[assignment]
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
        charged = machine.budget._spent + 17 * len(machine.stack) + MEMO * len(machine.memo)
        os.write(writer, f"{memory} {charged}".encode())
        os._exit(0 if kept else 1)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        memory, charged = said.read().split()
    return int(memory), int(charged)


if __name__ == "__main__":
    for label, program in programs():
        print(*measure(program), label, flush=True)
