"""Numbers of fewer than 8 bits, several to a byte, as ONNX, OpenVINO and Core ML store them.

A byte, or three, is a block of numbers (`blocks.py`), the first in the lowest bits; in `u1`, OpenVINO's, it is the
highest. Integers become int8 or uint8, floats float32.

Source: onnx.proto (TensorProto), ml_dtypes, openvino 2026.4; the table of NF4 is bitsandbytes's.
"""

from __future__ import annotations

from functools import cache, partial

from statedict.dtypes import BY_NAME
from statedict.tensor.blocks import BlockType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@cache
def _numbers(name: str, bits: int) -> Any:
    """The number that each pattern of bits stands for."""
    import ml_dtypes
    import numpy

    patterns = numpy.arange(1 << bits, dtype=numpy.uint8)
    if name[0] == "u":
        return patterns
    if name.startswith("int"):
        return (patterns << (8 - bits)).astype(numpy.uint8).view(numpy.int8) >> (8 - bits)
    if name == "nf4":
        return numpy.array(_NF4, numpy.float32)
    return patterns.view(getattr(ml_dtypes, name)).astype(numpy.float32)


@cache
def _unpacked(name: str, bits: int) -> Any:
    """The numbers in each byte."""
    import numpy

    places = numpy.arange(0, 8, bits)[:: -1 if name == "u1" else 1]
    return _numbers(name, bits)[(numpy.arange(256)[:, None] >> places) & ((1 << bits) - 1)]


def _decode(name: str, bits: int, data: bytes | bytearray, out: memoryview) -> None:
    import numpy

    packed = numpy.frombuffer(data, numpy.uint8)
    if bits == 6 and len(packed) * 4 == len(out) and name[0] == "f":
        numpy.take(_numbers(name, 6), packed & 63, out=numpy.frombuffer(out, "<f4"), mode="clip")
        return
    if bits in (1, 2, 4):
        table = _unpacked(name, bits)
        numpy.take(table, packed, axis=0, out=numpy.frombuffer(out, table.dtype).reshape(-1, 8 // bits), mode="clip")
        return
    triples = packed.reshape(-1, 3).astype(numpy.uint32)
    words = triples[:, :1] | triples[:, 1:2] << 8 | triples[:, 2:] << 16
    patterns = (words >> numpy.arange(0, 24, bits, dtype=numpy.uint32)) & ((1 << bits) - 1)
    table = _numbers(name, bits)
    numpy.take(table, patterns, out=numpy.frombuffer(out, table.dtype).reshape(patterns.shape), mode="clip")


def _kind(name: str, bits: int, dtype: str) -> BlockType:
    nbytes = 1 if 8 % bits == 0 else 3
    elements = 8 * nbytes // bits
    return BlockType(name, elements, nbytes, partial(_decode, name, bits), BY_NAME[dtype])


def unpacked(kind: BlockType) -> BlockType:
    """The kind of the same numbers of 6 bits, each in a byte of its own."""
    return kind._replace(name=f"{kind.name} in bytes", elements=1, nbytes=1)


PACKED = {
    kind.name: kind
    for kind in (
        _kind("u1", 1, "uint8"),
        _kind("uint1", 1, "uint8"),
        _kind("uint2", 2, "uint8"),
        _kind("int2", 2, "int8"),
        _kind("uint4", 4, "uint8"),
        _kind("int4", 4, "int8"),
        _kind("uint3", 3, "uint8"),
        _kind("uint6", 6, "uint8"),
        _kind("float4_e2m1fn", 4, "float32"),
        _kind("float6_e2m3fn", 6, "float32"),
        _kind("float6_e3m2fn", 6, "float32"),
        _kind("nf4", 4, "float32"),
    )
}
"""The kinds, by name."""
