"""Numbers as GGUF's blocks, bit by bit as `gguf.quants.quantize` 0.19.0 makes them.

Source: quantize_row_q8_0_ref and quantize_row_q4_0_ref in ggml-quants.c of ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy

from statedict.errors import UnsupportedError
from statedict.io.source import ByteSource, ComputedSource
from statedict.tensor.assembled import map_elements
from statedict.tensor.blocks import BlockTensor, BlockType
from statedict.tensor.ggml.types import BLOCKS
from statedict.tensor.lazy import LazyTensor

_CHUNK = 1 << 16  # numbers at a time: they stay in the processor's cache


def quantize(tensor: LazyTensor, name: str, where: str) -> BlockTensor:
    """The tensor as blocks of a type, which are computed when they are read.

    Raises:
        UnsupportedError: the type is not made here, or the tensor does not have numbers, or rows of whole blocks.
    """
    kind = {kind.name: kind for kind in BLOCKS.values()}.get(name)
    if kind is None or name not in _ENCODERS:
        raise UnsupportedError(f"{name}: is not a type of blocks that is made; take {' or '.join(_ENCODERS)}")
    if tensor.dtype.kind != "float" or not tensor.dtype.itemsize or tensor.dtype.name == "float4_e2m1fn_x2":
        raise UnsupportedError(f"{where}: {tensor.dtype} is not quantized to {name}; choose others by a pattern")
    if not tensor.ndim or tensor.shape[-1] % kind.elements:
        shape = "×".join(map(str, tensor.shape)) or "a scalar"
        raise UnsupportedError(
            f"{where}: is {shape}, and {name} takes rows of a multiple of {kind.elements}; choose others by a pattern"
        )
    floats = to_float32(tensor).contiguous()
    count = tensor.numel() // kind.elements
    start = floats.storage.offset + floats.offset
    fill = partial(_fill, kind, floats.storage.source, start, count)
    source = tensor.storage.source
    blocks = ComputedSource(count * kind.nbytes, fill, source.name, source.remote)
    return BlockTensor.make(kind, tensor.shape, blocks, 0, source.name)


def to_float32(tensor: LazyTensor) -> LazyTensor:
    """The tensor in float32."""
    from statedict.dtypes import BY_NAME

    wanted = BY_NAME["float32"]
    return tensor if tensor.dtype is wanted else map_elements(tensor, wanted, _cast)


def _cast(values: Any, out: Any = None) -> Any:
    if out is None:
        return values.astype(numpy.float32)
    with numpy.errstate(all="ignore"):
        out[...] = values
    return out


def _fill(kind: BlockType, source: ByteSource, start: int, count: int, offset: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of blocks from an offset on."""
    most = _CHUNK // kind.elements
    while len(buffer):
        first, within = divmod(offset, kind.nbytes)
        some = min(most, count - first, -(-(within + len(buffer)) // kind.nbytes))
        data = source.read(start + 4 * first * kind.elements, 4 * some * kind.elements)
        blocks = numpy.empty((some, kind.nbytes), numpy.uint8)
        with numpy.errstate(all="ignore"):  # of NaN and infinities, and scales beyond float16
            _ENCODERS[kind.name](numpy.frombuffer(data, "<f4").reshape(some, kind.elements), blocks)
        piece = blocks.reshape(-1)[within : within + len(buffer)]
        buffer[: len(piece)] = piece.data
        offset, buffer = offset + len(piece), buffer[len(piece) :]


def _put_scales(blocks: Any, scales: Any) -> Any:
    """Store the scales as float16; their inverse in float32, 0 where they are."""
    blocks[:, :2] = scales.astype("<f2").view(numpy.uint8)
    return numpy.where(scales == 0, numpy.float32(0), numpy.float32(1) / scales)


def _q8_0(numbers: Any, blocks: Any) -> None:
    scaled = numbers * _put_scales(blocks, abs(numbers).max(axis=1, keepdims=True) / numpy.float32(127))
    size = abs(scaled)
    whole = numpy.floor(size)
    size -= whole
    size *= 2
    whole += numpy.floor(size, out=size)  # halves go away from zero
    blocks[:, 2:] = (numpy.sign(scaled) * whole).astype(numpy.int8).view(numpy.uint8)


def _q4_0(numbers: Any, blocks: Any) -> None:
    largest = numpy.take_along_axis(numbers, abs(numbers).argmax(axis=1, keepdims=True), axis=1)
    scaled = numbers * _put_scales(blocks, largest / numpy.float32(-8))
    scaled += numpy.float32(8.5)
    found = numpy.trunc(scaled, out=scaled).astype(numpy.uint8).clip(0, 15)
    blocks[:, 2:] = found[:, :16] | found[:, 16:] << 4


_ENCODERS: dict[str, Callable[[Any, Any], None]] = {"Q8_0": _q8_0, "Q4_0": _q4_0}
MADE = tuple(_ENCODERS)
